"""GRUB's environment block in a file: the production store over it, our hook or RAUC's script as the boot side, GRUB's own writes.

The block has no checksum: a disk that tears a sector of 512 bytes, which none is known to do, could leave anything. So the modelled one
does not; what it does is lose and reorder writes that were not flushed.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from abupdate.bootloaders.grub import GrubStore
from abupdate.errors import StoreUnreadable
from abupdate.formats.grubenv import SECTOR_BYTES, SIGNATURE, SIZE_BYTES, WARNING
from abupdate.model import BootState, BootTraits, TrialPolicy
from tests.sim import grub_hook_model as model
from tests.sim.blocks import Block, Disk, Nature
from tests.sim.bootplace import SLOTS, BootPlace, BootRom, Started
from tests.sim.parts import Part, Running, digest
from tests.sim.stores import BlockCalls

GRUBENV = Path("/boot/grub/grubenv")
_SECTORS = Nature("grubenv", SECTOR_BYTES, whole=True)
# Long enough to lie in both sectors before the first commit.
FACTORY = SIGNATURE + b"saved_entry=" + b"x" * 440 + b"\n# by hand\npath=a\\\\b\\\nc\nzz=1\n"
# RAUC's variables begin in the second sector then, and there is room for them beside what others keep.
_RAUC_FACTORY = FACTORY.replace(SIGNATURE, SIGNATURE + WARNING + b"\n").replace(b"x" * 70, b"", 1)
_RAUC_FACTORY += b"ORDER=A B\nA_OK=1\nB_OK=0\nA_TRY=0\nB_TRY=0\n"


def variables(block: bytes) -> dict[str, str] | None:
    """As load_env reads them, line by line; None: it fails."""
    if not block.startswith(SIGNATURE):
        return None
    found: dict[str, str] = {}
    name, value, escaped, comment = "", "", False, block[len(SIGNATURE) :].startswith(b"#")
    inside = False
    for char in block[len(SIGNATURE) :].decode("latin-1"):
        if comment or inside:
            if escaped:
                value, escaped = value + char, False
            elif char == "\\":
                escaped = True
            elif char == "\n":
                if inside:
                    found[name] = value
                name, value, inside, comment = "", "", False, False
            elif inside:
                value += char
        elif char == "#" and not name:
            comment = True
        elif char == "=":
            inside = True
        else:
            name += char
    return found


def saved(block: bytes, name: str, value: str) -> bytes:
    """As save_env changes one variable: where it stands, or behind everything. No value of ours needs a backslash."""
    end = len(block.rstrip(b"#"))
    line = f"{name}={value}\n".encode()
    at = block.find(f"\n{name}=".encode(), len(SIGNATURE) - 1) + 1
    rest = end if at == 0 else block.index(b"\n", at) + 1
    found = block[: at or end] + line + block[rest:]
    return found[:SIZE_BYTES].ljust(SIZE_BYTES, b"#")


@dataclass(frozen=True)
class GrubRom:
    """`BootRom` of GRUB with our hook, or with RAUC's script."""

    rauc: bool

    def power_up(self, store: Part, loads: frozenset[str]) -> Started:
        """See BootRom."""
        return _power_up(self.rauc, store, loads)


@cache
def _power_up(rauc: bool, part: Part, loads: frozenset[str]) -> Started:
    assert isinstance(part, Block)
    block = part.content
    env = variables(block)
    booted = model.rauc_boot(env, loads) if rauc else model.boot(env, loads)
    during: list[Part] = []
    now = env or {}
    for wanted in booted.saves:
        new = block
        for name, value in wanted.items():
            if now.get(name) != value:
                new = saved(new, name, value)
        # The sectors reach the medium one by one.
        during += [_with(new[:SECTOR_BYTES] + block[SECTOR_BYTES:], part), _with(block[:SECTOR_BYTES] + new[SECTOR_BYTES:], part)]
        block, now = new, dict(wanted)
    slot = booted.slot
    trial = booted.trial
    if rauc:
        # With nothing that may boot the script starts its rescue entry; what stands for it here is the slot that boots next.
        if slot is None:
            again = model.rauc_boot(now, loads)
            slot, block = again.slot, saved(block, f"{again.slot}_TRY", "1") if again.slot else block
        trial = slot is not None and slot == (env or {}).get("TRIAL")
    return Started(slot, trial, booted.failed, _with(block, part), tuple(dict.fromkeys(one for one in during if one is not part)))


def _with(block: bytes, part: Block) -> Block:
    return Block.of(part.nature, block)


class _FileCalls(BlockCalls):
    """`envcalls.Calls` over the file's sectors."""

    def fstat(self, fd: int) -> os.stat_result:
        return os.stat_result((stat.S_IFREG, 7, 7, 1, 0, 0, SIZE_BYTES, 0, 0, 0))


@dataclass(frozen=True)
class GrubPlace(BootPlace):
    """See BootPlace. dialect: as in [bootloader]."""

    dialect: str = ""

    @property
    def traits(self) -> BootTraits:
        """See BootPlace."""
        return self._store(Disk(_SECTORS, b"")).traits

    @property
    def policy(self) -> TrialPolicy:
        """See BootPlace."""
        return TrialPolicy(1, 0, 120) if self.dialect else TrialPolicy(3, 10, 120)

    @property
    def gives_back(self) -> bool:
        """See BootPlace: RAUC's script, to every good slot, once none may boot."""
        return bool(self.dialect)

    @property
    def rom(self) -> BootRom:
        """See BootPlace."""
        return GrubRom(bool(self.dialect))

    def blank(self) -> Part:
        """See BootPlace."""
        return Block.of(_SECTORS, (_RAUC_FACTORY if self.dialect else FACTORY).ljust(SIZE_BYTES, b"#"))

    def erased(self) -> Part | None:
        """See BootPlace: RAUC's script starts its rescue system then, which is not modelled."""
        return None if self.dialect else Block.of(_SECTORS, bytes(SIZE_BYTES))

    def bootloader(self, running: Running, folder: Path) -> GrubStore:
        """See BootPlace."""
        assert isinstance(running, Disk)
        return self._store(running)

    def state(self, part: Part) -> BootState | None:
        """See BootPlace."""
        return _state(self, part)

    def key(self, part: Part) -> bytes:
        """See BootPlace."""
        assert isinstance(part, Block)
        return digest(self.name.encode(), part.content)

    def _store(self, disk: Disk) -> GrubStore:
        return GrubStore(GRUBENV, SLOTS, self.dialect, calls=_FileCalls(disk), lock=_unlocked)


def _unlocked(fd: int, wait_s: float) -> None:
    return


@cache
def _state(place: GrubPlace, part: Part) -> BootState | None:
    assert isinstance(part, Block)
    try:
        return place.bootloader(Block.of(part.nature, part.content).thaw(), Path()).read()
    except StoreUnreadable:
        return None


PLACES = (GrubPlace("grub"), GrubPlace("grub-rauc", "rauc"))
