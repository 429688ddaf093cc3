"""The agent dies, hangs or is stopped; confirmed slots are destroyed: who resets, who does not, and where the device ends."""

from __future__ import annotations

import re

import pytest

from qemu.device import BOOT_WORD, Device
from tests.qemu.guest import FLASH_TIMEOUT_S, boots_seen, confirm, flash, until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(500)]

# Long enough for the hardware (10 s, or 20 s before the service has it) and the boot after it.
RESET_S = 60
ENDED = r"abupdate\[service\]: ended with status [1-9]"


def service_pets(device: Device) -> None:
    """Wait until the service of a trial has the watchdog, with its own timeout."""
    until("the service takes the watchdog", lambda: device.check("cat /sys/class/watchdog/watchdog0/timeout") == "10")


@pytest.mark.parametrize("signal", ["KILL", pytest.param("STOP", marks=pytest.mark.slow)])
def test_dead_or_stopped_service_on_trial_is_ended_by_the_watchdog(device: Device, signal: str) -> None:
    flash(device, "v2")
    assert device.reboot().slot == "B"
    service_pets(device)
    device.check(f"kill -{signal} $(cat /run/service.pid)")
    device.wait(BOOT_WORD, RESET_S)
    assert device.watchdog_resets == 1
    assert device.wait_up().slot == "B", "the second try"
    assert device.status()["trial"]["tries_left"] == 1
    confirm(device)
    assert device.status()["slots"]["B"]["state"] == "confirmed"


def test_service_that_keeps_the_watchdog_is_not_reset(device: Device) -> None:
    """The other side of the test above: left alone, the same service carries the trial far beyond the hardware's timeout."""
    flash(device, "v2")
    assert device.reboot().slot == "B"
    service_pets(device)
    device.check("sleep 25", 60)
    assert device.watchdog_resets == 0
    assert device.status()["trial"]["slot"] == "B"


def test_shutdown_that_hangs_after_an_ordered_reboot_ends_in_the_new_slot(device: Device) -> None:
    """The slot that runs is confirmed, so nothing has armed the watchdog before."""
    assert device.check("cat /sys/class/watchdog/watchdog0/state") == "inactive"
    device.check("printf '#!/bin/sh\necho abu-guest: hangs\nwhile :; do sleep 1; done\n' >/run/hang && chmod +x /run/hang")
    device.check("mount -o bind /run/hang /etc/init.d/rcK")
    device.type("abupdate flash --reboot /bundles/v2.abu")
    device.wait("^abu-guest: hangs", FLASH_TIMEOUT_S)
    device.wait(BOOT_WORD, RESET_S)
    assert device.watchdog_resets == 1
    assert device.wait_up().slot == "B"
    assert device.status()["trial"]["tries_left"] == 2


@pytest.mark.slow
def test_petter_of_the_initramfs_outlives_switch_root_and_gives_way_to_the_service(device: Device) -> None:
    flash(device, "petter")
    assert device.reboot().version == "3.0.0"
    left = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c '^@bin/arm-watchdog'"
    seen_after_switch_root = device.run(left).output
    service_pets(device)
    until("the petter has seen that the service has the device", lambda: device.run(left).output == "0", 30)
    assert seen_after_switch_root == "1"
    assert device.watchdog_resets == 0


@pytest.mark.slow
def test_agent_that_crashes_in_a_loop_on_a_confirmed_slot_never_reboots_it(device: Device) -> None:
    device.check("echo crash-service >/data/abu-fault && sync")
    assert device.reboot().slot == "A"
    boot = device.check("cat /proc/sys/kernel/random/boot_id")
    for _ in range(10):
        device.wait(ENDED, 60, unless=BOOT_WORD)
    assert device.check("cat /proc/sys/kernel/random/boot_id") == boot
    assert device.watchdog_resets == 0
    assert float(device.check("cut -d' ' -f1 /proc/uptime")) > 20


@pytest.mark.slow
def test_service_killed_right_after_the_confirmation_comes_back_in_time(device: Device) -> None:
    flash(device, "v2")
    assert device.reboot().slot == "B"
    confirm(device)
    device.wait(r"abupdate\[service\]: ended with status 0", 60)
    boot = device.check("cat /proc/sys/kernel/random/boot_id")
    for _ in range(3):
        device.type("kill -KILL $(cat /run/service.pid)")
        device.wait(r"abupdate\[service\]: ended with status 137", 30, unless=BOOT_WORD)
        device.wait(r"abupdate\[service\]: .*watchdog is open", 30, unless=BOOT_WORD)
    device.check("sleep 25", 60)
    assert device.check("cat /proc/sys/kernel/random/boot_id") == boot
    assert device.watchdog_resets == 0


def destroy(device: Device, label: str, mib: int) -> None:
    """Overwrite the beginning of a partition behind the running system's back."""
    device.check(f"sync; dd if=/dev/zero of=/dev/disk/by-partlabel/{label} bs=1M count={mib} conv=fsync 2>/dev/null", 120)


def test_confirmed_slot_whose_kernel_is_lost_ends_on_the_other_at_once(updated: Device) -> None:
    destroy(updated, "boot_b", 8)
    start = len(updated.console.text)
    updated.power_cycle()
    up = updated.wait_up()
    assert (up.slot, up.version) == ("A", "1.0.0")
    assert boots_seen(updated, start) == ["B confirmed", "A confirmed"], "on at once, in the same boot"
    assert len(re.findall(BOOT_WORD, updated.console.text[start:], re.MULTILINE)) == 1
    says_that_b_is_lost(updated)


@pytest.mark.slow
def test_confirmed_slot_whose_root_file_system_is_lost_ends_on_the_other_after_its_budget(updated: Device) -> None:
    destroy(updated, "rootfs_b", 8)
    start = len(updated.console.text)
    updated.power_cycle()
    for _ in range(3):
        updated.wait("cannot mount the root file system", 60)
    up = updated.wait_up()
    assert (up.slot, up.version) == ("A", "1.0.0")
    assert boots_seen(updated, start) == ["B confirmed"] * 3 + ["A confirmed"]
    assert updated.watchdog_resets == 0, "no trial, no watchdog: the initramfs itself reboots"
    says_that_b_is_lost(updated)


def says_that_b_is_lost(device: Device) -> None:
    """The service puts A first and the status tells why; the next update is possible."""
    until("the service settles it", lambda: device.environment()["BOOT_ORDER"].split()[0] == "A")
    status = device.status()
    assert (status["booted"], status["primary"], status["slots"]["B"]["state"]) == ("A", "A", "bad")
    assert "did not start" in status["attempt"]["reason"]
    flash(device, "v3")
    assert device.reboot().version == "3.0.0"
