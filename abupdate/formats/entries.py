"""Entries of the site's log: what the voters decide, height by height. One byte of kind, then the body; one value has one encoding.

    ORDER      digest 32 of the admin's signed order
    PLAN       order 32 | approvers, a bitmap of 32 bytes (node n: bit n % 8 of byte n // 8)
    GRANT      plan 32 | (node 1 | attempt 1) of each node, nodes ascending
    RELEASE    (lease 4 | node 1 | outcome 1 | digest 32 of the holder's fact) of each lease, leases ascending
    LOST       digest 32 of the admin's signed order
    RETURN     as RELEASE, of lost leases
    HALT       plan 32 | lease 4 | voters that say it is overdue, a bitmap of 32 bytes
    RECONFIG   digest 32 of the next membership file

Numbers are big-endian. Everything that changes the site's state is in the entry or in the object that it names by digest, never in a
fact alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


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
