"""The service over a boot store whose every call takes as long as it may (a board's own programs): its watchdog never waits too long."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from abupdate.model import Attempt, BootState, BootTraits, Decision, Phase, Record, SlotRecord, SlotState, TrialPolicy, Verdict
from abupdate.operations.board import Board
from abupdate.operations.service import Hardware, Numbers, Service, Stop
from abupdate.ports import Bootloader

TIMEOUT_S = 30
POLICY = TrialPolicy(3, 10, 120)
A, B = SlotRecord(SlotState.CONFIRMED, "1.0", "aa", 1), SlotRecord(SlotState.TRIAL, "2.0", "bb", 2)
KNOWN = Record(floor=1, slots={"A": A, "B": B}, attempt=Attempt("B", Phase.ARMED, "before", "bb", "2.0", 2, previous="A"))


class Device(Bootloader):
    """Store, clock, record, watchdog, health and supervisor in one."""

    traits = BootTraits(3, counts_confirmed=True, falls_through=True, armed_in_store=True)
    location, irreplaceable = "custom:/boot", ""
    boot_id, settled, stops_on_close = "now", False, False
    watchdog_s = None

    def __init__(self, state: BootState, booted: str, verdict: Verdict) -> None:
        self.state = state
        self.slot = booted
        self.verdict = verdict
        self.record = KNOWN
        self.now_s = self.pet_s = 100.0
        self.longest_s = 0.0

    def _slow(self) -> None:
        # As bootwiring grants a program.
        self.now_s += TIMEOUT_S / 6 - 0.1

    def read(self) -> BootState:
        self._slow()
        return self.state

    def commit(self, state: BootState) -> None:
        self._slow()
        self.state = replace(state, policy=state.policy or self.state.policy)

    def rebuild(self, state: BootState) -> None:
        self.commit(state)

    def check_room(self, state: BootState) -> None:
        return

    def places(self) -> tuple[()]:
        return ()

    # -- record and boot

    def lock(self, wait_s: float = 0.0) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def load(self) -> tuple[Record, int]:
        return self.record, self.record.floor

    def save(self, record: Record) -> None:
        self.record = record

    def load_head(self, slot: str) -> None:
        return None

    def booted(self) -> str:
        return self.slot

    def reset_reason(self) -> str:
        return ""

    def unsaved(self) -> bool:
        return False

    def mark_settled(self) -> None:
        return

    def boottime_s(self) -> float:
        return self.now_s

    # -- watchdog, health, supervisor

    def set_timeout(self, asked_s: int) -> int:
        return asked_s

    def pet(self) -> None:
        self.longest_s = max(self.longest_s, self.now_s - self.pet_s)
        self.pet_s = self.now_s

    def time_left_s(self) -> None:
        return

    def disarm(self) -> str:
        return ""

    def hand_over(self) -> None:
        self.pet()

    def tick(self, now_s: float) -> Decision:
        return Decision(self.verdict, "said so")

    def stop(self) -> None:
        return

    def ready(self, status: str = "") -> None:
        return

    def status(self, status: str) -> None:
        return

    def stopping(self, status: str = "") -> None:
        return

    def reboot(self) -> None:
        raise Stop


def served(device: Device) -> Device:
    board = Board(("A", "B"), POLICY, device, device, device, lambda head: None, tolerant=True)  # type: ignore[arg-type]
    hardware = Hardware(lambda: device, lambda: True, True, False, False, device.reboot, device.reboot, lambda: False)
    Service(board, lambda: device, hardware, device, Numbers(1e9, 120, TIMEOUT_S), trial_only=True).run()  # type: ignore[arg-type]
    return device


@pytest.mark.parametrize(
    ("state", "booted", "verdict", "first"),
    [
        (BootState(("A",), {"A": 9, "B": 0}, policy=POLICY, floor=1), "A", Verdict.WAIT, "A"),
        (BootState(("B", "A"), {"A": 9, "B": 0}, "B", POLICY, 1), "A", Verdict.WAIT, "A"),
        (BootState(("B", "A"), {"A": 9, "B": 2}, "B", POLICY, 1), "B", Verdict.CONFIRM, "B"),
        (BootState(("B", "A"), {"A": 9, "B": 2}, "B", POLICY, 1), "B", Verdict.REVERT, "A"),
    ],
    ids=["refill", "fallback", "confirm", "revert"],
)
def test_a_slow_store_keeps_nobody_from_petting(state: BootState, booted: str, verdict: Verdict, first: str) -> None:
    device = served(Device(state, booted, verdict))
    assert (device.state.order[0], device.state.trial) == (first, None)
    # A third of it may go to the lock of state_dir besides.
    assert device.longest_s < TIMEOUT_S / 2
