"""Makes ext4 images from folders, small changes of them, and the device's GPT disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from images.cache import TREE, run
from images.trees import STAMP, set_times

MIB = 1 << 20
SECTOR = 512
ENVIRONMENT_BYTES = 0x4000
FLASH_BYTES = 64 * MIB  # each of the two NOR flashes of QEMU's machine `virt`
BOARD_ENVIRONMENT_BYTES = 0x40000
U_BOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")


@dataclass(frozen=True)
class Partition:
    """One partition: its label, first sector, size in bytes and GPT type (sfdisk's letter or UUID)."""

    label: str
    start: int
    size_bytes: int
    type: str = "linux"


def layout(boot_bytes: int, rootfs_bytes: int, data_bytes: int) -> tuple[Partition, ...]:
    """The partitions of the disk, in the order of their numbers (1...)."""
    parts = [Partition("bootscr", 2048, 8 * MIB), Partition("env", 18432, 1 * MIB)]
    start = 18432 + MIB // SECTOR
    sizes = (("boot_a", boot_bytes), ("boot_b", boot_bytes), ("rootfs_a", rootfs_bytes), ("rootfs_b", rootfs_bytes), ("data", data_bytes))
    for label, size in sizes:
        parts.append(Partition(label, start, size))
        start += size // SECTOR
    return tuple(parts)


def ext4(tree: Path | None, image: Path, size_bytes: int, label: str, *, journal: bool = False) -> None:
    """An ext4 file system of a given size with a folder's content, everything owned by root.

    Without a journal and checksums where it is only ever mounted read-only, so that every U-Boot can read it.
    """
    with image.open("wb") as file:
        file.truncate(size_bytes)
    features = "^metadata_csum,^64bit,^orphan_file,^resize_inode" + ("" if journal else ",^has_journal")
    identity = f"0b0{abs(hash_of(label)) % 10**5:05d}-0000-4000-8000-000000000000"
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", label, "-O", features, "-U", identity]
    command += ["-E", f"hash_seed={identity},root_owner=0:0,lazy_itable_init=0,nodiscard"]
    if tree is not None:
        command += ["-d", str(tree)]
    command.append(str(image))
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": str(STAMP), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    if os.geteuid() != 0:
        command = ["fakeroot", "--", *command]
    elif tree is not None:
        run(["chown", "-R", "0:0", tree])
    run(command, env=environment)


def hash_of(text: str) -> int:
    """A number from a text that is the same in every run."""
    return int.from_bytes(text.encode()[:8].ljust(8, b"\0"), "big")


def change_ext4(image: Path, files: Mapping[str, bytes | None], modes: Mapping[str, int], scratch: Path) -> None:
    """Put files into an ext4 image (None: remove); everything else keeps its place, so most chunks stay the same."""
    commands = []
    for number, (name, content) in enumerate(files.items()):
        commands.append(f"rm {name}")
        if content is not None:
            piece = scratch / f"piece{number}"
            piece.write_bytes(content)
            commands += [f"write {piece} {name}", f"set_inode_field {name} mode 0{modes[name]:o}"]
            commands += [f"set_inode_field {name} uid 0", f"set_inode_field {name} gid 0"]
            commands += [f"set_inode_field {name} {field} @{STAMP}" for field in ("atime", "mtime", "ctime", "crtime")]
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": str(STAMP), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(
        ["debugfs", "-w", "-f", "-", image], input="\n".join(commands), text=True, capture_output=True, check=False, env=environment
    )
    for name, content in files.items():
        if content is not None and read_from_ext4(image, name) != content:
            raise SystemExit(f"images: {name} could not be put into {image.name}\n{done.stderr[-1000:]}")
    for piece in scratch.glob("piece*"):
        piece.unlink()


def read_from_ext4(image: Path, name: str) -> bytes:
    """One file's bytes out of an ext4 image; empty where it is not there."""
    return subprocess.run(["debugfs", "-R", f"cat {name}", image], capture_output=True, check=False).stdout


def environment_copies(values: Mapping[str, str], folder: Path) -> bytes:
    """Content of the env partition: two equal copies in U-Boot's redundant layout, 0x80000 apart."""
    (folder / "env.txt").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    run(["mkenvimage", "-r", "-s", str(ENVIRONMENT_BYTES), "-p", "0", "-o", folder / "env.bin", folder / "env.txt"])
    copy = (folder / "env.bin").read_bytes()
    return copy.ljust(0x80000, b"\0") + copy.ljust(0x80000, b"\0")


def board_environment(folder: Path) -> None:
    """`flash.img`: the second NOR flash with U-Boot's own defaults, but no waiting and boot.scr as the only thing it runs."""
    blob = U_BOOT.read_bytes()
    begin = blob.index(b"bootcmd=run distro_bootcmd\0")
    begin = blob.rindex(b"\0\0", 0, begin) + 2
    words = blob[begin : blob.index(b"\0\0", begin)].decode("latin-1").split("\0")
    values = dict(word.split("=", 1) for word in words if "=" in word)
    values |= {"bootdelay": "0", "bootcmd": "virtio scan; load virtio 0:1 ${scriptaddr} /boot.scr && source ${scriptaddr}; reset"}
    (folder / "board.txt").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    flash = folder / "flash.img"
    run(["mkenvimage", "-s", hex(BOARD_ENVIRONMENT_BYTES), "-o", flash, folder / "board.txt"])
    with flash.open("r+b") as file:
        file.truncate(FLASH_BYTES)


def boot_script(tree: Path, scratch: Path) -> None:
    """Compile bootloader-hooks/uboot/boot.cmd into a folder as boot.scr."""
    source = TREE / "bootloader-hooks/uboot/boot.cmd"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(STAMP)}
    run(
        ["mkimage", "-A", "arm64", "-T", "script", "-C", "none", "-n", "abupdate", "-d", source, tree / "boot.scr"],
        env=environment,
        cwd=scratch,
    )


def boot_disk(folder: Path, values: Mapping[str, str], contents: Mapping[str, Path], partitions: tuple[Partition, ...]) -> None:
    """Make `disk.img` and `flash.img` in a folder that holds `data.img`: hook, environment, these images; nothing else stays there."""
    tree = folder / "script"
    tree.mkdir()
    boot_script(tree, folder)
    set_times(tree)
    ext4(tree, folder / "bootscr.img", 8 * MIB, "bootscr")
    (folder / "env.img").write_bytes(environment_copies(values, folder))
    board_environment(folder)
    pieces = {name: folder / f"{name}.img" for name in ("bootscr", "env", "data")}
    gpt_disk(folder / "disk.img", partitions, {**pieces, **contents})
    for path in folder.iterdir():
        if path.name not in ("disk.img", "flash.img"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def gpt_disk(disk: Path, partitions: tuple[Partition, ...], contents: Mapping[str, Path]) -> None:
    """A sparse disk image with a GPT, and the given images in the partitions of these labels."""
    last = partitions[-1]
    with disk.open("wb") as file:
        file.truncate(last.start * SECTOR + last.size_bytes + MIB)
    lines = ["label: gpt", "label-id: 0B0D1500-0000-4000-8000-000000000000", "first-lba: 2048"]
    for number, part in enumerate(partitions, 1):
        identity = f"0B0D1500-0000-4000-8000-{number:012d}"
        lines.append(f"start={part.start}, size={part.size_bytes // SECTOR}, type={part.type}, name={part.label}, uuid={identity}")
    done = subprocess.run(["sfdisk", "--quiet", disk], input="\n".join(lines) + "\n", text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"images: sfdisk: {done.stderr.strip()}")
    for part in partitions:
        if part.label in contents:
            copy_sparse(contents[part.label], disk, part.start * SECTOR, part.size_bytes)


def copy_sparse(source: Path, disk: Path, offset: int, room: int) -> None:
    """Copy a file into a disk image, leaving blocks of zeros as holes."""
    if source.stat().st_size > room:
        raise SystemExit(f"images: {source.name} has {source.stat().st_size} bytes, its partition {room}")
    with source.open("rb") as reader, disk.open("r+b") as writer:
        while block := reader.read(MIB):
            if block.count(0) != len(block):
                writer.seek(offset)
                writer.write(block)
            offset += len(block)


def copy_image(source: Path, target: Path) -> None:
    """Copy an image with its holes."""
    run(["cp", "--sparse=always", source, target])


def remove(*folders: Path) -> None:
    """Remove scratch folders."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
