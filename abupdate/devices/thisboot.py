"""Facts of the running boot: its id, the slot that runs, how the boot before ended, the time since the kernel started."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from abupdate.devices.watchdog_sysfs import WatchdogPaths, facts
from abupdate.errors import ConfigError

RUNTIME = Path("/run/abupdate")


def kernel_argument(name: str, root: Path = Path("/")) -> str | None:
    """The value of a kernel argument NAME=VALUE (the last one wins), None when it is absent."""
    try:
        words = (root / "proc/cmdline").read_text().split()
    except OSError:
        return None
    values = [word.removeprefix(name + "=") for word in words if word.startswith(name + "=")]
    return values[-1] if values else None


class LinuxBoot:
    """`ports.ThisBoot` from /proc, /sys and a marker in the runtime folder."""

    def __init__(self, slots: Mapping[str, tuple[Path, ...]], watchdog: Path, believed: str | None = None, root: Path = Path("/")) -> None:
        """slots: each slot's devices. watchdog: its device file. believed: the configured slot. root: of /proc, /sys, /run."""
        self._slots = slots
        self._watchdog = watchdog
        self._believed = believed
        self._root = root
        self._marker = root / str(RUNTIME).lstrip("/") / "settled"

    @property
    def boot_id(self) -> str:
        """See ports.ThisBoot."""
        try:
            return (self._root / "proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError as error:
            raise ConfigError(f"the kernel's boot id cannot be read: {error.strerror}", "is /proc mounted?") from error

    @property
    def settled(self) -> bool:
        """See ports.ThisBoot. The marker holds the boot id, so one that survived a reboot says nothing."""
        try:
            return self._marker.read_text().strip() == self.boot_id
        except OSError:
            return False

    def mark_settled(self) -> None:
        """See ports.ThisBoot."""
        self._marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker = os.open(self._marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(marker, "w") as file:
            file.write(self.boot_id + "\n")

    def booted(self) -> str:
        """See ports.ThisBoot: [device] booted, then abupdate.slot=, then rauc.slot=, then the device of the root file system."""
        if self._believed is not None:
            return self._believed
        for argument in ("abupdate.slot", "rauc.slot"):
            named = kernel_argument(argument, self._root)
            if named is not None:
                if named in self._slots:
                    return named
                raise ConfigError(
                    f"the kernel was started with {argument}={named}, which is not a slot", f"slots: {', '.join(self._slots)}"
                )
        root = self._root.stat().st_dev
        for slot, devices in self._slots.items():
            for device in devices:
                try:
                    status = device.stat()
                except OSError:
                    continue
                if os.major(root) and status.st_rdev == root:
                    return slot
        raise ConfigError(
            "nothing tells which slot runs",
            'the boot script passes abupdate.slot=; off a device set [device] booted = "A" in the configuration',
        )

    def reset_reason(self) -> str:
        """See ports.ThisBoot: the watchdog's boot status, then crash dumps in pstore."""
        sysfs = WatchdogPaths(sys_class=self._root / "sys/class/watchdog")
        if facts(self._watchdog, sysfs).caused_last_reset:
            return "watchdog"
        try:
            panicked = any((self._root / "sys/fs/pstore").glob("dmesg-*"))
        except OSError:
            panicked = False
        return "panic" if panicked else ""

    def unsaved(self) -> bool:
        """See ports.ThisBoot."""
        return kernel_argument("abupdate.unsaved", self._root) == "1"

    def boottime_s(self) -> float:
        """See ports.ThisBoot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
