"""Objects larger than a frame: which are wanted, their fragments as they come in, and who is asked for what is missing. Pure, bounded.

A fragment counts only for its own sender's copy, so that a liar spoils nobody else's; a copy that is not what its digest says is thrown
away. Orders and memberships go by their id, which leaves out the signatures (two holders may have two sets); the caller checks those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from abupdate.errors import Refused
from abupdate.formats import membership as membership_format
from abupdate.formats import order as order_format
from abupdate.formats.frame import FRAGMENT_BYTES, MAX_OBJECT_BYTES
from abupdate.formats.messages import Fragment, Thing

MAX_WANTED = 32
WANTED_OF_ONE = 2
_COPIES_OF_ONE = 2
_GIVE_UP = 12
_ASKED_OFTEN = 3


@dataclass(slots=True)
class Wanted:
    """An object that is looked for. asked: who is asked next is `asked` modulo the holders. pinned: an entry needs it."""

    thing: Thing
    digest: bytes
    holders: list[int]
    pinned: bool
    next_s: float
    asked: int = 0
    copies: dict[int, dict[int, bytes]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    certified: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a node for a thing. missing: fragment numbers, empty for all."""

    thing: Thing
    digest: bytes
    node: int
    missing: frozenset[int]


@dataclass(frozen=True, slots=True)
class Done:
    """An object that is whole. pinned: an entry needs it. certified: Q voters have signed what names it."""

    thing: Thing
    data: bytes
    pinned: bool
    certified: bool


def identify(thing: Thing, data: bytes) -> bytes:
    """What the object is called: an order's or membership's id, else the SHA-256 of its bytes. Raises Refused."""
    if thing is Thing.ORDER:
        return order_format.parse(data).id
    if thing is Thing.MEMBERSHIP:
        return membership_format.parse(data).digest
    return hashlib.sha256(data).digest()


def cut(digest: bytes, data: bytes) -> list[Fragment]:
    """The fragments of an object of 1 to MAX_OBJECT_BYTES bytes."""
    pieces = [data[start : start + FRAGMENT_BYTES] for start in range(0, len(data), FRAGMENT_BYTES)]
    return [Fragment(digest, index, len(pieces), piece) for index, piece in enumerate(pieces)]


class Objects:
    """What this node is looking for."""

    def __init__(self, patience_s: float = 1.0) -> None:
        """patience_s: how long something that is on its way is waited for; per medium."""
        self._patience_s = patience_s
        self._wanted: dict[bytes, Wanted] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._wanted

    @property
    def wake_s(self) -> float | None:
        """When the next question is due."""
        return min((wanted.next_s for wanted in self._wanted.values()), default=None) if self._wanted else None

    def want(
        self, thing: Thing, digest: bytes, holder: int, now_s: float, *, pinned: bool, soon: bool = False, certified: bool = False
    ) -> None:
        """Look for an object (or a fact) that `holder` should have. soon: it is on its way by itself, so give it time."""
        wanted = self._wanted.get(digest)
        if wanted is None:
            if thing is Thing.FACT and not self._room_for_fact():
                return
            if len(self._wanted) >= MAX_WANTED and not self._drop_one():
                return
            if not pinned and sum(holder in other.holders and not other.pinned for other in self._wanted.values()) >= WANTED_OF_ONE:
                return
            due = now_s + (self._patience_s if soon else 0.0)
            self._wanted[digest] = Wanted(thing, digest, [holder], pinned, due, certified=certified)
            return
        wanted.pinned, wanted.certified = wanted.pinned or pinned, wanted.certified or certified
        if holder not in wanted.holders and len(wanted.holders) < 8:
            wanted.holders.append(holder)

    def _drop_one(self) -> bool:
        """Let something go: what no entry needs, or what nobody seems to have: a liar's proposal may name what does not exist."""
        name = next((digest for digest, wanted in self._wanted.items() if not wanted.pinned), None)
        if name is None:
            name = max(self._wanted, key=lambda digest: self._wanted[digest].asked)
            if self._wanted[name].asked < _ASKED_OFTEN:
                return False
        del self._wanted[name]
        return True

    def _room_for_fact(self) -> bool:
        """Facts fill half of the table at most: a proposal may name many at once, and what else it takes to go on must find a place."""
        facts = [digest for digest, wanted in self._wanted.items() if wanted.thing is Thing.FACT]
        if len(facts) >= MAX_WANTED // 2:
            name = max(facts, key=lambda digest: self._wanted[digest].asked)
            if self._wanted[name].asked < _ASKED_OFTEN:
                return False
            del self._wanted[name]
        return True

    def forget(self, digest: bytes) -> None:
        """It is here, or nobody needs it any more."""
        self._wanted.pop(digest, None)

    def unpin(self) -> None:
        """The entries that needed something are history: facts for them too, what else is still wanted may be dropped."""
        for digest, wanted in list(self._wanted.items()):
            if wanted.thing is Thing.FACT:
                del self._wanted[digest]
            wanted.pinned = False

    def hear(self, sender: int, fragment: Fragment, now_s: float) -> Done | None:
        """A fragment; returns the object that it completes."""
        wanted = self._wanted.get(fragment.digest)
        if wanted is None or fragment.count * FRAGMENT_BYTES > MAX_OBJECT_BYTES + FRAGMENT_BYTES:
            return None
        if sender not in wanted.copies and len(wanted.copies) >= _COPIES_OF_ONE:
            if sender != wanted.holders[wanted.asked % len(wanted.holders)]:
                return None
            wanted.copies.pop(next(iter(wanted.copies)))
        if wanted.counts.setdefault(sender, fragment.count) != fragment.count:
            return None
        copy = wanted.copies.setdefault(sender, {})
        copy[fragment.index] = fragment.data
        wanted.next_s = max(wanted.next_s, now_s + self._patience_s / 2)
        if len(copy) < fragment.count:
            return None
        data = b"".join(copy[index] for index in range(fragment.count))
        del wanted.copies[sender], wanted.counts[sender]
        try:
            if identify(wanted.thing, data) != fragment.digest:
                return None
        except Refused:
            return None
        del self._wanted[fragment.digest]
        return Done(wanted.thing, data, wanted.pinned, wanted.certified)

    def due(self, now_s: float, others: list[int]) -> Iterator[Ask]:
        """Questions that are due. others: nodes that may have it too, asked where the holders do not answer."""
        for digest, wanted in list(self._wanted.items()):
            if wanted.next_s > now_s:
                continue
            if wanted.asked >= _GIVE_UP and not wanted.pinned:
                del self._wanted[digest]
                continue
            if wanted.asked >= len(wanted.holders) and others:
                extra = [node for node in others if node not in wanted.holders]
                wanted.holders += extra[:1]
            node = wanted.holders[wanted.asked % len(wanted.holders)]
            copy, count = wanted.copies.get(node, {}), wanted.counts.get(node, 0)
            wanted.asked += 1
            wanted.next_s = now_s + min(self._patience_s * 1.5 ** min(wanted.asked, 10), 15.0)
            yield Ask(wanted.thing, digest, node, frozenset(range(count)) - copy.keys() if copy else frozenset())
