"""A site of emulated devices on one LAN or one serial bus, enrolled as a user enrols real ones, and what was seen of it from outside.

The harness believes no device: who was up is told by the bootloaders' words on the consoles and by heartbeats on the wire.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from qemu.cables import Cables
from qemu.console import ConsoleError
from qemu.device import BOOT_WORD, DEVICES, IMAGES, Device, Ran
from qemu.lan import Hub
from qemu.serialbus import SerialBus

HEARTBEAT_S = 3
LAN = 'udp_interface = "eth0"'
LINE = 'serial_device = "/dev/ttyS0"\nserial_turnaround_ms = 5'
SITE_CONFIG = """\
[fleet]
{medium}
hooks = "/data/site"
[health]
dir = "/data/site/health.d"
interval_s = 2
degraded_row_s = 30
degraded_total_s = 60
[trial]
window_s = 45
tries = 1
boot_timeout_s = 60
[watchdog]
timeout_s = 30
"""
JOIN_TIMEOUT_S = 120.0
ILL = "#!/bin/sh\ngrep -q 2.0.0 /etc/abu-version && { echo ill with 2.0.0; exit 2; }; exit 0\n"
ANSWER_S = 25.0
ANSWERS_AGAIN_S = 120.0
GONE = rf"^abu-guest: down|{BOOT_WORD}"


def abupdate(*words: str | Path, cwd: Path) -> str:
    """Run the command on the workstation; return what it says. Raises CalledProcessError."""
    program = Path(sys.executable).parent / "abupdate"
    done = subprocess.run([program, *words], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise AssertionError(f"abupdate {' '.join(map(str, words))} ended with {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


class Site:
    """Devices n0, n1, ... on one LAN; `start` boots them all and enrols them where they are not. Use it as a context manager.

    numbers: lines of site.toml (faults, min_up...). config: the devices' fragment of the configuration. memory_mib: of each.
    others: ports of the LAN beyond theirs, for members that are no emulated devices (cable.py). noise: instead of a LAN they have a
    serial bus of 115200 baud on which this share of the bytes comes out wrong.
    """

    def __init__(
        self,
        count: int,
        *,
        numbers: str = "",
        config: str = SITE_CONFIG,
        memory_mib: int = 320,
        images: Path = IMAGES,
        others: int = 0,
        noise: float | None = None,
    ) -> None:
        self._count = count
        self._ports = count + others
        self._numbers = numbers or f"min_up = {count - 1}\n"
        self._config = config.format(medium=LAN if noise is None else LINE)
        self._noise = noise
        self._memory_mib = memory_mib
        self._images = images
        self._stack = ExitStack()
        self.folder = Path()
        self.hub: Cables = Hub(Path(), 0)
        self.devices: list[Device] = []

    def __enter__(self) -> Site:
        DEVICES.mkdir(parents=True, exist_ok=True)
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="site-", dir=DEVICES)))
        sockets = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="abu-lan-")))
        if self._noise is None:
            self.hub = self._stack.enter_context(Hub(sockets, self._ports))
        else:
            self.hub = self._stack.enter_context(SerialBus(sockets, self._ports, noise=self._noise))
        for number in range(self._count):
            folder, cable = self.folder / f"n{number}", self._cable(number)
            self.devices.append(self._stack.enter_context(Device(folder, images=self._images, memory_mib=self._memory_mib, extra=cable)))
        return self

    def _cable(self, number: int) -> list[str]:
        """QEMU's words for a device's connection to the hub."""
        path = self.hub.path(number)
        if self._noise is not None:
            return ["-chardev", f"socket,id=bus,path={path},reconnect=1", "-device", "pci-serial,chardev=bus"]
        lan = ["-netdev", f"stream,id=lan,server=off,addr.type=unix,addr.path={path}"]
        return [*lan, "-device", f"virtio-net-pci,netdev=lan,mac=52:54:00:ab:00:{number:02x},romfile="]

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def each(self, action: Callable[[int], Any], *numbers: int) -> list[Any]:
        """Do something on all devices (or on these) side by side."""
        chosen = numbers or tuple(range(self._count))
        with ThreadPoolExecutor(len(chosen)) as pool:
            return list(pool.map(action, chosen))

    # ---- boot and enrol

    def start(self, keys: Sequence[str] = ()) -> None:
        """Boot all and enrol them. keys: of the members that are no devices, who find their membership in `site.abm`."""

        def boot(number: int) -> str:
            device = self.devices[number]
            device.boot(180)
            coded = base64.b64encode(self._config.encode()).decode()
            folders = "/data/site/config.d /data/site/health.d"
            device.check(f"mkdir -p {folders}; chmod 700 {folders}; echo {coded} | base64 -d >/data/site/config.d/fleet.toml")
            address = f"echo 192.0.2.{number + 1}/24 >/data/site/address; " if self._noise is None else ""
            device.check(f"{address}. /etc/init.d/site")
            return str(json.loads(device.check("abupdate --json fleet join", JOIN_TIMEOUT_S))["key"])

        self._enrol([*self.each(boot), *keys])

    def _enrol(self, keys: list[str]) -> None:
        """site.toml from the keys that the devices show, site.abm from it, and that to every device."""
        self.make_admins()
        lines = [f'site = "qemu"\nroots = ["{self.keys}/abu-test-root.pub"]\nadmins = ["admin0.pub", "admin1.pub"]']
        lines += [f"now_threshold = 2\nheartbeat_s = {HEARTBEAT_S}", self._numbers]
        lines += [f'[nodes.n{number}]\nkey = "{key}"\nindex = {number}' for number, key in enumerate(keys)]
        (self.folder / "site.toml").write_text("\n".join(lines) + "\n")
        abupdate("fleet", "init", "site.toml", "-o", "site.abm", "--key", self.keys / "abu-test-root.pem", cwd=self.folder)
        self.each(self.join)

    @property
    def keys(self) -> Path:
        """The test keys of the images, readable by nobody else."""
        return next(self._images.resolve().glob("keyring-*/keys"))

    def bundle(self, name: str) -> Path:
        """A bundle of the images, on the workstation."""
        return self._images / f"bundles/{name}.abu"

    def make_admins(self) -> None:
        """Two admins' keys."""
        for number in range(2):
            abupdate("keys", "generate", f"admin{number}", "--test", cwd=self.folder)

    def join(self, number: int) -> None:
        """Give the membership to a device and start its daemon."""
        device = self.devices[number]
        self.put(number, self.folder / "site.abm", "/data/site/site.abm")
        device.check("abupdate fleet join /data/site/site.abm", JOIN_TIMEOUT_S)
        device.check("start-stop-daemon -S -b -x /sbin/supervise-fleet")

    def put(self, number: int, path: Path, place: str) -> None:
        """Write a small file to a device, over its console."""
        coded = base64.b64encode(path.read_bytes()).decode()
        self.check(number, f"rm -f {place}.b64")
        for start in range(0, len(coded), 2000):
            self.check(number, f"printf %s '{coded[start : start + 2000]}' >>{place}.b64")
        self.check(number, f"base64 -d {place}.b64 >{place}; rm {place}.b64")

    def make_ill(self, number: int) -> None:
        """From now on this device's health program says critical where version 2.0.0 runs."""
        (self.folder / "ill").write_text(ILL)
        self.put(number, self.folder / "ill", "/data/site/health.d/50-ill")
        self.check(number, "chmod 700 /data/site/health.d/50-ill")

    # ---- the fleet

    def status(self, number: int) -> dict[str, Any]:
        """What a device says of the site."""
        ran = self.ask(number, "abupdate --json fleet status", ANSWER_S)
        document: dict[str, Any] = json.loads(ran.output) if ran.exit_code == 0 else {}
        return document

    def fleet(self, number: int, words: str, timeout_s: float = 90) -> Ran:
        """`abupdate fleet ...` on a device."""
        return self.ask(number, f"abupdate fleet {words}", timeout_s)

    def ask(self, number: int, command: str, timeout_s: float = ANSWER_S) -> Ran:
        """Run a command on a device. It boots again when it likes to: only a boot after the question makes the answer a failure."""
        self.devices[number].console.skip()
        return self.devices[number].run(command, timeout_s)

    def check(self, number: int, command: str, timeout_s: float = 60) -> str:
        """Run a command that must succeed on a device; return its output."""
        self.devices[number].console.skip()
        return self.devices[number].check(command, timeout_s)

    def order(self, number: int, *words: str, name: str = "order") -> str:
        """Make and sign an order on the workstation, and hand it in on a device; returns the order's id."""
        # The device may be up before its daemon is.
        status = self.until(f"n{number} answers", lambda: self.status(number), ANSWERS_AGAIN_S)
        seq = int(status["last_admin_seq"]) + 1
        file = self.folder / f"{name}-{seq}.abo"
        keys = ["--key", "admin0.pem", "--key", "admin1.pem"] if "--now" in words else ["--key", "admin0.pem"]
        said = abupdate("--json", "fleet", *words, "-o", file, "--membership", "site.abm", "--seq", str(seq), *keys, cwd=self.folder)
        self.put(number, file, "/data/site/order.abo")
        self.check(number, "abupdate fleet propose /data/site/order.abo", 90)
        return str(json.loads(said)["order"])

    def until(self, what: str, seen: Callable[[], Any], timeout_s: float) -> Any:
        """Ask again and again until the answer is true; return it. Fails with all consoles' tails when time is up."""
        deadline = time.monotonic() + timeout_s
        while not (answer := seen()):
            if time.monotonic() > deadline:
                tails = "".join(f"\n---- n{number}\n{device.console.tail(25)}" for number, device in enumerate(self.devices))
                raise AssertionError(f"{what}: not within {timeout_s:.0f} s{tails}")
            # Each question costs a device a second of its processor, which it also needs for its trial.
            time.sleep(3.0)
        return answer

    def listens(self, number: int) -> bool:
        """The device's shell is there. What is typed while it goes down, or before it is up, ends in its bootloader's hands."""
        text = self.devices[number].console.text
        gone = max((found.start() for found in re.finditer(GONE, text, re.MULTILINE)), default=-1)
        return self.devices[number].running and text.rfind("abu-guest: shell") > gone

    def any_status(self, *but: int) -> dict[str, Any]:
        """What the first device that answers says of the site; empty where none does. but: not asked, since they may be down."""
        for number in range(self._count):
            if number in but or not self.listens(number):
                continue
            try:
                if status := self.status(number):
                    return status
            except ConsoleError:
                # It went down in the middle of the question.
                continue
        return {}

    # ---- evidence

    def boots(self, number: int) -> list[str]:
        """The slots that the device's bootloader started, in order."""
        lines = (line for line in self.devices[number].console.text.splitlines() if line.startswith("abupdate: slot "))
        return [" ".join(line.split()[2:4]) for line in lines if " left " in line]

    def heartbeats(self) -> Mapping[int, list[float]]:
        """When each node was heard on its cable."""
        found: dict[int, list[float]] = {number: [] for number in range(self._ports)}
        for one in self.hub.heard:
            if one.source == one.port:
                found[one.source].append(one.at_s)
        return found

    def down(self, since_s: float, gap_s: float = 4 * HEARTBEAT_S) -> list[tuple[int, float, float]]:
        """(node, from, to): when a node that had spoken was silent for longer than `gap_s`."""
        found = []
        now_s = time.monotonic()
        for number, times in self.heartbeats().items():
            for before, after in zip(times, [*times[1:], now_s], strict=True):
                if after - before > gap_s and after > since_s:
                    found.append((number, before, after))
        return found

    def most_down(self, since_s: float) -> int:
        """How many nodes were silent at the same time at most."""
        spans = self.down(since_s)
        return max((sum(begin <= at < end for _, begin, end in spans) for _, at, _ in spans), default=0)
