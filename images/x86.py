"""Builds the x86-64 test devices: `python -m images.build x86`. One root file system, one disk for each bootloader.

The label of a disk's first partition, `board-NAME`, tells the root file system which configuration to take.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from abupdate.model import BootState
from images import bundles, disk, pc, trees
from images.arch import AMD64
from images.boards import Board, file_slot, raw_slot
from images.build import CODE, HOOKS, Parts, boot_image, parts
from images.cache import TREE, Cache, Input, run

ROOTFS_BYTES = 128 * disk.MIB
ROOTFS_IMAGE_BYTES = 72 * disk.MIB
SIZES = {
    "esp": 96 * disk.MIB,
    "grub": 16 * disk.MIB,
    "boot_a": 64 * disk.MIB,
    "boot_b": 64 * disk.MIB,
    "rootfs_a": ROOTFS_BYTES,
    "rootfs_b": ROOTFS_BYTES,
    "data": 128 * disk.MIB,
}
# Of the bundles of bundles.py: what the tests of these devices flash.
BUNDLES = ("v2", "v3", "bad-kernel-garbage", "bad-hang-after-arming", "bad-panic", "bad-health-critical")
# Longer than arm64's: emulated x86-64 takes twice as long from the watchdog's arming to the service.
BOOT_TIMEOUT_S = 40
GRUB_ENVIRONMENT = {"ORDER": "A", "A_LEFT": "03", "B_LEFT": "00", "TRIES": "3", "BUDGET": "3", "TIMEOUT": str(BOOT_TIMEOUT_S)}
ARGUMENTS = "console=ttyS0 ro quiet loglevel=3 tsc=reliable no_timer_check"


def arguments(slot: str) -> str:
    """Kernel arguments of a slot, without those that the boot side adds."""
    return f"root=PARTLABEL=rootfs_{slot.lower()} {ARGUMENTS}"


_CMDLINE = f'cmdline = {{ A = "{arguments("A")}", B = "{arguments("B")}" }}'
_FILES = {slot: file_slot(slot) for slot in "AB"}
_RAW = {slot: raw_slot(slot) for slot in "AB"}
_TIMEOUT = {"boot_timeout_s": BOOT_TIMEOUT_S}
_RAW_LABELS = ("esp", "grub", "boot_a", "boot_b", "rootfs_a", "rootfs_b", "data")
_FILE_LABELS = ("esp", "rootfs_a", "rootfs_b", "data")
BOARDS = {
    board.name: board
    for board in (
        Board("grub", 'kind = "grub"', _RAW, _RAW_LABELS, _TIMEOUT),
        Board("systemd-boot", f'kind = "systemd-boot"\n{_CMDLINE}', _FILES, _FILE_LABELS, {**_TIMEOUT, "confirmed_tries": 0}),
        Board("efi", f'kind = "efi"\n{_CMDLINE}', _FILES, _FILE_LABELS, {**_TIMEOUT, "tries": 1, "confirmed_tries": 0}),
    )
}


def rootfs(cache: Cache, made: Parts, keyring: Path) -> Path:
    """`rootfs.img` of version 1.0.0, the same for every board."""

    def make(folder: Path) -> None:
        overlay = folder / "overlay"
        (overlay / "etc/abupdate/boards").mkdir(parents=True)
        for place in ("boot", "efi"):
            (overlay / place).mkdir()
        for board in BOARDS.values():
            (overlay / f"etc/abupdate/boards/{board.name}.toml").write_text(board.config())
        trees.root_tree(AMD64, made.base / "root", made.project, keyring, "1.0.0", folder / "tree", CODE / "x86/rootfs", overlay)
        disk.ext4(folder / "tree", folder / "rootfs.img", ROOTFS_IMAGE_BYTES, "rootfs")
        disk.remove(folder / "tree", overlay)

    inputs: list[Input] = [made.base.name, made.project.name, CODE / "rootfs", CODE / "x86/rootfs", CODE / "x86.py", keyring]
    inputs += [CODE / "boards.py", CODE / "disk.py", CODE / "trees.py", CODE / "arch.py"]
    return cache.step("x86-rootfs", inputs, make) / "rootfs.img"


def layout(board: Board) -> tuple[disk.Partition, ...]:
    """The partitions of a board's disk, in the order of their numbers (1...)."""
    found = [disk.Partition(f"board-{board.name}", 2048, disk.MIB, pc.BIOS_BOOT_TYPE)]
    for label in board.labels:
        start = found[-1].start + found[-1].size_bytes // disk.SECTOR
        found.append(disk.Partition(label, start, SIZES[label], pc.ESP_TYPE if label == "esp" else "linux"))
    return tuple(found)


def board_disk(cache: Cache, board: Board, made: Parts, boot: Path, root: Path) -> Path:
    """Folder with `disk.img`: version 1.0.0 in slot A, B empty."""

    def make(folder: Path) -> None:
        places = layout(board)
        contents = {"rootfs_a": root, "data": folder / "data.img", "esp": folder / "esp.img"}
        disk.ext4(None, folder / "data.img", SIZES["data"], "data", journal=True)
        files: dict[str, Path | bytes] = {}
        core = folder / "core.img"
        if board.name == "grub":
            number = board.labels.index("grub") + 2
            grub_partition(folder / "grub.img", folder)
            pc.grub("i386-pc", f"(,gpt{number})/grub", core)
            pc.grub("x86_64-efi", f"(,gpt{number})/grub", folder / "grub.efi")
            files["EFI/BOOT/BOOTX64.EFI"] = folder / "grub.efi"
            contents |= {"grub": folder / "grub.img", "boot_a": boot}
        else:
            files |= {"abu/A/vmlinuz": made.kernel, "abu/A/initrd.img": made.initrd, "abu/B/": b""}
            files |= esp_files(board, made, folder)
        pc.fat(files, folder / "esp.img", SIZES["esp"], "ESP")
        disk.gpt_disk(folder / "disk.img", places, contents)
        if core.exists():
            pc.install_bios_grub(folder / "disk.img", core, places[0].start, places[0].size_bytes)
        for path in folder.iterdir():
            if path.name != "disk.img":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    inputs: list[Input] = [boot.parent.name, root.parent.name, made.kernel.parent.name, made.initrd.parent.name]
    inputs += [CODE / "disk.py", CODE / "pc.py", CODE / "x86.py", *hook_inputs(board)]
    return cache.step(f"x86-disk-{board.name}", inputs, make)


def hook_inputs(board: Board) -> list[Input]:
    """What else of this project goes into a board's disk."""
    if board.name == "grub":
        return [HOOKS / "grub"]
    return [TREE / "abupdate/bootloaders/systemdboot.py", TREE / "abupdate/formats/bootentry.py"] if board.name == "systemd-boot" else []


def grub_partition(image: Path, folder: Path) -> None:
    """The partition that is /boot of the device: GRUB's script and its environment, version 1.0.0 on A confirmed."""
    tree = folder / "grub-tree"
    (tree / "grub").mkdir(parents=True)
    shutil.copy(HOOKS / "grub/grub.cfg", tree / "grub/grub.cfg")
    run(["grub-editenv", tree / "grub/grubenv", "create"])
    run(["grub-editenv", tree / "grub/grubenv", "set", *(f"{name}={value}" for name, value in GRUB_ENVIRONMENT.items())])
    trees.set_times(tree)
    disk.ext4(tree, image, SIZES["grub"], "grub", journal=True)


def esp_files(board: Board, made: Parts, folder: Path) -> dict[str, Path | bytes]:
    """What the ESP holds beside slot A's kernel: what the firmware starts, and its files; version 1.0.0 on A confirmed.

    Plain EFI has no entries yet: a unified kernel image, which the firmware finds by itself, boots slot A until `doctor --fix` made them.
    """
    if board.name == "efi":
        once = folder / "once.efi"
        pc.unified_kernel(made.kernel, made.initrd, f"{arguments('A')} abupdate.slot=A panic=10", once)
        return {"EFI/BOOT/BOOTX64.EFI": once}
    state = BootState(("A",), {"A": 1, "B": 0})
    return {"EFI/BOOT/BOOTX64.EFI": pc.SYSTEMD_BOOT, **pc.boot_entries({slot: arguments(slot) for slot in "AB"}, state, folder / "esp")}


def build(cache: Cache, ring: Path) -> dict[str, Path]:
    """Build all; return the results with the names of the links to make of them."""
    made = parts(cache, AMD64)
    boot, root = boot_image(cache, AMD64, made), rootfs(cache, made, ring / "keyring.abk")
    links = {f"disk-{board.name}.img": board_disk(cache, board, made, boot, root) / "disk.img" for board in BOARDS.values()}
    variants = tuple(variant for variant in bundles.VARIANTS if variant.name in BUNDLES)
    for kind, images in (("raw", {"rootfs": root, "boot": boot}), ("file", {"rootfs": root, "kernel": made.kernel, "initrd": made.initrd})):
        originals = bundles.Originals(images, f"x86-{kind}-", variants)
        links[f"bundles-{kind}.img"] = bundles.bundles_disk(cache, originals, ring) / "bundles.img"
    return links
