"""The same life of a device over every adapter's real files, each step seen by the bootloader's own tool as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import machine
from abupdate.errors import ConfigError, NothingToDo, StoreUnreadable
from abupdate.model import BootState, Phase, Situation
from tests.contract.board import ROOT_HASH, Board, full
from tests.contract.subject import Subject
from tests.contract.subjects import SUBJECTS


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    return SUBJECTS[request.param](tmp_path)


@pytest.fixture
def board(subject: Subject) -> Board:
    return Board(subject)


def updated(board: Board) -> Board:
    """Version 2 confirmed on B, what A held is good behind it."""
    board.do(machine.Start())
    board.flash("2")
    board.starts("B", board.subject.policy.tries - 1)
    board.do(machine.Confirm())
    return board


def test_a_board_that_was_never_written_to_boots_its_first_slot(board: Board) -> None:
    found = board.subject.store().read()
    # Where the factory has made the entries, they say already what boots.
    assert found.fresh or found.order == ("A",)
    assert found.trial is None
    assert machine.situation(board.facts()) is Situation.STEADY
    assert board.subject.tool_sees().first == "A"


def test_flash_arms_a_trial_and_keeps_the_good_slot_behind_it(board: Board) -> None:
    board.do(machine.Start())
    board.flash("2")
    seen = board.subject.tool_sees()
    assert (seen.first, seen.trial) == ("B", "B")
    assert seen.left in (None, board.subject.policy.tries)
    found = board.subject.store().read()
    assert found.order == ("B", "A")
    assert found.left == {"A": full(board), "B": board.subject.policy.tries}


def test_trial_and_confirmation(board: Board) -> None:
    board.do(machine.Start())
    board.flash("2")
    board.starts("B", board.subject.policy.tries - 1)
    assert machine.situation(board.facts()) is Situation.ON_TRIAL
    assert board.states() == {"A": "confirmed", "B": "trial"}
    assert board.subject.store().read().left["B"] == board.subject.policy.tries - 1
    (state,) = board.do(machine.Confirm())
    assert state.order == ("B", "A")
    assert board.subject.tool_sees().first == "B"
    assert board.subject.tool_sees().trial is None
    board.starts("B", full(board))
    assert board.states() == {"A": "confirmed", "B": "confirmed"}
    with pytest.raises(NothingToDo):
        board.do(machine.Confirm())


def test_a_second_update_goes_back_to_the_first_slot(board: Board) -> None:
    updated(board)
    board.flash("3")
    assert board.subject.tool_sees().first == "A"
    board.starts("A", board.subject.policy.tries - 1)
    board.do(machine.Confirm())
    assert board.states() == {"A": "confirmed", "B": "confirmed"}


def test_revert_on_trial_makes_the_good_slot_first(board: Board) -> None:
    board.do(machine.Start())
    board.flash("2")
    board.starts("B", board.subject.policy.tries - 1)
    board.do(machine.Revert("by hand"))
    assert machine.situation(board.facts()) is Situation.REBOOT_PENDING
    seen = board.subject.tool_sees()
    assert (seen.first, seen.trial) == ("A", None)
    board.starts("A", full(board))
    assert board.states() == {"A": "confirmed", "B": "bad"}
    assert board.record is not None
    assert board.record.attempt is not None
    assert (board.record.attempt.phase, board.record.attempt.reason) == (Phase.REVERTED, "by hand")


def test_revert_before_the_reboot_cancels_the_trial(board: Board) -> None:
    board.do(machine.Start())
    board.flash("2")
    board.do(machine.Revert("by hand"))
    seen = board.subject.tool_sees()
    assert (seen.first, seen.trial) == ("A", None)
    assert board.states() == {"A": "confirmed", "B": "written"}


def test_a_confirmed_slot_can_be_left_for_the_other_good_one(board: Board) -> None:
    updated(board)
    assert board.record is not None
    # Both at one counter: going back below the floor is refused, which is not what is looked at here.
    known = {slot: replace(board.record.slots["B"], bundle=f"{slot}" * 8) for slot in ("A", "B")}
    board.record = replace(board.record, slots=known)
    board.do(machine.Revert("by hand"))
    assert board.subject.tool_sees().first == "A"
    assert machine.situation(board.facts()) is Situation.REBOOT_PENDING
    board.starts("A", full(board))
    assert board.states() == {"A": "confirmed", "B": "confirmed"}


def test_a_trial_that_is_used_up_ends_on_the_good_slot_and_is_recorded(board: Board) -> None:
    board.do(machine.Start())
    board.flash("2")
    for left in reversed(range(board.subject.policy.tries)):
        board.subject.tool_boots("B", left)
    board.starts("A", full(board))
    assert board.record is not None
    assert board.record.attempt is not None
    assert board.record.attempt.phase is Phase.REVERTED
    assert board.record.attempt.reason
    assert board.states() == {"A": "confirmed", "B": "bad"}
    seen = board.subject.tool_sees()
    assert (seen.first, seen.trial) == ("A", None)


def test_confirmed_slot_that_did_not_start_stays_behind_without_boots(board: Board) -> None:
    updated(board)
    left = {"A": full(board), "B": 0}
    board.subject.store().commit(BootState(("A", "B"), left))
    board.shows(BootState(("A", "B"), left))
    assert board.subject.tool_sees().first == "A"


def test_floor_is_mirrored_in_the_store_and_stays_there(board: Board) -> None:
    updated(board)
    assert board.subject.store().read().floor == 2
    board.flash("3")
    assert board.subject.store().read().floor == 2


def test_without_the_record_a_trial_is_confirmed_and_reverted_from_the_store_alone(board: Board) -> None:
    board.do(machine.Start())
    board.flash("2")
    board.starts("B", board.subject.policy.tries - 1)
    board.forget_record()
    assert machine.situation(board.facts()) is Situation.ON_TRIAL
    board.do(machine.Confirm())
    assert board.subject.tool_sees().first == "B"


def test_what_is_not_abupdates_stays_through_it_all(board: Board) -> None:
    before = dict(board.subject.tool_sees().others)
    board.subject.tool_adds()
    added = dict(board.subject.tool_sees().others)
    assert added != before
    updated(board)
    assert dict(board.subject.tool_sees().others) == added
    board.flash("3")
    board.do(machine.Revert("by hand"))
    assert dict(board.subject.tool_sees().others) == added


def test_root_hashes_come_and_go_with_their_slots(board: Board) -> None:
    if not board.subject.store().traits.keeps_verity:
        assert board.subject.store().read().verity == {}
        good = dict.fromkeys(("A", "B"), 1)
        with pytest.raises(ConfigError) as caught:
            board.subject.store().commit(BootState(("B", "A"), good, "B", board.subject.policy, verity={"B": ROOT_HASH}))
        assert caught.value.hint
        assert board.subject.tool_sees().trial is None
        return
    board.do(machine.Start())
    board.flash("2", verity=ROOT_HASH)
    assert board.subject.store().read().verity == {"B": ROOT_HASH}
    board.starts("B", board.subject.policy.tries - 1)
    board.do(machine.Confirm())
    assert board.subject.store().read().verity == {"B": ROOT_HASH}
    board.flash("3")
    assert board.subject.store().read().verity == {"B": ROOT_HASH}
    board.starts("A", board.subject.policy.tries - 1)
    board.do(machine.Confirm())
    board.do(machine.Write("B", "4" * 8, "4", 4))
    assert board.subject.store().read().verity == {}


def test_a_damaged_store_is_said_to_be_one_and_can_be_written_anew(board: Board) -> None:
    updated(board)
    if not board.subject.spoil():
        return
    store = board.subject.store()
    with pytest.raises(StoreUnreadable) as caught:
        store.read()
    assert caught.value.exit_code == 2
    assert caught.value.hint
    wanted = BootState(("B",), {"A": 0, "B": full(board)}, policy=board.subject.policy)
    store.rebuild(wanted)
    board.shows(wanted)


@pytest.mark.parametrize("order", [(), ("A", "C")])
def test_states_that_would_leave_the_device_dark_are_refused_and_nothing_changes(board: Board, order: tuple[str, ...]) -> None:
    board.do(machine.Start())
    board.flash("2")
    before = board.subject.store().read()
    with pytest.raises(ConfigError) as caught:
        board.subject.store().commit(BootState(order, dict.fromkeys(order, 1)))
    assert caught.value.exit_code == 2
    assert board.subject.store().read() == before


def test_committing_what_is_there_already_changes_nothing(board: Board) -> None:
    updated(board)
    state = board.subject.store().read()
    board.subject.store().commit(state)
    assert board.subject.store().read() == state


def test_adapters_never_promise_what_the_cases_here_do_not_hold(subject: Subject) -> None:
    traits = subject.store().traits
    assert 1 <= subject.policy.tries <= traits.max_tries
    assert traits.counts_confirmed or subject.policy.budget == 0
    assert subject.store().location
    assert subject.store().repairs() == ()
    assert all(finding.hint or finding.grade.value == "ok" for finding in subject.store().inspect())
