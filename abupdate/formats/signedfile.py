"""The files that people sign for a site, memberships and orders: header, body, signature block, as a keyring's (keyring.py).

All numbers are little-endian. The file is

    0   8  magic of the kind
    8   2  format version, 1
    10  2  flags, 0 (any bit that is set needs a newer abupdate)
    12  4  length of the body, at most 12288
    16  4  length of the signature block
    20 32  SHA-256 of the signature block (against damage; it protects nothing)
    52     body | signature block; nothing follows

The body is a TLV sequence (tlv.py); its digest names the object, whoever signed it. The block is that of signature.py. A file is an
object of the fleet's wire, and so has at most 16384 bytes: room for 40 signatures beside the longest body.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from abupdate.errors import Refused
from abupdate.formats import signature, tlv
from abupdate.formats.payloads import MAX_OBJECT_BYTES
from abupdate.model import Signature

FORMAT_VERSION = 1
HEADER = struct.Struct("<8sHHII32s")
MAX_BODY_BYTES = 12 * 1024


@dataclass(frozen=True, slots=True)
class Form:
    """A kind of file. what: a noun for messages, with its article. hint: where such files come from."""

    magic: bytes
    what: str
    hint: str

    def build(self, body: bytes, signatures: Iterable[Signature]) -> bytes:
        """A whole file from a body and signatures over it. Raises ValueError where it would be too long, or a key comes twice."""
        block = signature.pack_block(signatures)
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"{self.what} has a body of {len(body)} bytes, more than {MAX_BODY_BYTES}")
        data = HEADER.pack(self.magic, FORMAT_VERSION, 0, len(body), len(block), hashlib.sha256(block).digest()) + body + block
        if len(data) > MAX_OBJECT_BYTES:
            raise ValueError(f"{self.what} of {len(data)} bytes is longer than {MAX_OBJECT_BYTES}")
        return data

    def length(self, data: bytes) -> int:
        """How many bytes of `data` the file takes that it starts with, by its header alone. Raises Refused."""
        if data[: len(self.magic)] != self.magic or len(data) < HEADER.size:
            raise Refused(f"this is not {self.what}", self.hint)
        _magic, _version, _flags, body_bytes, block_bytes, _digest = HEADER.unpack_from(data)
        return HEADER.size + int(body_bytes) + int(block_bytes)

    def take_apart(self, data: bytes) -> tuple[bytes, tuple[Signature, ...]]:
        """Body and signatures of a whole file; the body is not decoded, and nothing is verified. Raises Refused."""
        if data[: len(self.magic)] != self.magic:
            raise Refused(f"this is not {self.what}", self.hint)
        if not HEADER.size <= len(data) <= MAX_OBJECT_BYTES:
            raise Refused(f"{self.what} has {len(data)} bytes instead of {HEADER.size} to {MAX_OBJECT_BYTES}")
        _magic, version, flags, body_bytes, block_bytes, digest = HEADER.unpack_from(data)
        if version != FORMAT_VERSION:
            raise tlv.newer(f"{self.what} of format {version}")
        if flags:
            raise tlv.newer(f"{self.what} with the flags {flags:#06x}")
        if len(data) != HEADER.size + body_bytes + block_bytes:
            raise Refused(f"{self.what} has {len(data)} bytes instead of {HEADER.size + body_bytes + block_bytes}")
        if body_bytes > MAX_BODY_BYTES:
            raise Refused(f"{self.what} has a body of {body_bytes} bytes, more than {MAX_BODY_BYTES}")
        block = data[HEADER.size + body_bytes :]
        if hashlib.sha256(block).digest() != digest:
            raise Refused(f"{self.what} has damaged signatures")
        return data[HEADER.size : HEADER.size + body_bytes], signature.unpack_block(block)


def number(value: int, width: int, what: str) -> bytes:
    """Encode an unsigned number of a body. Raises Refused for one that does not fit."""
    if not 0 <= value < 1 << 8 * width:
        raise Refused(f"{what} is {value}, which does not fit")
    return value.to_bytes(width, "little")


def hash_of(value: bytes, what: str) -> bytes:
    """A hash of a body as it is. Raises Refused where it has not 32 bytes."""
    if len(value) != hashlib.sha256().digest_size:
        raise Refused(f"{what} has {len(value)} bytes instead of {hashlib.sha256().digest_size}")
    return value


def flag(value: bytes, what: str) -> bool:
    """Decode a flag of a body: one byte, 0 or 1. Raises Refused."""
    return bool(tlv.unsigned(value, 1, 1, what))
