"""Flashes and trials that are cut short, and refused bundles: the running slot stays as it was, and a second try goes through."""

from __future__ import annotations

import pytest

from qemu.device import BOOT_WORD, Device
from tests.qemu.guest import FLASH_TIMEOUT_S, boots_seen, confirm, flash, settled_environment, until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(500)]

SLOT_A = "sha256sum /dev/disk/by-partlabel/boot_a /dev/disk/by-partlabel/rootfs_a"
SLOT_B = "sha256sum /dev/disk/by-partlabel/boot_b /dev/disk/by-partlabel/rootfs_b"


def test_killed_while_it_flashes(device: Device) -> None:
    running = device.check(SLOT_A, 120)
    device.type("abupdate flash --progress json /bundles/v2.abu")
    device.wait(r'"phase": "write", "done_bytes": [1-9]\d{6,}', 120)
    device.power_cycle()
    up = device.wait_up()
    assert (up.slot, up.version) == ("A", "1.0.0")
    values = settled_environment(device)
    assert (values["BOOT_ORDER"], values["BOOT_B_LEFT"]) == ("A", "0")
    status = device.status()
    assert status["slots"]["B"]["state"] == "writing"
    assert status["attempt"]["version"] == "2.0.0"
    assert device.check(SLOT_A, 120) == running

    flash(device, "v2")
    up = device.reboot()
    assert (up.slot, up.version) == ("B", "2.0.0")
    confirm(device)
    assert device.status()["slots"]["B"]["state"] == "confirmed"


def test_killed_again_and_again_during_the_trial(device: Device) -> None:
    flash(device, "v2")
    start = len(device.console.text)
    assert device.reboot().slot == "B"
    for left in (1, 0):
        device.power_cycle()
        assert device.wait_up().slot == "B"
        assert device.status()["trial"]["tries_left"] == left
    device.power_cycle()
    up = device.wait_up()
    assert (up.slot, up.version) == ("A", "1.0.0")
    assert boots_seen(device, start) == ["B trial"] * 3 + ["A confirmed"]
    settled_environment(device)
    status = device.status()
    assert (status["attempt"]["phase"], status["slots"]["B"]["state"]) == ("reverted", "bad")
    assert "tries exhausted" in status["attempt"]["reason"]


@pytest.mark.slow
def test_killed_once_during_the_trial_and_confirmed_then(device: Device) -> None:
    flash(device, "v2")
    assert device.reboot().slot == "B"
    device.power_cycle()
    assert device.wait_up().slot == "B"
    confirm(device)
    device.power_cycle()
    assert device.wait_up().slot == "B"
    assert device.status()["slots"]["B"]["state"] == "confirmed"


def test_bundles_that_are_refused_change_nothing(device: Device) -> None:
    """Unsigned, signed by a stranger, for another device, truncated: exit 3 before anything is written."""
    device.check("head -c 20000000 /bundles/v2.abu >/data/truncated.abu")
    before, target = device.environment(), device.check(SLOT_B, 120)
    for bundle in ("/bundles/unsigned", "/bundles/wrong-key", "/bundles/other-device", "/data/truncated"):
        refused = device.run(f"abupdate flash {bundle}.abu", FLASH_TIMEOUT_S)
        assert refused.exit_code == 3, refused.output
    assert device.environment() == before
    assert device.check(SLOT_B, 120) == target
    assert device.status()["slots"]["B"]["state"] == "empty"


@pytest.mark.slow
def test_older_bundle_is_refused(updated: Device) -> None:
    before, target = updated.environment(), updated.check(SLOT_A, 120)
    for bundle in ("old", "v1"):
        refused = updated.run(f"abupdate flash /bundles/{bundle}.abu", FLASH_TIMEOUT_S)
        assert refused.exit_code == 3, refused.output
    assert updated.environment() == before
    assert updated.check(SLOT_A, 120) == target


def test_flipped_bit_in_the_payload(device: Device) -> None:
    running = device.check(SLOT_A, 120)
    flip = "import sys; f = open('/data/bad.abu', 'r+b'); f.seek(-1000000, 2); b = f.read(1); f.seek(-1, 1); f.write(bytes([b[0] ^ 4]))"
    device.check(f'cp /bundles/v2.abu /data/bad.abu && chmod 600 /data/bad.abu && python3 -c "{flip}"')
    refused = device.run("abupdate flash /data/bad.abu", FLASH_TIMEOUT_S)
    assert refused.exit_code == 3, refused.output
    not_bootable(device, running)
    flash(device, "v2")
    assert device.reboot().version == "2.0.0"


@pytest.mark.slow
def test_pipe_that_ends_early(device: Device) -> None:
    running = device.check(SLOT_A, 120)
    failed = device.run("head -c 20000000 /bundles/v2.abu | abupdate flash -", FLASH_TIMEOUT_S)
    assert failed.exit_code == 1, failed.output
    not_bootable(device, running)
    device.check("cat /bundles/v2.abu | abupdate flash -", FLASH_TIMEOUT_S)
    assert device.reboot().version == "2.0.0"


def not_bootable(device: Device, running: str) -> None:
    """Slot B must not boot, slot A is untouched and boots."""
    values = device.environment()
    assert (values["BOOT_ORDER"], values["BOOT_B_LEFT"]) == ("A", "0")
    assert "BOOT_TRIAL" not in values
    assert device.check(SLOT_A, 120) == running
    device.type("reboot")
    device.wait(BOOT_WORD, 60)
    assert device.wait_up().slot == "A"
    until("the service is there", lambda: device.environment()["BOOT_A_LEFT"] == "3")
