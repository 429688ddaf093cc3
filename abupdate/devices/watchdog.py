"""A hardware watchdog through the kernel's API: /dev/watchdogN which the service holds open.

Opening the device starts it. It stops only on purpose (`disarm`); closed any other way it runs on, unless its driver stops on
every close (`stops_on_close`). Source: Documentation/watchdog/watchdog-api.rst and drivers/watchdog/watchdog_dev.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from abupdate.devices.watchdog_sysfs import KERNEL_PATHS, MAGICCLOSE, WatchdogFacts, WatchdogPaths, devices, facts, holders, softdog_advice
from abupdate.errors import AbupdateError, Busy, ConfigError, Failed
from abupdate.formats import ioctl

_INFO = struct.Struct("=II32s")
_INT = struct.Struct("=i")
_GETSUPPORT = ioctl.read_number("W", 0, _INFO.size)
_SETOPTIONS = ioctl.read_number("W", 4, _INT.size)
_KEEPALIVE = ioctl.read_number("W", 5, _INT.size)
_SETTIMEOUT = ioctl.read_write_number("W", 6, _INT.size)
_GETTIMEOUT = ioctl.read_number("W", 7, _INT.size)
_GETTIMELEFT = ioctl.read_number("W", 10, _INT.size)
_DISABLECARD = 1
# Shorter than an orderly shutdown may take, a limit does harm.
_SHUTDOWN_S = 30
_NOT_OFFERED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)
_HINTS = {
    "systemd": "set RuntimeWatchdogSec=off in /etc/systemd/system.conf.d/ and run systemctl daemon-reexec; abupdate pets on trial",
    "watchdogd": "stop it, or take it off this device: the trial's limit must end with abupdate",
    "watchdog": "stop it, or take it off this device: the trial's limit must end with abupdate",
}

# (file descriptor, request, buffer changed in place) -> what ioctl(2) returned; raises OSError.
Ioctl = Callable[[int, int, bytearray], int]


def system_ioctl(fd: int, request: int, buffer: bytearray) -> int:
    """ioctl(2) itself."""
    result: int = fcntl.ioctl(fd, request, buffer, True)
    return result


class Watchdog:
    """An open, running watchdog (`ports.Watchdog`). A context manager that hands over: it never stops the hardware by accident."""

    def __init__(self, device: Path, paths: WatchdogPaths = KERNEL_PATHS, run_ioctl: Ioctl = system_ioctl) -> None:
        """Open and thereby start it. Raises Busy with the holder's name, ConfigError when there is no such device."""
        self._device = device
        self._paths = paths
        self._ioctl = run_ioctl
        self._fd = -1
        try:
            self._fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise open_error(device, paths, error) from None
        buffer = bytearray(_INFO.size)
        try:
            run_ioctl(self._fd, _GETSUPPORT, buffer)
        except OSError as error:
            # Not closed with the magic character: what runs goes on running.
            os.close(self._fd)
            raise ConfigError(
                f"{device}: not a watchdog ({error.strerror})", "[watchdog] device names it, such as /dev/watchdog0"
            ) from None
        options, _firmware, identity = _INFO.unpack(buffer)
        self._forget_magic()
        self.options: int = options
        self.identity: str = identity.split(b"\0", 1)[0].decode(errors="replace")

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self.hand_over()

    @property
    def timeout_s(self) -> int | None:
        """Seconds from the last pet to the reset as the driver has them now."""
        return self._number(_GETTIMEOUT)

    @property
    def stops_on_close(self) -> bool:
        """True when the driver stops the hardware on every close, so that it cannot be handed over or outlive its petter."""
        return not self.options & MAGICCLOSE and not facts(self._device, self._paths).nowayout

    def set_timeout(self, asked_s: int) -> int:
        """Ask for a timeout; return the seconds that the driver granted (0: it does not say), which may be others."""
        buffer = bytearray(_INT.pack(asked_s))
        try:
            self._ioctl(self._fd, _SETTIMEOUT, buffer)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise Failed(f"{self._device}: cannot set the timeout: {error.strerror}") from None
            return self.timeout_s or 0
        granted: int = _INT.unpack(buffer)[0]
        return granted

    def pet(self) -> None:
        """Start the countdown anew. Raises Failed when the device is gone."""
        try:
            try:
                self._ioctl(self._fd, _KEEPALIVE, bytearray(_INT.size))
            except OSError as error:
                if error.errno not in _NOT_OFFERED:
                    raise
                self._forget_magic()
        except OSError as error:
            raise Failed(f"{self._device}: cannot pet the watchdog: {error.strerror}") from None

    def time_left_s(self) -> int | None:
        """Seconds to the reset, None where the driver does not say."""
        return self._number(_GETTIMELEFT)

    def disarm(self) -> str:
        """Stop the hardware and close the device; return "", or else why it still runs (then it is open and must be petted on).

        Only a driver that returned exactly 0 and a sysfs state of `inactive` count: a locked i6300esb returns a positive number,
        and would ignore the magic character in silence. The character is not written then: a device that is stopped already closes
        without it, and the kernel would keep it for the next one who opens the device, whose every close would stop the hardware.
        """
        try:
            result = self._ioctl(self._fd, _SETOPTIONS, bytearray(_INT.pack(_DISABLECARD)))
        except OSError as error:
            return f"{self.identity} cannot be stopped: {error.strerror}" + (" (nowayout)" if error.errno == errno.EBUSY else "")
        if result != 0:
            return f"{self.identity} did not stop (its driver returned {result}: locked until the next reset)"
        state = facts(self._device, self._paths).state
        if state != "inactive":
            self.pet()
            return f"{self.identity} reports to be stopped, sysfs says {state or 'nothing'}"
        self._close()
        return ""

    def hand_over(self) -> None:
        """Pet once and close without the magic character: it runs on for whoever opens it next. Twice is once."""
        if self._fd < 0:
            return
        try:
            self._forget_magic()
        finally:
            self._close()

    def _forget_magic(self) -> None:
        """A write that is no `V` pets, and clears the permission to stop that another program's `V` may have left in the kernel."""
        try:
            os.write(self._fd, b"\0")
        except OSError as error:
            raise Failed(f"{self._device}: cannot pet the watchdog: {error.strerror}") from None

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _number(self, request: int) -> int | None:
        buffer = bytearray(_INT.size)
        try:
            self._ioctl(self._fd, request, buffer)
        except OSError as error:
            if error.errno in _NOT_OFFERED:
                return None
            raise Failed(f"{self._device}: {error.strerror}") from None
        number: int = _INT.unpack(buffer)[0]
        return number


def limit_shutdown(watchdog: Watchdog, limit_s: int) -> int:
    """Let the hardware end a shutdown that hangs: hand it over with this limit, or a shorter one that the driver takes.

    One that would end an orderly shutdown too is stopped again. Returns the seconds, 0 where there is no limit. Raises Failed.
    """
    for asked_s in sorted({limit_s, *(other for other in (60, _SHUTDOWN_S) if other < limit_s)}, reverse=True):
        granted_s = watchdog.set_timeout(asked_s)
        if not granted_s or granted_s >= min(asked_s, _SHUTDOWN_S):
            watchdog.hand_over()
            return granted_s or asked_s
    problem = watchdog.disarm()
    if problem:
        # Locked: the reboot is a race against it now, which the device comes out of either way.
        watchdog.hand_over()
    return 0


def probe(device: Path, paths: WatchdogPaths = KERNEL_PATHS, run_ioctl: Ioctl = system_ioctl) -> WatchdogFacts:
    """Facts with the driver's options, for `doctor`: opens the device where that can be undone (stopped now, nowayout off).

    Raises as `Watchdog` does; Failed when the device could not be stopped again.
    """
    known = facts(device, paths)
    if known.options is not None or known.state != "inactive" or known.nowayout is not False:
        return known
    watchdog = Watchdog(device, paths, run_ioctl)
    reason = watchdog.disarm()
    if reason:
        watchdog.hand_over()
        raise Failed(
            f"{device}: started by looking at it, and {reason}", "the machine will reset unless the service pets it: start abupdate.service"
        )
    return replace(known, options=watchdog.options)


def open_error(device: Path, paths: WatchdogPaths, error: OSError) -> AbupdateError:
    """Why the device could not be opened, with who holds it."""
    if error.errno == errno.EBUSY:
        found = list(holders(device, paths))
        names = [f"{comm} (pid {pid})" for pid, comm in found]
        hint = next((_HINTS[comm] for _, comm in found if comm in _HINTS), "")
        return Busy(
            f"{device} is held by {', '.join(names) or 'another program'}",
            hint or "systemd holds it where RuntimeWatchdogSec= is set; watchdogd and busybox watchdog do too: leave it to abupdate",
        )
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        others = ", ".join(devices(paths))
        return ConfigError(f"{device}: no such watchdog", f"there is {others}" if others else softdog_advice())
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(f"{device}: {error.strerror}", "run as root")
    return Failed(f"{device}: cannot be opened: {error.strerror}")
