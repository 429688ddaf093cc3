"""An emulated device, whatever its processor and firmware: a disk of its own over the test images, a console, QMP, a watchdog."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu.console import Console, ConsoleError
from qemu.monitor import Monitor

TREE = Path(__file__).resolve().parent.parent
IMAGES = TREE / ".cache/images"
DEVICES = TREE / ".cache/devices"
BOOT_TIMEOUT_S = 90.0
# File of a frozen machine, in its folder.
FROZEN = "state"
_T = TypeVar("_T")
SERVICE_LINE = re.compile(r"abupdate\[(?:service|fleet)\]: [^\n]*\n?")


@dataclass(frozen=True)
class Up:
    """What userspace said when it was up."""

    slot: str
    version: str


@dataclass(frozen=True)
class Ran:
    """How a command in the guest ended, and what it wrote to stdout and stderr, without the last newlines."""

    exit_code: int
    output: str


class Machine(ABC):
    """One device with a disk of its own over the common image; use it as a context manager.

    folder: where its disk and console log go (a temporary one by default). cache: QEMU's cache mode of the disk.
    disk_options: more options of the disk's -drive. extra: more arguments of QEMU.
    nodes: -blockdev arguments to have another disk instead; the last one is of the node `disk`.
    A folder that `freeze` left, or a copy of it, is a device in the middle of its work: `thaw` goes on with it.
    `stop`, `kill` and `power_cycle` cut the emulated power; what the guest wrote stays on the host, so none of them loses writes.
    """

    # What a boot begins with on the console, whatever reset the machine: the firmware's own word.
    boot_word: str

    def __init__(
        self,
        folder: Path | None = None,
        *,
        images: Path = IMAGES,
        memory_mib: int = 512,
        cache: str = "writeback",
        disk_options: str = "",
        nodes: Sequence[str] = (),
        extra: Sequence[str] = (),
    ) -> None:
        self._own_folder = folder is None
        DEVICES.mkdir(parents=True, exist_ok=True)
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="device-", dir=DEVICES))).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._memory_mib, self._cache = memory_mib, cache
        self._disk_options, self._nodes, self._extra = disk_options, tuple(nodes), tuple(extra)
        self.disk = self.folder / "disk.qcow2"
        self.console = Console(self.folder / "console.log")
        self.monitor: Monitor | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets = Path(tempfile.mkdtemp(prefix="abu-"))
        self._calls = 0
        self._watchdogs_before = 0
        if not self.disk.exists():
            self._take(images)

    def _take(self, images: Path) -> None:
        """Make the device's disk over the common image, and hold on to that: a later build may drop it meanwhile."""
        for name, link in self.image_names().items():
            source = (images / name).resolve()
            if not source.exists():
                raise ConsoleError(f"{images / name} is missing: run qemu/setup")
            try:
                (self.folder / link).hardlink_to(source)
            except OSError:
                (self.folder / link).symlink_to(source)  # another file system
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "disk.img", str(self.disk)]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)

    @abstractmethod
    def image_names(self) -> Mapping[str, str]:
        """The images that it needs: name among the built ones -> name in its folder; one becomes disk.img."""

    # ---- power

    @abstractmethod
    def arguments(self) -> list[str]:
        """The command line of QEMU."""

    def _common_arguments(self, bus: str) -> list[str]:
        """Of every device, after those of its processor and firmware; bus: virtio device of the disk."""
        drive = f"if=none,id=disk,file={self.disk},format=qcow2,cache={self._cache}" + (
            f",{self._disk_options}" if self._disk_options else ""
        )
        command = ["-accel", "tcg", "-m", str(self._memory_mib), "-S", "-display", "none", "-nodefaults", "-nic", "none"]
        command += ["-drive", f"if=none,id=bundles,format=raw,readonly=on,file={self.folder}/bundles.img,file.locking=off"]
        command += ["-device", "virtio-blk-pci,drive=bundles,romfile="]
        command += [word for node in self._nodes for word in ("-blockdev", node)] or ["-drive", drive]
        command += ["-device", f"{bus},drive=disk"]
        command += ["-device", "i6300esb,addr=1e.0", "-action", "watchdog=reset"]
        command += ["-chardev", f"socket,id=console,path={self._sockets}/console,server=on,wait=off", "-serial", "chardev:console"]
        command += ["-chardev", f"socket,id=qmp,path={self._sockets}/qmp,server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
        return command

    def start(self) -> None:
        """Switch the device on; returns when QEMU runs, not when the guest is up."""
        self._start(None)

    def freeze(self) -> None:
        """Write what the running machine is doing into its folder and switch it off: its disk and `state` belong together."""
        assert self.monitor is not None
        self.monitor.execute("stop")
        self.monitor.execute("migrate", uri=f"exec:cat >{self.folder / FROZEN}")
        self._poll("query-migrate", "completed", ("failed", "cancelled"))
        self.stop()

    def thaw(self) -> None:
        """Go on where `freeze` stopped; the frozen state is used up."""
        self._start(self.folder / FROZEN)
        (self.folder / FROZEN).unlink()

    def _poll(self, query: str, wanted: str, unwanted: tuple[str, ...]) -> None:
        deadline = time.monotonic() + 60
        while True:
            assert self.monitor is not None
            status = self.monitor.execute(query)["status"]
            if status == wanted:
                return
            if status in unwanted or time.monotonic() > deadline:
                raise ConsoleError(f"{query}: {status}, not {wanted}: {(self.folder / 'qemu.log').read_text()[-1000:]}")
            time.sleep(0.05)

    def _start(self, incoming: Path | None) -> None:
        if self._process is not None:
            raise ConsoleError("the device is already on")
        for name in ("console", "qmp"):
            (self._sockets / name).unlink(missing_ok=True)
        with (self.folder / "qemu.log").open("ab") as log:
            command = [*self.arguments(), *(["-incoming", f"exec:cat {incoming}"] if incoming else [])]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        # One after the other: QEMU makes the sockets so, and a console that is connected twice would take the first one's words.
        self._once_there(lambda: self.console.connect(self._sockets / "console"))
        self.monitor = self._once_there(lambda: Monitor(self._sockets / "qmp"))
        self.console.skip()
        if incoming:
            self._poll("query-status", "paused", ("internal-error", "guest-panicked"))
        self.monitor.execute("cont")

    def _once_there(self, connect: Callable[[], _T]) -> _T:
        """Connect to a socket of a QEMU that is just starting."""
        assert self._process is not None
        deadline = time.monotonic() + 10
        while True:
            try:
                return connect()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise ConsoleError(f"QEMU did not start: {(self.folder / 'qemu.log').read_text()[-1000:]}") from None
                time.sleep(0.02)

    @property
    def running(self) -> bool:
        """Whether QEMU is alive."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Cut the power in an orderly way: QEMU itself ends and writes out what it holds."""
        if self.monitor is not None and self.running:
            with contextlib.suppress(Exception):
                self.monitor.execute("quit")
        self._finish(10)

    def kill(self) -> None:
        """SIGKILL for QEMU, by its PID. Not a power cut for the disk: the host keeps all that was written."""
        if self._process is not None:
            self._process.kill()
        self._finish(10)

    def power_cycle(self) -> None:
        """Off without a warning to the guest, and on again."""
        self.kill()
        self.start()

    def _finish(self, timeout_s: float) -> None:
        if self.monitor is not None:
            self._watchdogs_before += self.monitor.count("WATCHDOG")
            self.monitor.close()
            self.monitor = None
        if self._process is not None:
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(timeout_s)
            self._process = None
        self.console.disconnect()

    def wait_off(self, timeout_s: float = 30) -> None:
        """Wait until the guest has switched itself off."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ConsoleError(f"still on after {timeout_s:.0f} s\n{self.console.tail()}") from None
        self._finish(5)

    def close(self) -> None:
        """Off, and its files removed where they lie in a temporary folder."""
        self.kill()
        self.console.close()
        shutil.rmtree(self._sockets, ignore_errors=True)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def watchdog_resets(self) -> int:
        """How often the hardware watchdog has fired since the device was made."""
        return self._watchdogs_before + (self.monitor.count("WATCHDOG") if self.monitor else 0)

    # ---- console

    def wait(self, pattern: str, timeout_s: float = BOOT_TIMEOUT_S, *, unless: str = "") -> re.Match[str]:
        """Wait for a word on the console, after the last one that was waited for."""
        return self.console.wait(pattern, timeout_s, unless=unless)

    def wait_up(self, timeout_s: float = BOOT_TIMEOUT_S) -> Up:
        """Wait until userspace is up and the shell listens."""
        found = self.wait(r"^abu-guest: up slot=(\S+) version=(\S+)\n", timeout_s)
        self.wait(r"^abu-guest: shell\n", 30)
        return Up(found[1], found[2])

    def boot(self, timeout_s: float = BOOT_TIMEOUT_S) -> Up:
        """Switch on and wait until userspace is up."""
        self.start()
        return self.wait_up(timeout_s)

    def run(self, command: str, timeout_s: float = 60) -> Ran:
        """Run a shell command in the guest (one or many lines, up to 3000 characters); a reset meanwhile is a failure.

        Words of the supervised service that come in between are taken out of the output.
        """
        coded = base64.b64encode(command.encode()).decode()
        if len(coded) > 3800:
            raise ValueError("the command is too long for the guest's line")
        self._calls += 1
        number = self._calls
        shell = f'sh -c "$(echo {coded} | base64 -d)" </dev/null 2>&1'
        self.console.send(f"echo abu-begin {number}; {shell}; r=$?; echo; echo abu-end {number} $r")
        return self._result(number, command, timeout_s)

    def _result(self, number: int, command: str, timeout_s: float) -> Ran:
        try:
            begin = self.console.wait(rf"^abu-begin {number}\n", timeout_s, unless=self.boot_word)
            end = self.console.wait(rf"\nabu-end {number} (\d+)\n", timeout_s, unless=self.boot_word)
        except ConsoleError as error:
            raise ConsoleError(f"in the guest: {command}\n{error}") from None
        output = self.console.text[begin.end() : end.start()]
        return Ran(int(end[1]), SERVICE_LINE.sub("", output).rstrip("\n"))

    def check(self, command: str, timeout_s: float = 60) -> str:
        """Run a command that must succeed; return its output."""
        ran = self.run(command, timeout_s)
        if ran.exit_code != 0:
            raise ConsoleError(f"in the guest: {command}\nended with {ran.exit_code}: {ran.output}\n{self.console.tail()}")
        return ran.output

    def type(self, command: str) -> None:
        """Start a command whose end is not waited for (reboot, poweroff)."""
        self.console.send(command)

    def poweroff(self, timeout_s: float = 30) -> None:
        """Let the guest shut down."""
        self.type("poweroff")
        self.wait_off(timeout_s)

    def reboot(self, timeout_s: float = BOOT_TIMEOUT_S) -> Up:
        """Let the guest reboot and wait until it is up again."""
        self.type("reboot")
        self.wait(self.boot_word, 60)
        return self.wait_up(timeout_s)

    # ---- what tests ask for most

    def status(self) -> dict[str, Any]:
        """`abupdate status --json` in the guest."""
        answer: dict[str, Any] = json.loads(self.check("abupdate --json status 2>/run/status.err"))
        return answer

    def booted(self) -> str:
        """The slot that runs, as the boot hook told the kernel."""
        return self.check("sed 's/.*abupdate.slot=//; s/ .*//' /proc/cmdline")

    def bootstatus(self) -> int:
        """The watchdog's boot status as the kernel read it (32: it reset the machine)."""
        return int(self.check("cat /sys/class/watchdog/watchdog0/bootstatus"))
