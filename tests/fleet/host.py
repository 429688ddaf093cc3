"""One device of a simulated site with its node's process: the log on its disk, its clock, and what kills it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abupdate.fleet.events import RecordKind
from tests.fleet.vault import SimSeal

if TYPE_CHECKING:
    from abupdate.fleet.node import Node
    from tests.fleet.byzantine import Behaviour, Liar
    from tests.fleet.device import Device

Record = tuple[RecordKind, bytes]
YEAR_S = 365.25 * 86400.0


@dataclass(slots=True)
class Clock:
    """A monotonic clock: any origin, any rate, jumps forward."""

    base_s: float = 0.0
    since_s: float = 0.0
    rate: float = 1.0

    def read(self, true_s: float) -> float:
        """What it shows."""
        return self.base_s + (true_s - self.since_s) * self.rate

    def change(self, true_s: float, rate: float, step_s: float = 0.0) -> None:
        """Goes on from what it shows (and a step more) at another rate."""
        self.base_s, self.since_s, self.rate = self.read(true_s) + step_s, true_s, rate

    def restart(self, true_s: float, origin_s: float) -> None:
        """A boot: any origin."""
        self.base_s, self.since_s = origin_s, true_s


@dataclass(slots=True)
class Process:
    """A node's process. log: durable. copy: what a snapshot of the disk holds. crash_at: Persists that are left before it ends.

    number: 0, or 1 for the second head of a two-faced node. starts: so far.
    """

    number: int
    log: list[Record] = field(default_factory=list)
    copy: list[Record] | None = None
    node: Node | None = None
    wake_at: float | None = None
    crash_at: int | None = None
    crash_durable: bool = False
    crash_power: bool = False
    starts: int = 0
    fault: str = ""
    paused_order: bytes = b""


@dataclass
class Host:
    """A device, its processes (one, or two under one key), and what kind of node it is. memberships: the files that it was enrolled with.

    gone: it was removed or replaced. restored: an older copy of its log was put back. tpm: a counter that never falls. sides: whom each of
    two processes hears and is heard by.
    """

    index: int
    key: bytes
    seal: SimSeal
    device: Device
    processes: list[Process]
    memberships: tuple[bytes, ...]
    clock: Clock = field(default_factory=Clock)
    behaviours: tuple[Behaviour, ...] = ()
    liar: Liar | None = None
    sides: list[frozenset[int]] = field(default_factory=list)
    gone: bool = False
    restored: bool = False
    tpm: int | None = None

    @property
    def honest(self) -> bool:
        """Not byzantine."""
        return self.liar is None

    @property
    def main(self) -> Process:
        """The process that the device belongs to."""
        return self.processes[0]
