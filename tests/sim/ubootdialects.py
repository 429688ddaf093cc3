"""Boards with Mender's or SWUpdate's boot script: U-Boot's environment on a disk, in their variables, started by a U-Boot that counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from abupdate.bootloaders.menderenv import Mender
from abupdate.bootloaders.swupdateenv import SWUpdate
from abupdate.bootloaders.uboot import UBootStore
from abupdate.bootloaders.ubootdialect import Dialect
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
}
_FACTORY: Mapping[str, tuple[bytes, ...]] = {
    "mender": (b"mender_boot_part=10", b"mender_boot_part_hex=a", b"mender_check_saveenv_canary=1", b"mender_saveenv_canary=1"),
    "swupdate": (b"rootfs_copy=1", b"ustate=0"),
}
# Mender's way back leaves nothing in the store, so the record says no more than is known.
_UNSEEN = ("unknown: the bootloader went back, or a cut came before the reason", "unknown: cut before the reason was recorded")


@dataclass(frozen=True)
class DialectPlace(EnvStore):
    """`BootPlace`. script: whose."""

    script: str = "mender"
    traits = BootTraits(max_tries=LIMIT, counts_confirmed=False, falls_through=False, armed_in_store=True)

    @property
    def policy(self) -> TrialPolicy:
        """See BootPlace."""
        return TrialPolicy(LIMIT, 0, 120)

    @property
    def reasons(self) -> tuple[str, ...]:
        """See BootPlace."""
        return _UNSEEN if self.script == "mender" else ("tries exhausted", *_UNSEEN)

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
        environment = Environment((*FOREIGN, *_FACTORY[self.script], b"bootlimit=%d" % LIMIT, b"bootcount=0", b"upgrade_available=0"))
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
    """`BootRom` of U-Boot with bootcount, and the script."""

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
    booted = model.boot(place.script, _text(copy.environment), loads)
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
