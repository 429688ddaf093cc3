"""Sealed images in the pipeline: what lands, what needs no key, and the bounds of what a thread holds."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.devices.block import open_target
from abupdate.errors import Refused
from abupdate.formats.chunktable import ALIGN_BYTES, MAX_CHUNK_BYTES
from abupdate.formats.contentkey import ContentKey
from abupdate.formats.sealing import OVERHEAD_BYTES
from abupdate.model import Chunk, Codec
from abupdate.ports import Source
from abupdate.transfer.batches import BATCH_BYTES, MAX_STORED_BYTES, STORED_BATCH_BYTES, Batch, Buffers, batches
from abupdate.transfer.install import InstallStats, install_image
from abupdate.transfer.sources import StreamSource, open_source
from abupdate.transfer.verify import verify_image
from tests.unit.transfer.conftest import blank
from tests.unit.transfer.test_install import Pack, Payload, feed

MIB = 1 << 20
KEY = ContentKey(b"k" * 32, b"s" * 32)
CIPHER = KEY.image("rootfs")


def sealed(payload: Payload) -> tuple[tuple[Chunk, ...], bytes]:
    """The payload's chunks and stored bytes as a sealed bundle holds them."""
    chunks, stored = [], bytearray()
    for chunk in payload.chunks:
        piece = b"" if chunk.zero else CIPHER.seal(chunk, payload.stored[chunk.stored_offset :][: chunk.stored_size])
        digest = chunk.stored_sha256 if chunk.zero else hashlib.sha256(piece).digest()
        chunks.append(replace(chunk, stored_offset=len(stored), stored_size=len(piece), stored_sha256=digest))
        stored += piece
    return tuple(chunks), bytes(stored)


def flash(payload: Payload, chunks: tuple[Chunk, ...], source: Source, slot: Path) -> InstallStats:
    image = replace(payload.image, sealed=True, payload_bytes=sum(chunk.stored_size for chunk in chunks))
    with open_target(slot) as target:
        stats = install_image(source, image, iter(chunks), target, lambda done: None, opener=CIPHER)
        target.flush()
        verify_image(image, iter(chunks), target, lambda done: None)
    return stats


# One chunk of a block for each 4 KiB of a batch, a batch of one chunk, and one chunk that is larger than a batch: each stored longer
# than it lies on the slot.
@pytest.mark.parametrize(
    ("chunk_bytes", "codec"),
    [
        (4096, Codec.ZSTD),
        pytest.param(4096, Codec.NONE, marks=pytest.mark.slow),
        *((size, codec) for size in (MIB, 4 * MIB) for codec in (Codec.ZSTD, Codec.NONE)),
    ],
)
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_sealed_image_lands_and_is_recognised(
    tmp_path: Path, pack: Pack, mixed: bytes, chunk_bytes: int, codec: Codec, kind: str
) -> None:
    slot = blank(tmp_path / "slot", 8 * MIB, b"\xa5")
    payload = pack(mixed, chunk_bytes, codec)
    chunks, stored = sealed(payload)
    path = tmp_path / "sealed"
    path.write_bytes(stored)
    for read, written in ((len(stored), True), (0 if kind == "file" else len(stored), False)):
        if kind == "file":
            with open_source(str(path)) as source:
                stats = flash(payload, chunks, source, slot)
        else:
            reader, writer = os.pipe()
            feeder = threading.Thread(target=feed, args=(writer, stored))
            feeder.start()
            with StreamSource(reader) as source:
                stats = flash(payload, chunks, source, slot)
            feeder.join()
            os.close(reader)
        assert stats.read_bytes == read
        assert (stats.kept_bytes == 0) is written
        assert slot.read_bytes()[: len(mixed)] == mixed


def chunk_of(size: int, stored_size: int, offset: int = 0, stored_offset: int = 0) -> Chunk:
    return Chunk(offset, size, b"", b"", stored_offset, stored_size, b"", zero=False, raw=False)


@pytest.mark.parametrize("size", [1, ALIGN_BYTES, BATCH_BYTES, MAX_CHUNK_BYTES])
def test_a_chunk_is_stored_at_most_28_bytes_longer(size: int) -> None:
    most = chunk_of(size, size + OVERHEAD_BYTES)
    assert [batch.chunks for batch in batches(iter([most]), sealed=True)] == [(most,)]
    with pytest.raises(Refused, match="wrong stored size"):
        list(batches(iter([replace(most, stored_size=size + OVERHEAD_BYTES + 1)]), sealed=True))
    assert len(list(batches(iter([replace(most, stored_size=size)])))) == 1
    with pytest.raises(Refused, match="wrong stored size"):
        list(batches(iter([replace(most, stored_size=size + 1)])))


@given(st.lists(st.tuples(st.integers(1, 12_000), st.integers(0, OVERHEAD_BYTES)), max_size=700), st.booleans())
def test_what_a_thread_holds_is_bounded_whatever_the_table_says(shape: list[tuple[int, int]], blocks: bool) -> None:
    """Also a table of tiny chunks, which the format refuses elsewhere."""
    chunks, offset, stored = [], 0, 0
    for size, more in shape:
        whole = size * 4096 % (MAX_CHUNK_BYTES + 4096) or 4096 if blocks else size % 9 + 1
        chunks.append(chunk_of(whole, whole + more, offset, stored))
        offset, stored = offset + whole, stored + whole + more
    found = list(batches(iter(chunks), sealed=True))
    assert [chunk for batch in found for chunk in batch.chunks] == chunks
    buffers = Buffers()
    for batch in found:
        assert (batch.size <= BATCH_BYTES and batch.stored_size <= STORED_BATCH_BYTES) or len(batch.chunks) == 1
        buffers.fit(batch)
        assert batch.size <= len(buffers.slot) <= MAX_CHUNK_BYTES
        assert batch.stored_size <= len(buffers.stored) <= MAX_STORED_BYTES


def test_tiny_chunks_are_cut_by_what_they_take_stored() -> None:
    count = STORED_BATCH_BYTES // (1 + OVERHEAD_BYTES) + 1
    tiny = (chunk_of(1, 1 + OVERHEAD_BYTES, number, number * (1 + OVERHEAD_BYTES)) for number in range(count))
    assert [len(batch.chunks) for batch in batches(tiny, sealed=True)] == [count - 1, 1]


def test_buffers_grow_only_for_what_is_larger() -> None:
    buffers = Buffers()
    assert (len(buffers.slot), len(buffers.stored)) == (BATCH_BYTES, STORED_BATCH_BYTES)
    blocks = BATCH_BYTES // ALIGN_BYTES
    row = [chunk_of(4096, 4096 + OVERHEAD_BYTES, number * 4096, number * (4096 + OVERHEAD_BYTES)) for number in range(blocks)]
    (full,) = batches(iter(row), sealed=True)
    assert full.stored_size == STORED_BATCH_BYTES
    for batch in (full, Batch(False, (chunk_of(BATCH_BYTES, BATCH_BYTES + OVERHEAD_BYTES),))):
        buffers.fit(batch)
        assert (len(buffers.slot), len(buffers.stored)) == (BATCH_BYTES, STORED_BATCH_BYTES)
    buffers.fit(Batch(False, (chunk_of(MAX_CHUNK_BYTES, MAX_CHUNK_BYTES + OVERHEAD_BYTES),)))
    assert (len(buffers.slot), len(buffers.stored)) == (MAX_CHUNK_BYTES, MAX_STORED_BYTES)
