"""What a PC boots from, and in part an arm64 board with UEFI: FAT, GRUB for BIOS and for UEFI, systemd-boot, unified kernel images."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from abupdate.bootloaders.systemdboot import SystemdBootStore
from abupdate.model import BootState
from images.cache import run
from images.disk import SECTOR
from images.trees import STAMP

ESP_TYPE = "uefi"
BIOS_BOOT_TYPE = "21686148-6449-6E6F-744E-656564454649"
GRUB_MODULES = [
    "part_gpt",
    "ext2",
    "fat",
    "normal",
    "configfile",
    "linux",
    "multiboot",
    "loadenv",
    "test",
    "echo",
    "true",
    "search",
    "search_fs_file",
    "search_label",
    "search_fs_uuid",
    "regexp",
    "reboot",
    "halt",
    "sleep",
    "eval",
    "probe",
    "minicmd",
    "ls",
    "cat",
    "serial",
    "terminal",
]
SYSTEMD_BOOT = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
# diskboot.img ends with its list of blocks: first sector (8 bytes), count (2), segment (2).
_BLOCKLIST_OFFSET = 0x1F4
_CORE_SEGMENT = 0x820
# boot.img: where the sector number of core.img stands, and where the partition table and the disk's signature begin.
_KERNEL_SECTOR_OFFSET = 0x5C
_MBR_CODE_BYTES = 440


def fat(files: Mapping[str, Path | bytes], image: Path, size_bytes: int, label: str) -> None:
    """A FAT32 file system with these files (path with `/` -> content; an empty folder ends in `/`), the same at every run."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(STAMP), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "MTOOLS_SKIP_CHECK": "1"}
    run(["mkfs.vfat", "--invariant", "-F", "32", "-s", "2", "-n", label, image], env=environment)
    made: set[str] = set()
    for name, content in files.items():
        path = Path(name)
        for parent in [*reversed(path.parents[:-1]), *([path] if name.endswith("/") else [])]:
            if str(parent) not in made:
                run(["mmd", "-i", image, f"::{parent}"], env=environment)
                made.add(str(parent))
        if name.endswith("/"):
            continue
        piece = image.parent / ".fat-piece"
        piece.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        os.utime(piece, (STAMP, STAMP))
        run(["mcopy", "-m", "-i", image, piece, f"::{name}"], env=environment)
        piece.unlink()


def boot_entries(arguments: Mapping[str, str], state: BootState, esp: Path) -> dict[str, Path | bytes]:
    """systemd-boot's files for an ESP (as `fat` takes them) on which /abu/SLOT/ holds kernels. arguments: of each slot's kernel.

    esp: a folder that is made.
    """
    (esp / "loader/entries").mkdir(parents=True)
    images = {slot: {"kernel": esp / f"abu/{slot}/vmlinuz", "initrd": esp / f"abu/{slot}/initrd.img"} for slot in arguments}
    SystemdBootStore(esp, tuple(arguments), images, arguments).rebuild(state)
    (esp / "loader/loader.conf").write_text("default slot-*\ntimeout 0\neditor no\n")
    return {str(path.relative_to(esp)): path for path in sorted(esp.rglob("*.conf"))}


def grub(target: str, prefix: str, image: Path) -> None:
    """GRUB's core for a target (i386-pc, x86_64-efi) with all modules in it that a boot needs. prefix: `(,gptN)/grub`."""
    modules = [*GRUB_MODULES, "biosdisk"] if target == "i386-pc" else GRUB_MODULES
    run(["grub-mkimage", "-O", target, "-p", prefix, "-o", image, *modules])


def install_bios_grub(disk: Path, core: Path, start: int, size_bytes: int) -> None:
    """GRUB into a disk image: boot.img into the first sector, core.img into the BIOS boot partition that begins at sector `start`."""
    blob = bytearray(core.read_bytes())
    if len(blob) > size_bytes:
        raise SystemExit(f"images: GRUB's core has {len(blob)} bytes, its partition {size_bytes}")
    struct.pack_into("<QHH", blob, _BLOCKLIST_OFFSET, start + 1, -(-len(blob) // SECTOR) - 1, _CORE_SEGMENT)
    first = bytearray(Path("/usr/lib/grub/i386-pc/boot.img").read_bytes())
    struct.pack_into("<Q", first, _KERNEL_SECTOR_OFFSET, start)
    with disk.open("r+b") as file:
        file.write(first[:_MBR_CODE_BYTES])
        file.seek(start * SECTOR)
        file.write(blob)


def unified_kernel(kernel: Path, initrd: Path, arguments: str, image: Path) -> None:
    """One EFI program of a kernel, its initramfs and its arguments."""
    words = image.parent / ".cmdline"
    words.write_text(arguments)
    sections = ((".cmdline", words, 0x30000), (".linux", kernel, 0x2000000), (".initrd", initrd, 0x4000000))
    command: list[str | Path] = ["objcopy"]
    for name, path, address in sections:
        command += ["--add-section", f"{name}={path}", "--change-section-vma", f"{name}={address:#x}"]
    run([*command, STUB, image])
    words.unlink()
