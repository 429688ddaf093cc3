"""Opens a slot's block device or regular file for writing or for checking, past the page cache.

Both kinds behave the same: exclusive, never grown or truncated, direct I/O (O_DIRECT) where the kernel offers it, else buffered I/O
that is forced to the medium every few MiB and dropped from the page cache, so that what is read back comes from the medium.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from abupdate.devices.usage import Identity, explain_use, identify, identify_status
from abupdate.errors import Busy, ConfigError, Failed
from abupdate.formats.ioctl import plain_number, read_number

BLOCK_BYTES = 4096

# linux/fs.h; the argument of BLKZEROOUT is two u64: start and length in bytes.
_BLKGETSIZE64 = read_number("\x12", 114, struct.calcsize("P"))  # declared with size_t, and fills 8 bytes all the same
_BLKSSZGET = plain_number("\x12", 104)
_BLKROGET = plain_number("\x12", 94)
_BLKFLSBUF = plain_number("\x12", 97)
_BLKZEROOUT = plain_number("\x12", 127)
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_ZERO_RANGE = 0x10
_NOT_OFFERED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)

# Buffered fallback: how much may be dirty before it is forced out.
_DIRTY_LIMIT_BYTES = 8 << 20


def aligned_buffer(size_bytes: int) -> memoryview:
    """A page-aligned writable buffer, as direct I/O needs it; freed with its last view."""
    return memoryview(mmap.mmap(-1, size_bytes))


def open_target(path: str | Path) -> BlockTarget:
    """Open a slot's image for writing; nobody else may write it meanwhile.

    Raises Busy where it is mounted, used as swap, held by another device or open elsewhere; ConfigError where it is
    absent, read-only or neither block device nor regular file.
    """
    return _open(Path(path), writable=True)


def open_readonly(path: str | Path) -> BlockTarget:
    """Open a slot's image for verification; it may be mounted. Raises ConfigError where it is absent or of another kind."""
    return _open(Path(path), writable=False)


def size_of(path: str | Path) -> int:
    """Room on a block device or regular file, bytes."""
    with open_readonly(path) as target:
        return target.size_bytes


class _Vectored(Protocol):
    """os.preadv or os.pwritev."""

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int, /) -> int: ...


class BlockTarget:
    """The `Target` (ports.py) of block devices and regular files. Reads and writes may come from several threads."""

    def __init__(self, path: Path, descriptor: int, *, direct: bool) -> None:
        """Take over an open descriptor; `direct` says that it was opened with O_DIRECT."""
        self._path = path
        self._fd = descriptor
        self._buffered_fd = -1 if direct else descriptor
        self._direct = direct
        self._lock = threading.Lock()
        self._dirty_bytes = 0
        self._is_block = stat.S_ISBLK(os.fstat(descriptor).st_mode)
        if self._is_block:
            self._size_bytes = int(struct.unpack("Q", fcntl.ioctl(descriptor, _BLKGETSIZE64, bytes(8)))[0])
            self._align = int(struct.unpack("i", fcntl.ioctl(descriptor, _BLKSSZGET, bytes(4)))[0])
        else:
            self._size_bytes = os.fstat(descriptor).st_size
            self._align = BLOCK_BYTES
        if not direct:
            # Read exactly what is asked for: pages read ahead would count as "cached" when their turn comes, and be read twice.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    @property
    def path(self) -> Path:
        """The path as it was given."""
        return self._path

    @property
    def size_bytes(self) -> int:
        """Size of the device, or of the file when it was opened."""
        return self._size_bytes

    @property
    def direct(self) -> bool:
        """True while the kernel takes O_DIRECT here."""
        return self._direct

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """See ports.Target. `offset` is a multiple of 4096; raises Failed on an I/O error."""
        self._check_offset(offset)
        wanted = max(0, min(len(buffer), self._size_bytes - offset))
        whole = wanted - wanted % self._align
        try:
            done = self._read(buffer[:whole], offset)
            if done == whole and whole < wanted:
                # A direct read takes whole blocks only: the end goes through a block of its own.
                block = aligned_buffer(self._align)
                done += (count := min(self._read(block, offset + whole), wanted - whole))
                buffer[whole : whole + count] = block[:count]
        except OSError as error:
            raise self._failed("read", offset, error) from error
        return done

    def pwrite(self, buffer: memoryview, offset: int) -> None:
        """See ports.Target. `offset` is a multiple of 4096 and the end lies on the target; raises Failed on an I/O error."""
        self._check_offset(offset)
        if offset + len(buffer) > self._size_bytes:
            raise ValueError(f"write of {len(buffer)} bytes at {offset} exceeds {self._path}")
        whole = len(buffer) - len(buffer) % self._align
        try:
            self._write(buffer[:whole], offset)
            if whole < len(buffer):
                self._write_part(buffer[whole:], offset + whole)
        except OSError as error:
            raise self._failed("write", offset, error) from error

    def zero_range(self, offset: int, length: int) -> bool:
        """Make a range read as zeros without sending zeros; False where that is not offered (then nothing has changed).

        BLKZEROOUT and FALLOC_FL_ZERO_RANGE promise zeros; a discard would not. Both take multiples of the block size only.
        """
        self._check_offset(offset)
        if length % self._align or offset + length > self._size_bytes:
            return False
        try:
            if self._is_block:
                fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
            else:
                _zero_file_range(self._fd, offset, length)
        except OSError as error:
            if error.errno in _NOT_OFFERED:
                return False
            raise self._failed("write", offset, error) from error
        return True

    def next_data(self, offset: int, end: int) -> int:
        """First multiple of 4096 in [offset, end) at which the target may hold data; `end` where the rest is a hole of a sparse file."""
        if self._is_block:
            return offset
        try:
            found = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            return end if error.errno == errno.ENXIO else offset
        return max(offset, min(found - found % BLOCK_BYTES, end))

    def flush(self) -> None:
        """Return when everything written is on the medium (fsync; the device's own cache included)."""
        try:
            for descriptor in {self._fd, self._buffered_fd} - {-1}:
                os.fsync(descriptor)
                if descriptor == self._buffered_fd:
                    self._drop(descriptor)
        except OSError as error:
            raise self._failed("flush", 0, error) from error

    def close(self) -> None:
        """Release the device; a second call does nothing."""
        for descriptor in {self._fd, self._buffered_fd} - {-1}:
            os.close(descriptor)
        self._fd = self._buffered_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read(self, view: memoryview, offset: int) -> int:
        done = 0
        while done < len(view):
            if self._direct:
                count = self._direct_io(os.preadv, view[done:], offset + done, fill=True)
            else:
                # Only clean pages can be dropped: after `flush` all are.
                os.posix_fadvise(self._buffered_fd, offset + done, len(view) - done, os.POSIX_FADV_DONTNEED)
                count = os.preadv(self._buffered_fd, [view[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def _write(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            if self._direct:
                done += self._direct_io(os.pwritev, view[done:], offset + done, fill=False)
            else:
                done += self._write_buffered(view[done:], offset + done)

    def _direct_io(self, call: _Vectored, view: memoryview, offset: int, *, fill: bool) -> int:
        """One direct read or write. Takes a detour through an aligned buffer, and then gives O_DIRECT up, where the kernel says EINVAL."""
        try:
            return call(self._fd, [view], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        detour = aligned_buffer(len(view))
        if not fill:
            detour[:] = view
        try:
            count = call(self._fd, [detour], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._give_up_direct()
            return call(self._buffered_fd, [view], offset)
        if fill:
            view[:count] = detour[:count]
        return count

    def _write_part(self, part: memoryview, offset: int) -> None:
        """Write less than a block: the rest of the block keeps its content."""
        room = min(self._align, self._size_bytes - offset)
        if self._direct and room == self._align:
            block = aligned_buffer(self._align)
            if self._read(block, offset) == self._align:
                block[: len(part)] = part
                self._write(block, offset)
                return
        # The target itself ends within the block (a regular file): no direct write fits.
        done = 0
        self._open_buffered()
        while done < len(part):
            done += self._write_buffered(part[done:], offset + done)
        os.fdatasync(self._buffered_fd)
        self._drop(self._buffered_fd)

    def _write_buffered(self, view: memoryview, offset: int) -> int:
        count = os.pwritev(self._buffered_fd, [view], offset)
        with self._lock:
            self._dirty_bytes += count
            full = self._dirty_bytes >= _DIRTY_LIMIT_BYTES
            if full:
                self._dirty_bytes = 0
        if full:
            os.fdatasync(self._buffered_fd)
            self._drop(self._buffered_fd)
        return count

    def _drop(self, descriptor: int) -> None:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if self._is_block:
            # Needs CAP_SYS_ADMIN; without it the advice above has done it for clean pages.
            with contextlib.suppress(PermissionError):
                fcntl.ioctl(descriptor, _BLKFLSBUF, 0)

    def _give_up_direct(self) -> None:
        self._open_buffered()
        self._direct = False

    def _open_buffered(self) -> None:
        with self._lock:
            if self._buffered_fd < 0:
                # Through the descriptor, not the path: it is the same device whatever the path means by now.
                flags = fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_ACCMODE
                self._buffered_fd = os.open(f"/proc/self/fd/{self._fd}", flags | os.O_CLOEXEC)
                os.posix_fadvise(self._buffered_fd, 0, 0, os.POSIX_FADV_RANDOM)

    def _check_offset(self, offset: int) -> None:
        if offset % BLOCK_BYTES or offset < 0:
            raise ValueError(f"offset {offset} is no multiple of {BLOCK_BYTES}")

    def _failed(self, what: str, offset: int, error: OSError) -> Failed:
        full = error.errno == errno.ENOSPC
        hint = "the file system that holds the slot is full" if full else "the medium may be failing: see the kernel's log"
        return Failed(f"{what} at byte {offset} of {self._path} failed: {error.strerror}", hint)


def _open(path: Path, *, writable: bool) -> BlockTarget:
    identity = identify(path)
    flags = os.O_CLOEXEC | os.O_NOCTTY | (os.O_RDWR if writable else os.O_RDONLY)
    if writable and identity.device is not None:
        flags |= os.O_EXCL  # for a block device, without O_CREAT: nobody else may claim or mount it until we close it
    direct = True
    try:
        try:
            descriptor = os.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            direct = False
            descriptor = os.open(path, flags)
    except OSError as error:
        raise _refusal(path, identity, error) from error
    try:
        if writable:
            _claim(path, descriptor, identity)
        return BlockTarget(path, descriptor, direct=direct)
    except BaseException:
        os.close(descriptor)
        raise


def _claim(path: Path, descriptor: int, identity: Identity) -> None:
    if identify_status(path, os.fstat(descriptor)) != identity:
        raise Busy(f"{path} was replaced while it was opened", "try again")
    if identity.device is None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"{path} is locked by another process", "wait until the other update has ended") from error
    elif struct.unpack("i", fcntl.ioctl(descriptor, _BLKROGET, bytes(4)))[0]:
        raise ConfigError(f"{path} is read-only", "blockdev --setrw, or check the device's write protection")
    if use := explain_use(identity):
        raise Busy(f"{path} is {use}", "a slot must be unused while it is written")


def _refusal(path: Path, identity: Identity, error: OSError) -> Busy | ConfigError:
    if error.errno == errno.EBUSY:
        use = explain_use(identity) or "in use by another program or mounted in another mount namespace"
        return Busy(f"{path} is {use}", "a slot must be unused while it is written")
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "run as root" if os.geteuid() else "is it immutable, or on a read-only file system?"
        return ConfigError(f"{path}: {error.strerror}", hint)
    return ConfigError(f"{path}: {error.strerror}", "check the slot's device in the configuration")


def _zero_file_range(descriptor: int, offset: int, length: int) -> None:
    # Python has no fallocate(2) with modes; ctypes is loaded only here, where a regular file has data to be zeroed.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    mode = _FALLOC_FL_ZERO_RANGE | _FALLOC_FL_KEEP_SIZE
    if libc.fallocate64(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
