"""The record cannot be written, once or for good, in the middle of a verb: what is said is what the boot store shows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import machine
from abupdate.errors import ConfigError, Failed, NothingToDo
from abupdate.model import BootState, Phase, Record, Situation, SlotState
from abupdate.operations import board as boards
from abupdate.operations import flash as flashing
from abupdate.operations import verdict
from abupdate.operations.board import Board
from tests.sim.device import V2, V3, Device, new_device, reboot


class Failing:
    """`StateStore` whose saves fail where `fails(number, record)` says so; saves count from 1."""

    def __init__(self, inner: object, fails: Callable[[int, Record], bool]) -> None:
        self._inner = inner
        self._fails = fails
        self.saves = 0
        self.failed = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def save(self, record: Record) -> None:
        self.saves += 1
        if self._fails(self.saves, record):
            self.failed += 1
            raise Failed("/data/abupdate: Input/output error")
        self._inner.save(record)  # type: ignore[attr-defined]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    made = new_device(tmp_path)
    made.service()
    return made


def silent(phase: str, done: int, total: int) -> None:
    return


def failing(device: Device, fails: Callable[[int, Record], bool], *, tolerant: bool = False) -> tuple[Board, Failing]:
    """The device's board over a state store that fails."""
    board = device.board(tolerant=tolerant)
    state = Failing(board.state, fails)
    return replace(board, state=state), state  # type: ignore[arg-type]


def is_armed(number: int, record: Record) -> bool:
    return record.attempt is not None and record.attempt.phase is Phase.ARMED


def fallen_back(device: Device) -> Device:
    """V2 was flashed and hung in all its tries."""
    device.flash(V2)
    for _ in range(4):
        device = reboot(device, reset="watchdog")
    return device


# ---- the last write of flash and activate


@pytest.mark.parametrize("verb", ["flash", "activate"])
def test_an_armed_slot_is_reported_even_where_the_record_cannot_say_so(device: Device, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    """Exit 1 would be untrue: the boot store is armed and alone decides, and `flash --reboot` would not reboot."""
    if verb == "activate":
        device.flash(V2, activate=False)
    board, state = failing(device, is_armed)
    with caplog.at_level(logging.WARNING, logger="abupdate"):
        if verb == "flash":
            done = flashing.flash(board, device.slots, lambda: device.opened(V2), silent)
        else:
            done = flashing.activate(board, device.slots, lambda head: V2.manifest, None, silent)
    assert state.failed
    assert done.armed
    assert "slot B is armed" in caplog.text
    assert machine.situation(device.facts()) is Situation.ARMED
    device = reboot(device)
    device.service()
    record = device.facts().record
    assert record is not None
    assert record.attempt is not None
    assert record.attempt.phase is Phase.ARMED, "the service has made up for it"
    device.confirm()
    assert machine.slot_states(device.facts())["B"] is SlotState.CONFIRMED


def test_a_record_that_fails_before_the_store_is_armed_is_a_failure(device: Device) -> None:
    board, _ = failing(device, lambda number, record: record.attempt is not None and record.attempt.phase is Phase.WRITTEN)
    with pytest.raises(Failed, match="Input/output"):
        flashing.flash(board, device.slots, lambda: device.opened(V2), silent)
    assert machine.situation(device.facts()) is Situation.STEADY
    device.flash(V2)
    assert machine.situation(device.facts()) is Situation.ARMED


def test_a_failure_after_the_store_is_armed_says_that_it_is(device: Device) -> None:
    """The commit is on the medium, only the look at it fails: exit 1, and the hint tells what boots next."""
    store = device.board().store

    class Blind:
        """Loses its sight for one read, once a trial is in the store."""

        blind = 1

        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def read(self) -> BootState:
            state = store.read()
            if state.trial is not None and self.blind:
                self.blind -= 1
                raise Failed("cannot read the U-Boot environment: Input/output error")
            return state

    with pytest.raises(Failed) as raised:
        flashing.flash(replace(device.board(), store=Blind()), device.slots, lambda: device.opened(V2), silent)  # type: ignore[arg-type]
    assert "slot B is armed all the same" in raised.value.hint
    assert machine.situation(device.facts()) is Situation.ARMED
    device.revert()
    assert machine.situation(device.facts()) is Situation.STEADY


def test_a_store_that_goes_blind_once_a_trial_is_in_it_is_not_said_to_be_unchanged(device: Device) -> None:
    """Exit 2 would say so; whether the slot is armed shows when the medium can be read again."""
    store = device.board().store

    class Blind:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def read(self) -> BootState:
            state = store.read()
            if state.trial is not None:
                raise ConfigError("cannot read the U-Boot environment: Input/output error")
            return state

    with pytest.raises(Failed) as raised:
        flashing.flash(replace(device.board(), store=Blind()), device.slots, lambda: device.opened(V2), silent)  # type: ignore[arg-type]
    assert "slot B may be armed" in raised.value.hint
    assert machine.situation(device.facts()) is Situation.ARMED


# ---- the reason of a fallback


@pytest.mark.parametrize("failures", [1, 2])
def test_a_reason_outlives_an_io_error_or_two(device: Device, failures: int) -> None:
    device = fallen_back(device)
    board, state = failing(device, lambda number, record: number <= failures, tolerant=True)
    facts = boards.settle(board)
    assert state.failed == failures
    assert facts.boot is not None
    assert (facts.boot.order, facts.boot.trial) == (("A",), None)
    assert facts.record is not None
    assert facts.record.attempt is not None
    assert (facts.record.attempt.phase, facts.record.attempt.reason) == (Phase.REVERTED, "watchdog, tries exhausted")


def test_a_revert_that_cannot_be_recorded_at_first_keeps_its_reason(device: Device) -> None:
    device.flash(V2)
    device = reboot(device)
    device.service()
    board, state = failing(device, lambda number, record: number == 1, tolerant=True)
    verdict.revert(board, "health critical: disk")
    assert state.failed == 1
    record = device.facts().record
    assert record is not None
    assert record.attempt is not None
    assert record.attempt.reason == "health critical: disk"


def test_a_record_that_can_never_be_written_is_said_once_a_step(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    device = fallen_back(device)
    board, _ = failing(device, lambda number, record: True, tolerant=True)
    with caplog.at_level(logging.WARNING, logger="abupdate"):
        facts = boards.settle(board)
    assert facts.boot is not None
    assert facts.boot.trial is None, "the boot store does not wait for the record"
    fell_back = [line for line in caplog.messages if "fell back" in line]
    assert len(fell_back) == 1
    assert "watchdog, tries exhausted" in fell_back[0]


# ---- a flash that was cut between keeping the new manifest and saying so


def test_activate_after_a_flash_that_was_cut_before_its_first_record(device: Device) -> None:
    """Slot B holds V2, whole; its manifest has given way to V3's. Nothing was tampered with: there is nothing to activate."""
    device.flash(V2, activate=False)
    board, _ = failing(device, lambda number, record: record.attempt is not None and record.attempt.phase is Phase.WRITING)
    with pytest.raises(Failed):
        flashing.flash(board, device.slots, lambda: device.opened(V3), silent)
    with pytest.raises(NothingToDo, match="not of the bundle on slot B"):
        device.activate()
    assert machine.situation(device.facts()) is Situation.STEADY
    device.flash(V3)
    assert machine.situation(device.facts()) is Situation.ARMED
