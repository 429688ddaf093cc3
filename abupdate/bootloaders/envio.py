"""What every place of a U-Boot environment shares: its protocol, exact reads and writes, and what goes wrong in whose words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from abupdate.bootloaders.envcalls import LINUX, Calls
from abupdate.errors import ConfigError, Failed
from abupdate.formats.fwenvconfig import EnvLocation
from abupdate.formats.ubootenv import Scheme


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes on a medium; two names of one device or file have the same `medium`."""

    medium: tuple[int, int]
    start: int
    end: int

    def overlaps(self, other: Span) -> bool:
        """True when both share a byte."""
        return self.medium == other.medium and self.start < other.end and other.start < self.end


class MediumError(Failed):
    """The medium under one copy cannot be read; the other copy may be fine."""


class Area(Protocol):
    """One copy's place. `scheme` is what the medium asks of a redundant environment."""

    @property
    def location(self) -> EnvLocation:
        """Where it lies, as configured."""

    @property
    def scheme(self) -> Scheme:
        """INCREMENTAL, or BOOLEAN on NOR flash."""

    def read(self) -> bytes:
        """All bytes of the area. Raises MediumError on an I/O error, ConfigError when there is no such place."""

    def write(self, data: bytes) -> None:
        """Replace all bytes and return when they are on the medium, read back and equal."""

    def flush(self) -> None:
        """Return when what was written before, by whomever, is on the medium."""

    def mark_obsolete(self) -> None:
        """BOOLEAN only: clear the flag without an erase."""

    def span(self) -> Span:
        """What a write touches."""


@contextmanager
def opened(location: EnvLocation, flags: int, calls: Calls = LINUX) -> Iterator[int]:
    """The device, open with the flags. Raises ConfigError."""
    try:
        fd = calls.open(location.device, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unusable(location, error) from None
    try:
        yield fd
    finally:
        calls.close(fd)


def unusable(location: EnvLocation, error: OSError) -> ConfigError:
    """What to say of a place that cannot be opened or written."""
    hint = "see the first field in fw_env.config"
    if error.errno == errno.EACCES:
        hint = "run as root"
    elif error.errno in (errno.EROFS, errno.EPERM):
        hint = "the U-Boot environment must be writable"
    return ConfigError(f"{location.device}: cannot use the U-Boot environment: {error.strerror}", hint)


def medium_of(fd: int, calls: Calls = LINUX) -> tuple[int, int]:
    """Number of the device, or device and inode of the file."""
    found = calls.fstat(fd)
    return (0, found.st_rdev) if found.st_rdev else (found.st_dev, found.st_ino)


def read_exactly(fd: int, start: int, location: EnvLocation, length: int = 0, calls: Calls = LINUX) -> bytes:
    """`length` bytes (0: the environment's size) from `start`. Raises MediumError, or ConfigError at the end of the device."""
    wanted = length or location.size_bytes
    data = b""
    try:
        while len(data) < wanted:
            piece = calls.pread(fd, wanted - len(data), start + len(data))
            if not piece:
                raise ConfigError(f"{location.device}: ends inside the U-Boot environment", "see the offset and ENV-SIZE in fw_env.config")
            data += piece
    except OSError as error:
        raise MediumError(f"{location.device}: cannot read the U-Boot environment: {error.strerror}") from None
    return data


def write_all(fd: int, data: bytes, start: int, calls: Calls = LINUX) -> None:
    """All bytes, in one write where the kernel takes them so. Raises OSError."""
    view = memoryview(data)
    while view:
        count = calls.pwrite(fd, view, start)
        view, start = view[count:], start + count


def compare(found: bytes, wanted: bytes, location: EnvLocation) -> None:
    """Raises Failed when the medium does not hold what was written."""
    if found != wanted:
        raise Failed(
            f"{location.device}: the U-Boot environment reads back differently from what was written",
            "the medium is failing, or a program that ignores the lock wrote too",
        )
