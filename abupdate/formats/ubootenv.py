"""U-Boot's environment as it lies on the medium: checksum, flag, ordered variables.

A single copy is `CRC-32 (4, little-endian) | data`; a redundant one is `CRC-32 (4) | flag (1) | data`. The CRC is zlib's over the
data alone, padding included. Data is `name=value` entries, each ended by a zero byte, closed by one more zero byte, padded with zeros.
Which of two valid copies counts is decided as U-Boot and libubootenv do it (`choose`). Sources: U-Boot env/common.c and
env/flash.c, libubootenv; `declaration` says the same as a construct, and a test proves that both agree.

Entries are kept as raw bytes, in their order: what others stored need not be UTF-8, need not hold a `=`, and is written back
byte for byte.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from abupdate.errors import ConfigError, StoreUnreadable

MAX_ENV_BYTES = 16 << 20
_CRC_BYTES = 4
_FLAG_ACTIVE = 1
_FLAG_OBSOLETE = 0


class Scheme(Enum):
    """How a store tells its copies apart. NOR flash has the boolean flag, everything else that is redundant counts upwards."""

    SINGLE = "single"
    INCREMENTAL = "incremental"
    BOOLEAN = "boolean"


@dataclass(frozen=True, slots=True)
class Environment:
    """Ordered raw entries, each `name=value` without its zero byte; what names nothing of ours is never looked into."""

    entries: tuple[bytes, ...] = ()

    def get(self, name: str) -> bytes | None:
        """Value of a variable, None where it is absent or empty (U-Boot drops empty ones); of duplicates the last counts."""
        key = name.encode()
        for entry in reversed(self.entries):
            found, _, value = entry.partition(b"=")
            if found == key:
                return value or None
        return None

    def changed(self, values: Mapping[str, bytes | None]) -> Environment:
        """A copy in which each named variable has its new value (None deletes it); all other entries stay as and where they are.

        A variable that exists keeps its place, duplicates of it go, new ones are added at the end in the mapping's order.
        """
        wanted = {name.encode(): value for name, value in values.items()}
        pending = dict(wanted)
        kept: list[bytes] = []
        for entry in self.entries:
            name = entry.partition(b"=")[0]
            if name not in wanted:
                kept.append(entry)
            elif (value := pending.pop(name, None)) is not None:
                kept.append(name + b"=" + value)
        kept.extend(name + b"=" + value for name, value in pending.items() if value is not None)
        return Environment(tuple(kept))


@dataclass(frozen=True, slots=True)
class EnvCopy:
    """One valid copy. flag: 0 to 255, 0 in a single environment."""

    flag: int
    environment: Environment


def header_bytes(scheme: Scheme) -> int:
    """Bytes in front of the data: 4 in a single environment, 5 in a redundant one."""
    return _CRC_BYTES if scheme is Scheme.SINGLE else _CRC_BYTES + 1


def decode(raw: bytes, scheme: Scheme) -> EnvCopy:
    """One copy from the whole of its area. Raises StoreUnreadable when it is too short or its checksum is wrong."""
    header = header_bytes(scheme)
    if not header < len(raw) <= MAX_ENV_BYTES:
        raise StoreUnreadable(f"a U-Boot environment of {len(raw)} bytes cannot be valid")
    data = memoryview(raw)[header:]
    (stored,) = struct.unpack_from("<I", raw)
    if stored != zlib.crc32(data):
        raise StoreUnreadable("the U-Boot environment's checksum is wrong")
    flag = 0 if scheme is Scheme.SINGLE else raw[_CRC_BYTES]
    end = raw.find(b"\0\0", header)
    if raw[header] == 0:
        return EnvCopy(flag, Environment())
    # U-Boot reads data without a closing zero to its end; fw_printenv refuses it. What boots is what counts.
    body = raw[header:end] if end >= 0 else raw[header:].removesuffix(b"\0")
    return EnvCopy(flag, Environment(tuple(body.split(b"\0"))))


def encode(environment: Environment, size_bytes: int, scheme: Scheme, flag: int = 0) -> bytes:
    """The whole area of one copy. Raises ConfigError when the entries do not fit or could not be read back as they are."""
    header = header_bytes(scheme)
    if not header < size_bytes <= MAX_ENV_BYTES:
        raise ConfigError(f"a U-Boot environment of {size_bytes} bytes is not possible", f"sizes from {header + 1} to {MAX_ENV_BYTES} are")
    if any(not entry or b"\0" in entry for entry in environment.entries):
        raise ConfigError("a U-Boot variable cannot be empty or hold a zero byte")
    data = b"".join(entry + b"\0" for entry in environment.entries) + b"\0"
    room = size_bytes - header
    if len(data) > room:
        raise ConfigError(
            f"the U-Boot environment has no room: {len(data)} bytes of variables, {room} fit",
            "delete variables that nothing uses (fw_printenv shows them, fw_setenv NAME deletes one)",
        )
    data = data.ljust(room, b"\0")
    crc = struct.pack("<I", zlib.crc32(data))
    return crc + data if scheme is Scheme.SINGLE else crc + bytes((flag & 0xFF,)) + data


def choose(first: int, second: int, scheme: Scheme) -> int:
    """Index of the copy that counts when both are valid, from their flags: the larger, and of equal ones the first.

    Incremental: 0 is newer than 255, but only exactly these two wrap. Boolean: 255 (erased, flag never programmed) beats
    everything; two such: the first, as in U-Boot (libubootenv takes the second, but U-Boot decides what boots).
    """
    if scheme is Scheme.INCREMENTAL and {first, second} == {0, 0xFF}:
        return 0 if first == 0 else 1
    return 1 if second > first else 0


def next_flag(current: int, scheme: Scheme) -> int:
    """Flag that makes a new copy win over the one with the flag `current`."""
    return (current + 1) & 0xFF if scheme is Scheme.INCREMENTAL else _FLAG_ACTIVE


def rebuilt_flags() -> tuple[int, int]:
    """Flags of two copies that are written anew with the same content: the first counts, under either scheme."""
    return _FLAG_ACTIVE, _FLAG_OBSOLETE


def obsolete_byte() -> tuple[int, bytes]:
    """Boolean scheme: offset in a copy and the byte that marks it obsolete; it only clears bits, so flash needs no erase."""
    return _CRC_BYTES, bytes((_FLAG_OBSOLETE,))


def declaration(size_bytes: int, scheme: Scheme) -> Any:
    """The construct declaration of one copy of `size_bytes`: the specification, used by tests only (its import costs 50 ms)."""
    import construct as c

    entries = c.RepeatUntil(lambda item, _list, _context: item == b"", c.NullTerminated(c.GreedyBytes))
    room = size_bytes - header_bytes(scheme)
    flag = () if scheme is Scheme.SINGLE else ("flag" / c.Int8ul,)
    return c.Struct(
        "crc" / c.Int32ul,
        *flag,
        "data" / c.RawCopy(c.FixedSized(room, entries)),
        c.Check(lambda context: context.crc == zlib.crc32(context.data.data)),
    )
