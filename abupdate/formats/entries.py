"""Entries of the site's log: what the voters decide, height by height. One byte of kind, then the body; one value has one encoding.

    ORDER      digest 32 of the admin's signed order
    PLAN       order 32 | approvers, a bitmap of 32 bytes (node n: bit n % 8 of byte n // 8)
    GRANT      plan 32 | (node 1 | attempt 1) of each node, nodes ascending
    RELEASE    (lease 4 | node 1 | ending 1 | digest 32 of the holder's fact) of each holder, by lease and node ascending, no node twice
    LOST       digest 32 of the admin's signed order
    RETURN     as RELEASE, of lost leases
    HALT       plan 32 | lease 4 | voters that say it is overdue, a bitmap of 32 bytes
    RECONFIG   digest 32 of the next membership file

Numbers are big-endian; nodes are 0 to 254, leases and attempts 1 and up. An entry has at most 2048 bytes. Everything that changes the
site's state is in the entry or in the object that it names by digest, never in a fact alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from abupdate.errors import Refused
from abupdate.formats.messages import EVERYBODY


class Kind(IntEnum):
    """The first byte of an entry."""

    ORDER = 1
    PLAN = 2
    GRANT = 3
    RELEASE = 4
    LOST = 5
    RETURN = 6
    HALT = 7
    RECONFIG = 8


class Ending(IntEnum):
    """How a lease ended, by its holder's own word."""

    COMPLETE = 1
    ROLLED_BACK = 2
    DEFER = 3


@dataclass(frozen=True, slots=True)
class OrderEntry:
    """An admin's order of any kind but LOST."""

    order: bytes


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """An update begins. The plan's id is the order's."""

    order: bytes
    approvers: frozenset[int]


@dataclass(frozen=True, slots=True)
class GrantEntry:
    """These nodes may go down; the lease is the entry's height. grants: (node, attempt), nodes ascending."""

    plan: bytes
    grants: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Release:
    """The end of one lease. fact: digest of the holder's COMPLETE, ROLLED_BACK or DEFER."""

    lease: int
    node: int
    ending: Ending
    fact: bytes


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """Leases that their holders ended."""

    releases: tuple[Release, ...]


@dataclass(frozen=True, slots=True)
class LostEntry:
    """An admin says that a node is lost."""

    order: bytes


@dataclass(frozen=True, slots=True)
class ReturnEntry:
    """Lost leases that their holders ended after all."""

    releases: tuple[Release, ...]


@dataclass(frozen=True, slots=True)
class HaltEntry:
    """The plan stops because a lease is overdue. voters: f+1 or more that say so."""

    plan: bytes
    lease: int
    voters: frozenset[int]


@dataclass(frozen=True, slots=True)
class ReconfigEntry:
    """The next epoch's membership, from the next height on."""

    membership: bytes


Entry = OrderEntry | PlanEntry | GrantEntry | ReleaseEntry | LostEntry | ReturnEntry | HaltEntry | ReconfigEntry
MAX_ENTRY_BYTES = 2048

_HASH_BYTES = 32
_BITMAP_BYTES = 32
_RELEASE = struct.Struct(">IBB32s")
_HALT = struct.Struct(">32sI32s")
_ENDINGS = {int(ending): ending for ending in Ending}


def digest(data: bytes) -> bytes:
    """The name of an entry: SHA-256 of its bytes."""
    return hashlib.sha256(data).digest()


def pack(entry: Entry) -> bytes:
    """An entry's bytes. Raises ValueError for one that breaks a rule."""
    try:
        data = _encode(entry)
        # What is written must be read as the very same: so the rules are written down once, in `parse`.
        if parse(data) == entry:
            return data
    except (struct.error, ValueError, OverflowError, Refused) as error:
        raise ValueError(f"there is no such {type(entry).__name__}: {error}") from error
    raise ValueError(f"there is no such {type(entry).__name__}")


def parse(data: bytes) -> Entry:
    """Decode a whole entry. Whether it is valid is the ledger's to say. Raises Refused."""
    if not 1 <= len(data) <= MAX_ENTRY_BYTES:
        raise Refused(f"an entry of the log has {len(data)} bytes instead of 1 to {MAX_ENTRY_BYTES}")
    if data[0] not in _LENGTHS:
        raise Refused(f"an entry of the log has the unknown kind {data[0]}")
    kind, body = Kind(data[0]), data[1:]
    least, step = _LENGTHS[kind]
    if len(body) < least or ((len(body) - least) % step if step else len(body) > least):
        raise Refused(f"{_name(kind)} has {len(body)} bytes, which is none of its lengths")
    match kind:
        case Kind.ORDER:
            return OrderEntry(body)
        case Kind.PLAN:
            return PlanEntry(body[:_HASH_BYTES], _read_bitmap(body[_HASH_BYTES:], kind))
        case Kind.GRANT:
            return GrantEntry(body[:_HASH_BYTES], _read_grants(body[_HASH_BYTES:]))
        case Kind.RELEASE:
            return ReleaseEntry(_read_releases(body, kind))
        case Kind.LOST:
            return LostEntry(body)
        case Kind.RETURN:
            return ReturnEntry(_read_releases(body, kind))
        case Kind.HALT:
            plan, lease, voters = _HALT.unpack(body)
            if not lease:
                raise Refused(f"{_name(kind)} names the lease 0")
            return HaltEntry(plan, lease, _read_bitmap(voters, kind))
        case Kind.RECONFIG:
            return ReconfigEntry(body)


# Of an entry's body: its least length and by how much it grows (0: it does not).
_LENGTHS: Mapping[int, tuple[int, int]] = {
    Kind.ORDER: (_HASH_BYTES, 0),
    Kind.PLAN: (_HASH_BYTES + _BITMAP_BYTES, 0),
    Kind.GRANT: (_HASH_BYTES + 2, 2),
    Kind.RELEASE: (_RELEASE.size, _RELEASE.size),
    Kind.LOST: (_HASH_BYTES, 0),
    Kind.RETURN: (_RELEASE.size, _RELEASE.size),
    Kind.HALT: (_HALT.size, 0),
    Kind.RECONFIG: (_HASH_BYTES, 0),
}


def _encode(entry: Entry) -> bytes:
    match entry:
        case OrderEntry():
            return bytes([Kind.ORDER]) + entry.order
        case PlanEntry():
            return bytes([Kind.PLAN]) + entry.order + _bitmap(entry.approvers)
        case GrantEntry():
            return bytes([Kind.GRANT]) + entry.plan + b"".join(bytes(pair) for pair in entry.grants)
        case ReleaseEntry():
            return bytes([Kind.RELEASE]) + _encode_releases(entry.releases)
        case LostEntry():
            return bytes([Kind.LOST]) + entry.order
        case ReturnEntry():
            return bytes([Kind.RETURN]) + _encode_releases(entry.releases)
        case HaltEntry():
            return bytes([Kind.HALT]) + _HALT.pack(entry.plan, entry.lease, _bitmap(entry.voters))
        case ReconfigEntry():
            return bytes([Kind.RECONFIG]) + entry.membership


def _name(kind: Kind) -> str:
    return f"an entry {kind.name} of the log"


def _bitmap(numbers: frozenset[int]) -> bytes:
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits.to_bytes(_BITMAP_BYTES, "little")


def _read_bitmap(data: bytes, kind: Kind) -> frozenset[int]:
    bits = int.from_bytes(data, "little")
    if bits >> EVERYBODY:
        raise Refused(f"{_name(kind)} names node {EVERYBODY}, which no node can be")
    return frozenset(number for number in range(EVERYBODY) if bits >> number & 1)


def _read_grants(data: bytes) -> tuple[tuple[int, int], ...]:
    grants = tuple(zip(data[::2], data[1::2], strict=True))
    if any(left >= right for (left, _), (right, _) in pairwise(grants)):
        raise Refused(f"{_name(Kind.GRANT)} has nodes that are not in strictly ascending order")
    if grants[-1][0] == EVERYBODY or not all(attempt for _, attempt in grants):
        raise Refused(f"{_name(Kind.GRANT)} names node {EVERYBODY}, or the attempt 0")
    return grants


def _encode_releases(releases: tuple[Release, ...]) -> bytes:
    return b"".join(_RELEASE.pack(release.lease, release.node, release.ending, release.fact) for release in releases)


def _read_releases(data: bytes, kind: Kind) -> tuple[Release, ...]:
    found: list[Release] = []
    for lease, node, ending, fact in _RELEASE.iter_unpack(data):
        if not lease or node == EVERYBODY or ending not in _ENDINGS:
            raise Refused(f"{_name(kind)} names the lease {lease}, node {node} and the ending {ending}")
        found.append(Release(lease, node, _ENDINGS[ending], fact))
    if any((left.lease, left.node) >= (right.lease, right.node) for left, right in pairwise(found)):
        raise Refused(f"{_name(kind)} has leases that are not in strictly ascending order")
    if len({release.node for release in found}) != len(found):
        raise Refused(f"{_name(kind)} names a node twice, and a node holds one lease at most")
    return tuple(found)
