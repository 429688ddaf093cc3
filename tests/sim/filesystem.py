"""A file system that keeps no promise it did not make: bytes are safe after the file's fsync, names after the fsync of their folder.

`Tree` implements `abupdate.durable.Files`; live is what programs see, durable what a cut leaves.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.sim.parts import OnEvent, mixes, quiet

FOLDER = -1
_UNIT_BYTES = 512

Change = tuple[tuple[str, int | None], ...]
Names = tuple[tuple[str, int], ...]
Inodes = tuple[tuple[int, bytes], ...]

_INTERNED: dict[tuple[object, ...], Files] = {}


@dataclass(eq=False, frozen=True)
class Files:
    """`parts.Part` of a file system. kept: durable names; pending: changes of names, by folder, that are not durable.

    touched: of inodes whose bytes are not durable, the lowest offset that was written or cut off since they were.
    """

    names: Names
    kept: Names
    live: Inodes
    durable: Inodes
    pending: tuple[tuple[str, Change], ...] = ()
    lies: bool = False
    touched: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(
        names: Names,
        kept: Names,
        live: Inodes,
        durable: Inodes,
        pending: tuple[tuple[str, Change], ...] = (),
        lies: bool = False,
        touched: tuple[tuple[int, int], ...] = (),
    ) -> Files:
        """The one object for these values."""
        key = (names, kept, live, durable, pending, lies, touched)
        found = _INTERNED.get(key)
        if found is None:
            found = _INTERNED[key] = Files(*key)
        return found

    @staticmethod
    def with_files(content: dict[str, bytes], folders: tuple[str, ...] = ("/",), *, lies: bool = False) -> Files:
        """Everything durable; inodes numbered by name."""
        numbers = {name: number for number, name in enumerate(sorted(content), 1)}
        names = tuple(sorted([*((folder, FOLDER) for folder in folders), *numbers.items()]))
        inodes = tuple((numbers[name], content[name]) for name in sorted(content))
        return Files.of(names, names, inodes, inodes, lies=lies)

    @cached_property
    def content(self) -> dict[str, bytes]:
        """Durable files by path."""
        durable = dict(self.durable)
        return {name: durable[inode] for name, inode in self.kept if inode != FOLDER}

    @cached_property
    def seen(self) -> dict[str, bytes]:
        """Files by path as programs see them."""
        live = dict(self.live)
        return {name: live[inode] for name, inode in self.names if inode != FOLDER}

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """Durable folders."""
        return tuple(name for name, inode in self.kept if inode == FOLDER)

    @cached_property
    def _dirty(self) -> tuple[tuple[int, tuple[bytes, ...]], ...]:
        """(inode, what a cut may leave of its bytes)."""
        durable, touched = dict(self.durable), dict(self.touched)
        found: list[tuple[int, tuple[bytes, ...]]] = []
        for inode, data in self.live:
            old, same = durable[inode], touched.get(inode, 0)
            if old == data:
                continue
            if same:
                ways = tuple(data[:same] + end for end in _ends(old[same:], data[same:]))
            elif len(old) == len(data):
                ways = mixes(old, data, _UNIT_BYTES)
            else:
                half = len(data) // 2
                ways = tuple(dict.fromkeys((old, data[:half], bytes(len(data)), bytes(half) + data[half:], data)))
            found.append((inode, ways))
        return tuple(found)

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """See Part."""
        return (*(len(ways) for _, ways in self._dirty), *(2 for _ in self.pending))

    def after(self, picks: Iterator[int]) -> Files:
        """See Part."""
        durable = dict(self.durable)
        for inode, ways in self._dirty:
            durable[inode] = ways[next(picks)]
        kept = dict(self.kept)
        for _, change in self.pending:
            if next(picks):
                _apply(kept, change)
        for name in sorted(kept):
            if name != "/" and (name.rpartition("/")[0] or "/") not in kept:
                del kept[name]  # what lies in a folder that is gone
        content = {name: durable[inode] for name, inode in kept.items() if inode != FOLDER}
        return Files.with_files(content, tuple(name for name, inode in kept.items() if inode == FOLDER), lies=self.lies)

    def thaw(self, on_event: OnEvent = quiet) -> Tree:
        """See Part."""
        pending = [(folder, dict(change)) for folder, change in self.pending]
        return Tree(
            dict(self.live), dict(self.durable), dict(self.names), dict(self.kept), pending, self.lies, on_event, dict(self.touched)
        )


@dataclass
class Tree:
    """`parts.Running` of a file system. lies: fsync of files and folders is acknowledged and not done."""

    live: dict[int, bytes] = field(default_factory=dict)
    durable: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=lambda: {"/": FOLDER})
    kept: dict[str, int] = field(default_factory=lambda: {"/": FOLDER})
    pending: list[tuple[str, dict[str, int | None]]] = field(default_factory=list)
    lies: bool = False
    on_event: OnEvent = field(default=quiet)
    touched: dict[int, int] = field(default_factory=dict)
    _open: dict[int, tuple[str, int, int, int]] = field(default_factory=dict)
    _locks: dict[int, int] = field(default_factory=dict)
    _next: int = 100

    def mkdir(self, path: Path, mode: int) -> None:
        """See Files."""
        if str(path) in self.names:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        self._inside(path)
        self.on_event(f"mkdir {path.name}", False)
        self._rename({str(path): FOLDER}, path)

    def open(self, path: Path, flags: int, mode: int) -> int:
        """See Files."""
        self._inside(path)
        inode = self.names.get(str(path))
        if inode is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            self.on_event(f"create {path.name}", False)
            inode = max(self.live, default=0) + 1
            self.live[inode] = self.durable[inode] = b""
            self._rename({str(path): inode}, path)
        elif flags & os.O_TRUNC and self.live[inode]:
            self.on_event(f"truncate {path.name}", False)
            self.live[inode] = b""
            self.touched[inode] = 0
        self._next += 1
        self._open[self._next] = (str(path), inode, 0, flags)
        return self._next

    def read(self, descriptor: int, count: int) -> bytes:
        """See Files."""
        path, inode, at, flags = self._open[descriptor]
        data = self.live[inode][at : at + count]
        self._open[descriptor] = (path, inode, at + len(data), flags)
        return data

    def write(self, descriptor: int, data: memoryview) -> int:
        """See Files; short like a kernel may be: at most half of what is asked, so that the caller must go on."""
        path, inode, at, flags = self._open[descriptor]
        at = len(self.live[inode]) if flags & os.O_APPEND else at
        count = max(len(data) // 2, min(len(data), 256))
        self._put(path, inode, at, bytes(data[:count]), flags)
        self._open[descriptor] = (path, inode, at + count, flags)
        return count

    def pread(self, descriptor: int, count: int, offset: int) -> bytes:
        """Read, wherever the last call ended."""
        return self.live[self._open[descriptor][1]][offset : offset + count]

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write in place; durable on return where the file was opened with O_DSYNC."""
        path, inode, _, flags = self._open[descriptor]
        self._put(path, inode, offset, bytes(data), flags)
        return len(data)

    def size(self, descriptor: int) -> int:
        """Length of a file."""
        return len(self.live[self._open[descriptor][1]])

    def inode(self, descriptor: int) -> int:
        """Number of a file."""
        return self._open[descriptor][1]

    def _put(self, path: str, inode: int, at: int, data: bytes, flags: int) -> None:
        self.on_event(f"write {Path(path).name}", False)
        old = self.live[inode]
        self._touch(inode, at)
        self.live[inode] = old[:at] + data + old[at + len(data) :]
        if flags & os.O_DSYNC:
            self.on_event(f"write {Path(path).name} reaches the medium", True)
            if not self.lies:
                self.durable[inode] = self.live[inode]

    def _touch(self, inode: int, at: int) -> None:
        """Note where a change begins. What lies before it and is durable stays so whatever happens to the change."""
        at = min(at, len(self.live[inode]))
        self.touched[inode] = at if self.live[inode] == self.durable[inode] else min(self.touched[inode], at)

    def ftruncate(self, descriptor: int, length: int) -> None:
        """See Files."""
        path, inode, _, _ = self._open[descriptor]
        self.on_event(f"truncate {Path(path).name}", False)
        self._touch(inode, length)
        self.live[inode] = self.live[inode][:length].ljust(length, b"\0")

    def fdatasync(self, descriptor: int) -> None:
        """See Files."""
        self.fsync(descriptor)

    def fsync(self, descriptor: int) -> None:
        """See Files."""
        path, inode, _, _ = self._open[descriptor]
        self.on_event(f"fsync {Path(path).name or '/'}", False)
        if self.lies:
            return
        if inode != FOLDER:
            self.durable[inode] = self.live[inode]
            return
        rest = []
        for folder, change in self.pending:
            if folder == path:
                _apply(self.kept, tuple(change.items()))
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
        self.on_event(f"rename {path.name} {target.name}", False)
        self._rename({str(path): None, str(target): self.names[str(path)]}, path)

    def unlink(self, path: Path) -> None:
        """See Files."""
        if str(path) not in self.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        self.on_event(f"unlink {path.name}", False)
        self._rename({str(path): None}, path)

    def listen(self, on_event: OnEvent) -> None:
        """See Running."""
        self.on_event = on_event

    def freeze(self) -> Files:
        """See Running. Inodes that nobody names any more are gone."""
        used = {*self.names.values(), *self.kept.values(), *(inode for _, change in self.pending for inode in change.values())}
        inodes = sorted(inode for inode in self.live if inode in used)
        return Files.of(
            tuple(sorted(self.names.items())),
            tuple(sorted(self.kept.items())),
            tuple((inode, self.live[inode]) for inode in inodes),
            tuple((inode, self.durable[inode]) for inode in inodes),
            tuple((folder, tuple(change.items())) for folder, change in self.pending),
            self.lies,
            tuple((inode, self.touched[inode]) for inode in inodes if self.live[inode] != self.durable[inode]),
        )

    def _inside(self, path: Path) -> None:
        if str(path) != "/" and self.names.get(str(path.parent)) != FOLDER:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    def _rename(self, change: dict[str, int | None], path: Path) -> None:
        _apply(self.names, tuple(change.items()))
        self.pending.append((str(path.parent), change))


def _ends(old: bytes, new: bytes) -> tuple[bytes, ...]:
    """What may stand behind the untouched bytes where an end was written or cut off: each of four pieces old (zeros where there was
    nothing) or new, and the file of its old length, its new one, or one that ends with a piece between; old first, new last."""
    step = max(1, -(-max(len(old), len(new)) // 4))
    lengths = {len(old), len(new), *range(len(old), len(new), step)}
    found = {old: None}
    for length in lengths:
        pieces = [
            (old.ljust(length, b"\0")[at : min(at + step, length)], new.ljust(length, b"\0")[at : min(at + step, length)])
            for at in range(0, length, step)
        ]
        found.update(dict.fromkeys(b"".join(picks) for picks in itertools.product(*pieces)))
    found.pop(new, None)
    return (*found, new)


def _apply(names: dict[str, int], change: Change) -> None:
    for name, inode in change:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode
