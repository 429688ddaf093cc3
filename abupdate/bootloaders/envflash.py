"""A copy of U-Boot's environment on raw flash behind /dev/mtdN: NOR, dataflash, SLC NAND. Source: include/uapi/mtd/mtd-abi.h."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from abupdate.bootloaders.envcalls import LINUX, Calls
from abupdate.bootloaders.envio import MediumError, Span, compare, medium_of, opened, read_exactly, write_all
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
class FlashArea:
    """A range of raw flash: erased sector by sector, then written; bad blocks of NAND are stepped over."""

    location: EnvLocation
    kind: int
    size_bytes: int
    sector_bytes: int
    write_bytes: int
    run_ioctl: Ioctl
    calls: Calls = LINUX

    @property
    def scheme(self) -> Scheme:
        return Scheme.INCREMENTAL if self.kind == _MTD_NAND else Scheme.BOOLEAN

    def read(self) -> bytes:
        with opened(self.location, os.O_RDONLY, self.calls) as fd:
            return self._read(fd)

    def _read(self, fd: int) -> bytes:
        pieces = [read_exactly(fd, start, self.location, length, self.calls) for start, length in self._good_sectors(fd)]
        return b"".join(pieces)

    def write(self, data: bytes) -> None:
        with opened(self.location, os.O_RDWR, self.calls) as fd:
            # All bad blocks are found before the first erase.
            sectors = list(self._good_sectors(fd))
            self._check_tail(fd, *sectors[-1])
            done = 0
            try:
                for start, length in sectors:
                    with self._unlocked(fd, start):
                        self.run_ioctl(fd, _MEMERASE, bytearray(_MTD_ERASE.pack(start, self.sector_bytes)))
                        write_all(fd, data[done : done + length], start, self.calls)
                    done += length
            except OSError as error:
                raise Failed(f"{self.location.device}: cannot erase or write the U-Boot environment: {error.strerror}") from None
            compare(self._read(fd), data, self.location)

    def flush(self) -> None:
        """Nothing: /dev/mtdN has no cache."""

    def mark_obsolete(self) -> None:
        offset, byte = obsolete_byte()
        start = self.location.offset
        with opened(self.location, os.O_RDWR, self.calls) as fd:
            try:
                with self._unlocked(fd, start):
                    write_all(fd, byte, start + offset, self.calls)
            except OSError as error:
                raise Failed(f"{self.location.device}: cannot mark the old U-Boot environment: {error.strerror}") from None

    def span(self) -> Span:
        with opened(self.location, os.O_RDONLY, self.calls) as fd:
            return Span(medium_of(fd, self.calls), self.location.offset, self.location.offset + self._sectors() * self.sector_bytes)

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
        try:
            found = read_exactly(fd, start + length, self.location, tail, self.calls) if tail else b""
        except MediumError:
            # An erase of this very sector that was cut off leaves NAND pages that cannot be read until it is erased again.
            return
        if found.strip(b"\xff"):
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


def flash_area(location: EnvLocation, run_ioctl: Ioctl, calls: Calls = LINUX) -> FlashArea:
    """The area, after asking the flash what it is. Raises ConfigError for what cannot hold an environment."""
    buffer = bytearray(_MTD_INFO.size)
    with opened(location, os.O_RDONLY, calls) as fd:
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
    return FlashArea(location, kind, size_bytes, sector_bytes, write_bytes, run_ioctl, calls)
