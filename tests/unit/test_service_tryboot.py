"""The service where arming does not outlive a power cut: it asks for the try again, and notes on the way down that one begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from abupdate.model import Attempt, BootState, CommitBoot, Phase, Record, SaveRecord, SlotRecord, SlotState, TrialPolicy
from abupdate.operations.board import observe, perform
from tests.unit.test_service import Bench, bench
from tests.unit.test_tryboot_store import Pi

__all__ = ["bench"]

POLICY = TrialPolicy(1, 0, 120)
ARMED = BootState(("B", "A"), {"A": 1, "B": 1}, "B", POLICY)


@pytest.fixture
def pi(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pi:
    """Slot A runs, B was armed in an earlier boot, and the parameter is lost."""
    (tmp_path / "pi").mkdir()
    pi = Pi(tmp_path / "pi")
    sound = bench.board
    monkeypatch.setattr(bench, "board", lambda: replace(sound(), store=pi.store, policy=POLICY))
    attempt = Attempt("B", Phase.ARMED, "an earlier boot", "bb" * 32, "2.0", 2, previous="A")
    slots = {"A": SlotRecord(SlotState.CONFIRMED, "1.0"), "B": SlotRecord(SlotState.TRIAL, "2.0", "bb" * 32, 2)}
    perform(bench.board(), (CommitBoot(ARMED, ""), SaveRecord(Record(slots=slots, attempt=attempt), "")))
    pi.parameter.unlink()
    return pi


def phase(bench: Bench) -> tuple[Phase, str]:
    """Of the attempt, and its reason."""
    record = observe(bench.board()).record
    assert record is not None
    assert record.attempt is not None
    return record.attempt.phase, record.attempt.reason


def test_after_a_power_cut_the_trial_still_waits_and_is_asked_for_again(bench: Bench, pi: Pi) -> None:
    bench.terminate_at(2)
    assert bench.serve() == 0
    assert pi.asked
    assert pi.store.read() == ARMED
    assert phase(bench) == (Phase.ARMED, "")


def test_on_the_way_down_to_a_reboot_the_try_is_noted_and_what_fails_early_is_reverted(bench: Bench, pi: Pi) -> None:
    bench.terminate_at(2)
    assert bench.serve(rebooting=True) == 0
    assert pi.store.read().left == {"A": 1, "B": 0}
    # The new slot panics before its service starts; the firmware has dropped its flag.
    pi.parameter.unlink()
    bench.boot("A")
    bench.terminate_at(2)
    assert bench.serve() == 0
    assert phase(bench) == (Phase.REVERTED, "tries exhausted")
    assert (pi.store.read().order, pi.store.read().trial) == (("A",), None)
    assert not pi.asked


def test_stopped_or_powered_off_nothing_is_noted(bench: Bench, pi: Pi) -> None:
    bench.terminate_at(2)
    assert bench.serve(going_down=True) == 0
    assert pi.store.read() == ARMED


def test_a_note_that_cannot_be_written_does_not_hold_the_shutdown_up(bench: Bench, pi: Pi, caplog: pytest.LogCaptureFixture) -> None:
    bench.terminate_at(2)
    ends = bench.on_tick

    def spoiled(tick: int) -> None:
        if tick == 1:
            pi.path.unlink()
        ends(tick)

    bench.on_tick = spoiled
    assert bench.serve(rebooting=True) == 0
    assert "autoboot.txt" in caplog.text


def test_the_firmwares_word_that_the_try_came_to_nothing_reverts_it(bench: Bench, pi: Pi) -> None:
    pi.says(2, tryboot=1)
    bench.terminate_at(2)
    assert bench.serve() == 0
    assert phase(bench) == (Phase.REVERTED, "load failed")
    assert not pi.asked
