"""Runs the U-Boot hook for real: stock U-Boot in QEMU on a small disk with the layout that boot.cmd names, no Linux.

A `Bench` builds the parts once (boot.scr, boot partitions with tiny kernels); a `Board` is one disk on which boots follow each
other. The environment on it is made by mkenvimage and read and written by fw_printenv and fw_setenv.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import QMPClient, QMPError

from tests.qemu.hookcase import GONE, GOOD, HANG, JUNK, NO_INITRD, RUINED

ROOT = Path(__file__).resolve().parents[2]
HOOK = ROOT / "bootloader-hooks" / "uboot" / "boot.cmd"
UBOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")

SECTOR_BYTES = 512
BOOTSCR_SECTOR, ENV_SECTOR = 2048, 18432
COPY_OFFSETS = (ENV_SECTOR * SECTOR_BYTES, ENV_SECTOR * SECTOR_BYTES + 0x80000)
ENV_BYTES = 0x4000
BOOT_BYTES = 2 << 20
BOOT_SECTORS = {"A": 20480, "B": 20480 + BOOT_BYTES // SECTOR_BYTES}
DISK_BYTES = 16 << 20
BOOT_WAIT_S = 60
LOCK_REGISTER = 0x40100F0068  # of the watchdog at 00:1e.0, through memory-mapped configuration space


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot: the kernel's command line as words, None when U-Boot reset the board instead; everything on the console."""

    words: tuple[str, ...] | None
    console: str

    @property
    def args(self) -> dict[str, str]:
        """Command line as KEY -> VALUE, empty when no kernel ran."""
        return dict(word.partition("=")[::2] for word in self.words or ())


@dataclass(frozen=True, slots=True)
class Watched:
    """Boots under the i6300esb. events: QMP's WATCHDOG, RESET, SHUTDOWN with their time in seconds. lock: the chip's lock register
    at the end (bit 0 locked, bit 1 running), None where QEMU had ended.
    """

    events: tuple[tuple[str, float], ...]
    lock: int | None
    console: str


def run(*command: str | Path, data: bytes | None = None) -> str:
    """Run a tool that must succeed; its standard output."""
    done = subprocess.run([str(word) for word in command], input=data, capture_output=True, timeout=60, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{command[0]}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="surrogateescape")


class Bench:
    """The parts that all boards share, built once in `folder`."""

    def __init__(self, folder: Path, hook: Path = HOOK) -> None:
        self.folder = folder
        self._boot: dict[str, bytes] = {}
        kernels = {GOOD: self._kernel("tiny"), HANG: self._kernel("hang", "-DHANG")}
        for kind in (GOOD, GONE, NO_INITRD, JUNK, RUINED, HANG):
            self._boot[kind] = self._boot_partition(kind, kernels.get(kind, kernels[GOOD]))
        template = folder / "template.img"
        with template.open("wb") as file:
            file.truncate(DISK_BYTES)
        run(
            *("/usr/sbin/sgdisk", "-n1:2048:+8M", "-c1:bootscr", "-n2:18432:+1M", "-c2:env"),
            *("-n3:20480:+2M", "-c3:boot_a", "-n4:24576:+2M", "-c4:boot_b", template),
        )
        script = folder / "boot.scr"
        run("mkimage", "-A", "arm64", "-T", "script", "-C", "none", "-d", hook, script)
        fat = folder / "bootscr.img"
        with fat.open("wb") as file:
            file.truncate(8 << 20)
        run("/usr/sbin/mkfs.vfat", "-s", "1", fat)
        run("mcopy", "-i", fat, script, "::boot.scr")
        disk = bytearray(template.read_bytes())
        offset = BOOTSCR_SECTOR * SECTOR_BYTES
        disk[offset : offset + (8 << 20)] = fat.read_bytes()
        self._disk = bytes(disk)
        # U-Boot's own environment, in flash: no countdown, and straight to the script (a board finds it through distro_bootcmd).
        text = b"bootdelay=0\nbootcmd=virtio scan; load virtio 0:1 ${scriptaddr} boot.scr; source ${scriptaddr}; poweroff\n"
        defaults = (
            b"scriptaddr=0x40200000\nkernel_addr_r=0x40400000\nramdisk_addr_r=0x44000000\nfdt_high=0xffffffff\ninitrd_high=0xffffffff\n"
        )
        flash = folder / "flash.img"
        run("mkenvimage", "-s", "0x40000", "-o", flash, "-", data=text + defaults + b"BOOT_ORDER=B\nBOOT_A_LEFT=0\nBOOT_TRIAL=A\n")
        flash.write_bytes(flash.read_bytes().ljust(64 << 20, b"\xff"))
        self.flash = flash

    def board(self, boot_a: str = GOOD, boot_b: str = GOOD) -> Board:
        """A disk of its own whose environment holds no valid copy yet. One at a time: the next one overwrites it."""
        return Board(self, self._fresh_disk(boot_a, boot_b))

    def _fresh_disk(self, boot_a: str, boot_b: str) -> Path:
        disk = bytearray(self._disk)
        for slot, kind in (("A", boot_a), ("B", boot_b)):
            offset = BOOT_SECTORS[slot] * SECTOR_BYTES
            disk[offset : offset + BOOT_BYTES] = self._boot[kind]
        path = self.folder / "disk.img"
        path.write_bytes(disk)
        return path

    def _kernel(self, name: str, *options: str) -> bytes:
        linked, image = self.folder / f"{name}.elf", self.folder / f"{name}.bin"
        source = Path(__file__).with_name("tiny_kernel.S")
        run("aarch64-linux-gnu-gcc", "-nostdlib", "-static", "-Wl,--build-id=none", *options, "-o", linked, source)
        run("aarch64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", linked, image)
        return image.read_bytes()

    def _boot_partition(self, kind: str, kernel: bytes) -> bytes:
        if kind == RUINED:
            return b"\xa5" * BOOT_BYTES
        tree, image = self.folder / f"{kind}.d", self.folder / f"{kind}.ext4"
        tree.mkdir()
        if kind != GONE:
            (tree / "vmlinuz").write_bytes(b"\0" * 4096 if kind == JUNK else kernel)
        if kind != NO_INITRD:
            (tree / "initrd.img").write_bytes(b"initrd\n")
        with image.open("wb") as file:
            file.truncate(BOOT_BYTES)
        run("/usr/sbin/mkfs.ext4", "-q", "-d", tree, image)
        return image.read_bytes()


class Board:
    """One disk, its environment, and boots of it."""

    def __init__(self, bench: Bench, disk: Path) -> None:
        self._bench = bench
        self.disk = disk
        self.config = disk.with_name("fw_env.config")
        self.config.write_text("".join(f"{disk} {offset:#x} {ENV_BYTES:#x}\n" for offset in COPY_OFFSETS))

    def command(self, *, readonly: bool = False, stock: bool = False, nbd: Path | None = None) -> list[str]:
        """QEMU's command line without what says how it ends. stock: U-Boot with its built-in environment. nbd: disk behind a socket."""
        words = [
            "qemu-system-aarch64",
            "-accel",
            "tcg",
            "-M",
            "virt",
            "-cpu",
            "cortex-a53",
            "-m",
            "256",
            "-nic",
            "none",
            "-display",
            "none",
        ]
        words += ["-bios", str(UBOOT)]
        if not stock:
            words += ["-drive", f"if=pflash,unit=1,format=raw,readonly=on,file={self._bench.flash}"]
        file = f"file={self.disk}" if nbd is None else f"file.driver=nbd,file.server.type=unix,file.server.path={nbd}"
        drive = f"if=none,id=d0,format=raw,{file}" + (",readonly=on" if readonly else "")
        return [*words, "-drive", drive, "-device", "virtio-blk-pci,drive=d0"]

    def boot(self, *, readonly: bool = False, stock: bool = False, nbd: Path | None = None) -> Boot:
        """Power on, until the kernel powers off or U-Boot resets the board."""
        command = [*self.command(readonly=readonly, stock=stock, nbd=nbd), "-serial", "stdio", "-monitor", "none", "-no-reboot"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_WAIT_S, check=False)
        console = done.stdout.decode(errors="replace").replace("\r", "")
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        found = re.search(r"^tiny: (.*)$", console, re.MULTILINE)
        if found is None:
            assert "abupdate: no slot can be started, reset" in console, console
        return Boot(tuple(found.group(1).split()) if found else None, console)

    def boot_watched(self, until: str = "") -> Watched:
        """Power on with the watchdog, until the guest powers off or a word is on the console."""
        return asyncio.run(asyncio.wait_for(self._watch(until), BOOT_WAIT_S))

    async def _watch(self, until: str) -> Watched:
        console, socket = self.disk.with_name("console.log"), self.disk.with_name("qmp.sock")
        console.write_bytes(b"")
        socket.unlink(missing_ok=True)
        words = [*self.command(), "-device", "i6300esb,addr=1e.0", "-action", "watchdog=reset", "-serial", f"file:{console}"]
        monitor = QMPClient("uboot")
        events: list[tuple[str, float]] = []
        lock = None
        await monitor.start_server(str(socket))
        process = await asyncio.create_subprocess_exec(*words, "-monitor", "none", "-qmp", f"unix:{socket}")
        try:
            await monitor.accept()
            with monitor.listener(("WATCHDOG", "RESET", "SHUTDOWN")) as listener:
                while lock is None and not any(name == "SHUTDOWN" for name, _ in events):
                    with contextlib.suppress(TimeoutError):
                        event = await asyncio.wait_for(listener.get(), 0.2)
                        stamp = event["timestamp"]
                        events.append((event["event"], stamp["seconds"] + stamp["microseconds"] / 1e6))
                    if until and until in console.read_text(errors="replace"):
                        said = await monitor.execute("human-monitor-command", {"command-line": f"xp /1bx {LOCK_REGISTER:#x}"})
                        lock = int(str(said).split(":")[1], 16)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
            with contextlib.suppress(QMPError, EOFError, OSError):
                await monitor.disconnect()
        return Watched(tuple(events), lock, console.read_text(errors="replace").replace("\r", ""))

    def copy(self, index: int) -> bytes:
        """The raw bytes of one copy of the environment."""
        with self.disk.open("rb") as file:
            file.seek(COPY_OFFSETS[index])
            return file.read(ENV_BYTES)

    def write_copy(self, index: int, data: bytes, at: int = 0) -> None:
        """Write raw bytes into one copy."""
        with self.disk.open("r+b") as file:
            file.seek(COPY_OFFSETS[index] + at)
            file.write(data)

    def make_copy(self, index: int, env: Mapping[str, str], flag: int, pad: int = 0) -> None:
        """One copy by mkenvimage. flag: 0 to 255 (it lies outside the checksum)."""
        text = "".join(f"{name}={value}\n" for name, value in env.items()).encode(errors="surrogateescape")
        image = self.disk.with_name("copy.bin")
        run("mkenvimage", "-r", "-s", f"{ENV_BYTES:#x}", "-p", f"{pad:#x}", "-o", image, "-", data=text)
        data = bytearray(image.read_bytes())
        data[4] = flag
        self.write_copy(index, bytes(data))

    def set(self, env: Mapping[str, str]) -> None:
        """Both copies valid: the older one empty but for a word, the newer one holding `env`."""
        self.make_copy(0, {"older": "copy"}, 0)
        self.make_copy(1, env, 1, pad=0xFF)

    def setenv(self, name: str, value: str) -> None:
        """Change one variable with the real fw_setenv."""
        run("fw_setenv", "-c", self.config, name, value)

    def env(self) -> dict[str, str]:
        """What the real fw_printenv says."""
        lines = run("fw_printenv", "-c", self.config).splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    def entries(self) -> list[tuple[str, str]]:
        """Raw entries of the copy with the larger flag, in their order, as NAME, VALUE."""
        newest = max(self.copy(0), self.copy(1), key=lambda copy: copy[4])
        listed = newest[5:].split(b"\0\0", 1)[0].split(b"\0")
        return [entry.decode(errors="surrogateescape").partition("=")[::2] for entry in listed]
