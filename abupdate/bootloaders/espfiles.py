"""Small files on the EFI system partition, each call durable when it returns: file, folder and file system are flushed.

FAT has no journal. A new name may be left by a cut as nothing, as a file of length zero, or with what lay in its clusters before; one
that is written anew as any mixture of its sectors. What replaces bytes within the first sector of a file that is there is as atomic as
the disk: that is what `patch` is for.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from abupdate.durable import read_file, sync_filesystem, sync_folder, write_all
from abupdate.errors import Failed

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MODE = 0o644


class EspFiles(Protocol):
    """What the store needs; raises OSError. The crash simulator has its own."""

    def names(self, folder: Path) -> tuple[str, ...]:
        """Names in a folder."""

    def read(self, path: Path, limit: int) -> bytes:
        """A file's first bytes, past the page cache where the kernel lets us."""

    def create(self, path: Path, data: bytes) -> None:
        """Write a file that is not there."""

    def rewrite(self, path: Path, data: bytes) -> None:
        """Give a file that is there other bytes; a cut leaves any mixture."""

    def patch(self, path: Path, data: bytes) -> None:
        """Replace the first bytes (at most a sector) of a file that is longer, by one call that ends when they are on the medium: a
        process that is killed leaves nothing that programs see and a power cut takes back."""

    def remove(self, path: Path) -> None:
        """Take a file away."""

    def flush(self, folder: Path) -> None:
        """Return when everything that the file system shows is on the medium."""


class LinuxEspFiles:
    """`EspFiles` of the running kernel."""

    def names(self, folder: Path) -> tuple[str, ...]:
        """See EspFiles."""
        return tuple(sorted(path.name for path in folder.iterdir()))

    def read(self, path: Path, limit: int) -> bytes:
        """See EspFiles."""
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        return read_file(path, limit)

    def create(self, path: Path, data: bytes) -> None:
        """See EspFiles."""
        self._write(path, data, os.O_CREAT | os.O_EXCL)
        sync_folder(path.parent)
        sync_filesystem(path)

    def rewrite(self, path: Path, data: bytes) -> None:
        """See EspFiles."""
        self._write(path, data, 0)
        sync_filesystem(path)

    def patch(self, path: Path, data: bytes) -> None:
        """See EspFiles."""
        descriptor = os.open(path, os.O_WRONLY | os.O_DSYNC | _FLAGS)
        try:
            if os.pwrite(descriptor, data, 0) != len(data):
                raise Failed(f"{path}: a write was cut short", "see the kernel's log")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_filesystem(path)

    def remove(self, path: Path) -> None:
        """See EspFiles."""
        path.unlink()
        sync_folder(path.parent)
        sync_filesystem(path.parent)

    def flush(self, folder: Path) -> None:
        """See EspFiles."""
        sync_filesystem(folder)

    @staticmethod
    def _write(path: Path, data: bytes, flags: int) -> None:
        descriptor = os.open(path, os.O_WRONLY | _FLAGS | flags, _MODE)
        try:
            write_all(descriptor, data)
            os.ftruncate(descriptor, len(data))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


LINUX = LinuxEspFiles()
