"""Memberships and orders for tests: the same bytes in every run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from abupdate.formats import membership as memberships
from abupdate.formats import order as orders
from abupdate.formats import signature
from abupdate.formats.membership import Member, Membership
from abupdate.formats.messages import NOTHING
from abupdate.formats.order import Order, OrderKind
from abupdate.formats.signature import Domain
from abupdate.host.signing import sign_all
from tests.rings import pair

GENESIS = hashlib.sha256(b"genesis").digest()
BUNDLE, OLDER = hashlib.sha256(b"new").digest(), hashlib.sha256(b"old").digest()


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
