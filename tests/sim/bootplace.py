"""What the simulated device needs of a boot store: one implementation for each bootloader, over a modelled medium."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from abupdate.model import BootState, BootTraits, TrialPolicy
from abupdate.ports import Bootloader
from tests.sim.parts import Part, Running

SLOTS = ("A", "B")


@dataclass(frozen=True)
class Started:
    """slot: what boots, None: nothing. trial: on trial. failed: slots whose kernel did not start. store: the medium afterwards.

    during: the medium at moments inside the boot side's own writes. Every one of them may be cut.
    """

    slot: str | None
    trial: bool
    failed: tuple[str, ...]
    store: Part
    during: tuple[Part, ...] = ()


class BootRom(Protocol):
    """The boot side of one kind of bootloader; a frozen value."""

    def __hash__(self) -> int:
        """By value."""

    def power_up(self, store: Part, loads: frozenset[str]) -> Started:
        """Start once. loads: slots whose kernel starts."""


@dataclass(frozen=True)
class BootPlace(ABC):
    """A store on a medium; a frozen value. name: in tables and on the command line."""

    name: str

    @property
    @abstractmethod
    def traits(self) -> BootTraits:
        """What the production store says of itself."""

    @property
    def policy(self) -> TrialPolicy:
        """The configured numbers, within the traits."""
        return TrialPolicy(3, 10, 120)

    @property
    def single(self) -> bool:
        """A cut may lose it: what `allow_single_env` accepts."""
        return False

    @property
    def gives_back(self) -> bool:
        """A good slot whose boots are all used up is not lost: the boot side gives them back."""
        return False

    @property
    def reasons(self) -> tuple[str, ...]:
        """What the record may say of a trial whose boots were all cut."""
        return ("tries exhausted",)

    @property
    @abstractmethod
    def rom(self) -> BootRom:
        """What starts a device with this store."""

    @abstractmethod
    def blank(self) -> Part:
        """A board from the factory: valid, and abupdate never wrote to it."""

    def erased(self) -> Part | None:
        """With nothing valid in it; None where there is no such thing."""
        return None

    @abstractmethod
    def bootloader(self, running: Running, folder: Path) -> Bootloader:
        """The production store over the medium. folder: for configuration and locks."""

    @abstractmethod
    def state(self, part: Part) -> BootState | None:
        """What the medium says, None where nothing on it is valid."""

    def warm(self, before: Part, after: Part) -> Part:
        """The medium at the start that an orderly reboot leads to. before: as it was left; after: everything written is durable."""
        return after

    @abstractmethod
    def key(self, part: Part) -> bytes:
        """Two media with the same key go on alike."""

    def meaning(self, part: Part) -> bytes:
        """As `key`, without leftovers that change nothing but the steps of the next write."""
        return self.key(part)
