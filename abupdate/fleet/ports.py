"""What the fleet's core needs from its edges, as far as it is not an event or an effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from abupdate.fleet.events import RecordKind

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
