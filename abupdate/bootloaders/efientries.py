"""What the boot entry of each slot must be: kernel and initramfs on the EFI system partition, and the kernel's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from abupdate.bootloaders.efistate import Firmware, cmdline, description, verity_of
from abupdate.errors import ConfigError
from abupdate.formats import efiboot
from abupdate.formats.efiboot import ACTIVE, LoadOption, Partition
from abupdate.model import BootState, TrialPolicy


@dataclass(frozen=True, slots=True)
class SlotFiles:
    """What firmware loads for a slot. program: EFI-stub kernel, or a unified kernel image (`unified`), on the ESP.

    initrd: beside a kernel, or None. arguments: the kernel's, without ours.
    """

    program: Path
    initrd: Path | None = None
    arguments: str = ""
    unified: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file."""
        return (self.program, self.initrd) if self.initrd is not None else (self.program,)


class SlotEntries:
    """Entries from the configuration. partition: asks which partition the ESP is. Raises ConfigError for files outside the ESP."""

    def __init__(self, slots: Mapping[str, SlotFiles], esp: Path, partition: Callable[[], Partition]) -> None:
        self._files = slots
        self._esp = esp
        self._partition = partition
        for path in (path for files in slots.values() for path in files.paths):
            if not path.is_relative_to(esp):
                hint = f"firmware loads from the ESP only: {esp}/abu/... ([bootloader] esp says where it is mounted)"
                raise ConfigError(f"{path} does not lie on the EFI system partition {esp}", hint)

    @property
    def unified(self) -> bool:
        """Some slot is a unified kernel image."""
        return any(files.unified for files in self._files.values())

    def check_mounted(self) -> None:
        """Raises ConfigError where no ESP is mounted: what is written there would not be what firmware loads."""
        self._partition()

    def missing(self, slot: str) -> tuple[Path, ...]:
        """Files of the slot that are not there."""
        return tuple(path for path in self._files[slot].paths if not path.is_file())

    def wanted(self, seen: Firmware, slot: str, state: BootState) -> LoadOption:
        """What the slot's entry must be in a state. Raises ConfigError."""
        trial_s = (state.policy or TrialPolicy()).boot_timeout_s if slot == state.trial else None
        return self._option(seen, slot, state.verity.get(slot, ""), trial_s)

    def plain(self, seen: Firmware, slot: str) -> LoadOption:
        """What the slot's entry must be when it is not on trial, with the root hash that it has. Raises ConfigError."""
        return self._option(seen, slot, verity_of(seen.entry(slot)), None)

    def _option(self, seen: Firmware, slot: str, verity: str, trial_s: int | None) -> LoadOption:
        files, old = self._files[slot], seen.entry(slot)
        initrd = files.initrd.relative_to(self._esp).as_posix() if files.initrd is not None else ""
        arguments = efiboot.encode_cmdline(cmdline(files.arguments, slot, initrd, verity, trial_s))
        attributes = (old.attributes if old is not None else 0) | ACTIVE
        return LoadOption(attributes, description(slot), self._path(files.program.relative_to(self._esp).as_posix(), old), arguments)

    def _path(self, program: str, old: LoadOption | None) -> bytes:
        """Device path to the kernel: the entry's own where it leads there too, whatever firmware has put before it."""
        try:
            partition = self._partition()
        except ConfigError:
            # An ESP that is not mounted must not keep a trial from being ended.
            if old is None:
                raise
            return old.path
        there = efiboot.place_of(old.path) if old is not None else None
        if old is not None and there is not None and there[1].lower() == f"/{program}".lower():
            named = there[0]
            if (named.number, named.start, named.signature) == (partition.number, partition.start, partition.signature):
                return old.path
        return efiboot.file_on(partition, program)
