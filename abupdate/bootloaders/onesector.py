"""A small file that is rewritten where it lies, in one write of its one sector: on FAT the only replacement that a power cut cannot halve.

Never by rename: FAT makes a new name in several writes, and any of them can be the last one.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from abupdate.bootloaders.envcalls import LINUX, Calls
from abupdate.errors import ConfigError, Failed, StoreUnreadable


@dataclass(frozen=True, slots=True)
class OneSector:
    """The file at `path`, of `size_bytes` at most. what: its name in messages. hint: what to do where it is not there."""

    path: Path
    size_bytes: int
    what: str
    hint: str
    calls: Calls = LINUX

    def read(self) -> bytes:
        """All bytes, one more than `size_bytes` at most. Raises StoreUnreadable where they cannot be read, ConfigError without a file."""
        with self._opened(os.O_RDONLY) as fd:
            return self._bytes(fd)

    def write(self, data: bytes) -> None:
        """Replace the whole content by `size_bytes` bytes and return when they are on the medium, read back and equal.

        A shorter file is brought to that size first, its content kept: its length lies in another sector. Raises ConfigError (absent,
        read-only), Failed.
        """
        assert len(data) == self.size_bytes
        # O_DSYNC: a process killed between a write and its flush would leave a state that everybody reads and a power cut undoes.
        with self._opened(os.O_RDWR | os.O_DSYNC) as fd:
            found = self._bytes(fd)
            if len(found) > self.size_bytes:
                raise ConfigError(f"{self.path} has more than {self.size_bytes} bytes", self.hint)
            if len(found) < self.size_bytes:
                self._put(fd, b"\n" * (self.size_bytes - len(found)), len(found))
            if found != data:
                self._put(fd, data, 0)
            self._flush(fd)
            if self._bytes(fd) != data:
                raise Failed(f"{self.path} reads back differently from what was written", f"the medium under {self.what} is failing")

    def check_writable(self) -> None:
        """Raises ConfigError where `write` would."""
        with self._opened(os.O_RDWR):
            return

    def _put(self, fd: int, data: bytes, offset: int) -> None:
        try:
            # In one call: the kernel may be stopped between two.
            if self.calls.pwrite(fd, memoryview(data), offset) != len(data):
                raise Failed(f"{self.path}: a part of the sector was written", "is the file system full?")
        except OSError as error:
            with suppress(OSError):
                self.calls.forget(fd, 0, mmap.PAGESIZE)
            if error.errno in (errno.EPERM, errno.EROFS):
                raise self._unusable(error) from None
            raise Failed(f"{self.path} cannot be written: {error.strerror}", f"the medium under {self.what} is failing") from None

    def _flush(self, fd: int) -> None:
        try:
            self.calls.fsync(fd)
            # The comparison must see the medium instead of the cache.
            self.calls.forget(fd, 0, mmap.PAGESIZE)
        except OSError as error:
            with suppress(OSError):
                self.calls.forget(fd, 0, mmap.PAGESIZE)
            raise Failed(
                f"{self.path} cannot be brought to the medium: {error.strerror}", f"the medium under {self.what} is failing"
            ) from None

    def _bytes(self, fd: int) -> bytes:
        data, wanted = b"", self.size_bytes + 1
        try:
            while len(data) < wanted and (piece := self.calls.pread(fd, wanted - len(data), len(data))):
                data += piece
        except OSError as error:
            raise StoreUnreadable(f"{self.path} cannot be read: {error.strerror}", f"the medium under {self.what} is failing") from None
        return data

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        try:
            fd = self.calls.open(str(self.path), flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            if not stat.S_ISREG(self.calls.fstat(fd).st_mode):
                raise ConfigError(f"{self.path} is no file", self.hint)
            yield fd
        finally:
            self.calls.close(fd)

    def _unusable(self, error: OSError) -> ConfigError:
        hint = self.hint
        if error.errno == errno.EROFS:
            hint = f"mount the file system under {self.path} read-write"
        elif error.errno in (errno.EACCES, errno.EPERM):
            hint = "run as root"
        return ConfigError(f"{self.what} {self.path} cannot be used: {error.strerror}", hint)
