"""Protocols between the operations and what they act on, in terms of model types. The simulator implements the same ones."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from abupdate.model import BootState, BootTraits


class Bootloader(Protocol):
    """The store in which a bootloader keeps what boots next."""

    @property
    def traits(self) -> BootTraits:
        """What this bootloader can do."""

    @property
    def location(self) -> str:
        """Where the store lies, in words that are the same at every start."""

    def read(self) -> BootState:
        """Read the state. Raises StoreUnreadable where no valid copy exists."""

    def commit(self, state: BootState) -> None:
        """Write the whole state durably, in one step; return only when it is on the medium. Foreign content stays."""

    def rebuild(self, state: BootState) -> None:
        """Write a store anew where `read` raised StoreUnreadable (doctor --fix, the service)."""


@runtime_checkable
class Target(Protocol):
    """An image's place on a slot: a block device or a regular file, opened exclusively for writing.

    Offsets and lengths are bytes; writes start at multiples of 4096 (only the last may be shorter than that).
    """

    @property
    def size_bytes(self) -> int:
        """Room on the target."""

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from the medium (past the page cache); return the count, short only at the end of the target."""

    def pwrite(self, buffer: memoryview, offset: int) -> None:
        """Write the whole buffer; raises Failed on an I/O error."""

    def flush(self) -> None:
        """Return when everything written is on the medium."""

    def close(self) -> None:
        """Release the device."""


@runtime_checkable
class SparseTarget(Target, Protocol):
    """A target that knows of zeros: devices that can be told to zero a range, files with holes."""

    def zero_range(self, offset: int, length: int) -> bool:
        """Make a range read as zeros without sending zeros; False where that is not offered (then nothing has changed)."""

    def next_data(self, offset: int, end: int) -> int:
        """First multiple of 4096 in [offset, end) at which there may be data; `end` where the rest is a hole."""


class Source(Protocol):
    """Where a bundle's bytes come from."""

    @property
    def size_bytes(self) -> int | None:
        """Size of a file, None for a stream."""

    @property
    def seekable(self) -> bool:
        """True for a file: bytes that are not needed are never read."""

    def read_into(self, buffer: memoryview) -> int:
        """Fill the buffer from the current position; a short count means the end."""

    def skip(self, count: int) -> int:
        """Move forward without looking at the bytes; return how many could be skipped (short: the stream ended)."""

    def close(self) -> None:
        """Release the source."""


@runtime_checkable
class RandomSource(Source, Protocol):
    """A seekable source that several threads may read at once."""

    @property
    def position(self) -> int:
        """Where the next `read_into` reads, bytes from the start."""

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from an offset, whatever the position; a short count means the end."""


@runtime_checkable
class WaitingSource(Source, Protocol):
    """A source whose reads may wait for long: a pipe, a network."""

    def cancel(self) -> None:
        """End a read that waits in another thread, now or later, with Failed."""
