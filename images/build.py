"""Builds the test device into .cache/images: `python -m images.build`; what is unchanged since the last run is kept."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from images import bundles, disk, packages, trees
from images.cache import TREE, Cache, Input, say

CODE = TREE / "images"
HOOKS = TREE / "bootloader-hooks"
BOOT_BYTES = 64 * disk.MIB
ROOTFS_BYTES = 128 * disk.MIB
DATA_BYTES = 128 * disk.MIB
BOOT_IMAGE_BYTES = 48 * disk.MIB
ROOTFS_IMAGE_BYTES = 64 * disk.MIB
ENVIRONMENT = {
    "BOOT_ORDER": "A",
    "BOOT_A_LEFT": "3",
    "BOOT_B_LEFT": "0",
    "BOOT_TRIES": "3",
    "BOOT_BUDGET": "3",
    "BOOT_TIMEOUT": "14",
    "board_serial": "ABU-0001",
}


@dataclass(frozen=True)
class Slot:
    """The images that one version of the device consists of."""

    boot: Path
    rootfs: Path


def first_slot(cache: Cache, keyring: Path) -> Slot:
    """Images of version 1.0.0 with this factory keyring."""
    debs = packages.fetch_packages(cache)
    kernel = packages.unpack_kernel(cache, debs)
    wheels = packages.install_dependencies(cache)
    project = packages.install_project(cache)
    armer = cache.step("armer", [HOOKS / "initramfs/arm-watchdog.c"], trees.compile_armer)

    inputs: list[Input] = [debs.name, kernel.name, wheels.name, CODE / "trees.py"]
    base = cache.step("base", inputs, lambda folder: trees.base_tree(debs, kernel, wheels, folder / "root"))

    def make_initramfs(folder: Path) -> None:
        trees.initramfs(debs, kernel, armer, folder)

    hook = HOOKS / "initramfs/abupdate-trial.sh"
    initrd = cache.step("initramfs", [debs.name, kernel.name, armer.name, hook, CODE / "initramfs", CODE / "trees.py"], make_initramfs)

    def make_boot(folder: Path) -> None:
        tree = folder / "tree"
        tree.mkdir()
        shutil.copy(kernel / "vmlinuz", tree / "vmlinuz")
        shutil.copy(initrd / "initrd.img", tree / "initrd.img")
        trees.set_times(tree)
        disk.ext4(tree, folder / "boot.img", BOOT_IMAGE_BYTES, "boot")
        shutil.rmtree(tree)

    boot = cache.step("boot", [kernel.name, initrd.name, CODE / "disk.py"], make_boot)

    def make_rootfs(folder: Path) -> None:
        tree = folder / "tree"
        trees.root_tree(base / "root", project, keyring, "1.0.0", tree)
        disk.ext4(tree, folder / "rootfs.img", ROOTFS_IMAGE_BYTES, "rootfs")
        shutil.rmtree(tree)

    rootfs = cache.step("rootfs", [base.name, project.name, CODE / "rootfs", CODE / "disk.py", CODE / "trees.py", keyring], make_rootfs)
    return Slot(boot / "boot.img", rootfs / "rootfs.img")


def device_disk(cache: Cache, slot: Slot) -> Path:
    """Folder with `disk.img` (version 1.0.0 in A, B empty) and `flash.img` (the board's own U-Boot environment)."""

    def make(folder: Path) -> None:
        tree = folder / "tree"
        tree.mkdir()
        disk.boot_script(tree, folder)
        trees.set_times(tree)
        disk.ext4(tree, folder / "bootscr.img", 8 * disk.MIB, "bootscr")
        disk.ext4(None, folder / "data.img", DATA_BYTES, "data", journal=True)
        (folder / "env.img").write_bytes(disk.environment_copies(ENVIRONMENT, folder))
        disk.board_environment(folder)
        contents = {"bootscr": folder / "bootscr.img", "env": folder / "env.img", "data": folder / "data.img"}
        contents |= {"boot_a": slot.boot, "rootfs_a": slot.rootfs}
        disk.gpt_disk(folder / "disk.img", disk.layout(BOOT_BYTES, ROOTFS_BYTES, DATA_BYTES), contents)
        for path in folder.iterdir():
            if path.name not in ("disk.img", "flash.img"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    inputs: list[Input] = [
        slot.boot.parent.name,
        slot.rootfs.parent.name,
        HOOKS / "uboot/boot.cmd",
        CODE / "disk.py",
        json.dumps(ENVIRONMENT),
    ]
    return cache.step("disk", [*inputs, str((BOOT_BYTES, ROOTFS_BYTES, DATA_BYTES))], make)


def build(folder: Path) -> None:
    """Build everything and leave links with fixed names in `folder`: disk.img, flash.img, bundles.img, bundles/."""
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would build the same things
        _build(folder)
    say(f"ready in {time.monotonic() - start:.1f} s")


def _build(folder: Path) -> None:
    cache = Cache(folder)
    ring = bundles.keyring(cache)
    slot = first_slot(cache, ring / "keyring.abk")
    made = device_disk(cache, slot)
    bundled = bundles.bundles_disk(cache, slot.boot, slot.rootfs, ring)
    for result, name in ((made, "disk.img"), (made, "flash.img"), (bundled, "bundles.img"), (bundled, "bundles")):
        link = folder / f".{name}.link"
        link.unlink(missing_ok=True)
        link.symlink_to((result / name).relative_to(folder))
        link.rename(folder / name)
    cache.drop_unused()


if __name__ == "__main__":
    build(TREE / ".cache/images")
