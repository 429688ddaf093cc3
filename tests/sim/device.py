"""A simulated device: the production operations over modelled media, started by the model of the boot hook.

Real here: machine.py, operations/, bootloaders/ with their codec, devices/statedir.py and durable.py, transfer/ with formats/ and a signed
bundle. Modelled: the media under them, the kernel's boot id, the hook.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from abupdate.errors import AbupdateError, Failed
from abupdate.formats.bundle import parse_stored_head
from abupdate.model import BootState, BootTraits, Decision, Facts, Manifest, SlotRecord, TrialPolicy
from abupdate.operations import flash as flashing
from abupdate.operations import keyring as rotating
from abupdate.operations import verdict
from abupdate.operations.board import Board, observe
from abupdate.operations.outside import OutsideFloor
from abupdate.operations.service import Hardware, Numbers, Service, Stop
from abupdate.ports import Bootloader, Watchdog
from abupdate.wiring import describe_head
from tests.sim.blocks import Block
from tests.sim.bootplace import SLOTS, BootPlace, BootRom
from tests.sim.contents import IMAGES, V1, V2, V3, Content, filled, identify
from tests.sim.installer import Opened, Slots
from tests.sim.journal import Machine
from tests.sim.parts import Part, Running
from tests.sim.rings import CHAIN, TRUST, admission
from tests.sim.state import State, empty_data, fresh_boot_id
from tests.sim.stores import RAW
from tests.sim.tpm import Index

__all__ = ["POLICY", "SLOTS", "V1", "V2", "V3", "Device", "new_device", "power_up", "reboot"]

POLICY = TrialPolicy(3, 10, 120)
NAMES = ("env", "files", *(f"{slot}.{image}" for slot in SLOTS for image in IMAGES), "tpm")

_describe_head = lru_cache(maxsize=64)(describe_head)


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

    def unsaved(self) -> bool:
        """See ports.ThisBoot."""
        return False

    def boottime_s(self) -> float:
        """See ports.ThisBoot."""
        return 30.0


class Store(Bootloader):
    """`ports.Bootloader`: the production store over the modelled medium."""

    irreplaceable = ""
    location = ""
    traits = BootTraits(0, False, False, False)

    def __init__(self, machine: Machine, store: BootPlace, folder: Path) -> None:
        self._machine = machine
        self._store = store
        self._folder = folder
        self.traits = store.traits
        self.location = "store:" + store.name

    def places(self) -> tuple[tuple[Path, int, int], ...]:
        """See ports.Bootloader."""
        return ()

    def read(self) -> BootState:
        """See ports.Bootloader."""

        def both(real: Bootloader) -> tuple[BootState, str]:
            return real.read(), real.irreplaceable

        state: BootState
        state, self.irreplaceable = self._do("read", both)
        return state

    def commit(self, state: BootState) -> None:
        """See ports.Bootloader."""
        self._do(("commit", repr(state)), lambda real: real.commit(state))

    def check_room(self, state: BootState) -> None:
        """See ports.Bootloader."""
        self._do(("check room", repr(state)), lambda real: real.check_room(state))

    def rebuild(self, state: BootState) -> None:
        """See ports.Bootloader."""
        self._do(("rebuild", repr(state)), lambda real: real.rebuild(state))

    def rearm(self) -> None:
        """See ports.Bootloader."""
        self._do("rearm", lambda real: real.rearm())

    def tried(self) -> bool | None:
        """See ports.Bootloader."""
        answer: bool | None = self._do("tried", lambda real: real.tried())
        return answer

    def _do(self, what: object, action: Callable[[Bootloader], Any]) -> Any:
        def run(running: Mapping[str, Running], machine: Machine) -> Any:
            return action(self._store.bootloader(running["env"], self._folder))

        return self._machine.call((self._store.name, what), ("env",), run)


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
    """Media and the boot that runs on them. loads: slots whose kernel starts (a destroyed one does not). has_tpm: one is configured."""

    machine: Machine
    boot: Boot
    store: BootPlace
    folder: Path
    loads: frozenset[str] = frozenset(SLOTS)
    has_tpm: bool = False

    def __post_init__(self) -> None:
        self.machine.settled = lambda: self.boot.settled

    @property
    def rom(self) -> BootRom:
        """What starts it."""
        return self.store.rom

    def clone(self) -> Device:
        """The same boot on a copy of the media: what another process finds after this one was killed."""
        return Device(self.machine.clone(), replace(self.boot), self.store, self.folder, self.loads, self.has_tpm)

    def board(self, *, tolerant: bool = False) -> Board:
        """The ports as wiring.py would hand them out."""
        store = Store(self.machine, self.store, self.folder)
        outside = OutsideFloor(Index(self.machine)) if self.has_tpm else None
        return Board(SLOTS, self.store.policy, store, self.state, self.boot, describe_stored, tolerant=tolerant, outside=outside)

    @property
    def state(self) -> State:
        """`state_dir`."""
        return State(self.machine)

    @property
    def slots(self) -> Slots:
        """The slots' images."""
        return Slots(self.machine, lambda machine: admission(State(machine)))

    def opened(self, content: Content) -> Opened:
        """The bundle, checked as cli/device.py lets it be checked."""
        return Opened(content, admission(self.state))

    def facts(self) -> Facts:
        """What any verb sees now."""
        facts: Facts = self.machine.look(self._told("facts"), self.boot, ("env", "files", "tpm"), lambda: observe(self.board()))
        return facts

    def content(self, slot: str) -> Content | None:
        """Which whole release the running system sees on a slot, None: a mix or rubbish."""
        return content_of(self.machine.parts, slot)

    # The verbs, as cli/ calls them.

    def flash(self, content: Content, *, activate: bool = True) -> None:
        """`abupdate flash`."""
        self._verb(
            ("flash", content.head, activate),
            lambda: flashing.flash(self.board(), self.slots, lambda: self.opened(content), _silence, activate=activate),
        )

    def activate(self, lease: int | None = None) -> None:
        """`abupdate activate`; lease: as the fleet's daemon calls it."""

        def activate() -> None:
            admit = admission(self.state)

            def check(head: bytes) -> Manifest:
                return parse_stored_head(head, admit).signed.manifest

            flashing.activate(self.board(), self.slots, check, None, _silence, lease=lease)

        self._verb(("activate", lease), activate)

    def keyring_update(self, chain: bytes = CHAIN) -> None:
        """`abupdate keyring update`."""
        self._verb(("keyring update", chain), lambda: rotating.update(self.state, TRUST, chain))

    def confirm(self) -> None:
        """`abupdate confirm`."""
        self._verb("confirm", lambda: verdict.confirm(self.board(tolerant=True)))

    def revert(self, lease: int | None = None) -> None:
        """`abupdate revert`; lease: as the fleet's daemon calls it."""
        self._verb(("revert", lease), lambda: verdict.revert(self.board(tolerant=True), "ordered by the operator", lease=lease))

    def service(self) -> None:
        """`abupdate service` from its start to the moment when it would begin to watch."""
        numbers = Numbers(60, 120, 30)
        self._verb(
            "service",
            lambda: Service(self.board(tolerant=True), _stop_at_trial, _HARDWARE, _Silent(), numbers, trial_only=True).run(),
        )

    def _verb(self, what: Hashable, run: Callable[[], Any]) -> Any:
        return self.machine.verb(self._told(what), self.boot, run)

    def _told(self, what: Hashable) -> Hashable:
        """What a verb knows without asking the media."""
        return what, self.store.name, self.folder, self.has_tpm, self.boot.slot, self.boot.boot_id, self.boot.reset


def describe_stored(head: bytes) -> SlotRecord | None:
    """wiring.describe_head, each head once."""
    return _describe_head(head)


def content_of(parts: tuple[Part, ...], slot: str) -> Content | None:
    """Which whole release lies on a slot, None: a mix or rubbish."""
    first = NAMES.index(f"{slot}.{IMAGES[0]}")
    boot, rootfs = parts[first : first + 2]
    assert isinstance(boot, Block)
    assert isinstance(rootfs, Block)
    return identify(boot, rootfs)


def new_device(folder: Path, store: BootPlace = RAW, *, has_tpm: bool = False) -> Device:
    """A board from the factory: V1 on A, rubbish on B, an environment that abupdate never wrote to, no state_dir."""
    parts = {"env": store.blank(), "files": empty_data(), **filled("A", V1), **filled("B", None), "tpm": Index.blank()}
    return power_up(tuple(parts[name] for name in NAMES), store, folder, has_tpm=has_tpm)


def power_up(
    parts: tuple[Part, ...],
    store: BootPlace,
    folder: Path,
    loads: frozenset[str] = frozenset(SLOTS),
    reset: str = "",
    *,
    has_tpm: bool = False,
) -> Device:
    """A boot on these durable media, with a boot id of its own. The hook must find something to start."""
    started = store.rom.power_up(parts[0], loads)
    assert started.slot is not None
    machine = Machine(NAMES, (started.store, *parts[1:]))
    return Device(machine, Boot(started.slot, fresh_boot_id(parts[1]), reset=reset), store, folder, loads, has_tpm)


def durable(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Everything written reaches the medium."""
    return tuple(part.after(iter([count - 1 for count in part.choices])) for part in parts)


def reboot(device: Device, reset: str = "") -> Device:
    """An orderly reboot."""
    left = device.machine.parts
    env, *rest = durable(left)
    return again(device, (device.store.warm(left[0], env), *rest), reset)


def again(device: Device, parts: tuple[Part, ...], reset: str = "") -> Device:
    """The same board, started on these durable media."""
    return power_up(parts, device.store, device.folder, device.loads, reset, has_tpm=device.has_tpm)


def exit_code(verb: Callable[[], object]) -> int:
    """What the command line would end with. Anything but the project's errors is a bug and passes."""
    try:
        verb()
    except AbupdateError as error:
        return error.exit_code
    return 0
