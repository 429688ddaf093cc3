"""The GRUB hook's decision as a pure function: which slot boots and what the environment block holds afterwards.

It says what bootloader-hooks/grub/grub.cfg does, for the crash simulator; tests/qemu/test_grub_hook.py runs one table of scenarios
through both. `rauc_boot` is RAUC's script for GRUB, after its documented variables.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from tests.sim.uboot_hook_model import SLOTS, HookBoot

DEFAULT_ORDER, DEFAULT_BUDGET, DEFAULT_TIMEOUT_S = "A B", "10", 120
# The hook's table of numbers ends here.
MAX_LEFT = 15
NAMES = ("ORDER", "TRIAL", "A_LEFT", "B_LEFT")


def number(text: str) -> int:
    """What the hook makes of a count."""
    return min(int(text), MAX_LEFT) if re.fullmatch("[0-9]+", text) else 0


def timeout(text: str) -> int:
    """Seconds that the kernel gets."""
    return int(text) if re.fullmatch("0+|0*[1-9][0-9]{0,4}", text) else DEFAULT_TIMEOUT_S


def boot(env: Mapping[str, str] | None, loads: Container[str] = SLOTS, can_save: bool = True) -> HookBoot:
    """Run the hook once on the block's variables (None: it is no block).

    loads: slots whose kernel and initrd load. can_save: False where GRUB's write fails, or is lost.
    """
    return _Hook(env, loads, can_save).run()


class _Hook:
    def __init__(self, env: Mapping[str, str] | None, loads: Container[str], can_save: bool) -> None:
        self._stored = env
        self._env = dict(env or {})
        self._loads = loads
        self._can_save = can_save
        self._saves: list[Mapping[str, str]] = []
        self._failed: list[str] = []
        self._skipped = False
        self._order = (self._env.get("ORDER") or DEFAULT_ORDER).split()
        self._trial = (self._env.get("TRIAL", "").split() or [""])[-1]
        self._budget = number(self._env.get("BUDGET") or DEFAULT_BUDGET)
        self._full = max(self._budget, 1)

    def run(self) -> HookBoot:
        known = [slot for slot in self._order if slot in SLOTS]
        confirmed = [slot for slot in known if slot != self._trial]
        others = confirmed or [slot for slot in SLOTS if slot != self._trial]
        if self._stored is None or not any(self._env.get(name) for name in NAMES):
            return self._first(others, unsaved=False)
        for slot in known:
            found = self._counted(slot)
            if found is not None:
                return found
        unsaved = bool(confirmed) and not self._save(dict.fromkeys(confirmed, self._full))
        return self._first(others, unsaved=unsaved)

    def _counted(self, slot: str) -> HookBoot | None:
        left = number(self._env.get(f"{slot}_LEFT") or str(self._full))
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
        env = None if self._stored is None else dict(self._env)
        seconds = timeout(self._env.get("TIMEOUT", "")) if trial else 0
        return HookBoot(slot, trial, env, len(self._saves), tuple(self._failed), unsaved, seconds, tuple(self._saves))

    def _save(self, values: Mapping[str, int]) -> bool:
        """One write of all values."""
        if not self._can_save:
            return False
        self._env.update({f"{slot}_LEFT": f"{value:02}" for slot, value in values.items()})
        self._saves.append(dict(self._env))
        return True


def rauc_boot(env: Mapping[str, str] | None, loads: Container[str] = SLOTS) -> HookBoot:
    """RAUC's script once. No fall through: a slot whose kernel does not load is what boots, and then nothing runs.

    Where every slot was tried, those that are good get their try back and a rescue system starts: here the first good one at the next
    start.
    """
    values = {"ORDER": "A B", **dict.fromkeys(("A_OK", "B_OK", "A_TRY", "B_TRY"), "0"), **(env or {})}
    chosen = None
    for slot in values["ORDER"].split():
        if slot not in SLOTS:
            continue
        fits = values[f"{slot}_OK"] == "1" and values[f"{slot}_TRY"] == "0"
        values[f"{slot}_TRY"] = "1"
        if fits:
            chosen = slot
            break
    if chosen is None:
        for slot in SLOTS:
            if values[f"{slot}_OK"] == "1":
                values[f"{slot}_TRY"] = "0"
    after = None if env is None else {**env, "A_TRY": values["A_TRY"], "B_TRY": values["B_TRY"]}
    saves = () if after is None else (after,)
    failed = (chosen,) if chosen is not None and chosen not in loads else ()
    return HookBoot(chosen, False, after, len(saves), failed, False, 0, saves)
