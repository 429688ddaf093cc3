"""Decoding: nothing but exactly one frame of exactly the signed size, verified before and after."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats.chunktable import probe
from abupdate.formats.codec import Decoder, check_frame
from abupdate.model import Chunk, Codec

TEXT = b"".join(b"line %d of the image\n" % n for n in range(20_000))
NARROW = zstandard.ZstdCompressionParameters(window_log=17)


def chunk_of(plain: bytes, stored: bytes, *, raw: bool = False) -> Chunk:
    """A chunk whose table entry matches these stored bytes, as a careless or hostile builder could sign it."""
    return Chunk(0, len(plain), hashlib.sha256(plain).digest(), probe(plain), 0, len(stored), hashlib.sha256(stored).digest(), False, raw)


def decode(chunk: Chunk, stored: bytes, codec: Codec = Codec.ZSTD) -> bytes:
    out = memoryview(bytearray(b"\xee" * chunk.size))
    Decoder().decode(chunk, codec, memoryview(stored), out)
    return bytes(out)


@pytest.mark.parametrize("options", [{}, {"write_checksum": True}, {"level": 19}, {"compression_params": NARROW}])
@pytest.mark.parametrize("plain", [TEXT, b"", b"x", b"a" * 3_000_000, os.urandom(300_000)])
def test_round_trip(plain: bytes, options: dict[str, object]) -> None:
    stored = zstandard.ZstdCompressor(**options).compress(plain)  # type: ignore[arg-type]
    assert decode(chunk_of(plain, stored), stored) == plain


def test_raw_and_plain_images() -> None:
    plain = os.urandom(70_000)
    assert decode(chunk_of(plain, plain, raw=True), plain) == plain
    assert decode(chunk_of(plain, plain), plain, Codec.NONE) == plain
    with pytest.raises(Refused):
        decode(replace(chunk_of(plain, plain, raw=True), size=69_999), plain)


def test_stored_bytes_are_verified_before_they_are_decoded() -> None:
    """A frame with the same content but other bytes is refused: zstd frames are malleable."""
    stored = zstandard.ZstdCompressor(level=3).compress(TEXT)
    twin = zstandard.ZstdCompressor(level=9).compress(TEXT)
    assert stored != twin
    with pytest.raises(Refused, match="stored bytes"):
        decode(chunk_of(TEXT, stored), twin)


def test_content_is_verified_after_it_is_decoded() -> None:
    stored = zstandard.ZstdCompressor().compress(TEXT)
    with pytest.raises(Refused, match="does not match"):
        decode(replace(chunk_of(TEXT, stored), sha256=bytes(32)), stored)


FRAME = zstandard.ZstdCompressor().compress(TEXT)
LONGER = zstandard.ZstdCompressor().compress(TEXT + b"!")
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
DICTIONARY = zstandard.ZstdCompressionDict(zstandard.train_dictionary(4096, [b"%d" % n * 9 for n in range(5000)]).as_bytes())
WITH_DICTIONARY = zstandard.ZstdCompressor(dict_data=DICTIONARY).compress(TEXT)


@pytest.mark.parametrize(
    ("stored", "word"),
    [
        (FRAME + b"\0", "follow"),
        (FRAME + FRAME, "follow"),
        (FRAME + SKIPPABLE, "follow"),
        (SKIPPABLE + FRAME, "magic"),
        (SKIPPABLE, "magic"),
        (FRAME[:-1], "ends early"),
        (FRAME[:5], "no valid zstd frame"),
        (FRAME[:7], "no valid zstd frame"),
        (b"\x28\xb5\x2f\xfd", "no valid zstd frame"),
        (b"", "magic"),
        (b"x", "magic"),
        (LONGER, "declared size"),
        (UNSIZED, "declared size"),
        (WITH_DICTIONARY, "dictionary"),
        (b"\x28\xb5\x2f\xfd\xe0" + (1 << 50).to_bytes(8, "little") + b"\x01\x00\x00", "declared size"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_signed_but_not_one_plain_frame(stored: bytes, word: str) -> None:
    with pytest.raises(Refused, match=word):
        decode(chunk_of(TEXT, stored), stored)


def test_a_window_that_would_eat_the_memory_is_refused() -> None:
    # Frame header by hand: window descriptor 2^27, content size in 4 bytes, one empty last block.
    descriptor = (27 - 10) << 3
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x80, descriptor]) + (1 << 20).to_bytes(4, "little") + b"\x01\x00\x00"
    assert zstandard.get_frame_parameters(frame).window_size == 1 << 27
    with pytest.raises(ValueError, match="window"):
        check_frame(memoryview(frame), 1 << 20)


def test_a_frame_that_holds_less_than_it_declares() -> None:
    header = b"\x28\xb5\x2f\xfd\xa0" + (50).to_bytes(4, "little")
    stored = header + ((3 << 3) | 1).to_bytes(3, "little") + b"abc"
    with pytest.raises(Refused):
        decode(chunk_of(bytes(50), stored), stored)


def test_a_frame_that_holds_more_than_it_declares_never_leaves_the_buffer() -> None:
    header = b"\x28\xb5\x2f\xfd\xa0" + (50).to_bytes(4, "little")
    stored = header + ((1000 << 3) | 3).to_bytes(3, "little") + b"a"  # an RLE block of 1000 bytes
    backing = bytearray(b"\xee" * 2000)
    with pytest.raises(Refused):
        Decoder().decode(chunk_of(b"a" * 50, stored), Codec.ZSTD, memoryview(stored), memoryview(backing)[:50])
    assert set(backing[50:]) == {0xEE}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_frames_never_pass_and_never_crash(data: st.DataObject) -> None:
    """Even where a hostile builder signs the damaged bytes, the result is the signed content or a refusal."""
    plain = TEXT[:9000]
    stored = bytearray(zstandard.ZstdCompressor(write_checksum=data.draw(st.booleans())).compress(plain))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    chunk = chunk_of(plain, bytes(stored))
    try:
        assert decode(chunk, bytes(stored)) == plain
    except Refused:
        return


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 1 << 22))
def test_any_bytes_are_a_frame_or_a_value_error(tail: bytes, size: int) -> None:
    for stored in (tail, b"\x28\xb5\x2f\xfd" + tail):
        try:
            check_frame(memoryview(stored), size)
        except (ValueError, zstandard.ZstdError):
            continue
        assert len(stored) > 8
