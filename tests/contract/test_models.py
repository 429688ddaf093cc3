"""The same life of a device over every boot store of the crash simulator, started by the model of its boot side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import machine
from abupdate.model import Phase, Situation, SlotState
from tests.sim.bootplace import BootPlace
from tests.sim.device import V2, V3, Device, new_device, power_up, reboot
from tests.sim.places import PLACES


@pytest.fixture(params=PLACES, ids=lambda place: place.name)
def place(request: pytest.FixtureRequest) -> BootPlace:
    found: BootPlace = request.param
    return found


@pytest.fixture
def device(place: BootPlace, tmp_path: Path) -> Device:
    made = new_device(tmp_path, place)
    made.service()
    return made


def states(device: Device) -> dict[str, SlotState]:
    return dict(machine.slot_states(device.facts()))


def ended(device: Device) -> tuple[Phase, str]:
    record = device.facts().record
    assert record is not None
    assert record.attempt is not None
    return record.attempt.phase, record.attempt.reason


def on_trial(device: Device) -> Device:
    device.flash(V2)
    assert machine.situation(device.facts()) is Situation.ARMED
    device = reboot(device)
    assert device.boot.slot == "B"
    device.service()
    assert machine.situation(device.facts()) is Situation.ON_TRIAL
    return device


def updated(device: Device) -> Device:
    device = on_trial(device)
    device.confirm()
    return device


def test_update_is_tried_and_confirmed_and_stays(device: Device) -> None:
    device = updated(device)
    assert states(device) == {"A": SlotState.CONFIRMED, "B": SlotState.CONFIRMED}
    for _ in range(device.store.policy.tries + 2):
        device = reboot(device)
        assert device.boot.slot == "B"
        device.service()
        assert machine.situation(device.facts()) is Situation.STEADY


def test_next_update_uses_the_other_slot(device: Device) -> None:
    device = updated(device)
    device.flash(V3)
    device = reboot(device)
    assert device.boot.slot == "A"
    device.service()
    device.confirm()
    device = reboot(device)
    device.service()
    assert (device.boot.slot, states(device)) == ("A", {"A": SlotState.CONFIRMED, "B": SlotState.CONFIRMED})


def test_revert_on_trial(device: Device) -> None:
    device = on_trial(device)
    device.revert()
    device = reboot(device)
    device.service()
    assert device.boot.slot == "A"
    assert ended(device) == (Phase.REVERTED, "ordered by the operator")
    assert states(device) == {"A": SlotState.CONFIRMED, "B": SlotState.BAD}


def test_armed_trial_is_cancelled(device: Device) -> None:
    device.flash(V2)
    device.revert()
    device = reboot(device)
    device.service()
    assert device.boot.slot == "A"
    assert ended(device)[0] is Phase.CANCELLED


@pytest.mark.parametrize("reset", ["watchdog", "panic"])
def test_trial_that_hangs_or_panics_ends_on_the_good_slot(device: Device, reset: str) -> None:
    device.flash(V2)
    device = reboot(device)
    for _ in range(device.store.policy.tries):
        assert device.boot.slot == "B"
        device = reboot(device, reset=reset)
    assert device.boot.slot == "A"
    device.service()
    phase, reason = ended(device)
    assert phase is Phase.REVERTED
    assert reason.startswith(reset)
    assert states(device) == {"A": SlotState.CONFIRMED, "B": SlotState.BAD}
    device = reboot(device)
    assert device.boot.slot == "A"


def test_kernel_that_does_not_load_never_ends_dark(device: Device) -> None:
    device.flash(V2)
    parts = device.machine.parts
    loads = frozenset("A")
    warmed = reboot(replace(device, loads=loads)) if device.store.traits.falls_through else None
    if warmed is not None:
        assert warmed.boot.slot == "A"
        warmed.service()
        assert ended(warmed)[0] is Phase.REVERTED
        return
    # Each start of a kernel that is not there costs a try, and then the good slot comes.
    store, seen = device.store, []
    part = store.warm(parts[0], parts[0].after(iter([count - 1 for count in parts[0].choices])))
    for _ in range(store.policy.tries + 1):
        started = store.rom.power_up(part, loads)
        part = started.store
        seen.append(started.slot if started.slot in loads else None)
    assert seen[-1] == "A"


def test_flash_again_after_a_fallback(device: Device) -> None:
    device.flash(V2)
    for _ in range(device.store.policy.tries + 1):
        device = reboot(device, reset="watchdog")
    assert device.boot.slot == "A"
    device.service()
    device = on_trial(device)
    device.confirm()
    assert reboot(device).boot.slot == "B"


def test_power_cut_at_rest_changes_nothing(device: Device) -> None:
    device = updated(device)
    kept = tuple(part.after(iter([0 for _ in part.choices])) for part in device.machine.parts)
    again = power_up(kept, device.store, device.folder)
    again.service()
    assert (again.boot.slot, states(again)) == ("B", {"A": SlotState.CONFIRMED, "B": SlotState.CONFIRMED})
