"""Values of the fleet's wire: what a frame says once it is decoded. The codec is frame.py; sizes and encodings are told there.

Node numbers are 0-254. Digests, bundle ids and order ids are 32 bytes (SHA-256). A lease is the height of its GRANT.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

EVERYBODY = 0xFF
NOTHING = bytes(32)


class Type(IntEnum):
    """Frame types. The first ones are status (fresh only); the others are facts that anybody may relay, years later too."""

    POLL = 0
    HELLO = 1
    HELLO_ACK = 2
    HEARTBEAT = 3
    NACK = 4
    CERT_REQ = 5
    FRAG = 6
    PROPOSAL = 7
    PREVOTE = 8
    PRECOMMIT = 9
    CERT = 10
    ORDER = 11
    APPROVE = 12
    REJECT = 13
    SLOT_REQ = 14
    SHUTDOWN = 15
    COMPLETE = 16
    ROLLED_BACK = 17
    DEFER = 18
    OVERDUE = 19
    LOST = 20
    EVIDENCE = 21


class Thing(IntEnum):
    """What a digest names: objects larger than a frame (announced, fetched in fragments), or a single fact."""

    FACT = 0
    ORDER = 1
    MEMBERSHIP = 2
    ENTRY = 3
    CERTIFICATE = 4
    SNAPSHOT = 5
    EVIDENCE = 6


class Stage(IntEnum):
    """How far a node is with the update of the newest order, as its heartbeat says."""

    IDLE = 0
    FETCHING = 1
    READY = 2
    WAITING = 3
    LEAVING = 4
    TRIAL = 5
    DONE = 6
    REVERTED = 7
    DEFERRED = 8
    FAILED = 9
    MANUAL = 10


@dataclass(frozen=True, slots=True)
class Poll:
    """Nothing to say: unsigned, carries the token on a serial bus."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A restarted node asks who hears it. nonce: u32, random."""

    nonce: int


@dataclass(frozen=True, slots=True)
class Echo:
    """An answer to one node's Hello: its nonce, and the newest boot counter and signed vote of it that the answerer has seen.

    height 0: no vote seen. step: Type.PREVOTE or Type.PRECOMMIT.
    """

    node: int
    nonce: int
    boot: int
    height: int
    round: int
    step: Type


@dataclass(frozen=True, slots=True)
class HelloAck:
    """Answers up to 10 Hellos. The votes that it speaks of are relayed beside it."""

    echoes: tuple[Echo, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How a node is. height: of its last decided entry. lease: 0 none. healthy: sees its quorum and its programs are content.

    doubts: nodes whose confirm it would hold back. bundle: first 8 bytes of what it booted. stopped: it does not vote (log lost or
    restored).
    """

    height: int
    lease: int
    stage: Stage
    healthy: bool
    trial: bool
    stopped: bool
    bundle: bytes
    doubts: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Nack:
    """Asks for a thing by its digest. missing: fragment numbers, empty: all of it (or it is a fact)."""

    thing: Thing
    digest: bytes
    missing: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class CertRequest:
    """Asks for what was decided at a height."""

    height: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of an object: every piece but the last has FRAGMENT_BYTES."""

    digest: bytes
    index: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Proposal:
    """A value for a height and round. valid_round: -1 none. entry: its bytes, or empty where they are an object of its own.

    entry_digest: SHA-256 of the entry's bytes (computed by the codec where the entry is inline).
    """

    height: int
    round: int
    valid_round: int
    entry_digest: bytes
    entry: bytes = b""


@dataclass(frozen=True, slots=True)
class Vote:
    """PREVOTE or PRECOMMIT. value: the voted hash, NOTHING for nil."""

    height: int
    round: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Announce:
    """I hold this object (ORDER, LOST, CERT, EVIDENCE). height: of a certificate or snapshot, else 0."""

    thing: Thing
    digest: bytes
    size_bytes: int
    height: int = 0


@dataclass(frozen=True, slots=True)
class Approve:
    """I hold the order's bundle, verified and written to my inactive slot."""

    order: bytes


@dataclass(frozen=True, slots=True)
class Reject:
    """I do not take part in the order. reason: at most 96 bytes of UTF-8."""

    order: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class SlotRequest:
    """I am ready to go down. attempt: 1 and up, one more than the leases that the plan has given me so far."""

    plan: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """I go down under this lease, for about so long."""

    lease: int
    expected_s: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """COMPLETE, ROLLED_BACK or DEFER for a lease. bundle: what is booted. reason: at most 96 bytes of UTF-8, empty in COMPLETE."""

    lease: int
    bundle: bytes
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Overdue:
    """By my own clock this lease is held for too long."""

    lease: int


Message = (
    Poll
    | Hello
    | HelloAck
    | Heartbeat
    | Nack
    | CertRequest
    | Fragment
    | Proposal
    | Vote
    | Announce
    | Approve
    | Reject
    | SlotRequest
    | Shutdown
    | Outcome
    | Overdue
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. source: its author. to: EVERYBODY or a node; with `token` the bus's next holder instead (what was signed then says
    EVERYBODY).

    boot, seq: of the author in a status frame, of whoever relays it in a fact. signature: 64 bytes, empty in a Poll.
    """

    type: Type
    source: int
    to: int
    tag: bytes
    epoch: int
    boot: int
    seq: int
    message: Message
    signature: bytes
    token: bool = False
