"""Variables of the EFI firmware through efivarfs: read, write and delete, each one durable when the call returns.

A file `Name-guid` holds 4 bytes of attributes, little-endian, and the data. One write(2) is one SetVariable. The kernel marks all but
a few well-known names immutable, so that `rm -rf` kills no machine: the flag is lifted around a change and put back. Nothing is cached:
each read asks the firmware, which answers from what it has stored.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from abupdate.errors import AbupdateError, ConfigError, Failed
from abupdate.formats.ioctl import read_number, write_number

EFIVARS = Path("/sys/firmware/efi/efivars")
# Of the variables that the UEFI specification names (BootOrder, Boot####, SecureBoot).
GLOBAL_GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
NON_VOLATILE, BOOT_SERVICE, RUNTIME = 1, 2, 4
KEPT = NON_VOLATILE | BOOT_SERVICE | RUNTIME
# Far more than any variable of ours; certificate lists, which may be larger, are none of our business.
MAX_VARIABLE_BYTES = 32 << 10
_IMMUTABLE = 0x10
_LONG_BYTES = array.array("l").itemsize
_GETFLAGS = read_number("f", 1, _LONG_BYTES)
_SETFLAGS = write_number("f", 2, _LONG_BYTES)
_NAME = re.compile(r"(?P<name>[^/\0]{1,256})-(?P<guid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
# A firmware that is busy with something else; EINTR is repeated by the interpreter itself. 0.3 s in all: a watchdog is petted between.
_TRIES, _WAIT_S = 7, 0.05
_PASSING = (errno.EBUSY, errno.EAGAIN)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Variable:
    """What the firmware keeps under a name: the attributes' bits and the data."""

    attributes: int
    data: bytes


class Variables(Protocol):
    """The firmware's variables. The simulator implements the same."""

    def read(self, name: str, guid: str = GLOBAL_GUID) -> Variable | None:
        """The variable, None where there is none."""

    def write(self, name: str, data: bytes, guid: str = GLOBAL_GUID, attributes: int = KEPT) -> None:
        """Make the variable hold this, durably; nothing is written where it does already."""

    def delete(self, name: str, guid: str = GLOBAL_GUID) -> None:
        """Remove the variable durably; one that is not there is none to remove."""

    def names(self, guid: str = GLOBAL_GUID) -> tuple[str, ...]:
        """Names of all variables of a vendor, sorted."""

    def free_bytes(self) -> int | None:
        """Room that the firmware has for variables, None where nothing tells."""

    def problem(self) -> tuple[str, str] | None:
        """None, or why variables cannot be read or written here, and what to do about it."""


class EfiVars:
    """`Variables` over efivarfs. Errors of every call: ConfigError where the device is not set up for it, Failed for the medium's."""

    def __init__(self, folder: Path = EFIVARS) -> None:
        self._folder = folder

    def problem(self) -> tuple[str, str] | None:
        """See Variables."""
        folder = self._folder
        if not folder.is_dir():
            return f"{folder} is not there", "was this boot started by EFI firmware? a kernel with CONFIG_EFIVAR_FS shows it then"
        with suppress(OSError):
            if not any(_NAME.fullmatch(path.name) for path in folder.iterdir()):
                return f"{folder} is empty", f"mount -t efivarfs efivarfs {folder}"
            if os.statvfs(folder).f_flag & os.ST_RDONLY:
                return f"{folder} is mounted read-only", f"mount -o remount,rw {folder}"
        return None

    def free_bytes(self) -> int | None:
        """See Variables; kernels before 6.7 do not tell."""
        try:
            room = os.statvfs(self._folder)
        except OSError:
            return None
        return room.f_bavail * room.f_frsize if room.f_blocks else None

    def read(self, name: str, guid: str = GLOBAL_GUID) -> Variable | None:
        """See Variables. Raises Failed for a variable larger than MAX_VARIABLE_BYTES."""
        path = self._path(name, guid)
        try:
            raw = _again(lambda: _contents(path))
        except FileNotFoundError:
            self._check_there()
            return None
        except OSError as error:
            raise self._failure("read", name, error) from None
        if len(raw) > MAX_VARIABLE_BYTES + 4:
            raise Failed(f"EFI variable {name} is larger than {MAX_VARIABLE_BYTES} bytes", "no variable of this name should be")
        # Somebody creates it just now, or tried to and the firmware refused: there is no variable.
        if len(raw) < 4:
            return None
        return Variable(int.from_bytes(raw[:4], "little"), raw[4:])

    def write(self, name: str, data: bytes, guid: str = GLOBAL_GUID, attributes: int = KEPT) -> None:
        """See Variables. Raises ConfigError for data that is too large, and where the firmware has no room."""
        if not 0 < len(data) <= MAX_VARIABLE_BYTES:
            raise ConfigError(f"EFI variable {name} would hold {len(data)} bytes", f"1 to {MAX_VARIABLE_BYTES} are possible")
        wanted = Variable(attributes, data)
        if self.read(name, guid) == wanted:
            return
        path = self._path(name, guid)
        raw = attributes.to_bytes(4, "little") + data
        try:
            with _mutable(path):
                written = _again(lambda: _write_once(path, raw))
        except OSError as error:
            raise self._failure("write", name, error) from None
        # Firmware is what it is: success is what it shows.
        if written != len(raw) or self.read(name, guid) != wanted:
            raise Failed(
                f"EFI variable {name} does not hold what was written to it", "is the firmware's store write-protected or worn out?"
            )

    def delete(self, name: str, guid: str = GLOBAL_GUID) -> None:
        """See Variables."""
        path = self._path(name, guid)
        try:
            with _mutable(path):
                _again(path.unlink)
        except FileNotFoundError:
            self._check_there()
            return
        except OSError as error:
            raise self._failure("delete", name, error) from None
        if self.read(name, guid) is not None:
            raise Failed(f"EFI variable {name} is still there after it was deleted", "is the firmware's store write-protected?")

    def names(self, guid: str = GLOBAL_GUID) -> tuple[str, ...]:
        """See Variables."""
        try:
            entries = [path.name for path in self._folder.iterdir()]
        except OSError as error:
            raise self._failure("list", "*", error) from None
        found = (match for match in map(_NAME.fullmatch, entries) if match and match["guid"] == guid)
        return tuple(sorted(match["name"] for match in found))

    def _path(self, name: str, guid: str) -> Path:
        return self._folder / f"{name}-{guid}"

    def _check_there(self) -> None:
        """An absent variable and an absent efivarfs look the same: the second is an error."""
        problem = self.problem()
        if problem is not None and "read-only" not in problem[0]:
            raise ConfigError(*problem)

    def _failure(self, verb: str, name: str, error: OSError) -> AbupdateError:
        problem = self.problem()
        what = f"cannot {verb} EFI variable {name}: {os.strerror(error.errno or errno.EIO)}"
        match error.errno:
            case errno.ENOENT | errno.EROFS if problem is not None:
                return ConfigError(f"{what}: {problem[0]}", problem[1])
            case errno.EACCES | errno.EPERM:
                return ConfigError(what, "run as root; a lock-down of the kernel or the firmware's own protection forbids it too")
            case errno.ENOSPC | errno.ENOMEM:
                return ConfigError(what, "the firmware's variable store is full: efibootmgr -v shows entries that nobody needs")
            case _:
                return Failed(what, "the firmware refuses")


def _again(call: Callable[[], _T]) -> _T:
    """Repeat what the firmware was too busy for. Raises OSError."""
    for _ in range(_TRIES - 1):
        try:
            return call()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(_WAIT_S)
    return call()


def _contents(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        parts: list[bytes] = []
        # Each read asks the firmware again, so one is made to suffice.
        while part := os.read(fd, MAX_VARIABLE_BYTES + 5):
            parts.append(part)
            if sum(map(len, parts)) > MAX_VARIABLE_BYTES + 4:
                break
        return b"".join(parts)
    finally:
        os.close(fd)


def _write_once(path: Path, raw: bytes) -> int:
    # Without O_TRUNC: the kernel replaces the variable by what one write brings, and an empty file would be none.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW, 0o644)
    try:
        written = os.write(fd, raw)
        # Never so on efivarfs, where the write sets the size; so is a plain folder that stands for it.
        if os.fstat(fd).st_size > written:
            os.ftruncate(fd, written)
        return written
    finally:
        os.close(fd)


@contextmanager
def _mutable(path: Path) -> Iterator[None]:
    """Lift the immutable flag, if there is one, and put it back on what is there afterwards. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        yield
        return
    try:
        flags = _flags(fd)
        if flags & _IMMUTABLE:
            _set_flags(fd, flags & ~_IMMUTABLE)
        try:
            yield
        finally:
            if flags & _IMMUTABLE:
                # The change counts, not its guard: the kernel sets the flag itself at the next mount.
                with suppress(OSError):
                    _set_flags(fd, flags)
    finally:
        os.close(fd)


def _flags(fd: int) -> int:
    """Inode flags; 0 on a file system that has none."""
    value = array.array("l", [0])
    try:
        fcntl.ioctl(fd, _GETFLAGS, value, True)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return 0
        raise
    # The kernel writes an int, whatever the number says.
    return int.from_bytes(value.tobytes()[:4], sys.byteorder)


def _set_flags(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, _SETFLAGS, flags.to_bytes(4, sys.byteorder) + bytes(_LONG_BYTES - 4))
