"""The slots of the simulated device as `ports.SlotContents`: transfer/ itself, over modelled disks.

The threads of transfer/ may write in any order; what they wrote between two flushes is put in order of its place, so that a run is the
same every time. That loses nothing: what a cut leaves of unflushed writes does not depend on their order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from abupdate.errors import Failed
from abupdate.formats.bundle import Open, parse_stored_head
from abupdate.formats.contentkey import ContentKey
from abupdate.model import Manifest, Sealing
from abupdate.ports import OpenBundle, Progress, Target
from abupdate.transfer.slots import Bundle, DeviceSlots
from tests.sim.blocks import Disk
from tests.sim.contents import IMAGES, Content
from tests.sim.journal import Machine
from tests.sim.parts import Running

_SECTOR_BYTES = 512


class MemorySource:
    """`ports.RandomSource` over bytes."""

    seekable = True

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    @property
    def size_bytes(self) -> int:
        """See ports.Source."""
        return len(self._data)

    def read_into(self, buffer: memoryview) -> int:
        """See ports.Source."""
        count = self.read_at(buffer, self.position)
        self.position += count
        return count

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """See ports.RandomSource."""
        piece = self._data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def skip(self, count: int) -> int:
        """See ports.Source."""
        count = min(count, len(self._data) - self.position)
        self.position += count
        return count

    def close(self) -> None:
        """See ports.Source."""


class _Place:
    """`ports.SparseTarget` over a disk; writes go into a journal that threads share."""

    def __init__(self, name: str, disk: Disk, journal: list[tuple[str, int, bytes | None]], lock: threading.Lock) -> None:
        self._name = name
        self._disk = disk
        self._journal = journal
        self._lock = lock

    @property
    def size_bytes(self) -> int:
        return len(self._disk.content)

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        with self._lock:
            data = self._disk.read(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def pwrite(self, buffer: memoryview, offset: int) -> None:
        with self._lock:
            data = bytes(buffer)
            if rest := len(data) % _SECTOR_BYTES:
                # A device takes whole sectors: the rest of the last one keeps its content.
                data += self._disk.read(offset + len(data), _SECTOR_BYTES - rest)
            self._journal.append((self._name, offset, data))
            with _as_failed(self._name):
                self._disk.write(offset, data)

    def zero_range(self, offset: int, length: int) -> bool:
        if length % 4096:
            return False
        self.pwrite(memoryview(bytes(length)), offset)
        return True

    def next_data(self, offset: int, end: int) -> int:
        return offset

    def flush(self) -> None:
        with self._lock:
            self._journal.append((self._name, -1, None))
            with _as_failed(self._name):
                self._disk.flush()

    def close(self) -> None:
        return


@contextmanager
def _as_failed(name: str) -> Iterator[None]:
    """As devices/block.py says it."""
    try:
        yield
    except OSError as error:
        raise Failed(f"{name}: {error.strerror}") from error


def _never_sealed(sealing: Sealing) -> ContentKey:
    raise AssertionError("the bundles here are not sealed")


def _slots(disks: Mapping[str, Disk], journal: list[tuple[str, int, bytes | None]], open_: Open) -> DeviceSlots:
    lock = threading.Lock()

    def place(path: Path) -> Target:
        return _Place(path.name, disks[path.name], journal, lock)

    paths = {slot: {image: Path(f"/dev/{slot}.{image}") for image in IMAGES} for slot in ("A", "B")}
    return DeviceSlots(paths, open_head=open_, open_target=place, open_readonly=place)


def _silence(phase: str, done: int, total: int) -> None:
    return


class Opened:
    """`ports.OpenBundle`: a release whose manifest and signatures `transfer.slots.Bundle` has just checked."""

    def __init__(self, content: Content, open_: Open) -> None:
        """Raises Refused."""
        self.content = content
        self._real = Bundle(MemorySource(content.data), open_, _never_sealed)

    @property
    def manifest(self) -> Manifest:
        """See ports.OpenBundle."""
        return self._real.manifest

    def head(self) -> bytes:
        """See ports.OpenBundle."""
        return self.content.head


class Slots:
    """`ports.SlotContents`."""

    def __init__(self, machine: Machine, open_: Callable[[Machine], Open]) -> None:
        """open_: decides about signatures, made when it is needed."""
        self._machine = machine
        self._open = open_
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
        self._do(("fits", manifest.bundle_id), slot, lambda real, open_: real.fits(slot, manifest))

    def write(self, slot: str, bundle: OpenBundle, progress: Progress) -> None:
        """See ports.SlotContents."""
        assert isinstance(bundle, Opened)
        assert slot in self._claimed
        content = bundle.content

        def install(real: DeviceSlots, open_: Open) -> None:
            opened = Bundle(MemorySource(content.data), open_, _never_sealed)
            assert opened.head() == content.head
            real.write(slot, opened, _silence)

        self._do(("write", content.head), slot, install)
        progress("write", len(content.data), len(content.data))

    def verify(self, slot: str, head: bytes, progress: Progress) -> None:
        """See ports.SlotContents."""
        # A head that is not signed as it should be is refused whatever lies on the slot.
        parse_stored_head(head, self._open(self._machine))
        self._do(("verify", head), slot, lambda real, open_: real.verify(slot, head, _silence))
        progress("verify", len(head), len(head))

    def _do(self, what: tuple[str, object], slot: str, action: Callable[[DeviceSlots, Open], None]) -> None:
        names = tuple(f"{slot}.{image}" for image in IMAGES)
        admission = self._open

        def run(running: Mapping[str, Running], machine: Machine) -> None:
            disks: dict[str, Disk] = {}
            for name in names:
                disk = running[name]
                assert isinstance(disk, Disk)
                disks[name] = disk
            listeners = {name: disk.on_event for name, disk in disks.items()}
            if machine.faulty:
                # A fault belongs to the moment of the write itself.
                open_ = admission(machine)
                with (real := _slots(disks, [], open_)).claim(slot):
                    action(real, open_)
                return
            copies = {name: disk.freeze().thaw() for name, disk in disks.items()}
            journal: list[tuple[str, int, bytes | None]] = []
            try:
                open_ = admission(machine)
                with (real := _slots(copies, journal, open_)).claim(slot):
                    action(real, open_)
            finally:
                for name, disk in disks.items():
                    disk.on_event = listeners[name]
                for name, offset, data in _in_order(journal, names):
                    if data is None:
                        disks[name].flush()
                    else:
                        disks[name].write(offset, data)

        self._machine.call((slot, *what), names, run)


def _in_order(journal: list[tuple[str, int, bytes | None]], names: tuple[str, ...]) -> list[tuple[str, int, bytes | None]]:
    """Writes between two flushes by image and place."""
    ordered: list[tuple[str, int, bytes | None]] = []
    waiting: list[tuple[str, int, bytes]] = []
    for name, offset, data in journal:
        if data is not None:
            waiting.append((name, offset, data))
            continue
        ordered += sorted(waiting, key=lambda write: (names.index(write[0]), write[1]))
        waiting = []
        ordered.append((name, offset, None))
    return ordered + sorted(waiting, key=lambda write: (names.index(write[0]), write[1]))
