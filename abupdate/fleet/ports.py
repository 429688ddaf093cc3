"""What the fleet's core needs from its edges, as far as it is not an event or an effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from abupdate.fleet.events import Effect, Event, RecordKind
from abupdate.fleet.view import View
from abupdate.formats.entries import Entry
from abupdate.formats.membership import Membership
from abupdate.formats.order import Order

Entries = Sequence[tuple[RecordKind, bytes]]
"""Records of the log: kind and data, at most 64 KiB each."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The log at a start. fault: empty, or why it cannot be believed, at this start and at every later one: then this node never votes
    again under its key (`Start.fault`).

    records: all of them, in order; with a fault those from before the damage. torn_bytes: what a cut left of records whose `append` had
    not returned; that was taken away.
    """

    records: tuple[tuple[RecordKind, bytes], ...]
    fault: str = ""
    torn_bytes: int = 0


class Log(Protocol):
    """The append-only log of votes, locks, leases and counters. One process has it at a time."""

    def load(self) -> Loaded:
        """Read it, once, before anything is written; what it returns is durable.

        Raises Failed where it cannot be read or written, ConfigError where another version wrote it, Busy where another process has it.
        """

    def append(self, records: Entries) -> None:
        """Return when all of them are durable. Raises Failed: nothing that they stand for may be sent.

        After that, each record may or may not be there at the next start, but only with all that stand before it.
        """

    def replace(self, records: Entries) -> None:
        """Put these records in place of all, or leave all as they were (Failed); durable on return."""

    def close(self) -> None:
        """Let another process have it."""


@dataclass(frozen=True, slots=True)
class DecidedEntry:
    """What was decided at a height. membership: of the epoch that decided it. signers: voters whose PRECOMMIT is kept.

    order: that the entry names, None where it names none or it is not kept.
    """

    height: int
    round: int
    membership: Membership
    entry: Entry
    signers: frozenset[int]
    order: Order | None = None


class Core(Protocol):
    """The node, as the daemon drives it (node.py)."""

    @property
    def wake_s(self) -> float:
        """When it wants a Tick at the latest."""

    @property
    def boot(self) -> int:
        """The number of this start."""

    def handle(self, event: Event, now_s: float) -> tuple[Effect, ...]:
        """What there is to do after this event. Raises Refused for a `Submitted` that cannot be valid."""

    def view(self) -> View:
        """What people and metrics see."""

    def decided_entries(self, first: int, count: int) -> Sequence[DecidedEntry]:
        """Entries from a height on, as far as they are kept, at most `count`; first 0: the newest ones. Ascending."""


class Medium(Protocol):
    """One way to the peers: a network, a bus. It never blocks; what it cannot take it drops, for every frame may be lost."""

    @property
    def name(self) -> str:
        """In metrics and logs."""

    @property
    def wake_s(self) -> float:
        """When `receive` is to be called at the latest; infinity: when a descriptor is ready."""

    def descriptors(self) -> Iterable[tuple[int, int]]:
        """What to wait on now, with poll(2)'s events."""

    def receive(self, now_s: float, limit: int) -> Iterable[tuple[bytes, str]]:
        """Do what is due; at most so many frames that have come in, with the address of each."""

    def send(self, data: bytes, *, urgent: bool) -> None:
        """Send a frame as soon as the medium allows. urgent: before those that are not."""

    def counters(self) -> Mapping[str, int]:
        """Numbers for the metrics, by name."""

    def close(self) -> None:
        """Release it."""
