"""The disk with a volatile cache, as QEMU's own NBD client sees it; what a cut leaves; the log of `blklogwrites`."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu.nbd import PowerCut, served
from qemu.powerloss import SECTOR, Cut, Event, Flush, Loss, Replay, VolatileDisk, Write, survivors
from qemu.writelog import MAGIC, LogError, read_log

SIZE = 2 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[VolatileDisk]:
    made = VolatileDisk(image)
    yield made
    made.close()


def qemu_io(path: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    words = [word for command in commands for word in ("-c", command)]
    node = f"driver=nbd,server.type=unix,server.path={path},export=d"
    return subprocess.run(
        ["qemu-io", "-t", "writeback", "--image-opts", *words, node], capture_output=True, text=True, timeout=30, check=False
    )


def test_real_client_writes_flushes_and_reads(tmp_path: Path, disk: VolatileDisk) -> None:
    with served(tmp_path / "d", disk):
        done = qemu_io(tmp_path / "d", "write -P 7 4096 1024", "flush", "write -P 8 8192 512", "read -P 8 8192 512", "read -P 0 0 512")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verification failed" not in done.stdout
    first, flush, second = disk.events[:3]
    assert (first, flush) == (Write(4096, b"\7" * 1024), Flush())
    assert isinstance(second, Write)
    assert disk.medium.read(4096, 1024) == b"\7" * 1024


def test_forced_write_alone_is_on_the_medium(tmp_path: Path, disk: VolatileDisk) -> None:
    """A cut comes before the flush with which the client ends."""
    disk.cut_at_write(3)
    with served(tmp_path / "d", disk):
        commands = ["write -P 1 0 512", "write -P 2 512 1024", "write -f -P 3 1024 512", "write -P 4 4096 512", "write -P 5 0 512"]
        done = qemu_io(tmp_path / "d", *commands)
        assert "Input/output error" in done.stdout + done.stderr
    assert disk.cut.is_set()
    assert [event for event in disk.events if isinstance(event, Flush)] == []
    assert disk.medium.read(0, 2048) == bytes(1024) + b"\3" * 512 + bytes(512)


def test_power_is_gone_until_it_is_switched_on(disk: VolatileDisk) -> None:
    disk.write(0, b"a" * SECTOR, fua=False)
    disk.flush()
    disk.cut_at_write(1)
    disk.write(SECTOR, b"b" * SECTOR, fua=False)
    for call in (lambda: disk.write(0, b"c" * SECTOR, fua=False), disk.flush, lambda: disk.read(0, 1)):
        with pytest.raises(PowerCut):
            call()
    seed = next(seed for seed in range(1000) if Cut(0, seed).loss() is Loss.ALL)
    disk.power_on(seed)
    assert disk.read(0, 2 * SECTOR) in (b"a" * SECTOR + bytes(SECTOR), b"c" * SECTOR + bytes(SECTOR))
    assert disk.read(0, SIZE) == disk.medium.read(0, SIZE)
    disk.flush()


EVENTS = st.lists(
    st.one_of(
        st.just(Flush()),
        st.builds(
            lambda at, count, byte, fua: Write(at * SECTOR, bytes([byte]) * count * SECTOR, fua),
            st.integers(0, 8),
            st.integers(1, 4),
            st.integers(1, 255),
            st.booleans(),
        ),
    ),
    max_size=12,
)


def permitted(events: list[Event], done: int) -> list[set[bytes]]:
    """For each of the first sectors, what it may hold after a cut: the promise of a disk, said in another way."""
    held = [{bytes(SECTOR)} for _ in range(16)]
    newest = [bytes(SECTOR)] * 16
    for event in events[:done]:
        if isinstance(event, Flush):
            held = [{data} for data in newest]
            continue
        for number in range(len(event.data) // SECTOR):
            at = event.offset // SECTOR + number
            newest[at] = event.data[number * SECTOR :][:SECTOR]
            held[at] = {newest[at]} if event.fua else held[at] | {newest[at]}
    following = events[done] if done < len(events) else None
    if isinstance(following, Write):
        for number in range(len(following.data) // SECTOR):
            held[following.offset // SECTOR + number].add(following.data[number * SECTOR :][:SECTOR])
    return held


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(0, 2**32))
def test_a_cut_leaves_only_what_a_disk_may_leave(tmp_path_factory: pytest.TempPathFactory, events: list[Event], seed: int) -> None:
    image = tmp_path_factory.getbasetemp() / "small.img"
    if not image.exists():
        image.write_bytes(bytes(16 * SECTOR))
    replay = Replay(image, events)
    live = VolatileDisk(image)
    for done in range(len(events) + 1):
        with replay.after(Cut(done, seed)) as medium:
            left = medium.read(0, 16 * SECTOR)
        assert all(left[at * SECTOR :][:SECTOR] in found for at, found in enumerate(permitted(events, done)))
        with replay.after(Cut(done, seed)) as medium:
            assert medium.read(0, 16 * SECTOR) == left
    for event in events:
        live.flush() if isinstance(event, Flush) else live.write(event.offset, event.data, fua=event.fua)
    live.power_on(seed)
    with replay.after(Cut(len(events), seed)) as medium:
        assert medium.read(0, 16 * SECTOR) == live.medium.read(0, 16 * SECTOR)
    live.close()
    replay.medium.close()


def test_every_way_of_losing_the_cache_occurs() -> None:
    cached = [Write(at * 4096, bytes([at + 1]) * 4096) for at in range(6)]
    flight = Write(1 << 20, b"f" * 4096)
    outcomes = {tuple(survivors(cached, flight, seed)) for seed in range(300)}
    assert {Cut(0, seed).loss() for seed in range(300)} == set(Loss)
    assert len(outcomes) > 200
    torn = {len(data) for kept in outcomes for offset, data in kept if offset >= 1 << 20}
    assert {0, 512, 2048, 4096} <= torn
    assert any(not any(data for offset, data in kept if offset < 1 << 20) for kept in outcomes)


def entry(sector: int, data: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("<QQQQ", sector, len(data) // SECTOR, flags, 0).ljust(SECTOR, b"\0") + data


def test_log_is_read_whatever_its_superblock_counts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    body = entry(3, b"x" * 1024) + entry(0, flags=1) + entry(0, b"y" * 512, flags=2)
    for block in (bytes(SECTOR), struct.pack("<QQQI", MAGIC, 1, 1, SECTOR).ljust(SECTOR, b"\0")):
        path.write_bytes(block + body + bytes(4 * SECTOR))
        assert list(read_log(path)) == [Write(3 * SECTOR, b"x" * 1024), Flush(), Write(0, b"y" * 512, fua=True)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * SECTOR,
        bytes(SECTOR) + entry(0, b"x" * 1024)[:-512],
        bytes(SECTOR) + entry(0, b"x" * 512, flags=4),
        bytes(SECTOR) + entry(0, flags=64),
    ],
    ids=["empty", "no log", "cut", "discard", "unknown flag"],
)
def test_log_that_makes_no_sense(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(LogError):
        list(read_log(tmp_path / "log"))


def test_log_of_the_real_qemu(tmp_path: Path, image: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(bytes(1 << 20))
    driver = {"driver": "blklogwrites", "file.driver": "file", "file.filename": image, "log.driver": "file", "log.filename": log}
    options = ",".join(f"{name}={value}" for name, value in {**driver, "log-sector-size": 512}.items())
    commands = ["write -P 7 4096 1024", "flush", "write -P 8 8192 512", "write -z 0 512"]
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-t", "writeback", "--image-opts", *words, options], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    events = list(read_log(log))
    assert [event for event in events if isinstance(event, Write)] == [
        Write(4096, b"\7" * 1024),
        Write(8192, b"\10" * 512),
        Write(0, bytes(512)),
    ]
    assert isinstance(events[1], Flush)
