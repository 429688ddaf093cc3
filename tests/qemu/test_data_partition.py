"""The data partition is full, read-only or gone: what must be kept there is refused with a word, what needs only the boot store works."""

from __future__ import annotations

import pytest

from qemu.device import BOOT_WORD, Device
from tests.qemu.guest import FLASH_TIMEOUT_S, confirm, flash, settled_environment, until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(400)]

TARGET = "head -c 1000000 /dev/disk/by-partlabel/rootfs_b | sha256sum"
DESTROY = "sync; dd if=/dev/zero of=/dev/disk/by-partlabel/data bs=1M count=4 conv=fsync 2>/dev/null"


def refused_for_now(device: Device, word: str) -> None:
    """`flash` exits with 1 and has written nothing to the slot; the running slot boots next."""
    before = device.check(TARGET)
    ran = device.run("abupdate flash --progress none /bundles/v2.abu", FLASH_TIMEOUT_S)
    assert ran.exit_code == 1, ran.output
    assert word in ran.output
    assert "Traceback" not in ran.output
    assert device.check(TARGET) == before
    values = device.environment()
    assert values["BOOT_ORDER"] == "A"
    assert "BOOT_TRIAL" not in values


@pytest.mark.slow
def test_full_and_then_read_only(device: Device) -> None:
    device.run("dd if=/dev/zero of=/data/ballast bs=1M 2>/dev/null; dd if=/dev/zero of=/data/crumbs bs=512 2>/dev/null")
    refused_for_now(device, "No space left on device")
    device.check("rm /data/crumbs /data/ballast && sync")
    device.check("mount -o remount,ro /data")
    refused_for_now(device, "Read-only file system")
    device.check("mount -o remount,rw /data")
    flash(device, "v2")

    assert device.reboot().slot == "B"
    until("the service has the trial", lambda: device.status()["situation"] == "on-trial")
    device.run("dd if=/dev/zero of=/data/ballast bs=1M 2>/dev/null; dd if=/dev/zero of=/data/crumbs bs=512 2>/dev/null")
    confirm(device)
    assert "BOOT_TRIAL" not in device.environment(), "the boot store is what decides, the record can wait"
    assert device.status()["slots"]["B"]["state"] == "confirmed"
    device.check("rm /data/crumbs /data/ballast && sync")
    device.power_cycle()
    assert device.wait_up().slot == "B"
    settled_environment(device)
    assert device.status()["attempt"]["phase"] == "confirmed", "made up for"
    assert device.watchdog_resets == 0


@pytest.mark.slow
def test_read_only_on_trial(device: Device) -> None:
    flash(device, "v2")
    assert device.reboot().slot == "B"
    until("the service has done what it writes at its start", lambda: "slot B is on trial" in device.console.text)
    device.check("mount -o remount,ro /data")
    confirm(device)
    assert "BOOT_TRIAL" not in device.environment()
    device.power_cycle()
    assert device.wait_up().slot == "B"
    assert settled_environment(device)["BOOT_ORDER"] == "B A"


@pytest.mark.slow
def test_gone_the_service_goes_back_from_a_bad_slot_all_the_same(device: Device) -> None:
    flash(device, "bad-health-critical")
    device.check(DESTROY)
    device.type("reboot -f")
    device.wait(BOOT_WORD, 60)
    device.wait(r"^abu-guest: no data partition", 60)
    device.wait("going back: health critical", 90)
    device.wait(BOOT_WORD, 60)
    up = device.wait_up()
    assert (up.slot, up.version) == ("A", "1.0.0")
    values = settled_environment(device)
    assert (values["BOOT_ORDER"], values["BOOT_B_LEFT"]) == ("A", "0")
    assert device.watchdog_resets == 0


@pytest.mark.slow
def test_gone_a_trial_can_be_ended_by_hand(device: Device) -> None:
    """The verbs do not go on without their state_dir as the service does; another one, if only in memory, is named by whoever asks."""
    flash(device, "v2")
    device.check(DESTROY)
    device.type("reboot -f")
    device.wait(r"^abu-guest: no data partition", 90)
    assert device.wait_up().slot == "B"
    until("the service has the trial", lambda: device.check("cat /sys/class/watchdog/watchdog0/timeout") == "10")
    before = device.environment()
    ran = device.run("abupdate revert")
    assert (ran.exit_code, "lies on slot B.rootfs" in ran.output) == (2, True), "what is to be kept would be kept on a slot"
    assert device.environment() == before
    device.check("sed 's|^state_dir.*|state_dir = \"/run/state\"|' /etc/abupdate/config.toml >/run/config.toml")
    device.check("abupdate -c /run/config.toml revert")
    values = device.environment()
    assert (values["BOOT_ORDER"], values["BOOT_B_LEFT"]) == ("A", "0")
    assert device.reboot().slot == "A"
