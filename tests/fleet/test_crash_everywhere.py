"""One rollout of three nodes, and one of them crashes at every single write to its log: torn or whole, its process or its power."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fleet.actions import Action, CrashAt, Propose, Scenario
from tests.fleet.authority import Shape
from tests.fleet.images import Image
from tests.fleet.world import World

BASE = Scenario(5, "crash everywhere", Shape(3, 0), (Action(3.0, Propose(Image("next", 2), share=100)),), end_s=70.0)
NODE = 1


def writes() -> int:
    """Persists of the node in the undisturbed run."""
    world = World(BASE)
    result = world.run()
    assert not result.violation
    assert result.live
    return len(world.hosts[NODE].main.log)


@pytest.mark.parametrize("durable", [False, True], ids=["torn", "whole"])
def test_a_crash_at_any_write_breaks_nothing(durable: bool) -> None:
    count = writes()
    assert count > 20
    crashed = 0
    for number in range(1, count + 1):
        crash = Action(0.0, CrashAt(NODE, number, durable, power=bool(number % 2) is durable))
        world = World(replace(BASE, actions=(crash, *BASE.actions)))
        result = world.run()
        assert not result.violation, f"write {number}: {result.violation}\n{world.told()}"
        assert result.live, f"write {number}: {result.why_not_live}"
        crashed += result.crashes
    assert crashed > count // 2
