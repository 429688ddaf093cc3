"""A FAT file system of one folder as a power cut leaves it: `Fat` is the frozen medium, `FatDisk` the running one.

`FatDisk` implements bootloaders/espfiles.py. What has not been flushed, a cut leaves in any of these ways, each file for itself:

    made      not there; there and empty; as long as it is to be, holding zeros or what a file held that was removed before;
              half of it written; whole
    rewritten any mixture of old and new sectors, of the old length or the new one, zeros where it grows
    patched   one sector: before or after
    removed   there as before; there and empty; gone
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.sim.parts import OnEvent, mixes, quiet

SECTOR_BYTES = 512
_FREED = 2  # of the newest contents that were given up: more make nothing happen that these do not

Ways = tuple[bytes | None, ...]

_INTERNED: dict[tuple[object, ...], Fat] = {}


@dataclass(eq=False, frozen=True)
class Fat:
    """`parts.Part`. kept: durable files by name; pending: of names that are not durable, what a cut may leave, whole last.

    freed: contents that clusters may still hold.
    """

    kept: tuple[tuple[str, bytes], ...]
    pending: tuple[tuple[str, Ways], ...] = ()
    freed: tuple[bytes, ...] = ()

    @staticmethod
    def of(kept: Mapping[str, bytes], pending: Mapping[str, Ways] | None = None, freed: tuple[bytes, ...] = ()) -> Fat:
        """The one object for these values."""
        key = (tuple(sorted(kept.items())), tuple(sorted((pending or {}).items(), key=lambda item: item[0])), freed)
        found = _INTERNED.get(key)
        if found is None:
            found = _INTERNED[key] = Fat(*key)
        return found

    @property
    def content(self) -> dict[str, bytes]:
        """Durable files by name."""
        return dict(self.kept)

    @property
    def choices(self) -> tuple[int, ...]:
        """See Part."""
        return tuple(len(ways) for _, ways in self.pending)

    def after(self, picks: Iterator[int]) -> Fat:
        """See Part."""
        kept = self.content
        for name, ways in self.pending:
            _set(kept, name, ways[next(picks)])
        return Fat.of(kept, freed=self.freed)

    def thaw(self, on_event: OnEvent = quiet) -> FatDisk:
        """See Part."""
        return FatDisk(self.content, dict(self.pending), self.freed, on_event)


@dataclass
class FatDisk:
    """`parts.Running`, and `EspFiles` of every folder at once: names count, folders do not."""

    kept: dict[str, bytes]
    pending: dict[str, Ways] = field(default_factory=dict)
    freed: tuple[bytes, ...] = ()
    on_event: OnEvent = field(default=quiet)

    def names(self, folder: Path) -> tuple[str, ...]:
        """See EspFiles."""
        return tuple(sorted(self._live()))

    def read(self, path: Path, limit: int) -> bytes:
        """See EspFiles."""
        return self._there(path)[:limit]

    def create(self, path: Path, data: bytes) -> None:
        """See EspFiles."""
        if path.name in self._live():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self.on_event(f"create {path.name}", False)
        self.pending[path.name] = (None, b"")
        self.on_event(f"write {path.name}", False)
        half = len(data) // 2 // SECTOR_BYTES * SECTOR_BYTES
        stale = [content[: len(data)].ljust(len(data), b"\0") for content in self.freed]
        ways = (None, b"", bytes(len(data)), *stale, data[:half] + bytes(len(data) - half), bytes(half) + data[half:])
        self.pending[path.name] = _ways(*ways, last=data)
        self._flushed(path.name)

    def rewrite(self, path: Path, data: bytes) -> None:
        """See EspFiles."""
        old = self._there(path)
        self.on_event(f"rewrite {path.name}", False)
        length = min(len(old), len(data))
        rests = (old[length:], data[length:], bytes(len(data) - length))
        torn = [mix + rest for mix in mixes(old[:length], data[:length], SECTOR_BYTES) for rest in rests]
        self.pending[path.name] = _ways(*self.pending.get(path.name, (old,)), *torn, last=data)
        self._flushed(path.name)

    def patch(self, path: Path, data: bytes) -> None:
        """See EspFiles."""
        old = self._there(path)
        assert len(data) <= SECTOR_BYTES <= len(old), "a patch is of the first sector of a file that has one"
        self.on_event(f"patch {path.name}", False)
        self.pending[path.name] = _ways(*self.pending.get(path.name, (old,)), last=data + old[len(data) :])
        # One system call until it is on the medium: nobody is killed between.
        self.on_event(f"patch of {path.name} reaches the medium", True)
        self.kept = self._live()
        self.pending = {}

    def remove(self, path: Path) -> None:
        """See EspFiles."""
        old = self._there(path)
        self.on_event(f"remove {path.name}", False)
        self.pending[path.name] = _ways(*self.pending.get(path.name, (old,)), b"", last=None)
        self._free(old)
        self._flushed(path.name)

    def flush(self, folder: Path) -> None:
        """See EspFiles."""
        if self.pending:
            self._flushed("everything")

    def listen(self, on_event: OnEvent) -> None:
        """See Running."""
        self.on_event = on_event

    def freeze(self) -> Fat:
        """See Running."""
        return Fat.of(self.kept, self.pending, self.freed)

    def _flushed(self, what: str) -> None:
        self.on_event(f"flush {what}", False)
        self.kept = self._live()
        self.pending = {}

    def _free(self, content: bytes) -> None:
        self.freed = tuple(dict.fromkeys((content, *self.freed)))[:_FREED]

    def _live(self) -> dict[str, bytes]:
        live = dict(self.kept)
        for name, ways in self.pending.items():
            _set(live, name, ways[-1])
        return live

    def _there(self, path: Path) -> bytes:
        live = self._live()
        if path.name not in live:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return live[path.name]


def _ways(*ways: bytes | None, last: bytes | None) -> Ways:
    return (*dict.fromkeys(way for way in ways if way != last), last)


def _set(files: dict[str, bytes], name: str, content: bytes | None) -> None:
    if content is None:
        files.pop(name, None)
    else:
        files[name] = content
