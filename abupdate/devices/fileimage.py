"""Opens an image's place that is, or is to be, a regular file of a mounted file system: the kernel of a slot on the ESP.

An image of kind `file` gives the file its size. It is rewritten in place, never replaced by a rename: FAT does not do that atomically,
and nothing boots from the slot meanwhile. What is written is on the medium when file, folder and file system were flushed, in this order.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from abupdate.devices.block import BlockTarget, open_readonly, open_target
from abupdate.devices.usage import is_to_be_made
from abupdate.durable import sync_filesystem, sync_folder
from abupdate.errors import Busy, ConfigError, Failed
from abupdate.ports import Room, Target

_MODE = 0o644


def open_place(path: str | Path) -> Target:
    """Like `block.open_target`; a file that is not there yet is a FileImage without content, when its folder is there.

    Raises Busy and ConfigError.
    """
    path = Path(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        if is_to_be_made(path):
            return FileImage(path, None)
    except OSError:
        pass  # open_target says it
    else:
        if stat.S_ISREG(status.st_mode):
            return FileImage(path, open_target(path))
    return open_target(path)


def open_for_reading(path: str | Path) -> Target:
    """Like `block.open_readonly`; Failed for a file that could have been made there and is missing: then it is not what was written."""
    path = Path(path)
    if is_to_be_made(path):
        raise Failed(f"{path} is missing", "flash the slot again")
    return open_readonly(path)


class FileImage:
    """The `FileTarget` and `SparseTarget` (ports.py) of regular files. Reads and writes are those of BlockTarget."""

    def __init__(self, path: Path, below: BlockTarget | None) -> None:
        """below: the file, open for writing; None where there is none yet."""
        self._path = path
        self._below = below
        self._sized = False

    @property
    def path(self) -> Path:
        """The path as it was given."""
        return self._path

    @property
    def exists(self) -> bool:
        """See ports.FileTarget."""
        return self._below is not None

    @property
    def size_bytes(self) -> int:
        """The file's length, 0 before there is one."""
        return self._below.size_bytes if self._below is not None else 0

    def room(self) -> Room:
        """See ports.FileTarget."""
        try:
            found = os.statvfs(self._path.parent)
            number = self._path.parent.stat().st_dev
            held = self._path.stat().st_blocks * 512 if self._below is not None else 0
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}", "is the file system mounted?") from error
        if found.f_flag & os.ST_RDONLY:
            raise ConfigError(f"{self._path.parent} is on a read-only file system", "mount it read-write, or check its write protection")
        return Room(number, found.f_bavail * found.f_frsize, held, found.f_frsize)

    def resize(self, size_bytes: int) -> None:
        """See ports.FileTarget. The new length is on the medium when this returns."""
        self._sized = True
        if self._below is not None and self._below.size_bytes == size_bytes:
            return
        self.close()
        try:
            # Not through a symbolic link that somebody has put there since: on a file system that has such links at all.
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, _MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, size_bytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(self._path.parent)
        except BlockingIOError as error:
            raise Busy(f"{self._path} is locked by another process", "wait until the other update has ended") from error
        except OSError as error:
            hint = "the file system is full" if error.errno == errno.ENOSPC else "is its file system mounted read-write?"
            raise Failed(f"{self._path}: {error.strerror}", hint) from error
        self._below = open_target(self._path)

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """See ports.Target."""
        return self._file.pread_into(buffer, offset)

    def pwrite(self, buffer: memoryview, offset: int) -> None:
        """See ports.Target."""
        self._file.pwrite(buffer, offset)

    def zero_range(self, offset: int, length: int) -> bool:
        """See ports.SparseTarget."""
        return self._file.zero_range(offset, length)

    def next_data(self, offset: int, end: int) -> int:
        """See ports.SparseTarget."""
        return self._file.next_data(offset, end)

    def flush(self) -> None:
        """See ports.Target. Of an image of kind `file`: file, folder, file system."""
        self._file.flush()
        if not self._sized:
            return
        try:
            sync_folder(self._path.parent)
            sync_filesystem(self._path)
        except OSError as error:
            raise Failed(f"flush of {self._path} failed: {error.strerror}", "the medium may be failing: see the kernel's log") from error

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        if self._below is not None:
            self._below.close()
            self._below = None

    @property
    def _file(self) -> BlockTarget:
        if self._below is None:
            raise ValueError(f"{self._path} has not been made yet")
        return self._below
