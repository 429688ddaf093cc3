"""The places on which a copy of U-Boot's environment can lie: regular file, block device, raw flash behind /dev/mtdN.

An area is opened for each access and closed again; nothing is held between two calls. A place that is missing, too short or not
allowed is a ConfigError that names it; a medium that fails is Failed.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from abupdate.errors import ConfigError, Failed
from abupdate.formats import ioctl
from abupdate.formats.fwenvconfig import EnvLocation
from abupdate.formats.ubootenv import Scheme, obsolete_byte

_MTD_INFO = struct.Struct("@BIIIIIQ")
_MTD_ERASE = struct.Struct("@II")
_MTD_NOR, _MTD_NAND, _MTD_DATAFLASH = 3, 4, 6
_MEMGETINFO = ioctl.read_number("M", 1, _MTD_INFO.size)
_MEMERASE = ioctl.write_number("M", 2, _MTD_ERASE.size)
_MEMLOCK = ioctl.write_number("M", 5, _MTD_ERASE.size)
_MEMUNLOCK = ioctl.write_number("M", 6, _MTD_ERASE.size)
_MEMGETBADBLOCK = ioctl.write_number("M", 11, 8)

# (file descriptor, request, buffer changed in place) -> what ioctl(2) returned; raises OSError.
Ioctl = Callable[[int, int, bytearray], int]


def system_ioctl(fd: int, request: int, buffer: bytearray) -> int:
    """ioctl(2) itself."""
    result: int = fcntl.ioctl(fd, request, buffer, True)
    return result


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

    def mark_obsolete(self) -> None:
        """BOOLEAN only: clear the flag without an erase."""

    def span(self) -> Span:
        """What a write touches."""


def open_area(location: EnvLocation, run_ioctl: Ioctl = system_ioctl, sys_block: Path = Path("/sys/class/block")) -> Area:
    """The area for what the device turns out to be. Raises ConfigError for what cannot hold an environment."""
    if ":" in location.device or Path(location.device).name.startswith("ubi"):
        raise ConfigError(f"{location.device}: UBI volumes are not supported as U-Boot environment", "use a partition, or the MTD device")
    try:
        mode = Path(location.device).stat().st_mode
    except OSError as error:
        raise _unusable(location, error) from None
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return FileArea(location, sys_block)
    if stat.S_ISCHR(mode):
        return _flash_area(location, run_ioctl)
    raise ConfigError(f"{location.device}: neither file, block device nor flash", "see the first field in fw_env.config")


@dataclass(frozen=True, slots=True)
class FileArea:
    """A range of a regular file or a block device."""

    location: EnvLocation
    sys_block: Path
    scheme: Scheme = Scheme.INCREMENTAL

    def read(self) -> bytes:
        with _opened(self.location, os.O_RDONLY) as fd:
            return _pread(fd, self._start(fd), self.location)

    def write(self, data: bytes) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._unprotected())
            fd = stack.enter_context(_opened(self.location, os.O_RDWR))
            start = self._start(fd)
            try:
                _pwrite_all(fd, data, start)
                os.fsync(fd)
                # Whole pages, else the kernel keeps them and the comparison sees the cache instead of the medium.
                first = start - start % mmap.PAGESIZE
                os.posix_fadvise(fd, first, start - first + len(data) + mmap.PAGESIZE, os.POSIX_FADV_DONTNEED)
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EROFS):  # a read-only disk opens for writing and refuses the first write
                    raise _unusable(self.location, error) from None
                raise Failed(f"{self.location.device}: cannot write the U-Boot environment: {error.strerror}") from None
            _compare(_pread(fd, start, self.location), data, self.location)

    def mark_obsolete(self) -> None:
        raise Failed(f"{self.location.device}: has no boolean flag")

    def span(self) -> Span:
        with _opened(self.location, os.O_RDONLY) as fd:
            start = self._start(fd)
            return Span(_medium(fd), start, start + self.location.size_bytes)

    def _start(self, fd: int) -> int:
        mode = os.fstat(fd).st_mode
        end = os.lseek(fd, 0, os.SEEK_END)
        location = self.location
        if location.offset < 0 and not stat.S_ISBLK(mode):
            raise ConfigError(f"{location.device}: a negative offset is for block devices", "fw_printenv refuses it in a file too")
        start = location.offset + (end if location.offset < 0 else 0)
        if start < 0 or start + location.size_bytes > end:
            raise ConfigError(
                f"{location.device}: {end} bytes, too short for {location.size_bytes:#x} bytes of environment at {location.offset:#x}",
                "see the offset and ENV-SIZE in fw_env.config",
            )
        return start

    @contextmanager
    def _unprotected(self) -> Iterator[None]:
        """eMMC boot partitions are write-protected by the kernel until their `force_ro` is cleared."""
        switch = self.sys_block / Path(self.location.device).resolve().name / "force_ro"
        try:
            protected = switch.read_text().strip() == "1"
        except OSError:
            protected = False
        if not protected:
            yield
            return
        try:
            switch.write_text("0")
        except OSError as error:
            raise ConfigError(f"{self.location.device}: write-protected, and {switch} cannot be cleared: {error.strerror}") from None
        try:
            yield
        finally:
            switch.write_text("1")


@dataclass(frozen=True, slots=True)
class FlashArea:
    """A range of raw flash: erased sector by sector, then written; bad blocks of NAND are stepped over."""

    location: EnvLocation
    kind: int
    size_bytes: int
    sector_bytes: int
    write_bytes: int
    run_ioctl: Ioctl

    @property
    def scheme(self) -> Scheme:
        return Scheme.INCREMENTAL if self.kind == _MTD_NAND else Scheme.BOOLEAN

    def read(self) -> bytes:
        with _opened(self.location, os.O_RDONLY) as fd:
            return self._read(fd)

    def _read(self, fd: int) -> bytes:
        pieces = [_pread(fd, start, self.location, length) for start, length in self._good_sectors(fd)]
        return b"".join(pieces)

    def write(self, data: bytes) -> None:
        with _opened(self.location, os.O_RDWR) as fd:
            # All bad blocks are found before the first erase.
            sectors = list(self._good_sectors(fd))
            self._check_tail(fd, *sectors[-1])
            done = 0
            try:
                for start, length in sectors:
                    with self._unlocked(fd, start):
                        self.run_ioctl(fd, _MEMERASE, bytearray(_MTD_ERASE.pack(start, self.sector_bytes)))
                        _pwrite_all(fd, data[done : done + length], start)
                    done += length
            except OSError as error:
                raise Failed(f"{self.location.device}: cannot erase or write the U-Boot environment: {error.strerror}") from None
            _compare(self._read(fd), data, self.location)

    def mark_obsolete(self) -> None:
        offset, byte = obsolete_byte()
        start = self.location.offset
        with _opened(self.location, os.O_RDWR) as fd:
            try:
                with self._unlocked(fd, start):
                    _pwrite_all(fd, byte, start + offset)
            except OSError as error:
                raise Failed(f"{self.location.device}: cannot mark the old U-Boot environment: {error.strerror}") from None

    def span(self) -> Span:
        with _opened(self.location, os.O_RDONLY) as fd:
            return Span(_medium(fd), self.location.offset, self.location.offset + self._sectors() * self.sector_bytes)

    def _sectors(self) -> int:
        # libubootenv's rule: without a number of sectors there is none to spare.
        return max(self.location.sectors, -(-self.location.size_bytes // self.sector_bytes))

    def _good_sectors(self, fd: int) -> Iterator[tuple[int, int]]:
        """(start, bytes of the environment in it) of each sector in use."""
        start, rest = self.location.offset, self.location.size_bytes
        left = self._sectors()
        while rest > 0:
            if left == 0 or start + self.sector_bytes > self.size_bytes:
                raise MediumError(f"{self.location.device}: too many bad blocks under the U-Boot environment")
            left -= 1
            if not self._bad(fd, start):
                yield start, min(rest, self.sector_bytes)
                rest -= self.sector_bytes
            start += self.sector_bytes

    def _bad(self, fd: int, start: int) -> bool:
        if self.kind != _MTD_NAND:
            return False
        try:
            return self.run_ioctl(fd, _MEMGETBADBLOCK, bytearray(struct.pack("@q", start))) > 0
        except OSError as error:
            raise MediumError(f"{self.location.device}: cannot ask for bad blocks: {error.strerror}") from None

    def _check_tail(self, fd: int, start: int, length: int) -> None:
        tail = self.sector_bytes - length
        if tail and _pread(fd, start + length, self.location, tail).strip(b"\xff"):
            raise ConfigError(
                f"{self.location.device}: something else lies behind the environment in its last sector and would be erased",
                "give the environment whole sectors of its own",
            )

    @contextmanager
    def _unlocked(self, fd: int, start: int) -> Iterator[None]:
        sector = _MTD_ERASE.pack(start, self.sector_bytes)
        self._lock(fd, _MEMUNLOCK, sector)
        yield
        self._lock(fd, _MEMLOCK, sector)

    def _lock(self, fd: int, request: int, sector: bytes) -> None:
        if not self.location.lock:
            return
        try:
            self.run_ioctl(fd, request, bytearray(sector))
        except OSError as error:
            # Flash without locks says so; whether the write worked is seen when it is read back.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
                raise


def _flash_area(location: EnvLocation, run_ioctl: Ioctl) -> FlashArea:
    buffer = bytearray(_MTD_INFO.size)
    with _opened(location, os.O_RDONLY) as fd:
        try:
            run_ioctl(fd, _MEMGETINFO, buffer)
        except OSError as error:
            raise ConfigError(
                f"{location.device}: a character device that is no flash ({error.strerror})",
                "raw flash is /dev/mtdN, without `ro` or `block`",
            ) from None
    kind, _flags, size_bytes, erase_bytes, write_bytes, _oob, _padding = _MTD_INFO.unpack(buffer)
    if kind not in (_MTD_NOR, _MTD_NAND, _MTD_DATAFLASH):
        raise ConfigError(f"{location.device}: flash of type {kind} is not supported", "NOR, SLC NAND and dataflash are")
    sector_bytes = location.sector_bytes or erase_bytes
    if not erase_bytes or sector_bytes % erase_bytes:
        raise ConfigError(f"{location.device}: sectors of {sector_bytes:#x} bytes, the flash erases {erase_bytes:#x}")
    if location.offset < 0 or location.offset % sector_bytes:
        raise ConfigError(f"{location.device}: the offset {location.offset:#x} is not a multiple of the sector size {sector_bytes:#x}")
    if location.offset + location.size_bytes > size_bytes:
        raise ConfigError(f"{location.device}: {size_bytes} bytes, too short for the environment")
    if location.sectors and location.sectors * sector_bytes < location.size_bytes:
        raise ConfigError(f"{location.device}: {location.sectors} sectors of {sector_bytes:#x} bytes do not hold the environment")
    if kind == _MTD_NAND and location.size_bytes % max(write_bytes, 1):
        raise ConfigError(f"{location.device}: the environment is not whole pages of {write_bytes} bytes")
    return FlashArea(location, kind, size_bytes, sector_bytes, write_bytes, run_ioctl)


@contextmanager
def _opened(location: EnvLocation, flags: int) -> Iterator[int]:
    try:
        fd = os.open(location.device, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unusable(location, error) from None
    try:
        yield fd
    finally:
        os.close(fd)


def _unusable(location: EnvLocation, error: OSError) -> ConfigError:
    hint = "see the first field in fw_env.config"
    if error.errno == errno.EACCES:
        hint = "run as root"
    elif error.errno in (errno.EROFS, errno.EPERM):
        hint = "the U-Boot environment must be writable"
    return ConfigError(f"{location.device}: cannot use the U-Boot environment: {error.strerror}", hint)


def _medium(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return (0, found.st_rdev) if found.st_rdev else (found.st_dev, found.st_ino)


def _pread(fd: int, start: int, location: EnvLocation, length: int = 0) -> bytes:
    wanted = length or location.size_bytes
    data = b""
    try:
        while len(data) < wanted:
            piece = os.pread(fd, wanted - len(data), start + len(data))
            if not piece:
                raise ConfigError(f"{location.device}: ends inside the U-Boot environment", "see the offset and ENV-SIZE in fw_env.config")
            data += piece
    except OSError as error:
        raise MediumError(f"{location.device}: cannot read the U-Boot environment: {error.strerror}") from None
    return data


def _pwrite_all(fd: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, start)
        view, start = view[count:], start + count


def _compare(found: bytes, wanted: bytes, location: EnvLocation) -> None:
    if found != wanted:
        raise Failed(f"{location.device}: the U-Boot environment reads back differently from what was written", "the medium is failing")
