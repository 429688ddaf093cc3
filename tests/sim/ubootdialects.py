"""Boards with Mender's, SWUpdate's or RAUC's boot script: U-Boot's environment on a disk, in their variables, started by what counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from abupdate.bootloaders.menderenv import Mender
from abupdate.bootloaders.swupdateenv import SWUpdate
from abupdate.bootloaders.uboot import UBootStore
from abupdate.bootloaders.ubootdialect import Dialect, Native
from abupdate.formats.ubootenv import Environment, encode
from abupdate.model import BootState, BootTraits, TrialPolicy
from tests.sim import uboot_counting_model as model
from tests.sim.bootplace import SLOTS, BootRom, Started
from tests.sim.parts import Part, Running
from tests.sim.stores import FOREIGN, EnvStore, OnBlock, config_of

LIMIT = 3
_DIALECTS: Mapping[str, Dialect] = {
    "mender": Mender(SLOTS, model.PARTS),
    "swupdate": SWUpdate(SLOTS, "rootfs_copy", model.COPIES),
    "rauc": Native(SLOTS, rauc=True),
}
_COUNTER = (b"bootlimit=%d" % LIMIT, b"bootcount=0", b"upgrade_available=0")
_FACTORY: Mapping[str, tuple[bytes, ...]] = {
    "mender": (b"mender_boot_part=10", b"mender_boot_part_hex=a", b"mender_check_saveenv_canary=1", b"mender_saveenv_canary=1", *_COUNTER),
    "swupdate": (b"rootfs_copy=1", b"ustate=0", *_COUNTER),
    "rauc": (b"BOOT_ORDER=A", b"BOOT_A_LEFT=3", b"BOOT_B_LEFT=0"),
}
# Mender's way back leaves nothing in the store, so the record says no more than is known.
_UNSEEN = ("unknown: the bootloader went back, or a cut came before the reason", "unknown: cut before the reason was recorded")


@dataclass(frozen=True)
class DialectPlace(EnvStore):
    """`BootPlace`. script: whose."""

    script: str = "mender"

    @property
    def traits(self) -> BootTraits:  # type: ignore[override]
        """See BootPlace."""
        return _DIALECTS[self.script].traits(lambda: Environment(_COUNTER))

    @property
    def policy(self) -> TrialPolicy:
        """See BootPlace."""
        return TrialPolicy(LIMIT, 9 if self.script == "rauc" else 0, 120)

    @property
    def gives_back(self) -> bool:
        """See BootPlace: RAUC's script, to every slot of the order, once none may boot."""
        return self.script == "rauc"

    @property
    def reasons(self) -> tuple[str, ...]:
        """See BootPlace."""
        return {"mender": _UNSEEN, "swupdate": ("tries exhausted", *_UNSEEN), "rauc": ("tries exhausted",)}[self.script]

    @property
    def rom(self) -> BootRom:
        """See BootPlace."""
        return CountingRom(self)

    def erased(self) -> Part | None:
        """See BootPlace: without a valid copy this U-Boot runs what it was built with, which is not modelled."""
        return None

    def blank(self) -> Part:
        """See BootPlace."""
        running = self.media.blank().thaw()
        environment = Environment((*FOREIGN, *_FACTORY[self.script]))
        self.media.save(running, 0, encode(environment, self.media.copy_bytes, self.media.scheme, 1))
        return running.freeze()

    def state(self, part: Part) -> BootState | None:
        """See BootPlace."""
        index = self.current(part)
        copy = None if index is None else self.copies(part)[index]
        return None if copy is None else _DIALECTS[self.script].state_of(copy.environment)

    def bootloader(self, running: Running, folder: Path) -> UBootStore:
        """See BootPlace."""
        return UBootStore(
            config_of(self, folder),
            SLOTS,
            dialect=_DIALECTS[self.script],
            lock_path=folder / f"lock.{os.getpid()}",
            lock_wait_s=0.0,
            default_environment=folder / "none",
            find_area=lambda location: self.media.area(running, location),
        )


@dataclass(frozen=True)
class CountingRom:
    """`BootRom` of U-Boot, with bootcount where the script lives on that, and the script."""

    place: DialectPlace

    def power_up(self, store: Part, loads: frozenset[str]) -> Started:
        """See BootRom."""
        return _power_up(self.place, store, loads)


@cache
def _power_up(place: DialectPlace, part: Part, loads: frozenset[str]) -> Started:
    index = place.current(part)
    assert index is not None
    copy = place.copies(part)[index]
    assert copy is not None
    env = _text(copy.environment)
    booted = model.rauc_boot(env, loads) if place.script == "rauc" else model.boot(place.script, env, loads)
    during: list[Part] = []
    for saved in booted.saves:
        now = place.current(part)
        assert now is not None
        stored = place.copies(part)[now]
        assert stored is not None
        before = _text(stored.environment)
        changes = {name: value.encode() for name, value in saved.items() if before.get(name) != value}
        running = part.thaw()
        running.listen(lambda step, inside, running=running: during.append(running.freeze()))  # type: ignore[misc]
        place.write(running, part, stored.environment.changed(changes))
        part = running.freeze()
    return Started(booted.slot, booted.trial, booted.failed, part, tuple(during))


def _text(environment: Environment) -> dict[str, str]:
    pairs = (entry.partition(b"=") for entry in environment.entries)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


PLACES = tuple(DialectPlace(script, OnBlock(512, 1536), script) for script in _DIALECTS)
