"""Emulated arm64 devices with UEFI firmware (images/systemd_uefi.py)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qemu.machine import IMAGES, Machine
from qemu.x86 import ESCAPES

CODE = Path("/usr/share/AAVMF/AAVMF_CODE.fd")
VARIABLES = Path("/usr/share/AAVMF/AAVMF_VARS.fd")


class UefiDevice(Machine):
    """An arm64 device with systemd. board: one of images/systemd_uefi.py's. The other arguments are Machine's."""

    boot_word = "BdsDxe: (?:loading|failed to load)"

    def __init__(self, folder: Path | None = None, *, board: str, **rest: Any) -> None:
        self.board = board
        super().__init__(folder, images=IMAGES / "systemd", **rest)
        self.console.clean = lambda text: ESCAPES.sub("", text)
        self.variables = self.folder / "vars.fd"
        if not self.variables.exists():
            shutil.copy(VARIABLES, self.variables)

    def image_names(self) -> Mapping[str, str]:
        """The board's disk, and its bundles."""
        return {f"disk-{self.board}.img": "disk.img", "bundles-file.img": "bundles.img"}

    def arguments(self) -> list[str]:
        """The command line of QEMU. No bootindex: the firmware would rewrite BootOrder after it at every start."""
        command = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57"]
        command += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={CODE}"]
        command += ["-drive", f"if=pflash,unit=1,format=raw,file={self.variables}"]
        return [*command, *self._common_arguments("virtio-blk-pci,romfile="), *self._extra]
