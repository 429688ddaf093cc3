"""A trial under adverse conditions: the clock jumps by years, the disk crawls, a health program floods, forks and then hangs."""

from __future__ import annotations

import json
import re

import pytest

from qemu.device import BOOT_WORD, Device
from tests.qemu.guest import confirm, flash, settled_environment, until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(400)]

SAYS = r"^abupdate\[service\]: abupdate: "
PETTED = "cat /sys/class/watchdog/watchdog0/timeout"


def service_pets(device: Device) -> None:
    """Wait until the service has the watchdog, with its own timeout."""
    until("the service takes the watchdog", lambda: device.check(PETTED) == "10")


@pytest.mark.slow
def test_a_clock_that_jumps_by_years_does_not_move_the_window(device: Device) -> None:
    """Back by decades and forward by decades: the window counts from boot, and the hardware is petted all the while."""
    flash(device, "v2")
    assert device.reboot().slot == "B"
    service_pets(device)
    deadlines = [device.status()["trial"]["deadline_s"]]
    for date in ("2001-01-01", "2036-12-31", "1999-06-15"):
        device.check(f"date -s '{date} 12:00:00'")
        deadlines.append(device.status()["trial"]["deadline_s"])
    assert sorted(deadlines, reverse=True) == deadlines
    assert 0 < deadlines[-1] < deadlines[0] <= 60
    device.wait(r"abupdate\[service\]: .*slot is confirmed", 90, unless=BOOT_WORD)
    assert 60 <= float(device.check("cut -d' ' -f1 /proc/uptime")) < 75
    assert settled_environment(device)["BOOT_ORDER"] == "B A"
    assert device.watchdog_resets == 0
    # And into the next boot with a clock that went back to before the update was made.
    device.power_cycle()
    assert device.wait_up().slot == "B"
    assert device.status()["slots"]["B"]["state"] == "confirmed"


def throttle(device: Device, bytes_per_s: int) -> None:
    """Limit the disk while the machine runs; 0: no limit."""
    assert device.monitor
    said = device.monitor.execute("human-monitor-command", command_line=f"block_set_io_throttle disk {bytes_per_s} 0 0 0 0 0")
    assert not said, said


@pytest.mark.slow
def test_a_disk_that_crawls(device: Device) -> None:
    """A flash completes and its progress goes on; the service of a trial pets in time, and confirms in its window."""
    throttle(device, 8 << 20)
    said = device.check("abupdate flash --progress json /bundles/v2.abu", 240)
    steps = [json.loads(line) for line in re.findall(r"^\{\"phase.*\}$", said, re.MULTILINE)]
    done = [step["done_bytes"] for step in steps if step["phase"] == "write"]
    assert len(done) > 8
    assert done == sorted(done)
    assert [step["done_bytes"] == step["total_bytes"] for step in steps][-1]
    throttle(device, 8 << 20)
    assert device.reboot(180).slot == "B"
    service_pets(device)
    load = "while :; do dd if=/dev/disk/by-partlabel/rootfs_a of=/dev/null bs=128k iflag=direct 2>/dev/null; done"
    device.check(f"setsid sh -c '{load}' </dev/null >/dev/null 2>&1 &")
    device.wait(r"abupdate\[service\]: .*slot is confirmed", 180, unless=BOOT_WORD)
    assert float(device.check("cut -d' ' -f1 /proc/uptime")) < 100
    throttle(device, 0)
    assert settled_environment(device)["BOOT_ORDER"] == "B A"
    assert device.watchdog_resets == 0


MISBEHAVES = """#!/bin/sh
# First rounds: a flood, children that stay behind, a good end. Then: deaf and for ever.
[ -e /run/hang ] || { sleep 1000 & setsid sleep 1000 & head -c 300000 /dev/zero; exit 0; }
trap '' TERM INT HUP
while :; do sleep 1000; done
"""


@pytest.mark.slow
def test_a_health_program_that_floods_forks_and_then_hangs(device: Device) -> None:
    """The service runs on trial with this program alone: it pets and waits, and goes back once the program hangs."""
    flash(device, "v2")
    assert device.reboot().slot == "B"
    service_pets(device)
    until("the service has looked for programs", lambda: "slot B is on trial" in device.console.text)
    device.check(f"mkdir -m 755 /run/health.d; cat >/run/health.d/50-bad <<'END'\n{MISBEHAVES}END\nchmod 755 /run/health.d/50-bad")
    device.check("mount --bind /run/health.d /etc/abupdate/health.d")
    # The running service has looked for programs already. Another one judges beside it, and takes the hardware once that is dead.
    # What it says goes the way of the supervised one's words, line by line to the console: nothing of it is lost in the reboot.
    device.check("setsid abupdate -v service --trial </dev/null >/run/service.out 2>&1 &")
    device.wait(rf"{SAYS}health: ok", 50, unless=BOOT_WORD)
    device.type("kill -KILL $(cat /run/service.pid)")
    device.wait(rf"{SAYS}watchdog is open", 20, unless=BOOT_WORD)
    device.check("sleep 12")
    assert "going back" not in device.console.text
    left = device.run("ps | grep -c '[s]leep 1000'").output
    assert int(left) <= 2, "only what the round that runs now has started"
    assert device.watchdog_resets == 0
    device.type("touch /run/hang")
    device.wait(rf"{SAYS}going back: health critical: 50-bad: no answer within 2 s", 40, unless=BOOT_WORD)
    device.wait(BOOT_WORD, 60)
    assert device.wait_up().slot == "A"
    settled_environment(device)
    assert "no answer within 2 s" in device.status()["attempt"]["reason"]
    assert device.watchdog_resets == 0, "it went back by itself, in time"


@pytest.mark.slow
def test_confirm_by_hand_under_the_crawl(device: Device) -> None:
    flash(device, "v2")
    throttle(device, 2 << 20)
    assert device.reboot(180).slot == "B"
    confirm(device)
    assert device.status()["slots"]["B"]["state"] == "confirmed"
    assert device.watchdog_resets == 0
