"""Writes an image's chunks to a target: read, verify, decode, hash and write overlap on a few threads.

Each thread takes the next few chunks in order and carries them all the way, so nothing is handed over and memory is bounded:
one buffer of stored bytes and one of slot bytes for each thread, and of a sealed image one decrypted chunk. Nothing reaches the
target that did not match the signed table in the very buffer that is written.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from abupdate.errors import Failed, Refused
from abupdate.formats.chunktable import PROBE_BYTES, probe
from abupdate.formats.codec import Opener
from abupdate.model import Chunk, Image
from abupdate.ports import RandomSource, Source, SparseTarget, Target, WaitingSource
from abupdate.transfer.batches import Batch, Buffers, batches, check_room, data_pieces, matches, read_whole
from abupdate.transfer.crew import Crew, Progress
from abupdate.transfer.sources import RateLimit

_LIMITED_READ_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class InstallStats:
    """Slot bytes by what happened to them; they add up to the image's size. read_bytes: stored bytes read from the source.

    written: decoded and written. kept: on the target already. zeroed: zeros where the target held something else.
    """

    written_bytes: int
    kept_bytes: int
    zeroed_bytes: int
    read_bytes: int


def install_image(
    source: Source,
    image: Image,
    chunks: Iterator[Chunk],
    target: Target,
    progress: Progress,
    *,
    limit: RateLimit | None = None,
    opener: Opener | None = None,
) -> InstallStats:
    """Bring the image onto the target; durable only after `target.flush()`.

    source: at the start of the image's payload; afterwards at its end. chunks: of the verified table.
    progress: called in this thread with the slot bytes done so far, at last with image.size_bytes.
    limit: bounds the rate at which stored bytes are read. opener: of a sealed image.
    With a RandomSource, stored bytes of chunks that the target already holds are not read; another source is read and verified
    from end to end.
    Raises ConfigError for an image that does not fit (before the first write), Refused for a damaged payload, Failed for I/O
    errors and a stream that ends early. The target then holds a mix of old bytes and verified new ones.
    """
    check_room(image, target)
    install = _Install(source, image, chunks, target, limit, opener)
    cancel = source.cancel if isinstance(source, WaitingSource) else None
    install.crew.run(install.work, progress, cancel)
    if install.random is not None:
        source.skip(image.payload_bytes)
    return InstallStats(install.written_bytes, install.kept_bytes, install.zeroed_bytes, install.read_bytes)


class _Install:
    """What the threads of one `install_image` share."""

    def __init__(
        self, source: Source, image: Image, chunks: Iterator[Chunk], target: Target, limit: RateLimit | None, opener: Opener | None
    ) -> None:
        assert image.sealed == (opener is not None)
        self.opener = opener
        self.crew = Crew()
        self.source = source
        self.random = source if source.seekable and isinstance(source, RandomSource) else None
        self.base = self.random.position if self.random else 0
        self.image = image
        self.target = target
        self.sparse = target if isinstance(target, SparseTarget) else None
        self.limit = limit
        self.batches = batches(chunks, sealed=image.sealed)
        self.order = threading.Lock()
        self.count = threading.Lock()
        self.written_bytes = self.kept_bytes = self.zeroed_bytes = self.read_bytes = 0

    def work(self) -> None:
        """One thread's part: batches until there are no more."""
        buffers = Buffers(self.opener)
        while batch := self._take(buffers):
            if batch.zero:
                self._zero(batch, buffers)
            else:
                self._fill(batch, buffers)
            self.crew.advance(batch.size)

    def _take(self, buffers: Buffers) -> Batch | None:
        # Under the lock: a stream's bytes come in the order of the batches.
        with self.order:
            batch = None if self.crew.stopping else next(self.batches, None)
            if batch is not None:
                buffers.fit(batch)
                if self.random is None:
                    self._read(buffers.stored[: batch.stored_size], 0)
            return batch

    def _read(self, view: memoryview, stored_offset: int) -> None:
        # Under a limit in small pieces: one large piece would come as a burst, and at a low rate after a long silence.
        step = len(view) if self.limit is None else _LIMITED_READ_BYTES
        for start in range(0, len(view), step or 1):
            piece = view[start : start + step]
            if self.limit is not None:
                self.limit.take(len(piece), self.crew.stop)
            random = self.random
            count = self.source.read_into(piece) if random is None else random.read_at(piece, self.base + stored_offset + start)
            with self.count:
                self.read_bytes += count
            if count < len(piece) and random is not None:
                raise Refused("the bundle became shorter while it was read", "copy or download it again")
            if count < len(piece):
                raise Failed("the bundle's stream ended early", "try again")

    def _fill(self, batch: Batch, buffers: Buffers) -> None:
        slot = [buffers.slot[chunk.offset - batch.offset :][: chunk.size] for chunk in batch.chunks]
        stored = [buffers.stored[chunk.stored_offset - batch.stored_offset :][: chunk.stored_size] for chunk in batch.chunks]
        present = [self._is_present(chunk, view) for chunk, view in zip(batch.chunks, slot, strict=True)]
        if self.random is None:
            for chunk, view, there in zip(batch.chunks, stored, present, strict=True):
                if there:
                    buffers.decoder.verify(chunk, view)
        for first, last in _runs(present):
            low, high = batch.chunks[first], batch.chunks[last]
            if self.random is not None:
                end = high.stored_offset + high.stored_size
                self._read(buffers.stored[low.stored_offset - batch.stored_offset : end - batch.stored_offset], low.stored_offset)
            for number in range(first, last + 1):
                buffers.decoder.decode(batch.chunks[number], self.image.codec, stored[number], slot[number])
            length = high.offset + high.size - low.offset
            if self.crew.stopping:
                return
            self.target.pwrite(buffers.slot[low.offset - batch.offset :][:length], low.offset)
            self._account(written=length)
        self._account(kept=sum(chunk.size for chunk, there in zip(batch.chunks, present, strict=True) if there))

    def _is_present(self, chunk: Chunk, view: memoryview) -> bool:
        """True when the target holds the chunk; its first block tells for nearly all that it does not."""
        head = view[:PROBE_BYTES]
        read_whole(self.target, head, chunk.offset)
        if probe(head) != chunk.probe:
            return False
        read_whole(self.target, view, chunk.offset)
        return matches(view, chunk.sha256)

    def _zero(self, batch: Batch, buffers: Buffers) -> None:
        zeroed = 0
        for offset, length in data_pieces(self.target, batch):
            if self.crew.stopping:
                return
            view = buffers.slot[:length]
            if self._reads_zero(view, offset, buffers):
                continue
            if self.sparse is None or not self.sparse.zero_range(offset, length):
                view[:] = bytes(length)
                self.target.pwrite(view, offset)
            zeroed += length
        self._account(kept=batch.size - zeroed, zeroed=zeroed)

    def _reads_zero(self, view: memoryview, offset: int, buffers: Buffers) -> bool:
        head = view[:PROBE_BYTES]
        read_whole(self.target, head, offset)
        if any(head):
            return False
        read_whole(self.target, view, offset)
        return buffers.is_zero(view)

    def _account(self, *, written: int = 0, kept: int = 0, zeroed: int = 0) -> None:
        with self.count:
            self.written_bytes += written
            self.kept_bytes += kept
            self.zeroed_bytes += zeroed


def _runs(present: list[bool]) -> Iterator[tuple[int, int]]:
    """First and last index of each run of absent chunks: they are read and written in one go."""
    first = None
    for number, there in enumerate([*present, True]):
        if there and first is not None:
            yield first, number - 1
            first = None
        elif not there and first is None:
            first = number
