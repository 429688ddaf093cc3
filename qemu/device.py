"""The emulated arm64 device: U-Boot on QEMU's machine `virt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qemu.machine import DEVICES, IMAGES, TREE, Machine, Ran, Up

__all__ = ["BOOT_WORD", "DEVICES", "IMAGES", "TREE", "Device", "Ran", "Up"]

U_BOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
# What a boot begins with, whatever reset the machine.
BOOT_WORD = r"^U-Boot 20\d\d"


class Device(Machine):
    """An arm64 device that U-Boot boots."""

    boot_word = BOOT_WORD

    def image_names(self) -> Mapping[str, str]:
        """Disk, the board's own U-Boot environment, bundles."""
        return {name: name for name in ("disk.img", "flash.img", "bundles.img")}

    def arguments(self) -> list[str]:
        """The command line of QEMU."""
        command = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57", "-bios", str(U_BOOT)]
        command += ["-drive", f"if=pflash,index=1,format=raw,readonly=on,file={self.folder}/flash.img,file.locking=off"]
        return [*command, *self._common_arguments("virtio-blk-device"), *self._extra]

    def environment(self) -> dict[str, str]:
        """The bootloader's variables as fw_printenv shows them."""
        return dict(line.split("=", 1) for line in self.check("fw_printenv").splitlines() if "=" in line)
