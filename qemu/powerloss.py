"""What a power cut leaves of a disk: a medium, a volatile cache in front of it, and the seeded choice of what reached the medium.

A disk promises no more than this: what was acknowledged before a flush is on the medium when the flush is done. Of everything
later any sector (512 bytes) may have reached the medium or not, in whatever order, the write in flight among them.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

from qemu.nbd import PowerCut

SECTOR = 512
_REGION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Write:
    """A write that the disk acknowledged; offset in bytes. fua: it alone is on the medium at once."""

    offset: int
    data: bytes
    fua: bool = False


@dataclass(frozen=True, slots=True)
class Flush:
    """A flush that the disk acknowledged."""


Event = Write | Flush


class Loss(Enum):
    """How the cache is lost: which of the writes since the last flush have reached the medium."""

    ALL = "all lost"
    NONE = "none lost"
    LATE = "the last ones lost"
    EARLY = "the first ones lost"
    WRITES = "any writes lost"
    SECTORS = "any sectors lost"


@dataclass(frozen=True, slots=True)
class Cut:
    """A power cut: the first `done` events of a log were acknowledged; the next one, if it is a write, was in flight."""

    done: int
    seed: int

    def loss(self) -> Loss:
        """The seed's choice of how the cache is lost."""
        return _loss(random.Random(self.seed))

    def __str__(self) -> str:
        return f"cut after event {self.done}, seed {self.seed} ({self.loss().value})"


def _loss(chance: random.Random) -> Loss:
    losses: list[Loss] = [*Loss, Loss.SECTORS]  # twice: it is the one with the most outcomes
    return losses[chance.randrange(len(losses))]


def survivors(cached: Sequence[Write], in_flight: Write | None, seed: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of what reaches the medium, in an order in which newer bytes come last; whole sectors.

    cached: acknowledged since the last flush. in_flight: torn in sectors, or lost, or all there.
    """
    chance = random.Random(seed)
    loss = _loss(chance)
    at = chance.randrange(len(cached) + 1)
    for number, write in enumerate(cached):
        match loss:
            case Loss.ALL:
                whole = False
            case Loss.NONE:
                whole = True
            case Loss.LATE:
                whole = number < at
            case Loss.EARLY:
                whole = number >= at
            case Loss.WRITES:
                whole = chance.random() < 0.5
            case Loss.SECTORS:
                yield from _some_sectors(write, chance)
                continue
        if whole:
            yield write.offset, write.data
    if in_flight is not None:
        yield from _torn(in_flight, chance)


def _some_sectors(write: Write, chance: random.Random) -> Iterator[tuple[int, bytes]]:
    count = len(write.data) // SECTOR
    bits = chance.getrandbits(count) if count else 0
    for kept, run in itertools.groupby(range(count), key=lambda n: bits >> n & 1):
        if kept:
            numbers = list(run)
            first, end = numbers[0] * SECTOR, (numbers[-1] + 1) * SECTOR
            yield write.offset + first, write.data[first:end]


def _torn(write: Write, chance: random.Random) -> Iterator[tuple[int, bytes]]:
    """The head, the tail, or any sectors of a write."""
    at = chance.randrange(len(write.data) // SECTOR + 1) * SECTOR
    match chance.randrange(3):
        case 0:
            yield write.offset, write.data[:at]
        case 1:
            yield write.offset + at, write.data[at:]
        case _:
            yield from _some_sectors(write, chance)


class Medium:
    """The bytes of a disk in memory, over an image file that is never changed; regions know whether they were written.

    `trying` makes changes that are taken back.
    """

    _numbers: ClassVar[Iterator[int]] = itertools.count(1)

    def __init__(self, image: Path) -> None:
        with image.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.size_bytes = len(self._bytes)
        self._versions = [0] * -(-self.size_bytes // _REGION_BYTES)
        self._undo: list[tuple[int, bytes]] | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from an offset, short at the end."""
        return self._bytes[offset : offset + length]

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill the buffer from an offset; return the count, short at the end."""
        count = max(0, min(len(buffer), self.size_bytes - offset))
        with memoryview(self._bytes) as view:
            buffer[:count] = view[offset : offset + count]
        return count

    def write(self, offset: int, data: bytes) -> None:
        """Replace bytes. Raises ValueError beyond the end."""
        end = offset + len(data)
        if end > self.size_bytes:
            raise ValueError(f"a write up to byte {end} of a disk of {self.size_bytes}")
        if not data:
            return
        if self._undo is not None:
            self._undo.append((offset, self._bytes[offset:end]))
        self._bytes[offset:end] = data
        number = next(self._numbers)
        for region in range(offset // _REGION_BYTES, (end - 1) // _REGION_BYTES + 1):
            self._versions[region] = number

    def stamp(self, offset: int, length: int) -> tuple[int, ...]:
        """Equal for the same range, of this medium or another one over the same image, only where its bytes are the same."""
        return tuple(self._versions[offset // _REGION_BYTES : (offset + length - 1) // _REGION_BYTES + 1])

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """Take back, at the end, what is written inside."""
        before = list(self._versions)
        self._undo = []
        try:
            yield
        finally:
            for offset, data in reversed(self._undo):
                self._bytes[offset : offset + len(data)] = data
            self._undo = None
            self._versions = before

    def written(self) -> Iterator[tuple[int, int]]:
        """Offset and length of every region in which something was written."""
        for number, version in enumerate(self._versions):
            if version:
                offset = number * _REGION_BYTES
                yield offset, min(_REGION_BYTES, self.size_bytes - offset)

    def close(self) -> None:
        """Free the memory."""
        self._bytes.close()


class Replay:
    """Goes forward through a log of events on a medium and shows, at any point, what a cut there leaves."""

    def __init__(self, image: Path, events: Sequence[Event]) -> None:
        self.medium = Medium(image)
        self.events = events
        self._done = 0
        self._cached: list[Write] = []

    @contextlib.contextmanager
    def after(self, cut: Cut) -> Iterator[Medium]:
        """The medium after a cut, to be used inside. Cuts come in ascending order of `done`. Raises ValueError otherwise."""
        if cut.done < self._done:
            raise ValueError(f"{cut} lies before event {self._done}")
        for event in itertools.islice(self.events, self._done, cut.done):
            self._apply(event)
        self._done = cut.done
        following = self.events[cut.done] if cut.done < len(self.events) else None
        with self.medium.trying():
            for offset, data in survivors(self._cached, following if isinstance(following, Write) else None, cut.seed):
                self.medium.write(offset, data)
            yield self.medium

    def _apply(self, event: Event) -> None:
        match event:
            case Flush():
                for write in self._cached:
                    self.medium.write(write.offset, write.data)
                self._cached.clear()
            case Write():
                # What `fua` puts on the medium replaces older bytes there that are still in the cache: they must not come later.
                self._cached.append(event)
                if event.fua:
                    _settle_one(self.medium, self._cached)


def _settle_one(medium: Medium, cached: list[Write]) -> None:
    """Bring the newest write to the medium, and out of the cache whatever it covers."""
    newest = cached.pop()
    start, end = newest.offset, newest.offset + len(newest.data)
    left: list[Write] = []
    for write in cached:
        low, high = write.offset, write.offset + len(write.data)
        if high <= start or end <= low:
            left.append(write)
            continue
        if low < start:
            left.append(Write(low, write.data[: start - low]))
        if end < high:
            left.append(Write(end, write.data[end - low :]))
    cached[:] = left
    medium.write(newest.offset, newest.data)


class VolatileDisk:
    """`nbd.Disk` over a medium with a volatile write cache, which logs what it acknowledges and can lose its power.

    events: all acknowledged writes and flushes since it was made (empty with record=False). cut: set when the power is gone.
    """

    def __init__(self, image: Path, *, record: bool = True) -> None:
        self.medium = Medium(image)
        self._live = Medium(image)
        self._cached: list[Write] = []
        self._in_flight: Write | None = None
        self._writes_left = -1
        self._lock = threading.Lock()
        self._record = record
        self.events: list[Event] = []
        self.cut = threading.Event()

    @property
    def size_bytes(self) -> int:
        """See nbd.Disk."""
        return self.medium.size_bytes

    def load(self, other: Medium) -> None:
        """Begin with what another medium over the same image holds."""
        for offset, length in other.written():
            self.put(offset, other.read(offset, length))

    def put(self, offset: int, data: bytes) -> None:
        """Change the medium while nobody uses the disk."""
        self.medium.write(offset, data)
        self._live.write(offset, data)

    def read(self, offset: int, length: int) -> bytes:
        """See nbd.Disk."""
        with self._lock:
            self._check_power()
            return self._live.read(offset, length)

    def write(self, offset: int, data: bytes, *, fua: bool) -> None:
        """See nbd.Disk."""
        with self._lock:
            self._check_power()
            write = Write(offset, data, fua)
            if self._writes_left == 0:
                self._in_flight = write
                self.cut.set()
                raise PowerCut
            self._writes_left -= 1
            self._live.write(offset, data)
            self._cached.append(write)
            if fua:
                _settle_one(self.medium, self._cached)
            self._log(write)

    def flush(self) -> None:
        """See nbd.Disk."""
        with self._lock:
            self._check_power()
            for write in self._cached:
                self.medium.write(write.offset, write.data)
            self._cached.clear()
            self._log(Flush())

    def cut_at_write(self, number: int) -> None:
        """Cut the power when the number-th write from now on (0 is the next one) arrives."""
        with self._lock:
            self._writes_left = number

    def power_on(self, seed: int) -> None:
        """After a cut: what the seed says of the cache is on the medium, the rest is gone; the next connection finds that."""
        with self._lock:
            for write in self._cached:
                self._live.write(write.offset, self.medium.read(write.offset, len(write.data)))
            for offset, data in survivors(self._cached, self._in_flight, seed):
                self.medium.write(offset, data)
                self._live.write(offset, data)
            self._cached.clear()
            self._in_flight = None
            self._writes_left = -1
            self.cut.clear()

    def close(self) -> None:
        """Free the memory."""
        self.medium.close()
        self._live.close()

    def _check_power(self) -> None:
        if self.cut.is_set():
            raise PowerCut

    def _log(self, event: Event) -> None:
        if self._record:
            self.events.append(event)
