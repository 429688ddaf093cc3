"""What a board's bootloader needs in the configuration, beside what all test devices have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from images.cache import TREE

BY_LABEL = "/dev/disk/by-partlabel"


def file_slot(slot: str) -> str:
    """A slot's images where kernel and initrd are files on the ESP."""
    small = slot.lower()
    return f'{{ rootfs = "{BY_LABEL}/rootfs_{small}", kernel = "/efi/abu/{slot}/vmlinuz", initrd = "/efi/abu/{slot}/initrd.img" }}'


def raw_slot(slot: str) -> str:
    """A slot's images where kernel and initrd lie in a partition of their own."""
    small = slot.lower()
    return f'{{ rootfs = "{BY_LABEL}/rootfs_{small}", boot = "{BY_LABEL}/boot_{small}" }}'


@dataclass(frozen=True)
class Board:
    """One bootloader's board. bootloader: its section of the configuration. slots: images of each slot.

    trial: keys of [trial] that it needs otherwise. labels: its partitions, in the order of their numbers.
    """

    name: str
    bootloader: str
    slots: Mapping[str, str]
    labels: tuple[str, ...]
    trial: Mapping[str, int]

    def config(self) -> str:
        """The common configuration with this board's slots and bootloader in it."""
        common = (TREE / "images/rootfs/etc/abupdate/config.toml").read_text()
        begin, end = common.index("[slots.A]"), common.index("# Short, so")
        own = "".join(f"[slots.{slot}]\nimages = {images}\n\n" for slot, images in self.slots.items())
        text = common[:begin] + own + f"[bootloader]\n{self.bootloader}\n\n" + common[end:]
        for key, value in self.trial.items():
            text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
            assert count == 1, f"{key} is in the common configuration once"
        return text
