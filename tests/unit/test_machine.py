"""The truth table against its text, the rules of every verb one by one, and what must hold for any facts whatever."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from abupdate import machine
from abupdate.errors import AbupdateError, Busy, ConfigError, NothingToDo, Refused, StoreUnreadable
from abupdate.machine import TABLE, Activate, Confirm, Revert, Row, Start, Write
from abupdate.model import (
    MAX_COUNTER,
    Attempt,
    BootState,
    CommitBoot,
    Facts,
    Phase,
    RaiseFloor,
    ReadBack,
    RebuildBoot,
    Record,
    SaveHead,
    SaveRecord,
    Situation,
    SlotRecord,
    SlotState,
    Step,
    TrialPolicy,
    WriteSlot,
)

SLOTS = ("A", "B")
POLICY = TrialPolicy(3, 10, 120)
NOW, BEFORE = "boot of now", "boot before"
V1 = SlotRecord(SlotState.CONFIRMED, "1.0", "aa", 1)
V2 = SlotRecord(SlotState.CONFIRMED, "2.0", "bb", 2)

STEADY = BootState(("A",), {"A": 10, "B": 0})
BOTH = BootState(("A", "B"), {"A": 10, "B": 10})
ON_TRIAL = BootState(("B", "A"), {"A": 10, "B": 2}, "B", POLICY)
USED_UP = replace(ON_TRIAL, left={"A": 9, "B": 0})


def facts(boot: BootState | None = STEADY, booted: str = "A", record: Record | None = None, **more: object) -> Facts:
    return replace(Facts(SLOTS, booted, NOW, boot, "here", record, POLICY), **more)  # type: ignore[arg-type]


def record(attempt: Attempt | None = None, *, a: SlotRecord | None = V1, b: SlotRecord | None = None, floor: int = 0) -> Record:
    slots = {name: slot for name, slot in (("A", a), ("B", b)) if slot is not None}
    return Record(floor=floor, slots=slots, attempt=attempt, store="here")


def attempt(phase: Phase, boot_id: str = NOW, slot: str = "B", reason: str = "") -> Attempt:
    return Attempt(slot, phase, boot_id, "bb", "2.0", 2, previous="A", reason=reason)


def armed(boot_id: str = NOW) -> Record:
    return record(attempt(Phase.ARMED, boot_id), b=replace(V2, state=SlotState.TRIAL))


def apply(now: Facts, steps: Iterable[Step]) -> Facts:
    """The facts after the steps, as a store and a record that keep what they are given."""
    for step in steps:
        match step:
            case CommitBoot(state=state) | RebuildBoot(state=state):
                old = now.boot
                policy = state.policy or (old.policy if old else None)
                kept = old.floor if state.floor is None and old else state.floor
                left = {slot: state.left.get(slot, 0) for slot in now.slots}
                now = replace(now, boot=replace(state, left=left, policy=policy, floor=kept, fresh=False))
            case SaveRecord(record=saved):
                now = replace(now, record=saved, witnessed=max(now.witnessed, saved.floor))
    return now


def settled(now: Facts) -> Facts:
    """As operations/board.py does it."""
    for _ in range(8):
        steps = machine.settle(now)
        if not steps:
            return now
        now = apply(now, steps)
    raise AssertionError(f"does not settle: {now}")


def run(now: Facts, request: machine.Request) -> Facts:
    now = settled(now)
    return apply(now, machine.decide(now, request))


def commits(steps: Iterable[Step]) -> list[BootState]:
    return [step.state for step in steps if isinstance(step, CommitBoot | RebuildBoot)]


# -- the table


def documented() -> list[Row]:
    rows: list[Row] = []
    for line in (machine.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if re.fullmatch(r"\d+", cells[0]):
            assert int(cells[0]) == len(rows) + 1
            store, trial, last, tries, order = (None if cell == "-" else cell for cell in cells[1:6])
            rows.append(Row(store, trial, last, tries, order, Situation(cells[6])))
    return rows


def test_the_documented_table_is_the_one_that_decides() -> None:
    assert documented() == list(TABLE)


def test_every_combination_of_observations_reaches_a_row_and_every_row_is_reached() -> None:
    columns = (
        ("unreadable", "valid"),
        ("none", "booted", "other"),
        ("this boot", "another boot", "nobody"),
        ("used up", "left"),
        ("first", "behind", "absent"),
    )
    reached = set()
    for seen in itertools.product(*columns):
        rows = [row for row in TABLE if all(want in (None, have) for want, have in zip(row[:5], seen, strict=True))]
        assert rows, seen
        reached.add(TABLE.index(rows[0]))
    assert reached == set(range(len(TABLE)))


def test_the_table_uses_the_words_that_observation_uses() -> None:
    seen = [set[str]() for _ in range(5)]
    for now in _all_small_facts():
        for column, word in zip(seen, machine.observation(now), strict=True):
            column.add(word)
    for column, index in zip(seen, range(5), strict=True):
        assert {row[index] for row in TABLE} - {None} <= column


def _all_small_facts() -> Iterable[Facts]:
    orders = ((), ("A",), ("B",), ("A", "B"), ("B", "A"))
    attempts = [None, *(attempt(phase, boot_id, slot) for phase in Phase for boot_id in (NOW, BEFORE) for slot in SLOTS)]
    for order, trial, last, left, booted in itertools.product(orders, (None, *SLOTS), attempts, (0, 2), SLOTS):
        yield facts(BootState(order, {"A": 5, "B": left}, trial), booted, record(last) if last else None)
    yield facts(None)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (facts(None), Situation.UNREADABLE),
        (facts(ON_TRIAL, "B", armed(BEFORE)), Situation.ON_TRIAL),
        (facts(ON_TRIAL, "B", armed(NOW)), Situation.ON_TRIAL),
        (facts(ON_TRIAL, "B"), Situation.ON_TRIAL),
        (facts(ON_TRIAL, "A", armed(NOW)), Situation.ARMED),
        (facts(USED_UP, "A", armed(NOW)), Situation.ARMED),
        (facts(ON_TRIAL, "A", armed(BEFORE)), Situation.FELL_BACK),
        (facts(USED_UP, "A", armed(BEFORE)), Situation.FELL_BACK),
        (facts(USED_UP, "A"), Situation.FELL_BACK),
        (facts(ON_TRIAL, "A"), Situation.UNKNOWN),
        (facts(ON_TRIAL, "A", record(attempt(Phase.ARMED, slot="A"))), Situation.UNKNOWN),
        (facts(STEADY), Situation.STEADY),
        (facts(replace(BOTH, fresh=True), "B"), Situation.STEADY),
        (facts(STEADY, "B"), Situation.REBOOT_PENDING),
        (facts(BOTH, "B", record(attempt(Phase.REVERTED))), Situation.REBOOT_PENDING),
        (facts(BOTH, "B", record(attempt(Phase.REVERTED, BEFORE))), Situation.FELL_THROUGH),
        (facts(BOTH, "B", record(attempt(Phase.CONFIRMED))), Situation.FELL_THROUGH),
        (facts(BOTH, "B"), Situation.FELL_THROUGH),
        (facts(BootState((), {"A": 3, "B": 3}), "B"), Situation.STEADY),
    ],
)
def test_situations(now: Facts, expected: Situation) -> None:
    assert machine.situation(now) is expected


# -- flash


def test_flash_takes_the_target_out_then_notes_writes_verifies_notes() -> None:
    steps = machine.decide(facts(BOTH, record=record(b=V2)), Write("B", "cc", "3.0", 3, lease=7))
    assert [type(step) for step in steps] == [CommitBoot, SaveHead, SaveRecord, WriteSlot, ReadBack, SaveRecord]
    (state,) = commits(steps)
    assert (state.order, dict(state.left), state.trial) == (("A",), {"A": 10, "B": 0}, None)
    first, last = (step.record for step in steps if isinstance(step, SaveRecord))
    assert first.attempt == Attempt("B", Phase.WRITING, NOW, "cc", "3.0", 3, previous="A", lease=7)
    assert first.slots["B"] == SlotRecord(SlotState.WRITING, "3.0", "cc", 3)
    assert last.attempt is not None
    assert (last.attempt.phase, last.slots["B"].state) == (Phase.WRITTEN, SlotState.WRITTEN)
    assert first.floor == last.floor == 0


def test_flash_asks_for_the_target_to_be_out_also_where_the_store_shows_it_already() -> None:
    """The commit makes durable what an earlier one, whose flush failed, may have left in a cache."""
    assert commits(machine.decide(facts(STEADY, record=record()), Write("B", "cc", "3.0", 3))) == [STEADY]


@pytest.mark.parametrize("boot", [replace(BOTH, fresh=True), replace(STEADY, left={"A": 10, "B": 1}), BootState((), {"A": 1, "B": 1})])
def test_flash_takes_the_target_out_of_a_fresh_board_and_where_only_its_counter_is_left(boot: BootState) -> None:
    (state,) = commits(machine.decide(facts(boot), Write("B", "cc", "3.0", 3)))
    assert (state.order, state.left["B"]) == (("A",), 0)


def test_arming_is_one_commit_with_the_running_slot_good_behind_and_then_the_record() -> None:
    now = run(facts(record=record(floor=1)), Write("B", "bb", "2.0", 2))
    steps = machine.decide(now, Activate("B", verified=True))
    assert [type(step) for step in steps] == [CommitBoot, SaveRecord]
    (state,) = commits(steps)
    assert (state.order, dict(state.left), state.trial, state.policy) == (("B", "A"), {"A": 10, "B": 3}, "B", POLICY)
    after = apply(now, steps)
    assert machine.situation(after) is Situation.ARMED
    assert machine.floor(after) == 1


@pytest.mark.parametrize("request_", [Write("B", "cc", "3", 3), Activate("B")])
@pytest.mark.parametrize(
    ("now", "code"),
    [
        (facts(ON_TRIAL, "B", armed(BEFORE)), 5),
        (facts(ON_TRIAL, "A", armed(NOW)), 5),
        (facts(ON_TRIAL, "A"), 5),
        (facts(STEADY, "B"), 5),
        (facts(BOTH, "B", record(attempt(Phase.REVERTED))), 5),
        (facts(replace(BOTH, order=("B", "A")), "B"), 2),
        (facts(None), 2),
    ],
)
def test_nothing_is_written_or_armed_while_anything_is_pending(now: Facts, code: int, request_: machine.Request) -> None:
    with pytest.raises(AbupdateError) as caught:
        machine.decide(now, request_)
    assert caught.value.exit_code == code
    assert caught.value.hint


def test_an_unknown_slot_and_the_running_one_are_refused() -> None:
    for slot in ("A", "C"):
        with pytest.raises(ConfigError):
            machine.precheck_write(facts(), slot)
        with pytest.raises(ConfigError):
            machine.decide(facts(), Write(slot, "cc", "3", 3))


# -- activate


@pytest.mark.parametrize("state", [state for state in SlotState if state is not SlotState.WRITTEN])
def test_activate_wants_a_written_slot(state: SlotState) -> None:
    with pytest.raises(NothingToDo):
        machine.decide(facts(record=record(b=replace(V2, state=state))), Activate("B"))


@pytest.mark.parametrize("known", [record(), None, record(b=SlotRecord(SlotState.WRITTEN))])
def test_activate_wants_to_know_what_is_written(known: Record | None) -> None:
    with pytest.raises(NothingToDo):
        machine.decide(facts(record=known), Activate("B"))


def test_activate_in_a_later_boot_reads_back_and_notes_this_boot_before_it_arms() -> None:
    written = record(attempt(Phase.WRITTEN, BEFORE), b=replace(V2, state=SlotState.WRITTEN))
    steps = machine.decide(facts(record=written), Activate("B"))
    assert [type(step) for step in steps] == [ReadBack, SaveRecord, CommitBoot, SaveRecord]
    first = steps[1]
    assert isinstance(first, SaveRecord)
    assert first.record.attempt is not None
    assert (first.record.attempt.boot_id, first.record.attempt.phase) == (NOW, Phase.WRITTEN)
    assert machine.situation(apply(facts(record=written), steps[:3])) is Situation.ARMED


# -- confirm


def test_confirm_commits_the_store_before_the_record_and_raises_the_floor() -> None:
    now = facts(ON_TRIAL, "B", armed(BEFORE))
    steps = machine.decide(now, Confirm())
    assert [type(step) for step in steps] == [CommitBoot, SaveRecord]
    (state,) = commits(steps)
    assert (state.order, dict(state.left), state.trial, state.floor) == (("B", "A"), {"A": 10, "B": 10}, None, 2)
    after = apply(now, steps)
    assert machine.floor(after) == 2
    assert machine.slot_states(after) == {"A": SlotState.CONFIRMED, "B": SlotState.CONFIRMED}
    assert after.record is not None
    assert after.record.attempt is not None
    assert after.record.attempt.phase is Phase.CONFIRMED


def test_the_copy_of_the_floor_outside_rises_last() -> None:
    """It never falls again: raised before the store shows the confirmation, a cut would leave the slot to fall back to below it."""
    now = replace(facts(ON_TRIAL, "B", armed(BEFORE)), outside=0)
    steps = machine.decide(now, Confirm())
    assert [type(step) for step in steps] == [CommitBoot, SaveRecord, RaiseFloor]
    assert steps[-1] == RaiseFloor(2)


@pytest.mark.parametrize(
    ("now", "error", "code"),
    [
        (facts(STEADY), NothingToDo, 4),
        (facts(replace(BOTH, fresh=True)), NothingToDo, 4),
        (facts(STEADY, "B"), NothingToDo, 4),
        (facts(ON_TRIAL, "A", armed(NOW)), Refused, 3),
        (facts(ON_TRIAL, "A"), Refused, 3),
        (facts(None), StoreUnreadable, 2),
    ],
)
def test_confirm_of_what_is_not_on_trial(now: Facts, error: type[AbupdateError], code: int) -> None:
    with pytest.raises(error) as caught:
        machine.decide(now, Confirm())
    assert caught.value.exit_code == code


@pytest.mark.parametrize("heads", [{}, {"B": V2}])
def test_confirm_works_without_a_record_and_learns_from_the_stored_head(heads: dict[str, SlotRecord]) -> None:
    after = run(facts(ON_TRIAL, "B", heads=heads), Confirm())
    assert machine.situation(after) is Situation.STEADY
    assert machine.floor(after) == (2 if heads else 0)
    assert after.boot is not None
    assert after.boot.floor == (2 if heads else 0)


def test_confirm_cut_before_its_record_is_finished_by_whatever_comes_next() -> None:
    now = facts(ON_TRIAL, "B", armed(BEFORE))
    cut = replace(apply(now, machine.decide(now, Confirm())[:1]), boot_id="a later boot")
    done = settled(cut)
    assert done.record is not None
    assert done.record.attempt is not None
    assert (done.record.attempt.phase, done.record.slots["B"].state, done.record.floor) == (Phase.CONFIRMED, SlotState.CONFIRMED, 2)
    with pytest.raises(NothingToDo):
        machine.decide(done, Confirm())


@pytest.mark.parametrize("phase", [Phase.WRITTEN, Phase.ARMED])
@pytest.mark.parametrize("order", [("A", "B"), ("B", "A")])
def test_a_slot_that_somebody_else_made_bootable_is_confirmed_when_it_runs(phase: Phase, order: tuple[str, ...]) -> None:
    """`flash --no-activate`, or a trial that fw_setenv took away, and then BOOT_ORDER by hand: nothing was confirmed, the floor stays."""
    written = record(attempt(phase), b=replace(V2, state=SlotState.WRITTEN), floor=1)
    by_hand = BootState(order, {"A": 10, "B": 3}, floor=1)
    now = facts(by_hand, "A", written, settled=True)
    assert (machine.settle(now), machine.floor(now)) == ((), 1)
    after = settled(replace(now, boot=replace(by_hand, order=("B", "A")), booted="B", boot_id="the next", settled=False))
    assert after.record is not None
    assert after.record.attempt is not None
    assert (after.record.attempt.phase, machine.floor(after)) == (Phase.CONFIRMED, 2)


def test_a_confirmation_that_only_the_store_shows_is_believed_on_the_other_slot_too() -> None:
    """Confirmed, then reverted by hand, both without a record that could be written: the store's floor tells."""
    now = facts(replace(BOTH, floor=2), "A", record(attempt(Phase.ARMED, BEFORE), b=replace(V2, state=SlotState.TRIAL)))
    after = settled(now)
    assert after.record is not None
    assert after.record.slots["B"].state is SlotState.CONFIRMED


# -- revert


def test_revert_of_an_armed_trial_cancels_it() -> None:
    after = run(facts(ON_TRIAL, "A", armed(NOW)), Revert("operator"))
    assert machine.situation(after) is Situation.STEADY
    assert machine.slot_states(after) == {"A": SlotState.CONFIRMED, "B": SlotState.WRITTEN}
    assert after.record is not None
    assert after.record.attempt is not None
    assert (after.record.attempt.phase, after.record.attempt.reason) == (Phase.CANCELLED, "operator")
    again = run(after, Activate("B"))
    assert machine.situation(again) is Situation.ARMED


def test_revert_of_an_unknown_trial_takes_it_out() -> None:
    after = run(facts(ON_TRIAL, "A"), Revert("operator"))
    assert after.boot is not None
    assert (after.boot.order, after.boot.left["B"], after.boot.trial) == (("A",), 0, None)
    assert machine.slot_states(after)["B"] is SlotState.BAD


def test_revert_on_trial_goes_back_store_first() -> None:
    now = facts(ON_TRIAL, "B", armed(BEFORE))
    steps = machine.decide(now, Revert("health", on_trial_only=True))
    assert [type(step) for step in steps] == [CommitBoot, SaveRecord]
    after = apply(now, steps)
    assert machine.situation(after) is Situation.REBOOT_PENDING
    assert after.boot is not None
    assert (after.boot.order, after.boot.left["B"]) == (("A",), 0)
    rebooted = settled(replace(after, booted="A", boot_id="next"))
    assert rebooted.record is not None
    assert rebooted.record.attempt is not None
    assert (rebooted.record.attempt.phase, rebooted.record.attempt.reason) == (Phase.REVERTED, "health")


def test_revert_in_steady_state_saves_the_record_first_and_switches() -> None:
    now = facts(BOTH, record=record(b=V2, floor=1))
    steps = machine.decide(now, Revert("operator"))
    assert [type(step) for step in steps] == [SaveRecord, CommitBoot]
    after = apply(now, steps)
    assert machine.situation(after) is Situation.REBOOT_PENDING
    assert after.boot is not None
    assert (after.boot.order, dict(after.boot.left)) == (("B", "A"), {"A": 10, "B": 10})
    with pytest.raises(NothingToDo):
        machine.decide(after, Revert("again"))
    assert settled(after) == after
    rebooted = replace(after, booted="B", boot_id="next")
    assert settled(rebooted) == rebooted
    assert machine.slot_states(rebooted) == {"A": SlotState.CONFIRMED, "B": SlotState.CONFIRMED}


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (facts(STEADY), 4),
        (facts(replace(BOTH, left={"A": 10, "B": 0})), 4),
        (facts(replace(BOTH, fresh=True)), 4),
        (facts(replace(ON_TRIAL, order=("B",)), "B"), 4),
        (facts(STEADY, "B"), 4),
        (facts(BootState((), {"A": 3, "B": 3})), 4),
        (facts(BOTH, record=record(b=V2, floor=3)), 3),
        (facts(BOTH, record=record(b=V2), witnessed=3), 3),
        (facts(replace(BOTH, floor=3), record=record(b=V2)), 3),
        (facts(None), 2),
    ],
)
def test_revert_where_there_is_nowhere_to_go(now: Facts, code: int) -> None:
    with pytest.raises(AbupdateError) as caught:
        machine.decide(now, Revert("operator"))
    assert caught.value.exit_code == code


def test_revert_to_a_slot_at_the_floor_is_allowed() -> None:
    assert commits(machine.decide(facts(BOTH, record=record(b=V2, floor=2)), Revert("operator")))


def test_the_end_of_a_trial_is_exempt_from_the_floor() -> None:
    now = facts(ON_TRIAL, "B", replace(armed(BEFORE), floor=9))
    assert commits(machine.decide(now, Revert("health")))


def test_the_services_revert_touches_nothing_but_a_running_trial() -> None:
    for now in (facts(BOTH, record=record(b=V2)), facts(ON_TRIAL, "A", armed(NOW)), facts(ON_TRIAL, "A")):
        with pytest.raises(NothingToDo):
            machine.decide(now, Revert("health", on_trial_only=True))


# -- outcomes


@pytest.mark.parametrize(
    ("boot", "reset", "noted", "expected"),
    [
        (USED_UP, "", "", "tries exhausted"),
        (USED_UP, "watchdog", "", "watchdog, tries exhausted"),
        (USED_UP, "panic", "", "panic, tries exhausted"),
        (ON_TRIAL, "", "", "load failed"),
        (ON_TRIAL, "watchdog", "", "watchdog, tries left"),
        (ON_TRIAL, "watchdog", "health critical: disk", "health critical: disk"),
    ],
)
def test_a_fallback_is_recorded_with_its_reason_before_the_store_is_cleaned(boot: BootState, reset: str, noted: str, expected: str) -> None:
    last = attempt(Phase.REVERTED if noted else Phase.ARMED, BEFORE, reason=noted)
    now = facts(boot, "A", record(last, b=replace(V2, state=SlotState.TRIAL)), reset=reset)
    assert machine.slot_states(now)["B"] is SlotState.BAD
    assert machine.fallback_reason(now) == expected
    steps = machine.settle(now)
    assert [type(step) for step in steps] == [SaveRecord, CommitBoot]
    # Cut between the two, in a boot that no longer knows how the one before ended: the reason stays.
    done = settled(replace(apply(now, steps[:1]), reset="", boot_id="later"))
    assert done.record is not None
    assert done.record.attempt is not None
    assert (done.record.attempt.phase, done.record.attempt.reason) == (Phase.REVERTED, expected)
    assert done.boot is not None
    assert (done.boot.order, done.boot.left["B"], done.boot.trial) == (("A",), 0, None)
    assert machine.slot_states(done) == {"A": SlotState.CONFIRMED, "B": SlotState.BAD}


def test_a_fallback_without_a_record_is_recorded_from_facts() -> None:
    done = settled(facts(USED_UP, "A", heads={"A": V1, "B": V2}))
    assert done.record is not None
    assert done.record.attempt is not None
    assert (done.record.attempt.slot, done.record.attempt.bundle, done.record.attempt.reason) == ("B", "bb", "tries exhausted")


def test_an_unknown_trial_is_left_to_people() -> None:
    assert machine.settle(facts(ON_TRIAL, "A")) == ()
    assert machine.decide(facts(ON_TRIAL, "A"), Start()) is not None


@pytest.mark.parametrize(("left", "words"), [(0, "boots used up"), (4, "load failed")])
def test_a_confirmed_slot_that_did_not_start_goes_behind_the_one_that_runs(left: int, words: str) -> None:
    now = facts(replace(BOTH, left={"A": left, "B": 9}), "B", record(b=V2))
    assert machine.slot_states(now)["A"] is SlotState.BAD
    done = settled(now)
    assert done.boot is not None
    assert (done.boot.order, done.boot.left["A"]) == (("B", "A"), 0)
    assert machine.slot_states(done) == {"A": SlotState.BAD, "B": SlotState.CONFIRMED}
    assert done.record is not None
    assert done.record.attempt is not None
    assert done.record.attempt.slot == "A"
    assert words in done.record.attempt.reason
    assert "slot B" in done.record.attempt.reason


def test_an_order_that_is_changed_after_the_service_settled_is_the_operators() -> None:
    now = facts(BOTH, "B", record(b=V2), settled=True)
    assert machine.settle(now) == ()
    assert machine.slot_states(now)["A"] is SlotState.CONFIRMED


def test_an_ordered_switch_that_was_cut_before_the_store_is_called_off() -> None:
    last = replace(attempt(Phase.REVERTED, BEFORE, slot="A"), previous="B")
    done = settled(facts(BOTH, record=record(last, b=V2)))
    assert done.record is not None
    assert done.record.attempt is not None
    assert done.record.attempt.phase is Phase.CANCELLED


# -- start of the service


def test_start_refills_the_confirmed_slot_that_runs_and_no_other() -> None:
    after = run(facts(replace(BOTH, left={"A": 3, "B": 4}), record=record()), Start())
    assert after.boot is not None
    assert dict(after.boot.left) == {"A": 10, "B": 4}


def test_start_does_not_refill_a_slot_on_trial() -> None:
    after = run(facts(ON_TRIAL, "B", armed(BEFORE)), Start())
    assert after.boot == ON_TRIAL


def test_start_writes_nothing_where_nothing_has_changed() -> None:
    assert machine.decide(facts(BOTH, record=record(b=V2)), Start()) == ()
    uncounted = facts(
        replace(BOTH, left={"A": 1, "B": 1}, policy=TrialPolicy(3, 0, 120)), record=record(b=V2), policy=TrialPolicy(3, 0, 120)
    )
    assert machine.decide(uncounted, Start()) == ()


def test_start_finishes_what_a_cut_between_arming_and_its_record_left() -> None:
    cut = record(attempt(Phase.WRITTEN, BEFORE), b=replace(V2, state=SlotState.WRITTEN))
    after = run(facts(ON_TRIAL, "B", cut), Start())
    assert after.record is not None
    assert after.record.attempt is not None
    assert (after.record.attempt.phase, after.record.slots["B"].state) == (Phase.ARMED, SlotState.TRIAL)


# -- lost record, unreadable store, states, floor


def test_a_lost_record_is_rebuilt_from_heads_of_slots_that_boot() -> None:
    now = facts(ON_TRIAL, "B", heads={"A": V1, "B": V2})
    assert machine.base_record(now).slots == {"A": V1, "B": replace(V2, state=SlotState.TRIAL)}
    out = machine.base_record(facts(STEADY, heads={"A": V1, "B": V2}, witnessed=4))
    assert out.slots == {"A": V1}
    assert out.floor == 4


def test_without_a_record_a_slot_that_cannot_boot_is_empty() -> None:
    assert machine.slot_states(facts(STEADY)) == {"A": SlotState.CONFIRMED, "B": SlotState.EMPTY}


def test_the_store_is_rebuilt_only_where_it_was_seen_valid() -> None:
    for known in (None, replace(record(), store=""), replace(record(), store="elsewhere")):
        with pytest.raises(StoreUnreadable):
            machine.rebuild(facts(None, record=known))
    with pytest.raises(StoreUnreadable):
        machine.rebuild(facts(None, record=replace(record(), store=""), store=""))
    (state,) = commits(machine.rebuild(facts(None, record=record(b=V2, floor=5))))
    assert (state.order, dict(state.left), state.trial, state.floor) == (("A",), {"A": 10, "B": 0}, None, 5)


def test_the_store_is_filled_only_where_a_flash_has_written_to_this_one() -> None:
    fresh = BootState((), {"A": 0, "B": 0}, fresh=True)
    known = record(attempt(Phase.CONFIRMED, BEFORE), b=V2)
    for now in (facts(record=known), facts(fresh), facts(fresh, record=record()), facts(fresh, record=replace(known, store="elsewhere"))):
        assert machine.rebuild(now) == ()
    (state,) = commits(machine.rebuild(facts(fresh, "B", known)))
    assert (state.order, dict(state.left), state.trial, state.fresh) == (("B",), {"A": 0, "B": 10}, None, False)
    half = record(attempt(Phase.WRITING, BEFORE, "A"), a=replace(V1, state=SlotState.WRITING), b=V2)
    (state,) = commits(machine.rebuild(facts(fresh, "A", half)))
    assert (state.order, state.left["A"]) == (("B",), 0), "the boot side's default has taken a slot that holds half an update"


def test_a_rebuilt_store_does_not_confirm_the_trial_that_runs() -> None:
    now = facts(None, "B", armed(BEFORE))
    (state,) = commits(machine.rebuild(now))
    assert (state.order, dict(state.left), state.trial) == (("B", "A"), {"A": 10, "B": 1}, "B")
    assert machine.situation(apply(now, machine.rebuild(now))) is Situation.ON_TRIAL


def test_a_write_that_failed_is_noted_only_where_one_had_begun() -> None:
    writing = record(attempt(Phase.WRITING), b=replace(V2, state=SlotState.WRITING))
    step = machine.failed(facts(record=writing), "B", "stream ended")
    assert step is not None
    assert step.record.attempt is not None
    assert (step.record.attempt.phase, step.record.attempt.reason) == (Phase.FAILED, "stream ended")
    assert machine.failed(facts(record=record()), "B", "x") is None
    assert machine.failed(facts(record=armed()), "B", "x") is None
    assert machine.failed(facts(), "B", "x") is None


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (facts(), 0),
        (facts(record=record(floor=3)), 3),
        (facts(replace(STEADY, floor=4), record=record(floor=3)), 4),
        (facts(record=record(floor=3), witnessed=5), 5),
        (facts(record=record(), heads={"A": replace(V1, counter=6)}), 6),
        (facts(ON_TRIAL, "B", record(), heads={"B": replace(V2, counter=7)}), 0),
        (facts(None, record=record(floor=2)), 2),
    ],
)
def test_the_floor_is_the_highest_of_its_witnesses(now: Facts, expected: int) -> None:
    assert machine.floor(now) == expected


# -- for any facts

counters = st.integers(0, 4)
lefts = st.fixed_dictionaries({"A": st.integers(0, 11), "B": st.integers(0, 11)})
orders = st.sampled_from([(), ("A",), ("B",), ("A", "B"), ("B", "A")])
policies = st.builds(TrialPolicy, st.integers(1, 4), st.integers(0, 10), st.just(120))
boots = st.builds(BootState, orders, lefts, st.none() | st.sampled_from(SLOTS), st.none() | policies, st.none() | counters)
fresh_boots = st.builds(BootState, st.just(SLOTS), lefts, st.none(), st.none(), st.none() | counters, st.just(True))
slot_records = st.builds(SlotRecord, st.sampled_from(SlotState), st.sampled_from(["", "1.0"]), st.sampled_from(["", "aa", "bb"]), counters)
attempts = st.builds(
    Attempt,
    st.sampled_from(SLOTS),
    st.sampled_from(Phase),
    st.sampled_from([NOW, BEFORE, ""]),
    st.sampled_from(["", "aa", "bb"]),
    st.just("1.0"),
    counters,
    st.sampled_from(["", *SLOTS]),
    st.none() | counters,
    st.sampled_from(["", "because"]),
)
records = st.builds(
    Record,
    counters,
    st.dictionaries(st.sampled_from(SLOTS), slot_records),
    st.none() | attempts,
    st.sampled_from(["", "here", "elsewhere"]),
)
any_facts = st.builds(
    Facts,
    st.just(SLOTS),
    st.sampled_from(SLOTS),
    st.just(NOW),
    st.none() | boots | fresh_boots,
    st.just("here"),
    st.none() | records,
    policies,
    st.dictionaries(st.sampled_from(SLOTS), slot_records),
    st.booleans(),
    st.sampled_from(["", "watchdog", "panic"]),
    counters,
)
requests = (
    st.builds(Write, st.sampled_from([*SLOTS, "C"]), st.just("cc"), st.just("3.0"), counters, st.none() | counters)
    | st.builds(Activate, st.sampled_from([*SLOTS, "C"]), st.booleans())
    | st.just(Confirm())
    | st.builds(Revert, st.just("ordered"), st.booleans())
    | st.just(Start())
)
MANY = settings(max_examples=120, deadline=None)


def outcome(call: Callable[[], object]) -> tuple[int, str]:
    """Exit code and message."""
    try:
        call()
    except AbupdateError as error:
        return error.exit_code, error.message
    return 0, ""


def attempted(now: Facts, request: machine.Request) -> tuple[Facts, tuple[Step, ...]]:
    """Settled facts and the steps of the request, none where one of our errors refuses it."""
    try:
        now = settled(now)
        return now, machine.decide(now, request)
    except AbupdateError:
        return now, ()


@MANY
@given(any_facts, requests)
@example(facts(BootState((), {"A": 1, "B": 1}), "A"), Revert("ordered"))
@example(facts(BootState((), {"A": 1, "B": 1}, "B"), "A"), Confirm())
def test_only_our_errors_are_raised(now: Facts, request: machine.Request) -> None:
    for call in (machine.settle, machine.slot_states, machine.rebuild, machine.fallback_reason, lambda seen: machine.decide(seen, request)):
        code, message = outcome(lambda call=call: call(now))  # type: ignore[misc]
        assert code in (0, 2, 3, 4, 5)
        assert "\n" not in message
    machine.situation(now)
    machine.base_record(now)
    machine.rebuilt(now)
    machine.floor(now)
    attempted(now, request)


@MANY
@given(any_facts, requests)
@example(facts(BootState(("B",), {"A": 1, "B": 0}, "A"), "B"), Start())
def test_every_commit_leaves_a_good_slot_that_is_not_on_trial(now: Facts, request: machine.Request) -> None:
    before, steps = attempted(now, request)
    all_steps = steps if now.boot is None else (*machine.settle(now), *steps)
    for state in commits(all_steps):
        good = {slot for slot in state.order if slot != state.trial and state.left.get(slot, 0) > 0}
        last = now.record.attempt if now.record else None
        assert (
            good & {now.booted, *(s for s in SLOTS if s != now.booted and machine.situation(before) is Situation.ON_TRIAL)}
            or (last is not None and last.previous in good)
            or (isinstance(request, Revert) and good)
        )
        # A trial that somebody took out of the order stays as it is found.
        found = now.boot is not None and now.boot.trial not in now.boot.order and state.trial == now.boot.trial
        assert state.trial is None or state.trial in state.order or found
        assert len(set(state.order)) == len(state.order)
        assert set(state.order) <= set(SLOTS)


@MANY
@given(any_facts, requests)
def test_no_slot_becomes_confirmed_but_the_running_one(now: Facts, request: machine.Request) -> None:
    assume(now.boot is not None)
    before = machine.effective(now)
    assert before is not None
    after = settled(now)
    ended, steps = attempted(now, request)
    for state in (*commits(steps), *([after.boot] if after.boot and after.boot != now.boot else [])):
        confirmed = {slot for slot in state.order if slot != state.trial and state.left.get(slot, 0) > 0}
        was = {slot for slot in before.order if slot != before.trial}
        if before.trial != now.booted or isinstance(request, Confirm):
            was.add(now.booted)
        assert confirmed <= was
    trials = [state.trial for state in commits(steps) if state.trial]
    if not isinstance(request, Activate):
        assert all(trial == before.trial for trial in trials)
    assert machine.floor(ended) >= machine.floor(now)


@MANY
@given(any_facts)
def test_facts_settle_and_stay_settled_through_a_start(now: Facts) -> None:
    assume(now.boot is not None)
    done = settled(now)
    assert machine.settle(done) == ()
    started = apply(done, machine.decide(done, Start()))
    assert machine.settle(started) == ()
    assert machine.decide(started, Start()) == ()
    assert machine.situation(started) is machine.situation(done)


@MANY
@given(any_facts, requests)
def test_the_floor_never_falls(now: Facts, request: machine.Request) -> None:
    lowest = machine.floor(now)
    seen = now
    if now.boot is not None:
        for step in machine.settle(now):
            seen = apply(seen, [step])
            assert machine.floor(seen) >= lowest
    seen, steps = attempted(now, request)
    lowest = max(lowest, machine.floor(seen))
    for step in steps:
        seen = apply(seen, [step])
        assert machine.floor(seen) >= lowest
        if isinstance(request, Write | Activate | Revert):
            # Told by the witnesses, not by what is being installed.
            assert seen.record is None or seen.record.floor <= lowest
    # A store or a record that is lost afterwards does not take it along.
    if isinstance(request, Confirm) and steps:
        assert machine.floor(replace(seen, record=None, witnessed=0)) == machine.floor(seen)
        assert seen.boot is not None
        assert machine.floor(replace(seen, boot=replace(seen.boot, floor=None))) == machine.floor(seen)


@MANY
@given(any_facts.filter(lambda now: now.boot is not None and now.boot.trial is not None))
def test_the_tries_of_a_trial_never_rise_by_settling_or_a_start(now: Facts) -> None:
    boot = now.boot
    assert boot is not None
    done = settled(now)
    started = apply(done, machine.decide(done, Start()))
    for later in (done, started):
        assert later.boot is not None
        assert boot.trial is not None
        if later.boot.trial == boot.trial:
            assert later.boot.left.get(boot.trial, 0) <= boot.left.get(boot.trial, 0)
        else:
            assert boot.trial != now.booted


@MANY
@given(any_facts, st.builds(Write, st.sampled_from(SLOTS), st.just("cc"), st.just("3.0"), counters))
def test_a_target_can_boot_neither_before_nor_while_it_is_written(now: Facts, request: machine.Request) -> None:
    now, steps = attempted(now, request)
    for index, step in enumerate(steps):
        if isinstance(step, WriteSlot):
            boot = machine.effective(apply(now, steps[:index]))
            assert boot is not None
            assert step.slot not in boot.order
            assert boot.left.get(step.slot, 0) == 0
            assert boot.order[0] == now.booted
            kinds = [type(each) for each in steps]
            assert kinds[-5:] == [SaveHead, SaveRecord, WriteSlot, ReadBack, SaveRecord]
            assert kinds[:-5] == [CommitBoot]


def test_busy_is_what_a_pending_trial_raises() -> None:
    with pytest.raises(Busy):
        machine.precheck_write(facts(ON_TRIAL, "A", armed(NOW)), "B")


def test_a_store_that_cannot_be_replaced_gets_no_leave_to_be_rebuilt() -> None:
    now = facts(BOTH, record=record(a=V1), replaceable=False)
    for step in machine.decide(now, machine.Start()):
        now = apply(now, (step,))
    with pytest.raises(StoreUnreadable):
        machine.rebuild(replace(now, boot=None))


BAD, WRITING = SlotRecord(SlotState.BAD, "1.0", "aa", 1), SlotRecord(SlotState.WRITING, "3.0", "cc", 3)


@pytest.mark.parametrize("one", [BAD, WRITING, replace(WRITING, state=SlotState.WRITTEN)])
def test_a_rebuilt_store_goes_back_to_the_slot_that_is_known_to_be_good(one: SlotRecord) -> None:
    """U-Boot's own default starts A when the store is gone, whatever lies there."""
    last = Attempt("A", Phase.REVERTED if one is BAD else Phase.WRITING, BEFORE, "cc", "3.0", 3, previous="B", reason="because")
    now = facts(None, record=record(last, a=one, b=V2))
    (step,) = machine.rebuild(now)
    after = apply(now, (step,))
    assert after.boot is not None
    assert (after.boot.order, dict(after.boot.left), after.boot.trial) == (("B",), {"A": 0, "B": 10}, None)
    assert machine.situation(after) is Situation.REBOOT_PENDING
    assert machine.slot_states(after) == {"A": SlotState.BAD, "B": SlotState.CONFIRMED}
    assert machine.settle(after) == ()
    assert machine.next_boot(after) == "B"
    assert after.record is not None
    assert after.record.attempt == last, "the reason stays"
    # With nothing better, what runs is all that there is.
    (step,) = machine.rebuild(facts(None, record=record(last, a=one)))
    assert isinstance(step, RebuildBoot)
    assert step.state.order == ("A",)


@pytest.mark.parametrize("phase", [Phase.WRITTEN, Phase.ARMED, Phase.CANCELLED])
def test_a_rebuilt_store_confirms_no_slot_on_trial(phase: Phase) -> None:
    """A cut may have come between the boot store and the record: armed and recorded as written, cancelled and still armed."""
    now = facts(None, "B", record(attempt(phase), b=replace(V2, state=SlotState.WRITTEN)))
    after = apply(now, machine.rebuild(now))
    assert after.boot is not None
    assert (after.boot.order, dict(after.boot.left), after.boot.trial) == (("B", "A"), {"A": 10, "B": 1}, "B")
    assert machine.situation(after) is Situation.ON_TRIAL


def test_a_rebuilt_store_puts_nothing_on_trial_that_was_confirmed_or_found_bad() -> None:
    """Cancelled is also a switch between two good slots that a cut has kept from happening, and a trial of a slot that is not whole."""
    switch = Attempt("A", Phase.CANCELLED, BEFORE, "aa", "1.0", 1, previous="B", reason="cut before the other slot was made first")
    good = apply(now := facts(None, record=record(switch, b=V2)), machine.rebuild(now)).boot
    assert good is not None
    assert (good.order, good.trial) == (("A",), None)
    bad = apply(now := facts(None, record=record(switch, a=BAD, b=V2)), machine.rebuild(now)).boot
    assert bad is not None
    assert (bad.order, bad.trial) == (("B",), None)


def test_a_refill_takes_no_boots_away() -> None:
    """A boot script of somebody else's counts by its own budget."""
    for left, budget in ((3, 0), (3, 2), (9, 5)):
        now = facts(replace(STEADY, left={"A": left, "B": 0}), record=record(), policy=TrialPolicy(3, budget, 120))
        after = apply(now, machine.decide(now, Start()))
        assert after.boot is not None
        assert after.boot.left["A"] == 10
        assert after.boot.policy == now.policy
        assert [step for step in machine.decide(after, Start()) if isinstance(step, CommitBoot)] == []


def test_a_counter_that_no_bundle_can_have_costs_no_confirmation() -> None:
    beyond = MAX_COUNTER + 1
    now = facts(
        ON_TRIAL, "B", record(replace(attempt(Phase.ARMED, BEFORE), counter=beyond), b=replace(V2, counter=beyond)), heads={"B": V2}
    )
    after = apply(now, machine.decide(now, Confirm()))
    assert after.boot is not None
    assert (after.boot.trial, after.boot.floor, machine.floor(after)) == (None, 2, 2)


def test_what_boots_next() -> None:
    """As the boot side would choose it."""
    for boot, booted, expected in (
        (STEADY, "A", "A"),
        (BOTH, "B", "A"),
        (ON_TRIAL, "B", "B"),
        (USED_UP, "B", "A"),
        (replace(USED_UP, left={"A": 0, "B": 0}), "B", "A"),
        (replace(BOTH, left={"A": 0, "B": 1}), "B", "B"),
        (BootState((), {}, fresh=True), "B", "B"),
    ):
        assert machine.next_boot(facts(boot, booted, record(b=V2))) == expected, boot


@pytest.mark.parametrize(
    ("unsaved", "left", "reason"), [(True, 2, "its boot could not be counted"), (False, 2, "load failed"), (True, 0, "tries exhausted")]
)
def test_why_a_trial_did_not_start(unsaved: bool, left: int, reason: str) -> None:
    now = facts(replace(ON_TRIAL, left={"A": 10, "B": left}), record=armed(BEFORE), unsaved=unsaved)
    assert machine.fallback_reason(now) == reason


# -- the floor's copies


def test_confirm_raises_the_copy_outside_last() -> None:
    """Cut before it, and it is behind; never ahead of what the boot store shows as confirmed."""
    now = facts(ON_TRIAL, "B", armed(BEFORE), outside=0)
    steps = machine.decide(now, Confirm())
    assert [type(step) for step in steps] == [CommitBoot, SaveRecord, RaiseFloor]
    assert steps[-1] == RaiseFloor(2)
    assert [type(step) for step in machine.decide(replace(now, outside=None), Confirm())] == [CommitBoot, SaveRecord]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_cut_in_confirm_leaves_no_copy_ahead_and_the_next_start_raises_the_rest(count: int) -> None:
    now = facts(ON_TRIAL, "B", armed(BEFORE), outside=0)
    steps = machine.decide(now, Confirm())
    for step in steps[:count]:
        now = replace(now, outside=step.counter) if isinstance(step, RaiseFloor) else apply(now, [step])
    assert now.boot is not None
    confirmed = now.boot.trial is None
    assert machine.floor(now) == (2 if confirmed else 0)
    if confirmed:
        now = apply(settled(now), machine.lagging(settled(now)))
        assert now.boot is not None
        assert now.record is not None
        assert (now.boot.floor, now.record.floor) == (2, 2)
        assert count == 3 or RaiseFloor(2) in machine.lagging(now)


# The last one: an order that names none of our slots, which no store takes back.
@pytest.mark.parametrize("boot", [ON_TRIAL, USED_UP, None, replace(STEADY, fresh=True), BootState((), {"A": 10, "B": 0})])
def test_copies_are_raised_in_the_steady_state_alone(boot: BootState | None) -> None:
    assert machine.lagging(facts(boot, "A", record(floor=5), outside=0)) == ()
    steady = machine.lagging(facts(STEADY, "A", record(floor=5), outside=0))
    assert [type(step) for step in steady] == [CommitBoot, RaiseFloor]
    assert machine.lagging(facts(replace(STEADY, floor=5), "A", record(floor=5), outside=5)) == ()


def test_every_record_that_is_saved_keeps_the_floor() -> None:
    now = facts(replace(STEADY, floor=4), "A", record(floor=1), witnessed=7)
    for request in (Write("B", "bb", "2.0", 9), Start()):
        saved = [step.record.floor for step in machine.decide(now, request) if isinstance(step, SaveRecord)]
        assert set(saved) <= {7}
    assert [step.record.floor for step in machine.decide(now, Write("B", "bb", "2.0", 9)) if isinstance(step, SaveRecord)] == [7, 7]
