"""Seeded schedules of every kind: which site, which troubles, when."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.fleet.actions import (
    Action,
    Aim,
    Ambush,
    Command,
    Conditions,
    CrashAt,
    Deafen,
    Deed,
    Evict,
    Keep,
    Kill,
    Lose,
    LoseLog,
    Mend,
    Noise,
    Opine,
    Propose,
    Reconfigure,
    Recover,
    Restore,
    RollBack,
    Scenario,
    Skew,
    Split,
    Strike,
)
from tests.fleet.authority import Shape
from tests.fleet.byzantine import BEHAVIOURS, TWO_FACED
from tests.fleet.images import FACTORY, Fate, Image
from tests.fleet.network import FAIR, Weather

_SHAPES = (
    Shape(3, 0),
    Shape(3, 0),
    Shape(4, 0),
    Shape(4, 0),
    Shape(3, 0, stall_ok=True, min_up=2),
    Shape(4, 0),
    Shape(4, 0, groups=((0, 1), (2, 3))),
    Shape(4, 1, stall_ok=True),
    Shape(5, 1),
    Shape(5, 0),
    Shape(6, 1),
    Shape(7, 1),
    Shape(7, 2, stall_ok=True),
)
_WITH_LIARS = (Shape(4, 1, stall_ok=True), Shape(4, 1, stall_ok=True), Shape(5, 1), Shape(6, 1), Shape(6, 1), Shape(7, 2, stall_ok=True))
_BIG = (Shape(10, 2), Shape(10, 0, min_up=6), Shape(16, 3), Shape(18, 3, voters=16), Shape(17, 0, voters=16))
_STORMS = (
    Weather((0.002, 0.3), loss=0.05),
    Weather((0.002, 0.8), loss=0.15, twice=0.1),
    Weather((0.01, 2.0), loss=0.05, twice=0.2, late=0.02),
    Weather((0.002, 0.05), loss=0.3),
    Weather((0.2, 0.6), loss=0.02),
)


class Draft:
    """A schedule that is being written. random: of this seed."""

    def __init__(self, seed: int, kind: str) -> None:
        self.random = Random(f"schedule {kind} {seed}")
        self.seed, self.kind = seed, kind
        self.actions: list[Action] = []
        self.shape = self.random.choice(_SHAPES)
        self.end_s = self.random.uniform(30.0, 65.0)
        self.weather = FAIR
        self.byzantine: dict[int, tuple[str, ...]] = {}
        self.crash = 0.0
        self.refuses = 0.0
        self.manual: frozenset[int] = frozenset()
        self.base_s = 1.0
        self.wild_clocks = False
        self.tpm = False
        # Asking costs as much as all the rest, and a third shows as much as all: of each kind, however seeds are dealt out to kinds.
        self.asked = seed % 3 == seed // len(WEIGHTS) % 3

    @property
    def nodes(self) -> range:
        """Indices at the start."""
        return range(self.shape.nodes)

    def at(self, when_s: float, deed: Deed) -> None:
        """Add an action."""
        self.actions.append(Action(round(when_s, 3), deed))

    def chance(self, probability: float) -> bool:
        """True so often."""
        return self.random.random() < probability

    def time(self, first_s: float = 3.0) -> float:
        """Any time of the schedule."""
        return self.random.uniform(first_s, self.end_s)

    def node(self) -> int:
        """Any node."""
        return self.random.choice(self.nodes)

    def honest(self) -> int:
        """Any node that does not lie."""
        return self.random.choice([node for node in self.nodes if node not in self.byzantine])

    def some(self, share: float = 0.5) -> tuple[int, ...]:
        """Some nodes, at least one."""
        chosen = tuple(node for node in self.nodes if self.random.random() < share)
        return chosen or (self.node(),)

    def propose(self, when_s: float, *, fates: tuple[tuple[int, Fate], ...] = (), back: bool = False, name: str = "") -> None:
        """An update order."""
        width = self.random.choice((1, 1, 2, 3))
        image = Image(name or f"image-{len(self.actions)}", 2, fates)
        halt_at = self.random.choice((1, 1, 2))
        share = self.random.choice((1, 50, 50, 75, 100))
        overdue_s = self.random.choice((12, 60, 300))
        self.at(when_s, Propose(image, share, width, halt_at, FACTORY if back else None, overdue_s, rival=self.chance(0.05)))

    def scenario(self) -> Scenario:
        """The finished schedule."""
        return Scenario(
            self.seed,
            self.kind,
            self.shape,
            tuple(sorted(self.actions, key=lambda action: action.at_s)),
            self.end_s,
            self.weather,
            tuple(sorted(self.byzantine.items())),
            self.crash,
            self.refuses,
            self.manual,
            self.base_s,
            self.wild_clocks,
            self.tpm,
            self.asked,
        )


# -- troubles that any schedule may have


def storm(draft: Draft) -> None:
    """Bad weather."""
    draft.weather = draft.random.choice(_STORMS)


def crashes(draft: Draft) -> None:
    """Processes end at log writes, and at any time."""
    draft.crash = draft.random.choice((0.002, 0.01, 0.03))
    for _ in range(draft.random.randrange(4)):
        node = draft.honest()
        draft.at(draft.time(), CrashAt(node, draft.random.randint(1, 8), draft.chance(0.5), power=draft.chance(0.3)))
    for _ in range(draft.random.randrange(3)):
        draft.at(draft.time(), Kill(draft.honest(), power=draft.chance(0.5), back_s=draft.random.uniform(0.1, 20.0)))


def partitions(draft: Draft) -> None:
    """Two ways, three ways, one way, and sides that overlap."""
    for _ in range(draft.random.randint(1, 3)):
        when_s = draft.time(1.0)
        shuffled = draft.random.sample(draft.nodes, len(draft.nodes))
        cut = draft.random.randint(1, len(shuffled) - 1)
        match draft.random.randrange(4):
            case 0:
                deed: Deed = Split((tuple(shuffled[:cut]), tuple(shuffled[cut:])))
            case 1:
                other = draft.random.randint(1, len(shuffled) - 1)
                low, high = sorted((cut, other))
                deed = Split(tuple(side for side in (tuple(shuffled[:low]), tuple(shuffled[low:high]), tuple(shuffled[high:])) if side))
            case 2:
                deed = Deafen(tuple(shuffled[:cut]), tuple(shuffled[cut:]))
            case _:
                deed = Split((tuple(shuffled[: cut + 1]), tuple(shuffled[cut:])))
        draft.at(when_s, deed)
        draft.at(when_s + draft.random.uniform(2.0, 30.0), Mend())


def clocks(draft: Draft) -> None:
    """Wrong rates, and jumps of years."""
    draft.wild_clocks = True
    for _ in range(draft.random.randrange(3)):
        step_s = draft.random.choice((0.0, 100.0, 3e7))
        draft.at(draft.time(), Skew(draft.honest(), draft.random.choice((0.2, 0.5, 1.0, 2.0, 5.0)), step_s))


def liars(draft: Draft) -> None:
    """As many byzantine nodes as the site bears."""
    names = [name for name in BEHAVIOURS if name != TWO_FACED]
    for node in draft.random.sample(draft.nodes, draft.shape.faults):
        if draft.chance(0.3):
            draft.byzantine[node] = (TWO_FACED, *draft.random.sample(names, draft.random.randrange(2)))
        else:
            draft.byzantine[node] = tuple(draft.random.sample(names, draft.random.randint(1, 3)))


def opinions(draft: Draft) -> None:
    """Nodes that wait for people, windows that close, peers that look ill."""
    draft.manual = frozenset(node for node in draft.nodes if draft.chance(0.2))
    for node in draft.manual:
        draft.at(draft.time(15.0), Opine(node, draft.chance(0.8)))
    for _ in range(draft.random.randrange(3)):
        doubts = frozenset(draft.some(0.2)) if draft.chance(0.3) else frozenset()
        node = draft.honest()
        when_s = draft.time()
        draft.at(when_s, Conditions(node, draft.chance(0.6), draft.chance(0.7), doubts))
        draft.at(when_s + draft.random.uniform(5.0, 30.0), Conditions(node))


def bad_images(draft: Draft) -> tuple[tuple[int, Fate], ...]:
    """Nodes on which the image is bad."""
    fates = [Fate.CRITICAL, Fate.HANGS, Fate.UNWRITABLE, Fate.STUCK]
    return tuple((node, draft.random.choice(fates)) for node in draft.some(0.3))


# -- kinds


def plain(draft: Draft) -> None:
    """A rollout in fair weather."""
    draft.propose(draft.random.uniform(3.0, 8.0))
    draft.end_s = 70.0
    if draft.chance(0.2):
        draft.refuses = 0.3


def bad(draft: Draft) -> None:
    """A rollout that some nodes revert."""
    draft.propose(5.0, fates=bad_images(draft))
    if draft.chance(0.5):
        draft.at(draft.time(30.0), Command("RESUME", halt_at=draft.random.randint(2, 4)))


def turned(draft: Draft) -> None:
    """on_halt = rollback."""
    draft.end_s += 40.0
    unlucky = draft.random.sample(draft.nodes, draft.random.randint(1, 2))
    draft.propose(5.0, fates=tuple((node, Fate.CRITICAL) for node in unlucky), back=True)
    if draft.chance(0.3):
        crashes(draft)


def commanded(draft: Draft) -> None:
    """Pause, resume, cancel, of the order and of the site."""
    draft.propose(5.0)
    for _ in range(draft.random.randint(1, 4)):
        when_s = draft.time(4.0)
        aim = draft.random.choice((Aim.OPEN, Aim.OPEN, Aim.SITE))
        draft.at(when_s, Command("PAUSE", aim))
        if draft.chance(0.7):
            draft.at(when_s + draft.random.uniform(0.5, 30.0), Command("RESUME", aim))
    if draft.chance(0.4):
        draft.at(draft.time(10.0), Command("CANCEL"))
        draft.propose(draft.time(20.0))
    if draft.chance(0.4):
        draft.random.choice((storm, crashes, partitions))(draft)


def rolled_back(draft: Draft) -> None:
    """An update, then a ROLLBACK, through slots or now."""
    draft.propose(3.0)
    when_s = draft.time(15.0)
    nodes = frozenset(draft.some(0.5)) if draft.chance(0.5) else frozenset()
    now = draft.chance(0.5)
    draft.at(when_s, RollBack(FACTORY, nodes, now=now, underhand=draft.chance(0.1)))
    if draft.chance(0.5):
        draft.propose(when_s + draft.random.uniform(3.0, 30.0))
    if draft.chance(0.4):
        draft.random.choice((storm, crashes, partitions))(draft)


def lost(draft: Draft) -> None:
    """A node dies under its lease, is called lost, and comes back."""
    draft.propose(3.0)
    for _ in range(draft.random.randint(1, 2)):
        when_s = draft.random.uniform(6.0, 30.0)
        draft.at(when_s, Strike(draft.random.uniform(10.0, 60.0)))
        draft.at(when_s + draft.random.uniform(2.0, 30.0), Lose())
    if draft.chance(0.3):
        draft.random.choice((storm, partitions))(draft)


def evicted(draft: Draft) -> None:
    """A node is barred."""
    draft.propose(3.0)
    draft.at(draft.time(5.0), Evict(draft.node()))
    if draft.chance(0.5):
        draft.propose(draft.time(30.0))


def reconfigured(draft: Draft) -> None:
    """Nodes come, go, and are replaced."""
    draft.propose(draft.random.uniform(3.0, 20.0))
    for _ in range(draft.random.randint(1, 2)):
        draft.at(draft.time(6.0), Reconfigure(draft.random.choice(("add", "remove", "replace", "replace")), draft.node()))
    if draft.chance(0.5):
        draft.propose(draft.time(30.0))
    if draft.chance(0.4):
        draft.random.choice((storm, crashes, partitions))(draft)


def parted(draft: Draft) -> None:
    """Partitions of every shape."""
    draft.propose(draft.random.uniform(3.0, 10.0))
    partitions(draft)
    if draft.chance(0.5):
        crashes(draft)
    if draft.chance(0.3):
        storm(draft)
    if draft.chance(0.3):
        draft.propose(draft.time(20.0))


def crashing(draft: Draft) -> None:
    """Crashes at log writes, above all."""
    draft.propose(draft.random.uniform(3.0, 10.0), fates=bad_images(draft) if draft.chance(0.3) else ())
    draft.crash = draft.random.choice((0.01, 0.03, 0.06))
    draft.refuses = draft.random.choice((0.0, 0.0, 0.6))
    if draft.chance(0.3):
        storm(draft)


def locked(draft: Draft) -> None:
    """Heights that one node decides and the others do not know of, while they crash, and have other things to propose."""
    draft.shape = draft.random.choice((Shape(3, 0), Shape(3, 0), Shape(4, 0), Shape(4, 1, stall_ok=True)))
    draft.end_s = 60.0
    if draft.shape.faults:
        draft.byzantine[draft.node()] = ("turncoat", "bad-proposals")
    draft.propose(3.0)
    when_s = 4.0
    while when_s < draft.end_s:
        favourite, blind = draft.random.sample([node for node in draft.nodes if node not in draft.byzantine], 2)
        seconds = draft.random.uniform(5.0, 15.0)
        draft.at(when_s, Ambush(favourite, blind, seconds))
        for _ in range(2):
            aim = draft.random.choice((Aim.OPEN, Aim.SITE))
            draft.at(when_s + draft.random.uniform(0.2, 4.0), Command(draft.random.choice(("PAUSE", "RESUME", "CANCEL")), aim))
        if draft.chance(0.5):
            draft.at(when_s + draft.random.uniform(0.2, 4.0), Kill(draft.honest(), back_s=0.5))
        if draft.chance(0.3):
            draft.propose(when_s + draft.random.uniform(0.0, seconds))
        when_s += seconds + draft.random.uniform(0.5, 5.0)


def byzantine(draft: Draft) -> None:
    """Liars, as many as the site bears."""
    draft.shape = draft.random.choice(_WITH_LIARS)
    liars(draft)
    draft.propose(draft.random.uniform(3.0, 8.0), fates=bad_images(draft) if draft.chance(0.3) else (), back=draft.chance(0.2))
    for trouble in (storm, crashes, partitions, clocks):
        if draft.chance(0.25):
            trouble(draft)
    if draft.chance(0.2):
        draft.at(draft.time(), Command("PAUSE"))
    if draft.chance(0.2):
        draft.manual = frozenset(draft.some(0.4))


def proposing(draft: Draft) -> None:
    """A liar whose proposals are all but right, in a site with plans that halt, pauses, and nodes that ask for nothing."""
    draft.shape = draft.random.choice((Shape(4, 1, stall_ok=True), Shape(5, 1, stall_ok=True), Shape(6, 1)))
    draft.byzantine[draft.node()] = (
        "bad-proposals",
        *draft.random.sample(("eager", "equivocating", "false-complete"), draft.random.randrange(2)),
    )
    draft.manual = frozenset(draft.some(0.3)) if draft.chance(0.4) else frozenset()
    draft.propose(3.0, fates=bad_images(draft) if draft.chance(0.6) else ())
    for _ in range(2):
        when_s = draft.time(5.0)
        draft.at(when_s, Command("PAUSE", draft.random.choice((Aim.OPEN, Aim.SITE))))
        draft.at(when_s + draft.random.uniform(1.0, 20.0), Command("RESUME", draft.random.choice((Aim.OPEN, Aim.SITE))))
    if draft.chance(0.3):
        crashes(draft)


def wide(draft: Draft) -> None:
    """Sites that can spare two, and liars who say COMPLETE."""
    draft.shape = draft.random.choice((Shape(8, 1), Shape(5, 0), Shape(5, 0)))
    draft.end_s = 40.0
    for node in draft.random.sample(draft.nodes, draft.shape.faults):
        draft.byzantine[node] = ("false-complete", *draft.random.sample(sorted(BEHAVIOURS), draft.random.randrange(2)))
    draft.at(3.0, Propose(Image("image-wide", 2, bad_images(draft) if draft.chance(0.2) else ()), 1, 3, draft.random.choice((1, 3))))
    if draft.chance(0.3):
        crashes(draft)


def restored(draft: Draft) -> None:
    """A log that is put back to an older copy, or lost, while much is decided and answers are slow."""
    draft.shape = draft.random.choice((Shape(4, 1, stall_ok=True), Shape(4, 1, stall_ok=True), Shape(5, 1), Shape(6, 1), Shape(7, 1)))
    draft.weather = draft.random.choice((FAIR, Weather((0.2, 1.2)), Weather((0.5, 2.0)), Weather((0.002, 0.3), loss=0.1)))
    draft.propose(draft.random.uniform(3.0, 8.0))
    node = draft.node()
    if draft.chance(0.2):
        # Before it has voted for the first time nobody else can tell.
        draft.at(draft.random.choice((2.0, draft.time(8.0))), LoseLog(node))
    else:
        when_s = draft.time(3.0)
        draft.at(when_s, Keep(node))
        draft.at(when_s + draft.random.choice((draft.random.uniform(1.0, 8.0), draft.random.uniform(1.0, 40.0))), Restore(node))
    for _ in range(6):
        draft.at(draft.time(3.0), Command(draft.random.choice(("PAUSE", "RESUME", "CANCEL")), draft.random.choice((Aim.OPEN, Aim.SITE))))
    if draft.chance(0.2):
        partitions(draft)
    if draft.chance(0.3):
        draft.propose(draft.time(30.0))
    draft.tpm = draft.chance(0.2)


def recovered(draft: Draft) -> None:
    """More voters lose their logs than the site can do without; it is recovered by hand, with the leases that are held."""
    draft.end_s = 80.0
    draft.propose(3.0)
    when_s = draft.random.uniform(8.0, 35.0)
    for node in draft.random.sample(draft.nodes, draft.random.randint(2, len(draft.nodes))):
        draft.at(when_s + draft.random.uniform(0.0, 5.0), LoseLog(node))
    draft.at(when_s + draft.random.uniform(6.0, 15.0), Recover())
    draft.propose(when_s + 25.0, name="image-after")
    if draft.chance(0.4):
        draft.random.choice((storm, crashes))(draft)


def slow(draft: Draft) -> None:
    """A network like a serial bus: slow, and every round waits long."""
    draft.weather = Weather((0.3, 1.5), loss=0.01)
    draft.base_s = 4.0
    draft.end_s = 120.0
    draft.propose(5.0)
    if draft.chance(0.3):
        crashes(draft)


def skewed(draft: Draft) -> None:
    """Clocks that are off by years."""
    draft.propose(5.0)
    clocks(draft)
    if draft.chance(0.5):
        crashes(draft)
    if draft.chance(0.3):
        partitions(draft)


def mixed(draft: Draft) -> None:
    """Some of everything."""
    if draft.chance(0.05):
        draft.shape = draft.random.choice(_BIG)
        draft.end_s = 50.0
    if draft.shape.faults and draft.chance(0.6):
        liars(draft)
    draft.propose(draft.random.uniform(3.0, 10.0), fates=bad_images(draft) if draft.chance(0.3) else (), back=draft.chance(0.3))
    for trouble in (storm, crashes, partitions, clocks, opinions):
        if draft.chance(0.3):
            trouble(draft)
    deeds: list[Callable[[], Deed]] = [
        lambda: Command("PAUSE", draft.random.choice((Aim.OPEN, Aim.SITE))),
        lambda: Command("RESUME", draft.random.choice((Aim.OPEN, Aim.SITE)), draft.random.randrange(4)),
        lambda: Command("CANCEL"),
        lambda: RollBack(FACTORY, frozenset(draft.some()), now=draft.chance(0.3)),
        lambda: Evict(draft.node()),
        lambda: Lose(),
        lambda: Lose(draft.node()),
        lambda: Reconfigure(draft.random.choice(("add", "remove", "replace")), draft.node()),
        lambda: Noise(draft.honest()),
        lambda: Kill(draft.honest(), power=draft.chance(0.5), back_s=draft.random.uniform(0.1, 30.0)),
        lambda: Strike(draft.random.choice((None, 10.0, 40.0))),
    ]
    for _ in range(draft.random.randrange(5)):
        draft.at(draft.time(4.0), draft.random.choice(deeds)())
    if draft.chance(0.4):
        draft.propose(draft.time(15.0))


KINDS: dict[str, Callable[[Draft], None]] = {
    "plain": plain,
    "bad": bad,
    "turned": turned,
    "commanded": commanded,
    "rolled_back": rolled_back,
    "lost": lost,
    "evicted": evicted,
    "reconfigured": reconfigured,
    "parted": parted,
    "crashing": crashing,
    "locked": locked,
    "byzantine": byzantine,
    "proposing": proposing,
    "wide": wide,
    "restored": restored,
    "recovered": recovered,
    "slow": slow,
    "skewed": skewed,
    "mixed": mixed,
}
# How often each comes, of 20: what breaks protocols comes more often than what shows that they work.
WEIGHTS = (*KINDS, "parted", "crashing", "byzantine", "byzantine", "mixed")


def scenario(seed: int, kind: str | None = None) -> Scenario:
    """The schedule of a seed."""
    chosen = kind or WEIGHTS[seed % len(WEIGHTS)]
    draft = Draft(seed, chosen)
    KINDS[chosen](draft)
    return draft.scenario()
