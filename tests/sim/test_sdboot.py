"""What is systemd-boot's alone in the simulator: trials whose entry a cut renaming has destroyed, and that wrong orders are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import machine
from abupdate.bootloaders import systemdboot
from abupdate.bootloaders.systemdboot import EntryFile, SystemdBootStore
from abupdate.formats.bootentry import Entry, encode
from abupdate.model import BootState, Phase, SlotState
from abupdate.operations.board import observe, perform
from tests.sim import journal, judge
from tests.sim.device import V2, Device, durable, new_device, power_up, reboot
from tests.sim.explore import Limits, explore
from tests.sim.fat import Fat, FatDisk
from tests.sim.judge import Violation
from tests.sim.scenarios import scenarios
from tests.sim.sdboot import CMDLINE, SDBOOT, SdBootPlace, SdBootRom, torn
from tests.sim.sdboot_model import boot

FEW = Limits(depth=1, most=8, samples=0)


@pytest.fixture
def armed(tmp_path: Path) -> Device:
    """V2 waits on B for a reboot."""
    device = new_device(tmp_path, SDBOOT)
    device.service()
    device.flash(V2)
    return device


@pytest.mark.parametrize("way", ["the new name, empty", "neither name"])
@pytest.mark.parametrize("boots", [0, 1, 2])
def test_a_trial_whose_entry_vanished_in_the_renaming_ends_on_the_good_slot(armed: Device, way: str, boots: int) -> None:
    device = armed
    for _ in range(boots):
        device = reboot(device)
        assert device.boot.slot == "B"
    parts = durable(device.machine.parts)
    device = power_up((torn(parts[0])[way], *parts[1:]), SDBOOT, device.folder)
    assert device.boot.slot == "A"
    device.service()
    assert reverted(device)
    device.flash(V2)
    device = reboot(device)
    device.service()
    device.confirm()
    assert reboot(device).boot.slot == "B"


@pytest.mark.parametrize("way", ["both names", "both, the new one empty"])
def test_a_trial_that_is_not_counted_any_more_is_ended_by_the_services_own_count(armed: Device, way: str) -> None:
    parts = durable(armed.machine.parts)
    device = power_up((torn(parts[0])[way], *parts[1:]), SDBOOT, armed.folder)
    for _ in range(SDBOOT.policy.tries):
        assert device.boot.slot == "B"
        device.service()
        assert not machine.tried_out(device.facts())
        device = reboot(device, reset="watchdog")
    # What the service does at its start, before it goes back.
    board = device.board(tolerant=True)
    perform(board, machine.decide(observe(board), machine.Start()))
    assert device.boot.slot == "B"
    assert machine.tried_out(device.facts())


def reverted(device: Device) -> bool:
    facts = device.facts()
    last = facts.record.attempt if facts.record is not None else None
    states = machine.slot_states(facts)
    return last is not None and last.phase is Phase.REVERTED and states == {"A": SlotState.CONFIRMED, "B": SlotState.BAD}


def test_a_factory_whose_entry_abupdate_wrote_goes_the_same_way(tmp_path: Path) -> None:
    device = new_device(tmp_path, SdBootPlace("written", by_hand=False))
    device.service()
    device.flash(V2)
    device = reboot(device)
    device.service()
    device.confirm()
    assert reboot(device).boot.slot == "B"


def removes_first(self: SystemdBootStore, files: tuple[EntryFile, ...], state: BootState) -> None:
    """Wrong: the counted entry goes before the good one is there."""
    for one in files:
        if one.name.left is not None and one.name.slot != state.trial:
            self._put_away(one)
    real_commit(self, self.load(), state)


def too_low(files: tuple[EntryFile, ...], state: BootState) -> dict[str, int]:
    """Wrong: the slot that was good is put behind before the other one is there."""
    return {slot: 50_000 - 10 * number for number, slot in enumerate(state.order)}


real_commit = SystemdBootStore._commit


@pytest.mark.parametrize(
    ("place", "name", "wrong", "operation"),
    [
        (SystemdBootStore, "_commit", removes_first, "confirm"),
        (systemdboot, "_keys", too_low, "activate"),
    ],
)
def test_a_wrong_order_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object, name: str, wrong: Callable[..., object], operation: str
) -> None:
    monkeypatch.setattr(place, name, wrong)
    journal.forget()
    judge.forget()
    scenario = next(one for one in scenarios(tmp_path) if one.name == operation)
    try:
        with pytest.raises((Violation, AssertionError)):
            explore(scenario, replace(SDBOOT, name="wrong"), FEW)
    finally:
        journal.forget()
        judge.forget()


A = encode(Entry("A", 99998, True, "/abu/A/vmlinuz", cmdline=CMDLINE["A"]))
B = encode(Entry("B", 99997, True, "/abu/B/vmlinuz", trial_s=30))
KERNELS = ("/abu/A/vmlinuz", "/abu/B/vmlinuz")


@pytest.mark.parametrize(
    ("files", "kernels", "starts", "renamed"),
    [
        ({"slot-A.conf": A, "slot-B+3.conf": B}, KERNELS, "B", "slot-B+2-1.conf"),
        ({"slot-A.conf": A, "slot-B+1-2.conf": B}, KERNELS, "B", "slot-B+0-3.conf"),
        ({"slot-A.conf": A, "slot-B+0-3.conf": B}, KERNELS, "A", "slot-A.conf"),
        ({"slot-A.conf": A, "slot-B+3.conf": B}, KERNELS[:1], "A", "slot-A.conf"),
        ({"slot-A.conf": A, "slot-B+3.conf": b""}, KERNELS, "A", "slot-A.conf"),
        ({"slot-B+0-3.conf": B}, KERNELS, "B", "slot-B+0-4.conf"),
        ({"other.conf": A, "slot-B+0.conf": B}, KERNELS, "B", "slot-B+0-1.conf"),
        ({"slot-B+1.conf": B, "slot-B+0-1.conf": B}, KERNELS, "B", "slot-B+1.conf"),
    ],
)
def test_the_boot_loaders_choice(files: dict[str, bytes], kernels: tuple[str, ...], starts: str, renamed: str) -> None:
    done = boot(files, kernels)
    assert (done.slot, done.renamed) == (starts, renamed)
    assert done.trial == (starts == "B")


def test_nothing_that_can_be_started_starts_nothing() -> None:
    assert boot({"slot-A.conf": A}, ()).slot is None
    assert SdBootRom().power_up(Fat.of({}), frozenset("AB")).slot is None


def test_the_modelled_medium_loses_what_was_not_flushed() -> None:
    disk = FatDisk({"a": b"a" * 1024}, freed=(b"old",))
    seen: dict[str, tuple[int, ...]] = {}
    disk.on_event = lambda step, inside: seen.update({step: disk.freeze().choices})
    disk.create(Path("b"), b"b" * 1024)
    disk.patch(Path("a"), b"c" * 512)
    disk.remove(Path("a"))
    assert seen["write b"] == (2,)
    assert seen["flush b"] == (7,)
    assert seen["patch of a reaches the medium"] == (2,)
    assert seen["flush a"] == (3,)
    assert disk.freeze().content == {"b": b"b" * 1024}
