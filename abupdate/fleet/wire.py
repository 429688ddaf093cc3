"""This node's frames: made and signed on the way out, filtered and verified on the way in. Pure but for the seal.

In: site tag, epoch, length, duplicate, and only then the signature, which is what costs. Every drop is counted by its reason.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from abupdate.errors import Refused
from abupdate.formats import frame
from abupdate.formats.membership import Membership
from abupdate.formats.messages import EVERYBODY, Frame, Message, Type

_REMEMBERED = 1024
_SIGNATURE = slice(-68, -4)


class Seal(Protocol):
    """The node's key, and everybody's public keys."""

    def sign(self, content: bytes) -> bytes:
        """64 bytes."""

    def verify(self, public_key: bytes, signature: bytes, content: bytes) -> bool:
        """The signature is by the holder of this key (raw, 32 bytes)."""


@dataclass(slots=True)
class Wire:
    """me: this node's index. boot: counter of this start. seq: of the last frame that was sent."""

    me: int
    seal: Seal
    genesis: bytes
    boot: int = 0
    seq: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    heard: Counter[Type] = field(default_factory=Counter)
    sent: Counter[Type] = field(default_factory=Counter)
    _seen: OrderedDict[bytes, float] = field(default_factory=OrderedDict)

    def make(self, kind: Type, epoch: int, message: Message, to: int = EVERYBODY) -> Frame:
        """A signed frame of this node."""
        self.seq += 1
        packed = frame.payload(message)
        content = frame.content(self.genesis, kind, self.me, to, epoch, packed, self.boot, self.seq)
        return Frame(kind, self.me, to, self.genesis[:4], epoch, self.boot, self.seq, message, self.seal.sign(content))

    def open(self, data: bytes, current: Membership, known: Mapping[int, Membership], now_s: float) -> Frame | None:
        """A frame of a member of this site whose signature is right; None for anything else, and for what was taken in before.

        Its key is the one that its author has in the frame's epoch, or has now where that epoch is not known here.
        """
        opened = self._open(data, current, known, now_s)
        if isinstance(opened, str):
            self.dropped[opened] += 1
            return None
        if opened is not None:
            self.heard[opened.type] += 1
        return opened

    def _open(self, data: bytes, current: Membership, known: Mapping[int, Membership], now_s: float) -> Frame | str | None:
        head = frame.peek(data)
        if head is None:
            return "damaged"
        if head.tag != self.genesis[:4]:
            return "other site"
        if head.type is Type.POLL:
            return None
        member = known.get(head.epoch, current).by_index.get(head.source)
        if member is None:
            return "no member"
        signature = data[_SIGNATURE]
        if signature in self._seen:
            self._seen[signature] = now_s
            self._seen.move_to_end(signature)
            return "duplicate"
        try:
            one = frame.finish(head, data)
        except Refused:
            return "malformed"
        return one if self.seal.verify(member.key, signature, frame.signed_here(self.genesis, head, data)) else "signature"

    def remember(self, signature: bytes, now_s: float) -> None:
        """The frame with this signature was taken in: whoever sends it again costs no signature's check."""
        self._seen[signature] = now_s
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def silent_s(self, data: bytes, now_s: float) -> float:
        """How long ago the medium has carried this frame the last time, as far as this node remembers."""
        return now_s - self._seen.get(data[_SIGNATURE], float("-inf"))
