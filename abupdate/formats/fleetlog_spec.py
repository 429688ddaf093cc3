"""Declaration of the fleet's log (the specification); fleetlog.py decodes the same bytes with struct.

The records' checksums start from the head's, their chain runs from one to the next: both are left to fleetlog.py.
"""

from __future__ import annotations

import zlib

from construct import Bytes, Checksum, Const, GreedyRange, Int8ub, Int16ub, Int32ub, RawCopy, Struct, Terminated, this

record_spec = Struct(
    "mark" / Const(b"ABFR"),
    "length" / Int32ub,
    "kind" / Int8ub,
    "sequence" / Int32ub,
    "first" / Int32ub,
    "before" / Int32ub,
    "data" / Bytes(this.length),
    "crc" / Int32ub,
)

log_spec = Struct(
    "head"
    / RawCopy(
        Struct(
            "magic" / Const(b"ABUFLOG\0"),
            "version" / Const(1, Int16ub),
            "fault" / Int8ub,
            "reserved" / Const(0, Int8ub),
            "founding" / Int32ub,
            "nonce" / Bytes(16),
            "owner" / Bytes(32),
            "zeros" / Const(bytes(4)),
        )
    ),
    "seed" / Checksum(Int32ub, zlib.crc32, this.head.data),
    "records" / GreedyRange(record_spec),
    Terminated,
)
