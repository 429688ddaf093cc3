"""What the kernel tells about watchdogs without opening them: /sys/class/watchdog, and /proc for who holds one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CARDRESET = 0x20
MAGICCLOSE = 0x100


@dataclass(frozen=True, slots=True)
class WatchdogPaths:
    """Where the kernel shows devices, their attributes and who has them open."""

    dev: Path = Path("/dev")
    sys_class: Path = Path("/sys/class/watchdog")
    proc: Path = Path("/proc")


KERNEL_PATHS = WatchdogPaths()


@dataclass(frozen=True, slots=True)
class WatchdogFacts:
    """What sysfs says without opening the device; None where the kernel or the driver does not say.

    state: "active" or "inactive". bootstatus: WDIOF_* bits of the last boot. timeout_s, time_left_s, min_s, max_s: seconds.
    options: WDIOF_* bits of the driver.
    """

    name: str
    identity: str | None
    state: str | None
    nowayout: bool | None
    timeout_s: int | None
    time_left_s: int | None
    min_s: int | None
    max_s: int | None
    bootstatus: int | None
    options: int | None

    @property
    def caused_last_reset(self) -> bool | None:
        """True when this watchdog reset the machine before this boot; None where the driver does not report it."""
        return None if self.bootstatus is None else bool(self.bootstatus & _CARDRESET)

    @property
    def stops_on_close(self) -> bool | None:
        """True for a driver that cannot be handed over: every close stops it. None where only opening it would tell."""
        if self.nowayout:
            return False
        if self.options is None or self.nowayout is None:
            return None
        return not self.options & MAGICCLOSE


def facts(device: Path, paths: WatchdogPaths = KERNEL_PATHS) -> WatchdogFacts:
    """Facts about `device` (such as /dev/watchdog0) from sysfs alone."""
    name = sysfs_name(device)
    folder = paths.sys_class / name

    def number(attribute: str) -> int | None:
        text = _text(folder / attribute)
        try:
            return None if text is None else int(text, 0)
        except ValueError:
            return None

    nowayout = number("nowayout")
    return WatchdogFacts(
        name=name,
        identity=_text(folder / "identity"),
        state=_text(folder / "state"),
        nowayout=None if nowayout is None else bool(nowayout),
        timeout_s=number("timeout"),
        time_left_s=number("timeleft"),
        min_s=number("min_timeout"),
        max_s=number("max_timeout"),
        bootstatus=number("bootstatus"),
        options=number("options"),
    )


def devices(paths: WatchdogPaths = KERNEL_PATHS) -> tuple[str, ...]:
    """Names of all watchdogs that the kernel knows (watchdog0, ...), in order."""
    try:
        return tuple(sorted((entry.name for entry in paths.sys_class.iterdir()), key=lambda name: (len(name), name)))
    except OSError:
        return ()


def softdog_advice() -> str:
    """What to do on a machine without watchdog hardware, one line."""
    return "no hardware watchdog: `modprobe softdog` (a line `softdog` in /etc/modules keeps it); it cannot end a hang of the kernel itself"


def holders(device: Path, paths: WatchdogPaths) -> Iterator[tuple[int, str]]:
    """(pid, command) of each process that has the device open, under either of its names; only what this user may see."""
    wanted = {str(device), os.path.realpath(device)}
    if sysfs_name(device) == "watchdog0":
        wanted |= {str(paths.dev / "watchdog"), str(paths.dev / "watchdog0")}
    for folder in paths.proc.glob("[0-9]*"):
        if not wanted.isdisjoint(_open_files(folder / "fd")):
            yield int(folder.name), _text(folder / "comm") or "?"


def _open_files(folder: Path) -> Iterator[str]:
    """What a process has open; files that it closes meanwhile, and processes of others, are passed over."""
    with suppress(OSError):
        for link in folder.iterdir():
            with suppress(OSError):
                yield str(link.readlink())


def sysfs_name(device: Path) -> str:
    """Name under /sys/class/watchdog of a device file or a link to one."""
    name = Path(os.path.realpath(device)).name
    # The kernel's old single device is the first of the numbered ones.
    return "watchdog0" if name == "watchdog" else name


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
