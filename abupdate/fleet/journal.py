"""What the core writes to its log and reads back at a start: encodings of the records' payloads (events.RecordKind). Pure.

    BOOT      boot counter u32
    VOTE      a PROPOSAL, PREVOTE or PRECOMMIT of this node, its frame
    LOCK      height u32 | round u16 | entry
    DECIDED   certificate
    FACT      a COMPLETE, ROLLED_BACK or DEFER of this node, its frame
    OBJECT    thing u8 | bytes (orders and memberships)
    SNAPSHOT  epoch u16 | hash of the height before 32 | length of the certificate u16 | certificate | state
    STOPPED   why this node never votes again, UTF-8
    LEAVING   lease u32: this node was about to go down under it
    OPINION   order 32 | 1 approve, 0 reject | reason, UTF-8

Numbers are big-endian. Peers hand a snapshot to a node that is too far behind, too: its certificate shows Q signatures over the state.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from abupdate.errors import Refused
from abupdate.fleet import state as state_format
from abupdate.fleet.state import State
from abupdate.formats import certificate
from abupdate.formats.certificate import Certificate

_NUMBER = struct.Struct(">I")
_LOCK = struct.Struct(">IH")
_SNAPSHOT = struct.Struct(">H32sH")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state that Q voters have signed. epoch: whose voters. before: the voted hash of the height before."""

    epoch: int
    before: bytes
    certificate: Certificate
    state: State


def number(value: int) -> bytes:
    """BOOT and LEAVING."""
    return _NUMBER.pack(value)


def read_number(data: bytes) -> int:
    """BOOT and LEAVING. Raises Refused."""
    if len(data) != _NUMBER.size:
        raise Refused("the record is not a number")
    return int(_NUMBER.unpack(data)[0])


def lock(height: int, round_: int, entry: bytes) -> bytes:
    """LOCK."""
    return _LOCK.pack(height, round_) + entry


def read_lock(data: bytes) -> tuple[int, int, bytes]:
    """LOCK: height, round, entry. Raises Refused."""
    if len(data) <= _LOCK.size:
        raise Refused("the record is not a lock")
    height, round_ = _LOCK.unpack_from(data)
    return height, round_, data[_LOCK.size :]


def snapshot(one: Snapshot) -> bytes:
    """SNAPSHOT."""
    packed = certificate.pack(one.certificate)
    return _SNAPSHOT.pack(one.epoch, one.before, len(packed)) + packed + state_format.encode(one.state)


def read_snapshot(data: bytes) -> Snapshot:
    """SNAPSHOT. Verifies no signature. Raises Refused."""
    if len(data) < _SNAPSHOT.size:
        raise Refused("the snapshot is cut off")
    epoch, before, length = _SNAPSHOT.unpack_from(data)
    rest = data[_SNAPSHOT.size :]
    if len(rest) < length:
        raise Refused("the snapshot is cut off")
    return Snapshot(epoch, before, certificate.parse(rest[:length]), state_format.decode(rest[length:]))


def opinion(order: bytes, *, approve: bool, reason: str) -> bytes:
    """OPINION."""
    return order + bytes([approve]) + reason.encode()


def read_opinion(data: bytes) -> tuple[bytes, bool, str]:
    """OPINION: order, approve, reason. Raises Refused."""
    if len(data) < 33:
        raise Refused("the record is not an opinion")
    return data[:32], bool(data[32]), data[33:].decode(errors="replace")
