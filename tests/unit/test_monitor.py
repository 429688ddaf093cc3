"""The monitor: each rule at its edge, and properties over random histories."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abupdate.health.monitor import Limits, Monitor
from abupdate.health.results import NO_PROGRAMS, CheckResult, Health, Round
from abupdate.model import Decision, Verdict

OK, DEGRADED, CRITICAL = Health
LIMITS = Limits()


def after(*samples: tuple[float, Health], limits: Limits = LIMITS, has_programs: bool = True) -> Monitor:
    monitor = Monitor(limits, has_programs)
    for now_s, health in samples:
        monitor = monitor.sampled(now_s, health, f"said at {now_s:g}")
    return monitor


def test_healthy_to_the_end_confirms() -> None:
    monitor = after((20, OK), (290, OK))
    assert monitor.decide(299.9) == Decision(Verdict.WAIT)
    assert monitor.decide(300).verdict is Verdict.CONFIRM
    assert "said at 290" in monitor.decide(300).reason


def test_without_auto_confirm_the_end_is_a_revert_that_says_so() -> None:
    limits = Limits(auto_confirm=False)
    assert after((20, OK), limits=limits).decide(299).verdict is Verdict.WAIT
    assert after((20, OK), limits=limits).decide(300) == Decision(Verdict.REVERT, "not confirmed within 300 s")


def test_critical_reverts_at_once() -> None:
    assert after((20, OK), (30, CRITICAL)).decide(30) == Decision(Verdict.REVERT, "health critical: said at 30")


@pytest.mark.parametrize(("now_s", "verdict"), [(80, Verdict.WAIT), (80.1, Verdict.REVERT)])
def test_degraded_in_a_row(now_s: float, verdict: Verdict) -> None:
    """Exactly 60 s is not more than 60 s; time passes between samples too."""
    decision = after((20, DEGRADED), (30, DEGRADED), (79, DEGRADED)).decide(now_s)
    assert decision.verdict is verdict
    assert "said at 79" in decision.reason
    assert ("in a row" in decision.reason) == (verdict is Verdict.REVERT)


def test_a_healthy_sample_ends_the_row_but_not_the_sum() -> None:
    history = [(0.0, DEGRADED), (50.0, OK), (60.0, DEGRADED), (110.0, OK), (120.0, DEGRADED)]
    assert after(*history).decide(140).verdict is Verdict.WAIT
    assert after(*history).decide(140.5).verdict is Verdict.REVERT
    assert "120 s in all" in after(*history).decide(140.5).reason
    assert after(*history, (140, OK)).decide(299).verdict is Verdict.WAIT


def test_degraded_at_the_end_reverts() -> None:
    assert after((20, OK), (295, DEGRADED)).decide(299).verdict is Verdict.WAIT
    assert "end of the window" in after((20, OK), (295, DEGRADED)).decide(300).reason
    assert after((20, OK), (295, DEGRADED)).decide(300).verdict is Verdict.REVERT


def test_recovered_before_the_end_confirms() -> None:
    assert after((20, DEGRADED), (40, OK)).decide(300).verdict is Verdict.CONFIRM


def test_no_programs_is_healthy() -> None:
    monitor = Monitor(LIMITS, has_programs=False)
    assert monitor.decide(10).verdict is Verdict.WAIT
    assert monitor.decide(300).verdict is Verdict.CONFIRM
    empty = Round()
    assert empty.health is OK
    assert NO_PROGRAMS in monitor.sampled(300, empty.health, empty.reason).decide(300).reason


def test_a_late_service_waits_for_its_first_result_but_not_for_ever() -> None:
    monitor = Monitor(LIMITS, has_programs=True)
    assert monitor.decide(301).verdict is Verdict.WAIT
    assert monitor.decide(360).verdict is Verdict.WAIT
    assert monitor.decide(360.1).verdict is Verdict.REVERT
    assert monitor.sampled(310, OK).decide(310).verdict is Verdict.CONFIRM
    assert monitor.sampled(310, DEGRADED).decide(310).verdict is Verdict.REVERT


def test_time_does_not_go_back() -> None:
    monitor = after((100, OK), (90, DEGRADED))
    assert monitor.since_s == 100
    assert monitor.decide(80).verdict is Verdict.WAIT


histories = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(list(Health))), min_size=1, max_size=30).map(
    lambda steps: [(float(sum(step for step, _ in steps[: index + 1])), health) for index, (_, health) in enumerate(steps)]
)


@given(histories, st.integers(0, 400), st.booleans())
@example([(0.0, DEGRADED), (13.0, OK), (13.0, DEGRADED)], 48, False)
@example([(0.0, DEGRADED), (61.0, OK), (61.0, DEGRADED)], 0, False)
def test_against_the_rules_counted_second_by_second(history: list[tuple[float, Health]], later: int, auto_confirm: bool) -> None:
    limits = Limits(auto_confirm=auto_confirm)
    now_s = history[-1][0] + later
    # Which sample holds in each second [t, t+1), counted naively.
    held = [[health for at, health in history if at <= second][-1:] for second in range(int(now_s))]
    total_s = sum(health == [DEGRADED] for health in held)
    # A row ends also where another sample held for no time at all.
    ends = {int(at) for at, health in history if health is not DEGRADED}
    row_s = 0
    for second, health in enumerate([*held, [DEGRADED]]):
        row_s = (0 if second in ends else row_s) + (second < int(now_s)) if health == [DEGRADED] else 0
    last = history[-1][1]
    if last is CRITICAL or (last is DEGRADED and (row_s > 60 or total_s > 120)):
        expected = Verdict.REVERT
    elif now_s < 300:
        expected = Verdict.WAIT
    elif last is DEGRADED or not auto_confirm:
        expected = Verdict.REVERT
    else:
        expected = Verdict.CONFIRM
    decision = after(*history, limits=limits).decide(now_s)
    assert decision.verdict is expected
    assert decision.reason or decision.verdict is Verdict.WAIT


@given(histories)
def test_the_service_loop_never_confirms_after_a_revert_was_due(history: list[tuple[float, Health]]) -> None:
    """Followed sample by sample as the service does, the first verdict that is not WAIT ends it: confirm only after a healthy sample."""
    monitor = Monitor(LIMITS, has_programs=True)
    for now_s, health in history:
        monitor = monitor.sampled(now_s, health)
        decision = monitor.decide(now_s)
        if decision.verdict is Verdict.CONFIRM:
            assert health is OK
            assert now_s >= LIMITS.window_s
        if health is CRITICAL:
            assert decision.verdict is Verdict.REVERT
        if decision.verdict is not Verdict.WAIT:
            return


def test_a_round_speaks_with_its_worst_program() -> None:
    results = [CheckResult("a", OK, "fine", 0.1), CheckResult("b", DEGRADED, "slow", 0.1), CheckResult("c", DEGRADED, "", 0.1)]
    assert (Round(tuple(results)).health, Round(tuple(results)).reason) == (DEGRADED, "b: slow")
    assert Round((results[2],)).reason == "c is degraded"
    assert (Round((results[0],)).health, Round((results[0],)).reason) == (OK, "1 health programs are content")
