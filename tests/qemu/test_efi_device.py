"""A whole x86-64 device without a bootloader: OVMF boots the slots' kernels. Updates that stay, and such that end on the version before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qemu.x86 import X86Device
from tests.qemu import x86_guest
from tests.qemu.x86_guest import End, Frozen

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

TRIES = 1
ENDS = (
    End("bad-panic", "Kernel panic", "", boots=1),
    End("bad-hang-after-arming", "abu-guest: fault hang-after-arming", "watchdog", boots=1, by_watchdog=True),
    # What follows the firmware's first word, "BdsDxe: failed to load": BootNext is used up, and BootOrder's first boots.
    End("bad-kernel-garbage", ' Boot[0-9A-F]{4} "abupdate B" from', "tries exhausted", boots=0),
    End("bad-health-critical", "going back", "critical", boots=1),
)


@pytest.fixture
def device(frozen: Frozen) -> Iterator[X86Device]:
    with frozen.thawed("efi") as one:
        yield one


def test_good_update_is_tried_and_confirmed(device: X86Device) -> None:
    x86_guest.good_update(device)


@pytest.mark.slow
def test_good_update_stays_over_a_power_cycle(device: X86Device) -> None:
    x86_guest.good_update(device)
    x86_guest.stays(device)


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.bundle)
def test_bad_update_ends_on_the_version_before(device: X86Device, end: End) -> None:
    x86_guest.bad_update(device, end)


@pytest.mark.slow
def test_trial_that_is_never_confirmed_uses_up_its_try(device: X86Device) -> None:
    x86_guest.tries_are_used_up(device, TRIES)


@pytest.mark.slow
def test_armed_trial_can_be_cancelled(device: X86Device) -> None:
    x86_guest.armed_trial_is_cancelled(device)


@pytest.mark.slow
def test_running_trial_can_be_reverted(device: X86Device) -> None:
    x86_guest.running_trial_is_reverted(device)


@pytest.mark.slow
def test_power_cut_while_flashing_leaves_a_device_that_boots_and_can_be_flashed(device: X86Device) -> None:
    x86_guest.power_cut_while_flashing(device)


@pytest.mark.slow
def test_power_cut_after_arming_starts_the_trial(device: X86Device) -> None:
    x86_guest.power_cut_after_arming(device)
