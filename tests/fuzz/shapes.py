"""Mutations that know a format's shape: they change a part and put lengths, checksums and hashes right again, so that what is behind
them is reached. A mutation is `(data, source of chance, how to change bytes) -> data`; what it cannot read it changes as plain bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from abupdate.formats import bundle, chunktable, fleetlog, keyring, tlv

Bytes = Callable[[bytes], bytes]
Mutation = Callable[[bytes, Random, Bytes], bytes]
Nested = Mapping[int, "Nested"]
Records = list[tuple[int, bytes]]

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    255,
    4095,
    4096,
    4097,
    65535,
    65536,
    2**22,
    2**22 + 4096,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_IMAGE, _SIZE, _TABLE_BYTES, _TABLE_SHA256, _PAYLOAD_BYTES = 0x0020, 0x0004, 0x0005, 0x0006, 0x0007
IMAGES: Nested = {_IMAGE: {}, 0x0030: {}}
ROLES: Nested = {0x0002: {}}


def plain_change(chance: Random) -> Bytes:
    """How to change bytes where no fuzzer tells: a few flips, cuts, repetitions and numbers."""

    def change(data: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            at = chance.randint(0, len(out))
            match chance.randrange(6):
                case 0 if out:
                    out[at % len(out)] ^= 1 << chance.randrange(8)
                case 1 if out:
                    out[at % len(out)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22))
                case 2:
                    del out[at : at + chance.randint(1, 16)]
                case 3:
                    out[at:at] = out[at : at + chance.randint(1, 64)]
                case 4:
                    out[at:at] = chance.randbytes(chance.randint(1, 8))
                case _:
                    width = chance.choice((1, 2, 4, 8))
                    out[at : at + width] = (chance.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
        return bytes(out)

    return change


def split_records(data: bytes) -> Records:
    """The records of a TLV sequence as far as they can be read."""
    found: Records = []
    position = 0
    while position + 4 <= len(data):
        tag, length = struct.unpack_from("<HH", data, position)
        found.append((tag, data[position + 4 : position + 4 + length]))
        position += 4 + length
    return found


def join_records(records: Records) -> bytes:
    """A TLV sequence; values that are too long are cut."""
    return tlv.pack((tag, value[: tlv.MAX_VALUE_BYTES]) for tag, value in records)


def has_optional(data: bytes, nested: Nested) -> bool:
    """Whether a sequence that was accepted holds records that a reader passes over: those are not written again."""
    records = split_records(data)
    return any(tag & tlv.OPTIONAL or (tag in nested and has_optional(value, nested[tag])) for tag, value in records)


def records_mutation(nested: Nested) -> Mutation:
    """Of a TLV sequence: one record's value, place, number or tag; a value with records inside by the same rule."""

    def mutate(data: bytes, chance: Random, change: Bytes) -> bytes:
        records = split_records(data)
        if not records or chance.random() < 0.1:
            return change(data)
        at = chance.randrange(len(records))
        tag, value = records[at]
        roll = chance.random()
        if roll < 0.7:
            inner = nested.get(tag)
            new = records_mutation(inner)(value, chance, change) if inner is not None and chance.random() < 0.9 else change(value)
            # Most values have a fixed length or rules about characters; another length is refused at once.
            records[at] = (tag, new[: len(value)].ljust(len(value), b"a") if chance.random() < 0.6 else new)
        elif roll < 0.78:
            records.insert(at, records[at])
        elif roll < 0.84:
            del records[at]
        elif roll < 0.9:
            other = chance.randrange(len(records))
            records[at], records[other] = records[other], records[at]
        else:
            new_tag = chance.choice((tag ^ 1, tag | tlv.OPTIONAL, 0xFFFF, 0x0030, tag + 1 & 0xFFFF))
            records.insert(at + 1, (new_tag, change(value)))
        return join_records(records)

    return mutate


def mutate_table(data: bytes, chance: Random, change: Bytes) -> bytes:
    """Of a chunk table: entries change, come twice, go; the count is put right."""
    head, entry = chunktable.HEADER.size, chunktable.ENTRY.size
    entries = [data[at : at + entry] for at in range(head, len(data) - entry + 1, entry)]
    if len(data) < head or not entries or chance.random() < 0.1:
        return change(data)
    at = chance.randrange(len(entries))
    roll = chance.random()
    if roll < 0.5:
        size, stored, flags, probe, sha256, stored_sha256 = chunktable.ENTRY.unpack(entries[at])
        size = chance.choice((size, 4096, 8192, 100, chance.choice(NUMBERS) % 2**32))
        flags = chance.choice((flags, 0, 1, 2, 3, 4))
        stored = chance.choice((stored, size, 0, max(0, size - 1)))
        if flags & chunktable.FLAG_ZERO and 0 < size <= chunktable.MAX_CHUNK_BYTES and chance.random() < 0.8:
            stored, stored_sha256 = 0, bytes(32)
            sha256, probe = chunktable.zero_digests(size)
        elif stored == size and chance.random() < 0.8:
            stored_sha256 = sha256
        if size <= chunktable.PROBE_BYTES and chance.random() < 0.8:
            probe = sha256[:8]
        entries[at] = chunktable.ENTRY.pack(size, stored, flags, probe, sha256, stored_sha256)
    elif roll < 0.7:
        entries[at] = change(entries[at])[:entry].ljust(entry, b"\0")
    elif roll < 0.85:
        entries.insert(at, entries[at])
    else:
        del entries[at]
    body = b"".join(entries)
    rest = data[4:head] if chance.random() < 0.95 else change(data[4:head])[:12].ljust(12, b"\0")
    return struct.pack("<I", len(entries)) + rest + body


def table_sums(table: bytes) -> tuple[int, int]:
    """Bytes on the slot and stored bytes of a table, as far as it can be read."""
    body = table[chunktable.HEADER.size :]
    body = body[: len(body) - len(body) % chunktable.ENTRY.size]
    entries = list(chunktable.ENTRY.iter_unpack(body))
    return sum(entry[0] for entry in entries), sum(entry[1] for entry in entries)


@dataclass(slots=True)
class BundleParts:
    """A bundle taken apart, leniently."""

    manifest: bytes
    block: bytes
    chain: bytes
    tables: list[bytes]
    payload: bytes

    def join(self) -> bytes:
        """The bundle with the right lengths and hashes in front of them."""
        tables = b"".join(self.tables)
        lengths = [len(self.manifest), len(self.block), len(self.chain), len(tables), len(self.payload)]
        envelope = self.block + self.chain
        fields = (*lengths, bundle.HEADER.size + sum(lengths), hashlib.sha256(envelope).digest(), bytes(16))
        header = bundle.HEADER.pack(bundle.MAGIC, bundle.FORMAT_VERSION, 0, *fields)
        return header + self.manifest + envelope + tables + self.payload

    def refit(self) -> None:
        """Put the tables' lengths, hashes and sums into the manifest."""
        records = split_records(self.manifest)
        tables = iter(self.tables)
        for number, (tag, value) in enumerate(records):
            table = next(tables, None) if tag == _IMAGE else None
            if table is None:
                continue
            size, stored = table_sums(table)
            fields = {_SIZE: _u64(size), _TABLE_BYTES: _u64(len(table)), _PAYLOAD_BYTES: _u64(stored)}
            fields[_TABLE_SHA256] = hashlib.sha256(table).digest()
            inner = [(name, fields.get(name, old)) for name, old in split_records(value)]
            records[number] = (tag, join_records(inner))
        self.manifest = join_records(records)


def _u64(number: int) -> bytes:
    return struct.pack("<Q", min(number, 2**64 - 1))


def take_bundle_apart(data: bytes) -> BundleParts | None:
    """None where there is not even a header."""
    if len(data) < bundle.HEADER.size:
        return None
    _, _, _, *lengths, _total, _digest, _zeros = bundle.HEADER.unpack_from(data)
    parts: list[bytes] = []
    rest = data[bundle.HEADER.size :]
    for length in lengths[:4]:
        parts.append(rest[:length])
        rest = rest[length:]
    tables: list[bytes] = []
    left = parts[3]
    for tag, value in split_records(parts[0]):
        if tag == _IMAGE:
            length = int.from_bytes(dict(split_records(value)).get(_TABLE_BYTES, b""), "little")
            tables.append(left[:length])
            left = left[length:]
    return BundleParts(parts[0], parts[1], parts[2], tables, rest)


def mutate_bundle(data: bytes, chance: Random, change: Bytes) -> bytes:
    """Of a bundle: the manifest, a table, the signatures, the chain, the payload or the raw bytes; the rest fits again, mostly."""
    parts = take_bundle_apart(data)
    roll = chance.random()
    if parts is None or roll < 0.1:
        return change(data)
    if roll < 0.15:
        return change(data[: bundle.HEADER.size]) + data[bundle.HEADER.size :]
    if roll < 0.5:
        parts.manifest = records_mutation(IMAGES)(parts.manifest, chance, change)
    elif roll < 0.65:
        parts.block = records_mutation({})(parts.block, chance, change)
    elif roll < 0.7:
        parts.chain = change(parts.chain)
    elif roll < 0.95 and parts.tables:
        at = chance.randrange(len(parts.tables))
        parts.tables[at] = mutate_table(parts.tables[at], chance, change)
    else:
        parts.payload = change(parts.payload)
    if chance.random() < 0.85:
        parts.refit()
        if chance.random() < 0.9:
            wanted = min(sum(table_sums(table)[1] for table in parts.tables), 1 << 16)
            parts.payload = parts.payload[:wanted].ljust(wanted, b"\0")
    return parts.join()


def mutate_keyring(data: bytes, chance: Random, change: Bytes) -> bytes:
    """Of a keyring: body or signatures; lengths and hash are put right."""
    size = keyring.HEADER.size
    if len(data) < size or chance.random() < 0.1:
        return change(data)
    body_bytes = struct.unpack_from("<I", data, 12)[0]
    body, block = data[size : size + body_bytes], data[size + body_bytes :]
    if chance.random() < 0.75:
        body = records_mutation(ROLES)(body, chance, change)
    else:
        block = records_mutation({})(block, chance, change)
    return keyring.HEADER.pack(keyring.MAGIC, 1, 0, len(body), len(block), hashlib.sha256(block).digest()) + body + block


_ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    2**64 - 1,
    2**64,
    0.5,
    float("inf"),
    float("nan"),
    "",
    "\ud800",
    "trial",
    [],
    {},
    "x" * 300,
)


def mutate_record(data: bytes, chance: Random, change: Bytes) -> bytes:
    """Of a record: its JSON as text or as a tree; length and checksum are put right."""
    if len(data) < 24 or chance.random() < 0.1:
        return change(data)
    head, payload = data[:16], data[20:-4]
    if chance.random() < 0.1:
        head = change(head)[:16].ljust(16, b"\0")
    try:
        tree = json.loads(payload) if chance.random() < 0.7 else None
    except (ValueError, RecursionError):
        tree = None
    if isinstance(tree, dict) and tree:
        _graft(tree, chance)
        payload = json.dumps(tree).encode()
    else:
        payload = change(payload)
    framed = head + struct.pack(">I", len(payload)) + payload
    return framed + struct.pack(">I", zlib.crc32(framed))


def _graft(tree: dict[str, Any], chance: Random) -> None:
    key = chance.choice(sorted(tree))
    value = tree[key]
    if isinstance(value, dict) and value and chance.random() < 0.7:
        _graft(value, chance)
    elif chance.random() < 0.3:
        tree[chance.choice(("", "new", "floor", "slots", "lease", "\udfff"))] = chance.choice(_ODD)
    elif chance.random() < 0.2:
        del tree[key]
    else:
        tree[key] = chance.choice(_ODD)


def mutate_environment(data: bytes, chance: Random, change: Bytes) -> bytes:
    """Of a U-Boot environment behind one byte that names the scheme: the checksum is put right."""
    if len(data) < 7 or chance.random() < 0.1:
        return change(data)
    header = 4 if data[0] % 3 == 0 else 5
    body = change(data[1 + header :])
    flag = data[5:6] if header == 5 else b""
    return data[:1] + struct.pack("<I", zlib.crc32(body)) + flag + body


def mutate_fleetlog(data: bytes, chance: Random, change: Bytes) -> bytes:
    """Of the fleet's log: a field of the head or of a record, a record's data or place, or plain bytes; checksums and chain are put right,
    mostly."""
    if len(data) < fleetlog.HEAD_BYTES or chance.random() < 0.2:
        return change(data)
    head = data[: fleetlog.HEAD.size]
    records: list[tuple[list[int], bytes]] = []
    at = fleetlog.HEAD_BYTES
    while at + fleetlog.RECORD.size <= len(data):
        _, length, *fields = fleetlog.RECORD.unpack_from(data, at)
        records.append((fields, data[at + fleetlog.RECORD.size : at + fleetlog.RECORD.size + length]))
        at += fleetlog.RECORD.size + length + fleetlog.CRC.size
    roll = chance.random()
    if roll < 0.2 or not records:
        head = change(head)[: fleetlog.HEAD.size].ljust(fleetlog.HEAD.size, b"\0")
    elif roll < 0.4:
        field = chance.randrange(4)
        records[chance.randrange(len(records))][0][field] = chance.choice(NUMBERS) % (1 << (8 if field == 0 else 32))
    elif roll < 0.6:
        number = chance.randrange(len(records))
        records[number] = (records[number][0], change(records[number][1]))
    elif roll < 0.8:
        one, other = chance.randrange(len(records)), chance.randrange(len(records))
        records[one], records[other] = records[other], records[one]
    else:
        del records[chance.randrange(len(records))]
    return _join_fleetlog(head, records, change if chance.random() < 0.2 else bytes, renumber=chance.random() < 0.6)


def _join_fleetlog(head: bytes, records: list[tuple[list[int], bytes]], spoil: Bytes, *, renumber: bool) -> bytes:
    """renumber: as if the records had been appended like this. spoil: changes the last of them."""
    seed = before = zlib.crc32(head)
    made = [head + fleetlog.CRC.pack(seed)]
    for number, ((kind, sequence, first, link), data) in enumerate(records, 1):
        fields = (number, min(first, number) or 1, before) if renumber else (sequence, first, link)
        framed = fleetlog.RECORD.pack(fleetlog.MARK, len(data), kind, *fields) + data
        before = zlib.crc32(framed, seed)
        made.append(framed + fleetlog.CRC.pack(before))
    made[-1] = spoil(made[-1])
    return b"".join(made)


def mutate_plain(data: bytes, chance: Random, change: Bytes) -> bytes:
    """No shape."""
    return change(data)


def mutate_lines(data: bytes, chance: Random, change: Bytes) -> bytes:
    """Of a text: whole lines and words move, too."""
    lines = data.split(b"\n")
    roll = chance.random()
    if roll < 0.5:
        return change(data)
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    if roll < 0.7:
        lines[at] = change(lines[at])
    elif roll < 0.8:
        lines.insert(at, lines[other])
    elif roll < 0.9:
        del lines[at]
    else:
        words = lines[at].split(b" ")
        words[chance.randrange(len(words))] = str(chance.choice(NUMBERS)).encode()
        lines[at] = b" ".join(words)
    return b"\n".join(lines)
