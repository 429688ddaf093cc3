"""The kernel's calls that reach a U-Boot environment: files, block devices and flash alike.

The crash simulator implements them over modelled media, so that the order of writes, flushes and erases in envfile.py and
envflash.py is what is tested.
"""

from __future__ import annotations

import os
from typing import Protocol


class Calls(Protocol):
    """Under the kernel's names and with its errors (OSError). Offsets and lengths are bytes."""

    def open(self, device: str, flags: int) -> int:
        """Open; returns a descriptor."""

    def close(self, fd: int) -> None:
        """Close."""

    def fstat(self, fd: int) -> os.stat_result:
        """What it is: `st_mode`, and what tells two media apart."""

    def end(self, fd: int) -> int:
        """Where the file or device ends."""

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Read; short or empty at the end."""

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """Write some of the bytes; returns how many."""

    def fsync(self, fd: int) -> None:
        """Return when everything written is on the medium."""

    def forget(self, fd: int, offset: int, length: int) -> None:
        """Take whole pages out of the cache, so that the next read comes from the medium."""


class LinuxCalls:
    """`Calls` of the running kernel."""

    def open(self, device: str, flags: int) -> int:
        """See Calls."""
        return os.open(device, flags)

    def close(self, fd: int) -> None:
        """See Calls."""
        os.close(fd)

    def fstat(self, fd: int) -> os.stat_result:
        """See Calls."""
        return os.fstat(fd)

    def end(self, fd: int) -> int:
        """See Calls."""
        return os.lseek(fd, 0, os.SEEK_END)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """See Calls."""
        return os.pread(fd, count, offset)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """See Calls."""
        return os.pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        """See Calls."""
        os.fsync(fd)

    def forget(self, fd: int, offset: int, length: int) -> None:
        """See Calls."""
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


LINUX = LinuxCalls()
