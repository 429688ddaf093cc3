"""The watchdog's class on a real device file, driver and chip (i6300esb): what the unit tests model, the kernel says here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from qemu.device import BOOT_WORD, Device

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

OPEN = """
import json, os, time
from dataclasses import asdict
from pathlib import Path
from abupdate.devices.watchdog import Watchdog, probe
from abupdate.devices.watchdog_sysfs import facts
from abupdate.errors import AbupdateError
device = Path("/dev/watchdog0")
state = lambda: facts(device).state
"""


def python(device: Device, script: str) -> Any:
    """Run the script in the guest; its last expression line prints JSON, which is returned."""
    output = device.check(f"python3 - <<'END'\n{OPEN}{script}\nEND", 90)
    return json.loads(output.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    """A confirmed device whose service does not hold the watchdog."""
    with Device() as device:
        device.boot()
        # At its start the service takes over a watchdog that runs and that nobody holds, as one left by a test would.
        device.check("while [ ! -e /run/abupdate/settled ]; do sleep 0.2; done", 60)
        yield device


def test_facts_and_probe(device: Device) -> None:
    said = python(device, "print(json.dumps([asdict(facts(device)), asdict(probe(device)), state()]))")
    known, probed, state = said
    assert known["identity"] == "i6300ESB timer"
    assert (known["state"], known["nowayout"], known["bootstatus"], known["timeout_s"]) == ("inactive", False, 0, 30)
    assert (known["min_s"], known["max_s"]) == (1, 2046)
    assert probed["options"] & 0x100, "the driver knows the magic character"
    assert state == "inactive", "looking at it left it running"


@pytest.mark.slow
def test_open_is_running_busy_is_named_and_disarmed_is_stopped(device: Device) -> None:
    said = python(
        device,
        """
said = [state()]
w = Watchdog(device)
said += [w.identity, state(), w.set_timeout(4), w.timeout_s, w.set_timeout(100000), w.set_timeout(4), w.stops_on_close]
try:
    Watchdog(Path("/dev/watchdog"))
except AbupdateError as error:
    said += [type(error).__name__, error.message.replace(str(os.getpid()), "PID")]
for _ in range(7):
    time.sleep(1)
    w.pet()
said += [w.disarm(), state()]
time.sleep(7)
print(json.dumps(said))
""",
    )
    assert said[:3] == ["inactive", "i6300ESB timer", "active"]
    assert said[3:5] == [4, 4]
    assert said[5] <= 2046, "granted is not what was asked"
    assert said[6:8] == [4, False]
    assert said[8:10] == ["Busy", "/dev/watchdog is held by python3 (pid PID)"]
    assert said[10:] == ["", "inactive"]
    assert device.watchdog_resets == 0


def test_handed_over_it_runs_on_and_the_next_one_takes_it_without_a_gap(device: Device) -> None:
    said = python(
        device,
        """
with Watchdog(device) as w:
    w.set_timeout(4)
said = [state()]
time.sleep(2)
with Watchdog(device) as w:
    said += [w.timeout_s]
    time.sleep(3)
time.sleep(3)
w = Watchdog(device)
said += [w.disarm(), state()]
print(json.dumps(said))
""",
    )
    assert said == ["active", 4, "", "inactive"]
    assert device.watchdog_resets == 0


@pytest.mark.slow
def test_a_magic_character_left_in_the_kernel_does_not_stop_a_later_handing_over(device: Device) -> None:
    """Stopped by ioctl, then closed with `V`: the kernel keeps the permission, and the next plain close would stop the hardware.

    The negative control opens by hand in between: that close does stop it.
    """
    said = python(
        device,
        """
import fcntl, struct
def leave_magic():
    fd = os.open(device, os.O_WRONLY)
    fcntl.ioctl(fd, 0x80045704, struct.pack("=i", 1))
    os.write(fd, b"V")
    os.close(fd)
leave_magic()
os.close(os.open(device, os.O_WRONLY))
said = [state()]
leave_magic()
w = Watchdog(device)
os.close(w._fd)  # as when the process is killed
said += [state()]
w = Watchdog(device)
said += [w.disarm(), state()]
print(json.dumps(said))
""",
    )
    assert said == ["inactive", "active", "", "inactive"]


@pytest.mark.slow
def test_a_locked_chip_is_not_disarmed_and_resets_the_machine_once_nobody_pets(device: Device) -> None:
    said = python(
        device,
        """
w = Watchdog(device)
said = [w.set_timeout(4)]
(chip,) = [path.parent for path in Path("/sys/bus/pci/devices").glob("*/device") if path.read_text().strip() == "0x25ab"]
with open(chip / "config", "r+b", buffering=0) as registers:
    registers.seek(0x68)
    now = registers.read(1)[0]
    registers.seek(0x68)
    registers.write(bytes([now | 1]))
said += [w.disarm(), state()]
for _ in range(7):
    time.sleep(1)
    w.pet()
said += [w.disarm(), state()]
w.hand_over()
print(json.dumps(said))
""",
    )
    assert said[0] == 4
    assert "locked until the next reset" in said[1]
    assert said[1:3] == said[3:5] == [said[1], "active"]
    device.wait(BOOT_WORD, 30)
    device.wait_up()
    assert device.watchdog_resets == 1
    assert python(device, "print(json.dumps(facts(device).caused_last_reset))") is True
