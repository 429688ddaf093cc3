"""The whole machine is killed at seeded moments of an update; each time it boots a whole slot, and a second flash ends the job.

SIGKILL of QEMU loses nothing that was written: this tests restarts at any moment, not the loss of a power cut.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from qemu.device import BOOT_WORD, Device
from tests.qemu.cutting import seed_of_this_commit
from tests.qemu.guest import FLASH_TIMEOUT_S, confirm, flash, settled_environment, until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

ALL, FEW = 25, 2
VERSIONS = {"A": "1.0.0", "B": "2.0.0"}


@dataclass(frozen=True)
class Moment:
    """A word of the story and the seconds after it."""

    after: str
    delay_s: float

    def __str__(self) -> str:
        return f"{self.delay_s:.2f} s after {self.after}"


# What is waited for on the console, and how long after it the machine may be killed.
STORY = {
    "flash is typed": 1.5,
    "writing": 2.5,
    "verifying": 2.5,
    "armed": 0.3,
    "reboot is typed": 1.5,
    "U-Boot of the trial": 3.0,
    "userspace of the trial": 4.0,
    "confirm is typed": 1.0,
    "confirmed": 0.3,
}


SEED = seed_of_this_commit()


def moments(count: int) -> list[Moment]:
    """Seeded; every word of the story comes up as often as any other."""
    chance = random.Random(SEED)
    words = [word for _ in range(-(-count // len(STORY))) for word in chance.sample(sorted(STORY), len(STORY))]
    return [Moment(word, round(chance.uniform(0, STORY[word]), 2)) for word in words[:count]]


def tell_until(device: Device, word: str) -> None:
    """The story up to this word."""
    device.type("abupdate flash --progress json /bundles/v2.abu; echo flash-ended $?")
    if word == "flash is typed":
        return
    device.wait(r'"phase": "write", "done_bytes": [1-9]', 120)
    if word == "writing":
        return
    device.wait(r'"phase": "verify"', FLASH_TIMEOUT_S)
    if word == "verifying":
        return
    device.wait(r"^flash-ended 0\n", FLASH_TIMEOUT_S)
    if word == "armed":
        return
    device.type("reboot")
    if word == "reboot is typed":
        return
    device.wait(BOOT_WORD, 60)
    if word == "U-Boot of the trial":
        return
    assert device.wait_up().slot == "B"
    if word == "userspace of the trial":
        return
    device.type("abupdate confirm; echo confirm-ended $?")
    if word == "confirm is typed":
        return
    device.wait(r"^confirm-ended 0\n", 60)


def killed_at(device: Device, moment: Moment) -> None:
    """Kill the machine there, start it again, look, and finish the update."""
    tell_until(device, moment.after)
    if moment.delay_s:
        # Not a verdict: it chooses the place of the cut.
        with pytest.raises(AssertionError):
            device.wait("never said", moment.delay_s)
    device.power_cycle()
    up = device.wait_up()
    assert up.version == VERSIONS[up.slot], "a whole slot boots, with what it should hold"
    status = device.status()
    assert status["booted"] == up.slot
    if up.slot == "A":
        values = settled_environment(device)
        assert values["BOOT_ORDER"].split()[0] == "A"
        assert status["slots"]["A"]["state"] == "confirmed"
        flash(device, "v2")
        assert device.reboot().version == "2.0.0"
        status = device.status()
    if status["slots"]["B"]["state"] == "trial":
        confirm(device)
    until("the service refills the boots", lambda: device.environment()["BOOT_B_LEFT"] == "3")
    again = device.run("abupdate flash --progress none /bundles/v2.abu", FLASH_TIMEOUT_S)
    assert again.exit_code == 4, again.output
    assert device.status()["slots"]["B"]["state"] == "confirmed"
    device.power_cycle()
    assert device.wait_up().slot == "B"
    assert settled_environment(device)["BOOT_ORDER"] == "B A"
    assert device.watchdog_resets == 0


@pytest.mark.parametrize("number", range(FEW))
def test_killed_at_a_moment(device: Device, number: int) -> None:
    moment = moments(FEW)[number]
    print(f"seed {SEED}: killed {moment}")
    killed_at(device, moment)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ALL))
def test_killed_at_many_moments(device: Device, number: int) -> None:
    moment = moments(ALL)[number]
    print(f"seed {SEED}: killed {moment}")
    killed_at(device, moment)
