"""What goes into the core (events) and what comes out of it (effects): the whole interface between it and the world.

`node.handle(event, now_s) -> tuple[Effect, ...]`. The shell carries effects out in their order: what stands behind a `Persist` happens only
after that record is durable (consecutive ones may share one flush). `now_s` is the node's own monotonic clock in seconds; no rule
needs another.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from abupdate.formats.entries import Entry
from abupdate.formats.order import Order
from abupdate.model import Phase


class RecordKind(IntEnum):
    """Kinds of log records; the payloads' encodings belong to the core (fleet/journal.py)."""

    BOOT = 1
    VOTE = 2
    LOCK = 3
    DECIDED = 4
    FACT = 5
    OBJECT = 6
    SNAPSHOT = 7
    STOPPED = 8
    LEAVING = 9
    OPINION = 10


@dataclass(frozen=True, slots=True)
class Device:
    """This device as its update core sees it (status): what the core decides its own next word on.

    booted: bundle id of the running slot, NOTHING where unknown. other: bundle id of the other slot where it is good to boot (confirmed).
    written: bundle id that is written and verified, not activated. trial: the running slot is on trial. armed: a trial is armed, not
    yet booted.
    lease, phase, reason, target: of the record's last attempt (target: its bundle id); lease None: not under a lease.
    """

    booted: bytes
    other: bytes
    written: bytes
    trial: bool
    armed: bool
    lease: int | None
    phase: Phase | None
    reason: str = ""
    target: bytes = bytes(32)


@dataclass(frozen=True, slots=True)
class Start:
    """The first event. nonce: 32 random bits. fault: empty, or why the log cannot be believed (it is lost): never vote again.

    tpm_boot: value of a monotonic counter outside the log that was raised for this start (a TPM's), None where there is none.
    """

    nonce: int
    fault: str = ""
    tpm_boot: int | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes of one frame (without COBS). address: where it came from, for limits and for people."""

    data: bytes
    address: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Send one at `node.wake_s` at the latest."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The device was looked at. Sent at start, after every effect that acts on the device has ended, and every few seconds."""

    device: Device


@dataclass(frozen=True, slots=True)
class Submitted:
    """Bytes of an admin's order or of a membership file, from the control socket. Refused is raised where it cannot be valid."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Opinion:
    """A person's word on this node: approve or reject an order."""

    order: bytes
    approve: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The end of a `Prepare`. fault: empty, or why this node rejects the order. final: False: it will be tried again."""

    order: bytes
    fault: str = ""
    final: bool = True


@dataclass(frozen=True, slots=True)
class LeaveEnded:
    """The end of a `Leave` that did not go down (a drain hook said no, activation failed). The device is observed after it."""

    lease: int
    reason: str


@dataclass(frozen=True, slots=True)
class Conditions:
    """What only this node knows: maintenance window open, its own programs are content, nodes that look ill to it."""

    window_open: bool = True
    healthy: bool = True
    doubts: frozenset[int] = frozenset()


Event = Start | Received | Tick | Observed | Submitted | Opinion | Prepared | LeaveEnded | Conditions


@dataclass(frozen=True, slots=True)
class Persist:
    """Append a record to the log, durably."""

    kind: RecordKind
    data: bytes


@dataclass(frozen=True, slots=True)
class Compact:
    """Replace the whole log by these records, atomically."""

    records: tuple[tuple[RecordKind, bytes], ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Put a frame on every medium. urgent: votes and proposals go before what may wait."""

    data: bytes
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Prepare:
    """Fetch the order's bundle, verify it and write it to the inactive slot; answer with `Prepared`. A newer one replaces it."""

    order: Order


@dataclass(frozen=True, slots=True)
class Leave:
    """Go down under this lease: drain hooks, then activate `bundle` and reboot.

    back: the bundle is one to go back to; the other slot may hold it confirmed, and then it is reverted to.
    """

    lease: int
    order: Order
    bundle: bytes
    back: bool


@dataclass(frozen=True, slots=True)
class Reboot:
    """A slot is armed under this lease and was not booted: reboot."""

    lease: int


@dataclass(frozen=True, slots=True)
class Disarm:
    """A slot is armed under this lease and the plan has stopped: cancel it (revert), then observe."""

    lease: int


@dataclass(frozen=True, slots=True)
class RollBackNow:
    """An admin's order to go back at once, past the budget."""

    order: Order


@dataclass(frozen=True, slots=True)
class PeerLeaving:
    """Run the hooks `peer-leaving`."""

    node: int
    lease: int
    expected_s: int


@dataclass(frozen=True, slots=True)
class PeerReturned:
    """Run the hooks `peer-returned`. lease: the one that ended."""

    node: int
    lease: int


@dataclass(frozen=True, slots=True)
class Restored:
    """This node is back from its own lease: run the hooks `restore`. ending: in words of the log."""

    lease: int
    ending: str


@dataclass(frozen=True, slots=True)
class Decided:
    """An entry was decided (metrics, `fleet log`)."""

    height: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that people must know."""

    text: str


Effect = (
    Persist | Compact | Send | Prepare | Leave | Reboot | Disarm | RollBackNow | PeerLeaving | PeerReturned | Restored | Decided | Alarm
)
