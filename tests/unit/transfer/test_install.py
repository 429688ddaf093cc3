"""The pipeline on real slots: what lands, what is left alone, what is refused before it lands, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abupdate.devices.block import BlockTarget, open_readonly, open_target
from abupdate.errors import ConfigError, Failed, Refused
from abupdate.model import Chunk, Codec, Image
from abupdate.transfer.batches import BATCH_BYTES, batches
from abupdate.transfer.install import InstallStats, install_image
from abupdate.transfer.sources import FileSource, RateLimit, StreamSource, open_source
from abupdate.transfer.verify import verify_image

MIB = 1 << 20


class Payload(Protocol):
    """conftest.Payload."""

    data: bytes
    image: Image
    chunks: tuple[Chunk, ...]
    stored: bytes

    def file(self, folder: Path, head: bytes = b"") -> Path: ...


Pack = Callable[..., Payload]
ROOM = 8 * MIB


def nothing(done: int) -> None:
    return


@dataclass
class Watched:
    """A target that notes what is done to the real one below it."""

    below: BlockTarget
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    reads: int = 0
    on_write: Callable[[int], None] = nothing

    @property
    def size_bytes(self) -> int:
        return self.below.size_bytes

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        self.reads += len(buffer)
        return self.below.pread_into(buffer, offset)

    def pwrite(self, buffer: memoryview, offset: int) -> None:
        self.on_write(offset)
        self.below.pwrite(buffer, offset)
        self.writes.append((offset, bytes(buffer)))

    def zero_range(self, offset: int, length: int) -> bool:
        self.writes.append((offset, bytes(length)))
        return self.below.zero_range(offset, length)

    def next_data(self, offset: int, end: int) -> int:
        return self.below.next_data(offset, end)

    def flush(self) -> None:
        self.below.flush()

    def close(self) -> None:
        self.below.close()

    @property
    def written(self) -> int:
        return sum(len(data) for _, data in self.writes)


class Plain(Watched):
    """The same without zero_range and next_data: what the bare Target protocol offers."""

    zero_range = None  # type: ignore[assignment]
    next_data = None  # type: ignore[assignment]


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path, stack: ExitStack) -> Callable[[Payload], FileSource | StreamSource]:
    """Makes a source that stands at the payload: a file with a head before it, or a pipe, as the test's parameter says."""

    def make(payload: Payload, kind: str = "file") -> FileSource | StreamSource:
        if kind == "file":
            found = open_source(str(payload.file(tmp_path, b"HEAD" * 7)))
            assert isinstance(found, FileSource)
            found.skip(28)
            opened: FileSource | StreamSource = found
        else:
            reader, writer = os.pipe()
            feeder = threading.Thread(target=feed, args=(writer, payload.stored))
            feeder.start()
            opened = StreamSource(reader)
            stack.callback(feeder.join)
            stack.callback(os.close, reader)
        stack.callback(opened.close)
        return opened

    return make


def feed(writer: int, data: bytes) -> None:
    try:
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            pipe.write(data)
    except BrokenPipeError:
        return


Make = Callable[..., FileSource | StreamSource]


def flash(payload: Payload, source: FileSource | StreamSource, slot: Path, watch: type[Watched] = Watched) -> tuple[InstallStats, Watched]:
    """Install, flush and read back, as the operation does."""
    with open_target(slot) as below:
        target = watch(below)
        done: list[int] = []
        stats = install_image(source, payload.image, iter(payload.chunks), target, done.append)
        assert done[-1] == payload.image.size_bytes
        assert stats.written_bytes + stats.kept_bytes + stats.zeroed_bytes == payload.image.size_bytes
        target.flush()
        verify_image(payload.image, iter(payload.chunks), target, done.append)
        assert done[-1] == payload.image.size_bytes
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("abupdate")] == []
    return stats, target


def expected(payload: Payload, fill: bytes = b"\xa5") -> bytes:
    return payload.data + fill * (ROOM - len(payload.data))


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("codec", [Codec.ZSTD, Codec.NONE])
@pytest.mark.parametrize("chunk_bytes", [4096, pytest.param(64 << 10, marks=pytest.mark.slow), 4 * MIB])
def test_image_lands(slot: Path, source: Make, pack: Pack, mixed: bytes, kind: str, codec: Codec, chunk_bytes: int) -> None:
    payload = pack(mixed, chunk_bytes, codec)
    opened = source(payload, kind)
    stats, target = flash(payload, opened, slot)
    assert slot.read_bytes() == expected(payload)
    assert opened.position == len(payload.stored) + (28 if kind == "file" else 0)
    assert stats.read_bytes == len(payload.stored)
    assert stats.kept_bytes == 0
    assert target.written == len(mixed)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_second_flash_writes_nothing(slot: Path, source: Make, pack: Pack, mixed: bytes, kind: str) -> None:
    payload = pack(mixed)
    flash(payload, source(payload), slot)
    stats, target = flash(payload, source(payload, kind), slot)
    assert target.writes == []
    assert stats == InstallStats(0, len(mixed), 0, 0 if kind == "file" else len(payload.stored))


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_only_what_differs_is_written(slot: Path, source: Make, pack: Pack, mixed: bytes, kind: str) -> None:
    payload = pack(mixed)
    flash(payload, source(payload), slot)
    damaged = [payload.chunks[3], payload.chunks[4], payload.chunks[40], payload.chunks[-1]]
    with slot.open("r+b") as out:
        out.seek(damaged[0].offset)
        out.write(b"!")
        out.seek(damaged[1].offset + 5000)  # behind the probed block
        out.write(b"!")
        out.seek(damaged[2].offset)
        out.write(b"!")
        out.seek(damaged[3].offset + damaged[3].size - 1)
        out.write(b"!")
        out.flush()
        os.fsync(out.fileno())
    stats, target = flash(payload, source(payload, kind), slot)
    assert slot.read_bytes() == expected(payload)
    assert sorted(offset for offset, _ in target.writes) == [damaged[0].offset, damaged[2].offset, damaged[3].offset]
    assert stats.written_bytes == sum(chunk.size for chunk in damaged)
    assert stats.read_bytes == (sum(chunk.stored_size for chunk in damaged) if kind == "file" else len(payload.stored))


def test_stored_bytes_that_are_not_needed_are_no_fault_of_a_file(slot: Path, source: Make, pack: Pack, mixed: bytes) -> None:
    payload = pack(mixed)
    flash(payload, source(payload), slot)
    spoiled = replace(payload, stored=bytes(len(payload.stored)))  # type: ignore[type-var]
    flash(spoiled, source(spoiled), slot)
    with open_target(slot) as target, pytest.raises(Refused):
        install_image(source(spoiled, "stream"), payload.image, iter(payload.chunks), target, nothing)


@pytest.mark.parametrize("watch", [Watched, Plain])
def test_zeros_cost_nothing_where_there_are_zeros(tmp_path: Path, source: Make, pack: Pack, mixed: bytes, watch: type[Watched]) -> None:
    payload = pack(mixed)
    slot = tmp_path / "sparse"
    with slot.open("wb") as out:
        out.truncate(ROOM)
    stats, target = flash(payload, source(payload), slot, watch)
    assert slot.read_bytes() == expected(payload, b"\0")
    assert stats.zeroed_bytes == 0
    zeros = sum(chunk.size for chunk in payload.chunks if chunk.zero)
    assert zeros == 2 * MIB
    assert stats.kept_bytes == zeros
    assert slot.stat().st_blocks * 512 <= len(mixed) - zeros + 64 * 1024
    probes = sum(min(4096, chunk.size) for chunk in payload.chunks if not chunk.zero)
    data = len(mixed) - zeros
    if watch is Watched:
        assert target.reads == probes + data, "probes and read-back; nothing for holes"


def test_zeros_without_help_of_the_target(slot: Path, source: Make, pack: Pack, mixed: bytes) -> None:
    payload = pack(mixed)
    stats, _ = flash(payload, source(payload), slot, Plain)
    assert slot.read_bytes() == expected(payload)
    assert stats.zeroed_bytes == 2 * MIB


def test_data_hidden_behind_a_zero_block_is_zeroed(slot: Path, source: Make, pack: Pack) -> None:
    payload = pack(bytes(3 * MIB))
    slot_bytes = bytearray(ROOM)
    slot_bytes[2 * MIB + 99_999] = 1
    with slot.open("r+b") as out:
        out.write(slot_bytes)
        out.flush()
        os.fsync(out.fileno())
    stats, _ = flash(payload, source(payload), slot)
    assert not any(slot.read_bytes())
    assert 0 < stats.zeroed_bytes <= MIB


@pytest.mark.parametrize("kind", ["file", "stream"])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_never_lands(tmp_path: Path, source: Make, pack: Pack, mixed: bytes, kind: str, data: st.DataObject) -> None:
    """Whatever is on the slot afterwards is old or signed; the flip is refused."""
    payload = pack(mixed, data.draw(st.sampled_from([16 << 10, 256 << 10, 2 * MIB])))
    place = data.draw(st.integers(0, len(payload.stored) - 1))
    flipped = bytearray(payload.stored)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    spoiled = replace(payload, stored=bytes(flipped))  # type: ignore[type-var]
    slot = tmp_path / "slot"
    slot.write_bytes(b"\xa5" * ROOM)
    with open_target(slot) as target, pytest.raises(Refused) as caught:
        install_image(source(spoiled, kind), payload.image, iter(payload.chunks), target, nothing)
    assert caught.value.exit_code == 3
    only_old_or_signed(slot, payload)
    bad = next(chunk for chunk in payload.chunks if chunk.stored_offset <= place < chunk.stored_offset + chunk.stored_size)
    assert set(slot.read_bytes()[bad.offset : bad.offset + bad.size]) == {0xA5}


def only_old_or_signed(slot: Path, payload: Payload) -> None:
    whole = slot.read_bytes()
    for chunk in payload.chunks:
        now = whole[chunk.offset : chunk.offset + chunk.size]
        assert now in (payload.data[chunk.offset : chunk.offset + chunk.size], b"\xa5" * chunk.size)
    assert set(whole[len(payload.data) :]) == {0xA5}


class Turncoat(FileSource):
    """A file whose bytes change as soon as they were handed over: in the buffer, and for every further read."""

    def read_at(self, buffer: memoryview, offset: int) -> int:
        count = super().read_at(buffer, offset)
        stop = threading.Event()

        def spoil() -> None:
            for _ in range(400):
                buffer[len(buffer) // 2] ^= 0xFF
                stop.wait(0.00002)

        threading.Thread(target=spoil, daemon=True).start()
        return count


@pytest.mark.parametrize("codec", [Codec.ZSTD, Codec.NONE])
def test_bytes_that_change_between_check_and_use(tmp_path: Path, pack: Pack, mixed: bytes, codec: Codec) -> None:
    """Stored bytes change while they are verified and decoded: a refusal or luck, but never an unsigned byte on the slot."""
    payload = pack(mixed, 256 << 10, codec)
    path = payload.file(tmp_path)
    slot = tmp_path / "slot"
    refused = 0
    for _ in range(5):
        slot.write_bytes(b"\xa5" * ROOM)
        with open_target(slot) as target, closing(Turncoat(path, os.open(path, os.O_RDONLY))) as turncoat:
            try:
                install_image(turncoat, payload.image, iter(payload.chunks), target, nothing)
            except Refused:
                refused += 1
        only_old_or_signed(slot, payload)
    assert refused, "the source changed nothing in time: this test proves nothing"


@pytest.mark.parametrize("cut", [0, 1, 100_000, -1])
def test_stream_that_ends_early_may_be_retried(slot: Path, source: Make, pack: Pack, mixed: bytes, cut: int) -> None:
    payload = pack(mixed)
    short = replace(payload, stored=payload.stored[:cut])  # type: ignore[type-var]
    with open_target(slot) as target, pytest.raises(Failed, match="ended early") as caught:
        install_image(source(short, "stream"), payload.image, iter(payload.chunks), target, nothing)
    assert caught.value.exit_code == 1
    only_old_or_signed(slot, payload)
    flash(payload, source(payload, "stream"), slot)
    assert slot.read_bytes() == expected(payload)


def test_file_that_shrinks_meanwhile_is_refused(slot: Path, source: Make, pack: Pack, mixed: bytes) -> None:
    payload = pack(mixed)
    short = replace(payload, stored=payload.stored[:100_000])  # type: ignore[type-var]
    with open_target(slot) as target, pytest.raises(Refused, match="shorter"):
        install_image(source(short), payload.image, iter(payload.chunks), target, nothing)
    only_old_or_signed(slot, payload)


def test_image_that_does_not_fit_is_refused_before_anything(slot: Path, source: Make, pack: Pack) -> None:
    payload = pack(os.urandom(ROOM + 1), 4 * MIB)
    with open_target(slot) as below:
        target = Watched(below)
        with pytest.raises(ConfigError, match="room"):
            install_image(source(payload), payload.image, iter(payload.chunks), target, nothing)
        assert target.reads == 0
        assert target.writes == []


def test_image_that_fits_exactly(slot: Path, source: Make, pack: Pack) -> None:
    payload = pack(os.urandom(ROOM), MIB)
    flash(payload, source(payload), slot)
    assert slot.read_bytes() == payload.data


@pytest.mark.parametrize(
    "spoil",
    [
        lambda chunks: chunks[:1] + chunks[2:],
        lambda chunks: (chunks[1], chunks[0], *chunks[2:]),
        lambda chunks: (replace(chunks[0], size=5 * MIB), *chunks[1:]),
        lambda chunks: (replace(chunks[0], size=0), *chunks[1:]),
        lambda chunks: (replace(chunks[0], stored_size=1 << 40), *chunks[1:]),
        lambda chunks: (replace(chunks[0], stored_offset=1), *chunks[1:]),
    ],
)
def test_table_with_gaps_is_refused(
    slot: Path, source: Make, pack: Pack, mixed: bytes, spoil: Callable[[tuple[Chunk, ...]], tuple[Chunk, ...]]
) -> None:
    payload = pack(mixed, MIB)
    with open_target(slot) as target, pytest.raises(Refused):
        install_image(source(payload), payload.image, iter(spoil(payload.chunks)), target, nothing)
    only_old_or_signed(slot, payload)


@pytest.mark.parametrize("error", [Failed("write at byte 0 of /dev/x failed: Input/output error"), RuntimeError("a bug")])
def test_error_of_a_write_surfaces(slot: Path, source: Make, pack: Pack, mixed: bytes, error: Exception) -> None:
    payload = pack(mixed)

    def fail(offset: int) -> None:
        if offset >= MIB:
            raise error

    with open_target(slot) as below, pytest.raises(type(error), match=str(error)):
        install_image(source(payload), payload.image, iter(payload.chunks), Watched(below, on_write=fail), nothing)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("abupdate")]


def test_real_io_error_while_writing(source: Make, pack: Pack, loop: Callable[[Path], Path], mount: Callable[..., Path]) -> None:
    """A loop device on a full tmpfs answers a write with EIO (or ENOSPC): exit 1, and nothing hangs."""
    file = mount("tmpfs", "-t", "tmpfs", "-o", "size=3m") / "slot"
    with file.open("wb") as out:
        out.truncate(ROOM)
    payload = pack(os.urandom(6 * MIB))
    with open_target(loop(file)) as target, pytest.raises(Failed, match=r"failed: (Input/output error|No space)") as caught:
        install_image(source(payload), payload.image, iter(payload.chunks), target, nothing)
    assert caught.value.exit_code == 1


def test_control_c_while_the_stream_waits(tmp_path: Path, pack: Pack, mixed: bytes) -> None:
    payload = pack(mixed)
    slot = tmp_path / "slot"
    slot.write_bytes(b"\xa5" * ROOM)
    reader, writer = os.pipe()
    os.write(writer, payload.stored[:50])  # and then nothing more: the reader waits

    def interrupt() -> Iterator[Chunk]:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        yield from payload.chunks

    with open_target(slot) as target, StreamSource(reader) as waiting, pytest.raises(KeyboardInterrupt):
        install_image(waiting, payload.image, interrupt(), target, nothing)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("abupdate")]
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_verify_finds_any_difference(slot: Path, source: Make, pack: Pack, mixed: bytes) -> None:
    payload = pack(mixed)
    flash(payload, source(payload), slot)
    for place in (0, 3 * MIB + 5, 4 * MIB, len(mixed) - 1):
        with slot.open("r+b") as out:
            out.seek(place)
            old = out.read(1)
            out.seek(place)
            out.write(bytes([old[0] ^ 1]))
            out.flush()
            os.fsync(out.fileno())
        with open_readonly(slot) as target, pytest.raises(Failed, match="differs"):
            verify_image(payload.image, iter(payload.chunks), target, nothing)
        with slot.open("r+b") as out:
            out.seek(place)
            out.write(old)
            out.flush()
            os.fsync(out.fileno())
    with open_readonly(slot) as target:
        verify_image(payload.image, iter(payload.chunks), target, nothing)


class Counting(RateLimit):
    """A limit that notes what it was asked for."""

    def __init__(self, bytes_per_s: int) -> None:
        super().__init__(bytes_per_s)
        self.taken: list[int] = []

    def take(self, count: int, stop: threading.Event) -> None:
        self.taken.append(count)
        super().take(count, stop)


def test_rate_limit_bounds_reads(slot: Path, source: Make, pack: Pack) -> None:
    payload = pack(os.urandom(MIB))
    slow = Counting(1 << 30)
    with open_target(slot) as target:
        install_image(source(payload), payload.image, iter(payload.chunks), target, nothing, limit=slow)
    assert sum(slow.taken) == len(payload.stored)
    assert max(slow.taken) <= 64 << 10


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=60))
def test_batches_cover_the_chunks_in_order(shape: list[tuple[int, bool]]) -> None:
    chunks, offset, stored = [], 0, 0
    for pages, zero in shape:
        size = pages * 65_536
        chunks.append(Chunk(offset, size, b"", b"", stored, 0 if zero else size // 2, b"", zero, False))
        offset, stored = offset + size, stored + chunks[-1].stored_size
    found = list(batches(iter(chunks)))
    assert [chunk for batch in found for chunk in batch.chunks] == chunks
    for batch in found:
        assert batch.size <= BATCH_BYTES or len(batch.chunks) == 1
        assert {chunk.zero for chunk in batch.chunks} == {batch.zero}
        assert batch.size == sum(chunk.size for chunk in batch.chunks)
        assert batch.stored_size == sum(chunk.stored_size for chunk in batch.chunks)


MEASURE = """
import resource, sys
from abupdate.devices.block import open_target
from abupdate.model import Chunk, Codec, Image, ImageKind
from abupdate.formats.chunktable import NO_DIGEST, probe, zero_digests
from abupdate.transfer.install import install_image
from abupdate.transfer.sources import open_source
from abupdate.transfer.verify import verify_image
import hashlib, zstandard
size, slot, payload = int(sys.argv[1]), sys.argv[2], sys.argv[3]
one = 1 << 20
data = b"".join(b"%d," % n for n in range(200_000))[:one]
stored = zstandard.ZstdCompressor().compress(data)
open(payload, "wb").write(stored * 32)
with open(slot, "wb") as out: out.truncate(size)
def chunks():
    place = 0
    for offset in range(0, size, one):
        if offset % (size // 32) == 0:
            sums = hashlib.sha256(data).digest(), hashlib.sha256(stored).digest()
            yield Chunk(offset, one, sums[0], probe(data), place, len(stored), sums[1], False, False)
            place += len(stored)
        else:
            yield Chunk(offset, one, *zero_digests(one), place, 0, NO_DIGEST, True, False)
image = Image("rootfs", ImageKind.RAW, size, Codec.ZSTD, b"", 0, 32 * len(stored))
with open_target(slot) as target, open_source(payload) as source:
    install_image(source, image, chunks(), target, lambda done: None)
    target.flush()
    verify_image(image, chunks(), target, lambda done: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """Also an image of more than 4 GiB: nothing on the way counts in 32 bits."""
    peak = {}
    for size in (64 * MIB, 5120 * MIB):
        command = [sys.executable, "-c", MEASURE, str(size), str(tmp_path / "slot"), str(tmp_path / "payload")]
        peak[size] = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
        with (tmp_path / "slot").open("rb") as slot:
            slot.seek(size // 32 * 31)
            assert slot.read(4) == b"0,1,"
        assert (tmp_path / "slot").stat().st_blocks * 512 <= 33 * MIB
    assert peak[5120 * MIB] - peak[64 * MIB] <= 8 * 1024, peak
