"""Emulated x86-64 devices: SeaBIOS or OVMF, and the bootloader of one of images/x86.py's boards."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qemu.machine import Machine

OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
SEABIOS_WORD = r"SeaBIOS \(version"
OVMF_WORD = r"BdsDxe: (?:loading|failed to load)"
# Firmware and boot managers move the cursor and set colours, also within a line; GRUB's lines begin with \r.
ESCAPES = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|(?<=\n)\r(?=.)")


class X86Device(Machine):
    """An x86-64 device. board: one of images/x86.py's. firmware: `bios` (SeaBIOS) or `uefi` (OVMF, with variables of its own).

    The other arguments are Machine's.
    """

    def __init__(self, folder: Path | None = None, *, board: str, firmware: str = "uefi", **rest: Any) -> None:
        self.board, self.firmware = board, firmware
        self.boot_word = SEABIOS_WORD if firmware == "bios" else OVMF_WORD
        super().__init__(folder, **rest)
        self.console.clean = lambda text: ESCAPES.sub("", text)
        self.variables = self.folder / "vars.fd"
        if firmware == "uefi" and not self.variables.exists():
            shutil.copy(OVMF_VARS, self.variables)

    def image_names(self) -> Mapping[str, str]:
        """The board's disk, and its bundles."""
        kind = "raw" if self.board == "grub" else "file"
        return {f"disk-{self.board}.img": "disk.img", f"bundles-{kind}.img": "bundles.img"}

    def arguments(self) -> list[str]:
        """The command line of QEMU."""
        command = ["qemu-system-x86_64", "-M", "pc,graphics=off", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+aes,+pclmulqdq"]
        disk = "virtio-blk-pci,romfile="
        if self.firmware == "bios":
            disk += ",bootindex=0"
        else:  # no bootindex: OVMF would rewrite BootOrder after it at every start
            command += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF_CODE}"]
            command += ["-drive", f"if=pflash,unit=1,format=raw,file={self.variables}"]
        return [*command, *self._common_arguments(disk), *self._extra]
