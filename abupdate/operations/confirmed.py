"""Waits until the slot that runs is confirmed: what abupdate-confirmed.service does, for whoever blesses a boot when it is complete."""

from __future__ import annotations

from collections.abc import Callable

from abupdate import machine
from abupdate.errors import AbupdateError
from abupdate.log import log
from abupdate.model import SlotState
from abupdate.operations.board import Board, observe

POLL_S = 2.0


def wait_confirmed(board: Board, sleep: Callable[[float], None]) -> int:
    """0 as soon as the boot store shows the running slot confirmed (at once where nothing is on trial), 1 when it never will.

    The trial's window is the service's to close, so there is no limit here. A store that cannot be read is waited for: the service
    rebuilds it, or the trial ends in a reboot.
    """
    told = ""
    while True:
        try:
            facts = observe(board, readable=False, heads=False)
            state = machine.slot_states(facts)[facts.booted]
        except AbupdateError as error:
            said = error.line
        else:
            if state is SlotState.CONFIRMED:
                return 0
            if state is not SlotState.TRIAL:
                log.warning("slot %s is %s: this boot is never confirmed", facts.booted, state.value)
                return 1
            said = f"slot {facts.booted} is on trial"
        if said != told:
            log.info("%s: waiting", said)
            told = said
        sleep(POLL_S)
