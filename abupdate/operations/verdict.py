"""`confirm` and `revert`: end a trial, or go back to the other good slot."""

from __future__ import annotations

from dataclasses import dataclass, replace

from abupdate import machine
from abupdate.errors import Failed
from abupdate.model import Facts, Situation, SlotState
from abupdate.operations.board import LOCK_WAIT_S, Board, carry_out, settle


@dataclass(frozen=True, slots=True)
class Verdict:
    """What boots next. reboot_needed: another slot than the running one."""

    slot: str
    version: str
    reboot_needed: bool


def confirm(board: Board, wait_s: float = LOCK_WAIT_S) -> Verdict:
    """Keep the slot that runs on trial. Raises NothingToDo, Refused (another slot is on trial), Failed where the store does not show it."""
    with board.state.lock(wait_s):
        facts = carry_out(board, machine.Confirm())
    if machine.slot_states(facts)[facts.booted] is not SlotState.CONFIRMED or facts.boot is None or facts.boot.order[:1] != (facts.booted,):
        raise Failed(f"the boot store does not show slot {facts.booted} as confirmed", "see `abupdate doctor`")
    return _verdict(facts)


def revert(board: Board, reason: str, wait_s: float = LOCK_WAIT_S, *, on_trial_only: bool = False, lease: int | None = None) -> Verdict:
    """Go back: cancel an armed trial, end a running one, or make the other good slot first. Raises NothingToDo, Refused (floor).

    lease: the fleet's update slot, where a confirmed slot is gone back to under one.
    """
    with board.state.lock(wait_s):
        facts = settle(board)
        if machine.situation(facts) is Situation.STEADY:
            # Without the record, and before the service has settled this boot, a switch between two good slots looks like a slot that
            # failed. No trial is at stake here, so it can wait for the record.
            board = replace(board, tolerant=board.tolerant and facts.settled, all_heads=True)
        return _verdict(carry_out(board, machine.Revert(reason, on_trial_only, lease)))


def _verdict(facts: Facts) -> Verdict:
    assert facts.boot is not None
    first = facts.boot.order[0]
    known = machine.base_record(facts).slots.get(first)
    return Verdict(first, known.version if known else "", first != facts.booted)
