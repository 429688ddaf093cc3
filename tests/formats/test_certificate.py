"""Certificates and evidence: round trips, every bound from both sides, hostile bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats import certificate, evidence, frame
from abupdate.formats.certificate import Certificate
from abupdate.formats.evidence import Evidence
from abupdate.formats.messages import EVERYBODY, Frame, Overdue, Type, Vote
from tests.formats import fleetvalues

HASH = bytes(range(32))
SIGNATURE = bytes(64)
GOOD = Certificate(7, 2, b"entry", HASH, ((1, SIGNATURE), (4, SIGNATURE)))


@settings(max_examples=200)
@given(fleetvalues.certificates)
def test_a_certificate_is_read_as_it_was_written(one: Certificate) -> None:
    data = certificate.pack(one)
    assert certificate.parse(data) == one
    assert len(data) <= frame.MAX_OBJECT_BYTES


def test_the_bytes_of_a_certificate_are_those_of_the_page() -> None:
    votes = b"\1" + SIGNATURE + b"\4" + SIGNATURE
    assert certificate.pack(GOOD) == b"\0\0\0\7\0\2" + HASH + b"\0\5entry\2" + votes


@given(st.binary(max_size=300) | st.builds(lambda rest: certificate.pack(GOOD)[:46] + rest, st.binary(max_size=200)))
def test_whatever_certificate_is_taken_is_the_one_encoding(data: bytes) -> None:
    try:
        one = certificate.parse(data)
    except Refused:
        return
    assert certificate.pack(one) == data


def test_the_largest_certificate_fits_into_an_object() -> None:
    one = Certificate(2**32 - 1, 2**15 - 1, bytes(2048), HASH, tuple((239 + number, SIGNATURE) for number in range(16)))
    assert certificate.parse(certificate.pack(one)) == one
    assert len(certificate.pack(one)) < frame.MAX_OBJECT_BYTES


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"height": 2**32},
        {"round": 2**15},
        {"round": -1},
        {"entry": b""},
        {"entry": bytes(2049)},
        {"entry": bytes(2**16)},
        {"state": HASH[:31]},
        {"state": HASH + b"x"},
        {"signatures": ()},
        {"signatures": tuple((number, SIGNATURE) for number in range(17))},
        {"signatures": ((1, SIGNATURE), (1, SIGNATURE))},
        {"signatures": ((2, SIGNATURE), (1, SIGNATURE))},
        {"signatures": ((255, SIGNATURE),)},
        {"signatures": ((1, SIGNATURE[:63]),)},
        {"signatures": ((1, SIGNATURE + b"x"),)},
    ],
)
def test_a_certificate_that_breaks_a_rule_is_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="there is no such certificate"):
        certificate.pack(replace(GOOD, **change))


HEAD = b"\0\0\0\7\0\2" + HASH
VOTE = b"\1" + SIGNATURE
BROKEN: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", "cut off"),
    "half a head": (HEAD[:20], "cut off"),
    "no entry": (HEAD + b"\0\0\1" + VOTE, "an entry of 0 bytes"),
    "a long entry": (HEAD + b"\x08\1" + bytes(2049) + b"\1" + VOTE, "an entry of 2049 bytes"),
    "an entry that ends the file": (HEAD + b"\0\5entry", "cut off"),
    "an entry longer than the file": (HEAD + b"\0\6entry", "cut off"),
    "no votes": (HEAD + b"\0\5entry\0", "0 votes"),
    "17 votes": (HEAD + b"\0\5entry\x11" + b"".join(bytes([number]) + SIGNATURE for number in range(17)), "17 votes"),
    "fewer votes than it says": (HEAD + b"\0\5entry\2" + VOTE, "instead of"),
    "more votes than it says": (HEAD + b"\0\5entry\1" + VOTE * 2, "instead of"),
    "a vote twice": (HEAD + b"\0\5entry\2" + VOTE * 2, "ascending order"),
    "a vote of node 255": (HEAD + b"\0\5entry\1\xff" + SIGNATURE, "no node"),
    "height 0": (bytes(6) + HASH + b"\0\5entry\1" + VOTE, "of height 0"),
    "round 2^15": (b"\0\0\0\1\x80\0" + HASH + b"\0\5entry\1" + VOTE, "round 32768"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_certificate_that_breaks_a_rule_is_refused_in_one_line(what: str) -> None:
    data, why = BROKEN[what]
    with pytest.raises(Refused, match=why) as refused:
        certificate.parse(data)
    assert "\n" not in refused.value.message


# -- evidence


def vote(value: bytes = HASH, kind: Type = Type.PREVOTE, height: int = 7, number: int = 2, **header: Any) -> bytes:
    """A vote's frame."""
    one = Frame(kind, 3, EVERYBODY, b"site", 1, 5, 77, Vote(height, number, value), SIGNATURE)
    return frame.pack(replace(one, **header))


def test_the_same_two_votes_give_the_same_evidence_whoever_heard_them_and_in_whatever_order() -> None:
    other = bytes(32)
    first = evidence.pack(evidence.between(vote(), vote(other)))
    second = evidence.pack(evidence.between(vote(other, to=2, boot=9, seq=1, token=True), vote(to=4, boot=6, seq=2**32 - 1)))
    assert first == second
    both = [frame.parse(data) for data in (evidence.parse(first).first, evidence.parse(first).second)]
    assert {(one.to, one.boot, one.seq, one.token) for one in both} == {(EVERYBODY, 0, 0, False)}


@given(st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.booleans())
def test_votes_in_evidence_are_still_signed_by_whom_it_accuses(to: int, boot: int, seq: int, token: bool) -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    heard = []
    for value in (HASH, bytes(32)):
        one = frame.parse(vote(value, to=to, boot=boot, seq=seq, token=token))
        heard.append(frame.pack(replace(one, signature=private.sign(frame.signed(HASH, one)))))
    found = evidence.between(*heard)
    for data in (found.first, found.second):
        one = frame.parse(data)
        private.public_key().verify(one.signature, frame.signed(HASH, one))


@given(fleetvalues.evidences())
def test_evidence_is_read_as_it_was_written(one: Evidence) -> None:
    data = evidence.pack(one)
    assert evidence.parse(data) == one
    assert data == bytes([len(one.first)]) + one.first + bytes([len(one.second)]) + one.second
    assert len(data) <= frame.MAX_OBJECT_BYTES


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (vote(), "strictly ascending"),
        (vote(seq=78), "agree"),
        (vote(b"x" * 32, Type.PRECOMMIT), "one voter and step"),
        (vote(b"x" * 32, height=8), "one voter and step"),
        (vote(b"x" * 32, number=3), "one voter and step"),
        (vote(b"x" * 32, source=4), "one voter and step"),
        (vote(b"x" * 32, epoch=2), "one voter and step"),
        (vote(b"x" * 32, tag=b"else"), "one voter and step"),
        (frame.pack(Frame(Type.OVERDUE, 3, EVERYBODY, b"site", 1, 5, 77, Overdue(1), SIGNATURE)), "OVERDUE frame, which is no vote"),
    ],
)
def test_two_frames_that_show_nothing_are_no_evidence(other: bytes, why: str) -> None:
    first, second = sorted((vote(), other))
    with pytest.raises(ValueError, match=why):
        evidence.pack(Evidence(first, second))
    with pytest.raises(Refused, match=why):
        evidence.parse(bytes([len(first)]) + first + bytes([len(second)]) + second)


def test_evidence_has_one_encoding() -> None:
    first, second = sorted((vote(), vote(b"x" * 32)))
    good = evidence.pack(Evidence(first, second))
    with pytest.raises(ValueError, match="ascending"):
        evidence.pack(Evidence(second, first))
    half = len(good) // 2
    for data, why in (
        (b"", "cut off"),
        (good[:-1], "cut off"),
        (good[:half], "cut off"),
        (good + b"x", "1 bytes follow"),
        (good[half:] + good[:half], "ascending"),
        (b"\0\0", "ascending"),
        (b"\0\1x", "has 0 bytes"),
        (good[:5] + b"\0" + good[6:], "checksum"),
    ):
        with pytest.raises(Refused, match=why):
            evidence.parse(data)
    with pytest.raises(ValueError, match="too long"):
        evidence.pack(Evidence(b"", bytes(300)))
