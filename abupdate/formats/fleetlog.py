"""The file of the fleet's log (fleet/store.py): a head and records, decoded with struct since every start of the daemon reads all of it.

Head, 72 bytes, big-endian: magic "ABUFLOG\\0" 8 | version u16 | fault u8 | reserved u8 (zero) | founding u32 | nonce 16 | owner 32 |
reserved 4 (zero) | CRC-32 u32 of all before. Every version keeps the place of magic, version and CRC.
Record: mark "ABFR" 4 | length u32 (of the data, <= 64 KiB) | kind u8 (not 0) | sequence u32 | first u32 | before u32 | data | CRC-32 u32
of all before, which starts from the head's CRC in place of 0.

Sequence numbers count from 1. `first` is the number of the first record of those that were written together: everything below it was
durable when this one was written. `before` is the CRC of the record before, for the first record that of the head. So a record of
another file does not fit (the nonce is random, and nobody outside knows it), nor does one of this file in another place.
`founding` records were written and flushed before the file got its name.
`log_spec` in fleetlog_spec.py is the declaration; a test proves that both agree.

What `read` can tell apart where a record is not whole:
- It is a founding one, or a whole record further on was written after it was durable: no power cut does that. Damage.
- Anything else is taken for what a cut left of records that were being written. Damage to those that were written together last, and to
  them alone, looks the same; so does a file that ends earlier than it did (an older state restored, a medium that lies about flushes).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from abupdate.errors import ConfigError

MAGIC = b"ABUFLOG\0"
VERSION = 1
NONCE_BYTES = 16
OWNER_BYTES = 32
MAX_DATA_BYTES = 64 * 1024
MARK = b"ABFR"
HEAD = struct.Struct(">8sHBBI16s32s4s")
RECORD = struct.Struct(">4sIBIII")
CRC = struct.Struct(">I")
HEAD_BYTES = HEAD.size + CRC.size
_ZEROS = bytes(4)


class Fault(IntEnum):
    """What happened to the log that this one follows; it stays with every later file."""

    NONE = 0
    LOST = 1
    DAMAGED = 2
    FOREIGN = 3


@dataclass(frozen=True, slots=True)
class Head:
    """nonce: 16 random bytes. owner: the node's public key."""

    owner: bytes
    nonce: bytes
    founding: int = 0
    fault: Fault = Fault.NONE


@dataclass(frozen=True, slots=True)
class End:
    """Where a file ends. seed: the head's CRC. sequence, crc: of the last record, 0 and the seed where there is none."""

    seed: int
    sequence: int
    crc: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds up to the first record that is not whole. whole_bytes: length of that. damaged: it was whole once.

    head: None where that is damaged; records: (kind, data).
    """

    head: Head | None
    records: tuple[tuple[int, bytes], ...]
    whole_bytes: int
    end: End
    damaged: bool


class UnknownVersion(ConfigError):
    """Another version of abupdate wrote this log."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the fleet's log {what}", "install the abupdate that wrote it; the file is left as it is")


def start(head: Head) -> tuple[bytes, End]:
    """The bytes of a head, and the end of a file that holds nothing else."""
    if len(head.owner) != OWNER_BYTES or len(head.nonce) != NONCE_BYTES:
        raise ValueError("the owner has 32 bytes and the nonce 16")
    packed = HEAD.pack(MAGIC, VERSION, head.fault, 0, head.founding, head.nonce, head.owner, _ZEROS)
    seed = zlib.crc32(packed)
    return packed + CRC.pack(seed), End(seed, 0, seed)


def batch(end: End, records: Iterable[tuple[int, bytes]]) -> tuple[bytes, End]:
    """The bytes of records that are written together behind `end`, and the new end. Raises ValueError for what is out of bounds."""
    first, sequence, crc = end.sequence + 1, end.sequence, end.crc
    pieces: list[bytes] = []
    for kind, data in records:
        if not 0 < kind < 256 or len(data) > MAX_DATA_BYTES:
            raise ValueError(f"a record of kind {kind} with {len(data)} bytes")
        sequence += 1
        packed = RECORD.pack(MARK, len(data), kind, sequence, first, crc) + data
        crc = zlib.crc32(packed, end.seed)
        pieces += (packed, CRC.pack(crc))
    return b"".join(pieces), End(end.seed, sequence, crc)


def read(data: bytes) -> Contents:
    """A file's content as far as it is whole. Raises UnknownVersion."""
    head = _head(data)
    if head is None:
        return Contents(None, (), 0, End(0, 0, 0), True)
    seed = CRC.unpack_from(data, HEAD.size)[0]
    view = memoryview(data)
    end, at, first = End(seed, 0, seed), HEAD_BYTES, 0
    records: list[tuple[int, bytes]] = []
    while (found := _record(view, at, seed)) is not None:
        begins = found.first == found.sequence or (found.first == first and end.sequence > 0)
        if found.sequence != end.sequence + 1 or found.before != end.crc or not begins:
            break
        records.append((found.kind, bytes(view[at + RECORD.size : found.stop - CRC.size])))
        end, at, first = End(seed, found.sequence, found.crc), found.stop, found.first
    damaged = end.sequence < head.founding or (at < len(data) and _written_later(data, at, end))
    return Contents(head, tuple(records), at, end, damaged)


def _head(data: bytes) -> Head | None:
    if len(data) < HEAD_BYTES:
        return None
    magic, version, fault, reserved, founding, nonce, owner, zeros = HEAD.unpack_from(data)
    if magic != MAGIC or CRC.unpack_from(data, HEAD.size)[0] != zlib.crc32(data[: HEAD.size]):
        return None
    # The checksum is right, so nothing is damaged.
    if version != VERSION or fault not in set(Fault) or reserved or zeros != _ZEROS:
        raise UnknownVersion(f"has version {version}, this is {VERSION}")
    return Head(owner, nonce, founding, Fault(fault))


@dataclass(frozen=True, slots=True)
class _Found:
    kind: int
    sequence: int
    first: int
    before: int
    crc: int
    stop: int


def _record(view: memoryview, at: int, seed: int) -> _Found | None:
    """The record of this file at an offset, None where there is no whole one."""
    if at + RECORD.size + CRC.size > len(view):
        return None
    mark, length, kind, sequence, first, before = RECORD.unpack_from(view, at)
    stop = at + RECORD.size + length + CRC.size
    if mark != MARK or not kind or length > MAX_DATA_BYTES or not 0 < first <= sequence or stop > len(view):
        return None
    crc = zlib.crc32(view[at : stop - CRC.size], seed)
    if CRC.unpack_from(view, stop - CRC.size)[0] != crc:
        return None
    return _Found(kind, sequence, first, before, crc, stop)


def _written_later(data: bytes, at: int, end: End) -> bool:
    """Whether a whole record behind `at` was written when the one that is missing there was durable."""
    view = memoryview(data)
    while (at := data.find(MARK, at)) >= 0:
        found = _record(view, at, end.seed)
        if found is not None and found.first > end.sequence + 1:
            return True
        at = at + 1 if found is None else found.stop
    return False
