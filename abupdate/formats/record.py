"""The record in `state_dir`: a framed JSON document, decoded with struct because every start reads it.

Frame (big-endian): magic "ABUR" 4 | major 2 | reserved 2 (zero) | sequence 8 | length 4 | payload | CRC-32 4 of all before it.
The payload is one JSON object, at most 64 KiB. Within a major version fields are only added; unknown ones are kept in `extra`.
`frame_spec` in record_spec.py is the declaration; a test proves that both agree.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping

from abupdate.errors import Failed
from abupdate.model import Attempt, Phase, Record, SlotRecord, SlotState

MAGIC = b"ABUR"
MAJOR = 1
MAX_PAYLOAD_BYTES = 64 * 1024
_HEAD = struct.Struct(">4sHHQI")
_CRC = struct.Struct(">I")


class RecordDamaged(Failed):
    """A copy of the record that is not whole (torn, flipped bits, not a record)."""


class RecordUnknown(Failed):
    """A whole record that this program does not understand (another major version, or a value it does not know): treated as lost, kept.

    `floor` is the one field that every version writes and reads; 0 where it cannot be found.
    """

    def __init__(self, major: int, sequence: int, floor: int) -> None:
        super().__init__(f"record has format {major}", "a newer abupdate wrote it; it is kept beside the new one")
        self.major = major
        self.sequence = sequence
        self.floor = floor


def encode(record: Record, sequence: int) -> bytes:
    """Record -> framed bytes with this sequence number (0 to 2^64-1)."""
    body: dict[str, object] = dict(record.extra)
    body["floor"] = record.floor
    body["store"] = record.store
    body["slots"] = {name: _slot_out(slot) for name, slot in record.slots.items()}
    body["attempt"] = None if record.attempt is None else _attempt_out(record.attempt)
    payload = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise Failed(f"the record would take {len(payload)} bytes", "remove fields that a newer version left in it")
    head = _HEAD.pack(MAGIC, MAJOR, 0, sequence, len(payload))
    return head + payload + _CRC.pack(zlib.crc32(head + payload))


def decode(data: bytes) -> tuple[int, Record]:
    """Framed bytes -> (sequence, Record). Raises RecordDamaged, or RecordUnknown for what another version wrote."""
    if len(data) < _HEAD.size + _CRC.size:
        raise RecordDamaged("record is too short")
    magic, major, reserved, sequence, length = _HEAD.unpack_from(data)
    if magic != MAGIC or length > MAX_PAYLOAD_BYTES or len(data) != _HEAD.size + length + _CRC.size:
        raise RecordDamaged("record is not whole")
    if _CRC.unpack_from(data, len(data) - _CRC.size)[0] != zlib.crc32(data[: -_CRC.size]):
        raise RecordDamaged("record has a wrong checksum")
    if major != MAJOR or reserved != 0:
        raise RecordUnknown(major, sequence, _floor_of(data[_HEAD.size : -_CRC.size]))
    try:
        return sequence, _record_in(json.loads(data[_HEAD.size : -_CRC.size]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        # The checksum is right, so nothing is damaged: its floor still counts.
        raise RecordUnknown(major, sequence, _floor_of(data[_HEAD.size : -_CRC.size])) from error


def _floor_of(payload: bytes) -> int:
    try:
        body = json.loads(payload)
        return _count(body, "floor") if isinstance(body, dict) else 0
    except (ValueError, RecursionError):
        return 0


def _slot_out(slot: SlotRecord) -> dict[str, object]:
    body = {**slot.extra, "state": slot.state.value, "version": slot.version, "bundle": slot.bundle, "counter": slot.counter}
    return {**body, "verity": slot.verity} if slot.verity else body


def _attempt_out(attempt: Attempt) -> dict[str, object]:
    started: dict[str, object] = {"starts": attempt.starts, "started_in": attempt.started_in} if attempt.starts else {}
    return {
        **attempt.extra,
        **started,
        "slot": attempt.slot,
        "phase": attempt.phase.value,
        "boot_id": attempt.boot_id,
        "bundle": attempt.bundle,
        "version": attempt.version,
        "counter": attempt.counter,
        "previous": attempt.previous,
        "lease": attempt.lease,
        "reason": attempt.reason,
    }


def _text(body: Mapping[str, object], key: str) -> str:
    value = body.get(key, "")
    if not isinstance(value, str):
        raise ValueError(key)
    return value


def _count(body: Mapping[str, object], key: str) -> int:
    value = body.get(key, 0)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError(key)
    return value


def _extra(body: Mapping[str, object], known: tuple[str, ...]) -> dict[str, object]:
    return {key: value for key, value in body.items() if key not in known}


def _record_in(body: object) -> Record:
    if not isinstance(body, dict) or not isinstance(body.get("slots", {}), dict):
        raise ValueError("not an object")
    slots = {name: _slot_in(slot) for name, slot in body.get("slots", {}).items()}
    attempt = body.get("attempt")
    return Record(
        floor=_count(body, "floor"),
        slots=slots,
        attempt=None if attempt is None else _attempt_in(attempt),
        store=_text(body, "store"),
        extra=_extra(body, ("floor", "slots", "attempt", "store")),
    )


def _slot_in(body: object) -> SlotRecord:
    if not isinstance(body, dict):
        raise ValueError("slot")
    known = ("state", "version", "bundle", "counter", "verity")
    return SlotRecord(
        SlotState(body["state"]),
        _text(body, "version"),
        _text(body, "bundle"),
        _count(body, "counter"),
        _extra(body, known),
        _text(body, "verity"),
    )


def _attempt_in(body: object) -> Attempt:
    if not isinstance(body, dict):
        raise ValueError("attempt")
    known = ("slot", "phase", "boot_id", "bundle", "version", "counter", "previous", "lease", "reason", "starts", "started_in")
    lease = body.get("lease")
    if lease is not None and type(lease) is not int:
        raise ValueError("lease")
    return Attempt(
        slot=_text(body, "slot"),
        phase=Phase(body["phase"]),
        boot_id=_text(body, "boot_id"),
        bundle=_text(body, "bundle"),
        version=_text(body, "version"),
        counter=_count(body, "counter"),
        previous=_text(body, "previous"),
        lease=lease,
        reason=_text(body, "reason"),
        extra=_extra(body, known),
        starts=_count(body, "starts"),
        started_in=_text(body, "started_in"),
    )
