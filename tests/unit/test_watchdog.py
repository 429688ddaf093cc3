"""The watchdog's logic against a model of the kernel's side of the ioctl and sysfs; the real device is tested in QEMU."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from abupdate.devices.watchdog import Watchdog, limit_shutdown, open_error, probe
from abupdate.devices.watchdog_sysfs import WatchdogPaths, devices, facts, holders, softdog_advice
from abupdate.errors import Busy, ConfigError, Failed
from abupdate.ports import Watchdog as WatchdogPort

GETSUPPORT, SETOPTIONS, KEEPALIVE, SETTIMEOUT, GETTIMEOUT, GETTIMELEFT = (
    0x80285700,
    0x80045704,
    0x80045705,
    0xC0045706,
    0x80045707,
    0x8004570A,
)
SETTIMEOUT_FLAG, MAGICCLOSE, PING = 0x80, 0x100, 0x8000


class Hardware:
    """One watchdog: sysfs attributes in a folder, a file for the device, and what its driver answers."""

    def __init__(self, folder: Path, options: int = SETTIMEOUT_FLAG | MAGICCLOSE | PING, **attributes: str) -> None:
        self.paths = WatchdogPaths(folder / "dev", folder / "class", folder / "proc")
        self.sysfs = self.paths.sys_class / "watchdog0"
        self.device = self.paths.dev / "watchdog0"
        for directory in (self.paths.dev, self.paths.proc, self.sysfs):
            directory.mkdir(parents=True)
        self.device.touch()
        self.options = options
        self.timeout = 30
        self.stop_answer: int | OSError = 0
        self.pets = 0
        self.refused: dict[int, int] = {}
        self.put(**{"identity": "i6300ESB timer", "state": "inactive", "nowayout": "0", "bootstatus": "0", "timeout": "30", **attributes})

    def put(self, **attributes: str) -> None:
        for name, text in attributes.items():
            (self.sysfs / name).write_text(text + "\n")

    def ioctl(self, fd: int, request: int, buffer: bytearray) -> int:
        assert os.fstat(fd).st_ino == self.device.stat().st_ino
        if request in self.refused:
            raise OSError(self.refused[request], os.strerror(self.refused[request]))
        if request == GETSUPPORT:
            buffer[:] = struct.pack("=II32s", self.options, 1, b"i6300ESB timer")
            self.put(state="active")
        elif request == SETTIMEOUT:
            self.timeout = min(struct.unpack("=i", buffer)[0] // 2 * 2, 1024)
            buffer[:] = struct.pack("=i", self.timeout)
        elif request == GETTIMEOUT:
            buffer[:] = struct.pack("=i", self.timeout)
        elif request == GETTIMELEFT:
            buffer[:] = struct.pack("=i", 17)
        elif request == KEEPALIVE:
            self.pets += 1
        elif request == SETOPTIONS:
            assert struct.unpack("=i", buffer) == (1,)
            if isinstance(self.stop_answer, OSError):
                raise self.stop_answer
            if self.stop_answer == 0:
                self.put(state="inactive")
            return self.stop_answer
        else:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        return 0

    def open(self) -> Watchdog:
        return Watchdog(self.device, self.paths, self.ioctl)

    @property
    def written(self) -> bytes:
        return self.device.read_bytes()


@pytest.fixture
def hardware(tmp_path: Path) -> Hardware:
    return Hardware(tmp_path)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_granted_is_not_asked(hardware: Hardware) -> None:
    watchdog: WatchdogPort = hardware.open()
    assert watchdog.set_timeout(31) == 30
    assert watchdog.set_timeout(5000) == 1024
    watchdog.hand_over()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_timeout_that_cannot_be_set(hardware: Hardware, number: int) -> None:
    hardware.refused[SETTIMEOUT] = number
    assert hardware.open().set_timeout(10) == 30
    hardware.refused[GETTIMEOUT] = errno.EOPNOTSUPP
    assert hardware.open().set_timeout(10) == 0


@pytest.mark.parametrize(
    ("longest", "own", "limit", "granted"),
    [(1024, 30, 120, 120), (100, 10, 120, 60), (40, 10, 120, 30), (40, 10, 20, 20), (16, 10, 120, 0)],
)
def test_a_shutdown_has_the_longest_limit_that_the_driver_takes(tmp_path: Path, longest: int, own: int, limit: int, granted: int) -> None:
    """One that is too long is refused, and the driver's own stays; that would cut an orderly shutdown short, so it is stopped again."""

    class Choosy(Hardware):
        def ioctl(self, fd: int, request: int, buffer: bytearray) -> int:
            if request == SETTIMEOUT and struct.unpack("=i", buffer)[0] > longest:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return super().ioctl(fd, request, buffer)

    hardware = Choosy(tmp_path)
    hardware.timeout = own
    before = open_files()
    assert limit_shutdown(hardware.open(), limit) == granted
    assert hardware.timeout == (granted or own)
    assert (hardware.sysfs / "state").read_text().strip() == ("active" if granted else "inactive")
    assert open_files() == before


def test_a_locked_one_is_left_to_run(hardware: Hardware) -> None:
    hardware.refused[SETTIMEOUT] = errno.EOPNOTSUPP
    hardware.timeout, hardware.stop_answer = 10, 1
    before = open_files()
    assert limit_shutdown(hardware.open(), 120) == 0
    assert open_files() == before
    assert b"V" not in hardware.written


def test_petting_and_what_is_left(hardware: Hardware) -> None:
    watchdog = hardware.open()
    watchdog.pet()
    watchdog.pet()
    assert hardware.pets == 2
    assert watchdog.time_left_s() == 17
    assert watchdog.identity == "i6300ESB timer"
    assert not watchdog.stops_on_close
    hardware.refused[GETTIMELEFT] = errno.EOPNOTSUPP
    assert watchdog.time_left_s() is None


def test_a_driver_without_keepalive_is_petted_by_a_write_that_is_no_magic(hardware: Hardware) -> None:
    hardware.refused[KEEPALIVE] = errno.EOPNOTSUPP
    hardware.open().pet()
    assert hardware.written == b"\0\0", "one when it was opened"


def test_a_device_that_vanished(hardware: Hardware) -> None:
    watchdog = hardware.open()
    hardware.refused[KEEPALIVE] = errno.ENODEV
    with pytest.raises(Failed, match="cannot pet"):
        watchdog.pet()


def test_disarmed(hardware: Hardware) -> None:
    before = open_files()
    watchdog = hardware.open()
    assert watchdog.disarm() == ""
    assert b"V" not in hardware.written, "it would let the next one's every close stop the hardware"
    assert open_files() == before
    written = hardware.written
    watchdog.hand_over()
    assert hardware.written == written


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (1, "locked"),
        (OSError(errno.EBUSY, "Device or resource busy"), "nowayout"),
        (OSError(errno.EOPNOTSUPP, "Not supported"), "Not supported"),
    ],
)
def test_not_disarmed_means_open_and_no_magic(hardware: Hardware, answer: int | OSError, word: str) -> None:
    hardware.stop_answer = answer
    watchdog = hardware.open()
    assert word in watchdog.disarm()
    assert b"V" not in hardware.written
    watchdog.pet()
    assert hardware.pets >= 1


@pytest.mark.parametrize("state", ["active", None])
def test_a_driver_that_says_stopped_while_sysfs_does_not(hardware: Hardware, state: str | None) -> None:
    watchdog = hardware.open()
    real = hardware.ioctl

    def lying(fd: int, request: int, buffer: bytearray) -> int:
        result = real(fd, request, buffer)
        if request == SETOPTIONS:
            hardware.put(state="active")
            if state is None:
                (hardware.sysfs / "state").unlink()
        return result

    watchdog = Watchdog(hardware.device, hardware.paths, lying)
    assert "sysfs says " + (state or "nothing") in watchdog.disarm()
    assert b"V" not in hardware.written
    assert hardware.pets == 1, "it is petted at once, since it may be running"
    watchdog.pet()


def test_handing_over_pets_and_writes_no_magic(hardware: Hardware) -> None:
    before = open_files()
    with hardware.open():
        pass
    assert hardware.written == b"\0\0"
    assert open_files() == before


@pytest.mark.parametrize(("options", "nowayout", "stops"), [(MAGICCLOSE, "0", False), (PING, "0", True), (PING, "1", False)])
def test_a_driver_that_stops_on_close(tmp_path: Path, options: int, nowayout: str, stops: bool) -> None:
    hardware = Hardware(tmp_path, options, nowayout=nowayout)
    assert hardware.open().stops_on_close is stops
    hardware.put(options=f"{options:#x}")
    assert facts(hardware.device, hardware.paths).stops_on_close is stops


def test_facts_come_without_opening(tmp_path: Path) -> None:
    hardware = Hardware(tmp_path, bootstatus="32", min_timeout="1", max_timeout="2046", timeleft="12")
    hardware.device.unlink()
    found = facts(hardware.device, hardware.paths)
    assert (found.identity, found.state, found.nowayout) == ("i6300ESB timer", "inactive", False)
    assert (found.timeout_s, found.time_left_s, found.min_s, found.max_s) == (30, 12, 1, 2046)
    assert found.caused_last_reset is True
    assert found.stops_on_close is None, "only opening it would tell"
    assert devices(hardware.paths) == ("watchdog0",)


def test_facts_where_the_kernel_says_nothing(tmp_path: Path) -> None:
    paths = WatchdogPaths(tmp_path, tmp_path / "none", tmp_path)
    found = facts(tmp_path / "watchdog1", paths)
    assert (found.identity, found.state, found.caused_last_reset, found.stops_on_close) == (None,) * 4
    assert devices(paths) == ()


def test_the_old_name_and_a_link_are_the_first_watchdog(hardware: Hardware) -> None:
    (hardware.paths.dev / "mine").symlink_to(hardware.device)
    for name in ("watchdog", "mine"):
        assert facts(hardware.paths.dev / name, hardware.paths).identity == "i6300ESB timer"


def test_probe_tells_the_options_and_leaves_it_stopped(hardware: Hardware) -> None:
    found = probe(hardware.device, hardware.paths, hardware.ioctl)
    assert found.stops_on_close is False
    assert facts(hardware.device, hardware.paths).state == "inactive"


@pytest.mark.parametrize("attributes", [{"state": "active"}, {"nowayout": "1"}, {"options": "0x100"}])
def test_probe_does_not_open_what_it_could_not_stop(tmp_path: Path, attributes: dict[str, str]) -> None:
    hardware = Hardware(tmp_path)
    hardware.put(**attributes)
    hardware.device.unlink()
    assert probe(hardware.device, hardware.paths, hardware.ioctl) == facts(hardware.device, hardware.paths)


def test_probe_says_so_when_it_could_not_stop_it_again(hardware: Hardware) -> None:
    hardware.stop_answer = 1
    with pytest.raises(Failed, match="started by looking at it") as caught:
        probe(hardware.device, hardware.paths, hardware.ioctl)
    assert "service" in caught.value.hint


def test_no_such_watchdog(hardware: Hardware) -> None:
    with pytest.raises(ConfigError, match="no such watchdog") as caught:
        Watchdog(hardware.paths.dev / "watchdog7", hardware.paths, hardware.ioctl)
    assert "watchdog0" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        Watchdog(hardware.paths.dev / "watchdog7", WatchdogPaths(hardware.paths.dev, hardware.paths.dev / "none"), hardware.ioctl)
    assert caught.value.hint == softdog_advice()
    assert "modprobe softdog" in softdog_advice()


def test_a_device_that_is_no_watchdog() -> None:
    before = open_files()
    with pytest.raises(ConfigError, match="not a watchdog"):
        Watchdog(Path("/dev/null"))
    assert open_files() == before


def test_who_holds_it(hardware: Hardware) -> None:
    for pid, comm, name in ((1, "systemd", "watchdog0"), (77, "cat", "other"), (88, "busybox", "watchdog")):
        folder = hardware.paths.proc / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "comm").write_text(comm + "\n")
        (folder / "fd" / "9").symlink_to(hardware.paths.dev / name)
    assert sorted(holders(hardware.device, hardware.paths)) == [(1, "systemd"), (88, "busybox")]


def test_this_process_is_found_in_the_real_proc(hardware: Hardware) -> None:
    paths = WatchdogPaths(hardware.paths.dev, hardware.paths.sys_class)
    with hardware.device.open("rb"):
        assert (os.getpid(), Path("/proc/self/comm").read_text().strip()) in list(holders(hardware.device, paths))
    assert not list(holders(hardware.device, paths))


def test_the_word_for_busy(hardware: Hardware) -> None:
    folder = hardware.paths.proc / "1"
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text("systemd\n")
    (folder / "fd" / "9").symlink_to(hardware.device)
    error = open_error(hardware.device, hardware.paths, OSError(errno.EBUSY, "Device or resource busy"))
    assert isinstance(error, Busy)
    assert "systemd (pid 1)" in error.message
    assert "RuntimeWatchdogSec=off" in error.hint
