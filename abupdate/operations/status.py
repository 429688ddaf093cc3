"""`status`: where the device stands, from facts alone, without changing anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from abupdate import machine
from abupdate.model import Attempt, Facts, Phase, Situation
from abupdate.operations.board import Board, observe


def status(board: Board, compatible: str, images: Mapping[str, Mapping[str, Path]], window_s: int) -> dict[str, object]:
    """The document of `status --json`. Raises StoreUnreadable. images: slot -> image -> device."""
    facts = observe(board)
    assert facts.boot is not None
    record = machine.base_record(facts)
    states = machine.slot_states(facts)
    where = machine.situation(facts)
    boot = machine.effective(facts)
    assert boot is not None
    trial: dict[str, object] | None = None
    if boot.trial is not None and where is not Situation.FELL_BACK:
        running = where is Situation.ON_TRIAL
        deadline = max(0.0, round(window_s - board.boot.boottime_s(), 1)) if running else None
        trial = {"slot": boot.trial, "tries_left": boot.left.get(boot.trial, 0), "deadline_s": deadline}
    slots: dict[str, object] = {}
    for slot in board.slots:
        known = record.slots.get(slot)
        slots[slot] = {
            "state": states[slot].value,
            "version": known.version if known else "",
            "bundle": known.bundle if known else "",
            "boots_left": boot.left.get(slot, 0),
            "images": {name: {"device": str(device)} for name, device in images[slot].items()},
        }
    primary = facts.booted if where is Situation.FELL_BACK else machine.next_boot(facts)
    return {
        "compatible": compatible,
        "booted": facts.booted,
        "primary": primary,
        "situation": where.value,
        "trial": trial,
        "slots": slots,
        "floor": machine.floor(facts),
        "record": "lost" if facts.record is None else "whole",
        "attempt": _attempt(facts, record.attempt, where),
        "note": note(facts, where),
    }


def _attempt(facts: Facts, attempt: Attempt | None, where: Situation) -> dict[str, object] | None:
    boot = facts.boot
    if where is Situation.FELL_BACK and boot is not None and boot.trial is not None:
        # The service has not recorded it yet: say what it will find.
        slot = boot.trial
        base = attempt if attempt and attempt.slot == slot else Attempt(slot, Phase.ARMED, "")
        return _shown(base, Phase.REVERTED.value, machine.fallback_reason(facts))
    return None if attempt is None else _shown(attempt, attempt.phase.value, attempt.reason)


def _shown(attempt: Attempt, phase: str, reason: str) -> dict[str, object]:
    return {
        "slot": attempt.slot,
        "phase": phase,
        "version": attempt.version,
        "bundle": attempt.bundle,
        "previous": attempt.previous,
        "lease": attempt.lease,
        "reason": reason,
    }


def note(facts: Facts, where: Situation) -> str:
    """One sentence for a person: what is going on and what is needed."""
    boot = machine.effective(facts)
    assert boot is not None
    match where:
        case Situation.ON_TRIAL:
            return f"slot {facts.booted} runs on trial; it falls back unless it is confirmed in time"
        case Situation.ARMED:
            return f"slot {boot.trial} is armed: reboot needed"
        case Situation.FELL_BACK:
            return f"slot {boot.trial} fell back to slot {facts.booted}: {machine.fallback_reason(facts)}"
        case Situation.UNKNOWN:
            return f"unknown: slot {boot.trial} is marked on trial and the record is lost; see `abupdate doctor`"
        case Situation.REBOOT_PENDING:
            return f"slot {boot.order[0] if boot.order else '?'} boots next: reboot needed"
        case Situation.FELL_THROUGH:
            return f"slot {boot.order[0] if boot.order else '?'} should have booted and did not; running on slot {facts.booted}"
        case _:
            return ""
