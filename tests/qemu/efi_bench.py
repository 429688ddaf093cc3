"""Boots slots through EFI firmware alone: OVMF in QEMU, Debian's amd64 kernel as an EFI stub on a FAT partition, abupdate in the guest.

A `Bench` builds the parts once; a `Machine` is one disk and one store of variables on which boots follow each other. The guest runs
abupdate's own adapter on the real efivarfs, and prints what it was booted with.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import re
import selectors
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from images.cache import TREE, Cache, run

KERNEL = "linux-image-cloud-amd64"
# In the order in which they need each other.
MODULES: tuple[str, ...] = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"),
    *("fat", "vfat", "nls_cp437", "nls_ascii", "efivarfs"),
)
CODE, VARS = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
MAKE_UKI = TREE / "bootloader-hooks/efi/make-uki.sh"
PYTHON, STDLIB = Path("/usr/bin/python3.11"), Path("/usr/lib/python3.11")
GUEST = Path(__file__).with_name("efi_guest.py")
ESP_SECTOR, ESP_BYTES, DISK_BYTES = 2048, 256 << 20, 260 << 20
# From power-on to the guest's word, on a slow host with something beside it.
BOOT_WAIT_S = 120.0
# Of the standard library: what the package does not import, and would only make the firmware read longer.
_UNUSED: tuple[str, ...] = (
    *("__pycache__", "test", "tests", "idlelib", "lib2to3", "tkinter", "ensurepip", "config-*", "asyncio", "unittest", "pydoc*", "*.pyc"),
    *("distutils", "multiprocessing", "concurrent", "turtle*", "xml*", "email", "http", "sqlite3", "wsgiref", "venv", "dbm", "curses"),
    *("lib-dynload", "html", "pickle*", "_pydecimal*", "mailbox*", "doctest*", "tarfile*", "zipfile*", "imaplib*"),
)


class Bench:
    """Kernel, initramfs and the empty disk, built once in `folder`."""

    def __init__(self, folder: Path) -> None:
        assert platform.machine() == "x86_64", "the guest's programs are this machine's own"
        self.folder = folder
        self.kernel = _kernel()
        self.initrd = _initrd(folder, self.kernel)

    def machine(self, name: str = "machine", *, unified: bool = False) -> Machine:
        """A machine of its own with both slots written; no boot entry but the firmware's own."""
        folder = self.folder / name
        folder.mkdir()
        shutil.copy(VARS, folder / "vars.fd")
        esp = folder / "esp.img"
        with esp.open("wb") as file:
            file.truncate(ESP_BYTES)
        run(["/usr/sbin/mkfs.vfat", "-F", "32", esp])
        machine = Machine(folder)
        run(["mmd", "-i", esp, "::abu", "::abu/A", "::abu/B", "::EFI", "::EFI/BOOT"])
        for slot in "AB":
            if unified:
                run(["mcopy", "-i", esp, self.unified(), f"::abu/{slot}/linux.efi"])
            else:
                run(["mcopy", "-i", esp, self.kernel / "vmlinuz", f"::abu/{slot}/vmlinuz"])
                run(["mcopy", "-i", esp, self.initrd, f"::abu/{slot}/initrd.img"])
        # The default path of the specification: what boots before there are entries, as an installer's stick does.
        run(["mcopy", "-i", esp, self.unified("console=ttyS0 quiet random.trust_cpu=on installer"), "::EFI/BOOT/BOOTX64.EFI"])
        with machine.disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        run(["/usr/sbin/sgdisk", "-Z", machine.disk])
        run(["/usr/sbin/sgdisk", f"-n1:{ESP_SECTOR}:+{ESP_BYTES >> 20}M", "-t1:ef00", "-c1:esp", machine.disk])
        run(["dd", f"if={esp}", f"of={machine.disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"])
        esp.unlink()
        return machine

    def unified(self, cmdline: str = "") -> Path:
        """Kernel and initramfs in one program, as bootloader-hooks/efi makes it; with a command line of its own where one is given."""
        image = self.folder / f"unified-{len(cmdline)}.efi"
        if not image.exists():
            run([MAKE_UKI, self.kernel / "vmlinuz", self.initrd, image])
            if cmdline:
                text = self.folder / "cmdline"
                text.write_text(cmdline)
                run(["objcopy", "--add-section", f".cmdline={text}", "--change-section-vma", ".cmdline=0x30000", image])
        return image


class Machine:
    """One disk and one store of variables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "disk.img"
        self.variables = folder / "vars.fd"

    def esp(self, *command: str | Path) -> str:
        """Run an mtools command on the ESP while the machine is off: esp("mdel", "::abu/B/vmlinuz")."""
        return run([command[0], "-i", f"{self.disk}@@{ESP_SECTOR * 512}", *command[1:]])

    def copy(self, name: str) -> Machine:
        """The same machine as it is now, switched off, to go on with."""
        folder = self.folder.with_name(name)
        folder.mkdir()
        for path in (self.disk, self.variables):
            run(["cp", "--sparse=always", path, folder / path.name])
        return Machine(folder)

    def power(self) -> Power:
        """Switch it on; leaving the block is the power cut."""
        return Power(self)


class Power:
    """A running machine, through reboots."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-machine", "q35", "-m", "768", "-nodefaults", "-display", "none"]
        command += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={CODE}"]
        command += ["-drive", f"if=pflash,format=raw,unit=1,file={machine.variables}"]
        command += ["-drive", f"if=none,id=d0,format=raw,file={machine.disk}", "-device", "virtio-blk-pci,drive=d0"]
        self._command = [*command, "-serial", "stdio"]
        self.console = ""

    def __enter__(self) -> Power:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait(30)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def booted(self) -> dict[str, str]:
        """Wait for the next boot's word: the kernel's command line as KEY -> VALUE."""
        words = json.loads(self._wait_for(r"GUEST READY (\[.*\])\r?\n")[1])
        return dict(word.partition("=")[::2] for word in words)

    def do(self, program: str) -> Any:
        """Run a program in the guest; what it left in `result`. Raises AssertionError with the guest's error."""
        self._send(program)
        answer = json.loads(base64.b64decode(self._wait_for(r"GUEST SAYS (\S+)\r?\n")[1]))
        assert "error" not in answer, answer
        return answer["result"]

    def reboot(self) -> dict[str, str]:
        """An ordered reboot of the guest, and the next boot's word."""
        self._send("os.sync(); libc.reboot(0x1234567)")
        return self.booted()

    def _send(self, program: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(base64.b64encode(program.encode()) + b"\n")
        self._process.stdin.flush()

    def _wait_for(self, pattern: str) -> re.Match[str]:
        """Read the console until it shows the pattern, which is taken out of what is looked at next time."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + BOOT_WAIT_S
        start = getattr(self, "_seen", 0)
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                match = re.compile(pattern).search(self.console, start)
                if match:
                    self._seen = match.end()
                    return match
                left = deadline - time.monotonic()
                assert left > 0, f"nothing like {pattern} within {BOOT_WAIT_S:.0f} s: ...{self.console[-2000:]}"
                if selector.select(left):
                    data = os.read(self._process.stdout.fileno(), 1 << 16)
                    assert data, f"QEMU ended: ...{self.console[-2000:]}"
                    self.console += data.decode(errors="replace")


def _kernel() -> Path:
    """Folder with Debian's kernel and the modules that the guest needs; downloaded where it is not cached."""

    def make(folder: Path) -> None:
        package = re.search(r"Depends: (\S+)", run(["apt-cache", "depends", KERNEL]))
        assert package, "apt-get update?"
        run(["apt-get", "download", package[1]], cwd=folder)
        (deb,) = folder.glob("*.deb")
        run(["dpkg-deb", "-x", deb, folder / "tree"])
        (image,) = folder.glob("tree/boot/vmlinuz-*")
        image.rename(folder / "vmlinuz")
        found = {path.name.removesuffix(".ko"): path for path in folder.glob("tree/lib/modules/**/*.ko")}
        (folder / "modules").mkdir()
        for name in MODULES:
            found[name].rename(folder / "modules" / f"{name}.ko")
        (folder / "modules/order").write_text("\n".join(f"{name}.ko" for name in MODULES))
        shutil.rmtree(folder / "tree")
        deb.unlink()

    return Cache(TREE / ".cache/images").step("kernel-amd64-efi", [KERNEL, *MODULES], make)


def _initrd(folder: Path, kernel: Path) -> Path:
    """Python, efibootmgr, modules and the package, from this machine."""
    tree = folder / "tree"
    for name in ("proc", "sys", "dev", "efi", "tmp", "package"):
        (tree / name).mkdir(parents=True)
    shutil.copytree(kernel / "modules", tree / "modules")
    (tree / "init").write_text(f"#!{PYTHON} -IS\n" + GUEST.read_text())
    (tree / "init").chmod(0o755)
    shutil.copytree(STDLIB, tree / str(STDLIB).lstrip("/"), ignore=shutil.ignore_patterns(*_UNUSED))
    shutil.copytree(TREE / "abupdate", tree / "package/abupdate", ignore=shutil.ignore_patterns("__pycache__", "fleet", "host"))
    modules = [
        path for path in (STDLIB / "lib-dynload").glob("*.so") if path.name.split(".")[0] in ("_ctypes", "termios", "_uuid", "_json")
    ]
    programs = [PYTHON, Path("/usr/bin/efibootmgr"), *modules]
    needed = set(programs)
    for program in programs:
        needed |= {Path(word) for word in re.findall(r"(/\S+\.so\S*)", run(["ldd", program]))}
    for path in needed:
        target = tree / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o755)
    image = folder / "initrd.img"
    listed = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    packed = subprocess.run(["cpio", "-0", "-o", "-H", "newc", "--quiet"], input=listed.encode(), capture_output=True, cwd=tree, check=True)
    zipped = subprocess.run(["gzip", "-6"], input=packed.stdout, capture_output=True, check=True)
    image.write_bytes(zipped.stdout)
    shutil.rmtree(tree)
    return image
