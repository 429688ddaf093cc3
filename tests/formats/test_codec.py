"""Decoding a chunk: verified before and after, bounded by what was signed."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import zstandard

from abupdate.errors import Refused
from abupdate.formats.chunktable import probe
from abupdate.formats.codec import Decoder
from abupdate.model import Chunk, Codec

DATA = b"some text that repeats " * 1000
GOOD = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(DATA)


def chunk(stored: bytes, data: bytes = DATA) -> Chunk:
    """A table entry whose hashes are those of the arguments: what a signer who makes mistakes might sign."""
    digests = (hashlib.sha256(data).digest(), hashlib.sha256(stored).digest())
    return Chunk(0, len(data), digests[0], probe(data), 0, len(stored), digests[1], zero=False, raw=False)


def test_good_frame() -> None:
    assert Decoder().plain(chunk(GOOD), Codec.ZSTD, memoryview(GOOD)) == DATA


def test_every_flipped_byte_of_the_stored_bytes_never_reaches_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstandard, "get_frame_parameters", None)
    for position in range(len(GOOD)):
        damaged = bytearray(GOOD)
        damaged[position] ^= 1
        with pytest.raises(Refused, match="stored bytes of the chunk"):
            Decoder().plain(chunk(GOOD), Codec.ZSTD, bytes(damaged))
    with pytest.raises(Refused, match="stored bytes of the chunk"):
        Decoder().plain(chunk(GOOD), Codec.ZSTD, GOOD[:-1])


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"no frame at all",
        GOOD[:-1],
        GOOD + b"\0",
        GOOD + GOOD,
        # A frame that does not declare its size, one of another size (a bomb), one with a window of 128 MiB.
        zstandard.ZstdCompressor(write_content_size=False).compress(DATA),
        zstandard.ZstdCompressor().compress(DATA + b"x"),
        zstandard.ZstdCompressor().compress(bytes(1 << 26)),
        b"\x28\xb5\x2f\xfd\xa0\xd8\x59\x00\x00",
    ],
)
def test_frames_that_the_format_does_not_allow(stored: bytes) -> None:
    with pytest.raises(Refused, match="no valid zstd frame"):
        Decoder().plain(chunk(stored), Codec.ZSTD, stored)


def test_other_content_than_signed() -> None:
    other = DATA[:-1] + b"!"
    stored = zstandard.ZstdCompressor().compress(other)
    with pytest.raises(Refused, match="does not match the signed table"):
        Decoder().plain(chunk(stored), Codec.ZSTD, stored)


def test_zero_and_raw() -> None:
    zero = Chunk(0, 4096, hashlib.sha256(bytes(4096)).digest(), probe(bytes(4096)), 0, 0, bytes(32), zero=True, raw=False)
    assert Decoder().plain(zero, Codec.ZSTD, b"") == bytes(4096)
    assert Decoder().plain(replace(chunk(DATA), raw=True), Codec.ZSTD, DATA) == DATA
    assert Decoder().plain(chunk(DATA), Codec.NONE, DATA) == DATA
