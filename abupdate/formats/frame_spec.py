"""Declaration of the fleet's frames (the specification), one for each message; frame.py and payloads.py decode the same bytes with struct.

Bounds are declared too: what one of the two refuses, so does the other. Nothing that runs on a device imports this module.
"""

from __future__ import annotations

import zlib
from typing import Any

from construct import (
    Bytes,
    Check,
    Checksum,
    ExprValidator,
    FixedSized,
    GreedyBytes,
    GreedyRange,
    Int8ub,
    Int16ub,
    Int32ub,
    RawCopy,
    Struct,
    Switch,
    Terminated,
    this,
)

from abupdate.errors import Refused
from abupdate.formats import text
from abupdate.formats.messages import Stage, Thing, Type


def _within(number: Any, least: int, most: int) -> Any:
    return ExprValidator(number, lambda value, _: least <= value <= most)


def _one_of(number: Any, *allowed: int) -> Any:
    return ExprValidator(number, lambda value, _: value in allowed)


def _plain(value: bytes, _: Any) -> bool:
    try:
        text.plain(value, 96, "the reason", least=0)
    except Refused:
        return False
    return True


_node = _within(Int8ub, 0, 254)
_counted = _within(Int32ub, 1, 2**32 - 1)
_round = _within(Int16ub, 0, 2**15 - 1)
_digest = Bytes(32)
_reason = ExprValidator(GreedyBytes, _plain)
_bitmap = ExprValidator(GreedyBytes, lambda value, _: len(value) <= 32 and value[-1:] != b"\0" and not value[31:] > b"\x7f")

poll = Struct(Terminated)
hello = Struct("nonce" / Int32ub, Terminated)
echo = Struct(
    "node" / _node,
    "nonce" / Int32ub,
    "boot" / Int32ub,
    "height" / Int32ub,
    "step" / Int16ub,
    Check(lambda here: here.height or not here.step),
)
hello_ack = Struct("echoes" / ExprValidator(GreedyRange(echo), lambda echoes, _: 1 <= len(echoes) <= 10), Terminated)
heartbeat = Struct(
    "height" / Int32ub,
    "lease" / Int32ub,
    "stage" / _within(Int8ub, 0, max(Stage)),
    "flags" / _within(Int8ub, 0, 7),
    "bundle" / Bytes(8),
    "doubts" / _bitmap,
)
nack = Struct(
    "thing" / _within(Int8ub, 0, max(Thing)),
    "digest" / _digest,
    "missing" / _bitmap,
    Check(lambda here: not here.missing if here.thing == Thing.FACT else int.from_bytes(here.missing, "little") < 1 << 131),
)
cert_req = Struct("height" / Int32ub, Terminated)
frag = Struct(
    "digest" / _digest,
    "index" / Int8ub,
    "count" / _within(Int8ub, 1, 131),
    "data" / ExprValidator(GreedyBytes, lambda data, _: 1 <= len(data) <= 126),
    Check(lambda here: here.index < here.count and (len(here.data) == 126 or here.index == here.count - 1)),
    Check(lambda here: here.index * 126 + len(here.data) <= 16384),
)
proposal = Struct(
    "height" / _counted,
    "round" / _round,
    "valid_round" / Int16ub,
    Check(lambda here: here.valid_round == 0xFFFF or here.valid_round < here.round),
    "kind" / _one_of(Int8ub, 0, 1),
    "entry" / Switch(this.kind, {0: ExprValidator(GreedyBytes, lambda entry, _: 1 <= len(entry) <= 120), 1: _digest}),
    Terminated,
)
vote = Struct("height" / _counted, "round" / _round, "value" / _digest, Terminated)
approve = Struct("order" / _digest, Terminated)
reject = Struct("order" / _digest, "reason" / _reason)
slot_req = Struct("plan" / _digest, "attempt" / _within(Int8ub, 1, 255), Terminated)
shutdown = Struct("lease" / _counted, "expected_s" / Int32ub, Terminated)
complete = Struct("lease" / _counted, "bundle" / _digest, Terminated)
setback = Struct("lease" / _counted, "bundle" / _digest, "reason" / _reason)
overdue = Struct("lease" / _counted, Terminated)


def _announce(*things: int) -> Any:
    return Struct(
        "thing" / _one_of(Int8ub, *things),
        "digest" / _digest,
        "size_bytes" / _within(Int16ub, 1, 16384),
        "height" / Int32ub,
        Check(lambda here: here.thing in (Thing.CERTIFICATE, Thing.SNAPSHOT) or not here.height),
        Terminated,
    )


PAYLOADS = {
    Type.POLL: poll,
    Type.HELLO: hello,
    Type.HELLO_ACK: hello_ack,
    Type.HEARTBEAT: heartbeat,
    Type.NACK: nack,
    Type.CERT_REQ: cert_req,
    Type.FRAG: frag,
    Type.PROPOSAL: proposal,
    Type.PREVOTE: vote,
    Type.PRECOMMIT: vote,
    Type.CERT: _announce(Thing.CERTIFICATE, Thing.SNAPSHOT),
    Type.ORDER: _announce(Thing.ORDER, Thing.MEMBERSHIP),
    Type.APPROVE: approve,
    Type.REJECT: reject,
    Type.SLOT_REQ: slot_req,
    Type.SHUTDOWN: shutdown,
    Type.COMPLETE: complete,
    Type.ROLLED_BACK: setback,
    Type.DEFER: setback,
    Type.OVERDUE: overdue,
    Type.LOST: _announce(Thing.ORDER),
    Type.EVIDENCE: _announce(Thing.EVIDENCE),
}
header = Struct(
    "version" / _one_of(Int8ub, 0x10, 0x11),
    "type" / _within(Int8ub, 0, max(Type)),
    "source" / _node,
    "to" / Int8ub,
    "tag" / Bytes(4),
    "epoch" / _within(Int16ub, 1, 0xFFFF),
    "boot" / Int32ub,
    "seq" / Int32ub,
    "length" / _within(Int8ub, 0, 160),
)
frame_spec = Struct(
    "checked"
    / RawCopy(
        Struct(
            "header" / header,
            "payload" / FixedSized(this.header.length, Switch(this.header.type, PAYLOADS)),
            "signature" / Bytes(lambda here: 64 if here.header.type else 0),
        )
    ),
    "crc" / Checksum(Int32ub, zlib.crc32, this.checked.data),
    Terminated,
)
