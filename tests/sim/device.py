"""A simulated device: the production operations over modelled media, started by the model of the boot hook.

Real here: machine.py, operations/, bootloaders/uboot.py with its codec, devices/statedir.py and durable.py. Modelled: the media under
them, the slots' images (a few blocks with names for content), the kernel's boot id, the hook.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from abupdate.bootloaders.envio import Span, compare
from abupdate.bootloaders.uboot import UBootStore
from abupdate.devices.statedir import StateDir
from abupdate.errors import AbupdateError, Failed, StoreUnreadable
from abupdate.formats.fwenvconfig import EnvLocation
from abupdate.formats.ubootenv import EnvCopy, Environment, Scheme, choose, decode, encode, next_flag
from abupdate.model import Decision, Facts, Manifest, SlotRecord, SlotState, TrialPolicy
from abupdate.operations import flash as flashing
from abupdate.operations import verdict
from abupdate.operations.board import Board, observe
from abupdate.operations.service import Hardware, Numbers, Service, Stop
from abupdate.ports import OpenBundle, Progress, Watchdog
from tests.sim import uboot_hook_model as hook
from tests.sim.medium import Disk, Media, Tree

SLOTS = ("A", "B")
SECTOR_BYTES, COPY_SECTORS = 512, 2
COPY_BYTES = SECTOR_BYTES * COPY_SECTORS
POLICY = TrialPolicy(3, 10, 120)
# Long enough that our variables straddle the sectors of a copy: a torn copy is then a mix of old and new ones.
FOREIGN = (b"preboot=run distro; " + b"x" * 440, b"serial#=0815", b"odd=\xff\\'")
STATE = Path("/data/abupdate")


@dataclass(frozen=True)
class Content:
    """What a bundle brings: blocks of the slot's image. Some blocks are the same in every version."""

    version: str
    counter: int
    blocks: tuple[bytes, ...]

    @property
    def bundle(self) -> str:
        """Bundle id in hex."""
        return hashlib.sha256(self.version.encode()).hexdigest()

    def head(self) -> bytes:
        """What stands for the signed head: id, version, counter and the blocks' hashes."""
        hashes = [hashlib.sha256(block).hexdigest() for block in self.blocks]
        return json.dumps([self.bundle, self.version, self.counter, hashes]).encode()


def _content(version: str, counter: int) -> Content:
    return Content(version, counter, (b"kernel " + version.encode(), b"common", b"root " + version.encode(), bytes(8)))


V1, V2, V3 = _content("1.0", 1), _content("2.0", 2), _content("3.0", 3)
KNOWN = {content.blocks: content for content in (V1, V2, V3)}


def describe_head(head: bytes) -> SlotRecord | None:
    """As wiring.describe_head, for the heads of this model."""
    try:
        bundle, version, counter, _ = json.loads(head)
    except ValueError:
        return None
    return SlotRecord(SlotState.CONFIRMED, version, bundle, counter)


class Bundle:
    """`ports.OpenBundle`."""

    def __init__(self, content: Content) -> None:
        self.content = content

    @property
    def manifest(self) -> Manifest:
        """See ports.OpenBundle."""
        content = self.content
        return Manifest(
            bytes.fromhex(content.bundle), "sim", (), content.version, content.counter, "0", 0, "", frozenset(), images=()
        )  # fmt: skip

    def head(self) -> bytes:
        """See ports.OpenBundle."""
        return self.content.head()


class Slots:
    """`ports.SlotContents` over the modelled disks: blocks that are there already stay, then a flush; read back through the cache."""

    def __init__(self, disks: dict[str, Disk]) -> None:
        self._disks = disks
        self._claimed: set[str] = set()

    @contextmanager
    def claim(self, slot: str) -> Iterator[None]:
        """See ports.SlotContents."""
        assert slot not in self._claimed
        self._claimed.add(slot)
        try:
            yield
        finally:
            self._claimed.discard(slot)

    def fits(self, slot: str, manifest: Manifest) -> None:
        """See ports.SlotContents."""
        assert slot in self._claimed

    def write(self, slot: str, bundle: OpenBundle, progress: Progress) -> None:
        """See ports.SlotContents."""
        assert isinstance(bundle, Bundle)
        assert slot in self._claimed
        disk = self._disks[slot]
        try:
            for number, block in enumerate(bundle.content.blocks):
                if disk.read(number) != block:
                    disk.write(number, block)
                progress("write", number + 1, len(bundle.content.blocks))
            disk.flush()
        except OSError as error:
            raise Failed(f"slot {slot}: {error.strerror}") from error

    def verify(self, slot: str, head: bytes, progress: Progress) -> None:
        """See ports.SlotContents."""
        disk = self._disks[slot]
        for number, wanted in enumerate(json.loads(head)[3]):
            if hashlib.sha256(disk.read(number)).hexdigest() != wanted:
                raise Failed(f"slot {slot} differs in block {number}")


class Copy:
    """`bootloaders.envio.Area`: one copy of the environment on the modelled disk, with what FileArea does around it."""

    scheme = Scheme.INCREMENTAL

    def __init__(self, disk: Disk, location: EnvLocation) -> None:
        self.location = location
        self._disk = disk
        self._first = location.offset // SECTOR_BYTES

    def read(self) -> bytes:
        """See envio.Area."""
        return b"".join(self._disk.read(self._first + number) for number in range(COPY_SECTORS))

    def write(self, data: bytes) -> None:
        """See envio.Area."""
        try:
            for number in range(COPY_SECTORS):
                self._disk.write(self._first + number, data[number * SECTOR_BYTES :][:SECTOR_BYTES])
            self._disk.flush()
        except OSError as error:
            raise Failed(f"environment: {error.strerror}") from error
        compare(self.read(), data, self.location)

    def mark_obsolete(self) -> None:
        """Not on this medium."""
        raise AssertionError("incremental copies are never marked")

    def span(self) -> Span:
        """See envio.Area."""
        return Span((0, 0), self.location.offset, self.location.offset + COPY_BYTES)


@dataclass
class Boot:
    """`ports.ThisBoot`."""

    slot: str
    boot_id: str
    settled: bool = False
    reset: str = ""

    def mark_settled(self) -> None:
        """See ports.ThisBoot."""
        self.settled = True

    def booted(self) -> str:
        """See ports.ThisBoot."""
        return self.slot

    def reset_reason(self) -> str:
        """See ports.ThisBoot."""
        return self.reset

    def boottime_s(self) -> float:
        """See ports.ThisBoot."""
        return 30.0


class _Silent:
    """`ports.Announcer` that nobody listens to."""

    watchdog_s: float | None = None

    def ready(self, status: str = "") -> bool:
        return True

    def alive(self) -> bool:
        return True

    def status(self, status: str) -> bool:
        return True

    def stopping(self, status: str = "") -> bool:
        return True


class _AskedToStop:
    """`ports.TrialWatch`: whoever asks for health is told to stop, so that the start of the service ends there."""

    def tick(self, now_s: float) -> Decision:
        raise Stop

    def stop(self) -> None:
        return


def _stop_at_trial() -> _AskedToStop:
    raise Stop


def _no_watchdog() -> Watchdog:
    raise Failed("no watchdog here")


_HARDWARE = Hardware(_no_watchdog, lambda: False, False, False, False, lambda: None, lambda: None, lambda: False)


def _silence(phase: str, done: int, total: int) -> None:
    return


@dataclass
class Device:
    """Media and the boot that runs on them. loads: slots whose kernel starts (a destroyed one does not)."""

    media: Media
    boot: Boot
    folder: Path
    loads: frozenset[str] = frozenset(SLOTS)
    slots: Slots = field(init=False)
    _store: UBootStore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = Slots(self.media.slots)
        self._store = UBootStore(
            env_config(self.folder),
            SLOTS,
            lock_path=self.folder / "lock",
            lock_wait_s=0.0,
            default_environment=self.folder / "none",
            find_area=lambda location: Copy(self.media.env, location),
        )

    def clone(self) -> Device:
        """The same boot on a copy of the media: what another process finds after this one was killed."""
        return Device(self.media.clone(), replace(self.boot), self.folder, self.loads)

    def board(self, *, tolerant: bool = False) -> Board:
        """The ports as wiring.py would hand them out."""
        state = StateDir(STATE, files=self.media.files)
        return Board(SLOTS, POLICY, self._store, state, self.boot, describe_head, tolerant=tolerant)

    def facts(self) -> Facts:
        """What any verb sees now."""
        return observe(self.board())

    # The verbs, as cli/ calls them.

    def flash(self, content: Content, *, activate: bool = True) -> None:
        """`abupdate flash`."""
        flashing.flash(self.board(), self.slots, lambda: Bundle(content), _silence, activate=activate)

    def activate(self) -> None:
        """`abupdate activate`."""
        flashing.activate(self.board(), self.slots, lambda head: str(json.loads(head)[0]), None, _silence)

    def confirm(self) -> None:
        """`abupdate confirm`."""
        verdict.confirm(self.board(tolerant=True))

    def revert(self) -> None:
        """`abupdate revert`."""
        verdict.revert(self.board(tolerant=True), "ordered by the operator")

    def service(self) -> None:
        """`abupdate service` from its start to the moment when it would begin to watch."""
        Service(self.board(tolerant=True), _stop_at_trial, _HARDWARE, _Silent(), Numbers(60, 120, 30), trial_only=True).run()


@cache
def env_config(folder: Path) -> Path:
    """fw_env.config of the modelled area."""
    path = folder / "fw_env.config"
    path.write_text("".join(f"{folder}/env {number * COPY_BYTES:#x} {COPY_BYTES:#x}\n" for number in range(2)))
    return path


def new_device(folder: Path) -> Device:
    """A board from the factory: V1 on A, rubbish on B, an environment with foreign variables in one copy, no state_dir."""
    first = encode(Environment(FOREIGN), COPY_BYTES, Scheme.INCREMENTAL, 1)
    env = Disk("env", [first[:SECTOR_BYTES], first[SECTOR_BYTES:], b"\xff" * SECTOR_BYTES, b"\xff" * SECTOR_BYTES])
    slots = {"A": Disk("slot A", list(V1.blocks)), "B": Disk("slot B", [b"rubbish"] * len(V1.blocks))}
    media = Media(env, slots, Tree(names={"/": -1, "/data": -1}, kept={"/": -1, "/data": -1}))
    return power_up(media, folder)


def copies_of(env: Disk) -> tuple[EnvCopy | None, ...]:
    """Both copies as they lie on the medium, None where the checksum is wrong."""
    found: list[EnvCopy | None] = []
    for start in (0, COPY_SECTORS):
        try:
            found.append(decode(b"".join(env.sectors[start : start + COPY_SECTORS]), Scheme.INCREMENTAL))
        except StoreUnreadable:
            found.append(None)
    return tuple(found)


def counting(copies: tuple[EnvCopy | None, ...]) -> int | None:
    """Index of the copy that counts, None where both are bad."""
    first, second = copies
    if first is not None and second is not None:
        return choose(first.flag, second.flag, Scheme.INCREMENTAL)
    return 0 if first is not None else 1 if second is not None else None


def run_hook(media: Media, loads: frozenset[str]) -> tuple[hook.HookBoot, list[Media]]:
    """Start once: the hook decides and writes the copy that does not count. Also what a cut inside its write would leave."""
    copies = copies_of(media.env)
    current = counting(copies)
    copy = None if current is None else copies[current]
    env = None
    if copy is not None:
        pairs = (entry.partition(b"=") for entry in copy.environment.entries)
        env = {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}
    booted = hook.boot(env, loads)
    if not booted.writes or copy is None or booted.env is None or env is None:
        return booted, []
    changes = {name: value.encode() for name, value in booted.env.items() if env.get(name) != value}
    data = encode(copy.environment.changed(changes), COPY_BYTES, Scheme.INCREMENTAL, next_flag(copy.flag, Scheme.INCREMENTAL))
    first = COPY_SECTORS if current == 0 else 0
    for number in range(COPY_SECTORS):
        media.env.cache.append((first + number, data[number * SECTOR_BYTES :][:SECTOR_BYTES]))
    torn = list(media.survivors())
    media.env.settle()
    return booted, torn


_boots = 0


def power_up(media: Media, folder: Path, loads: frozenset[str] = frozenset(SLOTS), reset: str = "") -> Device:
    """A boot on these media, with a boot id of its own. The hook must find something to start."""
    global _boots
    _boots += 1
    booted, _ = run_hook(media, loads)
    assert booted.slot is not None
    return Device(media, Boot(booted.slot, f"boot-{_boots}", reset=reset), folder, loads)


def reboot(device: Device, reset: str = "") -> Device:
    """An orderly reboot: everything written reaches the medium."""
    media = device.media.clone()
    for disk in (media.env, *media.slots.values()):
        disk.settle()
    media = list(media.survivors())[-1]
    return power_up(media, device.folder, device.loads, reset)


def exit_code(verb: object) -> int:
    """What the command line would end with. Anything but the project's errors is a bug and passes."""
    assert callable(verb)
    try:
        verb()
    except AbupdateError as error:
        return error.exit_code
    return 0


def slot_content(media: Media, slot: str) -> Content | None:
    """Which whole content lies on the slot's medium, None: a mix or rubbish."""
    return KNOWN.get(tuple(media.slots[slot].sectors))
