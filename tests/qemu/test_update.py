"""The confirmed path, and the verbs that must say no while a trial is pending."""

from __future__ import annotations

import pytest

from qemu.device import Device
from tests.qemu.guest import FLASH_TIMEOUT_S, confirm, flash, settled_environment, until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(400)]


def test_good_update_is_tried_confirmed_and_stays(device: Device) -> None:
    assert device.run("abupdate confirm").exit_code == 4, "nothing is on trial"
    before = device.environment()
    flash(device, "v2")
    armed = device.environment()
    assert (armed["BOOT_ORDER"], armed["BOOT_TRIAL"], armed["BOOT_B_LEFT"]) == ("B A", "B", "3")
    assert device.run("abupdate confirm").exit_code == 3, "the trial slot is not the one that runs"
    assert device.run("abupdate flash /bundles/v3.abu").exit_code == 5, "armed and not rebooted is pending"

    up = device.reboot()
    assert (up.slot, up.version) == ("B", "2.0.0")
    status = device.status()
    assert status["trial"]["slot"] == "B"
    assert status["trial"]["tries_left"] == 2
    assert 0 < status["trial"]["deadline_s"] <= 60
    assert status["slots"]["A"]["state"] == "confirmed"
    assert device.check("cat /sys/class/watchdog/watchdog0/state") == "active"
    assert device.run("abupdate flash /bundles/v3.abu").exit_code == 5, "a trial runs"

    confirm(device)
    assert device.run("abupdate confirm").exit_code == 4
    confirmed = settled_environment(device)
    assert confirmed["BOOT_ORDER"] == "B A"
    assert (confirmed["BOOT_A_LEFT"], confirmed["BOOT_B_LEFT"]) == ("3", "3")
    assert confirmed["board_serial"] == before["board_serial"]

    device.power_cycle()
    up = device.wait_up()
    assert (up.slot, up.version) == ("B", "2.0.0")
    status = device.status()
    assert (status["trial"], status["attempt"]["phase"], status["slots"]["B"]["state"]) == (None, "confirmed", "confirmed")
    assert device.run("abupdate flash /bundles/v2.abu").exit_code == 4, "the booted slot holds it already"
    assert device.watchdog_resets == 0


def test_healthy_trial_is_confirmed_at_the_end_of_the_window(device: Device) -> None:
    flash(device, "v2")
    device.reboot()
    device.wait(r"abupdate\[service\]: .*slot is confirmed", 120)
    settled_environment(device)
    assert device.status()["slots"]["B"]["state"] == "confirmed"
    uptime_s = float(device.check("cut -d' ' -f1 /proc/uptime"))
    assert uptime_s >= 60, "not before the window is over"
    assert device.watchdog_resets == 0


def test_armed_trial_can_be_cancelled(device: Device) -> None:
    flash(device, "v2")
    device.check("abupdate revert")
    assert "BOOT_TRIAL" not in device.environment()
    up = device.reboot()
    assert (up.slot, up.version) == ("A", "1.0.0")
    device.check("abupdate activate", FLASH_TIMEOUT_S)
    assert device.reboot().slot == "B", "what was written is still there"


def test_running_trial_can_be_ended_by_hand(device: Device) -> None:
    flash(device, "v2")
    assert device.reboot().slot == "B"
    device.check("abupdate revert")
    assert device.reboot().slot == "A"
    status = device.status()
    assert (status["attempt"]["phase"], status["slots"]["B"]["state"]) == ("reverted", "bad")
    assert device.watchdog_resets == 0


def test_power_cycles_of_a_healthy_device_cost_it_nothing(updated: Device) -> None:
    """12 of them, four times what its boots would last, each as soon as userspace is up and the service has looked."""
    before = settled_environment(updated)
    for cycle in range(12):
        updated.power_cycle()
        up = updated.wait_up()
        assert up.slot == "B", f"cycle {cycle}"
        until("the service refills the boots", lambda: updated.environment() == before)
    assert settled_environment(updated) == before
    assert updated.watchdog_resets == 0


@pytest.mark.slow
def test_without_its_data_partition_the_service_still_pets_and_confirms(device: Device) -> None:
    flash(device, "v2")
    device.check("sync; dd if=/dev/zero of=/dev/disk/by-partlabel/data bs=1M count=4 conv=fsync 2>/dev/null")
    device.power_cycle()
    device.wait(r"^abu-guest: no data partition", 60)
    assert device.wait_up().slot == "B"
    device.wait(r"abupdate\[service\]: .*slot is confirmed", 120)
    until("the store shows it", lambda: "BOOT_TRIAL" not in device.environment())
    device.power_cycle()
    assert device.wait_up().slot == "B"
    assert device.watchdog_resets == 0
