"""Updates that go wrong at every stage of the boot: the device is back on the version before, by itself, and says why."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from qemu.device import Device
from tests.qemu.guest import boots_seen, confirm, flash, reboot_into_trial, settled_environment

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class End:
    """How a bad update must end. word: what the console says when it goes wrong. reason: in the status afterwards.

    by_watchdog: every try is ended by the hardware. boots: trial boots that the hook starts, when it has `tries`.
    """

    bundle: str
    word: str
    reason: str
    by_watchdog: bool
    tries: int = 1
    boots: int = 1


ENDS = (
    End("bad-kernel-hang", "Starting kernel", "watchdog", True),
    End("bad-hang-before-arming", "abu-guest: fault hang-before-arming", "watchdog", True),
    End("bad-hang-after-arming", "abu-guest: fault hang-after-arming", "watchdog", True),
    End("bad-hang-before-service", "abu-guest: fault hang-before-service", "watchdog", True, tries=3, boots=3),
    End("bad-no-service", "abu-guest: fault no-service", "watchdog", True),
    End("bad-crash-service", "not started again", "watchdog", True),
    End("bad-panic", "Kernel panic", "tries exhausted", False, tries=3, boots=3),
    End("bad-kernel-garbage", "slot B could not be started", "load failed", False, tries=3, boots=1),
    End("bad-health-critical", "going back", "critical", False, tries=3, boots=1),
    End("bad-health-degraded", "going back", "degraded", False, tries=3, boots=1),
)
# One of each sort in every run; the others end in the same places.
SAMPLE = ("bad-kernel-hang", "bad-hang-after-arming", "bad-panic", "bad-kernel-garbage", "bad-health-critical")
SLOW = tuple(End(e.bundle, e.word, e.reason, e.by_watchdog, tries=3, boots=3) for e in ENDS if e.by_watchdog and e.tries == 1)


def comes_back(device: Device, end: End) -> None:
    flash(device, end.bundle, tries=end.tries)
    start = len(device.console.text)
    reboot_into_trial(device)
    for _ in range(end.boots):
        device.wait(end.word, 90)
    # Exactly these trial boots, then the good slot: a surplus one would be seen here.
    device.wait(r"^abupdate: slot A confirmed left", 120)
    up = device.wait_up()
    assert (up.slot, up.version) == ("A", "1.0.0")
    assert boots_seen(device, start) == ["B trial"] * end.boots + ["A confirmed"]
    assert device.watchdog_resets == (end.boots if end.by_watchdog else 0)

    values = settled_environment(device)
    assert values["BOOT_B_LEFT"] == "0"
    assert "B" not in values["BOOT_ORDER"].split()
    status = device.status()
    assert status["attempt"]["phase"] == "reverted"
    assert status["attempt"]["version"] == "3.0.0"
    assert end.reason in status["attempt"]["reason"]
    assert status["slots"]["B"]["state"] == "bad"
    assert status["slots"]["A"]["state"] == "confirmed"


@pytest.mark.parametrize(
    "end", [end if end.bundle in SAMPLE else pytest.param(end, marks=pytest.mark.slow) for end in ENDS], ids=lambda end: end.bundle
)
def test_bad_update_ends_on_the_version_before(device: Device, end: End) -> None:
    comes_back(device, end)


@pytest.mark.slow
@pytest.mark.parametrize("end", SLOW, ids=lambda end: end.bundle)
def test_bad_update_uses_up_all_its_tries(device: Device, end: End) -> None:
    comes_back(device, end)


@pytest.mark.slow
def test_after_a_bad_update_a_good_one_goes_through(device: Device) -> None:
    comes_back(device, next(end for end in ENDS if end.bundle == "bad-kernel-garbage"))
    flash(device, "v3")
    up = device.reboot()
    assert (up.slot, up.version) == ("B", "3.0.0")
    confirm(device)
    assert device.status()["slots"]["B"]["state"] == "confirmed"
