"""The story that power cuts interrupt: recorded once, cut at chosen writes, and brought to its end afterwards by a real device."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from images.build import ENVIRONMENT
from images.disk import copy_image, environment_copies
from qemu.console import ConsoleError
from qemu.device import DEVICES, TREE, Device, Up
from qemu.nbd import served
from qemu.powerloss import Cut, Event, Flush, Medium, VolatileDisk, Write
from qemu.writelog import read_log
from tests.qemu.guest import FLASH_TIMEOUT_S, confirm, settled_environment
from tests.qemu.judge import NEW, Finding, Judge, Stage

# In front of our variables, so that those lie in the second sector of a copy and its checksum in the first: a copy can tear.
FOREIGN = {"preboot": "run distro; " + "x" * 520}
_ENV_START, _DATA_START = 18432 * 512, 806912 * 512


@dataclass(frozen=True)
class Ground:
    """A folder with the disk image that every run starts from, and what else a device takes from there."""

    folder: Path

    @property
    def image(self) -> Path:
        """The disk."""
        return self.folder / "disk.img"

    def judge(self, scratch: Path) -> Judge:
        """A judge of disks that began as this image."""
        bundles = {path.stem: path for path in (self.folder / "bundles").iterdir() if path.stem in ("v1", "v2")}
        foreign = {**FOREIGN, "board_serial": ENVIRONMENT["board_serial"]}
        return Judge(self.image, bundles, self.folder / "keyring.abk", foreign, scratch)


@contextlib.contextmanager
def ground(images: Path) -> Iterator[Ground]:
    """The device's images, with variables of somebody else in its environment."""
    DEVICES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ground-", dir=DEVICES) as name:
        folder = Path(name)
        for link in ("flash.img", "bundles.img"):
            (folder / link).hardlink_to((images / link).resolve())
        (folder / "bundles").symlink_to((images / "bundles").resolve())
        (folder / "keyring.abk").symlink_to(_keyring(images))
        copy_image((images / "disk.img").resolve(), folder / "disk.img")
        scratch = folder / "env"
        scratch.mkdir()
        with (folder / "disk.img").open("r+b") as file:
            file.seek(_ENV_START)
            file.write(environment_copies({**FOREIGN, **ENVIRONMENT}, scratch))
        yield Ground(folder)


def _keyring(images: Path) -> Path:
    rings = sorted(images.glob("keyring-*/keyring.abk"), key=lambda path: path.stat().st_mtime)
    return rings[-1].resolve()


@dataclass(frozen=True)
class Recording:
    """All writes and flushes of one run, and after how many of them the guest had said what."""

    events: Sequence[Event]
    stages: Sequence[tuple[int, Stage]]

    def stage(self, done: int) -> Stage:
        """What the guest had acknowledged before a cut after this many events."""
        return max(stage for at, stage in self.stages if at <= done)

    def reached(self, stage: Stage) -> int:
        """After how many events the guest had said it."""
        return next(at for at, said in self.stages if said is stage)

    @property
    def writes(self) -> list[int]:
        """Indices of the writes."""
        return [at for at, event in enumerate(self.events) if isinstance(event, Write)]

    @property
    def flushes(self) -> list[int]:
        """Indices of the flushes."""
        return [at for at, event in enumerate(self.events) if isinstance(event, Flush)]


@contextlib.contextmanager
def device_over(disk: VolatileDisk, place: Ground) -> Iterator[Device]:
    """A device, off, whose disk is this one."""
    with tempfile.TemporaryDirectory(prefix="abu-nbd-") as folder:
        path = Path(folder) / "disk"
        node = f"driver=nbd,node-name=disk,server.type=unix,server.path={path},export=d"
        with served(path, disk), Device(images=place.folder, nodes=[node]) as device:
            yield device


def tell(device: Device, mark: Callable[[Stage], None]) -> None:
    """The whole story: 1.0.0 runs on A, 2.0.0 is flashed to B, tried and confirmed."""
    mark(Stage.FRESH)
    assert device.boot().slot == "A"
    settled_environment(device)
    mark(Stage.SETTLED)
    disk = "/sys/class/block/$(basename $(readlink /dev/disk/by-partlabel/data))"
    cache = device.check(f"cat $(dirname $(readlink -f {disk}))/queue/write_cache")
    assert cache == "write back", f"the guest sends no flush: {cache}"
    device.check(f"abupdate flash /bundles/{NEW}.abu", FLASH_TIMEOUT_S)
    mark(Stage.FLASHED)
    assert device.reboot().slot == "B"
    confirm_on_trial(device)
    mark(Stage.CONFIRMED)
    settled_environment(device)
    device.check("sync")


def record_with_qemu(place: Ground) -> Recording:
    """Tell the story over QEMU's `blklogwrites`, and read its log."""
    stages: list[tuple[int, Stage]] = []
    with tempfile.TemporaryDirectory(prefix="logged-", dir=DEVICES) as name:
        log = Path(name).resolve() / "log.img"
        with log.open("wb") as file:
            file.truncate(2 << 30)  # a hole; the log must not grow beyond the file
        nodes = [
            f"driver=qcow2,node-name=beneath,file.driver=file,file.filename={log.parent}/disk.qcow2",
            f"driver=file,node-name=log,filename={log}",
            "driver=blklogwrites,node-name=disk,file=beneath,log=log,log-sector-size=512",
        ]
        with Device(log.parent, images=place.folder, nodes=nodes) as device:
            tell(device, lambda stage: stages.append((sum(1 for _ in read_log(log)), stage)))
        return Recording(tuple(read_log(log)), tuple(stages))


@dataclass(frozen=True)
class Agent:
    """A bug that the device's agent is given for one run. changes: file, text that occurs in it once, what stands there instead."""

    name: str
    changes: tuple[tuple[str, str, str], ...]

    def install(self, device: Device) -> None:
        """Put a changed copy of the package in its place, until the next boot."""
        site, copy = "/usr/local/lib/python3.11/dist-packages/abupdate", "/run/agent"
        device.check(f"cp -a {site} {copy} && find {copy} -name __pycache__ -prune -exec rm -r {{}} +")
        for file, old, new in self.changes:
            lines = [f"p, old, new = {f'{copy}/{file}'!r}, {old!r}, {new!r}", "t = open(p).read()", "assert t.count(old) == 1, old"]
            lines.append("open(p, 'w').write(t.replace(old, new))")
            device.check("python3 - <<'END'\n" + "\n".join([*lines, "END"]))
        device.check(f"mount -o bind {copy} {site}")


def record_flash(place: Ground, agent: Agent) -> Recording:
    """A flash by an agent with a bug, and the sync that ends it."""
    disk = VolatileDisk(place.image)
    stages: list[tuple[int, Stage]] = [(0, Stage.FRESH)]
    with contextlib.closing(disk), device_over(disk, place) as device:
        assert device.boot().slot == "A"
        settled_environment(device)
        agent.install(device)
        stages.append((len(disk.events), Stage.SETTLED))
        device.check(f"abupdate flash /bundles/{NEW}.abu", FLASH_TIMEOUT_S)
        stages.append((len(disk.events), Stage.FLASHED))
        device.check("sync")
        return Recording(tuple(disk.events), tuple(stages))


def cut_live(place: Ground, judge: Judge, number: int, seed: int) -> tuple[Finding, str]:
    """Cut the power of a running guest at its number-th write, look at the disk, and bring the story to its end.

    Returns what was found and what `finish` did.
    """
    disk = VolatileDisk(place.image, record=False)
    stages = [Stage.FRESH]
    with contextlib.closing(disk), device_over(disk, place) as device:
        disk.cut_at_write(number)

        def kill() -> None:
            disk.cut.wait()
            device.kill()

        watcher = threading.Thread(target=kill, name="cut", daemon=True)
        watcher.start()
        try:
            tell(device, stages.append)
            raise AssertionError(f"the story has no {number} writes")
        except ConsoleError:
            if not disk.cut.is_set():
                raise
        finally:
            disk.cut.set()
            watcher.join()
        disk.power_on(seed)
        finding = judge.judge(disk.medium, stages[-1])
        return finding, "" if finding.faults else finish(device, device.boot(), expected=finding)


def boot_after(place: Ground, medium: Medium, finding: Finding) -> str:
    """Boot the real thing from what a cut has left, and bring the story to its end; returns what `finish` did."""
    disk = VolatileDisk(place.image, record=False)
    with contextlib.closing(disk), device_over(disk, place) as device:
        disk.load(medium)
        return finish(device, device.boot(), expected=finding)


def confirm_on_trial(device: Device) -> None:
    """Confirm slot B. On a host with much else to do the watchdog can be faster than the service: then once more, in the next try."""
    fired = device.watchdog_resets
    try:
        confirm(device)
    except ConsoleError:
        if device.watchdog_resets == fired:
            raise
        assert device.wait_up().slot == "B"
        confirm(device)


def record(place: Ground) -> Recording:
    """Tell the story over a disk with a volatile cache, and log it."""
    disk = VolatileDisk(place.image)
    stages: list[tuple[int, Stage]] = []
    with contextlib.closing(disk), device_over(disk, place) as device:
        tell(device, lambda stage: stages.append((len(disk.events), stage)))
        return Recording(tuple(disk.events), tuple(stages))


def finish(device: Device, up: Up, *, expected: Finding) -> str:
    """From the first boot after a cut to the end of the story; returns what it took ("flash", "confirm", "nothing")."""
    assert (up.slot, up.version) == (expected.boots, "2.0.0" if expected.boots == "B" else "1.0.0"), "the real U-Boot chose otherwise"
    took = "nothing"
    on_trial = (device.status()["trial"] or {}).get("slot") == up.slot
    assert on_trial == expected.trial
    if up.slot == "A":
        settled_environment(device)
        device.check(f"abupdate flash /bundles/{NEW}.abu", FLASH_TIMEOUT_S)
        up = device.reboot()
        took, on_trial = "flash", True
    assert (up.slot, up.version) == ("B", "2.0.0")
    if on_trial:
        confirm_on_trial(device)
        took = took if took == "flash" else "confirm"
    settled_environment(device)
    status = device.status()
    assert (status["slots"]["B"]["state"], status["slots"]["A"]["state"]) == ("confirmed", "confirmed"), status
    assert (status["attempt"]["phase"], status["primary"], status["trial"]) == ("confirmed", "B", None), status
    device.check("abupdate verify B", FLASH_TIMEOUT_S)
    assert device.environment()["preboot"] == FOREIGN["preboot"]
    return took


def record_boot_without_data(place: Ground) -> Recording:
    """A boot whose data partition cannot be mounted, so that nothing is written or flushed but by U-Boot and for the environment."""
    with tempfile.TemporaryDirectory() as scratch:
        # One boot was counted already, so that what the agent writes back is not what the copy held before.
        counted = environment_copies({**FOREIGN, **ENVIRONMENT, "BOOT_A_LEFT": "2"}, Path(scratch))
    before = (Write(_DATA_START, bytes(1 << 20)), Write(_ENV_START, counted))
    disk = VolatileDisk(place.image)
    for write in before:
        disk.put(write.offset, write.data)
    with contextlib.closing(disk), device_over(disk, place) as device:
        assert device.boot().slot == "A"
        settled_environment(device)
        return Recording((*before, Flush(), *disk.events), ((0, Stage.FRESH),))


def never_forced(recording: Recording) -> Recording:
    """The same run on a disk that does not know what U-Boot wants flushed: U-Boot has no cache to switch off and sends no flush;
    QEMU forces its writes to the medium, hardware does not."""
    events: list[Event] = []
    forced = False
    for event in recording.events:
        if not (forced and isinstance(event, Flush)):
            events.append(Write(event.offset, event.data) if isinstance(event, Write) else event)
        forced = isinstance(event, Write) and event.fua
    return Recording(tuple(events), ((0, Stage.FRESH),))


def seed_of_this_commit() -> int:
    """A number that changes with every commit; ABUPDATE_SEED sets it."""
    given = os.environ.get("ABUPDATE_SEED", "")
    if given:
        return int(given)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=TREE, capture_output=True, text=True, check=False)
    return int(done.stdout[:8], 16) if re.match(r"[0-9a-f]{40}", done.stdout) else 0


def cuts_of(recording: Recording, count: int, seed: int) -> list[Cut]:
    """Seeded cuts, ascending: one in front of every event and one at the end; of the rest one half anywhere, the other half where the
    most copies of the environment are open: in flight, or in the cache."""
    chance = random.Random(seed)
    every = range(len(recording.events) + 1)
    rest = max(0, count - len(every))
    copies = _open_copies(recording)
    sensitive = [at for at, open_copies in enumerate(copies) if open_copies == max(copies)]
    places = [*every, *chance.choices(every, k=rest - rest // 2), *chance.choices(sensitive, k=rest // 2)]
    return [Cut(done, chance.getrandbits(32)) for done in sorted(places)]


def in_environment(event: Event) -> bool:
    """Whether it writes to the environment."""
    return isinstance(event, Write) and _ENV_START <= event.offset < _ENV_START + (1 << 20)


def _open_copies(recording: Recording) -> list[int]:
    """How many copies of the environment a cut in front of each event finds in flight or in the cache."""
    found: list[int] = []
    waiting: set[int] = set()
    for event in recording.events:
        if isinstance(event, Flush):
            found.append(len(waiting))
            waiting.clear()
            continue
        if in_environment(event):
            waiting.add(event.offset)
        found.append(len(waiting))
    return found
