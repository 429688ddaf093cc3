"""Where the simulated device keeps U-Boot's environment: each place with its medium, the production code over it, U-Boot's own writes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from abupdate.bootloaders.envcalls import Calls
from abupdate.bootloaders.envfile import FileArea
from abupdate.bootloaders.envflash import flash_area
from abupdate.bootloaders.envio import Area
from abupdate.bootloaders.uboot import UBootStore
from abupdate.bootloaders.ubootvars import state_of
from abupdate.errors import StoreUnreadable
from abupdate.formats.fwenvconfig import EnvLocation
from abupdate.formats.ubootenv import EnvCopy, Environment, Scheme, choose, decode, encode, next_flag, obsolete_byte
from abupdate.model import BootState, BootTraits
from tests.sim.blocks import Block, Disk, Nature
from tests.sim.bootplace import SLOTS, BootPlace, BootRom
from tests.sim.chips import NAND, NOR, Chip, ChipKind, Flash
from tests.sim.filesystem import Files, Tree
from tests.sim.parts import Part, Running, digest

# Long enough that our variables straddle the sectors of a copy: a torn copy is then a mix of old and new ones.
FOREIGN = (b"preboot=run distro; " + b"x" * 440, b"serial#=0815", b"odd=\xff\\'")
_NO_SYS_BLOCK = Path("/nowhere")


class Media(Protocol):
    """One sort of medium under the environment; a frozen value."""

    @property
    def scheme(self) -> Scheme:
        """How its copies are told apart."""

    @property
    def lines(self) -> tuple[str, ...]:
        """Of fw_env.config."""

    @property
    def copy_bytes(self) -> int:
        """Length of a copy."""

    def blank(self) -> Part:
        """The medium as the factory leaves it: both copies erased."""

    def raw(self, part: Part, index: int) -> bytes | None:
        """A copy's bytes on the medium, None where they cannot be read."""

    def area(self, running: Running, location: EnvLocation) -> Area:
        """The production code's way to a copy."""

    def save(self, running: Running, index: int, data: bytes) -> None:
        """As U-Boot writes a copy (and, on NOR flash, takes the other one's mark)."""


class BlockCalls:
    """`envcalls.Calls` over a disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._through: dict[int, bool] = {}

    def open(self, device: str, flags: int) -> int:
        fd = len(self._through) + 3
        self._through[fd] = bool(flags & os.O_DSYNC)
        return fd

    def close(self, fd: int) -> None:
        return

    def fstat(self, fd: int) -> os.stat_result:
        return os.stat_result((stat.S_IFBLK, 7, 7, 1, 0, 0, 0, 0, 0, 0))

    def end(self, fd: int) -> int:
        return len(self._disk.content)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return self._disk.read(offset, count)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        (self._disk.write_through if self._through[fd] else self._disk.write)(offset, bytes(data))
        return len(data)

    def fsync(self, fd: int) -> None:
        self._disk.flush()

    def forget(self, fd: int, offset: int, length: int) -> None:
        return


class _ChipCalls(BlockCalls):
    """`envcalls.Calls` over a flash chip."""

    def __init__(self, chip: Chip) -> None:
        super().__init__(Disk(Nature("none"), b""))
        self._chip = chip

    def fstat(self, fd: int) -> os.stat_result:
        return os.stat_result((stat.S_IFCHR, 8, 8, 1, 0, 0, 0, 0, 0, 0))

    def end(self, fd: int) -> int:
        return len(self._chip.content)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return self._chip.read(offset, count)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self._chip.program(offset, bytes(data))
        return len(data)

    def fsync(self, fd: int) -> None:
        raise AssertionError("/dev/mtdN has no cache")


class TreeCalls:
    """`envcalls.Calls` over a file system."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def open(self, device: str, flags: int) -> int:
        return self._tree.open(Path(device), flags, 0)

    def close(self, fd: int) -> None:
        self._tree.close(fd)

    def fstat(self, fd: int) -> os.stat_result:
        return os.stat_result((stat.S_IFREG, self._tree.inode(fd), 9, 1, 0, 0, self._tree.size(fd), 0, 0, 0))

    def end(self, fd: int) -> int:
        return self._tree.size(fd)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return self._tree.pread(fd, count, offset)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return self._tree.pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        self._tree.fsync(fd)

    def forget(self, fd: int, offset: int, length: int) -> None:
        return


@dataclass(frozen=True)
class OnBlock:
    """`Media`: ranges of a block device; one copy alone is a single environment."""

    atom: int
    copy_bytes: int
    copies: int = 2

    @property
    def scheme(self) -> Scheme:
        return Scheme.INCREMENTAL if self.copies == 2 else Scheme.SINGLE

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(f"/dev/env {number * self.copy_bytes:#x} {self.copy_bytes:#x}" for number in range(self.copies))

    def blank(self) -> Part:
        return Block.of(Nature("env", self.atom), b"\xff" * self.copy_bytes * self.copies)

    def raw(self, part: Part, index: int) -> bytes | None:
        assert isinstance(part, Block)
        return part.content[index * self.copy_bytes :][: self.copy_bytes]

    def area(self, running: Running, location: EnvLocation) -> Area:
        assert isinstance(running, Disk)
        calls: Calls = BlockCalls(running)
        return FileArea(location, _NO_SYS_BLOCK, calls=calls)

    def save(self, running: Running, index: int, data: bytes) -> None:
        assert isinstance(running, Disk)
        running.write_through(index * self.copy_bytes, data)


@dataclass(frozen=True)
class OnFlash:
    """`Media`: raw flash. spare: sectors that each copy may use beyond what it needs. bad: starts of bad sectors."""

    kind: int
    sector_bytes: int
    copy_bytes: int
    spare: int = 0
    bad: frozenset[int] = frozenset()

    @property
    def scheme(self) -> Scheme:
        return Scheme.BOOLEAN if self.kind == NOR else Scheme.INCREMENTAL

    @property
    def _sectors(self) -> int:
        return -(-self.copy_bytes // self.sector_bytes) + self.spare

    @property
    def lines(self) -> tuple[str, ...]:
        size = self._sectors * self.sector_bytes
        return tuple(f"/dev/mtd0 {number * size:#x} {self.copy_bytes:#x} {self.sector_bytes:#x} {self._sectors}" for number in range(2))

    def blank(self) -> Part:
        chip = ChipKind("flash", self.kind, self.sector_bytes, self.bad)
        return Flash.of(chip, b"\xff" * self._sectors * self.sector_bytes * 2)

    def _places(self, index: int) -> list[tuple[int, int]]:
        """(start, bytes of the environment in it) of a copy's sectors."""
        start, rest = index * self._sectors * self.sector_bytes, self.copy_bytes
        found = []
        while rest > 0:
            if start not in self.bad:
                found.append((start, min(rest, self.sector_bytes)))
                rest -= self.sector_bytes
            start += self.sector_bytes
        return found

    def raw(self, part: Part, index: int) -> bytes | None:
        assert isinstance(part, Flash)
        try:
            return b"".join(part.thaw().read(start, length) for start, length in self._places(index))
        except OSError:
            return None

    def area(self, running: Running, location: EnvLocation) -> Area:
        assert isinstance(running, Chip)
        return flash_area(location, running.ioctl, _ChipCalls(running))

    def save(self, running: Running, index: int, data: bytes) -> None:
        assert isinstance(running, Chip)
        done = 0
        for start, length in self._places(index):
            running.erase(start)
            running.program(start, data[done : done + length])
            done += length
        if self.scheme is Scheme.BOOLEAN:
            offset, byte = obsolete_byte()
            running.program(self._places(1 - index)[0][0] + offset, byte)


@dataclass(frozen=True)
class OnFiles:
    """`Media`: two files of a file system, rewritten in place."""

    copy_bytes: int
    scheme: Scheme = Scheme.INCREMENTAL
    _names = ("/boot/uboot.env", "/boot/uboot-redund.env")

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(f"{name} 0 {self.copy_bytes:#x}" for name in self._names)

    def blank(self) -> Part:
        return Files.with_files(dict.fromkeys(self._names, b"\xff" * self.copy_bytes), ("/", "/boot"))

    def raw(self, part: Part, index: int) -> bytes | None:
        assert isinstance(part, Files)
        return part.content[self._names[index]]

    def area(self, running: Running, location: EnvLocation) -> Area:
        assert isinstance(running, Tree)
        return FileArea(location, _NO_SYS_BLOCK, calls=TreeCalls(running))

    def save(self, running: Running, index: int, data: bytes) -> None:
        assert isinstance(running, Tree)
        fd = running.open(Path(self._names[index]), os.O_RDWR | os.O_DSYNC, 0)
        running.pwrite(fd, memoryview(data), 0)
        running.close(fd)


@dataclass(frozen=True)
class EnvStore(BootPlace):
    """`BootPlace`: U-Boot's environment."""

    media: Media
    traits = BootTraits(max_tries=99, counts_confirmed=True, falls_through=True, armed_in_store=True, keeps_verity=True)

    @property
    def single(self) -> bool:
        """See BootPlace."""
        return self.media.scheme is Scheme.SINGLE

    @property
    def rom(self) -> BootRom:
        """See BootPlace."""
        # That module needs this one.
        from tests.sim.bootrom import UBootRom

        return UBootRom(self)

    def erased(self) -> Part | None:
        """See BootPlace."""
        return self.media.blank()

    def state(self, part: Part) -> BootState | None:
        """See BootPlace."""
        index = self.current(part)
        copy = None if index is None else self.copies(part)[index]
        return None if copy is None else state_of(copy.environment, SLOTS)

    def blank(self) -> Part:
        """One valid copy with foreign variables, the other erased."""
        running = self.media.blank().thaw()
        self.media.save(running, 0, encode(Environment(FOREIGN), self.media.copy_bytes, self.media.scheme, 1))
        return running.freeze()

    def bootloader(self, running: Running, folder: Path) -> UBootStore:
        """The production store over the medium."""
        return UBootStore(
            config_of(self, folder),
            SLOTS,
            # Two explorations side by side are not two programs on one device.
            lock_path=folder / f"lock.{os.getpid()}",
            lock_wait_s=0.0,
            default_environment=folder / "none",
            find_area=lambda location: self.media.area(running, location),
        )

    def copies(self, part: Part) -> tuple[EnvCopy | None, ...]:
        """The copies as they lie on the medium, None where the checksum is wrong or the bytes cannot be read."""
        return _copies(self, part)

    def current(self, part: Part) -> int | None:
        """Index of the copy that counts, None where none is valid."""
        copies = self.copies(part)
        valid = [index for index, copy in enumerate(copies) if copy is not None]
        if len(valid) == 2:
            first, second = copies
            assert first is not None
            assert second is not None
            return choose(first.flag, second.flag, self.media.scheme)
        return valid[0] if valid else None

    def write(self, running: Running, part: Part, environment: Environment) -> None:
        """U-Boot replaces the environment of `part`, which has a valid copy, on the running medium."""
        at = self.current(part)
        assert at is not None
        copy = self.copies(part)[at]
        assert copy is not None
        data = encode(environment, self.media.copy_bytes, self.media.scheme, next_flag(copy.flag, self.media.scheme))
        self.media.save(running, 0 if self.single else 1 - at, data)

    def key(self, part: Part) -> bytes:
        """Two media with the same key go on alike: flags that count upwards are left out, which copy they make count is kept."""
        return _key(self, part)


@cache
def config_of(store: EnvStore, folder: Path) -> Path:
    """The fw_env.config."""
    path = folder / f"fw_env.{store.name}"
    path.write_text("".join(f"{line}\n" for line in store.media.lines))
    return path


@cache
def _copies(store: EnvStore, part: Part) -> tuple[EnvCopy | None, ...]:
    found: list[EnvCopy | None] = []
    for index in range(len(store.media.lines)):
        raw = store.media.raw(part, index)
        try:
            found.append(None if raw is None else decode(raw, store.media.scheme))
        except StoreUnreadable:
            found.append(None)
    return tuple(found)


@cache
def _key(store: EnvStore, part: Part) -> bytes:
    pieces = [store.name.encode(), str(store.current(part)).encode()]
    for index, copy in enumerate(store.copies(part)):
        if copy is None:
            pieces.append((store.media.raw(part, index) or b"unreadable")[5:])
        else:
            pieces.append(bytes([copy.flag]) if store.media.scheme is Scheme.BOOLEAN else b"")
            pieces += copy.environment.entries
    return digest(*pieces)


RAW = EnvStore("disk", OnBlock(512, 1536))
STORES: tuple[EnvStore, ...] = (
    RAW,
    EnvStore("4k-disk", OnBlock(4096, 4096)),
    EnvStore("nor", OnFlash(NOR, 1024, 2048)),
    EnvStore("nand", OnFlash(NAND, 2048, 1024, spare=1, bad=frozenset({0}))),
    EnvStore("files", OnFiles(1536)),
    EnvStore("single", OnBlock(512, 1536, copies=1)),
)
