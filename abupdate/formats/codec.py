"""Turns a chunk's stored bytes into slot bytes: verified before decoding, bounded while decoding, verified after it.

Stored bytes are checked against the signed table BEFORE they are decrypted and BEFORE a decoder sees them: zstd frames are malleable.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Protocol

import zstandard

from abupdate.errors import Refused
from abupdate.model import Chunk, Codec

_MAGIC = b"\x28\xb5\x2f\xfd"
# What a decoder must support according to the format's specification (RFC 8878, 3.1.1.1.2); more is not worth the memory.
MAX_WINDOW_BYTES = 8 << 20
_BLOCK_HEADER_BYTES = 3
_RLE_BLOCK = 1
_RESERVED_BLOCK = 3
_CHECKSUM_BYTES = 4
_HINT = "the bundle is damaged or was built wrongly: fetch it again"


class Opener(Protocol):
    """Decrypts the chunks of one image of a sealed bundle."""

    def open(self, chunk: Chunk, sealed: memoryview) -> bytes:
        """What the bundle would store for the chunk if it was not sealed, 28 bytes shorter. Raises Refused."""


class Decoder:
    """Decodes chunks of an image into a caller's buffer; belongs to one thread.

    There is no other copy on the way, except that a sealed chunk is decrypted into memory of its own.
    """

    def __init__(self, opener: Opener | None = None) -> None:
        """opener: of a sealed bundle's image."""
        self._opener = opener
        self._zstd = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)

    def verify(self, chunk: Chunk, stored: memoryview) -> None:
        """Raise Refused unless the stored bytes are those that the signed table names."""
        if not hmac.compare_digest(hashlib.sha256(stored).digest(), chunk.stored_sha256):
            raise Refused(f"stored bytes of the chunk at byte {chunk.offset} do not match the signed table", _HINT)

    def decode(self, chunk: Chunk, codec: Codec, stored: memoryview, out: memoryview) -> None:
        """Fill `out` (chunk.size bytes) from `stored` (chunk.stored_size bytes).

        Raises Refused where either hash differs, where the opener refuses, where what is to be decoded is anything but exactly one
        frame that declares exactly chunk.size bytes, or where it asks for a window of more than 8 MiB. Nothing is decrypted or
        decoded before the stored hash matches.
        """
        self.verify(chunk, stored)
        if self._opener is not None:
            stored = memoryview(self._opener.open(chunk, stored))
        if chunk.raw or codec is Codec.NONE:
            if len(stored) != chunk.size:
                raise Refused(f"the chunk at byte {chunk.offset} has the wrong stored size", _HINT)
            out[:] = stored
        else:
            self._inflate(chunk, stored, out)
        if not hmac.compare_digest(hashlib.sha256(out).digest(), chunk.sha256):
            raise Refused(f"the chunk at byte {chunk.offset} does not match the signed table", _HINT)

    def plain(self, chunk: Chunk, codec: Codec, stored: bytes | memoryview) -> bytearray:
        """The chunk's bytes in a buffer of their own, zeros for a zero chunk. Raises Refused as `decode` does."""
        out = bytearray(chunk.size)
        if not chunk.zero:
            self.decode(chunk, codec, memoryview(stored), memoryview(out))
        return out

    def _inflate(self, chunk: Chunk, stored: memoryview, out: memoryview) -> None:
        try:
            check_frame(stored, chunk.size)
            with self._zstd.stream_reader(stored, closefd=False) as reader:
                count = reader.readinto(out)
        except (zstandard.ZstdError, ValueError) as error:
            raise Refused(f"the chunk at byte {chunk.offset} is no valid zstd frame: {error}", _HINT) from error
        if count != chunk.size:
            raise Refused(f"the chunk at byte {chunk.offset} decodes to {count} bytes instead of {chunk.size}", _HINT)


def check_frame(stored: memoryview, size: int) -> None:
    """Raise ValueError unless `stored` is one whole zstd frame (RFC 8878) that declares `size` bytes, and nothing else.

    The library looks at neither: it believes the declared size whatever `max_output_size` says, and ignores what follows the frame.
    """
    if stored[:4] != _MAGIC:
        raise ValueError("wrong magic")
    frame = zstandard.get_frame_parameters(stored)
    if frame.content_size != size:
        raise ValueError("the declared size is not the signed one")
    if frame.window_size > MAX_WINDOW_BYTES:
        raise ValueError("the window is too large")
    if frame.dict_id:
        raise ValueError("it needs a dictionary")
    position = zstandard.frame_header_size(stored)
    last = False
    while not last:
        header = int.from_bytes(stored[position : position + _BLOCK_HEADER_BYTES], "little")
        if position + _BLOCK_HEADER_BYTES > len(stored):
            raise ValueError("it ends early")
        last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
        if kind == _RESERVED_BLOCK:
            raise ValueError("reserved block type")
        position += _BLOCK_HEADER_BYTES + (1 if kind == _RLE_BLOCK else length)
    position += _CHECKSUM_BYTES if frame.has_checksum else 0
    if position != len(stored):
        raise ValueError("it ends early" if position > len(stored) else "bytes follow the frame")
