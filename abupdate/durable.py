"""Durable replacement of a small file: file flushed, renamed, folder flushed; a cut leaves the old file or the new one.

`Files` are the kernel's calls that this needs. The crash simulator implements them over a modelled disk, so that the order of the
calls below is what is tested.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PIECE_BYTES = 1 << 20


class Files(Protocol):
    """The kernel's calls for small files, under the kernel's names and with its errors (OSError)."""

    def mkdir(self, path: Path, mode: int) -> None:
        """Make one folder."""

    def open(self, path: Path, flags: int, mode: int) -> int:
        """Open a file or a folder; returns a descriptor."""

    def read(self, descriptor: int, count: int) -> bytes:
        """Read on from where the last call ended; empty at the end."""

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of the bytes; returns how many."""

    def ftruncate(self, descriptor: int, length: int) -> None:
        """Cut a file off at a length (not durably)."""

    def fsync(self, descriptor: int) -> None:
        """Return when the file's content, or the folder's names, are on the medium."""

    def fdatasync(self, descriptor: int) -> None:
        """Like fsync for a file, without its times."""

    def flock(self, descriptor: int) -> None:
        """Take the exclusive lock or raise BlockingIOError."""

    def close(self, descriptor: int) -> None:
        """Close; a lock goes with it."""

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name, in place of the file that had it."""

    def unlink(self, path: Path) -> None:
        """Take a name away."""


class LinuxFiles:
    """`Files` of the running kernel."""

    def mkdir(self, path: Path, mode: int) -> None:
        """See Files."""
        path.mkdir(mode)

    def open(self, path: Path, flags: int, mode: int) -> int:
        """See Files."""
        return os.open(path, flags, mode)

    def read(self, descriptor: int, count: int) -> bytes:
        """See Files."""
        return os.read(descriptor, count)

    def write(self, descriptor: int, data: memoryview) -> int:
        """See Files."""
        return os.write(descriptor, data)

    def ftruncate(self, descriptor: int, length: int) -> None:
        """See Files."""
        os.ftruncate(descriptor, length)

    def fsync(self, descriptor: int) -> None:
        """See Files."""
        os.fsync(descriptor)

    def fdatasync(self, descriptor: int) -> None:
        """See Files."""
        os.fdatasync(descriptor)

    def flock(self, descriptor: int) -> None:
        """See Files."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self, descriptor: int) -> None:
        """See Files."""
        os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        """See Files."""
        path.rename(target)

    def unlink(self, path: Path) -> None:
        """See Files."""
        path.unlink()


LINUX = LinuxFiles()


def replace(path: Path, data: bytes, mode: int = 0o600, files: Files = LINUX) -> None:
    """Replace `path` by `data` (whole, or not at all). Raises OSError; the old content stays then."""
    fresh = path.with_name(path.name + ".new")
    descriptor = files.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            write_all(descriptor, data, files)
            files.fsync(descriptor)
        finally:
            files.close(descriptor)
        files.rename(fresh, path)
    except OSError:
        with suppress(OSError):
            files.unlink(fresh)
        raise
    sync_folder(path.parent, files)


def write_all(descriptor: int, data: bytes, files: Files = LINUX) -> None:
    """Write all of it, in as many calls as the kernel wants. Raises OSError; any part may be written then."""
    view = memoryview(data)
    while view:
        view = view[files.write(descriptor, view) :]


def read(descriptor: int, limit: int, files: Files = LINUX) -> bytes:
    """An open file's bytes from where it stands to its end, at most `limit` of them. Raises OSError."""
    data = bytearray()
    while piece := files.read(descriptor, min(_PIECE_BYTES, limit - len(data))):
        data += piece
    return bytes(data)


def read_file(path: Path, limit: int, files: Files = LINUX) -> bytes:
    """A file's first bytes, at most `limit` of them. Raises OSError."""
    # Not waiting: a named pipe in a file's place is as good as no file.
    descriptor = files.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, 0)
    try:
        return read(descriptor, limit, files)
    finally:
        files.close(descriptor)


def sync_folder(folder: Path, files: Files = LINUX) -> None:
    """Make renames and new names in a folder durable. Raises OSError."""
    descriptor = files.open(folder, _FOLDER, 0)
    try:
        files.fsync(descriptor)
    finally:
        files.close(descriptor)


def make_folder(path: Path, mode: int = 0o700, files: Files = LINUX) -> None:
    """Make a folder and those above it durably where they are missing. Raises OSError."""
    try:
        files.mkdir(path, mode)
    except FileExistsError:
        return
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_folder(path.parent, mode, files)
        make_folder(path, mode, files)
        return
    # Without this the new folder can be gone after a power cut, with everything that was flushed inside it.
    sync_folder(path.parent, files)


def sync_filesystem(path: Path) -> None:
    """Return when everything of the file system that a file or folder lies on is on the medium. Raises OSError.

    FAT keeps a file's length and clusters in places that are neither the file's nor its folder's.
    """
    # Python has no syncfs(2).
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
