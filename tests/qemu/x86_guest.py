"""What the tests on x86-64 devices do and wait for, whatever the bootloader: they look at `abupdate status` and the kernel's words."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.x86 import BOOT_TIMEOUT_S
from qemu.machine import FROZEN
from qemu.x86 import X86Device
from tests.qemu.guest import until

FLASH_TIMEOUT_S = 180.0
WATCHDOG_STATE = "cat /sys/class/watchdog/watchdog0/state"


class Frozen:
    """Devices that run 1.0.0 on A with the service at work, one for each board and firmware, booted once and stopped in the middle of it.

    Every test goes on with a copy of its own, so none of them pays for a boot that they all have in common.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], X86Device] = {}

    def close(self) -> None:
        """Remove their folders."""
        for device in self._made.values():
            device.close()

    @contextmanager
    def thawed(self, board: str, firmware: str = "uefi") -> Iterator[X86Device]:
        """A running device."""
        if (board, firmware) not in self._made:
            self._made[board, firmware] = _first_boot(board, firmware)
        original = self._made[board, firmware].folder
        folder = Path(tempfile.mkdtemp(prefix=f"{original.name}-", dir=original.parent))
        try:
            for path in original.iterdir():
                if path.name in ("disk.img", "bundles.img", FROZEN):
                    (folder / path.name).hardlink_to(path.resolve())
                elif path.suffix in (".qcow2", ".fd"):
                    shutil.copy(path, folder)
            with X86Device(folder, board=board, firmware=firmware) as device:
                device.thaw()
                assert device.booted() == "A"
                yield device
        finally:
            shutil.rmtree(folder)


def _first_boot(board: str, firmware: str) -> X86Device:
    device = X86Device(board=board, firmware=firmware)
    try:
        assert device.boot().slot == "A"
        if firmware == "uefi" and board != "grub":
            # As on a board that is being set up: what the firmware must know of the slots, and of the boot manager.
            device.check("abupdate doctor --fix")
        if board == "efi":
            # Its own entry boots it from now on.
            assert device.reboot().slot == "A"
        assert settled(device)["primary"] == "A"
        device.check("sync")
        device.freeze()
    except BaseException:
        device.close()
        raise
    return device


def settled(device: X86Device) -> dict[str, Any]:
    """The status once the service has seen this boot through: nothing on trial, and it has said that it is at work."""

    def look() -> dict[str, Any] | None:
        if device.run("test -e /run/abupdate/settled").exit_code != 0:
            return None
        status = device.status()
        return status if status["trial"] is None else None

    answer: dict[str, Any] = until("the service settles the boot state", look)
    return answer


def flash(device: X86Device, bundle: str, *, tries: int | None = None) -> None:
    """Flash a bundle that must be accepted and armed. tries: other than the configuration's."""
    config = ""
    if tries is not None:
        device.check(f"sed 's/^tries = .*/tries = {tries}/' /etc/abupdate/config.toml >/data/config.toml")
        config = "-c /data/config.toml "
    before = device.status()
    device.check(f"abupdate {config}flash /bundles/{bundle}.abu", FLASH_TIMEOUT_S)
    after = device.status()
    assert after["primary"] != before["booted"], "the other slot boots next"
    assert after["trial"]["slot"] == after["primary"]


def reboot_into_trial(device: X86Device) -> None:
    """Order the reboot that starts a trial; returns when the firmware runs."""
    device.type("reboot")
    device.wait(device.boot_word, 60)


def cmdline(device: X86Device) -> dict[str, str]:
    """The kernel's arguments that the boot side added, and root=."""
    words = device.check("cat /proc/cmdline").split()
    pairs = (word.partition("=")[::2] for word in words)
    return {key: value for key, value in pairs if re.match(r"abupdate\.|watchdog\.|panic$|root$", key)}


def boots_seen(device: X86Device, since: int = 0) -> list[str]:
    """The slots that were started from a place in the console's text on, in order, as the initramfs tells: `A`, `B trial`..."""
    found = re.finditer(r"^abu-guest: starts slot=(\S*) trial=(\S*)$", device.console.text[since:], re.MULTILINE)
    return [f"{match[1]} trial" if match[2] == "1" else match[1] for match in found]


def good_update(device: X86Device) -> None:
    """1.0.0 on A becomes 2.0.0 on B: flashed, tried under the watchdog, confirmed. The device is booted and settled."""
    assert device.run("abupdate confirm").exit_code == 4, "nothing is on trial"
    flash(device, "v2")
    assert device.run("abupdate confirm").exit_code == 3, "the slot on trial is not the one that runs"
    assert device.run("abupdate flash /bundles/v3.abu").exit_code == 5, "armed and not rebooted is pending"
    up = device.reboot()
    assert (up.slot, up.version) == ("B", "2.0.0")
    told = cmdline(device)
    assert told["abupdate.slot"] == "B"
    assert told["abupdate.trial"] == "1"
    assert told["abupdate.boot_timeout"] == told["watchdog.open_timeout"] == str(BOOT_TIMEOUT_S)
    assert told["panic"] == "10"
    assert told["root"] == "PARTLABEL=rootfs_b"
    assert device.check(WATCHDOG_STATE) == "active"
    status = device.status()
    assert status["trial"]["slot"] == "B"
    assert 0 < status["trial"]["deadline_s"] <= 60
    assert status["slots"]["A"]["state"] == "confirmed"
    device.check("abupdate confirm")
    assert device.run("abupdate confirm").exit_code == 4
    status = settled(device)
    assert (status["primary"], status["attempt"]["phase"], status["slots"]["B"]["state"]) == ("B", "confirmed", "confirmed")
    assert status["slots"]["A"]["state"] == "confirmed"
    assert device.watchdog_resets == 0


def stays(device: X86Device) -> None:
    """After `good_update`: the next boots are B's, not on trial, also after a power cycle."""
    device.power_cycle()
    up = device.wait_up()
    assert (up.slot, up.version) == ("B", "2.0.0")
    told = cmdline(device)
    assert (told["abupdate.slot"], told["panic"]) == ("B", "10")
    assert "abupdate.trial" not in told
    status = settled(device)
    assert (status["primary"], status["slots"]["B"]["state"], status["slots"]["A"]["state"]) == ("B", "confirmed", "confirmed")
    assert device.run("abupdate flash /bundles/v2.abu").exit_code == 4, "the booted slot holds it already"


@dataclass(frozen=True)
class End:
    """How a bad update must end. word: what the console says when it goes wrong. reason: in the status afterwards.

    boots: trial boots that reach the initramfs. by_watchdog: each is ended by the hardware. tries: other than the configuration's.
    """

    bundle: str
    word: str
    reason: str
    boots: int
    by_watchdog: bool = False
    tries: int | None = None


def bad_update(device: X86Device, end: End) -> None:
    """A bad 3.0.0 on B ends on 1.0.0 on A, by itself, and the status says why. The device is booted and settled."""
    flash(device, end.bundle, tries=end.tries)
    start = len(device.console.text)
    reboot_into_trial(device)
    for _ in range(max(1, end.boots)):
        device.wait(end.word, 120)
    device.wait(r"^abu-guest: starts slot=A trial=\n", 120)
    up = device.wait_up()
    assert (up.slot, up.version) == ("A", "1.0.0")
    assert boots_seen(device, start) == ["B trial"] * end.boots + ["A"]
    assert device.watchdog_resets == (end.boots if end.by_watchdog else 0)
    gone_back(device, "3.0.0", end.reason)


def gone_back(device: X86Device, version: str, reason: str) -> None:
    """The status of a device that runs A again after B's trial has failed."""
    status = settled(device)
    attempt = status["attempt"]
    assert (status["primary"], attempt["phase"], attempt["version"]) == ("A", "reverted", version)
    assert reason in attempt["reason"]
    assert (status["slots"]["B"]["state"], status["slots"]["A"]["state"]) == ("bad", "confirmed")


def tries_are_used_up(device: X86Device, tries: int) -> None:
    """A healthy 2.0.0 whose every trial boot is cut off before it is confirmed: back to A when no try is left."""
    flash(device, "v2")
    start = len(device.console.text)
    for boot in range(tries):
        device.power_cycle()
        up = device.wait_up()
        assert (up.slot, up.version) == ("B", "2.0.0"), f"boot {boot} of the trial"
    device.power_cycle()
    up = device.wait_up()
    assert (up.slot, up.version) == ("A", "1.0.0")
    assert boots_seen(device, start) == ["B trial"] * tries + ["A"]
    gone_back(device, "2.0.0", "tries exhausted")


def armed_trial_is_cancelled(device: X86Device) -> None:
    """`revert` before the reboot; what was written is still there for `activate`."""
    flash(device, "v2")
    device.check("abupdate revert")
    up = device.reboot()
    assert (up.slot, up.version) == ("A", "1.0.0")
    assert settled(device)["primary"] == "A"
    device.check("abupdate activate", FLASH_TIMEOUT_S)
    assert device.reboot().slot == "B"


def running_trial_is_reverted(device: X86Device) -> None:
    """`revert` on the trial: the next boot is A's."""
    flash(device, "v2")
    assert device.reboot().slot == "B"
    device.check("abupdate revert")
    assert device.reboot().slot == "A"
    gone_back(device, "2.0.0", "ordered by the operator")


def power_cut_while_flashing(device: X86Device) -> None:
    """QEMU is killed while the slot is written: A boots, B does not, and a second flash finishes the job."""
    device.type("abupdate flash --progress json /bundles/v2.abu")
    device.wait(r'"phase": ?"write", .*"done_bytes": ?[1-9]\d{7}', 120)
    device.power_cycle()
    up = device.wait_up()
    assert (up.slot, up.version) == ("A", "1.0.0")
    status = settled(device)
    assert status["primary"] == "A"
    assert status["slots"]["B"]["state"] in ("writing", "bad", "empty")
    flash(device, "v2")
    assert device.reboot().slot == "B"
    device.check("abupdate confirm")
    assert settled(device)["slots"]["B"]["state"] == "confirmed"


def power_cut_after_arming(device: X86Device) -> None:
    """QEMU is killed as soon as flash has said that the slot is armed: the trial starts at the next boot, and can be confirmed."""
    flash(device, "v2")
    device.power_cycle()
    up = device.wait_up()
    assert (up.slot, up.version) == ("B", "2.0.0")
    assert cmdline(device)["abupdate.trial"] == "1"
    device.check("abupdate confirm")
    assert settled(device)["slots"]["B"]["state"] == "confirmed"
