"""The story that `qemu/demo` tells: a good update that stays, and a bad one that the watchdog ends. One line for each step."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qemu.console import ConsoleError
from qemu.device import BOOT_WORD, Device

TRIES = 3
HANGING = "bad-hang-before-service"


@dataclass(frozen=True)
class Done:
    """A step of the story: what it was, whether it held, and how long it took."""

    name: str
    held: bool
    seconds: float


class Story:
    """Runs the steps on one device and keeps the score."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.steps: list[Done] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step: `ok NAME` when its body ends, `FAIL NAME` and no further step when it raises."""
        start = time.monotonic()
        try:
            yield
        except BaseException:
            self.steps.append(Done(name, False, time.monotonic() - start))
            print(f"FAIL {name}", flush=True)
            raise
        self.steps.append(Done(name, True, time.monotonic() - start))
        print(f"ok {name} ({self.steps[-1].seconds:.0f} s)", flush=True)

    def flash(self, bundle: str) -> None:
        """`abupdate flash` in the guest, its progress bar shown as it is drawn."""
        device = self.device
        device.console.mirror = Bar()
        try:
            said = device.check(f"abupdate flash --progress bar /bundles/{bundle}.abu", 180)
        finally:
            device.console.mirror = None
        print(f"     {said.splitlines()[-1].strip()}", flush=True)


class Bar:
    """Shows only the progress bar out of what the console says; a bar may arrive in pieces."""

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        """More of what the console says."""
        self._rest += data
        end = 0
        for match in re.finditer(rb"\r *(\w+ \[[#.]+\] +\d+% of \d+ MiB)(\r?\n)?", self._rest):
            end = match.end()
            os.write(1, b"\r  %-72s" % match.group(1) + (b"\n" if match.group(2) else b""))
        self._rest = self._rest[end:][-200:]


def expect(what: str, seen: object, wanted: object) -> None:
    """Raise ConsoleError where the device shows something else than the story says."""
    if seen != wanted:
        raise ConsoleError(f"{what}: {wanted!r} was expected, the device shows {seen!r}")


def until_settled(device: Device) -> None:
    """Wait until the service has given the running slot its boots back, and so is at work."""
    deadline = time.monotonic() + 60
    while len({device.environment()[name] for name in ("BOOT_BUDGET", f"BOOT_{device.booted()}_LEFT")}) != 1:
        if time.monotonic() > deadline:
            raise ConsoleError("the service does not refill the boots of the running slot")
        time.sleep(0.5)


def good_update(story: Story) -> None:
    """Version 1.0.0 on A becomes 2.0.0 on B and stays."""
    device = story.device
    with story.step("version 1.0.0 runs on slot A"):
        up = device.boot()
        expect("slot and version", (up.slot, up.version), ("A", "1.0.0"))
        until_settled(device)
    with story.step("abupdate flash: 2.0.0 is written to slot B and verified while A runs"):
        story.flash("v2")
        expect("first in the boot order", device.status()["primary"], "B")
    with story.step("reboot: 2.0.0 runs on slot B, on trial, the watchdog armed"):
        up = device.reboot()
        expect("slot and version", (up.slot, up.version), ("B", "2.0.0"))
        expect("slot on trial", (device.status()["trial"] or {}).get("slot"), "B")
        expect("watchdog", device.check("cat /sys/class/watchdog/watchdog0/state"), "active")
    with story.step("abupdate confirm: 2.0.0 is kept"):
        device.check("abupdate confirm")
        expect("state of slot B", device.status()["slots"]["B"]["state"], "confirmed")
    with story.step("power cycle: still 2.0.0 on slot B"):
        device.power_cycle()
        up = device.wait_up()
        expect("slot and version", (up.slot, up.version), ("B", "2.0.0"))


def bad_update(story: Story) -> None:
    """Version 3.0.0 hangs on A; the device comes back to 2.0.0 on B by itself and says why."""
    device = story.device
    with story.step("abupdate flash: 3.0.0, which hangs, is written to slot A and verified"):
        story.flash(HANGING)
    fired = device.watchdog_resets
    device.type("reboot")
    for number in range(1, TRIES + 1):
        with story.step(f"3.0.0 hangs, and the hardware watchdog resets the device (try {number} of {TRIES})"):
            device.wait(r"^abupdate: slot A trial left", 60)
            device.wait(r"^abu-guest: fault hang-before-service", 60)
            device.wait(BOOT_WORD, 60)
            expect("times the watchdog has fired", device.watchdog_resets - fired, number)
    with story.step("the tries are used up: 2.0.0 runs on slot B again"):
        up = device.wait_up()
        expect("slot and version", (up.slot, up.version), ("B", "2.0.0"))
    with story.step("abupdate status says why"):
        device.wait(r"abupdate\[service\]: .*fell back", 60)
        attempt = device.status()["attempt"]
        expect("version of the last attempt", attempt["version"], "3.0.0")
        expect("how it ended", attempt["phase"], "reverted")
        if "watchdog" not in attempt["reason"]:
            raise ConsoleError(f"the reason does not name the watchdog: {attempt['reason']!r}")
        expect("state of slot A", device.status()["slots"]["A"]["state"], "bad")
        for line in device.check("abupdate status").splitlines():
            print(f"     {line}", flush=True)


def main() -> int:
    """Tell the story; 0 when every step held, 1 with the console's tail otherwise."""
    start = time.monotonic()
    with Device() as device:
        story = Story(device)
        try:
            good_update(story)
            bad_update(story)
        except ConsoleError as error:
            tail = "" if "---- console ----" in str(error) else f"\n  ---- console ----\n{device.console.tail()}"
            print(f"{error}{tail}", file=sys.stderr)
    print("\n".join(["", *(f"  {'ok  ' if step.held else 'FAIL'} {step.seconds:6.1f} s  {step.name}" for step in story.steps)]))
    held = all(step.held for step in story.steps)
    print(f"\n{'every step held' if held else 'the story broke'} in {time.monotonic() - start:.0f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
