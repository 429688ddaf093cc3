"""EFI's boot variables in a folder that stands for efivarfs, with efibootmgr."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

from abupdate.bootloaders.efi import EfiStore
from abupdate.bootloaders.efientries import SlotFiles
from abupdate.bootloaders.efivars import GLOBAL_GUID, EfiVars
from abupdate.formats.efiboot import Partition
from abupdate.model import TrialPolicy
from abupdate.ports import Bootloader
from tests.contract.subject import SLOTS, Seen, Subject

PARTITION = Partition(1, 2048, 524288, bytes(range(16)))
_LINE = re.compile(r"Boot([0-9A-F]{4})(\*?) ([^\t]*)\t?(.*)")


class Efi(Subject):
    """See Subject. A board whose entries `doctor --fix` has written, beside one of the vendor's."""

    policy = TrialPolicy(1, 0, 120)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.variables, self._esp = folder / "efivars", folder / "esp"
        self.variables.mkdir()
        for slot in SLOTS:
            (self._esp / slot).mkdir(parents=True)
            for name in ("vmlinuz", "initrd.img"):
                (self._esp / slot / name).write_bytes(b"x")
        self._cmdline = folder / "cmdline"
        self._vendor(0, "Vendor menu")
        self._put("BootOrder", struct.pack("<H", 0))
        self._running("A", None)
        for repair in self.store().repairs():
            repair.run()
        self._running("A", self._entries()["abupdate A"])

    def store(self) -> Bootloader:
        slots = {slot: SlotFiles(self._esp / slot / "vmlinuz", self._esp / slot / "initrd.img", "ro") for slot in SLOTS}
        variables = EfiVars(self.variables)
        return EfiStore(slots, esp=self._esp, variables=variables, partition=lambda: PARTITION, proc_cmdline=self._cmdline)

    def tool_sees(self) -> Seen:
        said = self._efibootmgr("-v")
        lines = {match[1]: match for match in map(_LINE.fullmatch, said.splitlines()) if match}
        named = re.search(r"^BootNext: (\S+)", said, re.M)
        order = re.search(r"^BootOrder: (\S+)", said, re.M)
        assert order
        ours = {number: match[3][-1] for number, match in lines.items() if match[3].startswith("abupdate ")}
        following = ours.get(named[1]) if named else None
        sequence = [ours[number] for number in order[1].split(",") if number in ours]
        others = {f"Boot{number}": match[0] for number, match in lines.items() if number not in ours}
        others["order"] = ",".join(number for number in order[1].split(",") if number not in ours)
        return Seen(following or sequence[0], following, 1 if following else None, others)

    def tool_boots(self, slot: str, left: int) -> None:
        if "BootNext" in self._efibootmgr():
            self._efibootmgr("-N")
        self._running(slot, self._entries()[f"abupdate {slot}"])

    def tool_adds(self) -> None:
        self._vendor(0x2A, "Linpus lite")
        order = re.search(r"^BootOrder: (\S+)", self._efibootmgr(), re.M)
        assert order
        self._efibootmgr("-o", f"{order[1]},002A")

    def spoil(self) -> bool:
        self._put("BootOrder", b"\x01\x00\x02")
        return True

    def _entries(self) -> dict[str, str]:
        return {match[3]: match[1] for match in map(_LINE.fullmatch, self._efibootmgr("-v").splitlines()) if match}

    def _running(self, slot: str, number: str | None) -> None:
        """What the firmware and the kernel say of this boot."""
        self._cmdline.write_text(f"ro abupdate.slot={slot}\n")
        self._put("BootCurrent", struct.pack("<H", int(number or "0", 16)))

    def _vendor(self, number: int, name: str) -> None:
        # Active, and of the category that is not booted in its turn; the path is its end alone.
        self._put(f"Boot{number:04X}", struct.pack("<IH", 0x101, 4) + name.encode("utf-16-le") + b"\0\0" + b"\x7f\xff\x04\x00")

    def _put(self, name: str, data: bytes) -> None:
        (self.variables / f"{name}-{GLOBAL_GUID}").write_bytes(b"\x07\0\0\0" + data)

    def _efibootmgr(self, *words: str) -> str:
        environment = {**os.environ, "EFIVARFS_PATH": f"{self.variables}/", "LC_ALL": "C"}
        done = subprocess.run(["efibootmgr", *words], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout
