"""What bundle.py, keyring.py, membership.py and order.py decode with `struct`, declared in construct: a specification that runs.

Tests hold the two against each other. Nothing that runs on a device imports this module: importing construct costs 40 ms. The
declarations say where the bytes are; the rules about their values (bounds, order, one encoding) are those of the modules' texts.
"""

from __future__ import annotations

from typing import Any

import construct as c


def _sequence(values: dict[int, Any]) -> Any:
    """A TLV sequence to the end of what holds it; a value is decoded by its tag, unknown ones stay bytes."""
    value = c.FixedSized(c.this.length, c.Switch(c.this.tag, values, default=c.GreedyBytes))
    return c.GreedyRange(c.Struct(tag=c.Int16ul, length=c.Int16ul, value=value))


def _records(length: Any, values: dict[int, Any]) -> Any:
    """A TLV sequence of `length` bytes."""
    return c.FixedSized(length, _sequence(values))


_UTF8 = c.GreedyString("utf8")
_SIGNATURE = c.Struct(public_key=c.Bytes(32), value=c.Bytes(64))

IMAGE_TAGS = {
    0x0001: _UTF8,
    0x0002: c.Enum(c.Int8ul, raw=0, file=1, tree=2, container=3, agent=4),
    0x0003: c.Enum(c.Int8ul, none=0, zstd=1),
    0x0004: c.Int64ul,
    0x0005: c.Int64ul,
    0x0006: c.Bytes(32),
    0x0007: c.Int64ul,
    0x0008: c.Bytes(32),
}
SEALING_TAGS = {
    0x0001: c.Const(1, c.Int8ul),
    0x0002: c.Bytes(32),
    0x0003: c.Bytes(32),
    0x0004: c.Struct(key_id=c.Bytes(8), wrapped_key=c.Bytes(48)),
}
MANIFEST_TAGS = {
    0x0001: c.Const(1, c.Int16ul),
    0x0002: _UTF8,
    0x0003: _UTF8,
    0x0004: _UTF8,
    0x0005: c.Int64ul,
    0x0006: _UTF8,
    0x0007: c.Int64ul,
    0x0008: _UTF8,
    0x0009: _UTF8,
    0x0020: _sequence(IMAGE_TAGS),
    0x0030: _sequence(SEALING_TAGS),
}
CHUNK = c.Struct(
    size=c.Int32ul,
    stored_size=c.Int32ul,
    flags=c.FlagsEnum(c.Int32ul, zero=1, raw=2),
    probe=c.Bytes(8),
    sha256=c.Bytes(32),
    stored_sha256=c.Bytes(32),
)
CHUNK_TABLE = c.Struct(
    count=c.Int32ul,
    flags=c.Const(0, c.Int32ul),
    groups=c.Const(0, c.Int32ul),
    patches=c.Const(0, c.Int32ul),
    chunks=c.Array(c.this.count, CHUNK),
)
BUNDLE_HEADER = c.Struct(
    magic=c.Const(b"\x89ABU\r\n\x1a\n"),
    version=c.Const(1, c.Int16ul),
    flags=c.Const(0, c.Int16ul),
    manifest_bytes=c.Int32ul,
    signatures_bytes=c.Int32ul,
    chain_bytes=c.Int32ul,
    tables_bytes=c.Int64ul,
    payload_bytes=c.Int64ul,
    total_bytes=c.Int64ul,
    envelope_sha256=c.Bytes(32),
    reserved=c.Const(bytes(16)),
)
BUNDLE_SIGNED = c.Struct(
    header=BUNDLE_HEADER,
    manifest=_records(c.this.header.manifest_bytes, MANIFEST_TAGS),
    signatures=_records(c.this.header.signatures_bytes, {0x0001: _SIGNATURE}),
    chain=c.Bytes(c.this.header.chain_bytes),
)

_ROLE_TAGS = {
    0x0001: c.Enum(c.Int8ul, root=1, release=2, security=3, admin=4),
    0x0002: c.Int8ul,
    0x0003: c.Struct(test=c.Flag, raw=c.Bytes(32)),
}
KEYRING = c.Struct(
    magic=c.Const(b"\x89ABK\r\n\x1a\n"),
    version=c.Const(1, c.Int16ul),
    flags=c.Const(0, c.Int16ul),
    body_bytes=c.Int32ul,
    signatures_bytes=c.Int32ul,
    signatures_sha256=c.Bytes(32),
    body=_records(c.this.body_bytes, {0x0001: c.Int32ul, 0x0002: _sequence(_ROLE_TAGS)}),
    signatures=_records(c.this.signatures_bytes, {0x0001: _SIGNATURE}),
)
CHAIN = c.GreedyRange(KEYRING)


def _signed_file(magic: bytes, body: Any) -> Any:
    """The files that people sign for a site (signedfile.py)."""
    return c.Struct(
        magic=c.Const(magic),
        version=c.Const(1, c.Int16ul),
        flags=c.Const(0, c.Int16ul),
        body_bytes=c.Int32ul,
        signatures_bytes=c.Int32ul,
        signatures_sha256=c.Bytes(32),
        body=_records(c.this.body_bytes, body),
        signatures=_records(c.this.signatures_bytes, {0x0001: _SIGNATURE}),
    )


MEMBERSHIP = _signed_file(
    b"\x89ABM\r\n\x1a\n",
    {
        0x0001: _UTF8,
        0x0002: c.Int16ul,
        0x0003: c.Bytes(32),
        0x0004: c.Int16ul,
        0x0005: c.Int16ul,
        0x0006: c.Int8ul,
        0x0007: c.Int8ul,
        0x0008: c.Int8ul,
        0x0009: c.Flag,
        0x000A: c.Int16ul,
        0x0010: _sequence({0x0001: _UTF8, 0x0002: c.Int8ul}),
        0x0020: _sequence({0x0001: c.Int8ul, 0x0002: c.Bytes(32), 0x0003: _UTF8, 0x0004: c.Flag, 0x0005: _UTF8}),
        0x0030: c.Int8ul,
        0x0031: c.Bytes(32),
        0x0032: c.Int8ul,
        0x0033: c.Int8ul,
        0x0034: c.Bytes(32),
        0x0040: _sequence({0x0001: c.Bytes(32), 0x0002: c.Int32ul, 0x0003: c.Struct(node=c.Int8ul, lease=c.Int32ul)}),
    },
)
ORDER = _signed_file(
    b"\x89ABO\r\n\x1a\n",
    {
        0x0001: c.Enum(c.Int8ul, UPDATE=1, CANCEL=2, PAUSE=3, RESUME=4, ROLLBACK=5, EVICT=6, LOST=7),
        0x0002: c.Bytes(32),
        0x0003: c.Int16ul,
        0x0004: c.Int32ul,
        0x0010: c.Bytes(32),
        0x0011: _UTF8,
        0x0012: c.Int64ul,
        0x0013: _UTF8,
        0x0014: _UTF8,
        0x0015: c.Int8ul,
        0x0016: c.Int8ul,
        0x0017: c.Int8ul,
        0x0018: c.Enum(c.Int8ul, HOLD=0, ROLLBACK=1),
        0x0019: c.Bytes(32),
        0x001A: _UTF8,
        0x001B: c.Int32ul,
        0x0020: c.Bytes(32),
        0x0021: _UTF8,
        0x0022: c.Int8ul,
        0x0023: c.Flag,
    },
)
