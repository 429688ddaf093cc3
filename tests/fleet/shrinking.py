"""Makes a failing schedule smaller: fewer actions, fairer weather, fewer liars, as long as it still breaks the same invariant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.fleet.actions import Scenario
from tests.fleet.network import FAIR
from tests.fleet.world import World


def broken(scenario: Scenario) -> str:
    """The number of the broken invariant, empty: none."""
    result = World(scenario).run()
    return result.violation.partition(":")[0] if result.violation else "11" if result.live is False else ""


def _simpler(scenario: Scenario) -> Iterator[Scenario]:
    for count in (8, 4, 2, 1):
        for start in range(0, len(scenario.actions), count):
            if len(scenario.actions) >= count:
                yield replace(scenario, actions=scenario.actions[:start] + scenario.actions[start + count :])
    for number in range(len(scenario.byzantine)):
        yield replace(scenario, byzantine=scenario.byzantine[:number] + scenario.byzantine[number + 1 :])
        node, names = scenario.byzantine[number]
        if len(names) > 1:
            for name in names:
                yield replace(scenario, byzantine=(*scenario.byzantine[:number], (node, (name,)), *scenario.byzantine[number + 1 :]))
    fairer = (
        replace(scenario, weather=FAIR),
        replace(scenario, crash=0.0),
        replace(scenario, refuses=0.0),
        replace(scenario, manual=frozenset()),
        replace(scenario, wild_clocks=False),
        replace(scenario, tpm=False),
    )
    yield from (simpler for simpler in fairer if simpler != scenario)


def shrink(scenario: Scenario, most: int = 200) -> Scenario:
    """The smallest one that was found. most: how many runs that may cost."""
    wanted = broken(scenario)
    if not wanted:
        return scenario
    runs, smaller = 0, True
    while smaller and runs < most:
        smaller = False
        for candidate in _simpler(scenario):
            runs += 1
            if broken(candidate) == wanted:
                scenario, smaller = candidate, True
                break
            if runs >= most:
                break
    return scenario
