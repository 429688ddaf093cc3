"""Seeded schedules of every kind keep all invariants, and the site goes on after everything heals.

A share of what `python -m tests.fleet` runs (tests/run: thousands; `--all`: tens of thousands): enough to see what is broken at large.
"""

from __future__ import annotations

import pytest

from tests.fleet import shrinking
from tests.fleet.actions import Action, Command, Propose, Scenario
from tests.fleet.authority import Shape
from tests.fleet.campaign import Tally, campaign, run
from tests.fleet.images import Image
from tests.fleet.network import FAIR
from tests.fleet.scenarios import KINDS, scenario
from tests.fleet.world import Result, World

_EACH = 8


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_schedules_of_a_kind_break_no_invariant(kind: str) -> None:
    tally = campaign(1, _EACH, kind)[kind]
    assert not tally.failures, "\n".join(tally.failures)
    # A site that decides nothing breaks nothing either.
    assert tally.schedules == _EACH
    assert tally.decisions > 4 * _EACH
    assert tally.live + tally.moot == _EACH
    assert tally.live > 0


def test_a_plain_rollout_updates_every_node() -> None:
    image = Image("image", 2)
    world = World(Scenario(20, "plain", Shape(5, 0), (Action(5.0, Propose(image, 100)),), 150.0))
    result = world.run()
    assert not result.violation
    assert result.live
    assert result.counts["grant"] >= 5
    assert {slot.bundle for host in world.hosts.values() for slot in host.device.slots.values() if slot.good} >= {image.bundle}


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = run(7, "mixed")[0], run(7, "mixed")[0]
    assert first == second
    assert first.steps > 100


def test_sums_do_not_depend_on_the_number_of_processes() -> None:
    # More than one task of a process.
    alone, together = campaign(0, 12, "evicted", jobs=1), campaign(0, 12, "evicted", jobs=2)
    assert {kind: _numbers(tally) for kind, tally in alone.items()} == {kind: _numbers(tally) for kind, tally in together.items()}


def _numbers(tally: Tally) -> tuple[int, ...]:
    return tally.schedules, tally.steps, tally.decisions, tally.grants, tally.crashes, tally.live, tally.violations


def test_what_fails_is_shrunk_to_the_part_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for a broken core: whatever has a RESUME in it, and nothing else, breaks invariant 9."""

    def breaks(one: Scenario) -> str:
        return "9" if any(isinstance(action.deed, Command) and action.deed.name == "RESUME" for action in one.actions) else ""

    monkeypatch.setattr(shrinking, "broken", breaks)
    whole = next(one for seed in range(100) if breaks(one := scenario(seed, "commanded")) and len(one.actions) > 3)
    smallest = shrinking.shrink(whole)
    assert len(smallest.actions) == 1
    assert breaks(smallest) == "9"
    assert (smallest.weather, smallest.crash, smallest.refuses) == (FAIR, 0.0, 0.0)


def test_a_failure_is_told_with_the_command_that_shows_it_again() -> None:
    tally = Tally()
    tally.add(Result(17, "parted", violation="1: two values"), 0.1)
    tally.add(Result(18, "parted", live=False, why_not_live="no grant"), 0.1)
    assert [line.splitlines()[0] for line in tally.failures] == [
        "VIOLATION --kind parted --seed 17: 1: two values",
        "VIOLATION --kind parted --seed 18: 11: no grant",
    ]
    assert all(
        f"python -m tests.fleet --kind parted --seed {seed} --shrink" in line for seed, line in zip((17, 18), tally.failures, strict=True)
    )
