"""Boot state <-> variables of U-Boot's environment: RAUC's names, and ours beside them. Pure.

    BOOT_ORDER            slots that may boot, first one first, by spaces
    BOOT_<slot>_LEFT      boots left, hexadecimal as RAUC writes it
    BOOT_TRIAL            slot on trial; absent or empty: none
    BOOT_TRIES, BOOT_BUDGET, BOOT_TIMEOUT    the trial's numbers for the boot script, hexadecimal; its defaults are 3, a, 78
    BOOT_<slot>_VERITY    dm-verity root hash of the slot, hexadecimal; absent or empty: none
    BOOT_FLOOR            mirror of the security counter's floor, hexadecimal

Read as the boot script does, with a default for each that is missing alone: all slots in configured order; the budget (at least 1)
for a slot that is in the order, 0 for one that is not. Slots that are not configured are passed over, and leave BOOT_ORDER at the
next commit. Numbers count up to their first strange character, as U-Boot reads them: what is none at all is 0.
Fresh is a store without BOOT_ORDER and BOOT_TRIAL: a boot script may have counted on a board that abupdate never wrote to.
"""

from __future__ import annotations

import re

from abupdate.errors import ConfigError
from abupdate.formats.ubootenv import Environment
from abupdate.model import MAX_COUNTER, BootState, TrialPolicy

ORDER, _TRIAL, FLOOR = "BOOT_ORDER", "BOOT_TRIAL", "BOOT_FLOOR"
TRIES, _BUDGET, TIMEOUT = "BOOT_TRIES", "BOOT_BUDGET", "BOOT_TIMEOUT"
_DEFAULTS = TrialPolicy()
_HEX = re.compile(rb"(?:0[xX](?=[0-9a-fA-F]))?([0-9a-fA-F]+)")
_MAX_COUNT = (1 << 32) - 1


def left_name(slot: str) -> str:
    """Name of the variable that counts a slot's boots."""
    return f"BOOT_{slot}_LEFT"


def verity_name(slot: str) -> str:
    """Name of the variable with a slot's dm-verity root hash."""
    return f"BOOT_{slot}_VERITY"


def state_of(environment: Environment, slots: tuple[str, ...], assumed: TrialPolicy | None = None) -> BootState:
    """What the variables say about the configured slots; never raises. assumed: the boot script's own numbers where they are not ours."""
    # An empty BOOT_TRIAL is the same as none.
    fresh = environment.get(ORDER) is None and not environment.get(_TRIAL)
    policy = policy_in(environment, assumed or _DEFAULTS) or assumed
    order = order_in(environment, slots)
    full = max((policy or _DEFAULTS).budget, 1)
    left = {slot: _left(environment, slot, full if slot in order else 0) for slot in slots}
    trial = ([None, *words(environment.get(_TRIAL))])[-1]
    return BootState(
        order=order,
        left=left,
        trial=trial if trial in slots else None,
        policy=policy,
        floor=floor_in(environment.get(FLOOR)),
        fresh=fresh,
        verity={slot: root for slot in slots if (root := _root_hash(environment.get(verity_name(slot))))},
    )


def changed(environment: Environment, state: BootState, slots: tuple[str, ...]) -> Environment:
    """The environment with the whole state in it. A policy or floor that is None stays as the store has it.

    Raises ConfigError for a state without a bootable slot, with slots that are not configured or counters that no boot script can hold.
    """
    check(state, slots)
    values: dict[str, bytes | None] = {ORDER: " ".join(dict.fromkeys(state.order)).encode()}
    for slot in slots:
        values[left_name(slot)] = hexadecimal(state.left.get(slot, 0))
        values[verity_name(slot)] = state.verity[slot].encode() if state.verity.get(slot) else None
    values[_TRIAL] = state.trial.encode() if state.trial else None
    if state.policy is not None:
        numbers = {TRIES: state.policy.tries, _BUDGET: state.policy.budget, TIMEOUT: state.policy.boot_timeout_s}
        values.update({name: hexadecimal(number) for name, number in numbers.items()})
    if state.floor is not None:
        values[FLOOR] = hexadecimal(state.floor, MAX_COUNTER)
    return environment.changed(values)


def check(state: BootState, slots: tuple[str, ...]) -> None:
    """Raises ConfigError for a state without a bootable slot, or with slots that are not configured."""
    strangers = [slot for slot in (*state.order, *state.left, state.trial or slots[0]) if slot not in slots]
    if strangers:
        raise ConfigError(f"slot {strangers[0]!r} is not configured", f"configured are {', '.join(slots)}")
    if not state.order:
        raise ConfigError("a boot order without a slot would leave the device dark", "at least the running slot belongs into it")


def order_in(environment: Environment, slots: tuple[str, ...]) -> tuple[str, ...]:
    """The configured slots of BOOT_ORDER, all of them where there is none."""
    raw = environment.get(ORDER)
    if raw is None:
        return slots
    return tuple(dict.fromkeys(slot for slot in words(raw) if slot in slots))


def words(raw: bytes | None) -> list[str]:
    """What lies between spaces."""
    return (raw or b"").decode(errors="replace").split()


def _left(environment: Environment, slot: str, default: int) -> int:
    raw = environment.get(left_name(slot))
    return default if raw is None else counter(raw)


def policy_in(environment: Environment, defaults: TrialPolicy = _DEFAULTS) -> TrialPolicy | None:
    """The numbers for the boot script, None where none of them is there."""
    raw = {name: environment.get(name) for name in (TRIES, _BUDGET, TIMEOUT)}
    if all(value is None for value in raw.values()):
        return None
    numbers = {name: counter(value) for name, value in raw.items() if value is not None}
    return TrialPolicy(
        tries=numbers.get(TRIES) or defaults.tries,
        budget=numbers.get(_BUDGET, defaults.budget),
        boot_timeout_s=numbers.get(TIMEOUT, defaults.boot_timeout_s),
    )


def counter(raw: bytes) -> int:
    """Hexadecimal, up to the first strange character."""
    match = _HEX.match(raw)
    return int(match.group(1)[-8:], 16) if match else 0


def _root_hash(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="replace").strip()


def floor_in(raw: bytes | None) -> int | None:
    """The mirror of the floor, None where there is none, or none that can be."""
    match = _HEX.fullmatch(raw or b"")
    number = int(match.group(1), 16) if match else MAX_COUNTER + 1
    # What no bundle can reach is damage: it must not lock every update out.
    return number if number <= MAX_COUNTER else None


def hexadecimal(number: int, most: int = _MAX_COUNT) -> bytes:
    """As it is stored. Raises ConfigError beyond `most`."""
    if not 0 <= number <= most:
        raise ConfigError(f"{number} does not fit into the U-Boot environment", f"0 to {most} do")
    return b"%x" % number
