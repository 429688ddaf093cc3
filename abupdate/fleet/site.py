"""What all parts of the core share: the state of the site, what is known of it, and the effects that are on their way out."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field, replace

from abupdate.fleet import ledger
from abupdate.fleet import state as state_format
from abupdate.fleet.archive import Archive
from abupdate.fleet.events import Alarm, Effect, Persist, RecordKind, Send
from abupdate.fleet.facts import Fact, Facts
from abupdate.fleet.objects import Objects, cut
from abupdate.fleet.peers import Peers
from abupdate.fleet.state import State
from abupdate.fleet.wire import Wire
from abupdate.formats import frame
from abupdate.formats.entries import Entry
from abupdate.formats.membership import Membership
from abupdate.formats.messages import EVERYBODY, NOTHING, Announce, Frame, Message, Thing, Type

# Who says SHUTDOWN is about to fall silent.
_URGENT = frozenset({Type.PROPOSAL, Type.PREVOTE, Type.PRECOMMIT, Type.SHUTDOWN})
_HEIGHT = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Options:
    """base_s: patience of a round's steps, per medium (a LAN 1 s, a serial bus 4 s). resend_s: first pause before own words are said again.

    approve: by itself; else a person's word is waited for.
    """

    base_s: float = 1.0
    resend_s: float = 2.0
    approve: bool = True


@dataclass(frozen=True, slots=True)
class Next:
    """What an entry would make of the state. value: the voted hash."""

    value: bytes
    entry: Entry
    data: bytes
    state: State


@dataclass(slots=True)
class Site:
    """me: this node's index. known: memberships by epoch. out: effects of the event at hand. version: changes with what is known.
    words: each node's reason for its last ending. before: the voted hash of the height before the last.
    adrift: the state must come from peers."""

    me: int
    options: Options
    wire: Wire
    known: dict[int, Membership]
    state: State
    facts: Facts
    archive: Archive
    peers: Peers
    objects: Objects = field(default_factory=Objects)
    now_s: float = 0.0
    out: list[Effect] = field(default_factory=list)
    version: int = 0
    alarms: set[str] = field(default_factory=set)
    words: dict[int, str] = field(default_factory=dict)
    before: bytes = NOTHING
    adrift: bool = False

    @property
    def membership(self) -> Membership:
        """Of the state's epoch."""
        return self.known[self.state.epoch]

    @property
    def voter(self) -> bool:
        """This node is a voter of the epoch."""
        member = self.membership.by_index.get(self.me)
        return member is not None and member.voter

    def inherited(self, epoch: int) -> bool:
        """Another key had this node's place in that epoch, as far as this node can tell: it knows of no membership but its own."""
        then, now = self.known.get(epoch), self.membership.by_index.get(self.me)
        member = then.by_index.get(self.me) if then is not None else None
        return member is None or now is None or member.key != now.key

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self.out.append(effect)

    def persist(self, kind: RecordKind, data: bytes) -> None:
        """Write to the log before anything that is emitted after this."""
        self.out.append(Persist(kind, data))

    def alarm(self, text: str) -> None:
        """Tell people, once."""
        if text not in self.alarms:
            self.alarms.add(text)
            self.out.append(Alarm(text))

    def make(self, kind: Type, message: Message, to: int = EVERYBODY) -> tuple[Frame, bytes]:
        """A signed frame of this node in the state's epoch, and its bytes."""
        one = self.wire.make(kind, self.state.epoch, message, to)
        return one, frame.pack(one)

    def say(self, kind: Type, message: Message, to: int = EVERYBODY) -> None:
        """Make a frame and send it."""
        _, data = self.make(kind, message, to)
        self.send(kind, data)

    def send(self, kind: Type, data: bytes, *, urgent: bool = False) -> None:
        """Send the bytes of a frame of this type. urgent: votes wait for it."""
        self.wire.sent[kind] += 1
        self.out.append(Send(data, urgent or kind in _URGENT))

    def add_fact(self, one: Frame, data: bytes) -> Fact | None:
        """Take a verified fact into the pool; None where it is known or does not matter now."""
        fact = self.facts.add(self.state, one, data)
        if fact is not None:
            self.version += 1
            self.objects.forget(fact.digest)
        return fact

    def after(self, entry: Entry, data: bytes) -> Next:
        """What this entry makes of the state. Raises KeyError (the missing digest) where something that it names is not here."""
        state = ledger.apply(self.state, self.membership, entry, self.archive)
        digest = state_format.digest(state)
        value = voted_hash(self.state.genesis, state.height, data, self.state.last, digest)
        return Next(value, entry, data, replace(state, last=value))

    def hand_out(self, digest: bytes, data: bytes, missing: frozenset[int] = frozenset(), *, urgent: bool = False) -> None:
        """Send an object's fragments: all of them, or those that are missing. urgent: votes wait for it."""
        for piece in cut(digest, data):
            if not missing or piece.index in missing:
                _, packed = self.make(Type.FRAG, piece)
                self.send(Type.FRAG, packed, urgent=urgent)

    def announce(self, kind: Type, thing: Thing, digest: bytes, data: bytes, height: int = 0) -> None:
        """Say that this node has an object, and send it."""
        self.say(kind, Announce(thing, digest, len(data), height))
        self.hand_out(digest, data)

    def seen(self) -> frozenset[int]:
        """Others whose status is fresh, not older than three heartbeats."""
        return self.peers.up(self.now_s, 3 * self.membership.heartbeat_s)


def voted_hash(genesis: bytes, height: int, entry: bytes, before: bytes, state_digest: bytes) -> bytes:
    """What the voters of a height vote on: the entry, the hash of the height before, and the digest of the state after it."""
    whole = (b"abupdate value 1\x00", genesis, _HEIGHT.pack(height), hashlib.sha256(entry).digest(), before, state_digest)
    return hashlib.sha256(b"".join(whole)).digest()


def first_state(membership: Membership) -> State:
    """The state before the first height of a site, or of what a recovery goes on from."""
    recovery = membership.recovery
    state = State(membership.genesis, membership.epoch, membership.digest)
    if recovery is None:
        return state
    leases = {node: state_format.Lease(node, lease, NOTHING, membership.epoch) for node, lease in recovery.leases.items()}
    return replace(state, height=recovery.height, leases=leases)
