"""The device with systemd on UEFI (arm64): systemd-boot, or the firmware alone, boots kernels from the ESP.

A kernel argument guest.board=NAME tells the root file system which of both it is: its configuration is mounted over the image's own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from abupdate.model import BootState
from images import disk, packages, pc, systemd
from images.arch import ARM64
from images.boards import Board, file_slot
from images.cache import TREE, Cache, Input

CODE = TREE / "images"
SIZES = {
    "esp": 128 * disk.MIB,
    "rootfs_a": systemd.ROOTFS_BYTES,
    "rootfs_b": systemd.ROOTFS_BYTES,
    "data": 128 * disk.MIB,
}


def arguments(board: str, slot: str) -> str:
    """Kernel arguments of a slot, without those that the boot side adds."""
    return f"root=PARTLABEL=rootfs_{slot.lower()} console={ARM64.console} ro quiet loglevel=3 guest.board={board}"


def _board(name: str, trial: dict[str, int]) -> Board:
    words = ", ".join(f'{slot} = "{arguments(name, slot)}"' for slot in "AB")
    slots = {slot: file_slot(slot) for slot in "AB"}
    return Board(name, f'kind = "{name}"\ncmdline = {{ {words} }}', slots, tuple(SIZES), {**trial, "confirmed_tries": 0})


BOARDS = (_board("systemd-boot", {}), _board("efi", {"tries": 1}))
CONFIGS = {board.name: board.config() for board in BOARDS}


def board_disk(cache: Cache, board: Board, kernel: Path, initrd: Path, slots: Path) -> Path:
    """`disk.img`: version 1.0.0 in slot A, B empty. Both begin with systemd-boot: with firmware alone it boots slot A until
    `doctor --fix` has made the entries there."""
    debs = packages.fetch_systemd(cache, ARM64)

    def make(folder: Path) -> None:
        packages.unpack(debs, packages.BOOT_MANAGER, folder / "manager")
        program = folder / "manager/usr/lib/systemd/boot/efi/systemd-bootaa64.efi"
        files: dict[str, Path | bytes] = {
            "EFI/BOOT/BOOTAA64.EFI": program,
            "abu/A/vmlinuz": kernel,
            "abu/A/initrd.img": initrd,
            "abu/B/": b"",
        }
        state = BootState(("A",), {"A": 1, "B": 0}, verity={"A": (slots / "v1.root").read_text()})
        files |= pc.boot_entries({slot: arguments(board.name, slot) for slot in "AB"}, state, folder / "entries")
        pc.fat(files, folder / "esp.img", SIZES["esp"], "ESP")
        systemd.data_image(folder, SIZES["data"])
        places, start = [], 2048
        for label, size in SIZES.items():
            places.append(disk.Partition(label, start, size, pc.ESP_TYPE if label == "esp" else "linux"))
            start += size // disk.SECTOR
        contents = {"esp": folder / "esp.img", "data": folder / "data.img", "rootfs_a": slots / "v1.img"}
        disk.gpt_disk(folder / "disk.img", tuple(places), contents)
        for path in folder.iterdir():
            if path.name != "disk.img":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    inputs: list[Input] = [
        kernel.parent.name,
        initrd.parent.name,
        slots.name,
        debs.name,
        CODE / "disk.py",
        CODE / "pc.py",
        CODE / "systemd_uefi.py",
    ]
    inputs += [TREE / "abupdate/bootloaders/systemdboot.py", TREE / "abupdate/formats/bootentry.py"]
    return cache.step(f"systemd-disk-{board.name}", inputs, make) / "disk.img"


def build(cache: Cache, kernel: Path, initrd: Path, slots: Path, ring: Path) -> dict[str, Path]:
    """Build both; return the results with the names of the links to make of them. slots: of systemd.slots."""
    links = {f"systemd/disk-{board.name}.img": board_disk(cache, board, kernel, initrd, slots) for board in BOARDS}
    bundled = systemd.bundles_disk(cache, {"kernel": kernel, "initrd": initrd}, slots, ring, "uefi-")
    return {**links, "systemd/bundles-file.img": bundled / "bundles.img"}
