"""What is fuzzed of the fleet's wire and files: run functions and mutations as targets.py explains them."""

from __future__ import annotations

import hashlib
import zlib
from contextlib import suppress
from random import Random

from construct import ConstructError

from abupdate.errors import Refused
from abupdate.formats import certificate, entries, evidence, frame, signedfile
from abupdate.formats import membership as memberships
from abupdate.formats import order as orders
from abupdate.formats.frame import Malformed
from abupdate.formats.frame_spec import frame_spec
from abupdate.formats.messages import Type, Vote
from tests.fuzz import shapes
from tests.fuzz.shapes import Bytes, Mutation, Nested

GENESIS = bytes(range(32))
MEMBERSHIP: Nested = {0x0010: {}, 0x0020: {}, 0x0040: {}}
_PAYLOAD = frame.HEADER.size


def run_frame(data: bytes) -> bool:
    """A frame: construct takes the same bytes, its one encoding is these, and what was signed depends on it."""
    head = frame.peek(data)
    try:
        one = frame.parse(data)
    except Malformed:
        with suppress(ConstructError):
            frame_spec.parse(data)
            raise AssertionError("construct takes what the decoder refuses") from None
        return False
    declared = frame_spec.parse(data).checked.value
    assert (declared.header.type, declared.header.source, declared.header.seq) == (one.type, one.source, one.seq)
    assert head == frame.Head(one.type, one.source, one.to, one.tag, one.epoch, one.boot, one.seq, one.token)
    assert frame.pack(one) == data
    signed = frame.signed(GENESIS, one)
    assert frame.payload(one.message) in signed
    assert len(data) <= frame.MAX_FRAME_BYTES
    return True


def run_entry(data: bytes) -> bool:
    """An entry of the log."""
    try:
        entry = entries.parse(data)
    except Refused:
        return False
    assert entries.pack(entry) == data
    return True


def run_membership(data: bytes) -> bool:
    """A membership file; also who signed it and what follows it, which must end in a word."""
    try:
        membership = memberships.parse(data)
    except Refused:
        return False
    if not shapes.has_optional(membership.body, MEMBERSHIP) and not shapes.has_optional(_block(data), {}):
        assert memberships.build(memberships.body(membership), membership.signatures) == data
    voters, members, faults = len(membership.voters), len(membership.members), membership.faults
    assert 3 <= members <= 64
    assert 3 * faults < voters <= 16
    assert 2 * membership.quorum - voters > faults
    assert membership.quorum <= voters - faults
    assert faults < membership.approvals <= members - faults
    assert 1 <= membership.min_up < members
    with suppress(Refused):
        memberships.check_signed(membership)
    with suppress(Refused):
        memberships.follows(membership, membership)
        raise AssertionError("a membership follows itself")
    return True


def run_order(data: bytes) -> bool:
    """An order's file; also who signed it, which must end in a word."""
    try:
        order = orders.parse(data)
    except Refused:
        return False
    if not shapes.has_optional(order.body, {}) and not shapes.has_optional(_block(data), {}):
        assert orders.build(orders.body(order), order.signatures) == data
    with suppress(Refused):
        orders.signers(order, [one.public_key for one in order.signatures])
    return True


def run_certificate(data: bytes) -> bool:
    """A certificate."""
    try:
        one = certificate.parse(data)
    except Refused:
        return False
    assert certificate.pack(one) == data
    assert len(data) <= frame.MAX_OBJECT_BYTES
    return True


def run_evidence(data: bytes) -> bool:
    """Evidence: two votes that contradict each other."""
    try:
        proof = evidence.parse(data)
    except Refused:
        return False
    assert evidence.pack(proof) == data
    first, second = frame.parse(proof.first), frame.parse(proof.second)
    assert isinstance(first.message, Vote)
    assert isinstance(second.message, Vote)
    assert first.message.value != second.message.value
    assert (first.source, first.type, first.epoch, first.tag) == (second.source, second.type, second.epoch, second.tag)
    return True


def _block(data: bytes) -> bytes:
    """The signature block of a file that was accepted."""
    return data[len(data) - int.from_bytes(data[16:20], "little") :]


def mutate_frame(data: bytes, chance: Random, change: Bytes) -> bytes:
    """Of a frame: header or payload; the length and the checksum are put right, mostly."""
    if len(data) < _PAYLOAD + 4 or chance.random() < 0.1:
        return change(data)
    tail = 4 if data[1] == Type.POLL else 68
    head, body, signature = data[:_PAYLOAD], data[_PAYLOAD : len(data) - tail], data[len(data) - tail : len(data) - 4]
    if chance.random() < 0.3:
        head = change(head)[: len(head)].ljust(len(head), b"\0")
        if head[1] == Type.POLL:
            signature = b""
    else:
        new = change(body)
        # Most payloads have one length; another one is refused at once.
        body = new[: len(body)].ljust(len(body), b"\1") if chance.random() < 0.6 else new[:255]
    whole = head[:-1] + bytes([len(body) & 0xFF]) + body + signature
    return whole + (change(data[-4:]) if chance.random() < 0.05 else zlib.crc32(whole).to_bytes(4, "big"))


def mutate_fixed(data: bytes, chance: Random, change: Bytes) -> bytes:
    """Of fields that have their places: bytes change, and the length stays, mostly."""
    new = change(data)
    return new[: len(data)].ljust(len(data), b"\1") if chance.random() < 0.5 else new


def signed_file_mutation(nested: Nested) -> Mutation:
    """Of a file that people sign: body or signatures; lengths and hash are put right."""

    def mutate(data: bytes, chance: Random, change: Bytes) -> bytes:
        size = signedfile.HEADER.size
        if len(data) < size or chance.random() < 0.1:
            return change(data)
        body_bytes = int.from_bytes(data[12:16], "little")
        body, block = data[size : size + body_bytes], data[size + body_bytes :]
        if chance.random() < 0.85:
            body = shapes.records_mutation(nested)(body, chance, change)
        else:
            block = shapes.records_mutation({})(block, chance, change)
        return signedfile.HEADER.pack(data[:8], 1, 0, len(body), len(block), hashlib.sha256(block).digest()) + body + block

    return mutate


def mutate_evidence(data: bytes, chance: Random, change: Bytes) -> bytes:
    """Of evidence: one of its frames, or their order; the lengths are put right, mostly."""
    if not data or len(data) < 2 + data[0] or chance.random() < 0.1:
        return change(data)
    first, second = data[1 : 1 + data[0]], data[2 + data[0] :]
    if chance.random() < 0.5:
        first = mutate_frame(first, chance, change)
    else:
        second = mutate_frame(second, chance, change)
    both = sorted((first, second)) if chance.random() < 0.8 else [second, first]
    return b"".join(bytes([len(one) & 0xFF]) + one for one in both)
