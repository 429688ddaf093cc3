"""A Raspberry Pi: autoboot.txt on a FAT file system, the firmware's documented choice of a partition, the reboot parameter.

QEMU cannot run that firmware: what it does is taken from its documentation, and read from autoboot.txt by code of its own here. At a
start without the one-shot flag it boots `boot_partition` of what applies to every boot; with the flag, what `[tryboot]` says after it
counts too. The flag is set by an ordered reboot that carries the parameter and is gone once it has been looked at, whatever comes of
that boot. With no partition named, or one that is not there, the first one that can be booted is taken.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from abupdate.bootloaders.piplatform import PARAMETER
from abupdate.bootloaders.tryboot import TrybootStore
from abupdate.errors import ConfigError
from abupdate.model import BootState, BootTraits, TrialPolicy
from tests.sim.bootplace import SLOTS, BootPlace, BootRom, Started
from tests.sim.filesystem import Files, Tree
from tests.sim.parts import Part, Running, digest
from tests.sim.stores import TreeCalls

PARTITIONS = {"A": 2, "B": 3}
AUTOBOOT = "/boot/autoboot.txt"
FACTORY = b"# board 0815\n[all]\ntryboot_a_b=1\nboot_partition=2\n"
_FOLDERS = ("/", "/boot", "/chosen", "/run")
_PARAMETER = "/run/reboot-param"
# The firmware's flag, which an orderly reboot carries over to the next start and nothing else does.
_FLAG = "/flag"


def chosen_partition(autoboot: bytes, flag: bool, partitions: Sequence[int]) -> int:
    """What the firmware boots. partitions: those that it can boot, in order."""
    text = autoboot[:512].split(b"\0")[0].decode("latin-1")
    wanted, none, tryboot = 0, False, True
    for line in (piece.strip() for piece in text.splitlines()):
        if line == "[all]":
            none, tryboot = False, True
        elif line == "[none]":
            none = True
        elif line == "[tryboot]":
            tryboot = flag
        elif line.startswith("boot_partition=") and not none and tryboot:
            wanted = int(line.split("=")[1])
    return wanted if wanted in partitions else partitions[0]


class _Platform:
    """`piplatform.Platform` over the modelled files: what is below /run and /chosen is never on the medium."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def chosen(self, name: str) -> int | None:
        if f"/chosen/{name}" not in self._tree.names:
            return None
        fd = self._tree.open(Path(f"/chosen/{name}"), os.O_RDONLY, 0)
        try:
            return int(self._tree.pread(fd, 9, 0))
        finally:
            self._tree.close(fd)

    def asked(self) -> bool:
        return _PARAMETER in self._tree.names

    def ask(self) -> None:
        fd = self._tree.open(Path(_PARAMETER), os.O_RDWR | os.O_CREAT, 0o600)
        self._tree.pwrite(fd, memoryview(PARAMETER.encode()), 0)
        self._tree.close(fd)

    def forget(self) -> None:
        if self.asked():
            self._tree.unlink(Path(_PARAMETER))

    def slot_argument(self) -> str | None:
        return None

    def shortcomings(self) -> tuple[tuple[str, str], ...]:
        return ()


@dataclass(frozen=True)
class PiRom:
    """`BootRom`: the firmware."""

    def power_up(self, store: Part, loads: frozenset[str]) -> Started:
        """See BootRom."""
        return _power_up(store, loads)


@cache
def _power_up(part: Part, loads: frozenset[str]) -> Started:
    assert isinstance(part, Files)
    content, flag = part.content, _FLAG in part.content
    partition = chosen_partition(content[AUTOBOOT], flag, tuple(PARTITIONS.values()))
    slot = next(slot for slot, number in PARTITIONS.items() if number == partition)
    told = {"/chosen/partition": str(partition).encode(), "/chosen/tryboot": b"1" if flag else b"0"}
    after = Files.with_files({AUTOBOOT: content[AUTOBOOT], **told}, _FOLDERS, lies=part.lies)
    return Started(
        slot, flag and partition != chosen_partition(content[AUTOBOOT], False, tuple(PARTITIONS.values())), _failed(slot, loads), after
    )


def _failed(slot: str, loads: frozenset[str]) -> tuple[str, ...]:
    return () if slot in loads else (slot,)


@dataclass(frozen=True)
class PiPlace(BootPlace):
    """See BootPlace."""

    name: str = "tryboot"

    @property
    def traits(self) -> BootTraits:
        return _store(Tree()).traits

    @property
    def policy(self) -> TrialPolicy:
        return TrialPolicy(1, 0, 120)

    @property
    def reasons(self) -> tuple[str, ...]:
        # The record knows that it ran, or the shutdown before noted it down, or the firmware says so.
        return ("tries exhausted", "load failed")

    @property
    def rom(self) -> BootRom:
        return PiRom()

    def blank(self) -> Part:
        return Files.with_files({AUTOBOOT: FACTORY}, _FOLDERS)

    def erased(self) -> Part | None:
        return Files.with_files({AUTOBOOT: bytes(512)}, _FOLDERS)

    def bootloader(self, running: Running, folder: Path) -> TrybootStore:
        assert isinstance(running, Tree)
        return _store(running)

    def state(self, part: Part) -> BootState | None:
        return _state(part)

    def warm(self, before: Part, after: Part) -> Part:
        """With the parameter there, the shutdown notes that the trial is tried, and the firmware has its flag."""
        assert isinstance(before, Files)
        assert isinstance(after, Files)
        if _PARAMETER not in before.seen:
            return after
        running = after.thaw()
        _store(running).depart()
        return Files.with_files({**running.freeze().content, _FLAG: b"1"}, _FOLDERS, lies=after.lies)

    def key(self, part: Part) -> bytes:
        assert isinstance(part, Files)
        kept = {name: data for name, data in part.content.items() if not name.startswith("/run/")}
        return digest(b"tryboot", *(word for name in sorted(kept) for word in (name.encode(), kept[name])))


def _store(tree: Tree) -> TrybootStore:
    return TrybootStore(Path(AUTOBOOT), SLOTS, PARTITIONS, platform=_Platform(tree), calls=TreeCalls(tree))


@cache
def _state(part: Part) -> BootState | None:
    assert isinstance(part, Files)
    try:
        return _store(Files.with_files(part.content, _FOLDERS).thaw()).read()
    except ConfigError:
        return None


PI = PiPlace()
