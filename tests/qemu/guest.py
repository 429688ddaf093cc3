"""What the tests on a device ask and wait for in more than one place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from qemu.device import BOOT_WORD, Device
from qemu.machine import Machine

FLASH_TIMEOUT_S = 180.0


def flash(device: Device, bundle: str, *, tries: int = 3) -> None:
    """Flash a bundle that must be accepted; fewer tries by a configuration of its own, to have a bad one end sooner."""
    config = ""
    if tries != 3:
        device.check(f"sed 's/^tries = .*/tries = {tries}/' /etc/abupdate/config.toml >/data/config.toml")
        config = "-c /data/config.toml "
    device.check(f"abupdate {config}flash /bundles/{bundle}.abu", FLASH_TIMEOUT_S)
    assert device.environment()["BOOT_B_LEFT" if device.status()["booted"] == "A" else "BOOT_A_LEFT"] == str(tries)


def until(what: str, seen: Callable[[], Any], timeout_s: float = 60) -> Any:
    """Ask again and again until the answer is true; return it. Fails with the last answer when time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = seen()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.5)


def confirm(device: Machine) -> None:
    """`abupdate confirm` of the slot on trial; where the service is just starting it waits for the lock by itself."""
    device.check("abupdate confirm")


def boots_seen(device: Device, since: int = 0) -> list[str]:
    """The slots that the hook started, in order, as the console tells: `A confirmed`, `B trial`..., from a place in its text on."""
    lines = (line for line in device.console.text[since:].splitlines() if line.startswith("abupdate: slot "))
    return [" ".join(line.split()[2:4]) for line in lines if " left " in line]


def settled_environment(device: Device) -> dict[str, str]:
    """The environment once nothing is on trial any more, the running slot has all its boots, and the service has recorded that.

    The boot store is committed before the record: what the record says is not asked for, or cut away, before the service's own word.
    """

    slot = device.booted()

    def settled() -> dict[str, str]:
        values = device.environment()
        full = int(values.get("BOOT_BUDGET", "a"), 16)
        if "BOOT_TRIAL" in values or int(values[f"BOOT_{slot}_LEFT"], 16) != full:
            return {}
        return values if device.run("test -e /run/abupdate/settled").exit_code == 0 else {}

    answer: dict[str, str] = until("the service settles the boot state", settled)
    return answer


def reboot_into_trial(device: Device) -> None:
    """Order the reboot that starts a trial; returns when U-Boot runs."""
    device.type("reboot")
    device.wait(BOOT_WORD, 60)
