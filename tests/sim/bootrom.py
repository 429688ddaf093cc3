"""What starts the simulated device: one model for each bootloader's hook, over the modelled media."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from abupdate.formats.ubootenv import Environment
from tests.sim import uboot_hook_model as hook
from tests.sim.bootplace import BootRom, Started
from tests.sim.parts import OnEvent, Part, Running
from tests.sim.stores import EnvStore

# More boots than tries and both budgets together.
MANY_BOOTS = 30


@dataclass(frozen=True)
class UBootRom:
    """`BootRom` of U-Boot with bootloader-hooks/uboot."""

    store: EnvStore

    def power_up(self, store: Part, loads: frozenset[str]) -> Started:
        """See BootRom."""
        return _power_up(self.store, store, loads)


@cache
def _power_up(place: EnvStore, part: Part, loads: frozenset[str]) -> Started:
    index = place.current(part)
    copy = None if index is None else place.copies(part)[index]
    env = None if copy is None else _text(copy.environment)
    booted = hook.boot(env, loads)
    during: list[Part] = []
    for saved in booted.saves:
        assert copy is not None
        before = _text(copy.environment)
        changes = {name: value.encode() for name, value in saved.items() if before.get(name) != value}
        running = part.thaw()
        running.listen(_collector(running, during))
        place.write(running, part, copy.environment.changed(changes))
        part = running.freeze()
        now = place.current(part)
        assert now is not None
        copy = place.copies(part)[now]
    return Started(booted.slot, booted.trial, booted.failed, part, tuple(during))


def _collector(running: Running, during: list[Part]) -> OnEvent:
    return lambda step, inside: during.append(running.freeze())


def _text(environment: Environment) -> dict[str, str]:
    pairs = (entry.partition(b"=") for entry in environment.entries)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


@dataclass(frozen=True)
class Fate:
    """What boots from here on if nobody ever confirms. boots: distinct (slot, on trial); trials: boots on trial; row: most of them in a
    row; dark: slots of which one was started although its kernel does not start."""

    boots: frozenset[tuple[str | None, bool]]
    trials: int
    row: int
    dark: bool


@cache
def fate(rom: BootRom, store: Part, loads: frozenset[str]) -> Fate:
    """More boots than tries and budgets together."""
    boots: set[tuple[str | None, bool]] = set()
    trials, row, most, dark = 0, 0, 0, False
    for _ in range(MANY_BOOTS):
        started = rom.power_up(store, loads)
        store = started.store
        boots.add((started.slot, started.trial))
        trials += started.trial
        row = row + 1 if started.trial else 0
        most = max(most, row)
        dark = dark or started.slot is None or started.slot in started.failed
    return Fate(frozenset(boots), trials, most, dark)
