"""What happens to a simulated site from outside, as values: a schedule is a list of them, and a failure shrinks by leaving some out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tests.fleet.authority import Shape
from tests.fleet.images import Image
from tests.fleet.network import FAIR, Weather


class Aim(Enum):
    """Which order a command means."""

    OPEN = "open"  # the open plan's, or the pending one
    SITE = "site"


@dataclass(frozen=True, slots=True)
class Propose:
    """An admin orders an update. back: the bundle to go back to when it halts. again: with a number that is used already, as a rival."""

    image: Image
    share: int = 50
    width: int = 1
    halt_at: int = 1
    back: Image | None = None
    overdue_s: int = 60
    rival: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """CANCEL, PAUSE, RESUME by name. halt_at: of RESUME."""

    name: str
    aim: Aim = Aim.OPEN
    halt_at: int = 0


@dataclass(frozen=True, slots=True)
class RollBack:
    """An admin orders nodes back to an image. nodes: empty: all. underhand: a ROLLBACK now that too few admins have signed."""

    image: Image
    nodes: frozenset[int] = frozenset()
    now: bool = False
    underhand: bool = False


@dataclass(frozen=True, slots=True)
class Evict:
    """Bars a node from plans."""

    node: int


@dataclass(frozen=True, slots=True)
class Lose:
    """An admin says that a node is lost; None: whoever holds the oldest lease and is down."""

    node: int | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """A partition. groups may overlap."""

    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Deafen:
    """One way only."""

    speakers: tuple[int, ...]
    hearers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ambush:
    """For a while the next value that is voted for is decided by one node alone (network.Trap)."""

    favourite: int
    blind: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Mend:
    """The partitions end; the weather stays."""


@dataclass(frozen=True, slots=True)
class Kill:
    """The node's process ends, or the power is cut; it comes back after a while, None: not by itself."""

    node: int
    power: bool = False
    back_s: float | None = 2.0


@dataclass(frozen=True, slots=True)
class Strike:
    """The power of whoever holds a lease next is cut, so long; None: for good."""

    back_s: float | None = 20.0


@dataclass(frozen=True, slots=True)
class CrashAt:
    """The process ends at its count-th Persist from now. durable: that record is in the log. power: of the whole device."""

    node: int
    count: int
    durable: bool
    power: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """Copy the node's log, for `Restore`."""

    node: int


@dataclass(frozen=True, slots=True)
class Restore:
    """The node's process ends, its log is put back to the copy, and it starts."""

    node: int


@dataclass(frozen=True, slots=True)
class LoseLog:
    """The node's log is gone, and it knows (a marker remains)."""

    node: int


@dataclass(frozen=True, slots=True)
class Skew:
    """The node's clock goes otherwise from now on. step_s: forward at once."""

    node: int
    rate: float
    step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """The root changes the membership: `add` a node, `remove` one, `replace` a node's key (a new device in its place)."""

    change: str
    node: int


@dataclass(frozen=True, slots=True)
class Recover:
    """More voters than n-Q have lost their logs: a new genesis, put on each node by hand."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The node's own view: maintenance window, health, nodes that look ill to it."""

    node: int
    window_open: bool = True
    healthy: bool = True
    doubts: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Opine:
    """A person approves or rejects the newest order on a node."""

    node: int
    approve: bool


@dataclass(frozen=True, slots=True)
class Noise:
    """Bytes that no node sent, to one node: damaged frames, frames of another site."""

    node: int
    count: int = 5


Deed = (
    Propose
    | Command
    | RollBack
    | Evict
    | Lose
    | Split
    | Deafen
    | Ambush
    | Mend
    | Kill
    | Strike
    | CrashAt
    | Keep
    | Restore
    | LoseLog
    | Skew
    | Reconfigure
    | Recover
    | Conditions
    | Opine
    | Noise
)


@dataclass(frozen=True, slots=True)
class Action:
    """A deed at a time (seconds from the start)."""

    at_s: float
    deed: Deed


@dataclass(frozen=True, slots=True)
class Scenario:
    """One schedule. byzantine: node -> names of behaviours. crash: probability of a crash at each Persist.

    end_s: when the troubles end; then everything heals and the site must make progress. manual: nodes that wait for a person's approval.
    refuses: probability that a drain hook says no. base_s: patience of the first round. tpm: each node has a counter outside its log.
    asked: after everything heals the site is asked for progress.
    """

    seed: int
    kind: str
    shape: Shape
    actions: tuple[Action, ...]
    end_s: float
    weather: Weather = FAIR
    byzantine: tuple[tuple[int, tuple[str, ...]], ...] = ()
    crash: float = 0.0
    refuses: float = 0.0
    manual: frozenset[int] = frozenset()
    base_s: float = 1.0
    wild_clocks: bool = False
    tpm: bool = False
    asked: bool = True
