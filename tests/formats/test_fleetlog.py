"""The file of the fleet's log: its declaration, its exact bytes, and what `read` makes of everything that is not whole."""

from __future__ import annotations

import struct
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abupdate.errors import ConfigError
from abupdate.formats import fleetlog
from abupdate.formats.fleetlog import Fault, Head
from abupdate.formats.fleetlog_spec import log_spec

HEAD = Head(bytes(range(32)), b"n" * 16)
Batch = list[tuple[int, bytes]]
batches = st.lists(st.lists(st.tuples(st.integers(1, 255), st.binary(max_size=300)), min_size=1, max_size=4), max_size=4)


def built(calls: list[Batch], head: Head = HEAD) -> tuple[bytes, list[int]]:
    """A file after these calls of append, and its length after each, the head first."""
    data, end = fleetlog.start(head)
    lengths = [len(data)]
    for records in calls:
        added, end = fleetlog.batch(end, records)
        data += added
        lengths.append(len(data))
    return data, lengths


def test_the_exact_bytes() -> None:
    data, _ = built([[(2, b"vote")]], Head(b"o" * 32, b"n" * 16, 1, Fault.LOST))
    head = b"ABUFLOG\0" + bytes.fromhex("0001 01 00 00000001") + b"n" * 16 + b"o" * 32 + bytes(4)
    seed = zlib.crc32(head)
    record = b"ABFR" + bytes.fromhex("00000004 02 00000001 00000001") + struct.pack(">I", seed) + b"vote"
    assert data == head + struct.pack(">I", seed) + record + struct.pack(">I", zlib.crc32(record, seed))


@given(batches)
def test_the_declaration_and_the_decoder_agree(calls: list[Batch]) -> None:
    data, _ = built(calls)
    parsed = log_spec.parse(data)
    contents = fleetlog.read(data)
    flat = tuple(record for records in calls for record in records)
    assert contents.records == flat == tuple((one.kind, one.data) for one in parsed.records)
    assert (contents.head, contents.whole_bytes, contents.damaged) == (HEAD, len(data), False)
    assert [one.sequence for one in parsed.records] == list(range(1, len(flat) + 1))
    assert contents.end.crc == (parsed.records[-1].crc if flat else parsed.seed)


@given(batches, st.data())
@settings(max_examples=200)
def test_a_torn_last_call_is_never_damage_and_damage_before_it_always_is(calls: list[Batch], data: st.DataObject) -> None:
    """A torn call leaves any of its bytes, zeros in place of the others."""
    calls = [*calls, [(1, b"last call"), (2, b""), (3, b"x" * 40)]]
    whole, lengths = built(calls)
    mask = data.draw(st.integers(0, (1 << 16) - 1))
    tail = whole[lengths[-2] :]
    size = -(-len(tail) // 16)
    torn = b"".join(
        tail[at : at + size] if mask >> number & 1 else bytes(len(tail[at : at + size]))
        for number, at in enumerate(range(0, len(tail), size))
    )
    torn = torn[: data.draw(st.integers(0, len(torn)))]
    contents = fleetlog.read(whole[: lengths[-2]] + torn)
    before = tuple(record for records in calls[:-1] for record in records)
    assert not contents.damaged
    assert contents.records[: len(before)] == before
    assert contents.records == (*before, *calls[-1])[: len(contents.records)]
    at = data.draw(st.integers(0, lengths[-2] - 1))
    spoiled = bytearray(whole)
    spoiled[at] ^= data.draw(st.integers(1, 255))
    assert fleetlog.read(bytes(spoiled)).damaged


def test_damage_to_the_last_call_alone_looks_like_a_torn_one() -> None:
    """As the documentation says: nothing in the file can tell."""
    whole, lengths = built([[(1, b"a")], [(2, b"b"), (3, b"c")]])
    spoiled = whole[: lengths[1] + 21] + b"?" + whole[lengths[1] + 22 :]
    contents = fleetlog.read(spoiled)
    assert (contents.records, contents.damaged, contents.whole_bytes) == (((1, b"a"),), False, lengths[1])


def test_what_is_left_of_another_write_in_the_same_place_does_not_count() -> None:
    """Two calls that were both cut: the second wrote over the first one's beginning."""
    first, lengths = built([[(1, b"a")], [(2, b"old"), (3, b"left over")]])
    second, _ = built([[(1, b"a")], [(2, b"new")]])
    assert len(second) - lengths[1] == fleetlog.RECORD.size + len(b"new") + fleetlog.CRC.size
    contents = fleetlog.read(second + first[len(second) :])
    assert (contents.records, contents.damaged, contents.whole_bytes) == (((1, b"a"), (2, b"new")), False, len(second))


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_founding_record_is_never_torn(missing: int) -> None:
    whole, _ = built([[(1, b"a"), (2, b"b"), (3, b"c")]], Head(HEAD.owner, HEAD.nonce, 3))
    assert not fleetlog.read(whole).damaged
    record = fleetlog.RECORD.size + fleetlog.CRC.size + 1
    contents = fleetlog.read(whole[: -missing * record])
    assert contents.damaged
    assert len(contents.records) == 3 - missing


def test_records_that_a_peer_put_into_its_data_are_no_sign_of_damage() -> None:
    """Who guesses everything but the nonce writes records with another file's checksum."""
    forged, _ = built([[(1, b"x")]] * 60, Head(HEAD.owner, b"guess" * 3 + b"!"))
    whole, lengths = built([[(1, b"a")], [(6, forged[fleetlog.HEAD_BYTES :])]])
    for at in range(lengths[1], len(whole), 13):
        contents = fleetlog.read(whole[:at])
        assert (contents.records, contents.damaged) == (((1, b"a"),), False)


def test_marks_without_end_cost_no_time_to_speak_of() -> None:
    whole, _ = built([[(6, (fleetlog.MARK + struct.pack(">I", 30_000) + b"\1" + b"\0\0\1\0" * 2) * 3000)], [(1, b"")]])
    spoiled = whole[:80] + b"!" + whole[81:]
    started = time.thread_time()
    assert fleetlog.read(spoiled).damaged
    assert time.thread_time() - started < 2


@pytest.mark.parametrize(
    ("at", "value"), [(9, 2), (8, 1), (10, 4), (11, 1), (67, 1)], ids=["version", "version 257", "fault", "reserved", "zeros"]
)
def test_what_another_version_wrote_is_told_from_damage(at: int, value: int) -> None:
    whole, _ = built([[(1, b"a")]])
    head = bytearray(whole[: fleetlog.HEAD.size])
    head[at] = value
    assert fleetlog.read(bytes(head) + whole[fleetlog.HEAD.size :]).damaged
    with pytest.raises(ConfigError, match="version"):
        fleetlog.read(bytes(head) + struct.pack(">I", zlib.crc32(head)) + whole[fleetlog.HEAD_BYTES :])


@pytest.mark.parametrize(("kind", "size"), [(0, 0), (256, 0), (-1, 0), (1, fleetlog.MAX_DATA_BYTES + 1)])
def test_what_is_out_of_bounds_is_not_encoded(kind: int, size: int) -> None:
    with pytest.raises(ValueError, match="record"):
        built([[(kind, bytes(size))]])


@pytest.mark.parametrize("head", [Head(bytes(31), bytes(16)), Head(bytes(32), bytes(15))])
def test_a_head_with_a_short_key_or_nonce_is_not_encoded(head: Head) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        fleetlog.start(head)
