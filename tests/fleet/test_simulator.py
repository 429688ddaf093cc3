"""Seeded schedules of every kind keep all invariants, and the site goes on after everything heals.

A share of what `python -m tests.fleet` runs (tests/run: thousands; `--all`: tens of thousands): enough to see what is broken at large.
"""

from __future__ import annotations

import pytest

from tests.fleet.campaign import Tally, campaign, run
from tests.fleet.scenarios import KINDS, scenario
from tests.fleet.world import World

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
    world = World(scenario(20, "plain"))
    result = world.run()
    assert not result.violation
    assert result.counts["grant"] >= 3
    assert {host.device.bundle for host in world.hosts.values()} != {next(iter(world.images))}


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
