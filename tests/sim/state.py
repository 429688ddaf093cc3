"""`state_dir` of the simulated device: devices/statedir.py itself over the modelled file system."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from abupdate.devices.statedir import StateDir
from abupdate.formats.record import RecordDamaged, RecordUnknown, decode, encode
from abupdate.model import Record
from tests.sim.filesystem import Files, Tree
from tests.sim.journal import Machine
from tests.sim.parts import Part, Running, digest

STATE = Path("/data/abupdate")
_HEADER_BYTES = 20


class State:
    """`ports.StateStore`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @contextmanager
    def lock(self, wait_s: float = 0.0) -> Iterator[None]:
        """See ports.StateStore. Taken and given back at once; while it is held, whoever wants it finds it taken."""
        held = self._machine.locked

        def take(state: StateDir) -> None:
            with state.lock(0.0) if held else nullcontext(), state.lock(0.0):
                return

        self._do(("lock", held), take)
        self._machine.locked = True
        try:
            yield
        finally:
            self._machine.locked = False

    def load(self) -> tuple[Record | None, int]:
        """See ports.StateStore."""
        found: tuple[Record | None, int] = self._do("load", lambda state: state.load())
        return found

    def save(self, record: Record) -> None:
        """See ports.StateStore."""
        self._do(("save", encode(record, 0)), lambda state: state.save(record))

    def load_head(self, slot: str) -> bytes | None:
        """See ports.StateStore."""
        found: bytes | None = self._do(("load head", slot), lambda state: state.load_head(slot))
        return found

    def save_head(self, slot: str, head: bytes) -> None:
        """See ports.StateStore."""
        self._do(("save head", slot, head), lambda state: state.save_head(slot, head))

    def load_keyring(self) -> bytes | None:
        """See ports.StateStore."""
        found: bytes | None = self._do("load keyring", lambda state: state.load_keyring())
        return found

    def save_keyring(self, data: bytes) -> None:
        """See ports.StateStore."""
        self._do(("save keyring", data), lambda state: state.save_keyring(data))

    def _do(self, what: object, action: Callable[[StateDir], Any]) -> Any:
        def run(running: Mapping[str, Running], machine: Machine) -> Any:
            tree = running["files"]
            assert isinstance(tree, Tree)
            return action(StateDir(STATE, files=tree))

        return self._machine.call(("state", what), ("files",), run)


def empty_data() -> Files:
    """A data partition without state_dir."""
    return Files.with_files({}, ("/", "/data"))


@cache
def files_key(part: Part, leftovers: bool = True) -> bytes:
    """Two data partitions with the same key go on alike: boot ids and sequence numbers are left out, the order of these is kept.

    leftovers: look also at what a replacement has left half done (the next one truncates it).
    """
    assert isinstance(part, Files)
    pieces = [name.encode() for name in part.folders]
    sequences: list[int] = []
    for name, data in sorted(part.content.items()):
        if name.endswith(".new") and not leftovers:
            continue
        pieces.append(name.encode())
        if not name.startswith(f"{STATE}/record"):
            pieces.append(data)
            continue
        sequence, shown = _shown(data)
        pieces.append(shown)
        if not name.endswith(".new"):
            sequences.append(sequence)
    pieces.append(str(sequences.index(max(sequences)) if sequences else -1).encode())
    return digest(*pieces)


@lru_cache(maxsize=100_000)
def _shown(data: bytes) -> tuple[int, bytes]:
    try:
        sequence, record = decode(data)
    except RecordUnknown as newer:
        return newer.sequence, data[_HEADER_BYTES:]
    except RecordDamaged:
        return -1, b"damaged %d " % len(data) + data[_HEADER_BYTES:]
    return sequence, encode(replace(record, attempt=replace(record.attempt, boot_id="", started_in="") if record.attempt else None), 0)


@cache
def fresh_boot_id(part: Part) -> str:
    """An id that no file mentions: the kernel's are random; the first of a fixed list keeps the number of states finite."""
    assert isinstance(part, Files)
    everything = b"".join(part.seen.values())
    return next(name for name in map("boot-{}".format, range(1000)) if f'"{name}"'.encode() not in everything)
