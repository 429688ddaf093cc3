"""Sources: a file is opened once, a stream is read once, a waiting read can be ended, the rate is kept."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from abupdate.errors import ConfigError, Failed
from abupdate.ports import RandomSource, Source, WaitingSource
from abupdate.transfer.sources import FileSource, RateLimit, StreamSource, open_source


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.write_bytes(bytes(range(256)) * 40)
    return path


def open_descriptors() -> set[str]:
    # Names only: the descriptor that lists the folder is the same each time.
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_file(bundle: Path) -> None:
    with open_source(str(bundle)) as source:
        assert isinstance(source, FileSource)
        assert isinstance(source, RandomSource)
        assert not isinstance(source, WaitingSource)
        assert source.seekable
        assert source.size_bytes == 10_240
        assert source.read(4) == b"\0\1\2\3"
        buffer = memoryview(bytearray(3))
        assert source.read_into(buffer) == 3
        assert bytes(buffer) == b"\4\5\6"
        assert source.skip(256) == 256
        assert source.position == 263
        assert source.read_at(buffer, 0) == 3
        assert source.read(1) == b"\7"
        assert source.skip(1 << 40) == 10_240 - 264
        assert source.read(10) == b""
        assert source.read_at(buffer, 10_239) == 1


def test_file_is_never_reopened_by_path(bundle: Path) -> None:
    with open_source(str(bundle)) as source:
        source.read(1)
        other = bundle.with_name("other")
        other.write_bytes(b"evil" * 9999)
        other.replace(bundle)
        assert source.read(3) == b"\1\2\3"
        assert source.size_bytes == 10_240


def test_stream_of_a_pipe() -> None:
    reader, writer = os.pipe()
    source: Source = StreamSource(reader)
    assert isinstance(source, WaitingSource)
    assert not isinstance(source, FileSource)

    def feed() -> None:
        for piece in (b"a" * 70_000, b"b", b"c" * 10):
            os.write(writer, piece)
        os.close(writer)

    feeder = threading.Thread(target=feed)
    feeder.start()
    buffer = memoryview(bytearray(70_001))
    assert not source.seekable
    assert source.size_bytes is None
    assert source.read_into(buffer) == 70_001
    assert buffer == b"a" * 70_000 + b"b"
    assert source.skip(4) == 4
    assert source.read_into(buffer) == 6
    assert source.skip(1) == 0
    feeder.join()
    source.close()
    os.close(reader)


def test_stream_of_a_file_is_a_stream(bundle: Path) -> None:
    descriptor = os.open(bundle, os.O_RDONLY)
    with StreamSource(descriptor) as source:
        assert not source.seekable
        assert source.read(5) == bytes(range(5))
        assert source.skip(20_000) == 10_235
    os.close(descriptor)


def test_stream_that_its_owner_made_non_blocking() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)

    def late() -> None:
        os.write(writer, b"late")
        os.close(writer)

    timer = threading.Timer(0.05, late)
    timer.start()
    with StreamSource(reader) as source:
        assert source.read(10) == b"late"
    timer.join()
    os.close(reader)


def test_cancel_ends_a_read_that_waits() -> None:
    reader, writer = os.pipe()
    source = StreamSource(reader)
    timer = threading.Timer(0.05, source.cancel)
    timer.start()
    with pytest.raises(Failed, match="interrupted"):
        source.read(1)
    with pytest.raises(Failed, match="interrupted"):
        source.read(1)
    timer.join()
    source.close()
    source.close()
    source.cancel()
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_named_pipe_is_a_stream_and_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    before = open_descriptors()
    writer = threading.Thread(target=path.write_bytes, args=(b"through a pipe",))
    writer.start()
    with open_source(str(path)) as source:
        assert not source.seekable
        assert source.read(100) == b"through a pipe"
    writer.join()
    assert open_descriptors() == before


@pytest.mark.parametrize("name", ["/nowhere/at/all", "/tmp"])
def test_what_cannot_be_a_bundle(name: str) -> None:
    with pytest.raises(ConfigError):
        open_source(name)


def test_read_error_is_a_failure() -> None:
    # Reading another process's memory at address 0 is a real EIO from the kernel.
    source = FileSource(Path("/proc/self/mem"), os.open("/proc/self/mem", os.O_RDONLY))
    with pytest.raises(Failed, match="Input/output"):
        source.read_at(memoryview(bytearray(1)), 0)
    source.close()


def test_rate_is_kept() -> None:
    limit, stop = RateLimit(1_000_000), threading.Event()
    start = time.monotonic()

    def read() -> None:
        for _ in range(10):
            limit.take(10_000, stop)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start >= 0.19  # 200 kB less the first piece, at 1 MB/s


def test_rate_limit_does_not_delay_the_end() -> None:
    limit, stop = RateLimit(1), threading.Event()
    limit.take(1 << 30, stop)
    threading.Timer(0.05, stop.set).start()
    start = time.monotonic()
    limit.take(1, stop)
    assert time.monotonic() - start < 10
    with pytest.raises(ConfigError):
        RateLimit(0)
