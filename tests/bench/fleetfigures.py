"""One rollout of a simulated site, and what it took: seconds of the medium, bytes, processor time of the core, memory of a node."""

from __future__ import annotations

import gc
import statistics
import sys
import types
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from abupdate.formats import frame
from abupdate.formats.messages import Proposal, Type, Vote
from tests.fleet.authority import Shape
from tests.fleet.media import BAUD, Lan, Medium, Sent, Serial
from tests.fleet.quietsite import Site

ALWAYS = frozenset({Type.HEARTBEAT, Type.POLL})
"""There whether anything happens or not: heartbeats, and POLL, which is the token of who has nothing to say."""
_PATIENCE_S = 4 * 3600.0
_BITS = 10


@dataclass(frozen=True, slots=True)
class Decided:
    """One height. entry: its class. seconds: from the PROPOSAL's first byte to the Q-th PRECOMMIT's last, None where round 0 failed.

    votes_bytes: of its proposals and votes.
    """

    height: int
    entry: str
    seconds: float | None
    votes_bytes: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one site.

    met_s: from power on until every node has fresh status of all others, which took met_bytes without ALWAYS.
    rollout_s: from the order until every node runs the bundle and has decided that the plan is done.
    kinds: frames and bytes by type in the rollout.
    received_us: of the processor, for a frame that the core hears. core_s: all of it in the rollout, of all nodes.
    node_bytes: of one node's objects at the end.
    """

    nodes: int
    medium: str
    met_s: float
    met_bytes: int
    rollout_s: float
    decided: tuple[Decided, ...]
    kinds: dict[Type, tuple[int, int]]
    received_us: float
    core_s: float
    node_bytes: int

    @property
    def counted_bytes(self) -> int:
        """Of the rollout, without ALWAYS."""
        return _counted(self.kinds)

    @property
    def always_bytes(self) -> int:
        """Of ALWAYS in the rollout."""
        return sum(size for _, size in self.kinds.values()) - self.counted_bytes

    @property
    def seconds(self) -> list[float]:
        """Of all heights decided in their first round."""
        return [one.seconds for one in self.decided if one.seconds is not None]

    @property
    def votes_bytes(self) -> float:
        """Of a height in the middle."""
        return statistics.median(one.votes_bytes for one in self.decided)


def bus_seconds(size: int) -> float:
    """How long so many bytes take on the line."""
    return size * _BITS / BAUD


def measure(shape: Shape, medium_name: str, width: int) -> Figures:
    """One rollout. On the LAN with real keys, on the bus (whose simulation takes long enough) with keys that cost nothing."""

    def medium(tag: bytes) -> Medium:
        return Lan() if medium_name == "lan" else Serial(shape.nodes, tag)

    site = Site(shape, medium, real_keys=medium_name == "lan", width=width)
    site.start()
    site.until(site.ready, _PATIENCE_S)
    begun_s, core_s = site.clock.now_s, sum(site.cost.cpu_s.values())
    met = _kinds(site.medium.sent(), site.medium)
    site.propose()
    site.until(site.updated, _PATIENCE_S)
    sent = [one for one in site.medium.sent() if one.start_s >= begun_s]
    node = next(member.node for member in site.members.values() if member.node is not None)
    return Figures(
        nodes=shape.nodes,
        medium=site.medium.name,
        met_s=begun_s,
        met_bytes=_counted(met),
        rollout_s=site.clock.now_s - begun_s,
        decided=_heights(sent, site),
        kinds=_kinds(sent, site.medium),
        received_us=site.cost.cpu_s["Received"] / site.cost.calls["Received"] * 1e6,
        core_s=sum(site.cost.cpu_s.values()) - core_s,
        node_bytes=reachable_bytes(node),
    )


def _heights(sent: Iterable[Sent], site: Site) -> tuple[Decided, ...]:
    begun: dict[int, float] = {}
    took: dict[int, float] = {}
    voters: dict[int, set[int]] = {}
    sizes: Counter[int] = Counter()
    for one in sent:
        if one.data[1] not in (Type.PROPOSAL, Type.PREVOTE, Type.PRECOMMIT):
            continue
        said = frame.parse(one.data)
        message = said.message
        assert isinstance(message, (Proposal, Vote))
        height = message.height
        sizes[height] += site.medium.wire_bytes(one.data)
        if message.round:
            continue
        if said.type is Type.PROPOSAL:
            begun.setdefault(height, one.start_s)
        elif said.type is Type.PRECOMMIT:
            agreed = voters.setdefault(height, set())
            agreed.add(said.source)
            if len(agreed) == site.membership.quorum and height in begun:
                took.setdefault(height, one.end_s - begun[height])
    entries = {one.height: type(one.entry).__name__.removesuffix("Entry").upper() for one in site.decided}
    return tuple(Decided(height, entries[height], took.get(height), sizes[height]) for height in sorted(entries))


def _kinds(sent: Iterable[Sent], medium: Medium) -> dict[Type, tuple[int, int]]:
    frames: Counter[Type] = Counter()
    sizes: Counter[Type] = Counter()
    for one in sent:
        frames[Type(one.data[1])] += 1
        sizes[Type(one.data[1])] += medium.wire_bytes(one.data)
    return {kind: (frames[kind], sizes[kind]) for kind in sorted(frames)}


def _counted(kinds: dict[Type, tuple[int, int]]) -> int:
    return sum(size for kind, (_, size) in kinds.items() if kind not in ALWAYS)


def reachable_bytes(root: object) -> int:
    """Of all objects that hang on this one, code apart."""
    seen: set[int] = set()
    waiting = [root]
    total = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        waiting += gc.get_referents(one)
    return total
