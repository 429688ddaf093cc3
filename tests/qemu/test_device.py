"""The harness and the images themselves: a device boots, answers, says how commands end, and switches off."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu.console import ConsoleError
from qemu.device import Device

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(240)]


def test_boots_answers_and_switches_off(device: Device) -> None:
    assert device.check("uname -m") == "aarch64"
    assert device.check("cat /sys/class/watchdog/watchdog0/identity") == "i6300ESB timer"
    assert device.check("cat /etc/abu-version") == "1.0.0"
    ended = device.run("echo 'it\"s'; ls /nowhere; exit 7")
    assert (ended.exit_code, ended.output) == (7, 'it"s\nls: /nowhere: No such file or directory')
    assert device.run("touch /usr/changed").exit_code == 1, "the root file system is read-only"
    assert device.environment()["board_serial"] == "ABU-0001"
    device.poweroff()
    assert not device.running
    assert device.watchdog_resets == 0


def test_a_reset_in_the_middle_of_a_command_is_a_failure_with_the_console(device: Device) -> None:
    with pytest.raises(ConsoleError, match=r"U-Boot 20(?s:.)*---- console ----"):
        device.run("reboot -f; sleep 60")
    device.wait_up()


def test_a_word_that_does_not_come_is_a_failure_with_the_console(device: Device) -> None:
    device.check("echo the last words")
    with pytest.raises(ConsoleError, match=r"did not come within 1 s(?s:.)*the last words"):
        device.wait("never said", 1)


def test_two_devices_have_disks_of_their_own(device: Device, images: Path) -> None:
    device.check("echo first >/data/mine && sync")
    with Device(images=images) as second:
        second.boot()
        assert second.run("cat /data/mine").exit_code == 1
    device.power_cycle()
    device.wait_up()
    assert device.check("cat /data/mine") == "first"
