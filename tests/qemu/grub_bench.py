"""Runs the GRUB hook for real: Debian's GRUB in QEMU, under SeaBIOS or OVMF, on a small disk with the layout that grub.cfg names.

A `Bench` builds the parts once; a `Board` is one disk on which boots follow each other. Its kernels are Debian's (an initramfs says
the command line and powers off) or, where firmware is SeaBIOS and it should be quick, tiny_bzimage.S. The environment block on it
is made by grub-editenv and read by it; `Board.pull` and `Board.push` move it to a file and back, for the production code.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from abupdate.formats.grubenv import SIZE_BYTES
from images import pc
from tests.qemu.hookcase import GONE, GOOD, JUNK, NO_INITRD, RUINED
from tests.qemu.sdboot_bench import amd64_kernel

ROOT = Path(__file__).resolve().parents[2]
HOOK = ROOT / "bootloader-hooks" / "grub" / "grub.cfg"
OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

MIB = 1 << 20
SECTOR = 512
SLOT_MIB = {False: 2, True: 24}
BOOT_WAIT_S = 120
# What isa-debug-exit makes of the tiny kernel's word.
_TINY_EXIT = 0x31 << 1 | 1


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot: the kernel's command line as words, None when GRUB reset the board instead; everything on the console."""

    words: tuple[str, ...] | None
    console: str

    @property
    def args(self) -> dict[str, str]:
        """Command line as KEY -> VALUE, empty when no kernel ran."""
        return dict(word.partition("=")[::2] for word in self.words or ())


def run(*command: str | Path) -> str:
    """Run a tool that must succeed; its standard output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr.decode(errors='replace')}"
    return done.stdout.decode(errors="surrogateescape")


class Bench:
    """The parts that all boards share. real: with Debian's kernel, as UEFI needs it."""

    def __init__(self, folder: Path, *, real: bool = False, hook: Path = HOOK) -> None:
        self.folder, self.real = folder, real
        self._boot_bytes = SLOT_MIB[real] * MIB
        # bios boot, esp, grub, boot_a, boot_b: in MiB
        sizes = (1, 8, 4, SLOT_MIB[real], SLOT_MIB[real])
        starts = [1]
        for size in sizes:
            starts.append(starts[-1] + size)
        self.starts = {name: start * MIB for name, start in zip(("bios", "esp", "grub", "A", "B"), starts, strict=False)}
        disk = folder / "template.img"
        with disk.open("wb") as file:
            file.truncate((starts[-1] + 1) * MIB)
        parts = [f"-n{n}:{start * 2048}:+{size}M" for n, (start, size) in enumerate(zip(starts, sizes, strict=False), 1)]
        run("/usr/sbin/sgdisk", *parts, "-t1:ef02", "-t2:ef00", disk)
        core, loader = folder / "core.img", folder / "grub.efi"
        pc.grub("i386-pc", "(,gpt3)/grub", core)
        pc.grub("x86_64-efi", "(,gpt3)/grub", loader)
        pc.install_bios_grub(disk, core, self.starts["bios"] // SECTOR, MIB)
        self.template = disk
        esp = folder / "esp.img"
        with esp.open("wb") as file:
            file.truncate(8 * MIB)
        run("/usr/sbin/mkfs.vfat", "-F", "16", "-s", "1", esp)
        run("mmd", "-i", esp, "::EFI", "::EFI/BOOT")
        run("mcopy", "-i", esp, loader, "::EFI/BOOT/BOOTX64.EFI")
        tree = folder / "grub-tree"
        (tree / "grub").mkdir(parents=True)
        shutil.copy(hook, tree / "grub/grub.cfg")
        mark = b"a place to look for " + os.urandom(16)
        (tree / "grub/grubenv").write_bytes(mark.ljust(SIZE_BYTES, b"."))
        kernel, initrd = (amd64_kernel(), self._initrd()) if real else (self._tiny(), None)
        self._boot = {kind: self._boot_partition(kind, kernel, initrd) for kind in (GOOD, GONE, NO_INITRD, JUNK, RUINED)}
        for name, image in (("esp", esp), ("grub", self._ext4(tree, "grub", 4 * MIB))):
            self.place(disk, self.starts[name], image.read_bytes())
        self.env_offset = disk.read_bytes().index(mark)
        self._file = folder / "disk.img"

    def board(self, boot_a: str = GOOD, boot_b: str = GOOD) -> Board:
        """A disk of its own with an empty environment block. One at a time: the next one overwrites it."""
        shutil.copy(self.template, self._file)
        for slot, kind in (("A", boot_a), ("B", boot_b)):
            self.place(self._file, self.starts[slot], self._boot[kind])
        return Board(self, self._file)

    @staticmethod
    def place(disk: Path, offset: int, data: bytes) -> None:
        """Put bytes at an offset of a file."""
        with disk.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def _tiny(self) -> Path:
        linked, image = self.folder / "tiny.elf", self.folder / "tiny"
        options = ("-m32", "-nostdlib", "-static", "-Wl,--build-id=none,-Ttext=0,-N,-e,0,--no-warn-rwx-segments")
        run("gcc", *options, "-o", linked, Path(__file__).with_name("tiny_bzimage.S"))
        run("objcopy", "-O", "binary", "-j", ".text", linked, image)
        return image

    def _initrd(self) -> Path:
        tree, initrd = self.folder / "initrd-tree", self.folder / "initrd"
        for name in ("proc", "dev"):
            (tree / name).mkdir(parents=True)
        run("gcc", "-static", "-Os", "-o", tree / "init", Path(__file__).with_name("tiny_init.c"))
        run("mknod", tree / "dev/console", "c", "5", "1")
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        packed = subprocess.run(["cpio", "-o", "-H", "newc"], input=names.encode(), cwd=tree, capture_output=True, check=True).stdout
        initrd.write_bytes(gzip.compress(packed))
        return initrd

    def _boot_partition(self, kind: str, kernel: Path, initrd: Path | None) -> bytes:
        if kind == RUINED:
            return b"\xa5" * self._boot_bytes
        tree = self.folder / kind
        tree.mkdir()
        if kind != GONE:
            (tree / "vmlinuz").write_bytes(b"\0" * 8192 if kind == JUNK else kernel.read_bytes())
        if kind != NO_INITRD:
            (tree / "initrd.img").write_bytes(b"initrd\n" if initrd is None else initrd.read_bytes())
        return self._ext4(tree, f"boot-{kind}", self._boot_bytes).read_bytes()

    def _ext4(self, tree: Path, name: str, size: int) -> Path:
        image = self.folder / f"{name}.ext4"
        with image.open("wb") as file:
            file.truncate(size)
        run("/usr/sbin/mkfs.ext4", "-q", "-d", tree, image)
        return image


class Board:
    """One disk, its environment block, and boots of it."""

    def __init__(self, bench: Bench, disk: Path) -> None:
        self._bench = bench
        self.disk = disk
        self.file = disk.with_name("grubenv")
        run("grub-editenv", self.file, "create")
        self.push()

    def boot(self, *, readonly: bool = False, uefi: bool = False, nbd: Path | None = None) -> Boot:
        """Power on, until the kernel ends QEMU or GRUB resets the board."""
        file = f"file={self.disk}" if nbd is None else f"file.driver=nbd,file.server.type=unix,file.server.path={nbd}"
        words = ["qemu-system-x86_64", "-accel", "tcg", "-M", "pc", "-m", "256", "-nic", "none", "-display", "none", "-no-reboot"]
        words += ["-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2", "-serial", "stdio", "-monitor", "none"]
        words += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]
        words += ["-drive", f"if=none,id=d0,format=raw,{file}" + (",readonly=on" if readonly else "")]
        words += ["-device", "virtio-blk-pci,drive=d0,romfile="]
        if uefi:
            variables = self.disk.with_name("vars.fd")
            shutil.copy(OVMF_VARS, variables)
            words += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF_CODE}"]
            words += ["-drive", f"if=pflash,unit=1,format=raw,file={variables}"]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_WAIT_S, check=False)
        console = re.sub(r"\x1b\[[0-9;?=]*[A-Za-z]", "", done.stdout.decode(errors="replace")).replace("\r", "")
        assert done.returncode in (0, _TINY_EXIT), done.stderr.decode(errors="replace")
        found = re.search(r"^tiny: (.*)$", console, re.MULTILINE)
        if found is None:
            assert re.search(r"^abupdate: .*, reset$", console, re.MULTILINE), console
        return Boot(tuple(found.group(1).split()) if found else None, console)

    def pull(self) -> bytes:
        """The block on the disk, also into `file`."""
        with self.disk.open("rb") as file:
            file.seek(self._bench.env_offset)
            data = file.read(SIZE_BYTES)
        self.file.write_bytes(data)
        return data

    def push(self, data: bytes | None = None) -> None:
        """Put `file`, or these bytes, onto the disk."""
        if data is None:
            data = self.file.read_bytes()
        assert len(data) == SIZE_BYTES
        self._bench.place(self.disk, self._bench.env_offset, data)

    def set(self, env: Mapping[str, str]) -> None:
        """Variables by the real grub-editenv."""
        run("grub-editenv", self.file, "create")
        if env:
            run("grub-editenv", self.file, "set", *(f"{name}={value}" for name, value in env.items()))
        self.push()

    def env(self) -> dict[str, str]:
        """What the real grub-editenv says."""
        self.pull()
        return dict(line.partition("=")[::2] for line in run("grub-editenv", self.file, "list").splitlines())
