"""Where a bundle's bytes come from: a file that is opened once, or a stream. Implements ports.Source and ports.RandomSource."""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from abupdate.errors import ConfigError, Failed
from abupdate.ports import Source

if TYPE_CHECKING:
    from abupdate.transfer.httpsource import HttpSource

_SKIP_BUFFER_BYTES = 1 << 20


class FileSource:
    """A bundle in a regular file. The path is used once: what is checked and what is installed come from one descriptor."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Take over a descriptor of a regular file, opened for reading."""
        self._path = path
        self._fd = descriptor
        self._size_bytes = os.fstat(descriptor).st_size
        self._position = 0
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def size_bytes(self) -> int:
        """Size of the file when it was opened."""
        return self._size_bytes

    @property
    def seekable(self) -> bool:
        """Always: bytes that are not needed are never read."""
        return True

    @property
    def position(self) -> int:
        """Where the next `read_into` reads, bytes from the start of the file."""
        return self._position

    def read_into(self, buffer: memoryview) -> int:
        """See ports.Source. Raises Failed on an I/O error."""
        count = self.read_at(buffer, self._position)
        self._position += count
        return count

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from an offset; a short count means the end of the file. May be called from several threads."""
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
                if count == 0:
                    break
                done += count
        except OSError as error:
            raise Failed(f"reading {self._path} failed: {error.strerror}", "copy the bundle again") from error
        return done

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end: how the bundle's head is read."""
        return _read_bytes(self, count)

    def skip(self, count: int) -> int:
        """See ports.Source."""
        count = max(0, min(count, self._size_bytes - self._position))
        self._position += count
        return count

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class StreamSource:
    """A bundle from a pipe, a socket or redirected standard input: read once, in order, whatever is behind the descriptor."""

    def __init__(self, descriptor: int, name: str = "standard input") -> None:
        """Read from a descriptor, which stays the caller's; `name` is for messages."""
        self._fd = descriptor
        self._name = name
        self._position = 0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    @property
    def size_bytes(self) -> None:
        """A stream's size is not known."""
        return

    @property
    def seekable(self) -> bool:
        """Never, even when a file is redirected."""
        return False

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._position

    def read_into(self, buffer: memoryview) -> int:
        """See ports.Source. Raises Failed on an I/O error, and where `cancel` was called while it waited."""
        done = 0
        try:
            while done < len(buffer):
                ready = self._poll.poll()
                if any(descriptor == self._wake for descriptor, _ in ready):
                    raise Failed(f"reading {self._name} was interrupted")
                try:
                    count = os.readv(self._fd, [buffer[done:]])
                except BlockingIOError:
                    continue  # a descriptor that its owner made non-blocking, and another reader was faster
                if count == 0:
                    break
                done += count
        except OSError as error:
            raise Failed(f"reading {self._name} failed: {error.strerror}", "start the transfer again") from error
        finally:
            self._position += done
        return done

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end: how the bundle's head is read."""
        return _read_bytes(self, count)

    def skip(self, count: int) -> int:
        """See ports.Source: the bytes are read and dropped."""
        scratch = memoryview(bytearray(min(count, _SKIP_BUFFER_BYTES)))
        done = 0
        while done < count:
            got = self.read_into(scratch[: min(len(scratch), count - done)])
            if got == 0:
                break
            done += got
        return done

    def silent(self, wait_s: float) -> bool:
        """See ports.WaitingSource."""
        return not self._poll.poll(wait_s * 1000)

    def cancel(self) -> None:
        """End a `read_into` that waits in another thread, now or later."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Stop using the descriptor, which stays open; a second call does nothing."""
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class RateLimit:
    """Spreads reads so that no more than `bytes_per_s` are taken on average; shared by the threads and images of one operation."""

    def __init__(self, bytes_per_s: int) -> None:
        """Raises ConfigError unless the rate is positive."""
        if bytes_per_s <= 0:
            raise ConfigError("the rate must be positive", "--max-rate takes bytes per second")
        self._rate = bytes_per_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int, stop: threading.Event) -> None:
        """Wait until `count` bytes may be read, or `stop` is set. The first take is free; each one delays the next."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + count / self._rate
        if start > now:
            stop.wait(start - now)


def open_source(name: str) -> FileSource | StreamSource | HttpSource:
    """Open what `flash` was given: `-` is standard input as a stream; a path to a pipe or device is a stream, and so is an http(s) URL.

    Raises ConfigError where it cannot be opened or is a directory, Failed where the server does not give it.
    """
    if name == "-":
        return StreamSource(0)
    if "://" in name and not os.path.lexists(name):
        from abupdate.transfer.httpsource import HttpSource

        return HttpSource(name)
    path = Path(name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}", "give the path of a bundle, or - for standard input") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return FileSource(path, descriptor)
    if stat.S_ISDIR(mode):
        os.close(descriptor)
        raise ConfigError(f"{name} is a directory", "give the path of a bundle, or - for standard input")
    return _OwnedStream(descriptor, name)


class _OwnedStream(StreamSource):
    """A stream whose descriptor was opened here and is closed here."""

    def close(self) -> None:
        if self._wake >= 0:
            os.close(self._fd)
        super().close()


def _read_bytes(source: Source, count: int) -> bytes:
    buffer = bytearray(count)
    with memoryview(buffer) as view:
        got = source.read_into(view)
    del buffer[got:]
    return bytes(buffer)
