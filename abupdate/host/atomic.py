"""Output files that appear whole or not at all, and copies that keep holes."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from abupdate.errors import ConfigError, Failed

_PIECE_BYTES = 1024 * 1024
_BLOCK = bytes(4096)
# What a folder is that was named wrongly; anything else (no room, I/O) may pass.
_CALLERS_FAULT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG})


@contextmanager
def output(path: Path, *, mode: int = 0o644, replace: bool = True) -> Iterator[int]:
    """A file descriptor to write `path` through: a file beside it, which takes its place at the end of the block.

    File fsync, rename, directory fsync, so that after a power cut there is the old file or the whole new one. An exception
    in the block leaves `path` as it was. mode: of the new file, in full (no umask). A link stays one: what it leads to is written.
    replace False: an existing file is a ConfigError. Raises ConfigError where the folder is missing or not writable, or something
    that is no file has the name, Failed for other I/O errors.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder", "name a file in it")
        if path.exists() and not path.is_file():
            # A device node or a pipe, which a file must not take the place of; /dev/stdout would be another one's after the rename.
            raise ConfigError(f"{path} is no regular file", "name a file: it is written beside and takes its place when it is whole")
        if not replace and os.path.lexists(path):
            raise ConfigError(f"{path} exists", "choose another name, or remove it first")
        path = Path(os.path.realpath(path))
        # Cut, so that the longest names that the file system takes are no shorter here.
        fd, name = tempfile.mkstemp(prefix=f".{path.name[:32]}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        blame = ConfigError if error.errno in _CALLERS_FAULT else Failed
        raise blame(f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        try:
            os.fchmod(fd, mode)
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        if replace:
            temporary.replace(path)
        else:
            _rename_to_new(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, FileExistsError):
            raise ConfigError(f"{path} exists", "choose another name, or remove it first") from error
        if isinstance(error, OSError):
            blame = ConfigError if error.errno in _CALLERS_FAULT else Failed
            raise blame(f"cannot write {path}: {error.strerror}") from error
        raise


def is_same(one: Path, other: Path) -> bool:
    """True when both are there and are one file."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def check_spares(path: Path, inputs: Iterable[Path]) -> None:
    """Raise ConfigError where the output `path` would take the place of a file that it is made from."""
    for source in inputs:
        if is_same(path, source):
            raise ConfigError(f"{path} would take the place of {source}, from which it is made", "write to another file")


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Rename unless the name was taken in the meantime: a link fails then, where a rename would overwrite."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links (FAT): the check at the start has to do.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.rename(path)
    else:
        temporary.unlink()


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write everything at an offset; a short write goes on, an error is an OSError."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


def pwrite_sparse(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Like `pwrite_all` into a place that was never written, but blocks of zeros at the end of `data` stay a hole.

    The file may end before the data does then: the caller sets its size.
    """
    end = len(data)
    while end >= len(_BLOCK) and data[end - len(_BLOCK) : end] == _BLOCK:
        end -= len(_BLOCK)
    pwrite_all(fd, memoryview(data)[:end], offset)


def pread(fd: int, count: int, offset: int) -> bytes:
    """`os.pread` whose errors are Failed and say that reading went wrong."""
    try:
        return os.pread(fd, count, offset)
    except OSError as error:
        raise Failed(f"cannot read: {error.strerror}") from error


def data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts (from, to) of a file between two offsets that are not holes; all of it where the file system cannot tell."""
    position = start
    while position < end:
        try:
            begin = os.lseek(fd, position, os.SEEK_DATA)
            stop = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
            begin, stop = position, end
        if begin >= end:
            return
        yield begin, min(stop, end)
        position = stop


def copy_range(source: int, start: int, end: int, target: int, offset: int) -> None:
    """Copy the bytes between two offsets of a file to an offset of another; holes stay holes. The target must be empty there.

    Raises Failed where the source is shorter.
    """
    for begin, stop in data_ranges(source, start, end):
        position = begin
        while position < stop:
            piece = pread(source, min(_PIECE_BYTES, stop - position), position)
            if not piece:
                raise Failed("the file got shorter while it was read")
            pwrite_all(target, piece, offset + position - start)
            position += len(piece)
    if os.fstat(target).st_size < offset + end - start:
        os.ftruncate(target, offset + end - start)
