"""The chunk table of an image: which bytes make it up and where they are stored. The bytes are specified in bundle.py.

A table of thousands of entries stays the bytes that it is; chunks become objects one at a time.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from functools import lru_cache

from abupdate.errors import Refused
from abupdate.formats import tlv
from abupdate.formats.sealing import OVERHEAD_BYTES
from abupdate.model import Chunk, Codec, Image

HEADER = struct.Struct("<IIII")
ENTRY = struct.Struct("<III8s32s32s")
FLAG_ZERO = 1
FLAG_RAW = 2
ALIGN_BYTES = 4096
MAX_CHUNK_BYTES = 4 * 1024 * 1024
PROBE_BYTES = 4096
NO_DIGEST = bytes(32)
_STRIDE_BYTES = 64 * 1024


def probe(head: bytes | memoryview) -> bytes:
    """The probe of a chunk that starts with `head` (at least 4096 bytes of it, or all of it)."""
    return hashlib.sha256(head[:PROBE_BYTES]).digest()[:8]


@lru_cache(maxsize=MAX_CHUNK_BYTES // ALIGN_BYTES + 1)
def zero_digests(size: int) -> tuple[bytes, bytes]:
    """SHA-256 and probe of `size` zero bytes (at most 4 MiB). A table with zeros of every size costs little more than one of one size."""
    hasher = _zeros_hashed(size // _STRIDE_BYTES).copy()
    hasher.update(bytes(size % _STRIDE_BYTES))
    return hasher.digest(), probe(bytes(min(size, PROBE_BYTES)))


@lru_cache(maxsize=MAX_CHUNK_BYTES // _STRIDE_BYTES + 1)
def _zeros_hashed(strides: int) -> hashlib._Hash:
    if not strides:
        return hashlib.sha256()
    hasher = _zeros_hashed(strides - 1).copy()
    hasher.update(bytes(_STRIDE_BYTES))
    return hasher


def table_bytes(count: int) -> int:
    """Length of a table with so many chunks."""
    return HEADER.size + count * ENTRY.size


def pack_header(count: int) -> bytes:
    """The start of a table with so many chunks."""
    return HEADER.pack(count, 0, 0, 0)


def pack_entry(chunk: Chunk) -> bytes:
    """One chunk's entry; offsets are not stored, they follow from the sizes."""
    flags = FLAG_ZERO * chunk.zero | FLAG_RAW * chunk.raw
    return ENTRY.pack(chunk.size, chunk.stored_size, flags, chunk.probe, chunk.sha256, chunk.stored_sha256)


def check(table: bytes | memoryview, image: Image) -> None:
    """Refuse a table that breaks a rule or does not add up to what the manifest says of the image.

    The table's own hash is not looked at here.
    """
    name = image.name
    count = _count(table, image)
    size_bytes = payload_bytes = number = 0
    added = OVERHEAD_BYTES if image.sealed else 0
    for number, (size, stored, flags, head, sha256, stored_sha256) in enumerate(ENTRY.iter_unpack(table[HEADER.size :]), 1):
        if not 0 < size <= MAX_CHUNK_BYTES or (size % ALIGN_BYTES and number != count):
            raise Refused(f"chunk {number} of image {name} has a wrong size ({size})")
        if flags & ~(FLAG_ZERO | FLAG_RAW):
            raise tlv.newer(f"image {name} (chunk flags {flags:#x})")
        if flags == FLAG_ZERO:
            fine = not stored and stored_sha256 == NO_DIGEST and (sha256, head) == zero_digests(size)
        elif flags == (FLAG_RAW if image.codec is not Codec.NONE else 0):
            fine = stored == size + added and (image.sealed or stored_sha256 == sha256)
        else:
            fine = flags == 0 and added < stored < size + added
        if not fine or (size <= PROBE_BYTES and head != sha256[:8]):
            raise Refused(f"chunk {number} of image {name} contradicts itself")
        size_bytes += size
        payload_bytes += stored
    if size_bytes != image.size_bytes or payload_bytes != image.payload_bytes:
        raise Refused(f"the chunks of image {name} do not add up to what the manifest says")


def chunks(table: bytes | memoryview) -> Iterator[Chunk]:
    """The chunks of a table that `check` accepted, in the order of their offsets, made one at a time."""
    offset = stored_offset = 0
    for size, stored, flags, head, sha256, stored_sha256 in ENTRY.iter_unpack(table[HEADER.size :]):
        yield Chunk(offset, size, sha256, head, stored_offset, stored, stored_sha256, bool(flags & FLAG_ZERO), bool(flags & FLAG_RAW))
        offset += size
        stored_offset += stored


def _count(table: bytes | memoryview, image: Image) -> int:
    if len(table) != image.table_bytes or len(table) < HEADER.size:
        raise Refused(f"the chunk table of image {image.name} has a wrong length")
    count, flags, groups, patches = HEADER.unpack_from(table)
    if flags or groups or patches:
        raise tlv.newer(f"the chunk table of image {image.name}")
    if len(table) != table_bytes(count):
        raise Refused(f"the chunk table of image {image.name} has a wrong length")
    return int(count)
