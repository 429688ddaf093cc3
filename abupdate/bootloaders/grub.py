"""Boot state in GRUB's environment block, for our own hook (dialect "") or for RAUC's boot script (dialect "rauc").

A commit is one write of the block's first 512-byte sector, which holds every variable of ours: as atomic as the disk, since the block
has no checksum. The first commit to a block that others have filled writes the second sector before it, so that a cut in between
leaves the old boot state, and theirs twice. GRUB's own writes change two digits of that first sector.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from abupdate.bootloaders import grubvars
from abupdate.bootloaders.envcalls import LINUX, Calls
from abupdate.bootloaders.grubenvfile import GrubenvFile
from abupdate.bootloaders.grubvars import Values
from abupdate.errors import AbupdateError, ConfigError
from abupdate.formats import grubenv
from abupdate.formats.grubenv import Block
from abupdate.model import BootState, BootTraits, Finding, Repair
from abupdate.ports import Bootloader

# The hook's table has 15 lines.
_OURS = BootTraits(max_tries=15, counts_confirmed=True, falls_through=True, armed_in_store=True, keeps_verity=True)
_RAUC = BootTraits(max_tries=1, counts_confirmed=False, falls_through=False, armed_in_store=True)


class GrubStore(Bootloader):
    """`ports.Bootloader` over grubenv. Raises ConfigError at once for a dialect that GRUB has none of."""

    def __init__(
        self,
        path: Path,
        slots: tuple[str, ...],
        dialect: str = "",
        *,
        calls: Calls = LINUX,
        lock: Callable[[int, float], None] | None = None,
        lock_wait_s: float | None = None,
        mountinfo: Path = Path("/proc/self/mountinfo"),
        sysfs: Path = Path("/sys/dev/block"),
        root: Path = Path("/"),
    ) -> None:
        if dialect not in ("", "rauc"):
            raise ConfigError(f"[bootloader] dialect {dialect!r} is none of GRUB's", 'leave it out, or dialect = "rauc"')
        if not dialect and not set(slots) <= {"A", "B"}:
            raise ConfigError(
                f"bootloader-hooks/grub boots slots A and B, not {', '.join(slots)}",
                'name them so, or use RAUC\'s script: dialect = "rauc"',
            )
        self._path = path
        self._slots = slots
        self._rauc = dialect == "rauc"
        self._file, self._lock = GrubenvFile.at(path, calls), lock
        self._lock_wait_s = lock_wait_s
        self._mountinfo, self._sysfs, self._root = mountinfo, sysfs, root

    @property
    def traits(self) -> BootTraits:
        """As many tries as the script can count."""
        return _RAUC if self._rauc else _OURS

    @property
    def location(self) -> str:
        """The file."""
        return f"grub:{self._path}"

    @property
    def irreplaceable(self) -> str:
        """What others keep there (a saved menu entry) is nothing that a boot needs."""
        return ""

    def places(self) -> tuple[tuple[Path, int, int], ...]:
        """See ports.Bootloader."""
        return ((self._path, 0, grubenv.SIZE_BYTES),)

    def read(self) -> BootState:
        """See ports.Bootloader."""
        return self._state(grubenv.parse(self._file.read(), str(self._path)))

    def commit(self, state: BootState) -> None:
        """See ports.Bootloader."""
        self._file.update(lambda found: self._wanted(grubenv.parse(found, str(self._path)), state), self._lock, self._lock_wait_s)

    def check_room(self, state: BootState) -> None:
        """See ports.Bootloader."""
        self._wanted(grubenv.parse(self._file.read(), str(self._path)), state)

    def rebuild(self, state: BootState) -> None:
        """See ports.Bootloader. What others wrote is lost where nothing of it reads as GRUB would; a valid block is committed to.

        Raises ConfigError too, for a file that is something else.
        """

        def wanted(found: bytes) -> bytes:
            block = grubenv.salvaged(found, str(self._path))
            try:
                return self._wanted(block, state)
            except ConfigError:
                return self._wanted(Block(), state)

        self._file.update(wanted, self._lock, self._lock_wait_s)

    def inspect(self) -> Iterator[Finding]:
        """See ports.Bootloader."""
        from abupdate.bootloaders.bootargs import kernel_arguments
        from abupdate.bootloaders.grubdoctor import inspect

        ext4 = self._root / "proc/fs/ext4"
        yield from inspect(self._path, self._slots, rauc=self._rauc, mountinfo=self._mountinfo, sysfs=self._sysfs, ext4=ext4)
        if self._rauc:
            yield from kernel_arguments(self._root, "RAUC's boot script")

    def repairs(self) -> tuple[Repair, ...]:
        """See ports.Bootloader: an empty block where there is none, as grub-editenv makes it."""
        if os.path.lexists(self._path) or not self._path.parent.is_dir():
            return ()
        return (Repair(f"write {self._path}: an empty environment block", lambda: self._file.create(grubenv.EMPTY)),)

    def _state(self, block: Block) -> BootState:
        return grubvars.rauc_state_of(block, self._slots) if self._rauc else grubvars.state_of(block, self._slots)

    def _wanted(self, block: Block, state: BootState) -> bytes:
        where = str(self._path)
        values: Values = (grubvars.rauc_values_of if self._rauc else grubvars.values_of)(state, self._state(block), self._slots)
        try:
            return grubenv.encode(block, values, where)
        except AbupdateError:
            # The floor's mirror must cost neither a confirmation nor the next update.
            return grubenv.encode(block, {**values, "FLOOR": None}, where)
