"""Orders: round trips, every rule from both sides, which fields each kind has, who signed, hostile bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from abupdate.errors import Refused
from abupdate.formats import layout, payloads, tlv
from abupdate.formats import order as orders
from abupdate.formats.order import OnHalt, Order, OrderKind
from abupdate.model import Signature
from tests.formats import fleetvalues
from tests.formats.sitefiles import BUNDLE, OLDER, order_file, plain_order, raw
from tests.formats.test_layout import values
from tests.rings import pair

FIELDS = {
    0x10: "bundle",
    0x11: "version",
    0x12: "counter",
    0x13: "compatible",
    0x15: "share",
    0x16: "width",
    0x17: "halt_at",
    0x19: "rollback_to",
    0x1A: "rollback_version",
    0x1B: "overdue_s",
    0x20: "target",
    0x21: "reason",
    0x23: "now",
}


def agree(data: bytes, decoded: Order) -> None:
    """Compare what construct reads with what the decoder made of it."""
    declared = layout.ORDER.parse(data)
    assert layout.ORDER.build(declared) == data
    found = values(declared.body)
    assert [found[tag] for tag in (1, 2, 3, 4)] == [[decoded.kind.name], [decoded.genesis], [decoded.epoch], [decoded.admin_seq]]
    assert {FIELDS[tag]: value for tag, (value, *_) in found.items() if tag in FIELDS} == {
        name: getattr(decoded, name) for tag, name in FIELDS.items() if tag in found
    }
    assert tuple(found.get(0x14, ())) == decoded.sources
    assert found.get(0x18, ["HOLD"]) == [decoded.on_halt.name]
    assert frozenset(found.get(0x22, ())) == decoded.nodes
    assert [Signature(item.value.public_key, item.value.value) for item in declared.signatures] == list(decoded.signatures)


@settings(max_examples=150, deadline=None)
@given(fleetvalues.any_order())
def test_an_order_is_read_as_it_was_written(wanted: Order) -> None:
    data = order_file(wanted, "admin")
    read = orders.parse(data)
    assert read == replace(wanted, id=hashlib.sha256(read.body).digest(), body=read.body, signatures=read.signatures)
    assert orders.build(orders.body(read), read.signatures) == data
    assert len(data) <= payloads.MAX_OBJECT_BYTES
    agree(data, read)


def test_the_id_is_that_of_the_body_whoever_signed() -> None:
    one, other = (orders.parse(order_file(plain_order(OrderKind.PAUSE), name)) for name in ("admin", "admin-2"))
    assert one.id == other.id == hashlib.sha256(one.body).digest()
    assert one.signatures != other.signatures


ADMINS = raw("admin", "admin-2")


def test_admins_are_counted_each_once_and_strangers_not_at_all() -> None:
    order = orders.parse(order_file(plain_order(OrderKind.PAUSE), "admin", "admin-2", "stranger"))
    assert orders.signers(order, ADMINS) == frozenset(ADMINS)
    assert orders.signers(order, [*ADMINS[:1], *ADMINS[:1]]) == frozenset(ADMINS[:1])
    assert orders.signers(order, raw("root")) == frozenset()
    assert orders.signers(orders.parse(order_file(plain_order(OrderKind.PAUSE))), ADMINS) == frozenset()


def test_a_wrong_signature_by_an_admin_is_refused() -> None:
    order = orders.parse(order_file(plain_order(OrderKind.PAUSE), "admin"))
    other = orders.parse(orders.build(orders.body(plain_order(OrderKind.PAUSE, admin_seq=2)), order.signatures))
    with pytest.raises(Refused, match=r"signature by key [0-9a-f]{16} is wrong"):
        orders.signers(other, ADMINS)
    assert orders.signers(other, raw("admin-2")) == frozenset()


U, R = OrderKind.UPDATE, OrderKind.ROLLBACK
BROKEN: Mapping[str, tuple[OrderKind, dict[str, Any], str]] = {
    "epoch 0": (U, {"epoch": 0}, "epoch 0 and admin_seq 1; both start at 1"),
    "epoch 65536": (U, {"epoch": 65536}, "epoch is 65536"),
    "admin_seq 0": (U, {"admin_seq": 0}, "epoch 1 and admin_seq 0"),
    "admin_seq 2^32": (U, {"admin_seq": 2**32}, "does not fit"),
    "a genesis of 31 bytes": (U, {"genesis": bytes(31)}, "genesis has 31 bytes"),
    "no bundle": (U, {"bundle": bytes(32)}, "bundle id is all zero"),
    "a bundle of 31 bytes": (U, {"bundle": BUNDLE[:31]}, "bundle id has 31 bytes"),
    "no version": (U, {"version": ""}, "is no version"),
    "a version with a space": (U, {"version": "1 2"}, "is no version"),
    "a version of 65 letters": (U, {"version": "1" * 65}, "is no version"),
    "a counter of 2^63": (U, {"counter": 2**63}, "more than 9223372036854775807"),
    "a counter below 0": (U, {"counter": -1}, "does not fit"),
    "no compatible": (U, {"compatible": ""}, "compatible has 0 bytes instead of 1 to 128"),
    "a long compatible": (U, {"compatible": "x" * 129}, "compatible has 129 bytes"),
    "no source": (U, {"sources": ()}, "lacks tag 0x0014"),
    "nine sources": (U, {"sources": tuple(f"/{number}" for number in range(9))}, "9 sources, more than 8"),
    "a source twice": (U, {"sources": ("/a", "/a")}, "a source twice"),
    "a relative path": (U, {"sources": ("a/b",)}, "neither an http.s. URL nor an absolute path"),
    "another scheme": (U, {"sources": ("ftp://a/b",)}, "neither an http.s. URL"),
    "a URL without a host": (U, {"sources": ("http:///b",)}, "neither an http.s. URL"),
    "a source of two lines": (U, {"sources": ("/a\n/b",)}, "control characters"),
    "a long source": (U, {"sources": ("/" + "a" * 1024,)}, "has 1025 bytes"),
    "a source that is no text": (U, {"sources": ("/\udcff",)}, "a source is not UTF-8"),
    "share 0": (U, {"share": 0}, "the share is 0"),
    "share 101": (U, {"share": 101}, "the share is 101, more than 100"),
    "width 0": (R, {"width": 0}, "the width is 0"),
    "width 255": (R, {"width": 255}, "the width is 255, more than 254"),
    "halt_at 0": (R, {"halt_at": 0}, "halt_at is 0"),
    "halt_at 256": (U, {"halt_at": 256}, "halt_at is 256"),
    "overdue at once": (U, {"overdue_s": 0}, "a lease is overdue is 0"),
    "overdue after a month": (U, {"overdue_s": 30 * 86400 + 1}, "more than 2592000"),
    "nowhere to go back to": (U, {"on_halt": OnHalt.ROLLBACK}, "names no bundle to go back to"),
    "back to the same": (U, {"rollback_to": BUNDLE, "rollback_version": "1"}, "go back to the bundle that it installs"),
    "back without a version": (U, {"rollback_to": OLDER}, "without its version"),
    "back by a version alone": (U, {"rollback_version": "1"}, "or a version alone"),
    "a cancel of nothing": (OrderKind.CANCEL, {"target": bytes(32)}, "lacks tag 0x0020"),
    "a target of 31 bytes": (OrderKind.PAUSE, {"target": BUNDLE[:31]}, "target has 31 bytes"),
    "a long reason": (OrderKind.PAUSE, {"reason": "x" * 97}, "reason has 97 bytes"),
    "a reason that is no text": (OrderKind.PAUSE, {"reason": "\udcff"}, "reason is not UTF-8"),
    "a reason that colours": (OrderKind.PAUSE, {"reason": "\x1b[31m"}, "control characters"),
    "nobody evicted": (OrderKind.EVICT, {"nodes": frozenset()}, "lacks tag 0x0022"),
    "two evicted": (OrderKind.EVICT, {"nodes": frozenset({1, 2})}, "EVICT names 2 nodes instead of one"),
    "two lost": (OrderKind.LOST, {"nodes": frozenset({1, 2})}, "LOST names 2 nodes instead of one"),
    "node 255": (OrderKind.LOST, {"nodes": frozenset({255})}, "index is 255, more than 254"),
    "node 256": (R, {"nodes": frozenset({256})}, "index is 256"),
    "a bundle in a PAUSE": (OrderKind.PAUSE, {"bundle": BUNDLE}, "an order PAUSE says something that is for orders of other kinds"),
    "a reason in an UPDATE": (U, {"reason": "x"}, "an order UPDATE says something"),
    "now in an UPDATE": (U, {"now": True}, "an order UPDATE says something"),
    "sources in a ROLLBACK": (R, {"sources": ("/a",)}, "an order ROLLBACK says something"),
    "halt_at in a CANCEL": (OrderKind.CANCEL, {"halt_at": 2}, "an order CANCEL says something"),
    "a target in a LOST": (OrderKind.LOST, {"target": BUNDLE}, "an order LOST says something"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_order_that_breaks_a_rule_is_refused_in_one_line(what: str) -> None:
    kind, fields, why = BROKEN[what]
    with pytest.raises(Refused, match=why) as refused:
        orders.body(plain_order(kind, **fields))
    assert "\n" not in refused.value.message
    assert not refused.value.message.endswith(".")


@pytest.mark.parametrize(
    "wanted",
    [
        plain_order(U, counter=2**63 - 1, share=1, width=254, halt_at=255, overdue_s=30 * 86400, epoch=0xFFFF, admin_seq=2**32 - 1),
        plain_order(U, counter=0, share=100, overdue_s=1, sources=("http://a", "https://b/c?d", "/" + "x" * 1023)),
        plain_order(U, rollback_to=OLDER, rollback_version="1.0", on_halt=OnHalt.ROLLBACK),
        plain_order(U, sources=tuple(f"/{number}" + "a" * 1022 for number in range(8))),
        plain_order(OrderKind.RESUME, halt_at=255, target=BUNDLE, reason="x" * 96),
        plain_order(OrderKind.PAUSE, reason="\N{SNOWMAN}" * 32),
        plain_order(R, nodes=frozenset(range(255)), now=True),
    ],
)
def test_a_value_at_its_bound_is_taken(wanted: Order) -> None:
    read = orders.parse(order_file(wanted))
    assert read == replace(wanted, id=read.id, body=read.body)


# -- hostile bytes


def records_of(body: bytes) -> list[tuple[int, bytes]]:
    """The records of a body."""
    found, position = [], 0
    while position < len(body):
        tag, length = int.from_bytes(body[position : position + 2], "little"), int.from_bytes(body[position + 2 : position + 4], "little")
        found.append((tag, body[position + 4 : position + 4 + length]))
        position += 4 + length
    return found


def with_records(kind: OrderKind, *more: tuple[int, bytes], without: int = 0) -> bytes:
    """The file of a plain order with records added and one taken away."""
    kept = [record for record in records_of(orders.body(plain_order(kind))) if record[0] != without]
    return orders.build(tlv.pack(sorted([*kept, *more], key=lambda record: record[0])), ())


ALL = {**dict.fromkeys((0x10, 0x19, 0x20), BUNDLE), 0x11: b"1", 0x12: bytes(8), 0x13: b"x", 0x14: b"/a", 0x1A: b"1", 0x1B: b"\1\0\0\0"}
ALL |= {**dict.fromkeys((0x15, 0x16, 0x17, 0x22), b"\1"), **dict.fromkeys((0x18, 0x23), b"\0"), 0x21: b"x"}


@pytest.mark.parametrize("kind", OrderKind, ids=lambda kind: kind.name)
def test_each_kind_has_its_own_fields_and_no_other(kind: OrderKind) -> None:
    own = {tag for tag, _ in records_of(orders.body(plain_order(kind)))}
    may_be_left_out = {
        OrderKind.UPDATE: {0x19, 0x1A},
        OrderKind.CANCEL: {0x21},
        OrderKind.PAUSE: {0x20, 0x21},
        OrderKind.RESUME: {0x20, 0x21},
        OrderKind.ROLLBACK: {0x22},
        OrderKind.EVICT: {0x21},
        OrderKind.LOST: {0x21},
    }[kind]
    for tag, value in ALL.items():
        if tag not in own | may_be_left_out:
            with pytest.raises(Refused, match=f"an order {kind.name} has the tag {tag:#06x}, which is none of its kind's"):
                orders.parse(with_records(kind, (tag, value)))
    for tag in own:
        with pytest.raises(Refused, match=f"lacks tag {tag:#06x}"):
            orders.parse(with_records(kind, without=tag))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (with_records(OrderKind.PAUSE, (1, b"\x08"), without=1), "kind 8 needs a newer abupdate"),
        (with_records(OrderKind.PAUSE, (1, b"\0"), without=1), "kind 0 needs a newer abupdate"),
        (with_records(OrderKind.PAUSE, (1, b"\3\0"), without=1), "kind has 2 bytes instead of 1"),
        (with_records(OrderKind.PAUSE, (3, b"\1"), without=3), "epoch has 1 bytes instead of 2"),
        (with_records(OrderKind.PAUSE, (0x20, bytes(32))), "target is all zero"),
        (with_records(OrderKind.PAUSE, (0x21, b"")), "reason has 0 bytes"),
        (with_records(OrderKind.PAUSE, (0x21, b"\xff")), "not UTF-8"),
        (with_records(OrderKind.PAUSE, (0x24, b"")), "needs a newer abupdate"),
        (with_records(U, (0x18, b"\2"), without=0x18), "on_halt is 2, more than 1"),
        (with_records(R, (0x23, b"\2"), without=0x23), "the flag now is 2"),
        (with_records(R, (0x22, b"\2"), (0x22, b"\1")), "nodes are not in strictly ascending order"),
        (with_records(R, (0x22, b"\1"), (0x22, b"\1")), "nodes are not in strictly ascending order"),
        (with_records(R, (0x16, b"\1")), "tag 0x0016 twice"),
        (b"\x89ABM\r\n\x1a\n" + order_file(plain_order(R))[8:], "this is not an order"),
        (order_file(plain_order(R))[:-1], "bytes instead of"),
    ],
)
def test_hostile_bytes_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        orders.parse(data)


def test_a_field_that_may_be_passed_over_is_part_of_what_is_signed() -> None:
    plain = orders.parse(order_file(plain_order(OrderKind.PAUSE)))
    other = orders.parse(with_records(OrderKind.PAUSE, (0x8001, b"x")))
    assert replace(other, id=plain.id, body=plain.body) == plain
    assert other.id != plain.id


def test_a_signature_of_a_membership_does_not_count() -> None:
    body = orders.body(plain_order(OrderKind.PAUSE))
    signed = b"abupdate membership 1\0" + hashlib.sha256(body).digest()
    order = orders.parse(orders.build(body, [Signature(pair("admin").public.raw, pair("admin").sign(signed))]))
    with pytest.raises(Refused, match="is wrong"):
        orders.signers(order, ADMINS)
