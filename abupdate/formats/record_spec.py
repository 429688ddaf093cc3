"""Declaration of the record's frame (the specification); record.py decodes the same bytes with struct."""

from __future__ import annotations

import zlib

from construct import Bytes, Checksum, Const, Int16ub, Int32ub, Int64ub, RawCopy, Struct, Terminated, this

frame_spec = Struct(
    "body"
    / RawCopy(
        Struct(
            "magic" / Const(b"ABUR"),
            "major" / Int16ub,
            "reserved" / Const(0, Int16ub),
            "sequence" / Int64ub,
            "length" / Int32ub,
            "payload" / Bytes(this.length),
        )
    ),
    "crc" / Checksum(Int32ub, zlib.crc32, this.body.data),
    Terminated,
)
