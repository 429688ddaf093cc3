"""Whatever the fleet's formats can hold, as hypothesis draws it: frames, entries, certificates, evidence, memberships, orders."""

from __future__ import annotations

import hashlib
from typing import Any

from hypothesis import strategies as st

from abupdate.formats import entries, frame
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import (
    Ending,
    Entry,
    GrantEntry,
    HaltEntry,
    LostEntry,
    OrderEntry,
    PlanEntry,
    ReconfigEntry,
    Release,
    ReleaseEntry,
    ReturnEntry,
)
from abupdate.formats.evidence import Evidence
from abupdate.formats.membership import Member, Membership, Recovery
from abupdate.formats.messages import (
    EVERYBODY,
    NOTHING,
    Announce,
    Approve,
    CertRequest,
    Echo,
    Fragment,
    Frame,
    Heartbeat,
    Hello,
    HelloAck,
    Message,
    Nack,
    Outcome,
    Overdue,
    Poll,
    Proposal,
    Reject,
    Shutdown,
    SlotRequest,
    Stage,
    Thing,
    Type,
    Vote,
)
from abupdate.formats.order import OnHalt, Order, OrderKind
from tests.formats.sitefiles import site

U32 = 2**32 - 1
hashes = st.binary(min_size=32, max_size=32)
numbers = st.integers(0, U32)
counted = st.integers(1, U32)
rounds = st.integers(0, frame.MAX_ROUND)
nodes = st.integers(0, EVERYBODY - 1)
flags = st.booleans()
signatures = st.binary(min_size=64, max_size=64)
reasons = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Zl", "Zp")), max_size=96).filter(
    lambda text: len(text.encode()) <= frame.MAX_REASON_BYTES
)


def _echo(node: int, nonce: int, boot: int, height: int, step: tuple[int, Type]) -> Echo:
    return Echo(node, nonce, boot, height, *(step if height else (0, Type.PREVOTE)))


@st.composite
def fragments(draw: st.DrawFn) -> Fragment:
    """A fragment of an object of any length."""
    size = draw(st.integers(1, frame.MAX_OBJECT_BYTES))
    count = -(-size // frame.FRAGMENT_BYTES)
    index = draw(st.integers(0, count - 1))
    length = min(frame.FRAGMENT_BYTES, size - index * frame.FRAGMENT_BYTES)
    return Fragment(draw(hashes), index, count, draw(st.binary(min_size=length, max_size=length)))


@st.composite
def proposals(draw: st.DrawFn) -> Proposal:
    """A proposal with its entry or without it."""
    number = draw(rounds)
    entry = draw(st.binary(max_size=frame.MAX_INLINE_BYTES))
    digest = hashlib.sha256(entry).digest() if entry else draw(hashes)
    return Proposal(draw(counted), number, draw(st.integers(-1, number - 1)), digest, entry)


def announces(*things: Thing) -> st.SearchStrategy[Announce]:
    """What a frame that announces may say of these things."""

    def announce(thing: Thing, digest: bytes, size_bytes: int, height: int) -> Announce:
        return Announce(thing, digest, size_bytes, height if thing in (Thing.CERTIFICATE, Thing.SNAPSHOT) else 0)

    return st.builds(announce, st.sampled_from(things), hashes, st.integers(1, frame.MAX_OBJECT_BYTES), numbers)


steps = st.tuples(rounds, st.sampled_from((Type.PREVOTE, Type.PRECOMMIT)))
votes = st.builds(Vote, counted, rounds, hashes)
setbacks = st.builds(Outcome, counted, hashes, reasons)
missing = st.frozensets(st.integers(0, frame.MAX_FRAGMENTS - 1))
nacks = st.builds(Nack, st.just(Thing.FACT), hashes) | st.builds(Nack, st.sampled_from(list(Thing)[1:]), hashes, missing)
echoes = st.lists(st.builds(_echo, nodes, numbers, numbers, numbers, steps), min_size=1, max_size=10)
beats = st.builds(
    Heartbeat, numbers, numbers, st.sampled_from(Stage), flags, flags, flags, st.binary(min_size=8, max_size=8), st.frozensets(nodes)
)
MESSAGES: dict[Type, st.SearchStrategy[Message]] = {
    Type.POLL: st.just(Poll()),
    Type.HELLO: st.builds(Hello, numbers),
    Type.HELLO_ACK: st.builds(HelloAck, echoes.map(tuple)),
    Type.HEARTBEAT: beats,
    Type.NACK: nacks,
    Type.CERT_REQ: st.builds(CertRequest, numbers),
    Type.FRAG: fragments(),
    Type.PROPOSAL: proposals(),
    Type.PREVOTE: votes,
    Type.PRECOMMIT: votes,
    Type.CERT: announces(Thing.CERTIFICATE, Thing.SNAPSHOT),
    Type.ORDER: announces(Thing.ORDER, Thing.MEMBERSHIP),
    Type.APPROVE: st.builds(Approve, hashes),
    Type.REJECT: st.builds(Reject, hashes, reasons),
    Type.SLOT_REQ: st.builds(SlotRequest, hashes, st.integers(1, 255)),
    Type.SHUTDOWN: st.builds(Shutdown, counted, numbers),
    Type.COMPLETE: st.builds(Outcome, counted, hashes),
    Type.ROLLED_BACK: setbacks,
    Type.DEFER: setbacks,
    Type.OVERDUE: st.builds(Overdue, counted),
    Type.LOST: announces(Thing.ORDER),
    Type.EVIDENCE: announces(Thing.EVIDENCE),
}


@st.composite
def frames(draw: st.DrawFn, kinds: tuple[Type, ...] = tuple(Type)) -> Frame:
    """A frame of one of these types."""
    kind = draw(st.sampled_from(kinds))
    return Frame(
        type=kind,
        source=draw(nodes),
        to=draw(st.integers(0, EVERYBODY)),
        tag=draw(st.binary(min_size=4, max_size=4)),
        epoch=draw(st.integers(1, 0xFFFF)),
        boot=draw(numbers),
        seq=draw(numbers),
        message=draw(MESSAGES[kind]),
        signature=b"" if kind is Type.POLL else draw(signatures),
        token=draw(flags),
    )


releases = (
    st.lists(st.builds(Release, counted, nodes, st.sampled_from(Ending), hashes), min_size=1, max_size=53, unique_by=lambda one: one.node)
    .map(lambda found: sorted(found, key=lambda one: (one.lease, one.node)))
    .map(tuple)
)
grants = (
    st.lists(st.tuples(nodes, st.integers(1, 255)), min_size=1, max_size=64, unique_by=lambda pair: pair[0])
    .map(lambda pairs: sorted(pairs))
    .map(tuple)
)
ENTRIES: st.SearchStrategy[Entry] = st.one_of(
    st.builds(OrderEntry, hashes),
    st.builds(PlanEntry, hashes, st.frozensets(nodes)),
    st.builds(GrantEntry, hashes, grants),
    st.builds(ReleaseEntry, releases),
    st.builds(LostEntry, hashes),
    st.builds(ReturnEntry, releases),
    st.builds(HaltEntry, hashes, counted, st.frozensets(nodes)),
    st.builds(ReconfigEntry, hashes),
)
certificates = st.builds(
    Certificate,
    counted,
    rounds,
    ENTRIES.map(entries.pack),
    hashes,
    st.lists(st.tuples(nodes, signatures), min_size=1, max_size=16, unique_by=lambda vote: vote[0]).map(sorted).map(tuple),
)


@st.composite
def evidences(draw: st.DrawFn) -> Evidence:
    """Two votes of one voter and step for different values."""
    one = draw(frames((Type.PREVOTE, Type.PRECOMMIT)))
    assert isinstance(one.message, Vote)
    values = draw(st.lists(hashes, min_size=2, max_size=2, unique=True))
    both = []
    for value in values:
        message = Vote(one.message.height, one.message.round, value)
        token, signature = draw(flags), draw(signatures)
        both.append(
            frame.pack(
                Frame(
                    one.type,
                    one.source,
                    draw(st.integers(0, 255)),
                    one.tag,
                    one.epoch,
                    draw(numbers),
                    draw(numbers),
                    message,
                    signature,
                    token,
                )
            )
        )
    return Evidence(*sorted(both))


names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
keys = st.binary(min_size=32, max_size=32).map(lambda key: key[:31] + bytes([key[31] & 0x3F | 0x10]))
versions = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9.+~:_-]{0,63}\Z")
texts = reasons.filter(bool)


@st.composite
def sites(draw: st.DrawFn) -> Membership:
    """Any membership that keeps the rules, not encoded yet."""
    count = draw(st.integers(3, 12) | st.integers(15, 20) | st.just(64))
    indices = sorted(draw(st.permutations(range(255)))[:count])
    voters = set(draw(st.permutations(indices))[:16])
    faults = draw(st.integers(0, (len(voters) - 1) // 3))
    groups = {name: draw(st.sets(st.sampled_from(indices), min_size=1)) for name in draw(st.lists(names, max_size=3, unique=True))}
    prefix = draw(names)[:40]
    members = tuple(
        Member(
            index,
            hashlib.sha256(b"%d" % index).digest()[:31] + b"\x10",
            f"{prefix}-{index}",
            index in voters,
            frozenset(name for name, nodes in groups.items() if index in nodes),
        )
        for index in indices
    )
    admins = draw(st.lists(keys, min_size=1, max_size=4, unique=True))
    roots = draw(st.lists(keys, min_size=1, max_size=4, unique=True))
    threshold = draw(st.integers(1, len(admins)))
    epoch = draw(st.just(1) | st.integers(2, 0xFFFF))
    return site(
        site=draw(names),
        epoch=epoch,
        genesis=draw(hashes),
        members=members,
        faults=faults,
        min_up=draw(st.integers(1, count - 1)),
        groups={name: draw(st.integers(0, len(nodes) - 1)) for name, nodes in groups.items()},
        approvals=draw(st.integers(faults + 1, count - faults)),
        stall_ok=draw(st.booleans()),
        heartbeat_s=draw(st.integers(1, 3600)),
        roots=tuple(sorted(roots)),
        root_threshold=draw(st.integers(1, len(roots))),
        admins=tuple(sorted(admins)),
        admin_threshold=threshold,
        now_threshold=draw(st.integers(threshold, len(admins))),
        recovery=draw(recoveries(indices)) if epoch == 1 and draw(st.booleans()) else None,
    )


@st.composite
def recoveries(draw: st.DrawFn, nodes: list[int]) -> Recovery:
    """What a site that lost its log goes on from."""
    height = draw(st.integers(0, U32))
    held = draw(st.dictionaries(st.sampled_from(nodes), st.integers(1, height), max_size=4)) if height else {}
    return Recovery(draw(hashes), height, dict(sorted(held.items())))


_IDENTITIES = hashes.filter(any)
_TARGETS = st.just(NOTHING) | _IDENTITIES
_REASONS = reasons
_COUNTS = st.integers(1, 255)
_WIDTHS = st.integers(1, 254)
_LATE = st.integers(1, 30 * 86400)
_SOURCES = st.lists(
    st.builds(lambda start, rest: start + rest, st.sampled_from(("http://a", "https://b", "/")), texts), min_size=1, max_size=8, unique=True
).map(tuple)


@st.composite
def any_order(draw: st.DrawFn) -> Order:
    """Any order that keeps the rules, not encoded yet."""
    kind = draw(st.sampled_from(OrderKind))
    fields: dict[str, Any] = {}
    rollout = {"width": draw(_WIDTHS), "halt_at": draw(_COUNTS), "overdue_s": draw(_LATE)}
    match kind:
        case OrderKind.UPDATE:
            back = draw(st.booleans())
            new, old = draw(st.lists(_IDENTITIES, min_size=2, max_size=2, unique=True))
            fields = {
                **rollout,
                "bundle": new,
                "version": draw(versions),
                "counter": draw(st.integers(0, 2**63 - 1)),
                "compatible": draw(texts),
                "sources": draw(_SOURCES),
                "share": draw(st.integers(1, 100)),
                "on_halt": draw(st.sampled_from(OnHalt)) if back else OnHalt.HOLD,
                "rollback_to": old if back else NOTHING,
                "rollback_version": draw(versions) if back else "",
            }
        case OrderKind.CANCEL:
            fields = {"target": draw(_IDENTITIES), "reason": draw(_REASONS)}
        case OrderKind.PAUSE:
            fields = {"target": draw(_TARGETS), "reason": draw(_REASONS)}
        case OrderKind.RESUME:
            fields = {"target": draw(_TARGETS), "reason": draw(_REASONS), "halt_at": draw(st.integers(0, 255))}
        case OrderKind.ROLLBACK:
            chosen = draw(st.frozensets(nodes))
            fields = {**rollout, "bundle": draw(_IDENTITIES), "version": draw(versions), "nodes": chosen, "now": draw(st.booleans())}
        case OrderKind.EVICT | OrderKind.LOST:
            fields = {"nodes": frozenset({draw(nodes)}), "reason": draw(_REASONS)}
    return Order(NOTHING, kind, draw(hashes), draw(st.integers(1, 0xFFFF)), draw(st.integers(1, U32)), b"", **fields)
