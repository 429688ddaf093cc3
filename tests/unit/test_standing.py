"""The lease in the record, from whoever armed the slot to whatever became of it, and how the fleet sees the device meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import machine
from abupdate.model import Attempt, BootState, Facts, Phase, Record, SlotRecord, SlotState, TrialPolicy
from abupdate.operations.standing import UNKNOWN, Standing, describe, standing
from abupdate.operations.status import status
from tests.sim.blocks import Block
from tests.sim.device import V2, V3, Device, durable, new_device, power_up, reboot

LEASE = 42


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """V2 is written to B, the running slot A is the factory's."""
    made = new_device(tmp_path)
    made.service()
    made.flash(V2, activate=False)
    return made


def seen(device: Device) -> Standing:
    return standing(device.board())


def bundle(device: Device, slot: str) -> bytes:
    record, _ = device.board().state.load()
    assert record is not None
    return bytes.fromhex(record.slots[slot].bundle)


def updated(device: Device) -> Device:
    """V2 runs confirmed on B, brought up under the lease."""
    device.activate(LEASE)
    device = reboot(device)
    device.service()
    device.confirm()
    return device


def equal_counters(device: Device) -> Device:
    """Both slots hold the same security counter, so that going back is allowed."""
    state = device.board().state
    record, _ = state.load()
    assert record is not None
    state.save(replace(record, slots={**record.slots, "A": replace(record.slots["B"], version="1.0", bundle=bytes(range(32)).hex())}))
    return device


def test_what_is_written_and_not_armed_is_under_no_lease(device: Device) -> None:
    now = seen(device)
    assert (now.booted, now.other, now.written) == (UNKNOWN, UNKNOWN, bundle(device, "B"))
    assert (now.trial, now.armed, now.lease, now.phase) == (False, False, None, Phase.WRITTEN)


def test_the_lease_goes_from_the_activation_over_the_trial_to_the_confirmation(device: Device) -> None:
    device.activate(LEASE)
    wanted = bundle(device, "B")
    assert (seen(device).armed, seen(device).lease, seen(device).phase, seen(device).target) == (True, LEASE, Phase.ARMED, wanted)
    assert status(device.board(), "acme", {"A": {}, "B": {}}, 300)["attempt"]["lease"] == LEASE  # type: ignore[index]
    device = reboot(device)
    device.service()
    assert (seen(device).trial, seen(device).armed, seen(device).booted, seen(device).lease) == (True, False, wanted, LEASE)
    device.confirm()
    assert (seen(device).trial, seen(device).lease, seen(device).phase, seen(device).booted) == (False, LEASE, Phase.CONFIRMED, wanted)


@pytest.mark.parametrize("settled", [False, True])
def test_a_trial_that_fell_back_says_why_under_its_lease_before_the_service_has_noted_it_too(device: Device, *, settled: bool) -> None:
    wanted = bundle(device, "B")
    device.activate(LEASE)
    for _ in range(4):
        device = reboot(device, reset="watchdog")
    if settled:
        device.service()
    now = seen(device)
    assert (now.booted, now.trial, now.armed) == (UNKNOWN, False, False)
    assert (now.lease, now.phase, now.reason, now.target) == (LEASE, Phase.REVERTED, "watchdog, tries exhausted", wanted)


def test_a_trial_that_is_reverted_by_hand_runs_on_trial_until_the_reboot(device: Device) -> None:
    device.activate(LEASE)
    device = reboot(device)
    device.service()
    device.revert()
    assert (seen(device).trial, seen(device).armed, seen(device).lease, seen(device).phase) == (True, False, LEASE, Phase.REVERTED)
    device = reboot(device)
    device.service()
    assert (seen(device).trial, seen(device).lease, seen(device).phase) == (False, LEASE, Phase.REVERTED)
    assert seen(device).reason == "ordered by the operator"


def test_an_armed_trial_that_is_cancelled_keeps_its_lease_and_what_was_written(device: Device) -> None:
    device.activate(LEASE)
    device.revert()
    now = seen(device)
    assert (now.armed, now.lease, now.phase, now.written) == (False, LEASE, Phase.CANCELLED, bundle(device, "B"))


def test_an_activation_by_hand_takes_over_no_lease_from_one_that_was_cancelled(device: Device) -> None:
    device.activate(LEASE)
    device.revert()
    device.activate()
    assert (seen(device).armed, seen(device).lease) == (True, None)


def test_going_back_to_a_good_slot_is_armed_until_the_reboot_and_confirmed_after_it(device: Device) -> None:
    device = equal_counters(updated(device))
    old, new = bundle(device, "A"), bundle(device, "B")
    assert (seen(device).booted, seen(device).other) == (new, old)
    device.revert(77)
    now = seen(device)
    assert (now.armed, now.trial, now.lease, now.phase, now.target) == (True, False, 77, Phase.ARMED, old)
    device = reboot(device)
    device.service()
    now = seen(device)
    assert (now.booted, now.other, now.armed, now.lease, now.phase, now.target) == (old, new, False, 77, Phase.CONFIRMED, old)


def test_a_way_back_that_does_not_start_is_reverted_under_its_lease(device: Device) -> None:
    device = equal_counters(updated(device))
    old = bundle(device, "A")
    device.revert(77)
    part = device.machine.part("A.boot")
    assert isinstance(part, Block)
    device.machine.put("A.boot", Block.of(part.nature, b"mold" + part.content[4:]))
    device = power_up(durable(device.machine.parts), device.store, device.folder, frozenset("B"))
    device.service()
    now = seen(device)
    assert (now.trial, now.armed, now.lease, now.phase, now.target) == (False, False, 77, Phase.REVERTED, old)
    assert "did not start" in now.reason


def test_a_confirmed_slot_that_fails_before_anybody_has_told_the_fleet_keeps_the_lease(device: Device) -> None:
    device = updated(device)
    device = power_up(durable(device.machine.parts), device.store, device.folder, frozenset("A"))
    device.service()
    assert (seen(device).lease, seen(device).phase) == (LEASE, Phase.REVERTED)


def test_the_next_update_by_hand_is_no_longer_under_the_lease(device: Device) -> None:
    device = updated(device)
    device.flash(V3)
    assert (seen(device).lease, seen(device).armed) == (None, True)


def test_without_a_record_the_stored_heads_say_what_runs_and_no_lease_is_known(device: Device) -> None:
    device = updated(device)
    wanted = bundle(device, "B")
    board = device.board()
    board.state.load = lambda: (None, 0)  # type: ignore[method-assign]
    assert (standing(board).booted, standing(board).lease, standing(board).phase) == (wanted, None, None)


def test_a_record_with_an_odd_bundle_id_is_no_reason_to_fail() -> None:
    record = Record(slots={"A": SlotRecord(SlotState.CONFIRMED, "1", "zz"), "B": SlotRecord(SlotState.CONFIRMED, "1", "aa")})
    facts = Facts(("A", "B"), "A", "now", BootState(("A", "B"), {"A": 1, "B": 1}), "here", record, TrialPolicy())
    assert (describe(facts).booted, describe(facts).other) == (UNKNOWN, UNKNOWN)


def test_a_switch_from_a_slot_that_was_never_good_is_a_failed_trial() -> None:
    attempt = Attempt("B", Phase.REVERTED, "before", "bb" * 32, "2", 2, previous="A", lease=5, reason="health")
    record = Record(slots={"B": SlotRecord(SlotState.BAD, "2", "bb" * 32)}, attempt=attempt)
    facts = Facts(("A", "B"), "A", "now", BootState(("A",), {"A": 1, "B": 0}), "here", record, TrialPolicy())
    assert machine.settle(facts) == ()
    assert (describe(facts).phase, describe(facts).reason, describe(facts).target) == (Phase.REVERTED, "health", b"\xbb" * 32)
