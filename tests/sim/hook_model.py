"""What our boot hooks decide, as a pure function: which slot boots and what the store holds afterwards, in the words of each bootloader.

uboot_hook_model.py and grub_hook_model.py say the words; the tests that boot the real hooks run one table of scenarios through both.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

SLOTS = ("A", "B")
DEFAULT_ORDER = "A B"


@dataclass(frozen=True, slots=True)
class HookBoot:
    """What one run of a hook does.

    slot: the slot whose kernel is started, None: none could be, the hook resets the board. trial: it runs on trial.
    env: name -> value afterwards, None where the store is none. writes: durable writes of the store that were made.
    failed: slots whose kernel or initrd did not load or start. unsaved: the counter of the booted slot, or of a trial that was passed
    over for it, could not be written.
    timeout_s: on trial, what the kernel gets as abupdate.boot_timeout=, else 0. saves: the store as each of the writes left it.
    """

    slot: str | None
    trial: bool
    env: Mapping[str, str] | None
    writes: int
    failed: tuple[str, ...]
    unsaved: bool
    timeout_s: int
    saves: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Words:
    """How a hook reads and writes. prefix: before every name. budget: where the store has none. most: the largest count.

    number: of a text. timeout_s: of the text, empty where there is none. written: a count's text, by the text that it replaces.
    """

    prefix: str
    budget: str
    most: int
    number: Callable[[str], int]
    timeout_s: Callable[[str], int]
    written: Callable[[int, str], str]


def boot(words: Words, env: Mapping[str, str] | None, loads: Container[str], can_save: bool) -> HookBoot:
    """Run a hook once on the variables that count (None: the store is none).

    loads: slots whose kernel and initrd load and start. can_save: False where the medium takes no write (or the store is full).
    """
    return _Hook(words, env, loads, can_save).run()


class _Hook:
    def __init__(self, words: Words, env: Mapping[str, str] | None, loads: Container[str], can_save: bool) -> None:
        self._words = words
        self._stored = env
        self._env = dict(env or {})
        self._loads = loads
        self._can_save = can_save
        self._saves: list[Mapping[str, str]] = []
        self._failed: list[str] = []
        self._skipped = False
        self._order = (self._get("ORDER") or DEFAULT_ORDER).split()
        self._trial = (self._get("TRIAL").split() or [""])[-1]
        self._budget = words.number(self._get("BUDGET") or words.budget)
        self._full = min(max(self._budget, 1), words.most)

    def run(self) -> HookBoot:
        known = [slot for slot in self._order if slot in SLOTS]
        confirmed = [slot for slot in known if slot != self._trial]
        others = confirmed or [slot for slot in SLOTS if slot != self._trial]
        if self._stored is None or not any(map(self._get, ("ORDER", "TRIAL", *(f"{slot}_LEFT" for slot in SLOTS)))):
            return self._first(others, unsaved=False)
        for slot in known:
            found = self._counted(slot)
            if found is not None:
                return found
        unsaved = bool(confirmed) and not self._save(dict.fromkeys(confirmed, self._full))
        return self._first(others, unsaved=unsaved)

    def _counted(self, slot: str) -> HookBoot | None:
        stored = self._get(f"{slot}_LEFT")
        left = min(self._words.number(stored), self._words.most) if stored else self._full
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
        seconds = self._words.timeout_s(self._get("TIMEOUT")) if trial else 0
        env = None if self._stored is None else dict(self._env)
        return HookBoot(slot, trial, env, len(self._saves), tuple(self._failed), unsaved, seconds, tuple(self._saves))

    def _get(self, name: str) -> str:
        """Empty is the same as absent: U-Boot drops variables without a value when it imports them."""
        return self._env.get(self._words.prefix + name, "")

    def _save(self, values: Mapping[str, int]) -> bool:
        """One write of all values."""
        if not self._can_save:
            return False
        for slot, value in values.items():
            name = f"{self._words.prefix}{slot}_LEFT"
            self._env[name] = self._words.written(value, self._env.get(name, ""))
        self._saves.append(dict(self._env))
        return True
