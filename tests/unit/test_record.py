"""The record's frame and document: round trips, damage, other versions, and the declaration that is its specification."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace

import construct
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abupdate.errors import Failed
from abupdate.formats.record import MAJOR, MAX_PAYLOAD_BYTES, RecordDamaged, RecordUnknown, decode, encode
from abupdate.formats.record_spec import frame_spec
from abupdate.model import Attempt, Phase, Record, SlotRecord, SlotState

texts = st.text(max_size=20)
counts = st.integers(0, (1 << 64) - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=5
)
extras = st.dictionaries(texts.map(lambda name: "x-" + name), json_values, max_size=3)
slot_records = st.builds(SlotRecord, st.sampled_from(SlotState), texts, texts, counts, extras)
attempts = st.builds(
    Attempt,
    slot=texts,
    phase=st.sampled_from(Phase),
    boot_id=texts,
    bundle=texts,
    version=texts,
    counter=counts,
    previous=texts,
    lease=st.none() | st.integers(),
    reason=texts,
    extra=extras,
)
records = st.builds(Record, counts, st.dictionaries(texts, slot_records, max_size=3), st.none() | attempts, texts, extras)

SAMPLE = Record(
    floor=7,
    slots={"A": SlotRecord(SlotState.CONFIRMED, "1.0", "aa" * 32, 7), "B": SlotRecord(SlotState.TRIAL, "2.0", "bb" * 32, 8)},
    attempt=Attempt("B", Phase.ARMED, "boot", "bb" * 32, "2.0", 8, "A", 3, "because"),
    store="uboot:/dev/x@0x0+0x4000",
)


def framed(payload: bytes, *, major: int = MAJOR, reserved: int = 0, sequence: int = 5, length: int | None = None) -> bytes:
    """A frame with a right checksum around anything."""
    head = struct.pack(">4sHHQI", b"ABUR", major, reserved, sequence, len(payload) if length is None else length)
    return head + payload + struct.pack(">I", zlib.crc32(head + payload))


@given(records, counts)
def test_what_is_encoded_decodes_to_the_same(record: Record, sequence: int) -> None:
    assert decode(encode(record, sequence)) == (sequence, record)


@given(records, counts)
def test_the_declaration_reads_and_builds_the_same_bytes(record: Record, sequence: int) -> None:
    data = encode(record, sequence)
    parsed = frame_spec.parse(data)
    fields = parsed.body.value
    assert (fields.major, fields.reserved, fields.sequence, fields.length) == (MAJOR, 0, sequence, len(fields.payload))
    assert json.loads(fields.payload)["floor"] == record.floor
    assert frame_spec.build({"body": {"value": dict(fields)}}) == data


def understood(data: bytes) -> tuple[str, int]:
    """What the decoder makes of the bytes, and the major version that it saw."""
    try:
        decode(data)
    except RecordUnknown as unknown:
        return "unknown", unknown.major
    except RecordDamaged:
        return "damaged", -1
    return "whole", MAJOR


@given(st.binary(max_size=80) | st.builds(framed, st.binary(max_size=40), major=st.integers(0, 3), length=st.integers(0, 60) | st.none()))
def test_the_declaration_and_the_decoder_accept_the_same_frames(data: bytes) -> None:
    try:
        parsed = frame_spec.parse(data)
    except construct.ConstructError:
        assert understood(data)[0] == "damaged"
    else:
        assert understood(data) in (("whole", MAJOR), ("unknown", parsed.body.value.major))


@given(st.integers(1, 0xFFFF))
def test_reserved_bits_are_for_a_later_format(reserved: int) -> None:
    assert understood(framed(b'{"floor":3}', reserved=reserved)) == ("unknown", MAJOR)


def test_every_flipped_byte_is_damage() -> None:
    data = encode(SAMPLE, 9)
    for position in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            spoiled = bytearray(data)
            spoiled[position] ^= flip
            with pytest.raises(RecordDamaged):
                decode(bytes(spoiled))


def test_every_truncation_and_any_tail_is_damage() -> None:
    data = encode(SAMPLE, 9)
    for length in range(len(data)):
        with pytest.raises(RecordDamaged):
            decode(data[:length])
    for tail in (b"\0", data):
        with pytest.raises(RecordDamaged):
            decode(data + tail)


def test_a_length_beyond_the_bound_is_damage_whatever_follows() -> None:
    with pytest.raises(RecordDamaged):
        decode(framed(b" " * (MAX_PAYLOAD_BYTES + 1)))
    with pytest.raises(RecordDamaged):
        decode(framed(b"{}", length=0xFFFFFFFF))


@given(st.integers(0, 0xFFFF).filter(lambda major: major != MAJOR), counts, counts)
def test_another_major_version_is_unknown_and_its_floor_is_read(major: int, sequence: int, floor: int) -> None:
    payload = json.dumps({"floor": floor, "slots": "of another shape", "attempt": [1, 2]}).encode()
    with pytest.raises(RecordUnknown) as caught:
        decode(framed(payload, major=major, sequence=sequence))
    assert (caught.value.major, caught.value.sequence, caught.value.floor) == (major, sequence, floor)


@pytest.mark.parametrize("payload", [b"", b"\xff\xfe", b"[]", b'{"floor": -1}', b'{"floor": "9"}', b'{"floor": true}', b"[" * 40000, b"{}"])
def test_a_floor_that_cannot_be_found_is_0(payload: bytes) -> None:
    with pytest.raises(RecordUnknown) as caught:
        decode(framed(payload, major=2))
    assert caught.value.floor == 0


NOT_OURS = [
    {"floor": 4, "slots": []},
    {"floor": 4, "slots": {"A": 3}},
    {"floor": 4, "slots": {"A": {}}},
    {"floor": 4, "slots": {"A": {"state": "half-done"}}},
    {"floor": 4, "slots": {"A": {"state": ["empty"]}}},
    {"floor": 4, "attempt": {"slot": "A", "phase": "postponed"}},
    {"floor": 4, "attempt": {"slot": "A"}},
    {"floor": 4, "attempt": {"slot": "A", "phase": "armed", "lease": "x"}},
    {"floor": 4, "attempt": {"slot": "A", "phase": "armed", "counter": -1}},
    {"floor": 4, "store": 5},
]


@pytest.mark.parametrize("body", NOT_OURS, ids=str)
def test_a_whole_record_that_is_not_understood_is_kept_and_its_floor_counts(body: object) -> None:
    """Its checksum is right, so it is no damage: another version wrote it."""
    with pytest.raises(RecordUnknown) as caught:
        decode(framed(json.dumps(body).encode()))
    assert caught.value.floor == 4


@settings(max_examples=300)
@given(st.builds(framed, st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()), major=st.integers(0, 2)))
def test_any_payload_gives_a_record_or_one_of_our_errors(data: bytes) -> None:
    try:
        sequence, record = decode(data)
    except (RecordDamaged, RecordUnknown):
        return
    assert decode(encode(record, sequence)) == (sequence, record)


def test_unknown_fields_survive_a_rewrite_everywhere() -> None:
    body = json.loads(encode(SAMPLE, 1)[20:-4])
    body["cohort"] = {"ring": 2}
    body["slots"]["B"]["origin"] = ["peer", 4]
    body["slots"]["C"] = {"state": "bad", "why": "worn out"}
    body["attempt"]["started"] = 12.5
    _, record = decode(framed(json.dumps(body).encode()))
    assert record.attempt is not None
    changed = replace(record, floor=9, attempt=replace(record.attempt, phase=Phase.CONFIRMED))
    after = json.loads(encode(changed, 2)[20:-4])
    assert after["cohort"] == {"ring": 2}
    assert after["slots"]["B"]["origin"] == ["peer", 4]
    assert after["slots"]["C"]["why"] == "worn out"
    assert after["attempt"]["started"] == 12.5
    assert (after["floor"], after["attempt"]["phase"]) == (9, "confirmed")


def test_fields_that_are_missing_have_defaults() -> None:
    assert decode(framed(b"{}")) == (5, Record())
    assert decode(framed(b'{"slots": {"A": {"state": "empty"}}}'))[1].slots == {"A": SlotRecord(SlotState.EMPTY)}


def test_a_record_that_is_too_large_is_refused_before_it_is_written() -> None:
    with pytest.raises(Failed, match="bytes"):
        encode(replace(SAMPLE, extra={"x": "y" * MAX_PAYLOAD_BYTES}), 1)
