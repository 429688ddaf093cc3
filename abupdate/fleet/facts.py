"""Facts that nodes have signed and that the log still has use for: kept by digest, bounded by what can matter on the state. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from abupdate.fleet.state import State
from abupdate.formats import frame
from abupdate.formats.messages import Approve, Frame, Outcome, Overdue, Reject, Shutdown, SlotRequest, Type

_EARLY = 4


@dataclass(frozen=True, slots=True)
class Fact:
    """A verified fact. data: its frame as it came, to be relayed."""

    frame: Frame
    digest: bytes
    data: bytes


def matters(state: State, one: Frame) -> bool:
    """The log may still need this fact on this state."""
    message = one.message
    match message:
        case Approve():
            return one.epoch == state.epoch and message.order == state.pending
        case Reject():
            return one.epoch == state.epoch and (
                message.order == state.pending or (state.plan is not None and message.order == state.plan.order)
            )
        case SlotRequest():
            plan = state.plan
            if plan is None or plan.order != message.plan or one.epoch != state.epoch:
                return False
            standing = plan.nodes.get(one.source)
            return standing is not None and message.attempt == standing.grants + 1
        case Shutdown() | Outcome():
            lease = state.leases.get(one.source)
            return lease is not None and lease.height == message.lease and lease.epoch <= one.epoch <= state.epoch
        case Overdue():
            return one.epoch == state.epoch and any(lease.height == message.lease for lease in state.leases.values())
        case _:
            return False


class Facts:
    """The pool. One fact for each author, type and subject, so that nobody can fill it."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, Fact] = {}
        self._by_author: dict[tuple[Type, int, object], Fact] = {}
        self._early: dict[int, list[Fact]] = {}

    def get(self, digest: bytes) -> Fact | None:
        """The fact of this digest."""
        return self._by_digest.get(digest)

    def find(self, kind: Type, source: int, subject: object) -> Fact | None:
        """The fact that a node has signed about a subject: an order (APPROVE, REJECT), a plan (SLOT_REQ), a lease (the others)."""
        return self._by_author.get((kind, source, subject))

    def of(self, kind: Type) -> Iterator[Fact]:
        """All facts of a type, in the order in which they came."""
        return (fact for fact in self._by_digest.values() if fact.frame.type is kind)

    def mine(self, me: int) -> Iterator[Fact]:
        """All facts that this node has signed."""
        return (fact for (_, source, _), fact in self._by_author.items() if source == me)

    def add(self, state: State, one: Frame, data: bytes) -> Fact | None:
        """Take a verified fact in; None where it is known, does not matter (yet), or another one of the kind is there."""
        fact = Fact(one, frame.fact_digest(one.type, one.source, one.epoch, frame.payload(one.message)), data)
        if fact.digest in self._by_digest:
            return None
        if not matters(state, one):
            early = self._early.setdefault(one.source, [])
            if all(other.digest != fact.digest for other in early):
                early.append(fact)
                del early[:-_EARLY]
            return None
        return self._keep(fact)

    def _keep(self, fact: Fact) -> Fact | None:
        key = (fact.frame.type, fact.frame.source, _subject(fact.frame))
        known = self._by_author.get(key)
        if known is not None and known.frame.epoch >= fact.frame.epoch:
            return None
        if known is not None:
            del self._by_digest[known.digest]
        self._by_author[key] = fact
        self._by_digest[fact.digest] = fact
        return fact

    def follow(self, state: State) -> list[Fact]:
        """Drop what the new state has no use for, and take in what came too early; returns the latter."""
        for key, fact in list(self._by_author.items()):
            if not matters(state, fact.frame):
                del self._by_author[key]
                del self._by_digest[fact.digest]
        taken: list[Fact] = []
        for source, early in list(self._early.items()):
            ripe = [fact for fact in early if matters(state, fact.frame)]
            self._early[source] = [fact for fact in early if not matters(state, fact.frame)]
            taken += [fact for fact in ripe if self._keep(fact) is not None]
        return taken


def _subject(one: Frame) -> object:
    message = one.message
    match message:
        case Approve() | Reject():
            return message.order
        case SlotRequest():
            return message.plan
        case Shutdown() | Outcome() | Overdue():
            return message.lease
        case _:
            raise ValueError("no fact")
