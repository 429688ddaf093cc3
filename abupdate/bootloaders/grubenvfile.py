"""GRUB's environment block as a file that is rewritten where it lies, sector by sector: GRUB writes to the blocks that it found it in.

Never by rename, nor at another length: GRUB looks the blocks up at each boot, but a file that a cut left without any would stop it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from abupdate.bootloaders.envcalls import LINUX, Calls
from abupdate.errors import Busy, ConfigError, Failed, StoreUnreadable
from abupdate.formats.grubenv import EMPTY, SIZE_BYTES, sectors

LOCK_WAIT_S = 10.0
_RETRY_S = 0.005
_FAILING = "the medium under GRUB's environment block is failing"


@dataclass(frozen=True, slots=True)
class GrubenvFile:
    """The file at `path`. lock: on the file itself, against another abupdate: grub-editenv takes none."""

    path: Path
    calls: Calls = LINUX
    lock: Callable[[int, float], None] | None = None

    def read(self) -> bytes:
        """All bytes, one more than the size of a block at most. Raises ConfigError without a file, StoreUnreadable."""
        with self._opened(os.O_RDONLY) as fd:
            return self._bytes(fd)

    def update(self, wanted: Callable[[bytes], bytes]) -> None:
        """Read, let `wanted` say what is to be there, write the sectors that differ, each in one call, and look at the medium.

        Returns when all of it is on the medium, also where nothing differs. Raises what `wanted` does; Failed; Busy.
        """
        # O_DSYNC: a process killed between a write and its flush would leave a state that everybody reads and a power cut undoes.
        with self._opened(os.O_RDWR | os.O_DSYNC) as fd:
            (self.lock or _flock)(fd, LOCK_WAIT_S)
            found = self._bytes(fd)
            data = wanted(found)
            if len(found) > SIZE_BYTES:
                self._shorten(fd)
            for offset, piece in sectors(found, data):
                self._put(fd, piece, offset)
            self._flush(fd)
            if self._bytes(fd) != data:
                raise Failed(f"{self.path} reads back differently from what was written", _FAILING)

    def create(self) -> None:
        """An empty block where no file is. A cut may leave a file that is none: GRUB then does what it does without one. Raises Failed."""
        try:
            with self.path.open("xb") as file:
                file.write(EMPTY)
                file.flush()
                os.fsync(file.fileno())
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise Failed(f"{self.path} cannot be written: {error.strerror}") from None

    def _put(self, fd: int, data: bytes, offset: int) -> None:
        try:
            if self.calls.pwrite(fd, memoryview(data), offset) != len(data):
                raise Failed(f"{self.path}: a part of a sector was written", "is the file system full?")
        except OSError as error:
            # The kernel may keep what never reached the medium, and everybody would read it as if it had.
            with suppress(OSError):
                self.calls.forget(fd, 0, mmap.PAGESIZE)
            if error.errno in (errno.EPERM, errno.EROFS):
                raise self._unusable(error) from None
            raise Failed(f"{self.path} cannot be written: {error.strerror}", _FAILING) from None

    def _shorten(self, fd: int) -> None:
        try:
            os.ftruncate(fd, SIZE_BYTES)
        except OSError as error:
            raise Failed(f"{self.path} cannot be cut to {SIZE_BYTES} bytes: {error.strerror}") from None

    def _flush(self, fd: int) -> None:
        try:
            self.calls.fsync(fd)
            # The comparison must see the medium instead of the cache.
            self.calls.forget(fd, 0, mmap.PAGESIZE)
        except OSError as error:
            with suppress(OSError):
                self.calls.forget(fd, 0, mmap.PAGESIZE)
            raise Failed(f"{self.path} cannot be brought to the medium: {error.strerror}", _FAILING) from None

    def _bytes(self, fd: int) -> bytes:
        data, most = b"", SIZE_BYTES + 1
        try:
            while len(data) < most and (piece := self.calls.pread(fd, most - len(data), len(data))):
                data += piece
        except OSError as error:
            raise StoreUnreadable(f"{self.path} cannot be read: {error.strerror}", _FAILING) from None
        return data

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        try:
            fd = self.calls.open(str(self.path), flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            if not stat.S_ISREG(self.calls.fstat(fd).st_mode):
                raise ConfigError(f"{self.path} is no file", "[bootloader] grubenv names GRUB's environment block")
            yield fd
        finally:
            self.calls.close(fd)

    def _unusable(self, error: OSError) -> ConfigError:
        hint = f"[bootloader] grubenv names it; grub-editenv {self.path} create makes an empty one"
        if error.errno == errno.EROFS:
            hint = f"mount the file system under {self.path} read-write"
        elif error.errno in (errno.EACCES, errno.EPERM):
            hint = "run as root"
        return ConfigError(f"GRUB's environment block {self.path} cannot be used: {error.strerror}", hint)


def _flock(fd: int, wait_s: float) -> None:
    """Hold the file until it is closed. Raises Busy."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Busy("another program holds GRUB's environment block", "see who has it open: fuser") from None
            time.sleep(_RETRY_S)
        else:
            return
