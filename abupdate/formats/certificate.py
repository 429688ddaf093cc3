"""The certificate of a height: its entry, and the precommits that decided it. Whoever missed the height believes nothing less.

    0   4  height, u32, 1 and up
    4   2  round, u16, below 2^15
    6  32  state: digest of the site's state after the entry
    38  2  length of the entry, u16, 1 to 2048
    40     entry (entries.py)
        1  number of votes, u8, 1 to 16
       65  of each: voter u8 | signature 64; ascending by voter

Numbers are big-endian. A signature is that of the voter's PRECOMMIT frame of this height and round (frame.py, `content`); the value
that it is for follows from the entry, the state and the height before, which the reader knows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from abupdate.errors import Refused
from abupdate.formats.entries import MAX_ENTRY_BYTES
from abupdate.formats.frame import MAX_ROUND, SIGNATURE_BYTES
from abupdate.formats.messages import EVERYBODY
from abupdate.formats.siterules import MAX_VOTERS

_HEAD = struct.Struct(">IH32sH")
_VOTE = struct.Struct(f">B{SIGNATURE_BYTES}s")


@dataclass(frozen=True, slots=True)
class Certificate:
    """entry: its bytes. state: digest of the site's state after it. signatures: (voter, 64 bytes), voters ascending."""

    height: int
    round: int
    entry: bytes
    state: bytes
    signatures: tuple[tuple[int, bytes], ...]


def pack(certificate: Certificate) -> bytes:
    """A certificate's bytes. Raises ValueError for one that breaks a rule."""
    try:
        head = _HEAD.pack(certificate.height, certificate.round, certificate.state, len(certificate.entry))
        votes = b"".join(_VOTE.pack(voter, signature) for voter, signature in certificate.signatures)
        data = head + certificate.entry + bytes([len(certificate.signatures)]) + votes
        # What is written must be read as the very same: so the rules are written down once, in `parse`.
        if parse(data) == certificate:
            return data
    except (struct.error, Refused) as error:
        raise ValueError(f"there is no such certificate: {error}") from error
    raise ValueError("there is no such certificate: a digest or a signature has a wrong length")


def parse(data: bytes) -> Certificate:
    """Decode a whole certificate. Verifies no signature and does not decode the entry. Raises Refused."""
    if len(data) < _HEAD.size:
        raise Refused("a certificate is cut off")
    height, number, state, entry_bytes = _HEAD.unpack_from(data)
    if not height or number > MAX_ROUND:
        raise Refused(f"a certificate is of height {height} and round {number}")
    if not 1 <= entry_bytes <= MAX_ENTRY_BYTES:
        raise Refused(f"a certificate has an entry of {entry_bytes} bytes instead of 1 to {MAX_ENTRY_BYTES}")
    at = _HEAD.size + entry_bytes
    if len(data) <= at:
        raise Refused("a certificate is cut off")
    count = data[at]
    if not 1 <= count <= MAX_VOTERS:
        raise Refused(f"a certificate has {count} votes instead of 1 to {MAX_VOTERS}")
    if len(data) != at + 1 + count * _VOTE.size:
        raise Refused(f"a certificate has {len(data)} bytes instead of {at + 1 + count * _VOTE.size}")
    signatures = tuple((int(voter), bytes(signature)) for voter, signature in _VOTE.iter_unpack(data[at + 1 :]))
    if signatures[-1][0] == EVERYBODY or any(left >= right for (left, _), (right, _) in pairwise(signatures)):
        raise Refused("a certificate's voters are not in strictly ascending order, or one is no node")
    return Certificate(height, number, data[_HEAD.size : at], state, signatures)
