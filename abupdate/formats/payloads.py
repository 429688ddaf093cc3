"""The payloads of the fleet's frames (frame.py): one message each, at most 160 bytes; numbers are big-endian.

    POLL                      nothing
    HELLO                     nonce u32
    HELLO_ACK                 1 to 10 of: node u8 | nonce u32 | boot u32 | height u32 | step u16: the round, and the top bit of a PRECOMMIT
                              (height 0: no vote was seen, and the step is 0)
    HEARTBEAT                 height u32 | lease u32 | stage u8 | flags u8: 1 healthy, 2 on trial, 4 stopped | bundle 8 | doubts, a bitmap
    NACK                      thing u8 | digest 32 | missing fragments, a bitmap (of a single fact: empty)
    CERT_REQ                  height u32, 0: the newest there is
    FRAG                      digest 32 | index u8 | count u8, 1 to 131 | 126 bytes, of the last fragment 1 to 126, of the 131st 1 to 4
    PROPOSAL                  height u32 | round u16 | valid round u16 (FFFF none, else below the round) | kind u8: 0 the entry itself,
                              1 to 120 bytes, or 1 its digest 32
    PREVOTE PRECOMMIT         height u32 | round u16 | value 32
    ORDER LOST CERT EVIDENCE  thing u8 | digest 32 | size u16, 1 to 16384 | height u32, 0 but of certificates and snapshots
                              (ORDER: an order or a membership; LOST: an order; CERT: a certificate or a snapshot; EVIDENCE: evidence)
    APPROVE                   order 32
    REJECT                    order 32 | reason
    SLOT_REQ                  plan 32 | attempt u8, 1 and up
    SHUTDOWN                  lease u32 | expected seconds u32
    COMPLETE                  lease u32 | bundle 32
    ROLLED_BACK DEFER         lease u32 | bundle 32 | reason
    OVERDUE                   lease u32

Heights start at 1, and so do leases, which are heights. Rounds are below 2^15. A bitmap has number n in bit n % 8 of byte n // 8, for 0
to 254, and does not end with a zero byte. A reason is a text (text.py) of 0 to 96 bytes. Whatever else is found is refused, so that a
message has one encoding and no other: it is encoded anew to check what was signed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from abupdate.errors import Refused
from abupdate.formats import text
from abupdate.formats.messages import (
    EVERYBODY,
    Announce,
    Approve,
    CertRequest,
    Echo,
    Fragment,
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

MAX_PAYLOAD_BYTES = 160
FRAGMENT_BYTES = 126
MAX_OBJECT_BYTES = 16 * 1024
MAX_FRAGMENTS = -(-MAX_OBJECT_BYTES // FRAGMENT_BYTES)
MAX_INLINE_BYTES = 120
MAX_REASON_BYTES = 96
MAX_BITMAP_BYTES = 32
MAX_ECHOES = 10
MAX_ROUND = 0x7FFF

_PRECOMMIT = 0x8000
_NO_ROUND = 0xFFFF
_INLINE, _APART = 0, 1
_HEALTHY, _TRIAL, _STOPPED = 1, 2, 4
_HASH_BYTES = 32
_U32 = struct.Struct(">I")
_TWO_U32 = struct.Struct(">II")
_ECHO = struct.Struct(">BIIIH")
_HEARTBEAT = struct.Struct(">IIBB8s")
_NACK = struct.Struct(">B32s")
_FRAGMENT = struct.Struct(">32sBB")
_PROPOSAL = struct.Struct(">IHHB")
_VOTE = struct.Struct(">IH32s")
_ANNOUNCE = struct.Struct(">B32sHI")
_SLOT = struct.Struct(">32sB")
_OUTCOME = struct.Struct(">I32s")
_THINGS = {int(thing): thing for thing in Thing}
_STAGES = {int(stage): stage for stage in Stage}
_WITH_HEIGHT = frozenset({Thing.CERTIFICATE, Thing.SNAPSHOT})


class Malformed(Refused):
    """Bytes that are no frame, or not the one encoding of any message."""


@dataclass(frozen=True, slots=True)
class _Codec:
    """How a message class is encoded. decode is given least to most bytes and raises Malformed."""

    message: type
    least: int
    most: int
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Message]


def encode(message: Message) -> bytes:
    """A message's bytes. Raises ValueError for one that no frame can hold."""
    codec = _BY_MESSAGE[type(message)]
    try:
        data = codec.encode(message)
        # What is written must be read as the very same: so the rules are written down once, in the decoders.
        if codec.least <= len(data) <= codec.most and codec.decode(data) == message:
            return data
    except (struct.error, ValueError, OverflowError, Malformed) as error:
        raise ValueError(f"no frame can hold this {type(message).__name__}: {error}") from error
    raise ValueError(f"no frame can hold this {type(message).__name__}")


def decode(kind: Type, data: bytes) -> Message:
    """The message of a frame of this type. Raises Malformed."""
    codec = _BY_TYPE[kind]
    if not codec.least <= len(data) <= codec.most:
        expected = str(codec.least) if codec.least == codec.most else f"{codec.least} to {codec.most}"
        raise Malformed(f"a {kind.name} frame has {len(data)} bytes of payload instead of {expected}")
    try:
        message = codec.decode(data)
    except Malformed as error:
        raise Malformed(f"a {kind.name} frame {error.message}") from None
    if isinstance(message, Announce) and message.thing not in _ANNOUNCED[kind]:
        raise Malformed(f"a {kind.name} frame speaks of a thing of the kind {message.thing.name}")
    return message


def fits(kind: Type, message: Message) -> bool:
    """Whether a frame of this type may hold the message (which `encode` takes)."""
    if not isinstance(message, _BY_TYPE[kind].message):
        return False
    if isinstance(message, Announce):
        return message.thing in _ANNOUNCED[kind]
    return kind is not Type.COMPLETE or not (isinstance(message, Outcome) and message.reason)


def bitmap(numbers: frozenset[int]) -> bytes:
    """A bitmap without zero bytes at its end. Raises ValueError for a negative number."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def read_bitmap(data: bytes) -> frozenset[int]:
    """The numbers 0 to 254 of a bitmap. Raises Malformed."""
    if not data:
        return frozenset()
    if len(data) > MAX_BITMAP_BYTES or not data[-1]:
        raise Malformed("has a bitmap that is too long, or ends with a zero byte")
    bits = int.from_bytes(data, "little")
    if bits >> EVERYBODY:
        raise Malformed(f"names number {EVERYBODY} in its bitmap")
    return frozenset(number for number in range(8 * len(data)) if bits >> number & 1)


def _counted(number: int, what: str) -> int:
    if not number:
        raise Malformed(f"has the {what} 0")
    return number


def _round(number: int) -> int:
    if number > MAX_ROUND:
        raise Malformed(f"has the round {number}, more than {MAX_ROUND}")
    return number


def _thing(number: int) -> Thing:
    if number not in _THINGS:
        raise Malformed(f"speaks of a thing of the unknown kind {number}")
    return _THINGS[number]


def _hash(value: bytes) -> bytes:
    """For encoders: struct would cut a longer value, and fill up a shorter one."""
    if len(value) != _HASH_BYTES:
        raise Malformed(f"has a digest of {len(value)} bytes instead of {_HASH_BYTES}")
    return value


def _reason(value: bytes) -> str:
    if not value:
        return ""
    try:
        return text.plain(value, MAX_REASON_BYTES, "reason")
    except Refused as error:
        raise Malformed(f"has a bad {error.message}") from None


def _decode_poll(data: bytes) -> Poll:
    return Poll()


def _encode_hello(message: Hello) -> bytes:
    return _U32.pack(message.nonce)


def _decode_hello(data: bytes) -> Hello:
    return Hello(*_U32.unpack(data))


def _encode_hello_ack(message: HelloAck) -> bytes:
    return b"".join(
        _ECHO.pack(echo.node, echo.nonce, echo.boot, echo.height, echo.round | (_PRECOMMIT if echo.step is Type.PRECOMMIT else 0))
        for echo in message.echoes
    )


def _decode_hello_ack(data: bytes) -> HelloAck:
    if len(data) % _ECHO.size:
        raise Malformed(f"ends inside an answer of {_ECHO.size} bytes")
    echoes = []
    for node, nonce, boot, height, step in _ECHO.iter_unpack(data):
        if node == EVERYBODY:
            raise Malformed(f"answers node {EVERYBODY}, which no node can be")
        if not height and step:
            raise Malformed("tells the round of a vote at height 0")
        echoes.append(Echo(node, nonce, boot, height, step & MAX_ROUND, Type.PRECOMMIT if step & _PRECOMMIT else Type.PREVOTE))
    return HelloAck(tuple(echoes))


def _encode_heartbeat(message: Heartbeat) -> bytes:
    flags = _HEALTHY * message.healthy | _TRIAL * message.trial | _STOPPED * message.stopped
    return _HEARTBEAT.pack(message.height, message.lease, message.stage, flags, message.bundle) + bitmap(message.doubts)


def _decode_heartbeat(data: bytes) -> Heartbeat:
    height, lease, stage, flags, bundle = _HEARTBEAT.unpack_from(data)
    if stage not in _STAGES:
        raise Malformed(f"has the unknown stage {stage}")
    if flags & ~(_HEALTHY | _TRIAL | _STOPPED):
        raise Malformed(f"has unknown flags {flags:#04x}")
    healthy, trial, stopped = bool(flags & _HEALTHY), bool(flags & _TRIAL), bool(flags & _STOPPED)
    return Heartbeat(height, lease, _STAGES[stage], healthy, trial, stopped, bundle, read_bitmap(data[_HEARTBEAT.size :]))


def _encode_nack(message: Nack) -> bytes:
    return _NACK.pack(message.thing, _hash(message.digest)) + bitmap(message.missing)


def _decode_nack(data: bytes) -> Nack:
    number, digest = _NACK.unpack_from(data)
    thing, missing = _thing(number), read_bitmap(data[_NACK.size :])
    if thing is Thing.FACT and missing:
        raise Malformed("asks for fragments of a fact, which has none")
    if missing and max(missing) >= MAX_FRAGMENTS:
        raise Malformed(f"asks for fragment {max(missing)}, and there are at most {MAX_FRAGMENTS}")
    return Nack(thing, digest, missing)


def _encode_cert_request(message: CertRequest) -> bytes:
    return _U32.pack(message.height)


def _decode_cert_request(data: bytes) -> CertRequest:
    return CertRequest(*_U32.unpack(data))


def _encode_fragment(message: Fragment) -> bytes:
    return _FRAGMENT.pack(_hash(message.digest), message.index, message.count) + message.data


def _decode_fragment(data: bytes) -> Fragment:
    digest, index, count = _FRAGMENT.unpack_from(data)
    size_bytes = len(data) - _FRAGMENT.size
    if not index < count <= MAX_FRAGMENTS:
        raise Malformed(f"is fragment {index} of {count}, and there are at most {MAX_FRAGMENTS}")
    if index < count - 1 and size_bytes != FRAGMENT_BYTES:
        raise Malformed(f"has a fragment of {size_bytes} bytes instead of {FRAGMENT_BYTES}")
    if index * FRAGMENT_BYTES + size_bytes > MAX_OBJECT_BYTES:
        raise Malformed(f"is of an object of more than {MAX_OBJECT_BYTES} bytes")
    return Fragment(digest, index, count, data[_FRAGMENT.size :])


def _encode_proposal(message: Proposal) -> bytes:
    valid_round = _NO_ROUND if message.valid_round == -1 else message.valid_round
    kind, rest = (_INLINE, message.entry) if message.entry else (_APART, message.entry_digest)
    return _PROPOSAL.pack(message.height, message.round, valid_round, kind) + rest


def _decode_proposal(data: bytes) -> Proposal:
    height, number, valid_round, kind = _PROPOSAL.unpack_from(data)
    rest = data[_PROPOSAL.size :]
    if valid_round == _NO_ROUND:
        valid_round = -1
    elif valid_round >= number:
        raise Malformed(f"has the valid round {valid_round} in round {number}")
    _counted(height, "height")
    _round(number)
    if kind == _INLINE:
        if len(rest) > MAX_INLINE_BYTES:
            raise Malformed(f"holds an entry of {len(rest)} bytes, more than {MAX_INLINE_BYTES}")
        return Proposal(height, number, valid_round, hashlib.sha256(rest).digest(), rest)
    if kind != _APART or len(rest) != _HASH_BYTES:
        raise Malformed("holds neither an entry nor the digest of one")
    return Proposal(height, number, valid_round, rest)


def _encode_vote(message: Vote) -> bytes:
    return _VOTE.pack(message.height, message.round, _hash(message.value))


def _decode_vote(data: bytes) -> Vote:
    height, number, value = _VOTE.unpack(data)
    return Vote(_counted(height, "height"), _round(number), value)


def _encode_announce(message: Announce) -> bytes:
    return _ANNOUNCE.pack(message.thing, _hash(message.digest), message.size_bytes, message.height)


def _decode_announce(data: bytes) -> Announce:
    number, digest, size_bytes, height = _ANNOUNCE.unpack(data)
    thing = _thing(number)
    if not 1 <= size_bytes <= MAX_OBJECT_BYTES:
        raise Malformed(f"announces {size_bytes} bytes instead of 1 to {MAX_OBJECT_BYTES}")
    if height and thing not in _WITH_HEIGHT:
        raise Malformed(f"tells the height of a thing of the kind {thing.name}, which has none")
    return Announce(thing, digest, size_bytes, height)


def _encode_approve(message: Approve) -> bytes:
    return message.order


def _decode_approve(data: bytes) -> Approve:
    return Approve(data)


def _encode_reject(message: Reject) -> bytes:
    return _hash(message.order) + message.reason.encode()


def _decode_reject(data: bytes) -> Reject:
    return Reject(data[:_HASH_BYTES], _reason(data[_HASH_BYTES:]))


def _encode_slot_request(message: SlotRequest) -> bytes:
    return _SLOT.pack(_hash(message.plan), message.attempt)


def _decode_slot_request(data: bytes) -> SlotRequest:
    plan, attempt = _SLOT.unpack(data)
    return SlotRequest(plan, _counted(attempt, "attempt"))


def _encode_shutdown(message: Shutdown) -> bytes:
    return _TWO_U32.pack(message.lease, message.expected_s)


def _decode_shutdown(data: bytes) -> Shutdown:
    lease, expected_s = _TWO_U32.unpack(data)
    return Shutdown(_counted(lease, "lease"), expected_s)


def _encode_outcome(message: Outcome) -> bytes:
    return _OUTCOME.pack(message.lease, _hash(message.bundle)) + message.reason.encode()


def _decode_outcome(data: bytes) -> Outcome:
    lease, bundle = _OUTCOME.unpack_from(data)
    return Outcome(_counted(lease, "lease"), bundle, _reason(data[_OUTCOME.size :]))


def _encode_overdue(message: Overdue) -> bytes:
    return _U32.pack(message.lease)


def _decode_overdue(data: bytes) -> Overdue:
    return Overdue(_counted(_U32.unpack(data)[0], "lease"))


_VOTES = _Codec(Vote, _VOTE.size, _VOTE.size, _encode_vote, _decode_vote)
_ANNOUNCES = _Codec(Announce, _ANNOUNCE.size, _ANNOUNCE.size, _encode_announce, _decode_announce)
_OUTCOMES = _Codec(Outcome, _OUTCOME.size, _OUTCOME.size + MAX_REASON_BYTES, _encode_outcome, _decode_outcome)
_BY_TYPE: Mapping[Type, _Codec] = {
    Type.POLL: _Codec(Poll, 0, 0, lambda message: b"", _decode_poll),
    Type.HELLO: _Codec(Hello, 4, 4, _encode_hello, _decode_hello),
    Type.HELLO_ACK: _Codec(HelloAck, _ECHO.size, MAX_ECHOES * _ECHO.size, _encode_hello_ack, _decode_hello_ack),
    Type.HEARTBEAT: _Codec(Heartbeat, _HEARTBEAT.size, _HEARTBEAT.size + MAX_BITMAP_BYTES, _encode_heartbeat, _decode_heartbeat),
    Type.NACK: _Codec(Nack, _NACK.size, _NACK.size + MAX_BITMAP_BYTES, _encode_nack, _decode_nack),
    Type.CERT_REQ: _Codec(CertRequest, 4, 4, _encode_cert_request, _decode_cert_request),
    Type.FRAG: _Codec(Fragment, _FRAGMENT.size + 1, _FRAGMENT.size + FRAGMENT_BYTES, _encode_fragment, _decode_fragment),
    Type.PROPOSAL: _Codec(Proposal, _PROPOSAL.size + 1, _PROPOSAL.size + MAX_INLINE_BYTES, _encode_proposal, _decode_proposal),
    Type.PREVOTE: _VOTES,
    Type.PRECOMMIT: _VOTES,
    Type.CERT: _ANNOUNCES,
    Type.ORDER: _ANNOUNCES,
    Type.LOST: _ANNOUNCES,
    Type.EVIDENCE: _ANNOUNCES,
    Type.APPROVE: _Codec(Approve, _HASH_BYTES, _HASH_BYTES, _encode_approve, _decode_approve),
    Type.REJECT: _Codec(Reject, _HASH_BYTES, _HASH_BYTES + MAX_REASON_BYTES, _encode_reject, _decode_reject),
    Type.SLOT_REQ: _Codec(SlotRequest, _SLOT.size, _SLOT.size, _encode_slot_request, _decode_slot_request),
    Type.SHUTDOWN: _Codec(Shutdown, _TWO_U32.size, _TWO_U32.size, _encode_shutdown, _decode_shutdown),
    Type.COMPLETE: _Codec(Outcome, _OUTCOME.size, _OUTCOME.size, _encode_outcome, _decode_outcome),
    Type.ROLLED_BACK: _OUTCOMES,
    Type.DEFER: _OUTCOMES,
    Type.OVERDUE: _Codec(Overdue, 4, 4, _encode_overdue, _decode_overdue),
}
_BY_MESSAGE: Mapping[type, _Codec] = {**{codec.message: codec for codec in _BY_TYPE.values()}, Outcome: _OUTCOMES}
_ANNOUNCED: Mapping[Type, frozenset[Thing]] = {
    Type.ORDER: frozenset({Thing.ORDER, Thing.MEMBERSHIP}),
    Type.LOST: frozenset({Thing.ORDER}),
    Type.CERT: frozenset({Thing.CERTIFICATE, Thing.SNAPSHOT}),
    Type.EVIDENCE: frozenset({Thing.EVIDENCE}),
}
