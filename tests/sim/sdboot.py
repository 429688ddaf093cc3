"""systemd-boot for the crash simulator: the production store over a modelled FAT, started by the model of the boot loader."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from abupdate.bootloaders.systemdboot import SystemdBootStore
from abupdate.errors import StoreUnreadable
from abupdate.formats.bootentry import NO_KEY, SECTOR_BYTES, decode, encode, is_whole
from abupdate.model import BootState, BootTraits, TrialPolicy
from tests.sim.bootplace import SLOTS, BootPlace, BootRom, Started
from tests.sim.fat import Fat, FatDisk
from tests.sim.parts import Part, Running, digest
from tests.sim.sdboot_model import boot

ESP = Path("/efi")
IMAGES = {slot: {"kernel": ESP / f"abu/{slot}/vmlinuz", "initrd": ESP / f"abu/{slot}/initrd"} for slot in SLOTS}
# Longer than a sector, so that an entry has a part that no patch reaches.
CMDLINE = {slot: f"root=PARTLABEL=rootfs_{slot} ro " + "x" * 400 for slot in SLOTS}
# As somebody sets a board up: neither our layout nor a sort-key.
BY_HAND = b"title My board\nlinux /abu/A/vmlinuz\ninitrd /abu/A/initrd\noptions abupdate.slot=A root=PARTLABEL=rootfs_A ro\n"


@dataclass(frozen=True)
class SdBootRom:
    """`BootRom` of systemd-boot. Its renaming is as atomic as the disk while all names lie in one sector of the folder; else `torn`."""

    def power_up(self, store: Part, loads: frozenset[str]) -> Started:
        """See BootRom."""
        return _power_up(store, loads)


@cache
def _power_up(part: Part, loads: frozenset[str]) -> Started:
    assert isinstance(part, Fat)
    done = boot(part.content, {f"/abu/{slot}/vmlinuz" for slot in loads})
    if done.file is None or done.renamed is None or done.file == done.renamed:
        return Started(done.slot, done.trial, done.passed, part)
    rest = {name: data for name, data in part.content.items() if name != done.file}
    data = part.content[done.file]
    after = Fat.of({**rest, done.renamed: data}, freed=part.freed)
    return Started(done.slot, done.trial, done.passed, after)


def torn(part: Part) -> dict[str, Fat]:
    """What a cut in the renaming of the trial's entry leaves where the names do not lie in one sector of their folder."""
    assert isinstance(part, Fat)
    files = part.content
    done = boot(files, {f"/abu/{slot}/vmlinuz" for slot in SLOTS})
    assert done.file is not None
    assert done.renamed is not None
    rest = {name: data for name, data in files.items() if name != done.file}
    ways = {
        "both names": {**files, done.renamed: files[done.file]},
        "both, the new one empty": {**files, done.renamed: b""},
        "the new name, empty": {**rest, done.renamed: b""},
        "neither name": rest,
    }
    return {name: Fat.of(content, freed=part.freed) for name, content in ways.items()}


@dataclass(frozen=True)
class SdBootPlace(BootPlace):
    """`BootPlace`. by_hand: the factory's entry was written by hand; else by abupdate."""

    by_hand: bool = True
    traits = BootTraits(max_tries=99, counts_confirmed=False, falls_through=True, armed_in_store=True, keeps_verity=True)

    @property
    def policy(self) -> TrialPolicy:
        """See BootPlace."""
        return TrialPolicy(3, 0, 120)

    @property
    def rom(self) -> BootRom:
        """See BootPlace."""
        return SdBootRom()

    def blank(self) -> Part:
        """See BootPlace: one entry, of the slot that the factory filled."""
        disk = FatDisk({"slot-A.conf": BY_HAND})
        if not self.by_hand:
            disk = FatDisk({})
            self.bootloader(disk, Path()).rebuild(BootState(("A",), {"A": 1, "B": 0}))
        return Fat.of(disk.kept)

    def bootloader(self, running: Running, folder: Path) -> SystemdBootStore:
        """See BootPlace."""
        assert isinstance(running, FatDisk)
        return SystemdBootStore(ESP, SLOTS, IMAGES, CMDLINE, files=running)

    def state(self, part: Part) -> BootState | None:
        """See BootPlace."""
        assert isinstance(part, Fat)
        return _state(self, part)

    def key(self, part: Part) -> bytes:
        """See BootPlace: of the sort-keys only their order counts."""
        assert isinstance(part, Fat)
        return _key(part)

    def meaning(self, part: Part) -> bytes:
        """See BootPlace: an entry that is switched off, or passed over, is as good as none."""
        return digest(repr(self.state(part)).encode())


@cache
def _state(place: SdBootPlace, part: Fat) -> BootState | None:
    try:
        return place.bootloader(FatDisk(part.content), Path()).read()
    except StoreUnreadable:
        return None


@cache
def _key(part: Fat) -> bytes:
    files = {name: decode("A" if "A" in name else "B", data) for name, data in part.kept}
    ranks = {key: number for number, key in enumerate(sorted({entry.key for entry in files.values()}))}
    pieces = []
    for name, data in part.kept:
        entry = files[name]
        ranked = replace(entry, key=ranks[entry.key])
        whole = is_whole(entry, data) and entry.key != NO_KEY
        pieces += [name.encode(), encode(ranked)[:SECTOR_BYTES] + data[SECTOR_BYTES:] if whole else data]
    return digest(*pieces, b"freed", *part.freed)


SDBOOT = SdBootPlace("sdboot")
