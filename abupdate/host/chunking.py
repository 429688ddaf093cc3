"""Cuts an image file into chunks, hashes, encodes and seals them on two threads, and hands them out in order.

Holes of a sparse file are never read: a chunk that lies in one is known to be zero.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from abupdate.errors import Failed
from abupdate.formats import chunktable
from abupdate.host.atomic import data_ranges, pread
from abupdate.model import Chunk, Codec

THREADS = 2
# Chunks that are read ahead of the one that is written: enough to keep both threads busy, few enough to stay small.
_AHEAD = 6


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A chunk and its stored bytes; `stored_offset` of the chunk is set by whoever stores it and 0 here."""

    chunk: Chunk
    stored: bytes


class Sealer(Protocol):
    """Encrypts the chunks of one image; used by several threads."""

    def seal(self, chunk: Chunk, stored: bytes) -> bytes:
        """What is stored for a chunk of that offset, size and sha256 instead of `stored`."""


def encode_image(
    fd: int, size_bytes: int, chunk_bytes: int, codec: Codec, level: int, sealer: Sealer | None = None
) -> Iterator[EncodedChunk]:
    """The chunks of an open file, in order, in bounded memory. Raises Failed where the file gets shorter meanwhile."""
    work = threading.local()

    def encode(offset: int, size: int) -> EncodedChunk:
        data = pread(fd, size, offset)
        if len(data) != size:
            raise Failed("the image got shorter while it was read", "build again when nothing writes to it")
        if not hasattr(work, "compress"):
            work.compress = _compressor(codec, level)
        encoded = _encode(offset, data, work.compress)
        return encoded if sealer is None else _seal(encoded, sealer)

    # Bounded by _AHEAD: a zero chunk of a hole is a finished future, so that the order needs no special case.
    waiting: deque[Future[EncodedChunk]] = deque()
    with ThreadPoolExecutor(THREADS, "chunk") as pool:
        try:
            for offset, size, hole in _plan(fd, size_bytes, chunk_bytes):
                if hole:
                    future: Future[EncodedChunk] = Future()
                    future.set_result(_zero(offset, size))
                else:
                    future = pool.submit(encode, offset, size)
                waiting.append(future)
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _plan(fd: int, size_bytes: int, chunk_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """(offset, size, is it all in a hole) of every chunk."""
    ranges = data_ranges(fd, 0, size_bytes)
    begin, stop = next(ranges, (size_bytes, size_bytes))
    for offset in range(0, size_bytes, chunk_bytes):
        end = min(offset + chunk_bytes, size_bytes)
        while stop <= offset and begin < size_bytes:
            begin, stop = next(ranges, (size_bytes, size_bytes))
        yield offset, end - offset, begin >= end


@lru_cache(maxsize=2)
def _zeros(size: int) -> bytes:
    """Zero bytes to compare with, which stops at the first other byte; chunks of an image have two sizes at most."""
    return bytes(size)


def _zero(offset: int, size: int) -> EncodedChunk:
    sha256, probe = chunktable.zero_digests(size)
    return EncodedChunk(Chunk(offset, size, sha256, probe, 0, 0, chunktable.NO_DIGEST, zero=True, raw=False), b"")


class _Compress:
    """zstd at one level; one object for each thread, since the library's contexts are not to be shared."""

    def __init__(self, level: int) -> None:
        import zstandard

        # The content's size is in the frame (readers demand it); no checksum: the table holds a better one.
        self._context = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)

    def __call__(self, data: bytes) -> bytes:
        return self._context.compress(data)


def _compressor(codec: Codec, level: int) -> _Compress | None:
    return _Compress(level) if codec is Codec.ZSTD else None


def _encode(offset: int, data: bytes, compress: _Compress | None) -> EncodedChunk:
    if data == _zeros(len(data)):
        return _zero(offset, len(data))
    sha256 = hashlib.sha256(data).digest()
    probe = chunktable.probe(data)
    stored = data if compress is None else compress(data)
    raw = compress is not None and len(stored) >= len(data)
    if compress is None or raw:
        return EncodedChunk(Chunk(offset, len(data), sha256, probe, 0, len(data), sha256, zero=False, raw=raw), data)
    stored_sha256 = hashlib.sha256(stored).digest()
    return EncodedChunk(Chunk(offset, len(data), sha256, probe, 0, len(stored), stored_sha256, zero=False, raw=False), stored)


def _seal(encoded: EncodedChunk, sealer: Sealer) -> EncodedChunk:
    if encoded.chunk.zero:
        return encoded
    stored = sealer.seal(encoded.chunk, encoded.stored)
    chunk = replace(encoded.chunk, stored_size=len(stored), stored_sha256=hashlib.sha256(stored).digest())
    return EncodedChunk(chunk, stored)
