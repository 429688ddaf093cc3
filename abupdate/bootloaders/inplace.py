"""A small file that is rewritten where it lies: what the boot stores that are such files have in common.

Never by rename: FAT makes a new name in several writes, any of which can be the last one, and GRUB writes to the blocks that it found.
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
class InPlace:
    """The file at `path`, of `size_bytes` at most. what: its name in messages. hint: what to do where it is not there."""

    path: Path
    size_bytes: int
    what: str
    hint: str
    calls: Calls = LINUX

    def read(self) -> bytes:
        """All bytes, one more than `size_bytes` at most. Raises StoreUnreadable where they cannot be read, ConfigError without a file."""
        with self.opened(os.O_RDONLY) as fd:
            return self.content(fd)

    def check_writable(self) -> None:
        """Raises ConfigError where `write` would."""
        with self.opened(os.O_RDWR):
            return

    def create(self, content: bytes) -> None:
        """Make the file where there is none. A cut may leave one without its content: the boot side then does what it does without one.

        Raises Failed.
        """
        try:
            with self.path.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise Failed(f"{self.path} cannot be written: {error.strerror}") from None

    def put(self, fd: int, data: bytes, offset: int) -> None:
        """One write, in one call: the kernel may be stopped between two. Raises ConfigError (read-only), Failed."""
        try:
            if self.calls.pwrite(fd, memoryview(data), offset) != len(data):
                raise Failed(f"{self.path}: a part of a sector was written", "is the file system full?")
        except OSError as error:
            # The kernel may keep what never reached the medium, and everybody would read it as if it had.
            with suppress(OSError):
                self.calls.forget(fd, 0, mmap.PAGESIZE)
            if error.errno in (errno.EPERM, errno.EROFS):
                raise self._unusable(error) from None
            raise Failed(f"{self.path} cannot be written: {error.strerror}", f"the medium under {self.what} is failing") from None

    def settle(self, fd: int, wanted: bytes) -> None:
        """Return when the medium holds just this. Raises Failed, StoreUnreadable."""
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
        if self.content(fd) != wanted:
            raise Failed(f"{self.path} reads back differently from what was written", f"the medium under {self.what} is failing")

    def content(self, fd: int) -> bytes:
        """All bytes, one more than `size_bytes` at most. Raises StoreUnreadable."""
        data, wanted = b"", self.size_bytes + 1
        try:
            while len(data) < wanted and (piece := self.calls.pread(fd, wanted - len(data), len(data))):
                data += piece
        except OSError as error:
            raise StoreUnreadable(f"{self.path} cannot be read: {error.strerror}", f"the medium under {self.what} is failing") from None
        return data

    @contextmanager
    def opened(self, flags: int) -> Iterator[int]:
        """The open file. Raises ConfigError where it is absent, read-only or none."""
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
