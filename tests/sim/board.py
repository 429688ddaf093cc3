"""A board with a scheme of its own: the example of bootloader-hooks/custom, run in this process over a modelled disk."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from abupdate.bootloaders.custom import CustomStore, Said
from abupdate.errors import ConfigError
from abupdate.model import BootState, BootTraits
from tests.contract.custom import EXAMPLE, MEDIUM_BYTES, OFFSETS, boots, current, sector
from tests.sim.blocks import Block, Disk, Nature
from tests.sim.bootplace import SLOTS, BootPlace, BootRom, Started
from tests.sim.parts import Part, Running, digest

_NATURE = Nature("env", 512)
FACTORY = sector(7, b"\x00\xff", (10, 0), 255, ours=0).ljust(MEDIUM_BYTES, b"\0")


@cache
def _program() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("bootstate", str(EXAMPLE))
    spec = importlib.util.spec_from_loader("bootstate", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class _Os:
    """What the example uses of `os`, over a disk."""

    O_RDONLY, O_RDWR, O_DSYNC, O_CLOEXEC = os.O_RDONLY, os.O_RDWR, os.O_DSYNC, os.O_CLOEXEC
    SEEK_END, POSIX_FADV_DONTNEED = os.SEEK_END, os.POSIX_FADV_DONTNEED
    path = os.path

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._through = False

    def open(self, path: str, flags: int) -> int:
        self._through = bool(flags & os.O_DSYNC)
        return 3

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return self._disk.read(offset, count)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        (self._disk.write_through if self._through else self._disk.write)(offset, data)
        return len(data)

    def fsync(self, fd: int) -> None:
        self._disk.flush()

    def posix_fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
        return

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        return len(self._disk.content)

    def fstat(self, fd: int) -> SimpleNamespace:
        return SimpleNamespace(st_mode=stat.S_IFBLK)


class InProcess(CustomStore):
    """The production store; the programs' own code instead of their processes."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(Path("/board"), SLOTS)
        self._disk = disk

    def _run(self, name: str, told: bytes) -> Said:
        program, output, errors = _program(), io.StringIO(), io.StringIO()

        def write(text: str, file: object = None) -> None:
            (output if file is None else errors).write(f"{text}\n")

        def leave(code: int) -> None:
            raise SystemExit(code)

        found: dict[str, Any] = {
            "os": _Os(self._disk),
            "fcntl": SimpleNamespace(flock=lambda fd, kind: None, LOCK_SH=1, LOCK_EX=2),
            "sys": SimpleNamespace(argv=[f"/board/{name}"], stdin=io.StringIO(told.decode()), stderr=errors, exit=leave),
            "print": write,
        }
        vars(program).update(found)
        code = 0
        main: Callable[[], None] = program.main
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, output.getvalue().encode(), errors.getvalue().strip())


@dataclass(frozen=True)
class BoardRom:
    """`BootRom`: boot code as the example asks for it."""

    def power_up(self, store: Part, loads: frozenset[str]) -> Started:
        """See BootRom."""
        return _power_up(store, loads)


@cache
def _power_up(part: Part, loads: frozenset[str]) -> Started:
    assert isinstance(part, Block)
    boot = boots(part.content)
    during: list[Part] = []
    running = part.thaw()
    running.listen(lambda step, inside: during.append(running.freeze()))
    if boot.write is not None:
        running.write_through(*boot.write)
    return Started(boot.slot, boot.trial, () if boot.slot in loads else (boot.slot,), running.freeze(), tuple(during))


@dataclass(frozen=True)
class BoardPlace(BootPlace):
    """See BootPlace."""

    name: str = "custom"

    @property
    def traits(self) -> BootTraits:
        return BootTraits(255, counts_confirmed=True, falls_through=False, armed_in_store=True, keeps_verity=True)

    @property
    def rom(self) -> BootRom:
        return BoardRom()

    def blank(self) -> Part:
        return Block.of(_NATURE, FACTORY)

    def erased(self) -> Part | None:
        return Block.of(_NATURE, bytes(MEDIUM_BYTES))

    def bootloader(self, running: Running, folder: Path) -> InProcess:
        assert isinstance(running, Disk)
        return InProcess(running)

    def state(self, part: Part) -> BootState | None:
        return _state(part)

    def key(self, part: Part) -> bytes:
        """Sequences that count upwards are left out, which copy they make count is kept."""
        assert isinstance(part, Block)
        found = current(part.content)
        copies = [part.content[at : at + 512] for at in OFFSETS]
        whole = [current(copy.ljust(MEDIUM_BYTES, b"\0")) is not None for copy in copies]
        pieces = [copy[8:508] if valid else copy for copy, valid in zip(copies, whole, strict=True)]
        return digest(b"custom", str(found[0] if found else None).encode(), *pieces)


@cache
def _state(part: Part) -> BootState | None:
    assert isinstance(part, Block)
    try:
        return InProcess(Block.of(part.nature, part.content).thaw()).read()
    except ConfigError:
        return None


BOARD = BoardPlace()
