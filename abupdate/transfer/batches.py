"""Groups an image's chunks into pieces of work, and holds the buffers that one thread needs for them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass

from abupdate.devices.block import aligned_buffer
from abupdate.errors import ConfigError, Failed, Refused
from abupdate.formats.chunktable import ALIGN_BYTES, MAX_CHUNK_BYTES
from abupdate.formats.codec import Decoder, Opener
from abupdate.formats.sealing import OVERHEAD_BYTES
from abupdate.model import Chunk, Image
from abupdate.ports import SparseTarget, Target

# Slot bytes that a thread takes at once: large enough for efficient writes, small enough for a gateway's memory.
BATCH_BYTES = 1 << 20
# Their stored bytes: never more than that, but for what sealing adds to each chunk, and a chunk has at least a block (but the last).
STORED_BATCH_BYTES = BATCH_BYTES + BATCH_BYTES // ALIGN_BYTES * OVERHEAD_BYTES
MAX_STORED_BYTES = MAX_CHUNK_BYTES + OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive chunks, either all zero or none; together at most BATCH_BYTES, stored in STORED_BATCH_BYTES, or one larger chunk."""

    zero: bool
    chunks: tuple[Chunk, ...]

    @property
    def offset(self) -> int:
        """Where it starts on the slot, bytes."""
        return self.chunks[0].offset

    @property
    def size(self) -> int:
        """Bytes on the slot."""
        return self.chunks[-1].offset + self.chunks[-1].size - self.offset

    @property
    def stored_offset(self) -> int:
        """Where its stored bytes start in the image's payload."""
        return self.chunks[0].stored_offset

    @property
    def stored_size(self) -> int:
        """Stored bytes."""
        return self.chunks[-1].stored_offset + self.chunks[-1].stored_size - self.stored_offset


def batches(chunks: Iterator[Chunk], *, sealed: bool = False) -> Iterator[Batch]:
    """Batches of chunks that follow one another. Raises Refused for a gap or a size out of bounds: nothing is allocated for those."""
    waiting: list[Chunk] = []
    added = OVERHEAD_BYTES if sealed else 0
    size = stored = end = stored_end = 0
    for chunk in chunks:
        if (chunk.offset, chunk.stored_offset) != (end, stored_end) or not 0 < chunk.size <= MAX_CHUNK_BYTES:
            raise Refused(f"the chunk table has a gap or a wrong size at byte {end}")
        if not 0 <= chunk.stored_size <= chunk.size + added:
            raise Refused(f"the chunk at byte {chunk.offset} has a wrong stored size")
        end, stored_end = end + chunk.size, stored_end + chunk.stored_size
        full = size + chunk.size > BATCH_BYTES or stored + chunk.stored_size > STORED_BATCH_BYTES
        if waiting and (waiting[0].zero != chunk.zero or full):
            yield Batch(waiting[0].zero, tuple(waiting))
            waiting, size, stored = [], 0, 0
        waiting.append(chunk)
        size += chunk.size
        stored += chunk.stored_size
    if waiting:
        yield Batch(waiting[0].zero, tuple(waiting))


class Buffers:
    """One thread's buffers and decoder. `slot` and `stored` are page-aligned, as direct I/O needs them.

    At most 8 MiB and 28 bytes; the decoder of a sealed image takes as much as one chunk's stored bytes more while it decodes.
    """

    def __init__(self, opener: Opener | None = None) -> None:
        """opener: where the image is sealed and its stored bytes are to be decoded."""
        self.slot = aligned_buffer(BATCH_BYTES)
        self.stored = aligned_buffer(STORED_BATCH_BYTES)
        self.decoder = Decoder(opener)
        self._zeros = bytearray(0)

    def fit(self, batch: Batch) -> None:
        """Make room for a batch that is one chunk larger than BATCH_BYTES."""
        if batch.size > len(self.slot):
            self.slot = aligned_buffer(MAX_CHUNK_BYTES)
        if batch.stored_size > len(self.stored):
            self.stored = aligned_buffer(MAX_STORED_BYTES)

    def is_zero(self, view: memoryview) -> bool:
        """True when all bytes are zero. bytearray compares with memcmp; memoryview would go byte by byte."""
        if len(self._zeros) != len(view):
            self._zeros = bytearray(len(view))
        return self._zeros == view


def matches(view: memoryview, sha256: bytes) -> bool:
    """True when the SHA-256 of the bytes is the given one."""
    return hmac.compare_digest(hashlib.sha256(view).digest(), sha256)


def data_pieces(target: Target, batch: Batch) -> Iterator[tuple[int, int]]:
    """Offset and length of what of a zero batch may hold data, in pieces of at most BATCH_BYTES; holes of sparse files are passed over."""
    position, end = batch.offset, batch.offset + batch.size
    sparse = target if isinstance(target, SparseTarget) else None
    while position < end:
        if sparse is not None and (position := sparse.next_data(position, end)) >= end:
            return
        length = min(BATCH_BYTES, end - position)
        yield position, length
        position += length


def check_room(image: Image, target: Target) -> None:
    """Raise ConfigError where the image does not fit. To be called for all images before the first write."""
    if image.size_bytes > target.size_bytes:
        message = f"image {image.name} has {image.size_bytes} bytes and its slot has room for {target.size_bytes}"
        raise ConfigError(message, "this bundle is made for larger slots")


def read_whole(target: Target, view: memoryview, offset: int) -> None:
    """Fill the view from the target. Raises Failed where the target ends before."""
    if target.pread_into(view, offset) != len(view):
        raise Failed(f"the slot ends unexpectedly near byte {offset}", "was its device or file resized?")
