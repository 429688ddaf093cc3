"""From stored bytes to the bytes of a chunk: verify, bound, decode, verify again.

Stored bytes are checked against the signed table BEFORE a decoder sees them (zstd frames are malleable), and what the frame
declares is checked before anything is allocated: python-zstandard's `max_output_size` does not bound a frame that declares its size.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from abupdate.errors import Refused
from abupdate.model import Chunk

if TYPE_CHECKING:
    import zstandard


# What every decoder must support (RFC 8878, 3.1.1.1.2), and more than a chunk needs.
MAX_WINDOW_BYTES = 8 * 1024 * 1024


class Decoder:
    """Decodes the chunks of a bundle one after the other; not to be shared between threads."""

    def __init__(self) -> None:
        self._zstd: zstandard.ZstdDecompressor | None = None

    def decode(self, chunk: Chunk, stored: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        """The bytes of a chunk on the slot, verified; `stored` itself where it is stored as it is.

        `stored` holds exactly the chunk's stored bytes; it may be a buffer that is reused after the result was written.
        A chunk that equals its stored hash and is not zstd-encoded (codec none, raw) is hashed once. Raises Refused.
        """
        if chunk.zero:
            return bytes(chunk.size)
        if len(stored) != chunk.stored_size or hashlib.sha256(stored).digest() != chunk.stored_sha256:
            raise Refused(f"the stored bytes of the chunk at {chunk.offset} are damaged", "copy or download the bundle again")
        # Same hash before and after encoding: it is stored as it is (the table's rules leave no other way).
        if chunk.stored_sha256 == chunk.sha256:
            return stored
        data = self._decompress(chunk, stored)
        if hashlib.sha256(data).digest() != chunk.sha256:
            raise Refused(f"the chunk at {chunk.offset} does not decode to what was signed", "build the bundle again")
        return data

    def _decompress(self, chunk: Chunk, stored: bytes | bytearray | memoryview) -> bytes:
        # Late: only who decodes pays for the import.
        import zstandard

        if self._zstd is None:
            self._zstd = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        fault = Refused(f"the chunk at {chunk.offset} is not encoded as the format says", "build the bundle again")
        try:
            declared = zstandard.get_frame_parameters(stored)
            if declared.content_size != chunk.size or declared.window_size > MAX_WINDOW_BYTES or declared.dict_id:
                raise fault
            data = self._zstd.decompress(stored, max_output_size=chunk.size, allow_extra_data=False)
        except zstandard.ZstdError:
            raise fault from None
        if len(data) != chunk.size:
            raise fault
        return data
