"""The device with systemd on UEFI firmware, arm64: the units as they are installed over the ESP and over the firmware's variables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qemu.arm64_uefi import UefiDevice
from tests.qemu.guest import confirm, until
from tests.qemu.systemd_guest import SERVICE, TRIAL, active, pets, root_hash, root_mount, shown

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(1500)]

FLASH_TIMEOUT_S = 180
# Firmware, a kernel from FAT, systemd: a minute on an idle host.
BOOT_S = 240
CONFIRMED = "abupdate-confirmed.service"
BLESSING = "systemd-bless-boot.service"


@pytest.fixture
def device(board: str) -> Iterator[UefiDevice]:
    """A device as it leaves the factory: version 1.0.0 on slot A, nothing on B, and the firmware knows what `doctor --fix` tells it."""
    with UefiDevice(board=board) as fresh:
        assert fresh.boot(BOOT_S).slot == "A"
        settled(fresh)
        fresh.check("abupdate doctor --fix", 60)
        assert fresh.reboot(BOOT_S).slot == "A"
        settled(fresh)
        yield fresh


def settled(device: UefiDevice) -> None:
    """Return when the service is at work, and nothing is waited for any more."""
    until("the service is at work", lambda: active(device, SERVICE) == "active", BOOT_S)
    until("the start is over", lambda: device.run("systemctl is-system-running").output == "running", BOOT_S)


def flash(device: UefiDevice) -> None:
    """Flash 2.0.0, which must be accepted and armed."""
    device.check("abupdate flash /bundles/v2.abu", FLASH_TIMEOUT_S)
    assert device.status()["trial"]["slot"] == "B"


def entries(device: UefiDevice) -> list[str]:
    """Names of systemd-boot's entries."""
    return device.check("ls /efi/loader/entries").split()


@pytest.mark.parametrize("board", ["systemd-boot", "efi"])
def test_an_update_is_tried_confirmed_handed_over_and_stays(device: UefiDevice, board: str) -> None:
    blessed = board == "systemd-boot"
    wanted = root_hash(device, "v2")
    flash(device)
    if blessed:
        assert "slot-B+3.conf" in entries(device), "armed"
    up = device.reboot(BOOT_S)
    assert (up.slot, up.version) == ("B", "2.0.0")
    words = device.check("cat /proc/cmdline").split()
    assert {f"abupdate.verity={wanted}", "abupdate.trial=1"} <= set(words)
    assert root_mount(device)[:2] == ["/dev/mapper/abupdate-root", "squashfs"]
    until("the trial's unit is up", lambda: active(device, TRIAL) == "active", BOOT_S)
    assert pets(device, TRIAL)
    assert device.check("cat /sys/class/watchdog/watchdog0/state") == "active"
    until("the start is over but for the confirmation", lambda: device.run("/etc/abupdate/health.d/10-systemd").exit_code == 0, BOOT_S)
    assert [active(device, unit) for unit in (CONFIRMED, "boot-complete.target", BLESSING)] == ["activating", "inactive", "inactive"]
    if blessed:
        assert "slot-B+2-1.conf" in entries(device), "systemd-boot counts, and nobody has blessed it"

    confirm(device)
    until("the trial's unit hands over", lambda: active(device, TRIAL) == "inactive" and active(device, SERVICE) == "active", BOOT_S)
    assert shown(device, TRIAL, "Result", "ExecMainStatus") == ["success", "0"]
    settled(device)
    assert active(device, "boot-complete.target") == "active"
    if blessed:
        # It finds its work done: no failed unit, and the entry that boots is abupdate's own, without the trial's arguments.
        until("the boot is blessed", lambda: active(device, BLESSING) == "active")
        assert [name for name in entries(device) if name.startswith("slot-B")] == ["slot-B.conf"]
        lines = device.check("cat /efi/loader/entries/slot-B.conf").splitlines()
        assert any(line.startswith("linux ") for line in lines), "switched on"
        assert not any("abupdate.trial" in line for line in lines)
    status = device.status()
    assert (status["primary"], status["trial"], status["slots"]["B"]["state"]) == ("B", None, "confirmed")
    device.power_cycle()
    up = device.wait_up(BOOT_S)
    assert (up.slot, up.version) == ("B", "2.0.0")
    settled(device)
    assert device.watchdog_resets == 0


@pytest.mark.parametrize("board", ["systemd-boot", "efi"])
def test_a_unit_that_fails_takes_the_slot_back(device: UefiDevice) -> None:
    device.check("echo 'exit 1' >/data/abu-fault-on-trial; sync")
    flash(device)
    device.type("reboot")
    device.wait(r"^abu-guest: starts slot=B trial=1", BOOT_S)
    up = device.wait_up(BOOT_S)
    while up.slot == "B":
        up = device.wait_up(BOOT_S)
    assert (up.slot, up.version) == ("A", "1.0.0")
    settled(device)
    attempt = device.status()["attempt"]
    assert (attempt["phase"], "guest-fault.service" in attempt["reason"]) == ("reverted", True), attempt
    assert device.console.text.count("abu-guest: starts slot=B") == 1, "one word of health is enough"
    assert device.watchdog_resets == 0
