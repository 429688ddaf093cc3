"""Whole x86-64 devices under GRUB, systemd-boot and EFI firmware alone: updates that stay, and such that end on the version before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from qemu.x86 import X86Device
from tests.qemu import x86_guest
from tests.qemu.x86_guest import End, Frozen

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Board:
    """What boots a device. kind, firmware: as X86Device has them. tries: as its configuration has them. ends: of bad updates."""

    name: str
    kind: str
    firmware: str
    tries: int
    ends: tuple[End, ...]


PANIC = End("bad-panic", "Kernel panic", "tries exhausted", boots=3)
HANG = End("bad-hang-after-arming", "abu-guest: fault hang-after-arming", "watchdog", boots=1, by_watchdog=True, tries=1)
CRITICAL = End("bad-health-critical", "going back", "critical", boots=1)
# The next slot at once.
PASSED_OVER = End("bad-kernel-garbage", "slot B could not be started", "load failed", boots=0)
# systemd-boot counts each try and returns to the firmware, which starts it again.
BACK_TO_FIRMWARE = End("bad-kernel-garbage", r"BdsDxe: starting", "tries exhausted", boots=0)
# What follows the firmware's first word, "BdsDxe: failed to load": BootNext is used up, and BootOrder's first boots.
NEXT_USED_UP = End("bad-kernel-garbage", ' Boot[0-9A-F]{4} "abupdate B" from', "tries exhausted", boots=0)
# One try.
PANIC_ONCE = End("bad-panic", "Kernel panic", "tries exhausted", boots=1)

GRUB_BIOS = Board("grub-bios", "grub", "bios", 3, (PANIC, HANG, PASSED_OVER, CRITICAL))
GRUB_UEFI = Board("grub-uefi", "grub", "uefi", 3, (PANIC, HANG, PASSED_OVER, CRITICAL))
SYSTEMD_BOOT = Board("systemd-boot", "systemd-boot", "uefi", 3, (PANIC, HANG, BACK_TO_FIRMWARE, CRITICAL))
EFI = Board("efi", "efi", "uefi", 1, (PANIC_ONCE, HANG, NEXT_USED_UP, CRITICAL))
BOARDS = (GRUB_BIOS, GRUB_UEFI, SYSTEMD_BOOT, EFI)
# Boots of a confirmed slot without a healthy userspace, where they are counted.
BUDGET = 3


def each(*boards: Board) -> pytest.MarkDecorator:
    """The test on these boards."""
    return pytest.mark.parametrize("board", boards, ids=lambda board: board.name)


@pytest.fixture
def device(frozen: Frozen, board: Board) -> Iterator[X86Device]:
    with frozen.thawed(board.kind, board.firmware) as one:
        yield one


@each(GRUB_BIOS, SYSTEMD_BOOT, EFI)
def test_good_update_is_tried_and_confirmed(device: X86Device) -> None:
    x86_guest.good_update(device)


@pytest.mark.slow
@each(*BOARDS)
def test_good_update_stays_over_a_power_cycle(device: X86Device) -> None:
    x86_guest.good_update(device)
    x86_guest.stays(device)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("board", "end"), [pytest.param(board, end, id=f"{board.name}-{end.bundle}") for board in BOARDS for end in board.ends]
)
def test_bad_update_ends_on_the_version_before(device: X86Device, end: End) -> None:
    x86_guest.bad_update(device, end)


@pytest.mark.slow
@each(*BOARDS)
def test_trial_that_is_never_confirmed_uses_up_its_tries(device: X86Device, board: Board) -> None:
    x86_guest.tries_are_used_up(device, board.tries)


@pytest.mark.slow
@each(GRUB_BIOS, GRUB_UEFI)
def test_confirmed_slot_without_a_service_ends_on_the_other_one(device: X86Device) -> None:
    """Boots of a confirmed slot are counted too: when nothing gives them back any more, the other good slot boots."""
    x86_guest.good_update(device)
    device.check("echo no-service >/data/abu-fault; sync")
    seen = []
    for _ in range(BUDGET + 1):
        device.power_cycle()
        seen.append(device.wait_up().slot)
    assert seen == ["B"] * BUDGET + ["A"]


@pytest.mark.slow
@each(*BOARDS)
def test_armed_trial_can_be_cancelled(device: X86Device) -> None:
    x86_guest.armed_trial_is_cancelled(device)


@pytest.mark.slow
@each(*BOARDS)
def test_running_trial_can_be_reverted(device: X86Device) -> None:
    x86_guest.running_trial_is_reverted(device)


@pytest.mark.slow
@each(*BOARDS)
def test_power_cut_while_flashing_leaves_a_device_that_boots_and_can_be_flashed(device: X86Device) -> None:
    x86_guest.power_cut_while_flashing(device)


@pytest.mark.slow
@each(*BOARDS)
def test_power_cut_after_arming_starts_the_trial(device: X86Device) -> None:
    x86_guest.power_cut_after_arming(device)
