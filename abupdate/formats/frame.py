"""The frames of the fleet: bytes on the wire <-> values (messages.py). The payloads are payloads.py's.

    0   1  version and flags: high nibble 1; bit 0: the token of a serial bus goes to `to`; the other bits are 0
    1   1  type
    2   1  source: the author's number, 0 to 254
    3   1  to: a node, FF everybody
    4   4  tag of the site: the first 4 bytes of its genesis
    8   2  epoch, 1 and up
    10  4  boot counter
    14  4  sequence
    18  1  length of the payload, at most 160
    19     payload
       64  Ed25519 signature; a POLL has none
        4  CRC-32 of all before it

Numbers are big-endian. A frame has at most 247 bytes. What is signed (see `content`) is not these bytes: a relay puts its own boot
counter and sequence on a fact, and a bus the token. frame_spec.py is the declaration; a test proves that both agree.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

from abupdate.formats import payloads
from abupdate.formats.messages import EVERYBODY, Frame, Message, Type
from abupdate.formats.payloads import (
    FRAGMENT_BYTES,
    MAX_FRAGMENTS,
    MAX_INLINE_BYTES,
    MAX_OBJECT_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_REASON_BYTES,
    MAX_ROUND,
    Malformed,
)

__all__ = [
    "CRC",
    "FRAGMENT_BYTES",
    "HEADER",
    "MAX_FRAGMENTS",
    "MAX_FRAME_BYTES",
    "MAX_INLINE_BYTES",
    "MAX_OBJECT_BYTES",
    "MAX_PAYLOAD_BYTES",
    "MAX_REASON_BYTES",
    "MAX_ROUND",
    "SIGNATURE_BYTES",
    "STATUS",
    "TOKEN",
    "VERSION",
    "Head",
    "Malformed",
    "content",
    "fact_digest",
    "finish",
    "pack",
    "parse",
    "payload",
    "peek",
    "signed",
    "signed_here",
]

VERSION = 1
TOKEN = 0x01
SIGNATURE_BYTES = 64
HEADER = struct.Struct(">BBBB4sHIIB")
CRC = struct.Struct(">I")
MAX_FRAME_BYTES = HEADER.size + MAX_PAYLOAD_BYTES + SIGNATURE_BYTES + CRC.size
STATUS = frozenset({Type.POLL, Type.HELLO, Type.HELLO_ACK, Type.HEARTBEAT, Type.NACK, Type.CERT_REQ})

_FIRST = VERSION << 4
_MIN_FRAME_BYTES = HEADER.size + CRC.size
_TAIL_BYTES = SIGNATURE_BYTES + CRC.size
_TAG_BYTES = 4
_GENESIS_BYTES = 32
_DOMAIN = b"abupdate frame 1\x00"
_FACT_DOMAIN = b"abupdate fact 1\x00"
_SIGNED_HEAD = struct.Struct(">BBBBH")
_SIGNED_TAIL = struct.Struct(">II")
_FACT_HEAD = struct.Struct(">BBH")
_TYPES = {int(kind): kind for kind in Type}


@dataclass(frozen=True, slots=True)
class Head:
    """The header of what has a frame's lengths and checksum; nothing is known of its payload and signature."""

    type: Type
    source: int
    to: int
    tag: bytes
    epoch: int
    boot: int
    seq: int
    token: bool


def pack(frame: Frame) -> bytes:
    """A frame's bytes. Raises ValueError beyond a bound."""
    body = payloads.encode(frame.message)
    if not payloads.fits(frame.type, frame.message):
        raise ValueError(f"a {frame.type.name} frame cannot hold this {type(frame.message).__name__}")
    if len(frame.tag) != _TAG_BYTES or len(frame.signature) != (0 if frame.type is Type.POLL else SIGNATURE_BYTES):
        raise ValueError(f"a {frame.type.name} frame has a tag or a signature of the wrong length")
    if frame.source == EVERYBODY or not frame.epoch:
        raise ValueError(f"a {frame.type.name} frame has the source {frame.source} and the epoch {frame.epoch}")
    first = _FIRST | (TOKEN if frame.token else 0)
    try:
        head = HEADER.pack(first, frame.type, frame.source, frame.to, frame.tag, frame.epoch, frame.boot, frame.seq, len(body))
    except struct.error as error:
        raise ValueError(f"the header of a {frame.type.name} frame: {error}") from error
    whole = head + body + frame.signature
    return whole + CRC.pack(zlib.crc32(whole))


def parse(data: bytes) -> Frame:
    """Decode a whole frame; its signature is not looked at. Raises Malformed."""
    return finish(Head(*_header(data)), data)


def finish(head: Head, data: bytes) -> Frame:
    """Decode the rest of a frame whose header `peek` has read. Raises Malformed."""
    end = len(data) - CRC.size
    middle = end if head.type is Type.POLL else end - SIGNATURE_BYTES
    message = payloads.decode(head.type, data[HEADER.size : middle])
    return Frame(head.type, head.source, head.to, head.tag, head.epoch, head.boot, head.seq, message, data[middle:end], head.token)


def peek(data: bytes) -> Head | None:
    """The header of what has a frame's lengths and checksum, None for anything else. Cheap: most of what is heard needs no more."""
    try:
        return Head(*_header(data))
    except Malformed:
        return None


def _header(data: bytes) -> tuple[Type, int, int, bytes, int, int, int, bool]:
    if not _MIN_FRAME_BYTES <= len(data) <= MAX_FRAME_BYTES:
        raise Malformed(f"a frame has {len(data)} bytes instead of {_MIN_FRAME_BYTES} to {MAX_FRAME_BYTES}")
    first, number, source, to, tag, epoch, boot, seq, length = HEADER.unpack_from(data)
    kind = _TYPES.get(number)
    if first & ~TOKEN != _FIRST or kind is None:
        raise Malformed(f"a frame starts with {first:#04x} and type {number}, which this version of abupdate does not know")
    size_bytes = _MIN_FRAME_BYTES + length + (0 if kind is Type.POLL else SIGNATURE_BYTES)
    if len(data) != size_bytes or length > MAX_PAYLOAD_BYTES:
        raise Malformed(f"a {kind.name} frame with {length} bytes of payload has {len(data)} bytes")
    if CRC.unpack_from(data, size_bytes - CRC.size)[0] != zlib.crc32(data[: -CRC.size]):
        raise Malformed(f"a {kind.name} frame has a wrong checksum")
    if source == EVERYBODY or not epoch:
        raise Malformed(f"a {kind.name} frame has the source {source} and the epoch {epoch}")
    return kind, source, to, tag, epoch, boot, seq, first != _FIRST


def payload(message: Message) -> bytes:
    """A message's bytes, as they stand in a frame of it. Raises ValueError beyond a bound."""
    return payloads.encode(message)


def content(genesis: bytes, type: Type, source: int, to: int, epoch: int, payload: bytes, boot: int = 0, seq: int = 0) -> bytes:
    """What is signed: domain ‖ genesis 32 ‖ version, type, source, to u8 ‖ epoch u16 ‖ payload, and in status ‖ boot u32 ‖ seq u32.

    A fact is for everybody, whoever its frame is sent to; nothing tells when it was sent, so that it is the same each time.
    """
    if len(genesis) != _GENESIS_BYTES:
        raise ValueError(f"a genesis has {len(genesis)} bytes instead of {_GENESIS_BYTES}")
    if type in STATUS:
        return _DOMAIN + genesis + _SIGNED_HEAD.pack(VERSION, type, source, to, epoch) + payload + _SIGNED_TAIL.pack(boot, seq)
    return _DOMAIN + genesis + _SIGNED_HEAD.pack(VERSION, type, source, EVERYBODY, epoch) + payload


def signed(genesis: bytes, frame: Frame) -> bytes:
    """What the author of a frame signed. One that carries the token was signed for everybody, before it had the token."""
    to = EVERYBODY if frame.token else frame.to
    return content(genesis, frame.type, frame.source, to, frame.epoch, payloads.encode(frame.message), frame.boot, frame.seq)


def signed_here(genesis: bytes, head: Head, data: bytes) -> bytes:
    """What the author of a frame with a signature signed, from its bytes: the same as `signed` gives, without encoding it anew."""
    to = EVERYBODY if head.token else head.to
    return content(genesis, head.type, head.source, to, head.epoch, data[HEADER.size : -_TAIL_BYTES], head.boot, head.seq)


def fact_digest(type: Type, source: int, epoch: int, payload: bytes) -> bytes:
    """The name of a fact: SHA-256 of domain ‖ type u8 ‖ source u8 ‖ epoch u16 ‖ payload. Its signature may have more than one form."""
    return hashlib.sha256(_FACT_DOMAIN + _FACT_HEAD.pack(type, source, epoch) + payload).digest()
