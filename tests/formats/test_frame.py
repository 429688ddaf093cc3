"""Frames: round trips, every bound from both sides, hostile bytes, what is signed, and the declaration that is their specification."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import construct
import pytest
from cobs import cobs
from hypothesis import given, settings
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats import frame, payloads
from abupdate.formats.frame import Malformed
from abupdate.formats.frame_spec import PAYLOADS, frame_spec
from abupdate.formats.messages import (
    EVERYBODY,
    NOTHING,
    Announce,
    Approve,
    CertRequest,
    Echo,
    Fragment,
    Frame,
    Heartbeat,
    Hello,
    HelloAck,
    Message,
    Nack,
    Outcome,
    Overdue,
    Poll,
    Proposal,
    Reject,
    Shutdown,
    SlotRequest,
    Stage,
    Thing,
    Type,
    Vote,
)
from tests.formats import fleetvalues

DIGEST = bytes(range(32))
GENESIS = hashlib.sha256(b"genesis").digest()
FACTS = tuple(kind for kind in Type if kind not in frame.STATUS)
ENTRY = b"entry"
LONGEST: Mapping[Type, Message] = {
    Type.POLL: Poll(),
    Type.HELLO: Hello(1),
    Type.HELLO_ACK: HelloAck(tuple(Echo(number, 1, 2, 3, 4, Type.PRECOMMIT) for number in range(10))),
    Type.HEARTBEAT: Heartbeat(1, 2, Stage.MANUAL, True, True, True, DIGEST[:8], frozenset({254})),
    Type.NACK: Nack(Thing.SNAPSHOT, DIGEST, frozenset({130})),
    Type.CERT_REQ: CertRequest(1),
    Type.FRAG: Fragment(DIGEST, 0, 131, bytes(126)),
    Type.PROPOSAL: Proposal(1, 0, -1, hashlib.sha256(bytes(120)).digest(), bytes(120)),
    Type.PREVOTE: Vote(1, 0, DIGEST),
    Type.PRECOMMIT: Vote(1, 0, NOTHING),
    Type.CERT: Announce(Thing.CERTIFICATE, DIGEST, 16384, 9),
    Type.ORDER: Announce(Thing.ORDER, DIGEST, 1),
    Type.APPROVE: Approve(DIGEST),
    Type.REJECT: Reject(DIGEST, "x" * 96),
    Type.SLOT_REQ: SlotRequest(DIGEST, 255),
    Type.SHUTDOWN: Shutdown(1, 600),
    Type.COMPLETE: Outcome(1, DIGEST),
    Type.ROLLED_BACK: Outcome(1, DIGEST, "x" * 96),
    Type.DEFER: Outcome(1, DIGEST, "\N{SNOWMAN}" * 32),
    Type.OVERDUE: Overdue(1),
    Type.LOST: Announce(Thing.ORDER, DIGEST, 1),
    Type.EVIDENCE: Announce(Thing.EVIDENCE, DIGEST, 1),
}


def made(kind: Type, message: Message) -> Frame:
    """A frame of this message."""
    return Frame(kind, 3, EVERYBODY, GENESIS[:4], 1, 5, 77, message, b"" if kind is Type.POLL else bytes(range(64)))


def raw(kind: int, body: bytes, **other: int) -> bytes:
    """The bytes of a frame with any payload and any header, lengths and checksum right unless they are given."""
    fields = {"first": 0x10, "source": 3, "to": 255, "epoch": 1, "boot": 0, "seq": 0, "length": len(body), **other}
    header = frame.HEADER.pack(
        fields["first"], kind, fields["source"], fields["to"], b"site", fields["epoch"], fields["boot"], fields["seq"], fields["length"]
    )
    whole = header + body + (b"" if kind == Type.POLL else bytes(64))
    return whole + struct.pack(">I", zlib.crc32(whole) ^ fields.get("crc", 0))


def declared(message: Message) -> dict[str, Any]:
    """The fields of a message as the declaration names them."""
    match message:
        case HelloAck():
            return {"echoes": [_echo(echo) for echo in message.echoes]}
        case Heartbeat():
            flags = message.healthy | message.trial << 1 | message.stopped << 2
            fixed = {"height": message.height, "lease": message.lease, "stage": message.stage, "flags": flags, "bundle": message.bundle}
            return {**fixed, "doubts": payloads.bitmap(message.doubts)}
        case Nack():
            return {"thing": message.thing, "digest": message.digest, "missing": payloads.bitmap(message.missing)}
        case Proposal():
            valid_round = 0xFFFF if message.valid_round == -1 else message.valid_round
            kind, entry = (0, message.entry) if message.entry else (1, message.entry_digest)
            return {"height": message.height, "round": message.round, "valid_round": valid_round, "kind": kind, "entry": entry}
        case Reject():
            return {"order": message.order, "reason": message.reason.encode()}
        case Outcome():
            return {"lease": message.lease, "bundle": message.bundle, "reason": message.reason.encode()}
    return {name: getattr(message, name) for name in message.__slots__}


def _echo(echo: Echo) -> dict[str, int]:
    step = echo.round | (0x8000 if echo.step is Type.PRECOMMIT else 0)
    return {"node": echo.node, "nonce": echo.nonce, "boot": echo.boot, "height": echo.height, "step": step}


@settings(max_examples=400)
@given(fleetvalues.frames())
def test_a_frame_is_read_as_it_was_written(one: Frame) -> None:
    data = frame.pack(one)
    assert frame.parse(data) == one
    assert frame.pack(frame.parse(data)) == data
    head = frame.peek(data)
    assert head == frame.Head(one.type, one.source, one.to, one.tag, one.epoch, one.boot, one.seq, one.token)
    assert frame.payload(one.message) == data[frame.HEADER.size : frame.HEADER.size + data[18]]
    assert len(data) <= frame.MAX_FRAME_BYTES == 247


@settings(max_examples=200)
@given(fleetvalues.frames())
def test_the_declaration_reads_and_builds_the_same_bytes(one: Frame) -> None:
    data = frame.pack(one)
    found = frame_spec.parse(data).checked.value
    header = {
        "version": 0x11 if one.token else 0x10,
        "type": one.type,
        "source": one.source,
        "to": one.to,
        "tag": one.tag,
        "epoch": one.epoch,
        "boot": one.boot,
        "seq": one.seq,
        "length": len(frame.payload(one.message)),
    }
    body = declared(one.message)
    if one.type is Type.COMPLETE:
        assert body.pop("reason") == b""
    assert frame_spec.build({"checked": {"value": {"header": header, "payload": body, "signature": one.signature}}}) == data
    assert {name: value for name, value in found.header.items() if name != "_io"} == header
    assert PAYLOADS[one.type].build(found.payload) == frame.payload(one.message)


def accepted(data: bytes) -> bool:
    """Whether the decoder takes the bytes; the declaration must say the same."""
    try:
        one = frame.parse(data)
    except Malformed:
        with pytest.raises(construct.ConstructError):
            frame_spec.parse(data)
        return False
    frame_spec.parse(data)
    assert frame.pack(one) == data
    return True


@settings(max_examples=400)
@given(st.binary(max_size=260) | st.builds(raw, st.sampled_from([*Type, 22, 255]), st.binary(max_size=170)))
def test_the_declaration_and_the_decoder_accept_the_same_bytes(data: bytes) -> None:
    accepted(data)


@settings(max_examples=400)
@given(fleetvalues.frames(), st.data())
def test_of_a_changed_frame_both_say_the_same(one: Frame, data: st.DataObject) -> None:
    """A byte changes, comes or goes in the payload; header and checksum fit again."""
    body = bytearray(frame.payload(one.message))
    at = data.draw(st.integers(0, len(body)))
    body[at : at + data.draw(st.integers(0, 1))] = data.draw(st.binary(max_size=2))
    accepted(raw(one.type, bytes(body), first=0x10 | one.token, source=one.source, to=one.to, epoch=one.epoch))


@given(fleetvalues.frames(), st.integers(0, 246), st.integers(1, 255))
def test_a_frame_with_one_byte_changed_is_no_frame(one: Frame, at: int, change: int) -> None:
    data = bytearray(frame.pack(one))
    data[at % len(data)] ^= change
    assert frame.peek(bytes(data)) is None
    with pytest.raises(Malformed):
        frame.parse(bytes(data))


@given(fleetvalues.frames())
def test_a_frame_that_is_cut_or_goes_on_is_no_frame(one: Frame) -> None:
    data = frame.pack(one)
    for wrong in (data[:-1], data[1:], data + b"\0", b"", data * 2):
        assert frame.peek(wrong) is None
        with pytest.raises(Malformed):
            frame.parse(wrong)


def test_every_type_has_a_message_here_and_a_declaration() -> None:
    assert set(LONGEST) == set(PAYLOADS) == set(fleetvalues.MESSAGES) == set(Type)


def test_a_vote_is_127_bytes_on_a_serial_line() -> None:
    for message in (Vote(1, 0, DIGEST), Vote(2**32 - 1, 2**15 - 1, b"\xff" * 32), Vote(1, 0, NOTHING)):
        data = frame.pack(replace(made(Type.PREVOTE, message), signature=b"\xff" * 64))
        assert len(data) == 125
        assert len(cobs.encode(data) + b"\0") == 127


@pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name)
@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_no_frame_takes_more_than_256_bytes_on_a_serial_line(kind: Type, filler: bytes) -> None:
    one = made(kind, LONGEST[kind])
    data = frame.pack(replace(one, signature=filler * len(one.signature), boot=2**32 - 1, seq=2**32 - 1, epoch=0xFFFF))
    assert len(cobs.encode(data) + b"\0") <= 256


def test_the_longest_payload_is_that_of_a_fragment() -> None:
    assert max((len(frame.payload(message)), kind) for kind, message in LONGEST.items()) == (160, Type.FRAG)


OUT_OF_BOUNDS: Mapping[str, tuple[Type, Message]] = {
    "echo of node 255": (Type.HELLO_ACK, HelloAck((Echo(255, 0, 0, 1, 0, Type.PREVOTE),))),
    "no echo": (Type.HELLO_ACK, HelloAck(())),
    "11 echoes": (Type.HELLO_ACK, HelloAck((Echo(1, 0, 0, 1, 0, Type.PREVOTE),) * 11)),
    "echo of round 2^15": (Type.HELLO_ACK, HelloAck((Echo(1, 0, 0, 1, 2**15, Type.PREVOTE),))),
    "echo of a step that is no vote": (Type.HELLO_ACK, HelloAck((Echo(1, 0, 0, 1, 0, Type.PROPOSAL),))),
    "echo of a round without a height": (Type.HELLO_ACK, HelloAck((Echo(1, 0, 0, 0, 1, Type.PREVOTE),))),
    "echo of a precommit without a height": (Type.HELLO_ACK, HelloAck((Echo(1, 0, 0, 0, 0, Type.PRECOMMIT),))),
    "nonce of 33 bits": (Type.HELLO, Hello(2**32)),
    "nonce below 0": (Type.HELLO, Hello(-1)),
    "bundle of 7 bytes": (Type.HEARTBEAT, Heartbeat(1, 0, Stage.IDLE, True, False, False, bytes(7))),
    "bundle of 9 bytes": (Type.HEARTBEAT, Heartbeat(1, 0, Stage.IDLE, True, False, False, bytes(9))),
    "doubt of node 255": (Type.HEARTBEAT, Heartbeat(1, 0, Stage.IDLE, True, False, False, bytes(8), frozenset({255}))),
    "doubt of node -1": (Type.HEARTBEAT, Heartbeat(1, 0, Stage.IDLE, True, False, False, bytes(8), frozenset({-1}))),
    "missing fragment 131": (Type.NACK, Nack(Thing.ORDER, DIGEST, frozenset({131}))),
    "missing fragment of a fact": (Type.NACK, Nack(Thing.FACT, DIGEST, frozenset({0}))),
    "digest of 31 bytes": (Type.NACK, Nack(Thing.ORDER, DIGEST[:31])),
    "digest of 33 bytes": (Type.NACK, Nack(Thing.ORDER, DIGEST + b"x")),
    "fragment 1 of 1": (Type.FRAG, Fragment(DIGEST, 1, 1, b"x")),
    "fragment 0 of 0": (Type.FRAG, Fragment(DIGEST, 0, 0, b"x")),
    "132 fragments": (Type.FRAG, Fragment(DIGEST, 0, 132, bytes(126))),
    "fragment without data": (Type.FRAG, Fragment(DIGEST, 0, 1, b"")),
    "fragment of 127 bytes": (Type.FRAG, Fragment(DIGEST, 0, 1, bytes(127))),
    "short fragment before the last": (Type.FRAG, Fragment(DIGEST, 0, 2, bytes(125))),
    "object of 16385 bytes": (Type.FRAG, Fragment(DIGEST, 130, 131, bytes(5))),
    "proposal of height 0": (Type.PROPOSAL, Proposal(0, 0, -1, DIGEST)),
    "proposal of round 2^15": (Type.PROPOSAL, Proposal(1, 2**15, -1, DIGEST)),
    "valid round of the round itself": (Type.PROPOSAL, Proposal(1, 4, 4, DIGEST)),
    "valid round -2": (Type.PROPOSAL, Proposal(1, 4, -2, DIGEST)),
    "entry of 121 bytes": (Type.PROPOSAL, Proposal(1, 0, -1, hashlib.sha256(bytes(121)).digest(), bytes(121))),
    "entry with another digest": (Type.PROPOSAL, Proposal(1, 0, -1, DIGEST, ENTRY)),
    "entry's digest of 31 bytes": (Type.PROPOSAL, Proposal(1, 0, -1, DIGEST[:31])),
    "vote of height 0": (Type.PREVOTE, Vote(0, 0, DIGEST)),
    "vote of height 2^32": (Type.PREVOTE, Vote(2**32, 0, DIGEST)),
    "vote of round 2^15": (Type.PREVOTE, Vote(1, 2**15, DIGEST)),
    "value of 31 bytes": (Type.PREVOTE, Vote(1, 0, DIGEST[:31])),
    "object of no byte": (Type.ORDER, Announce(Thing.ORDER, DIGEST, 0)),
    "announced 16385 bytes": (Type.ORDER, Announce(Thing.ORDER, DIGEST, 16385)),
    "height of an order": (Type.ORDER, Announce(Thing.ORDER, DIGEST, 1, 1)),
    "order of 31 bytes": (Type.APPROVE, Approve(DIGEST[:31])),
    "rejected order of 33 bytes": (Type.REJECT, Reject(DIGEST + b"x", "")),
    "reason of 97 bytes": (Type.REJECT, Reject(DIGEST, "x" * 97)),
    "reason of 97 bytes in 33 characters": (Type.DEFER, Outcome(1, DIGEST, "\N{SNOWMAN}" * 32 + "x")),
    "reason of two lines": (Type.DEFER, Outcome(1, DIGEST, "a\nb")),
    "reason that turns the text round": (Type.DEFER, Outcome(1, DIGEST, "a\u202eb")),
    "reason that is no Unicode": (Type.DEFER, Outcome(1, DIGEST, "\ud800")),
    "attempt 0": (Type.SLOT_REQ, SlotRequest(DIGEST, 0)),
    "attempt 256": (Type.SLOT_REQ, SlotRequest(DIGEST, 256)),
    "shutdown under lease 0": (Type.SHUTDOWN, Shutdown(0, 600)),
    "outcome of lease 0": (Type.COMPLETE, Outcome(0, DIGEST)),
    "lease 0 overdue": (Type.OVERDUE, Overdue(0)),
}


@pytest.mark.parametrize("what", OUT_OF_BOUNDS)
def test_what_is_out_of_bounds_is_not_written(what: str) -> None:
    kind, message = OUT_OF_BOUNDS[what]
    why = f"no frame can hold this {type(message).__name__}"
    with pytest.raises(ValueError, match=why):
        frame.pack(made(kind, message))
    with pytest.raises(ValueError, match=why):
        frame.payload(message)


WRONG_PLACE: Mapping[str, tuple[Type, Message]] = {
    "vote in an APPROVE": (Type.APPROVE, Vote(1, 0, DIGEST)),
    "reason in a COMPLETE": (Type.COMPLETE, Outcome(1, DIGEST, "x")),
    "certificate in an ORDER": (Type.ORDER, Announce(Thing.CERTIFICATE, DIGEST, 1)),
    "membership in a LOST": (Type.LOST, Announce(Thing.MEMBERSHIP, DIGEST, 1)),
    "entry in a CERT": (Type.CERT, Announce(Thing.ENTRY, DIGEST, 1)),
    "fact in an EVIDENCE": (Type.EVIDENCE, Announce(Thing.FACT, DIGEST, 1)),
}


@pytest.mark.parametrize("what", WRONG_PLACE)
def test_what_belongs_to_other_types_is_neither_written_nor_read(what: str) -> None:
    kind, message = WRONG_PLACE[what]
    with pytest.raises(ValueError, match=f"a {kind.name} frame cannot hold this"):
        frame.pack(made(kind, message))
    assert not accepted(raw(kind, frame.payload(message)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"source": 255}, "source 255"),
        ({"source": 256}, "header"),
        ({"epoch": 0}, "epoch 0"),
        ({"epoch": 65536}, "header"),
        ({"to": 256}, "header"),
        ({"boot": 2**32}, "header"),
        ({"seq": -1}, "header"),
        ({"tag": b"abc"}, "wrong length"),
        ({"tag": b"abcde"}, "wrong length"),
        ({"signature": bytes(63)}, "wrong length"),
        ({"signature": b""}, "wrong length"),
    ],
)
def test_a_header_out_of_bounds_is_not_written(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        frame.pack(replace(made(Type.OVERDUE, Overdue(1)), **change))


def test_a_poll_carries_no_signature() -> None:
    with pytest.raises(ValueError, match="wrong length"):
        frame.pack(replace(made(Type.POLL, Poll()), signature=bytes(64)))


ONE = b"\0\0\0\1"
HOSTILE: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", "has 0 bytes instead of 23 to 247"),
    "one byte too few": (raw(0, b"")[:-1], "has 22 bytes"),
    "a payload of 161 bytes": (raw(Type.FRAG, DIGEST + b"\0\1" + bytes(127)), "has 248 bytes"),
    "a poll with a payload of 200 bytes": (raw(Type.POLL, bytes(200)), "a POLL frame with 200 bytes of payload has 223"),
    "version 2": (raw(0, b"", first=0x20), "starts with 0x20"),
    "version 0": (raw(0, b"", first=0x00), "starts with 0x00"),
    "an unknown flag": (raw(0, b"", first=0x12), "starts with 0x12"),
    "type 22": (raw(22, b""), "type 22"),
    "source 255": (raw(Type.OVERDUE, ONE, source=255), "source 255"),
    "epoch 0": (raw(Type.OVERDUE, ONE, epoch=0), "epoch 0"),
    "a length that is too small": (raw(Type.OVERDUE, ONE, length=3), "with 3 bytes of payload has 91"),
    "a length that is too large": (raw(Type.OVERDUE, ONE, length=5), "with 5 bytes of payload has 91"),
    "a wrong checksum": (raw(Type.OVERDUE, ONE, crc=1), "wrong checksum"),
    "a poll with a payload": (raw(Type.POLL, b"x"), "has 1 bytes of payload instead of 0"),
    "a vote of 37 bytes": (raw(Type.PREVOTE, bytes(37)), "a PREVOTE frame has 37 bytes of payload instead of 38"),
    "a reason of 97 bytes": (raw(Type.REJECT, DIGEST + b"x" * 97), "instead of 32 to 128"),
    "a reason that is not UTF-8": (raw(Type.REJECT, DIGEST + b"\xff"), "a REJECT frame has a bad reason is not UTF-8"),
    "a reason in overlong UTF-8": (raw(Type.REJECT, DIGEST + b"\xc0\x80"), "not UTF-8"),
    "a reason with a control character": (raw(Type.DEFER, ONE + DIGEST + b"a\x1b[31m"), "control characters"),
    "half an echo": (raw(Type.HELLO_ACK, bytes(16)), "ends inside an answer"),
    "an echo of node 255": (raw(Type.HELLO_ACK, b"\xff" + bytes(14)), "answers node 255"),
    "an echo of a round without a height": (raw(Type.HELLO_ACK, bytes(14) + b"\1"), "at height 0"),
    "stage 11": (raw(Type.HEARTBEAT, bytes(8) + b"\x0b\0" + bytes(8)), "unknown stage 11"),
    "a flag of a heartbeat": (raw(Type.HEARTBEAT, bytes(8) + b"\0\x08" + bytes(8)), "unknown flags 0x08"),
    "doubts that end with a zero byte": (raw(Type.HEARTBEAT, bytes(18) + b"\1\0"), "ends with a zero byte"),
    "a doubt of node 255": (raw(Type.HEARTBEAT, bytes(18) + bytes(31) + b"\x80"), "names number 255"),
    "thing 7": (raw(Type.NACK, b"\7" + DIGEST), "unknown kind 7"),
    "fragment 131": (raw(Type.NACK, b"\1" + DIGEST + bytes(16) + b"\x08"), "asks for fragment 131"),
    "a fragment of a fact": (raw(Type.NACK, b"\0" + DIGEST + b"\1"), "a fact, which has none"),
    "fragment 2 of 2": (raw(Type.FRAG, DIGEST + b"\2\2x"), "is fragment 2 of 2"),
    "132 fragments": (raw(Type.FRAG, DIGEST + b"\0\x84" + bytes(126)), "at most 131"),
    "a short fragment": (raw(Type.FRAG, DIGEST + b"\0\2x"), "a fragment of 1 bytes"),
    "an object of 16385 bytes": (raw(Type.FRAG, DIGEST + b"\x82\x83" + bytes(5)), "more than 16384"),
    "valid round 0 in round 0": (raw(Type.PROPOSAL, ONE + bytes(4) + b"\1" + DIGEST), "the valid round 0 in round 0"),
    "proposal of kind 2": (raw(Type.PROPOSAL, ONE + b"\0\0\xff\xff\2" + DIGEST), "neither an entry"),
    "digest of 33 bytes": (raw(Type.PROPOSAL, ONE + b"\0\0\xff\xff\1" + DIGEST + b"x"), "neither an entry"),
    "height 0": (raw(Type.PRECOMMIT, bytes(38)), "the height 0"),
    "round 2^15": (raw(Type.PRECOMMIT, ONE + b"\x80\0" + DIGEST), "the round 32768"),
    "0 bytes": (raw(Type.ORDER, b"\1" + DIGEST + bytes(6)), "announces 0 bytes"),
    "16385 bytes": (raw(Type.ORDER, b"\1" + DIGEST + b"\x40\1" + bytes(4)), "announces 16385 bytes"),
    "height of an order": (raw(Type.ORDER, b"\1" + DIGEST + b"\0\1" + ONE), "the kind ORDER, which has none"),
    "an entry": (raw(Type.ORDER, b"\3" + DIGEST + b"\0\1" + bytes(4)), "of the kind ENTRY"),
    "attempt 0": (raw(Type.SLOT_REQ, DIGEST + b"\0"), "the attempt 0"),
    "lease 0": (raw(Type.COMPLETE, bytes(4) + DIGEST), "the lease 0"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_out_of_bounds_is_refused_in_one_line(what: str) -> None:
    data, why = HOSTILE[what]
    with pytest.raises(Malformed, match=why) as refused:
        frame.parse(data)
    assert "\n" not in refused.value.message
    assert not refused.value.message.endswith(".")
    assert isinstance(refused.value, Refused)
    assert not accepted(data)


def test_every_payload_length_is_checked() -> None:
    """No type takes a payload of any length; a decoder never sees one that it cannot take apart."""
    for kind in Type:
        taken = {length for length in range(161) for filler in (0, 1, 0x7F) if accepted(raw(kind, bytes([filler]) * length))}
        assert len(taken) < 130, kind.name


def test_a_number_at_its_bound_is_taken() -> None:
    for kind, message in {
        **LONGEST,
        Type.PREVOTE: Vote(2**32 - 1, 2**15 - 1, DIGEST),
        Type.PROPOSAL: Proposal(1, 2**15 - 1, 2**15 - 2, DIGEST),
        Type.FRAG: Fragment(DIGEST, 130, 131, bytes(4)),
        Type.HELLO_ACK: HelloAck((Echo(254, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**15 - 1, Type.PREVOTE),)),
        Type.ORDER: Announce(Thing.MEMBERSHIP, DIGEST, 16384),
    }.items():
        one = replace(made(kind, message), source=254, to=254, epoch=0xFFFF, boot=2**32 - 1, seq=2**32 - 1, token=True)
        assert frame.parse(frame.pack(one)) == one


# -- what is signed


def test_a_status_is_signed_with_its_receiver_and_its_place() -> None:
    content = frame.content(GENESIS, Type.NACK, 3, 4, 0x0102, b"payload", 0x01020304, 0x05060708)
    assert content == b"abupdate frame 1\0" + GENESIS + b"\x01\x04\x03\x04\x01\x02" + b"payload" + bytes.fromhex("0102030405060708")


def test_a_fact_is_signed_for_everybody_and_for_ever() -> None:
    content = frame.content(GENESIS, Type.PREVOTE, 3, 4, 0x0102, b"payload", 9, 9)
    assert content == b"abupdate frame 1\0" + GENESIS + b"\x01\x08\x03\xff\x01\x02" + b"payload"
    assert {
        kind for kind in Type if frame.content(GENESIS, kind, 3, 4, 1, b"", 1, 1) == frame.content(GENESIS, kind, 3, 5, 1, b"", 2, 2)
    } == set(FACTS)


@given(fleetvalues.frames(FACTS), st.integers(0, 255), fleetvalues.numbers, fleetvalues.numbers, st.booleans())
def test_a_relay_does_not_change_what_was_signed(one: Frame, to: int, boot: int, seq: int, token: bool) -> None:
    relayed = frame.parse(frame.pack(replace(one, to=to, boot=boot, seq=seq, token=token)))
    assert frame.signed(GENESIS, relayed) == frame.signed(GENESIS, one)


def test_a_status_that_carries_the_token_was_signed_for_everybody() -> None:
    one = made(Type.HEARTBEAT, LONGEST[Type.HEARTBEAT])
    assert frame.signed(GENESIS, replace(one, to=9, token=True)) == frame.signed(GENESIS, one)
    assert frame.signed(GENESIS, replace(one, to=9)) != frame.signed(GENESIS, one)


@given(fleetvalues.frames(), fleetvalues.frames())
def test_two_frames_that_say_different_things_are_signed_differently(one: Frame, other: Frame) -> None:
    same = frame.signed(GENESIS, one) == frame.signed(GENESIS, other)
    key = [(item.type, item.source, item.epoch, item.message) for item in (one, other)]
    place = [(item.boot, item.seq, 255 if item.token else item.to) if item.type in frame.STATUS else None for item in (one, other)]
    assert same == (key[0] == key[1] and place[0] == place[1])
    assert frame.signed(hashlib.sha256(GENESIS).digest(), one) != frame.signed(GENESIS, one)


def test_a_genesis_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="31 bytes instead of 32"):
        frame.content(GENESIS[:31], Type.PREVOTE, 3, 4, 1, b"x" * 39)


def test_a_fact_is_named_by_what_it_says_and_who_says_it() -> None:
    name = frame.fact_digest(Type.OVERDUE, 3, 0x0102, b"payload")
    assert name == hashlib.sha256(b"abupdate fact 1\0\x13\x03\x01\x02payload").digest()
    others = {
        frame.fact_digest(Type.DEFER, 3, 0x0102, b"payload"),
        frame.fact_digest(Type.OVERDUE, 4, 0x0102, b"payload"),
        frame.fact_digest(Type.OVERDUE, 3, 0x0103, b"payload"),
        frame.fact_digest(Type.OVERDUE, 3, 0x0102, b"payloae"),
    }
    assert len(others | {name}) == 5


def test_the_tables_of_facts_and_status_are_those_of_the_design() -> None:
    assert {kind.name for kind in frame.STATUS} == {"POLL", "HELLO", "HELLO_ACK", "HEARTBEAT", "NACK", "CERT_REQ"}
    assert [int(kind) for kind in Type] == list(range(22))


@given(fleetvalues.frames(tuple(kind for kind in Type if kind is not Type.POLL)))
def test_what_was_signed_is_read_from_the_bytes_as_well(one: Frame) -> None:
    data = frame.pack(one)
    head = frame.peek(data)
    assert head is not None
    assert frame.finish(head, data) == one
    assert frame.signed_here(GENESIS, head, data) == frame.signed(GENESIS, one)
