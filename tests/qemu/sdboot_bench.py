"""Runs systemd-boot for real: Debian's under OVMF in QEMU, from an EFI system partition made by mtools, no Linux userspace.

A `Bench` holds the parts (kernel, an initramfs that says its command line and powers off); an `Esp` is one disk on which boots follow
each other. `Esp.folder` is what the production code works on; it is copied to the disk before a boot and back after it.
"""

from __future__ import annotations

import gzip
import re
import shutil
import struct
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from images.cache import TREE, Cache
from images.cache import run as build

KERNEL = "linux-image-cloud-amd64"
LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
DISK_BYTES, ESP_OFFSET = 72 << 20, 1 << 20
BOOT_WAIT_S = 120
LOADER_CONF = "default slot-*\ntimeout 0\neditor no\n"


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot. words: the kernel's command line, None when none started. console: everything on it."""

    words: tuple[str, ...] | None
    console: str

    @property
    def args(self) -> dict[str, str]:
        """Command line as KEY -> VALUE, empty when no kernel ran."""
        return dict(word.partition("=")[::2] for word in self.words or ())

    @property
    def slot(self) -> str | None:
        """The slot that booted."""
        return self.args.get("abupdate.slot")


def run(*command: str | Path) -> str:
    """Run a tool that must succeed; its standard output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    return done.stdout


def amd64_kernel() -> Path:
    """Debian's kernel; downloaded where it is not cached."""

    def make(folder: Path) -> None:
        package = re.search(r"Depends: (\S+)", build(["apt-cache", "depends", KERNEL]))
        assert package, "apt-get update?"
        build(["apt-get", "download", package[1]], cwd=folder)
        (deb,) = folder.glob("*.deb")
        build(["dpkg-deb", "-x", deb, folder / "tree"])
        (image,) = folder.glob("tree/boot/vmlinuz-*")
        image.rename(folder / "vmlinuz")
        shutil.rmtree(folder / "tree")
        deb.unlink()

    return Cache(TREE / ".cache/images").step("kernel-amd64", [KERNEL], make) / "vmlinuz"


class Bench:
    """The parts that all disks share, built once in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = amd64_kernel()
        self.initrd = folder / "initrd"
        tree = folder / "tree"
        for name in ("proc", "dev"):
            (tree / name).mkdir(parents=True)
        run("gcc", "-static", "-Os", "-o", tree / "init", Path(__file__).with_name("tiny_init.c"))
        # Before the initramfs brings a /dev the kernel opens its console there.
        archive = subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"], input=b"init\nproc\ndev\n", cwd=tree, capture_output=True, check=True
        ).stdout
        self.initrd.write_bytes(gzip.compress(archive, 1))
        self.template = folder / "template.img"
        with self.template.open("wb") as file:
            file.truncate(DISK_BYTES)
        run("/usr/sbin/sgdisk", "-n1:2048:+70M", "-t1:ef00", self.template)
        run("/usr/sbin/mkfs.vfat", "-F", "32", "-s", "1", "--offset", str(ESP_OFFSET // 512), self.template, str(70 << 10))

    def esp(self, name: str = "esp") -> Esp:
        """A disk of its own, with systemd-boot and both slots' kernels, without entries."""
        return Esp(self, self.folder / name)


class Esp:
    """One disk and boots of it."""

    def __init__(self, bench: Bench, place: Path) -> None:
        self.bench, self.kernels = bench, set("AB")
        self.folder, self.disk, self.variables = place, place.with_suffix(".img"), place.with_suffix(".vars")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copy(bench.template, self.disk)
        shutil.copy(VARIABLES, self.variables)
        for slot in "AB":
            (place / "abu" / slot).mkdir(parents=True)
        (place / "loader/entries").mkdir(parents=True)
        (place / "loader/loader.conf").write_text(LOADER_CONF)
        self._mtools("mmd", "::EFI", "::EFI/BOOT", "::abu", "::abu/A", "::abu/B", "::loader", "::loader/entries")
        self._mtools("mcopy", LOADER, "::EFI/BOOT/BOOTX64.EFI")
        for slot in "AB":
            self._mtools("mcopy", bench.kernel, f"::abu/{slot}/vmlinuz")
            self._mtools("mcopy", bench.initrd, f"::abu/{slot}/initrd")

    def _mtools(self, tool: str, *words: str | Path) -> str:
        return run(tool, "-i", f"{self.disk}@@{ESP_OFFSET}", *words)

    def clear(self) -> None:
        """No entries, and loader.conf as it should be."""
        for path in (self.folder / "loader/entries").iterdir():
            path.unlink()
        (self.folder / "loader/loader.conf").write_text(LOADER_CONF)

    def replaced(self, slot: str, name: str, content: bytes | None) -> bytes:
        """Replace a slot's file, or take it away; what it held."""
        before = self.bench.kernel.read_bytes() if name == "vmlinuz" else self.bench.initrd.read_bytes()
        if content is None:
            self._mtools("mdel", f"::abu/{slot}/{name}")
        else:
            source = self.folder.with_suffix(".put")
            source.write_bytes(content)
            self._mtools("mcopy", "-o", source, f"::abu/{slot}/{name}")
        return before

    def put_kernel(self, slot: str, content: bytes | None) -> None:
        """Replace a slot's kernel on the disk, or take it away."""
        path = f"abu/{slot}/vmlinuz"
        if content is None:
            self._mtools("mdel", f"::{path}")
            self.kernels.discard(slot)
            return
        self.kernels.add(slot)
        source = self.folder.with_suffix(".put")
        source.write_bytes(content)
        self._mtools("mcopy", "-o", source, f"::{path}")

    def entries(self) -> dict[str, bytes]:
        """Names and content of the entries in the folder."""
        return {path.name: path.read_bytes() for path in sorted((self.folder / "loader/entries").iterdir())}

    def boot(self, *, readonly: bool = False) -> Boot:
        """Power on, until the kernel powers off."""
        self._mtools("mdeltree", "::loader")
        self._mtools("mcopy", "-s", self.folder / "loader", "::loader")
        command = self._command(readonly=readonly)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_WAIT_S, check=False)
        console = done.stdout.decode(errors="replace").replace("\r", "")
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        shutil.rmtree(self.folder / "loader")
        self._mtools("mcopy", "-s", "::loader", self.folder)
        found = re.search(r"^tiny: (.*)$", console, re.MULTILINE)
        return Boot(tuple(found[1].split()) if found else None, console)

    def _command(self, *, readonly: bool) -> list[str]:
        disk = f"if=none,id=d0,format=raw,file={self.disk}" + (",readonly=on" if readonly else "")
        return [
            *("qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "qemu64", "-m", "512", "-nic", "none", "-display", "none"),
            *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}"),
            *("-drive", f"if=pflash,unit=1,format=raw,file={self.variables}"),
            *("-drive", disk, "-device", "virtio-blk-pci,drive=d0", "-serial", "stdio", "-monitor", "none", "-no-reboot"),
        ]


# EDK2's variable store: a header of 28 bytes behind the volume's, then variables, each with a header of 60 bytes and aligned to 4.
_STORE = bytes.fromhex("782cf3aa7b949a43a1802e144ec37792")
_VARIABLE = struct.Struct("<HBBIQ16sIII16s")
_START, _ADDED, _DELETED = 0x55AA, 0x3F, 0x3C


def set_variable(store: Path, name: str, data: bytes) -> None:
    """Replace a variable of the EFI specification in the file of a firmware that is off, as its driver does: add one, mark the old one."""
    content = bytearray(store.read_bytes())
    at = content.index(_STORE) + 28
    wanted = f"{name}\0".encode("utf-16-le")
    attributes, vendor = 7, uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
    while int.from_bytes(content[at : at + 2], "little") == _START:
        _, state, *_, name_bytes, data_bytes, owner = _VARIABLE.unpack_from(content, at)
        begin = at + _VARIABLE.size
        if state == _ADDED and owner == vendor and content[begin : begin + name_bytes] == wanted:
            content[at + 2] &= _DELETED
        at = -(-(begin + name_bytes + data_bytes) // 4) * 4
    fresh = _VARIABLE.pack(_START, _ADDED, 0, attributes, 0, bytes(16), 0, len(wanted), len(data), vendor) + wanted + data
    assert content[at : at + len(fresh)] == b"\xff" * len(fresh), "no room"
    content[at : at + len(fresh)] = fresh
    store.write_bytes(content)


def get_variable(store: Path, name: str) -> bytes:
    """A variable of the EFI specification in such a file."""
    content = store.read_bytes()
    at = content.index(_STORE) + 28
    found = b""
    while int.from_bytes(content[at : at + 2], "little") == _START:
        _, state, *_, name_bytes, data_bytes, _ = _VARIABLE.unpack_from(content, at)
        begin = at + _VARIABLE.size
        if state == _ADDED and content[begin : begin + name_bytes] == f"{name}\0".encode("utf-16-le"):
            found = content[begin + name_bytes : begin + name_bytes + data_bytes]
        at = -(-(begin + name_bytes + data_bytes) // 4) * 4
    return found
