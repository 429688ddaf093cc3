"""Hypothesis draws whole schedules; what fails is shrunk to few actions and told as a trace."""

from __future__ import annotations

from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.fleet.actions import (
    Action,
    Aim,
    Command,
    Conditions,
    CrashAt,
    Deafen,
    Deed,
    Evict,
    Kill,
    Lose,
    Mend,
    Propose,
    Reconfigure,
    RollBack,
    Scenario,
    Split,
)
from tests.fleet.authority import Shape
from tests.fleet.byzantine import BEHAVIOURS
from tests.fleet.images import FACTORY, Fate, Image
from tests.fleet.network import FAIR, Weather
from tests.fleet.world import World

SHAPES = (Shape(3, 0), Shape(4, 0), Shape(4, 1, stall_ok=True), Shape(5, 0), Shape(6, 1))


@st.composite
def deeds(draw: st.DrawFn, nodes: int) -> Deed:
    """Anything that may happen to a site of so many nodes."""
    node = draw(st.integers(0, nodes - 1))
    some = st.frozensets(st.integers(0, nodes - 1), min_size=1, max_size=nodes - 1)
    everybody = frozenset(range(nodes))

    def image() -> Image:
        fates = draw(st.dictionaries(st.integers(0, nodes - 1), st.sampled_from(Fate), max_size=2))
        name = "-".join([f"image-{draw(st.integers(0, 3))}", *(f"{one}-{fate.value}" for one, fate in sorted(fates.items()))])
        return Image(name, 2, tuple(fates.items()))

    match draw(st.integers(0, 11)):
        case 0 | 1:
            width, back = draw(st.integers(1, 3)), draw(st.booleans())
            return Propose(image(), draw(st.sampled_from((1, 50, 100))), width, draw(st.integers(1, 2)), FACTORY if back else None)
        case 2:
            return Command(draw(st.sampled_from(("PAUSE", "RESUME", "CANCEL"))), draw(st.sampled_from(Aim)), draw(st.integers(0, 3)))
        case 3:
            return RollBack(FACTORY, draw(some), now=draw(st.booleans()))
        case 4:
            side = draw(some)
            return Split((tuple(sorted(side)), tuple(sorted(everybody - side))))
        case 5:
            side = draw(some)
            return Deafen(tuple(sorted(side)), tuple(sorted(everybody - side)))
        case 6:
            return Mend()
        case 7:
            return Kill(node, draw(st.booleans()), draw(st.floats(0.1, 30.0)))
        case 8 | 9:
            return CrashAt(node, draw(st.integers(1, 12)), draw(st.booleans()), draw(st.booleans()))
        case 10:
            changes = [Reconfigure(change, node) for change in ("add", "remove", "replace")]
            choices: list[Deed] = [Evict(node), Lose(None), *changes]
            return draw(st.sampled_from(choices))
        case _:
            return Conditions(node, draw(st.booleans()), draw(st.booleans()))


@st.composite
def schedules(draw: st.DrawFn) -> Scenario:
    """A whole schedule."""
    shape = draw(st.sampled_from(SHAPES))
    times = st.floats(1.0, 80.0).map(lambda when: round(when, 1))
    actions = draw(st.lists(st.builds(Action, times, deeds(shape.nodes)), min_size=1, max_size=8))
    names = st.lists(st.sampled_from(sorted(BEHAVIOURS)), min_size=1, max_size=2)
    liars = draw(st.lists(st.tuples(st.integers(0, shape.nodes - 1), names), max_size=shape.faults))
    return Scenario(
        draw(st.integers(0, 1 << 20)),
        "drawn",
        shape,
        tuple(sorted(actions, key=lambda action: action.at_s)),
        90.0,
        draw(st.sampled_from((FAIR, Weather((0.002, 0.5), loss=0.1, twice=0.1), Weather((0.05, 2.0), late=0.02)))),
        tuple((node, tuple(behaviours)) for node, behaviours in liars),
        draw(st.sampled_from((0.0, 0.0, 0.02))),
    )


@settings(max_examples=40, print_blob=True)
@given(schedules())
def test_no_drawn_schedule_breaks_an_invariant(scenario: Scenario) -> None:
    world = World(scenario)
    result = world.run()
    if result.violation or result.live is False:
        note(world.told())
    assert not result.violation
    assert result.live is not False, result.why_not_live
