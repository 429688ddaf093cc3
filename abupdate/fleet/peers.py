"""What a node knows of the others: whose status is fresh, who answered its HELLO, and what they say that they have seen of itself. Pure.

Status counts only when it is newer (boot counter, sequence) than what came before, and after a start only from peers that have echoed this
start's nonce. A claim about this node's own past counts with proof (its own signed vote), or when more than f peers make it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from abupdate.formats.messages import Echo, Heartbeat, Type

Position = tuple[int, int, int]
ORIGIN: Position = (0, 0, 0)


def position(height: int, round_: int, kind: Type) -> Position:
    """Where a vote stands, for comparison; PROPOSAL < PREVOTE < PRECOMMIT."""
    return height, round_, int(kind)


@dataclass(slots=True)
class Peer:
    """One other node. fresh: its status counts: it has echoed this start's nonce, or tells of what came after this start.
    noticed: status of it was heard, fresh or not. heard_s: when its last fresh heartbeat came, None: never. address: where that came from.

    vote: its newest vote that was seen and that vote's frame. claim: what its last echo said of this node.
    """

    fresh: bool = False
    noticed: bool = False
    boot: int = 0
    seq: int = 0
    heard_s: float | None = None
    address: str = ""
    beat: Heartbeat | None = None
    newest: Position = ORIGIN
    vote: bytes = b""
    claim: Echo | None = None
    nonce: int | None = None

    def newer(self, boot: int, seq: int) -> bool:
        """This status is newer than all before; remembers it."""
        if (boot, seq) <= (self.boot, self.seq):
            return False
        self.boot, self.seq = boot, seq
        return True


@dataclass(slots=True)
class Peers:
    """All others, by index."""

    me: int
    others: dict[int, Peer] = field(default_factory=dict)

    def follow(self, members: frozenset[int]) -> None:
        """The membership has changed."""
        self.others = {node: self.others.get(node, Peer()) for node in sorted(members - {self.me})}

    def up(self, now_s: float, within_s: float) -> frozenset[int]:
        """Others whose fresh heartbeat is not older than that."""
        return frozenset(
            node for node, peer in self.others.items() if peer.heard_s is not None and peer.fresh and now_s - peer.heard_s <= within_s
        )

    def doubters(self, now_s: float, within_s: float) -> frozenset[int]:
        """Others that are up and doubt this node."""
        found = set()
        for node in self.up(now_s, within_s):
            beat = self.others[node].beat
            if beat is not None and self.me in beat.doubts:
                found.add(node)
        return frozenset(found)

    def acknowledged(self, boot: int, newest: Position, among: Iterable[int]) -> list[int]:
        """Who of these has echoed this start, and claims nothing of this node that its own log does not have."""
        found = []
        for node in among:
            peer = self.others.get(node)
            if peer is not None and peer.fresh and peer.claim is not None and not _beyond(peer.claim, boot, newest):
                found.append(node)
        return found

    def contradicting(self, boot: int, newest: Position) -> frozenset[int]:
        """Who claims to have seen a later start or vote of this node than its log has."""
        found = set()
        for node, peer in self.others.items():
            if peer.claim is not None and _beyond(peer.claim, boot, newest):
                found.add(node)
        return frozenset(found)


def _beyond(claim: Echo, boot: int, newest: Position) -> bool:
    """The claim speaks of more than this node's log has. Its height is 0 where no vote was seen."""
    return claim.boot > boot or (claim.height > 0 and position(claim.height, claim.round, claim.step) > newest)
