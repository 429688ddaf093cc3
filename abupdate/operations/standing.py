"""Where the device stands, in the words of the fleet: what runs, what could run, and what became of the last attempt under a lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from abupdate import machine
from abupdate.model import Attempt, Facts, Phase, Record, Situation, SlotState
from abupdate.operations.board import Board, observe

UNKNOWN = bytes(32)


@dataclass(frozen=True, slots=True)
class Standing:
    """Bundle ids have 32 bytes, UNKNOWN where there is none or nobody knows.

    booted: of the running slot. other: of the other slot where it is confirmed and bootable. written: written and verified, not armed.
    trial: the running slot is on trial, or its trial was ended by hand and it still runs. armed: another slot boots next, by order.
    lease, phase, reason, target: of the record's last attempt; target is what was to run in the end. An ordered way back to a confirmed
    slot is ARMED until the reboot and CONFIRMED after it.
    """

    booted: bytes
    other: bytes
    written: bytes
    trial: bool
    armed: bool
    lease: int | None = None
    phase: Phase | None = None
    reason: str = ""
    target: bytes = UNKNOWN


def standing(board: Board) -> Standing:
    """Look at the device, without changing anything and without reading what is large. Raises StoreUnreadable."""
    return describe(observe(board, heads=False))


def describe(facts: Facts) -> Standing:
    """The same from facts. Raises StoreUnreadable."""
    where, states, record = machine.situation(facts), machine.slot_states(facts), machine.base_record(facts)
    others = tuple(slot for slot in facts.slots if slot != facts.booted)
    lease, phase, reason, target = _attempt(facts, record, where, states)
    return Standing(
        booted=_bundle(record, facts.booted),
        other=next((_bundle(record, slot) for slot in others if states[slot] is SlotState.CONFIRMED), UNKNOWN),
        written=next((_bundle(record, slot) for slot in others if states[slot] is SlotState.WRITTEN), UNKNOWN),
        trial=where is Situation.ON_TRIAL or (where is Situation.REBOOT_PENDING and states[facts.booted] is SlotState.BAD),
        armed=where is Situation.ARMED or (where is Situation.REBOOT_PENDING and states[facts.booted] is not SlotState.BAD),
        lease=lease,
        phase=phase,
        reason=reason,
        target=target,
    )


def _attempt(
    facts: Facts, record: Record, where: Situation, states: Mapping[str, SlotState]
) -> tuple[int | None, Phase | None, str, bytes]:
    attempt = record.attempt
    if attempt is None:
        return None, None, "", UNKNOWN
    phase, reason, target = attempt.phase, attempt.reason, _id(attempt.bundle)
    if where is Situation.FELL_BACK and facts.boot is not None and facts.boot.trial == attempt.slot:
        # The service has not recorded it yet.
        phase, reason = Phase.REVERTED, machine.fallback_reason(facts)
    elif _went_back(attempt, record):
        phase = Phase.CONFIRMED if attempt.previous == facts.booted and states[facts.booted] is SlotState.CONFIRMED else Phase.ARMED
        reason, target = "", _bundle(record, attempt.previous)
    return attempt.lease, phase, reason, target


def _went_back(attempt: Attempt, record: Record) -> bool:
    """An ordered switch from one good slot to the other: nothing is wrong with the slot that was left, as it is after a failed trial."""
    left = record.slots.get(attempt.slot)
    return attempt.phase is Phase.REVERTED and attempt.previous != attempt.slot and left is not None and left.state is SlotState.CONFIRMED


def _bundle(record: Record, slot: str) -> bytes:
    known = record.slots.get(slot)
    return _id(known.bundle) if known else UNKNOWN


def _id(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        return UNKNOWN
    return found if len(found) == len(UNKNOWN) else UNKNOWN
