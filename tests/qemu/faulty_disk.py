"""A device whose disk fails on order: QEMU's blkdebug between the disk and its image, put in and taken out while the machine runs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from images.build import BOOT_BYTES, DATA_BYTES, ROOTFS_BYTES
from images.disk import SECTOR, layout
from qemu.device import Device

EIO = 5
Rule = dict[str, object]


def sector_of(label: str, offset_bytes: int = 0) -> int:
    """The disk's sector at a place in the partition of this label."""
    (start,) = (part.start for part in layout(BOOT_BYTES, ROOTFS_BYTES, DATA_BYTES) if part.label == label)
    return start + offset_bytes // SECTOR


# The first sector of each copy of the boot store.
ENVIRONMENT = (sector_of("env"), sector_of("env", 0x80000))


def writes_fail(*sectors: int) -> tuple[Rule, ...]:
    """Rules by which every write that touches one of these sectors ends with EIO."""
    return tuple({"event": "none", "iotype": "write", "errno": EIO, "sector": sector, "once": False} for sector in sectors)


def journal_sectors(device: Device) -> list[int]:
    """The disk's sectors with the journal of the data partition: the first one of each of its blocks."""
    begin = sector_of("data")
    command = ["debugfs", "-R", "blocks <8>", f"{device.folder / 'disk.img'}?offset={begin * SECTOR}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    blocks = [int(word) for word in re.findall(r"\d+", said)]
    assert len(blocks) >= 1024, said
    return [begin + block * 4096 // SECTOR for block in blocks]


class FaultyDevice(Device):
    """A device whose disk can be told to fail. Errors reach the guest (werror=report), as from a failing medium."""

    _rules: tuple[tuple[Rule, ...], tuple[Rule, ...]] | None = None

    def arguments(self) -> list[str]:
        """See Device: the disk is a chain of named nodes, top <- [fault <-] image."""
        command = super().arguments()
        drive = next(place for place, word in enumerate(command) if word.startswith("if=none,id=disk,"))
        image = {"driver": "qcow2", "node-name": "image", "file": {"driver": "file", "filename": str(self.disk)}}
        command[drive - 1 : drive + 1] = ["-blockdev", json.dumps(image), "-blockdev", json.dumps(_top("image"))]
        command[command.index("virtio-blk-device,drive=disk")] = "virtio-blk-device,id=disk,drive=top,werror=report,rerror=report"
        return command

    def start(self) -> None:
        """See Device: what was failing fails from the first instruction on."""
        super().start()
        if self._rules is not None:
            self._insert(*self._rules)

    @contextmanager
    def failing(self, *rules: Rule, states: Sequence[Rule] = ()) -> Iterator[None]:
        """Inside, the disk fails by blkdebug's rules (inject-error; states: set-state), over power cycles too."""
        self._rules = (rules, tuple(states))
        self._insert(*self._rules)
        try:
            yield
        finally:
            self._rules = None
            if self.monitor is not None and self.running:
                self.monitor.execute("blockdev-reopen", options=[_top("image")])
                self.monitor.execute("blockdev-del", node_name="fault")

    def _insert(self, rules: Sequence[Rule], states: Sequence[Rule]) -> None:
        assert self.monitor
        # An empty list is an error to QEMU.
        lists = {name: list(part) for name, part in (("inject-error", rules), ("set-state", states)) if part}
        self.monitor.execute("blockdev-add", driver="blkdebug", node_name="fault", image="image", **lists)
        self.monitor.execute("blockdev-reopen", options=[_top("fault")])


def _top(below: str) -> Rule:
    return {"driver": "raw", "node-name": "top", "file": below}
