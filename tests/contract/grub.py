"""GRUB's environment block in a file, with grub-editenv."""

from __future__ import annotations

import subprocess
from pathlib import Path

from abupdate.bootloaders.grub import GrubStore
from abupdate.model import TrialPolicy
from abupdate.ports import Bootloader
from tests.contract.subject import SLOTS, Seen, Subject

HOOK = Path(__file__).resolve().parents[2] / "bootloader-hooks/grub/grub.cfg"
_OURS = ("ORDER", "TRIAL", "TRIES", "BUDGET", "TIMEOUT", "FLOOR")


class Grub(Subject):
    """See Subject: our hook."""

    dialect = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder / "grubenv"
        subprocess.run(["grub-editenv", self._file, "create"], check=True)
        self.set(saved_entry="gnulinux-simple", path="C:\\dir")
        (folder / "grub.cfg").write_bytes(HOOK.read_bytes())

    def store(self) -> Bootloader:
        return GrubStore(self._file, SLOTS, self.dialect, root=self.folder)

    def set(self, **values: str) -> None:
        """By the tool."""
        subprocess.run(["grub-editenv", self._file, "set", *(f"{name}={value}" for name, value in values.items())], check=True)

    def values(self) -> dict[str, str]:
        """By the tool."""
        said = subprocess.run(["grub-editenv", self._file, "list"], capture_output=True, text=True, check=True).stdout
        return dict(line.partition("=")[::2] for line in said.splitlines())

    def tool_sees(self) -> Seen:
        values = self.values()
        order = values.get("ORDER", "A B").split()
        lefts = {slot: int(values.get(f"{slot}_LEFT", "10")) for slot in SLOTS}
        return self._seen(values, order, lefts)

    def _seen(self, values: dict[str, str], order: list[str], lefts: dict[str, int]) -> Seen:
        trial = values.get("TRIAL") or None
        others = {name: value for name, value in values.items() if name not in _OURS and not name.startswith(("A_", "B_"))}
        return Seen(next(slot for slot in order if lefts[slot]), trial, lefts[trial] if trial else None, others)

    def tool_boots(self, slot: str, left: int) -> None:
        self.set(**{f"{slot}_LEFT": f"{left:02}"})

    def tool_adds(self) -> None:
        self.set(next_entry="1")

    def spoil(self) -> bool:
        self._file.write_bytes(b"x" + self._file.read_bytes()[1:])
        return True


class GrubRauc(Grub):
    """See Subject: RAUC's script."""

    policy = TrialPolicy(1, 0, 120)
    dialect = "rauc"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "grub.cfg").write_text('load_env\nif [ "$A_TRY" = 0 ]; then set default=1; fi\nsave_env A_TRY B_TRY\n')

    def tool_sees(self) -> Seen:
        values = self.values()
        order = values.get("ORDER", "A B").split()
        lefts = {slot: int(values.get(f"{slot}_OK", "1") == "1" and values.get(f"{slot}_TRY", "0") == "0") for slot in SLOTS}
        return self._seen(values, order, lefts)

    def tool_boots(self, slot: str, left: int) -> None:
        self.set(**{f"{slot}_TRY": "1"})
