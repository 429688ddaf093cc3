"""Orders of the site's admins (`.abo`): signed offline, carried by any node, judged by the membership of their epoch alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from abupdate.model import Signature


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
