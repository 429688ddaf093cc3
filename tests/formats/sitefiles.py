"""Memberships and orders for tests, and any that the formats can hold, as hypothesis draws them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from abupdate.formats import membership as memberships
from abupdate.formats import order as orders
from abupdate.formats import signature
from abupdate.formats.membership import Member, Membership, Recovery
from abupdate.formats.messages import NOTHING
from abupdate.formats.order import OnHalt, Order, OrderKind
from abupdate.formats.signature import Domain
from abupdate.host.signing import sign_all
from tests.formats import fleetvalues
from tests.rings import pair

GENESIS = hashlib.sha256(b"genesis").digest()
BUNDLE, OLDER = hashlib.sha256(b"new").digest(), hashlib.sha256(b"old").digest()
U32, COUNTER = 2**32 - 1, 2**63 - 1


def raw(*names: str) -> tuple[bytes, ...]:
    """Public keys by name, ascending."""
    return tuple(sorted(pair(name).public.raw for name in names))


def site(nodes: int = 4, **changes: Any) -> Membership:
    """Epoch 1 of a site, not encoded yet. Nodes 0 and 1 are in the group `pumps`; every rule is kept unless `changes` breaks one."""
    members = tuple(
        Member(index, pair(f"node-{index}").public.raw, f"gw{index}", index < 16, frozenset({"pumps"} if index < 2 else ()))
        for index in range(nodes)
    )
    plain = Membership(
        site="plant-7",
        epoch=1,
        genesis=NOTHING,
        digest=NOTHING,
        body=b"",
        members=members,
        faults=0,
        min_up=1,
        groups={"pumps": 1},
        approvals=1,
        stall_ok=False,
        heartbeat_s=5,
        roots=raw("root", "root-2"),
        root_threshold=1,
        admins=raw("admin", "admin-2", "admin-3"),
        admin_threshold=1,
        now_threshold=2,
    )
    return replace(plain, **changes)


def membership_file(wanted: Membership, *signers: str) -> bytes:
    """The file of a membership that these keys signed."""
    body = memberships.body(wanted)
    return memberships.build(body, sign_all([pair(name) for name in signers], signature.message(Domain.MEMBERSHIP, body)))


def enacted(wanted: Membership, *signers: str) -> Membership:
    """The membership as whoever reads its file has it."""
    return memberships.parse(membership_file(wanted, *(signers or ("root",))))


def plain_order(kind: OrderKind, **fields: Any) -> Order:
    """An order of a kind with the fields that it must have, not encoded yet."""
    needed: dict[OrderKind, dict[str, Any]] = {
        OrderKind.UPDATE: {"bundle": BUNDLE, "version": "2.0", "counter": 7, "compatible": "acme", "sources": ("/media/new.abu",)},
        OrderKind.CANCEL: {"target": BUNDLE},
        OrderKind.RESUME: {"halt_at": 0},
        OrderKind.ROLLBACK: {"bundle": OLDER, "version": "1.0"},
        OrderKind.EVICT: {"nodes": frozenset({3})},
        OrderKind.LOST: {"nodes": frozenset({3})},
    }
    return replace(Order(NOTHING, kind, GENESIS, 1, 1, b"", **needed.get(kind, {})), **fields)


def order_file(wanted: Order, *signers: str) -> bytes:
    """The file of an order that these keys signed."""
    body = orders.body(wanted)
    return orders.build(body, sign_all([pair(name) for name in signers], signature.message(Domain.ORDER, body)))


names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
node_names = names.filter(lambda name: not name.isdigit())
keys = st.binary(min_size=32, max_size=32).map(lambda key: key[:31] + bytes([key[31] & 0x3F | 0x10]))
versions = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9.+~:_-]{0,63}\Z")
texts = fleetvalues.reasons.filter(bool)


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
        genesis=draw(fleetvalues.hashes),
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
    return Recovery(draw(fleetvalues.hashes), height, dict(sorted(held.items())))


_IDENTITIES = fleetvalues.hashes.filter(any)
_TARGETS = st.just(NOTHING) | _IDENTITIES
_REASONS = fleetvalues.reasons
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
                "counter": draw(st.integers(0, COUNTER)),
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
            nodes = draw(st.frozensets(fleetvalues.nodes))
            fields = {**rollout, "bundle": draw(_IDENTITIES), "version": draw(versions), "nodes": nodes, "now": draw(st.booleans())}
        case OrderKind.EVICT | OrderKind.LOST:
            fields = {"nodes": frozenset({draw(fleetvalues.nodes)}), "reason": draw(_REASONS)}
    return Order(NOTHING, kind, draw(fleetvalues.hashes), draw(st.integers(1, 0xFFFF)), draw(st.integers(1, U32)), b"", **fields)
