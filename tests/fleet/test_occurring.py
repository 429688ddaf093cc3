"""Schedules put the site into every situation that fleet.md speaks of; that a long run does is checked by the run itself."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fleet import __main__ as command
from tests.fleet.actions import Action, Propose, Scenario
from tests.fleet.authority import Shape
from tests.fleet.campaign import Tally
from tests.fleet.images import Image
from tests.fleet.occurring import DECIDED, ENOUGH, FAULTS, missing
from tests.fleet.world import World


def _whole() -> Tally:
    return Tally(schedules=ENOUGH, counts=Counter(DECIDED), faults=Counter(FAULTS))


def test_entries_orders_deeds_and_behaviours_are_all_asked_for() -> None:
    assert {"order", "plan", "grant", "release", "lost", "return", "halt", "reconfig", "PAUSE", "EVICT", "release DEFER"} <= DECIDED
    assert {"Split", "Restore", "Recover", "Skew", "two-faced", "false-complete"} <= FAULTS


@pytest.mark.parametrize("name", sorted(DECIDED | FAULTS))
def test_what_never_occurs_is_named(name: str) -> None:
    whole = _whole()
    assert missing(whole.counts, whole.faults) == []
    (whole.counts if name in DECIDED else whole.faults)[name] = 0
    assert missing(whole.counts, whole.faults) == [name]


def test_a_long_run_in_which_something_never_occurs_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = _whole()
    monkeypatch.setattr(command, "campaign", lambda *_, **__: {"mixed": whole})
    arguments = ["tests.fleet", "--schedules", str(ENOUGH)]
    monkeypatch.setattr("sys.argv", arguments)
    assert command.main() == 0
    whole.faults["Skew"] = 0
    assert command.main() == 1
    assert "never occurred: Skew" in capsys.readouterr().err
    # A few schedules, or those of one kind, need not show everything.
    monkeypatch.setattr("sys.argv", [*arguments, "--kind", "mixed"])
    assert command.main() == 0
    whole.schedules = ENOUGH - 1
    monkeypatch.setattr("sys.argv", ["tests.fleet", "--schedules", str(whole.schedules)])
    assert command.main() == 0


def test_learners_get_leases_and_follow() -> None:
    order = Action(5.0, Propose(Image("image", 2), 100, 3))
    world = World(Scenario(4, "learners", Shape(18, 3, voters=16), (order,), 400.0, asked=False))
    result = world.run()
    assert not result.violation
    assert result.counts["a lease of a learner"] == 2
    assert all(host.main.node is not None and host.main.node.state.height >= world.oracle.height - 1 for host in world.hosts.values())
