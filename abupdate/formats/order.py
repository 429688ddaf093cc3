"""Orders of a site's admins (`.abo`): signed offline, carried by any node, judged by the membership of their epoch alone.

The file is that of signedfile.py with the magic 89 41 42 4F 0D 0A 1A 0A; signed is the body, in the domain `order`, by keys that the
membership names. The body is a TLV sequence (tlv.py), numbers are little-endian. Each kind has its own fields; any other is refused.

    0001  kind, u8: 1 UPDATE, 2 CANCEL, 3 PAUSE, 4 RESUME, 5 ROLLBACK, 6 EVICT, 7 LOST
    0002  genesis of the site, 32 bytes
    0003  epoch, u16, 1 and up
    0004  admin_seq, u32, 1 and up
    0010  UPDATE ROLLBACK: bundle id, 32 bytes, not all zero
    0011  UPDATE ROLLBACK: version of the bundle, as in its manifest
    0012  UPDATE: security counter of the bundle, u64, at most 2^63 - 1
    0013  UPDATE: compatible of the bundle, a text of 1 to 128 bytes
    0014  UPDATE: source, an http(s) URL or an absolute path, a text of at most 1024 bytes; 1 to 8, none twice, the first is tried first
    0015  UPDATE: share, u8: percent of the nodes that must approve, 1 to 100
    0016  UPDATE ROLLBACK: width, u8: nodes down at once, 1 to 254
    0017  UPDATE ROLLBACK RESUME: halt_at, u8: troubles that halt it, 1 and up; in RESUME also 0: as it was
    0018  UPDATE: on_halt, u8: 0 hold, 1 rollback
    0019  UPDATE: bundle id to go back to, not the new one; may be left out where on_halt is hold
    001A  UPDATE: its version; left out together with it
    001B  UPDATE ROLLBACK: seconds after which a lease is overdue, u32, 1 to 2592000
    0020  CANCEL PAUSE RESUME: target, the id of an order; PAUSE and RESUME may leave it out and mean the whole site
    0021  CANCEL PAUSE RESUME EVICT LOST: reason, a text of 1 to 96 bytes; left out where there is none
    0022  ROLLBACK EVICT LOST: node, u8, 0 to 254, ascending; exactly one in EVICT and LOST, none in ROLLBACK means all
    0023  ROLLBACK: now, u8: 0 or 1
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from typing import Any

from abupdate.errors import Refused
from abupdate.formats import signature, text, tlv
from abupdate.formats.messages import EVERYBODY, NOTHING
from abupdate.formats.signature import Domain
from abupdate.formats.signedfile import Form, flag, hash_of, number
from abupdate.model import MAX_COUNTER, Signature

MAGIC = b"\x89ABO\r\n\x1a\n"
FORM = Form(MAGIC, "an order", "`abupdate fleet propose` and its like make one")
MAX_SOURCES = 8
MAX_SOURCE_BYTES = 1024
MAX_COMPATIBLE_BYTES = 128
MAX_REASON_BYTES = 96
MAX_OVERDUE_S = 30 * 86400


class OrderKind(IntEnum):
    """What an admin may order."""

    UPDATE = 1
    CANCEL = 2
    PAUSE = 3
    RESUME = 4
    ROLLBACK = 5
    EVICT = 6
    LOST = 7


class OnHalt(IntEnum):
    """What happens to a plan that is halted."""

    HOLD = 0
    ROLLBACK = 1


@dataclass(frozen=True, slots=True)
class Order:
    """One order. id: SHA-256 of `body`. Fields that a kind does not use have their defaults.

    genesis, epoch, admin_seq: which site, whose rules, and in which place (1 and up; a lower one than the last committed is void).
    UPDATE: bundle (32), version, counter, compatible, sources (URLs or absolute paths, 1-8), share (percent of nodes that must
    approve, 1-100), width (nodes down at once), halt_at, on_halt, rollback_to (bundle id, NOTHING: none), rollback_version, overdue_s.
    CANCEL, PAUSE, RESUME: target (order id; NOTHING in PAUSE and RESUME: the whole site), reason; RESUME: halt_at (0: as it was).
    ROLLBACK: bundle and version to go back to, nodes (empty: all), now, width, halt_at, overdue_s. EVICT, LOST: nodes (exactly one),
    reason.
    """

    id: bytes
    kind: OrderKind
    genesis: bytes
    epoch: int
    admin_seq: int
    body: bytes
    signatures: tuple[Signature, ...] = ()
    bundle: bytes = bytes(32)
    version: str = ""
    counter: int = 0
    compatible: str = ""
    sources: tuple[str, ...] = ()
    share: int = 100
    width: int = 1
    halt_at: int = 1
    on_halt: OnHalt = OnHalt.HOLD
    rollback_to: bytes = bytes(32)
    rollback_version: str = ""
    overdue_s: int = 1800
    target: bytes = bytes(32)
    reason: str = ""
    nodes: frozenset[int] = frozenset()
    now: bool = False


_KIND, _GENESIS, _EPOCH, _ADMIN_SEQ = range(0x0001, 0x0005)
_BUNDLE, _VERSION, _COUNTER, _COMPATIBLE, _SOURCE, _SHARE = range(0x0010, 0x0016)
_WIDTH, _HALT_AT, _ON_HALT, _BACK, _BACK_VERSION, _OVERDUE = range(0x0016, 0x001C)
_TARGET, _REASON, _NODE, _NOW = range(0x0020, 0x0024)
_COMMON = {_KIND: True, _GENESIS: True, _EPOCH: True, _ADMIN_SEQ: True}
_ABOUT_NODE = {_REASON: False, _NODE: True}
# The fields of each kind, and whether an order must have them.
_FIELDS: Mapping[OrderKind, Mapping[int, bool]] = {
    OrderKind.UPDATE: {tag: tag not in (_BACK, _BACK_VERSION) for tag in range(_BUNDLE, _OVERDUE + 1)},
    OrderKind.CANCEL: {_TARGET: True, _REASON: False},
    OrderKind.PAUSE: {_TARGET: False, _REASON: False},
    OrderKind.RESUME: {_HALT_AT: True, _TARGET: False, _REASON: False},
    OrderKind.ROLLBACK: {_BUNDLE: True, _VERSION: True, _WIDTH: True, _HALT_AT: True, _OVERDUE: True, _NODE: False, _NOW: True},
    OrderKind.EVICT: _ABOUT_NODE,
    OrderKind.LOST: _ABOUT_NODE,
}
_TAGS = {tag: tag in (_SOURCE, _NODE) for fields in (_COMMON, *_FIELDS.values()) for tag in fields}
_KINDS = {int(kind): kind for kind in OrderKind}
_SOURCES = re.compile("https?://[^/?#].*|/.*")
_WHAT = "the order"


def body(order: Order) -> bytes:
    """The bytes that admins sign; `id`, `body` and `signatures` are not looked at. Raises Refused where a rule is broken."""
    fields = {**_COMMON, **_FIELDS[order.kind]}
    encoded = tlv.pack((tag, value) for tag, value in _records(order) if tag in fields)
    if _decode(encoded, order.signatures) != replace(order, id=hashlib.sha256(encoded).digest(), body=encoded):
        raise Refused(f"an order {order.kind.name} says something that is for orders of other kinds")
    return encoded


def build(body: bytes, signatures: Iterable[Signature]) -> bytes:
    """A whole file from a body (see `body`) and signatures over it. Raises ValueError where it would be too long."""
    return FORM.build(body, signatures)


def parse(data: bytes) -> Order:
    """Decode a whole file. Verifies no signature: `signers`. Raises Refused."""
    return _decode(*FORM.take_apart(data))


def signers(order: Order, keys: Iterable[bytes]) -> frozenset[bytes]:
    """The raw keys out of `keys` that signed the order. Raises Refused where the signature by one of them is wrong."""
    return _signers(order.signatures, frozenset(keys), order.body)


@lru_cache(maxsize=32)
def _signers(signatures: tuple[Signature, ...], keys: frozenset[bytes], body: bytes) -> frozenset[bytes]:
    """A site judges a waiting order again at every event that may make it the next entry; verifying it once is enough."""
    return signature.signers(signatures, keys, signature.message(Domain.ORDER, body))


def _records(order: Order) -> list[tuple[int, bytes]]:
    """The fields of all kinds, in the order of their tags."""
    return [
        (_KIND, bytes([order.kind])),
        (_GENESIS, order.genesis),
        (_EPOCH, number(order.epoch, 2, "the order's epoch")),
        (_ADMIN_SEQ, number(order.admin_seq, 4, "the order's admin_seq")),
        (_BUNDLE, order.bundle),
        (_VERSION, text.encoded(order.version, "the version")),
        (_COUNTER, number(order.counter, 8, "the security counter")),
        (_COMPATIBLE, text.encoded(order.compatible, "the field compatible")),
        *((_SOURCE, text.encoded(source, "a source")) for source in order.sources),
        (_SHARE, number(order.share, 1, "the share")),
        (_WIDTH, number(order.width, 1, "the width")),
        (_HALT_AT, number(order.halt_at, 1, "halt_at")),
        (_ON_HALT, bytes([order.on_halt])),
        *([(_BACK, order.rollback_to)] if order.rollback_to != NOTHING else []),
        *([(_BACK_VERSION, text.encoded(order.rollback_version, "the version to go back to"))] if order.rollback_version else []),
        (_OVERDUE, number(order.overdue_s, 4, "the time after which a lease is overdue")),
        *([(_TARGET, order.target)] if order.target != NOTHING else []),
        *([(_REASON, text.encoded(order.reason, "the reason"))] if order.reason else []),
        *((_NODE, number(node, 1, "a node's index")) for node in sorted(order.nodes)),
        (_NOW, bytes([order.now])),
    ]


def _decode(body: bytes, signatures: tuple[Signature, ...]) -> Order:
    found = tlv.unpack(body, _TAGS, _WHAT)
    code = tlv.unsigned(tlv.one(found, _KIND, _WHAT), 1, 255, "the order's kind")
    if code not in _KINDS:
        raise tlv.newer(f"an order of kind {code}")
    kind = _KINDS[code]
    fields = _FIELDS[kind]
    for tag, values in found.items():
        if values and tag not in fields and tag not in _COMMON:
            raise Refused(f"an order {kind.name} has the tag {tag:#06x}, which is none of its kind's")
        if fields.get(tag):
            tlv.one(found, tag, _WHAT)
    order = Order(
        id=hashlib.sha256(body).digest(),
        kind=kind,
        genesis=hash_of(tlv.one(found, _GENESIS, _WHAT), "the order's genesis"),
        epoch=tlv.unsigned(tlv.one(found, _EPOCH, _WHAT), 2, 0xFFFF, "the order's epoch"),
        admin_seq=tlv.unsigned(tlv.one(found, _ADMIN_SEQ, _WHAT), 4, 2**32 - 1, "the order's admin_seq"),
        body=body,
        signatures=signatures,
        **{name: read(found[tag]) for tag, (name, read) in _READERS.items() if found[tag]},
    )
    _check(order, frozenset(tag for tag, values in found.items() if values))
    return order


def _identity(value: bytes, what: str) -> bytes:
    if value == NOTHING:
        raise Refused(f"{what} is all zero")
    return hash_of(value, what)


def _sources(values: list[bytes]) -> tuple[str, ...]:
    if len(values) > MAX_SOURCES:
        raise Refused(f"the order names {len(values)} sources, more than {MAX_SOURCES}")
    sources = tuple(text.plain(value, MAX_SOURCE_BYTES, "a source") for value in values)
    for source in sources:
        if not _SOURCES.fullmatch(source):
            raise Refused(f"source {source[:80]!r} is neither an http(s) URL nor an absolute path")
    if len(set(sources)) != len(sources):
        raise Refused("the order names a source twice")
    return sources


def _nodes(values: list[bytes]) -> frozenset[int]:
    tlv.ascending(values, "the order's nodes")
    return frozenset(tlv.unsigned(value, 1, EVERYBODY - 1, "a node's index") for value in values)


# By tag: the field of an Order and how its values are decoded.
_READERS: Mapping[int, tuple[str, Callable[[list[bytes]], Any]]] = {
    _BUNDLE: ("bundle", lambda values: _identity(values[0], "the bundle id")),
    _VERSION: ("version", lambda values: text.matching(text.VERSION, values[0], "version")),
    _COUNTER: ("counter", lambda values: tlv.unsigned(values[0], 8, MAX_COUNTER, "the security counter")),
    _COMPATIBLE: ("compatible", lambda values: text.plain(values[0], MAX_COMPATIBLE_BYTES, "the field compatible")),
    _SOURCE: ("sources", _sources),
    _SHARE: ("share", lambda values: tlv.unsigned(values[0], 1, 100, "the share")),
    _WIDTH: ("width", lambda values: tlv.unsigned(values[0], 1, EVERYBODY - 1, "the width")),
    _HALT_AT: ("halt_at", lambda values: tlv.unsigned(values[0], 1, 255, "halt_at")),
    _ON_HALT: ("on_halt", lambda values: OnHalt(tlv.unsigned(values[0], 1, max(OnHalt), "on_halt"))),
    _BACK: ("rollback_to", lambda values: _identity(values[0], "the bundle id to go back to")),
    _BACK_VERSION: ("rollback_version", lambda values: text.matching(text.VERSION, values[0], "version")),
    _OVERDUE: ("overdue_s", lambda values: tlv.unsigned(values[0], 4, MAX_OVERDUE_S, "the time after which a lease is overdue")),
    _TARGET: ("target", lambda values: _identity(values[0], "the order's target")),
    _REASON: ("reason", lambda values: text.plain(values[0], MAX_REASON_BYTES, "the reason")),
    _NODE: ("nodes", _nodes),
    _NOW: ("now", lambda values: flag(values[0], "the flag now")),
}


def _check(order: Order, given: frozenset[int]) -> None:
    """The rules that are not of one field alone. given: the tags that are there."""
    if not order.epoch or not order.admin_seq:
        raise Refused(f"the order has epoch {order.epoch} and admin_seq {order.admin_seq}; both start at 1")
    for tag, value, what in (
        (_SHARE, order.share, "the share"),
        (_WIDTH, order.width, "the width"),
        (_OVERDUE, order.overdue_s, "the time after which a lease is overdue"),
    ):
        if tag in given and not value:
            raise Refused(f"{what} is 0")
    if _HALT_AT in given and not order.halt_at and order.kind is not OrderKind.RESUME:
        raise Refused("halt_at is 0")
    if (_BACK in given) != (_BACK_VERSION in given):
        raise Refused("the order names a bundle to go back to without its version, or a version alone")
    if order.on_halt is OnHalt.ROLLBACK and _BACK not in given:
        raise Refused("the order goes back when it halts, and names no bundle to go back to")
    if _BACK in given and order.rollback_to == order.bundle:
        raise Refused("the order would go back to the bundle that it installs")
    if order.kind in (OrderKind.EVICT, OrderKind.LOST) and len(order.nodes) != 1:
        raise Refused(f"an order {order.kind.name} names {len(order.nodes)} nodes instead of one")
