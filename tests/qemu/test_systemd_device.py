"""The device with systemd: the units as they are installed, read-only roots behind dm-verity, what the journal and doctor say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import systemd
from qemu.device import BOOT_WORD, Device
from tests.qemu.guest import confirm, flash, settled_environment, until
from tests.qemu.systemd_guest import SERVICE, TRIAL, active, journal, pets, root_hash, root_mount, shown

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

# What waits for the confirmation; the last one stands where systemd-bless-boot.service does with systemd-boot.
BEHIND = ("abupdate-confirmed.service", "boot-complete.target", "guest-complete.service")


@pytest.fixture
def device(images: Path) -> Iterator[Device]:
    """A fresh device, booted: version 1.0.0 on slot A (squashfs), nothing on B."""
    with Device(images=images / "systemd") as fresh:
        assert fresh.boot().slot == "A"
        settled_environment(fresh)
        yield fresh


def test_an_update_is_tried_confirmed_and_handed_over(device: Device) -> None:
    factory = device.environment()["BOOT_A_VERITY"]
    flash(device, "v2")
    armed = device.environment()
    wanted = root_hash(device, "v2")
    assert (armed["BOOT_TRIAL"], armed["BOOT_A_VERITY"], armed["BOOT_B_VERITY"]) == ("B", factory, wanted)

    up = device.reboot()
    assert (up.slot, up.version) == ("B", "2.0.0")
    assert f"abupdate.verity={wanted}" in device.check("cat /proc/cmdline").split()
    assert root_mount(device)[:2] == ["/dev/mapper/abupdate-root", "squashfs"]
    assert root_mount(device)[2].startswith("ro,")
    until("the trial's unit is up", lambda: active(device, TRIAL) == "active")
    assert shown(device, TRIAL, "SubState", "Result", "FailureAction") == ["running", "success", "reboot-force"]
    until("the other unit stands back", lambda: shown(device, SERVICE, "ActiveState", "ConditionResult") == ["inactive", "no"])
    assert pets(device, TRIAL)
    assert device.check("cat /sys/class/watchdog/watchdog0/state") == "active"
    told = until("the journal has it", lambda: [one for one in journal(device, TRIAL) if "slot B is on trial" in one["MESSAGE"]])
    assert [(entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) for entry in told] == [("4", "abupdate")]
    until("the start is over but for the confirmation", lambda: device.run("/etc/abupdate/health.d/10-systemd").exit_code == 0)
    assert [active(device, unit) for unit in BEHIND] == ["activating", "inactive", "inactive"]
    assert device.run("systemctl is-system-running").output == "starting"

    confirm(device)
    until("the trial's unit hands over", lambda: active(device, TRIAL) == "inactive" and active(device, SERVICE) == "active")
    assert shown(device, TRIAL, "Result", "ExecMainStatus") == ["success", "0"]
    confirmed = settled_environment(device)
    assert (confirmed["BOOT_ORDER"], confirmed["BOOT_A_VERITY"], confirmed["BOOT_B_VERITY"]) == ("B A", factory, wanted)
    until("its service pets on", lambda: pets(device, SERVICE))
    until("the boot is complete", lambda: [active(device, unit) for unit in BEHIND] == ["active"] * 3)
    until("nothing is missing", lambda: device.run("systemctl is-system-running").output == "running")
    assert device.watchdog_resets == 0


@pytest.mark.slow
def test_a_flipped_bit_is_a_panic_when_it_is_read_and_ends_in_the_fallback(device: Device) -> None:
    flash(device, "v2", tries=1)
    part = "/dev/disk/by-partlabel/rootfs_b"
    # Nothing reads this file in a boot; it does not compress, so it lies in the squashfs as it is. Its middle shares no block with others.
    bulk, middle = systemd.bulk(), systemd.BULK_BYTES // 2
    find = f"print(open('{part}', 'rb').read(64 << 20).find(bytes.fromhex('{bulk[:32].hex()}')))"
    where = int(device.check(f'python3 -c "{find}"', 120))
    assert where > 0
    device.check(rf"printf '\{bulk[middle] ^ 1:03o}' | dd of={part} bs=1 seek={where + middle} conv=notrunc,fsync")
    up = device.reboot()
    assert (up.slot, up.version) == ("B", "2.0.0"), "what is damaged has not been read"
    device.type("md5sum /etc/abu-bulk; echo abu-guest: it was read")
    device.wait(BOOT_WORD, 60, unless="^abu-guest: it was read")
    assert "dm-verity device corrupted" in device.console.text
    up = device.wait_up(120)
    assert (up.slot, up.version) == ("A", "1.0.0")
    settled_environment(device)
    assert device.status()["attempt"]["phase"] == "reverted"
    assert device.check("md5sum /etc/abu-bulk")


@pytest.mark.slow
def test_a_unit_that_fails_takes_the_slot_back(device: Device) -> None:
    device.check("echo 'exit 1' >/data/abu-fault-on-trial")
    flash(device, "v2")
    device.type("reboot")
    device.wait(r"^abupdate: slot B trial left 2", 90)
    up = device.wait_up(180)
    while up.slot == "B":
        up = device.wait_up(180)
    assert (up.slot, up.version) == ("A", "1.0.0")
    settled_environment(device)
    attempt = device.status()["attempt"]
    assert "guest-fault.service" in attempt["reason"], attempt
    assert device.console.text.count("abupdate: slot B trial left") == 1, "one word of health is enough"
    assert device.watchdog_resets == 0


@pytest.mark.slow
def test_a_trial_whose_agent_dies_reboots_and_costs_a_try(device: Device) -> None:
    flash(device, "v2", tries=2)
    assert device.reboot().slot == "B"
    until("the trial's unit is up", lambda: active(device, TRIAL) == "active")
    for left in ("trial left 0", "A confirmed left"):
        device.type(f"kill -9 $(systemctl show -P MainPID {TRIAL})")
        device.wait(BOOT_WORD, 60)
        device.wait(rf"^abupdate: slot (?:B )?{left}" if left.startswith("trial") else rf"^abupdate: slot {left}", 60)
        up = device.wait_up(120)
        if up.slot == "B":
            until("the trial's unit is up", lambda: active(device, TRIAL) == "active")
    assert up.slot == "A"
    settled_environment(device)
    assert device.status()["attempt"]["phase"] == "reverted"
    assert device.watchdog_resets == 0, "systemd rebooted, at once"


@pytest.mark.slow
def test_an_erofs_slot_is_confirmed_by_its_health_at_the_end_of_the_window(device: Device) -> None:
    flash(device, "v3")
    up = device.reboot()
    assert (up.slot, up.version) == ("B", "3.0.0")
    assert root_mount(device)[:2] == ["/dev/mapper/abupdate-root", "erofs"]
    until("the window ends", lambda: active(device, SERVICE) == "active", 300)
    assert device.status()["slots"]["B"]["state"] == "confirmed"
    assert device.run("systemctl is-system-running").output == "running"
    assert any("slot is confirmed" in entry["MESSAGE"] for entry in journal(device, TRIAL))
    device.check("abupdate verify", 180)


@pytest.mark.slow
def test_a_slot_with_another_tree_than_the_signed_one_is_never_mounted(device: Device) -> None:
    """A's root file system copied over B's: whole, and not what was flashed."""
    flash(device, "v2", tries=1)
    device.check("dd if=/dev/disk/by-partlabel/rootfs_a of=/dev/disk/by-partlabel/rootfs_b bs=1M conv=fsync", 120)
    device.type("reboot")
    device.wait(r"^abupdate: slot B trial left 0", 90)
    up = device.wait_up(180)
    assert up.slot == "A"
    assert "abu-guest: up slot=B" not in device.console.text
    # And without any tree at all.
    settled_environment(device)
    device.check("abupdate flash /bundles/v2.abu && dd if=/dev/zero of=/dev/disk/by-partlabel/rootfs_b bs=1M count=1 conv=fsync", 180)
    device.check("fw_setenv BOOT_B_LEFT 1")
    device.type("reboot")
    device.wait(r"dm-verity: open-verity: /dev/\S+: no squashfs, erofs or ext4 on it", 90)
    device.wait(r"cannot mount the root file system .*reboot in 10 s", 30)
    assert device.wait_up(180).slot == "A"


@pytest.mark.slow
def test_systemd_s_own_watchdog_beside_ours(device: Device) -> None:
    def grades() -> dict[str, str]:
        rows = json.loads(device.run("abupdate --json doctor").output)["findings"]
        return {row["text"]: row["grade"] for row in rows if row["topic"] == "watchdog"}

    def systemd_takes(watchdog: str) -> None:
        lines = f"[Manager]\\nRuntimeWatchdogSec=20\\nWatchdogDevice={watchdog}\\n"
        device.check(f"mkdir -p /run/systemd/system.conf.d; printf '{lines}' >/run/systemd/system.conf.d/w.conf; systemctl daemon-reexec")
        until("systemd has it", lambda: watchdog in device.run("ls -l /proc/1/fd").output)

    assert set(grades().values()) == {"ok"}
    device.check("modprobe softdog")
    systemd_takes("/dev/watchdog1")
    assert set(grades().values()) == {"ok"}
    systemd_takes("/dev/watchdog0")
    assert grades() == {"/dev/watchdog0 is held by process 1 (systemd): no trial can be guarded by it": "fail"}
    assert device.watchdog_resets == 0


@pytest.mark.slow
def test_an_agent_that_dies_on_a_confirmed_slot_is_started_again_and_reboots_nothing(device: Device) -> None:
    boot = device.check("cat /proc/sys/kernel/random/boot_id")
    for _ in range(3):
        until("it runs", lambda: active(device, SERVICE) == "active")
        device.check(f"kill -9 $(systemctl show -P MainPID {SERVICE})")
    until("it runs again", lambda: active(device, SERVICE) == "active" and int(shown(device, SERVICE, "NRestarts")[0]) >= 3)
    assert device.check("cat /proc/sys/kernel/random/boot_id") == boot
