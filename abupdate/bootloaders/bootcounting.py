"""What Mender's and SWUpdate's boot scripts have in common: U-Boot's own boot counter, and abupdate's notes beside it. Pure.

    bootlimit            boots that a slot on trial has, decimal. Not there: 1, written when a trial is armed, since U-Boot itself takes it
                         for 0, and at 0 it never leaves the trial: that is refused
    bootcount            how many of them are used up, decimal; U-Boot counts (CONFIG_BOOTCOUNT_ENV) while upgrade_available is 1
    upgrade_available    1: a slot is on trial
    BOOT_ORDER           ours: the slots that are good, first one first; believed only where its first is the one that the script boots,
                         since the script changes slots without it
    BOOT_<slot>_LEFT     ours: boots of a confirmed slot, hexadecimal, where they are not 1
    BOOT_TRIES, BOOT_TIMEOUT, BOOT_FLOOR    ours, hexadecimal, as in ubootvars.py

All of them change in one commit. Used up, U-Boot runs `altbootcmd`, which goes back by itself: what it leaves says so or does not,
and then abupdate's record alone knows that there was a trial.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from abupdate.bootloaders.ubootvars import FLOOR, ORDER, TIMEOUT, TRIES, check, counter, floor_in, hexadecimal, left_name, words
from abupdate.errors import ConfigError
from abupdate.formats.ubootenv import Environment
from abupdate.model import MAX_COUNTER, BootState, BootTraits, Finding, Grade, TrialPolicy

LIMIT, COUNT, AVAILABLE, ALTERNATIVE = "bootlimit", "bootcount", "upgrade_available", "altbootcmd"
TOPIC = "boot script"
_DEFAULT_LIMIT = 1
_MOST = 0xFF
_DECIMAL = re.compile(rb"[0-9]{1,9}")


def traits(environment: Environment | None) -> BootTraits:
    """A trial has as many boots as bootlimit says. Where that is none, or no environment is valid, it is not the number of tries that is
    wrong: reading, or arming, says what is."""
    most = _MOST if environment is None else min(limit(environment), _MOST) or _MOST
    return BootTraits(max_tries=most, counts_confirmed=False, falls_through=False, armed_in_store=True)


def limit(environment: Environment) -> int:
    """Boots that U-Boot allows, 0: it does not count."""
    raw = environment.get(LIMIT)
    return _DEFAULT_LIMIT if raw is None else _decimal(raw)


def counting(environment: Environment) -> bool:
    """U-Boot counts boots."""
    return bool(_decimal(environment.get(AVAILABLE) or b""))


def left(environment: Environment) -> int:
    """Boots that a slot on trial has left."""
    return min(max(limit(environment) - _decimal(environment.get(COUNT) or b""), 0), _MOST)


def noted_order(environment: Environment, slots: tuple[str, ...]) -> tuple[str, ...]:
    """Our note of the good slots; empty where there is none."""
    return tuple(dict.fromkeys(slot for slot in words(environment.get(ORDER)) if slot in slots))


def state_of(environment: Environment, slots: tuple[str, ...], first: str, *, on_trial: bool) -> BootState:
    """The state in which the script boots `first`."""
    order = noted_order(environment, slots)
    others = tuple(slot for slot in slots if slot != first)
    noted = bool(order) and order[0] == first
    if not noted:
        order = (first,)
    boots = dict.fromkeys(slots, 0)
    for slot in order:
        raw = environment.get(left_name(slot)) if noted else None
        boots[slot] = 1 if raw is None else counter(raw)
    if on_trial:
        # Whatever we noted, the script's way back is the other one.
        order = order if len(order) > 1 else (first, *others)
        boots = {**boots, **{slot: boots[slot] or 1 for slot in order}, first: left(environment)}
    timeout = counter(environment.get(TIMEOUT) or b"") or TrialPolicy().boot_timeout_s
    tries = counter(environment.get(TRIES) or b"") or limit(environment) or _DEFAULT_LIMIT
    policy = TrialPolicy(tries, 0, timeout)
    fresh = environment.get(ORDER) is None and not on_trial
    return BootState(order, boots, first if on_trial else None, policy, floor_in(environment.get(FLOOR)), fresh)


def begun(environment: Environment, state: BootState) -> Environment:
    """What a store is written anew from: with a bootlimit, without which it would allow fewer tries than are configured."""
    if environment.get(LIMIT) is not None or state.policy is None:
        return environment
    return environment.changed({LIMIT: b"%d" % state.policy.tries})


def values(environment: Environment, state: BootState, slots: tuple[str, ...]) -> dict[str, bytes | None]:
    """The common variables for a state; a policy or floor that is None stays as the store has it. Raises ConfigError for a state that
    such a script cannot hold."""
    check(state, slots)
    if state.verity:
        raise ConfigError(
            "this boot script hands no dm-verity root hash to the kernel", "use our own boot script, or an image without verity"
        )
    order = tuple(dict.fromkeys(state.order))
    found: dict[str, bytes | None] = {ORDER: " ".join(order).encode(), COUNT: b"0", AVAILABLE: b"0"}
    for slot in slots:
        boots = state.left.get(slot, 0)
        plain = slot == state.trial or slot not in order or boots == 1
        found[left_name(slot)] = None if plain else hexadecimal(boots, _MOST)
    if state.trial is not None:
        found.update(_armed(environment, state, order))
    if state.policy is not None:
        found.update({TRIES: hexadecimal(state.policy.tries, _MOST), TIMEOUT: hexadecimal(state.policy.boot_timeout_s)})
    if state.floor is not None:
        found[FLOOR] = hexadecimal(state.floor, MAX_COUNTER)
    return found


def _armed(environment: Environment, state: BootState, order: tuple[str, ...]) -> dict[str, bytes | None]:
    if order[0] != state.trial or len(order) == 1:
        raise ConfigError(
            f"a trial of slot {state.trial} without a good slot behind it would leave the device dark",
            "at least the running slot belongs there",
        )
    most, boots = limit(environment), state.left.get(order[0], 0)
    if not most:
        raise ConfigError("bootlimit is 0: U-Boot would never leave a trial", f"fw_setenv {LIMIT} {boots or _DEFAULT_LIMIT}")
    if boots > most:
        hint = f"fw_setenv {LIMIT} {boots}, or set [trial] tries = {most}"
        raise ConfigError(f"a trial of {boots} boots does not fit below U-Boot's bootlimit of {most}", hint)
    armed: dict[str, bytes | None] = {COUNT: b"%d" % (most - boots), AVAILABLE: b"1"}
    return armed if environment.get(LIMIT) is not None else {**armed, LIMIT: b"%d" % most}


def inspect(environment: Environment) -> Iterator[Finding]:
    """What `doctor` says of the counter."""
    raw = environment.get(LIMIT)
    if raw is None:
        text = "bootlimit is not set: U-Boot would count no boots; the next flash writes 1"
        yield Finding(Grade.WARN, TOPIC, text, f"fw_setenv {LIMIT} 1 (or as many tries as a trial shall have)")
    elif not limit(environment):
        yield Finding(Grade.FAIL, TOPIC, f"bootlimit is {_shown(raw)}: U-Boot would never leave a trial", f"fw_setenv {LIMIT} 1")
    if environment.get(ALTERNATIVE) is None:
        text = "there is no altbootcmd: beyond bootlimit U-Boot stops at its prompt, unless the boot script itself looks at bootcount"
        yield Finding(Grade.WARN, TOPIC, text, "bootloader-hooks/README.md shows the lines that go back to the other slot")


def _decimal(raw: bytes) -> int:
    match = _DECIMAL.match(raw)
    return int(match.group()) if match else 0


def _shown(raw: bytes) -> str:
    return ascii(raw[:40].decode(errors="replace"))
