"""The U-Boot hook's decision as a pure function: which slot boots and what the environment holds afterwards.

It says what bootloader-hooks/uboot/boot.cmd does, for the crash simulator; tests/qemu/test_uboot_hook.py runs one table of scenarios
through both. Numbers are parsed as U-Boot does (hexadecimal up to the first strange character, 32 bits).
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass

SLOTS = ("A", "B")
DEFAULT_ORDER, DEFAULT_BUDGET, DEFAULT_TIMEOUT = "A B", "a", "78"
MAX_LEFT = 0xFF
MAX_TIMEOUT_S = 2046

_HEX = re.compile(r"(?:0[xX](?=[0-9a-fA-F]))?([0-9a-fA-F]*)")


@dataclass(frozen=True, slots=True)
class HookBoot:
    """What one run of the hook does.

    slot: the slot whose kernel is started, None: none could be, the hook resets the board. trial: it runs on trial.
    env: name -> value afterwards, None where no valid copy exists. writes: durable writes of the environment that were made.
    failed: slots whose kernel or initrd did not load or start. unsaved: the counter of the booted slot, or of a trial that was passed
    over for it, could not be written.
    timeout_s: on trial, what the kernel gets as abupdate.boot_timeout=, else 0. saves: the environment as each of the writes left it.
    """

    slot: str | None
    trial: bool
    env: Mapping[str, str] | None
    writes: int
    failed: tuple[str, ...]
    unsaved: bool
    timeout_s: int
    saves: tuple[Mapping[str, str], ...] = ()


def number(text: str) -> int:
    """A number as U-Boot's `itest` reads it; 0 where there is none."""
    match = _HEX.match(text)
    digits = match.group(1) if match else ""
    return int(digits or "0", 16) & 0xFFFFFFFF


def boot(env: Mapping[str, str] | None, loads: Container[str] = SLOTS, can_save: bool = True) -> HookBoot:
    """Run the hook once on the environment that counts (None: no copy is valid).

    loads: slots whose kernel and initrd load and start. can_save: False where the medium takes no write (or the copy is full).
    """
    hook = _Hook(env, loads, can_save)
    return hook.run()


class _Hook:
    def __init__(self, env: Mapping[str, str] | None, loads: Container[str], can_save: bool) -> None:
        self._stored = env
        self._env = dict(env or {})
        self._loads = loads
        self._can_save = can_save
        self._saves: list[Mapping[str, str]] = []
        self._failed: list[str] = []
        self._skipped = False
        self._order = self._get("BOOT_ORDER", DEFAULT_ORDER).split()
        self._trial = (self._get("BOOT_TRIAL", "").split() or [""])[-1]
        self._budget = number(self._get("BOOT_BUDGET", DEFAULT_BUDGET))
        self._full = min(max(self._budget, 1), MAX_LEFT)

    def run(self) -> HookBoot:
        ours = ("BOOT_ORDER", "BOOT_TRIAL", *map(_name, SLOTS))
        known = [slot for slot in self._order if slot in SLOTS]
        confirmed = [slot for slot in known if slot != self._trial]
        if self._stored is None or not any(self._get(name, "") for name in ours):
            return self._first(confirmed, unsaved=False)
        for slot in known:
            found = self._counted(slot)
            if found is not None:
                return found
        unsaved = bool(confirmed) and not self._save(dict.fromkeys(confirmed, self._full))
        return self._first(confirmed or [slot for slot in SLOTS if slot != self._trial], unsaved=unsaved)

    def _counted(self, slot: str) -> HookBoot | None:
        left = self._left(slot)
        if left == 0:
            return None
        trial = slot == self._trial
        unsaved = False
        if trial or self._budget > 0:
            unsaved = not self._save({slot: left - 1})
        if unsaved and trial:
            self._skipped = True
            return None
        return self._start(slot, unsaved)

    def _first(self, slots: list[str], unsaved: bool) -> HookBoot:
        for slot in slots:
            found = self._start(slot, unsaved)
            if found is not None:
                return found
        return self._result(None, unsaved=False)

    def _start(self, slot: str, unsaved: bool) -> HookBoot | None:
        if slot in self._loads:
            return self._result(slot, unsaved or self._skipped)
        if slot not in self._failed:
            self._failed.append(slot)
        return None

    def _result(self, slot: str | None, unsaved: bool) -> HookBoot:
        trial = slot is not None and slot == self._trial
        timeout = min(number(self._get("BOOT_TIMEOUT", DEFAULT_TIMEOUT)), MAX_TIMEOUT_S)
        env = None if self._stored is None else dict(self._env)
        return HookBoot(slot, trial, env, len(self._saves), tuple(self._failed), unsaved, timeout if trial else 0, tuple(self._saves))

    def _left(self, slot: str) -> int:
        stored = self._get(_name(slot), "")
        return min(number(stored), MAX_LEFT) if stored else self._full

    def _get(self, name: str, default: str) -> str:
        """U-Boot drops variables without a value when it imports them."""
        return self._env.get(name, "") or default

    def _save(self, values: Mapping[str, int]) -> bool:
        """One write of all values. A number shorter than the place of the old one gets zeros in front, as the hook leaves them."""
        if not self._can_save:
            return False
        for slot, value in values.items():
            self._env[_name(slot)] = f"{value:x}".rjust(len(self._env.get(_name(slot), "")), "0")
        self._saves.append(dict(self._env))
        return True


def _name(slot: str) -> str:
    return f"BOOT_{slot}_LEFT"
