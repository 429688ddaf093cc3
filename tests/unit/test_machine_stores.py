"""Decisions that only some boot stores need: arming that a power cut forgets, boots that cannot be counted, root hashes of dm-verity."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abupdate import machine
from abupdate.errors import Busy
from abupdate.model import Attempt, BootState, CommitBoot, Facts, Phase, RebuildBoot, Record, SaveRecord, Situation, SlotRecord, SlotState
from tests.unit.test_machine import BEFORE, BOTH, NOW, ON_TRIAL, POLICY, STEADY, V1, V2, armed, attempt, commits, facts, record, run

ROOT, OTHER_ROOT = "5a" * 32, "a5" * 32
ONE_TRY = BootState(("B", "A"), {"A": 1, "B": 1}, "B")


def forgetful(**more: object) -> Facts:
    """Slot B was armed in an earlier boot, slot A runs, and the reboot parameter is gone."""
    return replace(facts(ONE_TRY, record=armed(BEFORE), forgetful=True), **more)  # type: ignore[arg-type]


# -- arming that a power cut forgets (tryboot)


def test_an_armed_trial_that_nobody_has_tried_is_still_armed_after_a_boot_of_the_old_slot() -> None:
    now = forgetful()
    assert machine.situation(now) is Situation.ARMED
    assert machine.settle(now) == ()
    with pytest.raises(Busy, match="armed and waits for a reboot"):
        run(now, machine.Write("B", "cc", "3.0", 3))
    assert run(now, machine.Revert("by hand")).boot == BootState(("A",), {"A": 1, "B": 0})


def test_the_same_store_that_remembers_calls_it_a_fallback() -> None:
    assert machine.situation(forgetful(forgetful=False)) is Situation.FELL_BACK


@pytest.mark.parametrize("reset", ["watchdog", "panic"])
def test_a_reset_tells_that_it_was_tried(reset: str) -> None:
    now = forgetful(reset=reset)
    assert machine.situation(now) is Situation.FELL_BACK
    after = run(now, machine.Start())
    assert after.record is not None
    assert after.record.attempt is not None
    assert (after.record.attempt.phase, after.record.attempt.reason) == (Phase.REVERTED, f"{reset}, tries left")


def test_a_start_on_the_trial_that_the_record_knows_of_tells_that_it_was_tried() -> None:
    tried = replace(attempt(Phase.ARMED, BEFORE), starts=1, started_in="between")
    now = forgetful(record=record(tried, b=replace(V2, state=SlotState.TRIAL)))
    assert machine.situation(now) is Situation.FELL_BACK


def test_no_boots_left_tell_that_it_was_tried() -> None:
    """The shutdown that led to the try noted it down."""
    now = forgetful(boot=replace(ONE_TRY, left={"A": 1, "B": 0}))
    assert machine.situation(now) is Situation.FELL_BACK
    after = run(now, machine.Start())
    assert after.record is not None
    assert after.record.attempt is not None
    assert (after.record.attempt.phase, after.record.attempt.reason) == (Phase.REVERTED, "tries exhausted")


def test_the_boot_sides_word_tells_that_it_was_tried_and_did_not_load() -> None:
    now = forgetful(tried=True)
    assert machine.situation(now) is Situation.FELL_BACK
    after = run(now, machine.Start())
    assert after.record is not None
    assert after.record.attempt is not None
    assert (after.record.attempt.phase, after.record.attempt.reason) == (Phase.REVERTED, "load failed")


def test_a_cancellation_that_was_cut_before_the_store_is_still_armed_and_can_be_repeated() -> None:
    now = forgetful(record=record(attempt(Phase.CANCELLED, BEFORE), b=replace(V2, state=SlotState.WRITTEN)))
    assert machine.situation(now) is Situation.ARMED
    assert run(now, machine.Revert("by hand")).boot == BootState(("A",), {"A": 1, "B": 0})


def test_an_attempt_that_has_ended_is_not_armed_again() -> None:
    assert machine.situation(forgetful(record=record(attempt(Phase.REVERTED, BEFORE)))) is Situation.FELL_BACK


def test_a_new_arming_starts_to_count_anew() -> None:
    tried = replace(attempt(Phase.WRITTEN, BEFORE), starts=1, started_in="between")
    now = facts(record=record(tried, b=replace(V2, state=SlotState.WRITTEN)), forgetful=True)
    after = run(now, machine.Activate("B"))
    assert after.record is not None
    assert after.record.attempt is not None
    assert after.record.attempt.starts == 0


# -- boots that the store cannot count


def started(now: Facts) -> Attempt:
    after = run(now, machine.Start())
    assert after.record is not None
    assert after.record.attempt is not None
    return after.record.attempt


def test_the_service_counts_its_starts_on_a_trial_once_a_boot() -> None:
    now = facts(ON_TRIAL, "B", armed(BEFORE))
    first = started(now)
    assert (first.starts, first.started_in) == (1, NOW)
    again = replace(now, record=record(first, b=V2))
    assert started(again) == first
    later = replace(again, boot_id="boot after")
    assert (started(later).starts, started(later).started_in) == (2, "boot after")


def test_starts_on_a_confirmed_slot_are_not_counted() -> None:
    now = facts(BOTH, "A", record(attempt(Phase.CONFIRMED, BEFORE, slot="A")))
    assert started(now).starts == 0


@pytest.mark.parametrize(("starts", "out"), [(0, False), (3, False), (4, True)])
def test_a_trial_that_started_more_often_than_it_may_is_tried_out(starts: int, out: bool) -> None:
    known = record(replace(attempt(Phase.ARMED, BEFORE), starts=starts, started_in=NOW), b=V2)
    assert machine.tried_out(facts(ON_TRIAL, "B", known)) is out
    # By the numbers under which it was armed, not by those of the slot that runs.
    assert not machine.tried_out(facts(replace(ON_TRIAL, policy=replace(POLICY, tries=5)), "B", known))
    assert not machine.tried_out(facts(ON_TRIAL, "A", known))
    assert not machine.tried_out(facts(ON_TRIAL, "B", Record()))
    assert not machine.tried_out(facts(STEADY, "A", known))


# -- stores whose boot side cleans up by itself (EFI's BootNext, Mender's altbootcmd)


@pytest.mark.parametrize(
    ("reset", "boot_id", "reason"),
    [
        ("", BEFORE, "unknown: the bootloader went back, or a cut came before the reason"),
        ("watchdog", BEFORE, "watchdog: the bootloader went back"),
        ("watchdog", NOW, "unknown: cut before the reason was recorded"),
    ],
)
def test_a_trial_that_left_no_trace_in_the_store_ends_in_the_record(reset: str, boot_id: str, reason: str) -> None:
    after = run(facts(STEADY, record=armed(boot_id), reset=reset), machine.Start())
    assert after.record is not None
    assert after.record.attempt is not None
    assert (after.record.attempt.phase, after.record.attempt.reason) == (Phase.REVERTED, reason)
    assert machine.slot_states(after)["B"] is SlotState.BAD


# -- root hashes


def test_the_root_hash_is_armed_with_the_slot_and_goes_with_its_content() -> None:
    now = facts(replace(BOTH, verity={"A": OTHER_ROOT, "B": ROOT}), record=record(b=replace(V2, verity=ROOT)))
    taken_out, *_ = commits(machine.decide(now, machine.Write("B", "cc", "3.0", 3, verity="77" * 32)))
    assert taken_out.verity == {"A": OTHER_ROOT}
    now = run(now, machine.Write("B", "cc", "3.0", 3, verity="77" * 32))
    assert now.record is not None
    assert now.record.slots["B"].verity == "77" * 32
    (armed_state,) = commits(machine.decide(now, machine.Activate("B", verified=True, verity="77" * 32)))
    assert armed_state.verity == {"A": OTHER_ROOT, "B": "77" * 32}
    (bare,) = commits(machine.decide(now, machine.Activate("B", verified=True)))
    assert bare.verity == {"A": OTHER_ROOT}


def test_confirm_and_fallback_keep_the_root_hash_of_the_slot_that_stays() -> None:
    roots = {"A": OTHER_ROOT, "B": ROOT}
    confirmed = run(facts(replace(ON_TRIAL, verity=roots), "B", armed(BEFORE)), machine.Confirm())
    assert confirmed.boot is not None
    assert confirmed.boot.verity == roots
    back = run(facts(replace(ON_TRIAL, verity=roots), "A", armed(BEFORE)), machine.Start())
    assert back.boot is not None
    assert back.boot.verity == {"A": OTHER_ROOT}


def test_a_rebuilt_store_gets_its_root_hashes_from_the_record_or_the_stored_heads() -> None:
    known = replace(V1, verity=OTHER_ROOT)
    for now in (facts(None, record=record(a=known)), facts(None, record=record(a=None), heads={"A": known})):
        (step,) = machine.rebuild(now)
        assert isinstance(step, RebuildBoot)
        assert step.state.verity == {"A": OTHER_ROOT}


def test_going_back_on_trial_takes_the_root_hash_along() -> None:
    now = facts(replace(ON_TRIAL, verity={"B": ROOT}), "B", armed(BEFORE))
    commit, save = machine.decide(now, machine.Revert("why"))
    assert isinstance(commit, CommitBoot)
    assert isinstance(save, SaveRecord)
    assert commit.state.verity == {}
    assert save.record.slots["B"] == SlotRecord(SlotState.BAD, "2.0", "bb", 2)


def test_a_rebuilt_store_holds_root_hashes_of_slots_that_boot_alone() -> None:
    """systemd-boot has no place for others, and would be said not to show what was written to it."""
    bad = SlotRecord(SlotState.BAD, "2.0", "bb", 2, verity=ROOT)
    assert machine.rebuilt(facts(None, record=record(a=replace(V1, verity=OTHER_ROOT), b=bad))).verity == {"A": OTHER_ROOT}
