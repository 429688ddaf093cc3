"""Tag-length-value records with one encoding for each value: the manifest, the keyring and the signatures are made of them.

A record is `tag u16 | length u16 | value`, little-endian, without padding. In one sequence tags never go down. A tag may
come more than once only where the format says that it is a list. Bit 15 of a tag marks what a reader that does not know it
may pass over (at most once each); any other tag that is not known means that the file needs a newer abupdate.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from itertools import pairwise

from abupdate.errors import Refused

OPTIONAL = 0x8000
MAX_VALUE_BYTES = 0xFFFF
_RECORD = struct.Struct("<HH")


def newer(what: str) -> Refused:
    """The refusal of what a later version may understand. `what` is a noun phrase, for example 'the manifest's tag 0x0030'."""
    return Refused(f"{what} needs a newer abupdate", "update abupdate on this machine, or rebuild the file with fewer features")


def pack(records: Iterable[tuple[int, bytes]]) -> bytes:
    """Encode records that are in order already. Raises Refused for a value over 65535 bytes."""
    parts: list[bytes] = []
    for tag, value in records:
        if len(value) > MAX_VALUE_BYTES:
            raise Refused(f"the value of tag {tag:#06x} has {len(value)} bytes, more than {MAX_VALUE_BYTES}")
        parts += (_RECORD.pack(tag, len(value)), value)
    return b"".join(parts)


def unpack(data: bytes, known: Mapping[int, bool], what: str) -> dict[int, list[bytes]]:
    """Decode a whole sequence; `known` tells for each tag whether it is a list; `what` names the sequence in messages.

    Returns the values of the known tags, in order; every known tag is a key. Raises Refused.
    """
    found: dict[int, list[bytes]] = {tag: [] for tag in known}
    position = 0
    last = -1
    while position < len(data):
        if len(data) - position < _RECORD.size:
            raise Refused(f"{what} ends inside a record")
        tag, length = _RECORD.unpack_from(data, position)
        position += _RECORD.size
        if length > len(data) - position:
            raise Refused(f"{what} holds a record that is longer than itself")
        if tag < last:
            raise Refused(f"{what} holds tag {tag:#06x} in the wrong place")
        if tag in known:
            if tag == last and not known[tag]:
                raise Refused(f"{what} holds tag {tag:#06x} twice")
            found[tag].append(data[position : position + length])
        elif not tag & OPTIONAL:
            raise newer(f"{what} (tag {tag:#06x})")
        elif tag == last:
            raise Refused(f"{what} holds tag {tag:#06x} twice")
        last = tag
        position += length
    return found


def one(found: Mapping[int, list[bytes]], tag: int, what: str) -> bytes:
    """The value of a tag that must be there. Raises Refused."""
    values = found[tag]
    if not values:
        raise Refused(f"{what} lacks tag {tag:#06x}")
    return values[0]


def unsigned(value: bytes, width: int, limit: int, what: str) -> int:
    """Decode an unsigned little-endian number of exactly `width` bytes, at most `limit`. Raises Refused."""
    if len(value) != width:
        raise Refused(f"{what} has {len(value)} bytes instead of {width}")
    number = int.from_bytes(value, "little")
    if number > limit:
        raise Refused(f"{what} is {number}, more than {limit}")
    return number


def ascending(values: list[bytes], what: str) -> None:
    """Refuse a list whose values do not strictly go up (wrong order, or one of them twice)."""
    if any(left >= right for left, right in pairwise(values)):
        raise Refused(f"{what} are not in strictly ascending order")
