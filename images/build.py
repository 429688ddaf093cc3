"""Builds the test device into .cache/images: `python -m images.build`; what is unchanged since the last run is kept.

`python -m images.build x86` builds those of x86.py instead.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from images import bundles, disk, packages, systemd, systemd_uefi, trees
from images.arch import ARM64, Arch
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
class Parts:
    """What version 1.0.0 consists of before it is laid out on slots. base: the root file system without this project."""

    kernel: Path
    initrd: Path
    base: Path
    project: Path


@dataclass(frozen=True)
class Slot:
    """The images that one version of the device consists of, and what they were made of."""

    boot: Path
    rootfs: Path
    parts: Parts


def parts(cache: Cache, arch: Arch) -> Parts:
    """Kernel, initramfs and the base of the root file system of one architecture."""
    debs = packages.fetch_packages(cache, arch)
    kernel = packages.unpack_kernel(cache, arch, debs)
    wheels = packages.install_dependencies(cache, arch)
    project = packages.install_project(cache)

    def compile_armer(folder: Path) -> None:
        trees.compile_armer(arch, folder)

    armer = cache.step(f"{arch.prefix}armer", [HOOKS / f"initramfs/{name}.c" for name in trees.INITRAMFS_PROGRAMS], compile_armer)

    def make_base(folder: Path) -> None:
        trees.base_tree(arch, debs, kernel, wheels, folder / "root")

    base = cache.step(f"{arch.prefix}base", [debs.name, kernel.name, wheels.name, CODE / "trees.py", CODE / "arch.py"], make_base)

    def make_initramfs(folder: Path) -> None:
        trees.initramfs(debs, kernel, armer, folder)

    hook = HOOKS / "initramfs/abupdate-trial.sh"
    inputs: list[Input] = [debs.name, kernel.name, armer.name, hook, CODE / "initramfs", CODE / "trees.py"]
    initrd = cache.step(f"{arch.prefix}initramfs", inputs, make_initramfs)
    return Parts(kernel / "vmlinuz", initrd / "initrd.img", base, project)


def boot_image(cache: Cache, arch: Arch, made: Parts) -> Path:
    """`boot.img`: kernel and initramfs in an ext4 file system."""

    def make(folder: Path) -> None:
        tree = folder / "tree"
        tree.mkdir()
        shutil.copy(made.kernel, tree / "vmlinuz")
        shutil.copy(made.initrd, tree / "initrd.img")
        trees.set_times(tree)
        disk.ext4(tree, folder / "boot.img", BOOT_IMAGE_BYTES, "boot")
        shutil.rmtree(tree)

    inputs: list[Input] = [made.kernel.parent.name, made.initrd.parent.name, CODE / "disk.py"]
    return cache.step(f"{arch.prefix}boot", inputs, make) / "boot.img"


def first_slot(cache: Cache, keyring: Path) -> Slot:
    """Images of version 1.0.0 with this factory keyring."""
    made = parts(cache, ARM64)

    def make_rootfs(folder: Path) -> None:
        tree = folder / "tree"
        trees.root_tree(ARM64, made.base / "root", made.project, keyring, "1.0.0", tree)
        disk.ext4(tree, folder / "rootfs.img", ROOTFS_IMAGE_BYTES, "rootfs")
        shutil.rmtree(tree)

    inputs: list[Input] = [made.base.name, made.project.name, CODE / "rootfs", CODE / "disk.py", CODE / "trees.py", keyring]
    return Slot(boot_image(cache, ARM64, made), cache.step("rootfs", inputs, make_rootfs) / "rootfs.img", made)


def device_disk(cache: Cache, slot: Slot) -> Path:
    """Folder with `disk.img` (version 1.0.0 in A, B empty) and `flash.img` (the board's own U-Boot environment)."""

    def make(folder: Path) -> None:
        disk.ext4(None, folder / "data.img", DATA_BYTES, "data", journal=True)
        contents = {"boot_a": slot.boot, "rootfs_a": slot.rootfs}
        disk.boot_disk(folder, ENVIRONMENT, contents, disk.layout(BOOT_BYTES, ROOTFS_BYTES, DATA_BYTES))

    inputs: list[Input] = [
        slot.boot.parent.name,
        slot.rootfs.parent.name,
        HOOKS / "uboot/boot.cmd",
        CODE / "disk.py",
        json.dumps(ENVIRONMENT),
    ]
    return cache.step("disk", [*inputs, str((BOOT_BYTES, ROOTFS_BYTES, DATA_BYTES))], make)


def build(folder: Path, *, x86: bool = False) -> None:
    """Build everything and leave links with fixed names in `folder`: disk.img, flash.img, bundles.img, bundles/; again in systemd/.

    x86: instead what x86.py makes.
    """
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would build the same things
        cache = Cache(folder)
        ring = bundles.keyring(cache)
        for name, result in (_x86(cache, ring) if x86 else _arm64(cache, ring)).items():
            place = folder / name
            place.parent.mkdir(exist_ok=True)
            link = place.with_name(f".{place.name}.link")
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(result, place.parent))
            link.rename(place)
        cache.drop_unused()
    say(f"ready in {time.monotonic() - start:.1f} s")


def _arm64(cache: Cache, ring: Path) -> dict[str, Path]:
    slot = first_slot(cache, ring / "keyring.abk")
    made = device_disk(cache, slot)
    originals = bundles.Originals({"boot": slot.boot, "rootfs": slot.rootfs}, "", bundles.VARIANTS)
    bundled = bundles.bundles_disk(cache, originals, ring)
    names = {made: ("disk.img", "flash.img"), bundled: ("bundles.img", "bundles")}
    results = {name: result / name for result, several in names.items() for name in several}
    parts = slot.parts
    slots = systemd.slots(cache, ARM64, parts.base, parts.kernel.parent, parts.project, ring / "keyring.abk", systemd_uefi.CONFIGS)
    made = systemd.device_disk(cache, slot.boot, slots, ENVIRONMENT, BOOT_BYTES, DATA_BYTES)
    bundled = systemd.bundles_disk(cache, {"boot": slot.boot}, slots, ring)
    names = {made: ("disk.img", "flash.img"), bundled: ("bundles.img", "bundles")}
    results |= {f"systemd/{name}": result / name for result, several in names.items() for name in several}
    return results | systemd_uefi.build(cache, parts.kernel, parts.initrd, slots, ring)


def _x86(cache: Cache, ring: Path) -> dict[str, Path]:
    from images import x86  # it takes what it shares from here

    return x86.build(cache, ring)


if __name__ == "__main__":
    build(TREE / ".cache/images", x86=sys.argv[1:] == ["x86"])
