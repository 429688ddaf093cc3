"""Evidence that a voter voted twice in one step: two of its frames, `length u8 | frame` each, the smaller one first.

The frames are whole votes (frame.py) of one site, author, type, epoch, height and round, with different values. Whoever reads it checks
that the author signed both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from abupdate.errors import Refused
from abupdate.formats import frame
from abupdate.formats.messages import EVERYBODY, Frame, Vote


@dataclass(frozen=True, slots=True)
class Evidence:
    """first, second: frames, in the order of their bytes."""

    first: bytes
    second: bytes


def between(one: bytes, other: bytes) -> Evidence:
    """The evidence of two votes as they were heard. Raises Malformed where one is no frame.

    What a relayer puts into a header (receiver, boot, seq, token) is not signed in a vote: it is left out, so that the same two votes give
    the same evidence whoever heard them, and one digest goes round the site.
    """
    plain = (replace(frame.parse(data), to=EVERYBODY, boot=0, seq=0, token=False) for data in (one, other))
    return Evidence(*sorted(frame.pack(vote) for vote in plain))


def pack(evidence: Evidence) -> bytes:
    """The evidence's bytes. Raises ValueError where it shows nothing."""
    if max(len(evidence.first), len(evidence.second)) > frame.MAX_FRAME_BYTES:
        raise ValueError("this is no evidence: one of its frames is too long")
    data = b"".join(bytes([len(one)]) + one for one in (evidence.first, evidence.second))
    try:
        parse(data)
    except Refused as error:
        raise ValueError(f"this is no evidence: {error}") from error
    return data


def parse(data: bytes) -> Evidence:
    """Decode whole evidence. Verifies no signature. Raises Refused where it shows nothing, whoever signed it."""
    first, rest = _take(data)
    second, rest = _take(rest)
    if rest:
        raise Refused(f"{len(rest)} bytes follow the evidence")
    if first >= second:
        raise Refused("the frames of the evidence are not in strictly ascending order")
    left, right = frame.parse(first), frame.parse(second)
    if _step(left) != _step(right):
        raise Refused("the votes of the evidence are not of one voter and step")
    if left.message == right.message:
        raise Refused("the votes of the evidence agree")
    return Evidence(first, second)


def _take(data: bytes) -> tuple[bytes, bytes]:
    """A frame, and what follows it."""
    if not data or len(data) < 1 + data[0]:
        raise Refused("the evidence is cut off")
    return data[1 : 1 + data[0]], data[1 + data[0] :]


def _step(one: Frame) -> tuple[object, ...]:
    if not isinstance(one.message, Vote):
        raise Refused(f"the evidence is made of a {one.type.name} frame, which is no vote")
    return one.tag, one.source, one.type, one.epoch, one.message.height, one.message.round
