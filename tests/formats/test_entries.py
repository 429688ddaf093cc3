"""Entries of the log: round trips, every bound from both sides, hostile bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats import entries
from abupdate.formats.entries import (
    Ending,
    Entry,
    GrantEntry,
    HaltEntry,
    Kind,
    LostEntry,
    OrderEntry,
    PlanEntry,
    ReconfigEntry,
    Release,
    ReleaseEntry,
    ReturnEntry,
)
from tests.formats import fleetvalues

HASH = bytes(range(32))


def release(lease: int, node: int, fact: bytes = HASH) -> Release:
    return Release(lease, node, Ending.COMPLETE, fact)


@settings(max_examples=300)
@given(fleetvalues.ENTRIES)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    data = entries.pack(entry)
    assert entries.parse(data) == entry
    assert len(data) <= entries.MAX_ENTRY_BYTES
    assert entries.digest(data) == hashlib.sha256(data).digest()


@settings(max_examples=300)
@given(st.binary(max_size=80) | st.builds(lambda kind, body: bytes([kind]) + body, st.integers(1, 8), st.binary(max_size=120)))
def test_whatever_is_taken_is_the_one_encoding(data: bytes) -> None:
    try:
        entry = entries.parse(data)
    except Refused:
        return
    assert entries.pack(entry) == data


@given(fleetvalues.ENTRIES, st.data())
def test_a_changed_entry_is_refused_or_another_entry(entry: Entry, data: st.DataObject) -> None:
    changed = bytearray(entries.pack(entry))
    at = data.draw(st.integers(0, len(changed)))
    changed[at : at + data.draw(st.integers(0, 1))] = data.draw(st.binary(max_size=2))
    try:
        other = entries.parse(bytes(changed))
    except Refused:
        return
    assert entries.pack(other) == changed
    assert (other == entry) == (bytes(changed) == entries.pack(entry))


def test_the_bytes_are_those_of_the_page() -> None:
    """Written out by hand from the module's text."""
    assert entries.pack(OrderEntry(HASH)) == b"\1" + HASH
    assert entries.pack(PlanEntry(HASH, frozenset({0, 9, 254}))) == b"\2" + HASH + b"\1\2" + bytes(29) + b"\x40"
    assert entries.pack(GrantEntry(HASH, ((3, 1), (200, 2)))) == b"\3" + HASH + b"\3\1\xc8\2"
    assert entries.pack(ReleaseEntry((Release(258, 7, Ending.DEFER, HASH),))) == b"\4\0\0\1\2\7\3" + HASH
    assert entries.pack(LostEntry(HASH)) == b"\5" + HASH
    assert entries.pack(ReturnEntry((Release(1, 0, Ending.ROLLED_BACK, HASH),))) == b"\6\0\0\0\1\0\2" + HASH
    assert entries.pack(HaltEntry(HASH, 0x01020304, frozenset({1}))) == b"\7" + HASH + b"\1\2\3\4\2" + bytes(31)
    assert entries.pack(ReconfigEntry(HASH)) == b"\x08" + HASH


BROKEN: Mapping[str, Entry] = {
    "order of 31 bytes": OrderEntry(HASH[:31]),
    "order of 33 bytes": OrderEntry(HASH + b"x"),
    "approver 255": PlanEntry(HASH, frozenset({255})),
    "approver -1": PlanEntry(HASH, frozenset({-1})),
    "approver 300": PlanEntry(HASH, frozenset({300})),
    "plan of 31 bytes": PlanEntry(HASH[:31], frozenset()),
    "no grant": GrantEntry(HASH, ()),
    "grants not in order": GrantEntry(HASH, ((2, 1), (1, 1))),
    "a node granted twice": GrantEntry(HASH, ((1, 1), (1, 2))),
    "node 255": GrantEntry(HASH, ((255, 1),)),
    "attempt 0": GrantEntry(HASH, ((1, 0),)),
    "attempt 256": GrantEntry(HASH, ((1, 256),)),
    "grant of a plan of 30 bytes": GrantEntry(HASH[:30], ((1, 1), (2, 1))),
    "no release": ReleaseEntry(()),
    "lease 0": ReleaseEntry((release(0, 1),)),
    "lease 2^32": ReleaseEntry((release(2**32, 1),)),
    "released node 255": ReleaseEntry((release(1, 255),)),
    "fact of 31 bytes": ReleaseEntry((release(1, 1, HASH[:31]),)),
    "fact of 33 bytes": ReleaseEntry((release(1, 1, HASH + b"x"),)),
    "leases not in order": ReleaseEntry((release(2, 1), release(1, 2))),
    "nodes of a lease not in order": ReturnEntry((release(1, 2), release(1, 1))),
    "a release twice": ReleaseEntry((release(1, 1), release(1, 1))),
    "two leases of one node": ReleaseEntry((release(1, 1), release(2, 1))),
    "54 releases": ReleaseEntry(tuple(release(1, node) for node in range(54))),
    "halt of lease 0": HaltEntry(HASH, 0, frozenset({1})),
    "halt by node 255": HaltEntry(HASH, 1, frozenset({255})),
    "halt of a plan of 31 bytes": HaltEntry(HASH[:31], 1, frozenset({1})),
    "membership of no byte": ReconfigEntry(b""),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_a_rule_is_not_written(what: str) -> None:
    with pytest.raises(ValueError, match=f"there is no such {type(BROKEN[what]).__name__}"):
        entries.pack(BROKEN[what])


HOSTILE: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", "has 0 bytes"),
    "2049 bytes": (b"\3" + HASH + bytes(2016), "has 2049 bytes"),
    "kind 0": (b"\0" + HASH, "unknown kind 0"),
    "kind 9": (b"\x09" + HASH, "unknown kind 9"),
    "kind alone": (b"\1", "ORDER of the log has 0 bytes"),
    "an order that goes on": (b"\1" + HASH + b"x", "ORDER of the log has 33 bytes"),
    "half a bitmap": (b"\2" + HASH + bytes(16), "PLAN of the log has 48 bytes"),
    "approver 255": (b"\2" + HASH + bytes(31) + b"\x80", "PLAN of the log names node 255"),
    "half a grant": (b"\3" + HASH + b"\1\1\2", "GRANT of the log has 35 bytes"),
    "no grant": (b"\3" + HASH, "GRANT of the log has 32 bytes"),
    "grants not in order": (b"\3" + HASH + b"\2\1\1\1", "not in strictly ascending order"),
    "node 255": (b"\3" + HASH + b"\xff\1", "names node 255"),
    "attempt 0": (b"\3" + HASH + b"\1\0", "the attempt 0"),
    "half a release": (b"\4" + bytes(37), "RELEASE of the log has 37 bytes"),
    "ending 0": (b"\4\0\0\0\1\1\0" + HASH, "the ending 0"),
    "ending 4": (b"\6\0\0\0\1\1\4" + HASH, "RETURN of the log names the lease 1, node 1 and the ending 4"),
    "lease 0": (b"\4\0\0\0\0\1\1" + HASH, "the lease 0"),
    "releases not in order": (b"\4\0\0\0\2\1\1" + HASH + b"\0\0\0\1\2\1" + HASH, "not in strictly ascending order"),
    "a node twice": (b"\4\0\0\0\1\1\1" + HASH + b"\0\0\0\2\1\1" + HASH, "names a node twice"),
    "halt of lease 0": (b"\7" + HASH + bytes(36), "the lease 0"),
    "halt by node 255": (b"\7" + HASH + b"\0\0\0\1" + bytes(31) + b"\x80", "HALT of the log names node 255"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_breaks_a_rule_is_refused_in_one_line(what: str) -> None:
    data, why = HOSTILE[what]
    with pytest.raises(Refused, match=why) as refused:
        entries.parse(data)
    assert "\n" not in refused.value.message


def test_the_longest_entries_are_taken() -> None:
    """53 releases are the most; more leases than a site's budgets ever let go at once."""
    for entry in (
        ReleaseEntry(tuple(release(2**32 - 1, node) for node in range(202, 255))),
        GrantEntry(HASH, tuple((node, 255) for node in range(255))),
        PlanEntry(HASH, frozenset(range(255))),
    ):
        assert entries.parse(entries.pack(entry)) == entry


def test_only_kinds_that_name_many_things_have_more_than_one_length() -> None:
    lengths: dict[Kind, int] = dict.fromkeys(Kind, 0)
    for kind in Kind:
        for length in range(201):
            body = bytes(range(1, length + 1))
            try:
                entries.parse(bytes([kind]) + body)
            except Refused as refused:
                lengths[kind] += "none of its lengths" not in refused.message
            else:
                lengths[kind] += 1
    assert {kind for kind, count in lengths.items() if count > 1} == {Kind.GRANT, Kind.RELEASE, Kind.RETURN}
    assert all(lengths.values())
