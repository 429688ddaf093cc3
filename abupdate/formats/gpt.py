"""A disk's partition table, as far as a boot entry needs it: where a partition lies and what it is called. GPT or DOS; pure.

The caller reads the first blocks of the disk: block 1 is GPT's header, which says where its entries are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from abupdate.errors import ConfigError
from abupdate.formats.efiboot import Partition

# Signature, what is not looked at, first block of the entries, how many, bytes of each.
_HEADER = struct.Struct("<8s64xQII")
_ENTRY = struct.Struct("<16s16sQQ")
_MAX_ENTRIES, _MAX_ENTRY_BYTES = 1024, 4096
_DOS_SIGNATURE_AT = 440


@dataclass(frozen=True, slots=True)
class Entries:
    """Where GPT's entries lie. start: logical block; count; size_bytes: of each."""

    start: int
    count: int
    size_bytes: int


def parse_header(block: bytes) -> Entries | None:
    """GPT's header (a disk's logical block 1); None where there is no GPT."""
    if len(block) < _HEADER.size:
        return None
    signature, start, count, size_bytes = _HEADER.unpack_from(block)
    sensible = 2 <= start < 1 << 48 and 1 <= count <= _MAX_ENTRIES and _ENTRY.size <= size_bytes <= _MAX_ENTRY_BYTES
    return Entries(start, count, size_bytes) if signature == b"EFI PART" and sensible else None


def parse_entry(raw: bytes, number: int) -> Partition:
    """One of GPT's entries; number: of the partition, from 1. Raises ConfigError for one that is not used."""
    if len(raw) < _ENTRY.size:
        raise ConfigError(f"GPT's entry {number} ends early", "is the disk's partition table whole?")
    kind, unique, first, last = _ENTRY.unpack_from(raw)
    if not any(kind) or not first <= last < 1 << 62:
        raise ConfigError(f"GPT has no partition {number}", "is the disk's partition table whole?")
    return Partition(number, first, last - first + 1, unique)


def dos_partition(block: bytes, number: int, start: int, blocks: int) -> Partition:
    """A partition of a DOS disk, from the disk's first block. Raises ConfigError where the disk has no signature."""
    signature = block[_DOS_SIGNATURE_AT : _DOS_SIGNATURE_AT + 4]
    if block[510:512] != b"\x55\xaa" or not any(signature):
        raise ConfigError("the disk has neither GPT nor a DOS partition table with a signature", "EFI firmware needs one of both")
    return Partition(number, start, blocks, signature + bytes(12), gpt=False)
