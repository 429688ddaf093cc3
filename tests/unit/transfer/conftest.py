"""Real loop devices, mounts and payloads for the tests of block devices and of the transfer pipeline."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import zstandard

from abupdate.formats.chunktable import NO_DIGEST, probe
from abupdate.model import Chunk, Codec, Image, ImageKind


def run(*command: str | Path) -> str:
    """Standard output of a command that must succeed."""
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Undoes mounts and loop devices in the right order."""
    with ExitStack() as exits:
        yield exits


@pytest.fixture
def loop(stack: ExitStack) -> Callable[[Path], Path]:
    """Attaches a file to a loop device. Fails, and does not skip, where the machine cannot: these tests need root."""

    def attach(file: Path) -> Path:
        device = run("losetup", "--find", "--show", file)
        stack.callback(run, "losetup", "--detach", device)
        return Path(device)

    return attach


@pytest.fixture
def mount(stack: ExitStack, tmp_path: Path) -> Callable[..., Path]:
    """Mounts a device or a type of file system; returns the mount point."""

    def attach(source: Path | str, *options: str) -> Path:
        point = tmp_path / f"mnt{len(list(tmp_path.iterdir()))}"
        point.mkdir()
        run("mount", *options, source, point)
        stack.callback(run, "umount", point)
        return point

    return attach


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    """A file of 8 MiB with an empty ext4 file system."""
    file = tmp_path / "ext4.img"
    with file.open("wb") as out:
        out.truncate(8 << 20)
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", file)
    return file


@dataclass(frozen=True)
class Payload:
    """An image, its chunks and its stored bytes."""

    data: bytes
    image: Image
    chunks: tuple[Chunk, ...]
    stored: bytes

    def file(self, folder: Path, head: bytes = b"") -> Path:
        """The stored bytes in a file, behind `head`."""
        path = folder / "payload"
        path.write_bytes(head + self.stored)
        return path


@pytest.fixture(scope="session")
def pack() -> Callable[..., Payload]:
    """Builds the payload of an image as the format lays it down: zstd, raw where that is smaller, nothing for zeros."""

    # The same few payloads are wanted again and again.
    @lru_cache(maxsize=6)
    def build(data: bytes, chunk_bytes: int = 64 << 10, codec: Codec = Codec.ZSTD) -> Payload:
        compressor = zstandard.ZstdCompressor(level=3, write_checksum=False)
        chunks, stored = [], bytearray()
        for offset in range(0, len(data), chunk_bytes):
            piece = data[offset : offset + chunk_bytes]
            zero = not any(piece)
            coded = b"" if zero else compressor.compress(piece) if codec is Codec.ZSTD else piece
            raw = not zero and codec is Codec.ZSTD and len(coded) >= len(piece)
            coded = piece if raw else coded
            digest = NO_DIGEST if zero else hashlib.sha256(coded).digest()
            sha256 = hashlib.sha256(piece).digest()
            chunks.append(Chunk(offset, len(piece), sha256, probe(piece), len(stored), len(coded), digest, zero, raw))
            stored += coded
        image = Image("rootfs", ImageKind.RAW, len(data), codec, b"", 0, len(stored))
        return Payload(data, image, tuple(chunks), bytes(stored))

    return build


@pytest.fixture(scope="session")
def mixed() -> bytes:
    """Just over 6 MiB: compressible, incompressible and zero parts, the end within a block."""
    text = b"".join(b"%d squared is %d\n" % (n, n * n) for n in range(100_000))
    return text[: 2 << 20].ljust(2 << 20, b".") + os.urandom(1 << 20) + bytes(2 << 20) + text[: 1 << 20] + b"the end" * 99


def blank(path: Path, size_bytes: int, fill: bytes = b"") -> Path:
    """A file of that size: sparse, or filled with one byte."""
    with path.open("wb") as out:
        if fill:
            out.write(fill * size_bytes)
        else:
            out.truncate(size_bytes)
    return path


@pytest.fixture(params=["file", "device"])
def slot(request: pytest.FixtureRequest, tmp_path: Path, loop: Callable[[Path], Path]) -> Path:
    """A slot of 8 MiB full of 0xA5, once as a regular file and once as a loop device."""
    file = blank(tmp_path / "slot", 8 << 20, b"\xa5")
    return file if request.param == "file" else loop(file)
