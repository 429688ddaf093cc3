"""A boot store on real files, and the bootloader's own tool on the other side of it: what the contract's cases are run over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from abupdate.model import TrialPolicy
from abupdate.ports import Bootloader

SLOTS = ("A", "B")


@dataclass(frozen=True)
class Seen:
    """What the tool shows. first: the slot that boots next if it starts. trial: the slot on trial. left: its boots, None where nothing is.

    others: what is not abupdate's, by name.
    """

    first: str
    trial: str | None
    left: int | None
    others: Mapping[str, str]


class Subject(ABC):
    """One adapter over files in a folder of its own; `tool` words are done by the bootloader's tool, not by abupdate's code.

    policy: numbers within what the adapter can do. counts: the trial's boots can be counted down in the store by its boot side.
    """

    policy: TrialPolicy = TrialPolicy(3, 10, 120)
    counts: bool = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def store(self) -> Bootloader:
        """The production store, as a new process opens it. Slot A runs, or the one that `tool_boots` was told."""

    @abstractmethod
    def tool_sees(self) -> Seen:
        """What the bootloader's tool reads."""

    @abstractmethod
    def tool_boots(self, slot: str, left: int) -> None:
        """What the boot side does when it starts a slot. left: what it leaves of the slot's boots, where they are counted."""

    @abstractmethod
    def tool_adds(self) -> None:
        """Something that is not abupdate's comes in; `tool_sees` shows it among `others`."""

    @abstractmethod
    def spoil(self) -> bool:
        """Damage the store so that nothing valid is in it; False where there is no such thing."""
