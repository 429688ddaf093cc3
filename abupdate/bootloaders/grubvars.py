"""Boot state <-> variables of GRUB's environment block, for our own hook and for RAUC's boot script. Pure.

    ORDER                 slots that may boot, first one first, by spaces
    TRIAL                 slot on trial; absent or empty: none
    FLOOR                 mirror of the security counter's floor

Our hook (bootloader-hooks/grub) has besides, all numbers decimal:

    <slot>_LEFT           boots left, two digits: GRUB counts them down without moving what stands behind
    <slot>_VERITY         dm-verity root hash of the slot; absent or empty: none
    TRIES, BUDGET, TIMEOUT    the trial's numbers; the hook's defaults are 3, 10, 120

RAUC's script has <slot>_OK (1: may boot) and <slot>_TRY (1: has been started and nobody has said that it works), and neither counts
nor knows of trials: TRIAL and FLOOR are the agent's own there, and a slot has one boot at most.

What is missing is read as the hook reads it: all slots in configured order; the budget (at least 1) for a slot that is in the order, 0
for one that is not. Under RAUC's script a missing _OK or _TRY is 0. Fresh is a block without ORDER and TRIAL.
"""

from __future__ import annotations

import re

from abupdate.errors import ConfigError
from abupdate.formats.grubenv import Block
from abupdate.model import MAX_COUNTER, BootState, TrialPolicy

_DEFAULTS = TrialPolicy()
_NUMBER = re.compile(rb"[0-9]+")
# Two digits.
MAX_COUNT = 99
_MAX_POLICY = 99999
# RAUC's script counts no further.
_ONE_TRY = TrialPolicy(tries=1, budget=0, boot_timeout_s=_DEFAULTS.boot_timeout_s)
Values = dict[str, bytes | None]


def state_of(block: Block, slots: tuple[str, ...]) -> BootState:
    """What our hook's variables say about the configured slots; never raises."""
    order = _order(block, slots)
    policy = _policy(block)
    full = max((policy or _DEFAULTS).budget, 1)
    return BootState(
        order=order,
        left={slot: _left(block, slot, full if slot in order else 0) for slot in slots},
        trial=_trial(block, slots),
        policy=policy,
        floor=_floor(block),
        fresh=_fresh(block),
        verity={slot: root for slot in slots if (root := (block.get(f"{slot}_VERITY") or b"").decode(errors="replace").strip())},
    )


def values_of(state: BootState, found: BootState, slots: tuple[str, ...]) -> Values:
    """Our hook's variables. found: what the store says, whose policy and floor stay where `state` has none.

    Raises ConfigError for a state without a bootable slot, with slots that are not configured or counters that have no room.
    """
    values = _common(state, slots)
    policy = state.policy or found.policy
    for slot in slots:
        values[f"{slot}_LEFT"] = _decimal(state.left.get(slot, 0), MAX_COUNT).rjust(2, b"0")
    values["TRIES"] = None if policy is None else _decimal(policy.tries, _MAX_POLICY)
    values["BUDGET"] = None if policy is None else _decimal(policy.budget, _MAX_POLICY)
    values["TIMEOUT"] = None if policy is None else _decimal(policy.boot_timeout_s, _MAX_POLICY)
    for slot in slots:
        values[f"{slot}_VERITY"] = state.verity[slot].encode() if state.verity.get(slot) else None
    values["FLOOR"] = _kept_floor(state, found)
    return values


def strangers_in(block: Block, slots: tuple[str, ...]) -> tuple[str, ...]:
    """Names in ORDER and TRIAL that are of no configured slot; nothing here believes them."""
    named = (*_words(block.get("ORDER")), *_words(block.get("TRIAL")))
    return tuple(dict.fromkeys(name for name in named if name and name not in slots))


def rauc_state_of(block: Block, slots: tuple[str, ...]) -> BootState:
    """What RAUC's variables say about the configured slots; never raises."""
    listed = _order(block, slots)
    fresh = _fresh(block)
    # A board whose script has never saved anything: it takes what its defaults say, and so nothing may be concluded from it.
    good = {slot: fresh or _number(block.get(f"{slot}_OK"), MAX_COUNT) == 1 for slot in slots}
    tried = {slot: _number(block.get(f"{slot}_TRY"), MAX_COUNT) != 0 for slot in slots}
    order = tuple(slot for slot in listed if good[slot])
    left = {slot: int(slot in order and not tried[slot]) for slot in slots}
    return BootState(order=order, left=left, trial=_trial(block, slots), policy=_ONE_TRY, floor=_floor(block), fresh=fresh)


def rauc_values_of(state: BootState, found: BootState, slots: tuple[str, ...]) -> Values:
    """RAUC's variables. found: as in `values_of`. Raises ConfigError as `values_of`, and for what RAUC's script cannot do."""
    values = _common(state, slots)
    if any(count > 1 for count in state.left.values()):
        raise ConfigError("RAUC's boot script for GRUB gives a slot one boot", "set tries = 1 and confirmed_tries = 0")
    if state.verity:
        raise ConfigError("RAUC's boot script for GRUB hands no root hash to the kernel", 'use bootloader-hooks/grub and dialect = ""')
    for slot in slots:
        values[f"{slot}_OK"] = b"1" if slot in state.order else b"0"
        values[f"{slot}_TRY"] = b"0" if state.left.get(slot, 0) or slot not in state.order else b"1"
    values["FLOOR"] = _kept_floor(state, found)
    return values


def _common(state: BootState, slots: tuple[str, ...]) -> Values:
    strangers = [slot for slot in (*state.order, *state.left, state.trial or slots[0]) if slot not in slots]
    if strangers:
        raise ConfigError(f"slot {strangers[0]!r} is not configured", f"configured are {', '.join(slots)}")
    if not state.order:
        raise ConfigError("a boot order without a slot would leave the device dark", "at least the running slot belongs into it")
    return {"ORDER": " ".join(dict.fromkeys(state.order)).encode(), "TRIAL": state.trial.encode() if state.trial else None}


def _kept_floor(state: BootState, found: BootState) -> bytes | None:
    floor = found.floor if state.floor is None else state.floor
    return None if floor is None else _decimal(floor, MAX_COUNTER)


def _floor(block: Block) -> int | None:
    raw = block.get("FLOOR")
    # What no bundle can reach is damage: it must not lock every update out.
    return _number(raw, MAX_COUNTER + 1) if raw and _number(raw, MAX_COUNTER + 1) <= MAX_COUNTER else None


def _fresh(block: Block) -> bool:
    return block.get("ORDER") is None and not block.get("TRIAL")


def _order(block: Block, slots: tuple[str, ...]) -> tuple[str, ...]:
    raw = block.get("ORDER")
    if not raw:
        return slots
    return tuple(dict.fromkeys(slot for slot in _words(raw) if slot in slots))


def _trial(block: Block, slots: tuple[str, ...]) -> str | None:
    trial = ([None, *_words(block.get("TRIAL"))])[-1]
    return trial if trial in slots else None


def _words(raw: bytes | None) -> list[str]:
    return re.sub(r"[ \t\n]+", " ", (raw or b"").decode(errors="replace")).strip(" ").split(" ")


def _left(block: Block, slot: str, default: int) -> int:
    raw = block.get(f"{slot}_LEFT")
    return _number(raw, MAX_COUNT) if raw else default


def _policy(block: Block) -> TrialPolicy | None:
    raw = {name: block.get(name) for name in ("TRIES", "BUDGET", "TIMEOUT")}
    if not any(raw.values()):
        return None
    numbers = {name: _number(value, _MAX_POLICY) for name, value in raw.items() if value}
    return TrialPolicy(
        tries=numbers.get("TRIES") or _DEFAULTS.tries,
        budget=numbers.get("BUDGET", _DEFAULTS.budget),
        boot_timeout_s=numbers.get("TIMEOUT", _DEFAULTS.boot_timeout_s),
    )


def _number(raw: bytes | None, most: int) -> int:
    """A decimal number, at most `most`; 0 where it is none."""
    return min(int(raw), most) if raw and _NUMBER.fullmatch(raw) else 0


def _decimal(number: int, most: int) -> bytes:
    if not 0 <= number <= most:
        raise ConfigError(f"{number} does not fit into GRUB's environment block", f"0 to {most} do")
    return b"%d" % number
