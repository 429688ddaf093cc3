"""Modelled media of the simulated device: disks with a volatile write cache, a file system that keeps no promise it did not make.

Stricter than hardware: without a flush any subset of the writes may be lost or torn; a file's bytes are safe after its fsync alone,
a name (created, renamed, removed, a new folder) after the fsync of the folder that holds it alone.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_FOLDER = -1
_MAX_SUBSETS = 32

OnEvent = Callable[[str], None]


def _quiet(what: str) -> None:
    return


def torn(new: bytes, old: bytes) -> bytes:
    """The first half is new, the rest old."""
    half = len(new) // 2
    return new[:half] + old[half : len(new)]


@dataclass
class Disk:
    """Sectors and the writes that the cache still holds, in order. lies: acknowledges a flush that it does not do.

    deaf: sectors that silently keep what they hold once the cache has reached the medium.
    """

    name: str
    sectors: list[bytes]
    cache: list[tuple[int, bytes]] = field(default_factory=list)
    lies: bool = False
    deaf: frozenset[int] = frozenset()
    on_event: OnEvent = _quiet

    def read(self, number: int) -> bytes:
        """What the next reader sees: the newest write."""
        for at, data in reversed(self.cache):
            if at == number:
                return data
        return self.sectors[number]

    def write(self, number: int, data: bytes) -> None:
        """Put one sector into the cache."""
        self.on_event(f"{self.name}: write {number}")
        self.cache.append((number, data))

    def flush(self) -> None:
        """Bring the cache to the medium."""
        self.on_event(f"{self.name}: flush")
        if not self.lies:
            self.settle()

    def settle(self) -> None:
        """What the cache holds reaches the medium."""
        for number, data in self.cache:
            if number not in self.deaf:
                self.sectors[number] = data
        self.cache.clear()

    def clone(self) -> Disk:
        """An independent copy without the listener."""
        return Disk(self.name, list(self.sectors), list(self.cache), self.lies, self.deaf)


@dataclass
class Tree:
    """`abupdate.devices.durable.Files` over inodes and names; live is what programs see, durable what a cut leaves.

    lies: fsync of files and folders is acknowledged and not done.
    """

    live: dict[int, bytes] = field(default_factory=dict)
    durable: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=lambda: {"/": _FOLDER})
    kept: dict[str, int] = field(default_factory=lambda: {"/": _FOLDER})
    pending: list[tuple[str, dict[str, int | None]]] = field(default_factory=list)
    lies: bool = False
    on_event: OnEvent = _quiet
    _open: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    _locks: dict[int, int] = field(default_factory=dict)
    _next: int = 1

    def mkdir(self, path: Path, mode: int) -> None:
        """See Files."""
        if str(path) in self.names:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        self._inside(path)
        self.on_event(f"mkdir {path.name}")
        self._rename({str(path): _FOLDER}, path)

    def open(self, path: Path, flags: int, mode: int) -> int:
        """See Files."""
        self._inside(path)
        inode = self.names.get(str(path))
        if inode is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            self.on_event(f"create {path.name}")
            self._next += 1
            inode = self._next
            self.live[inode] = self.durable[inode] = b""
            self._rename({str(path): inode}, path)
        elif flags & os.O_TRUNC and self.live[inode]:
            self.on_event(f"truncate {path.name}")
            self.live[inode] = b""
        self._next += 1
        self._open[self._next] = (str(path), inode, 0)
        return self._next

    def read(self, descriptor: int, count: int) -> bytes:
        """See Files."""
        path, inode, at = self._open[descriptor]
        data = self.live[inode][at : at + count]
        self._open[descriptor] = (path, inode, at + len(data))
        return data

    def write(self, descriptor: int, data: memoryview) -> int:
        """See Files; short like a kernel may be: at most half of what is asked, so that the caller must go on."""
        path, inode, at = self._open[descriptor]
        count = max(len(data) // 2, min(len(data), 32))
        self.on_event(f"write {Path(path).name}")
        self.live[inode] = self.live[inode][:at] + bytes(data[:count])
        self._open[descriptor] = (path, inode, at + count)
        return count

    def fsync(self, descriptor: int) -> None:
        """See Files."""
        path, inode, _ = self._open[descriptor]
        self.on_event(f"fsync {Path(path).name or '/'}")
        if self.lies:
            return
        if inode != _FOLDER:
            self.durable[inode] = self.live[inode]
            return
        rest = []
        for folder, change in self.pending:
            if folder == path:
                _apply(self.kept, change)
            else:
                rest.append((folder, change))
        self.pending = rest

    def flock(self, descriptor: int) -> None:
        """See Files."""
        inode = self._open[descriptor][1]
        if self._locks.get(inode, descriptor) != descriptor:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        self._locks[inode] = descriptor

    def close(self, descriptor: int) -> None:
        """See Files."""
        inode = self._open.pop(descriptor)[1]
        if self._locks.get(inode) == descriptor:
            del self._locks[inode]

    def rename(self, path: Path, target: Path) -> None:
        """See Files."""
        if str(path) not in self.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        if path.parent != target.parent:
            raise AssertionError("renames between folders are not modelled")
        self.on_event(f"rename {path.name} {target.name}")
        self._rename({str(path): None, str(target): self.names[str(path)]}, path)

    def unlink(self, path: Path) -> None:
        """See Files."""
        if str(path) not in self.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        self.on_event(f"unlink {path.name}")
        self._rename({str(path): None}, path)

    def content(self) -> dict[str, bytes]:
        """Durable files by path."""
        return {name: self.durable[inode] for name, inode in self.kept.items() if inode != _FOLDER}

    def seen(self) -> dict[str, bytes]:
        """Files by path as programs see them."""
        return {name: self.live[inode] for name, inode in self.names.items() if inode != _FOLDER}

    def dirty(self) -> list[int]:
        """Inodes whose bytes are not all on the medium."""
        return [inode for inode, data in self.live.items() if data is not self.durable[inode] and data != self.durable[inode]]

    def clone(self) -> Tree:
        """An independent copy without the listener; descriptors and locks are gone, as with the process that held them."""
        return Tree(dict(self.live), dict(self.durable), dict(self.names), dict(self.kept), list(self.pending), self.lies, _next=self._next)

    def _inside(self, path: Path) -> None:
        if self.names.get(str(path.parent)) != _FOLDER:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    def _rename(self, change: dict[str, int | None], path: Path) -> None:
        _apply(self.names, change)
        self.pending.append((str(path.parent), change))


def _apply(names: dict[str, int], change: dict[str, int | None]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


@dataclass
class Media:
    """Everything that outlives a power cut: the raw area of the environment, the slots' images, the data partition."""

    env: Disk
    slots: dict[str, Disk]
    files: Tree

    def listen(self, on_event: OnEvent) -> None:
        """Call before every change and every flush; the listener may raise."""
        for disk in (self.env, *self.slots.values()):
            disk.on_event = on_event
        self.files.on_event = on_event

    def clone(self) -> Media:
        """An independent copy, cache and all."""
        return Media(self.env.clone(), {name: disk.clone() for name, disk in self.slots.items()}, self.files.clone())

    def survivors(self) -> Iterator[Media]:
        """What a cut now may leave: every choice of what of the unflushed was lost, torn or whole, seeded samples where there are many."""
        disks = (self.env, *self.slots.values())
        choices = [3] * sum(len(disk.cache) for disk in disks)
        choices += [4] * len(self.files.dirty()) + [2] * len(self.files.pending)
        for picks in _picks(choices):
            yield self._after(iter(picks))

    def _after(self, picks: Iterator[int]) -> Media:
        after = self.clone()
        for disk in (after.env, *after.slots.values()):
            for number, data in disk.cache:
                pick = next(picks)
                if pick and number not in disk.deaf:
                    disk.sectors[number] = data if pick == 2 else torn(data, disk.sectors[number].ljust(len(data), b"\0"))
            disk.cache.clear()
        tree = after.files
        for inode in tree.dirty():
            data = tree.live[inode]
            tree.durable[inode] = (tree.durable[inode], data[: len(data) // 2], bytes(len(data)), data)[next(picks)]
        for _, change in tree.pending:
            if next(picks):
                _apply(tree.kept, change)
        for name in sorted(tree.kept) if tree.pending else ():
            if name != "/" and (name.rpartition("/")[0] or "/") not in tree.kept:
                del tree.kept[name]  # what lies in a folder that is gone
        files = {inode: tree.durable[inode] for inode in tree.kept.values() if inode != _FOLDER}
        after.files = Tree(dict(files), files, dict(tree.kept), tree.kept, lies=tree.lies, _next=tree._next)
        return after


def _picks(choices: list[int]) -> Iterator[tuple[int, ...]]:
    total = 1
    for count in choices:
        total *= count
    if total <= _MAX_SUBSETS:
        yield from itertools.product(*map(range, choices))
        return
    whole = tuple(count - 1 for count in choices)
    found = {(0,) * len(choices), whole}
    for at, count in enumerate(choices):
        found.add(whole[:at] + (0,) * (len(choices) - at))
        found |= {whole[:at] + (pick,) + (0,) * (len(choices) - at - 1) for pick in range(1, count)}
        found |= {(*whole[:at], pick, *whole[at + 1 :]) for pick in range(count - 1)}
        found |= {(0,) * at + (pick,) + (0,) * (len(choices) - at - 1) for pick in range(1, count)}
    chance = random.Random(len(choices))
    tries = 0
    while len(found) < 2 * _MAX_SUBSETS and tries < 4 * _MAX_SUBSETS:
        tries += 1
        found.add(tuple(chance.randrange(count) for count in choices))
    yield from sorted(found)
