"""Going down for the fleet: what is armed under which lease, what keeps the device up, and what a cut in the middle leaves to be done."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from abupdate.errors import Deferred, Failed, NothingToDo, Refused
from abupdate.model import Phase
from abupdate.operations.leave import Ways, back, disarm, leave
from abupdate.operations.standing import standing
from tests.sim.device import V2, V3, Device, new_device, reboot

LEASE = 42


@dataclass
class Record:
    """What was done, in order."""

    device: Device
    problem: str = ""
    fails: bool = False
    done: list[str] = field(default_factory=list)

    @property
    def ways(self) -> Ways:
        return Ways(self.drain, self.activate, lambda: self.done.append("reboot"))

    def drain(self) -> str:
        self.done.append("drain")
        return self.problem

    def activate(self, lease: int | None) -> None:
        self.done.append("activate")
        if self.fails:
            raise Failed("the medium is failing")
        self.device.activate(lease)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """V2 is written to B."""
    made = new_device(tmp_path)
    made.service()
    made.flash(V2, activate=False)
    return made


def updated(device: Device) -> Device:
    """V2 confirmed on B, V1 on A, with one security counter, so that going back is allowed."""
    device.activate(LEASE)
    device = reboot(device)
    device.service()
    device.confirm()
    state = device.board().state
    record, _ = state.load()
    assert record is not None
    state.save(replace(record, slots={**record.slots, "A": replace(record.slots["B"], version="1.0", bundle=bytes(range(32)).hex())}))
    return device


def written(device: Device) -> bytes:
    return standing(device.board()).written


def test_the_written_bundle_is_drained_for_armed_under_the_lease_and_rebooted_into(device: Device) -> None:
    wanted, record = written(device), Record(device)
    leave(device.board(), wanted, LEASE, record.ways)
    assert record.done == ["drain", "activate", "reboot"]
    now = standing(device.board())
    assert (now.armed, now.lease, now.target) == (True, LEASE, wanted)


def test_a_bundle_to_go_back_to_is_reverted_to_under_the_lease(device: Device) -> None:
    device = updated(device)
    wanted, record = standing(device.board()).other, Record(device)
    leave(device.board(), wanted, 77, record.ways)
    assert record.done == ["drain", "reboot"]
    now = standing(device.board())
    assert (now.armed, now.lease, now.target) == (True, 77, wanted)


def test_a_drain_that_says_no_keeps_the_device_up_and_nothing_is_armed(device: Device) -> None:
    record = Record(device, problem="10-pumps: a batch runs")
    with pytest.raises(Deferred, match="drain: 10-pumps: a batch runs"):
        leave(device.board(), written(device), LEASE, record.ways)
    assert record.done == ["drain"]
    assert (standing(device.board()).armed, standing(device.board()).lease) == (False, None)


def test_a_bundle_that_is_on_neither_slot_drains_nothing(device: Device) -> None:
    record = Record(device)
    with pytest.raises(Deferred, match="on neither slot"):
        leave(device.board(), b"\x01" * 32, LEASE, record.ways)
    assert record.done == []


@pytest.mark.parametrize("running", [False, True])
def test_another_update_that_is_under_way_is_not_disturbed(device: Device, *, running: bool) -> None:
    wanted = written(device)
    device.activate()
    if running:
        device = reboot(device)
        device.service()
    record = Record(device)
    with pytest.raises(Deferred, match="another update"):
        leave(device.board(), wanted, LEASE, record.ways)
    assert record.done == []


def test_one_that_was_cut_off_between_arming_and_the_reboot_only_reboots(device: Device) -> None:
    wanted, record = written(device), Record(device)
    device.activate(LEASE)
    leave(device.board(), wanted, LEASE, record.ways)
    assert record.done == ["reboot"]


def test_an_activation_that_fails_reboots_nothing(device: Device) -> None:
    record = Record(device, fails=True)
    with pytest.raises(Failed):
        leave(device.board(), written(device), LEASE, record.ways)
    assert record.done == ["drain", "activate"]


def test_only_what_is_armed_under_that_lease_is_taken_back(device: Device) -> None:
    with pytest.raises(NothingToDo):
        disarm(device.board(), LEASE)
    device.activate(LEASE)
    with pytest.raises(NothingToDo):
        disarm(device.board(), LEASE + 1)
    assert standing(device.board()).armed
    disarm(device.board(), LEASE)
    now = standing(device.board())
    assert (now.armed, now.lease, now.phase) == (False, LEASE, Phase.CANCELLED)


def test_an_order_to_go_back_at_once_goes_past_a_drain_that_says_no(device: Device) -> None:
    device = updated(device)
    wanted, record = standing(device.board()).other, Record(device, problem="no")
    back(device.board(), wanted, record.ways)
    assert record.done == ["drain", "reboot"]
    now = standing(device.board())
    assert (now.armed, now.lease, now.target) == (True, None, wanted)


def test_an_order_to_go_back_takes_what_is_written_and_cancels_what_is_armed(device: Device) -> None:
    device = updated(device)
    device.flash(V3, activate=False)
    wanted, record = written(device), Record(device)
    back(device.board(), wanted, record.ways)
    assert record.done == ["drain", "activate", "reboot"]
    assert standing(device.board()).target == wanted
    again = Record(device)
    back(device.board(), wanted, again.ways)
    assert again.done == ["reboot"], "it is armed already"
    runs = standing(device.board()).booted
    with pytest.raises(NothingToDo, match="runs the bundle"):
        back(device.board(), runs, Record(device).ways)
    assert not standing(device.board()).armed, "what was armed is not what was ordered"


def test_an_order_to_go_back_to_what_is_not_here_or_below_the_floor_changes_nothing(device: Device) -> None:
    device.activate(LEASE)
    device = reboot(device)
    device.service()
    device.confirm()
    record = Record(device)
    with pytest.raises(Deferred, match="on neither slot"):
        back(device.board(), b"\x01" * 32, record.ways)
    state = device.board().state
    known, _ = state.load()
    assert known is not None
    state.save(replace(known, slots={**known.slots, "A": replace(known.slots["B"], counter=0, bundle="11" * 32)}))
    with pytest.raises(Refused, match="below the floor"):
        back(device.board(), b"\x11" * 32, record.ways)
    assert record.done == ["drain"]
