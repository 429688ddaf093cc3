"""Block devices of the simulated machine: a volatile write cache over a medium whose sectors can tear.

Stricter than hardware: without a flush any subset of the writes may be lost, torn or kept, in any order. A physical sector of `atom` bytes
(512, or 4096 with logical ones of 512) ends up old, new, or as a mix of its eighths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tests.sim.parts import OnEvent, mixes, quiet

_INTERNED: dict[tuple[object, ...], Block] = {}


@dataclass(frozen=True)
class Nature:
    """What a disk is like. atom: bytes of a physical sector. lies: acknowledges a flush that it does not do.

    deaf: offsets of sectors that silently keep what they hold once the cache has reached the medium. whole: no sector is ever torn.
    """

    name: str
    atom: int = 4096
    lies: bool = False
    deaf: frozenset[int] = frozenset()
    whole: bool = False


@dataclass(eq=False, frozen=True)
class Block:
    """`parts.Part` of a block device. cache: writes that are not durable, (offset, bytes), in order."""

    nature: Nature
    content: bytes
    cache: tuple[tuple[int, bytes], ...] = ()

    @staticmethod
    def of(nature: Nature, content: bytes, cache: tuple[tuple[int, bytes], ...] = ()) -> Block:
        """The one object for these values."""
        key = (nature, content, cache)
        found = _INTERNED.get(key)
        if found is None:
            found = _INTERNED[key] = Block(*key)
        return found

    @cached_property
    def _pieces(self) -> tuple[tuple[int, tuple[bytes, ...]], ...]:
        """(offset, what may stand there) of each physical sector that the cache would change."""
        atom = self.nature.atom
        found: list[tuple[int, tuple[bytes, ...]]] = []
        for offset, data in self.cache:
            for start in range(offset - offset % atom, offset + len(data), atom):
                first, last = max(start, offset), min(start + atom, offset + len(data))
                if start in self.nature.deaf:
                    continue
                old, new = self.content[first:last], data[first - offset : last - offset]
                if old != new:
                    found.append((first, (old, new) if self.nature.whole else mixes(old, new, atom // 8)))
                elif self._twice(first, last):
                    found.append((first, (old, new)))
        return tuple(found)

    def _twice(self, first: int, last: int) -> bool:
        """More than one write in the cache touches this range."""
        return sum(at < last and first < at + len(data) for at, data in self.cache) > 1

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """See Part."""
        return tuple(len(ways) for _, ways in self._pieces)

    def after(self, picks: Iterator[int]) -> Block:
        """See Part."""
        content = bytearray(self.content)
        for offset, ways in self._pieces:
            pick = next(picks)
            if pick:
                content[offset : offset + len(ways[pick])] = ways[pick]
        return Block.of(self.nature, bytes(content))

    def thaw(self, on_event: OnEvent = quiet) -> Disk:
        """See Part."""
        return Disk(self.nature, self.content, list(self.cache), on_event)


@dataclass
class Disk:
    """`parts.Running` of a block device."""

    nature: Nature
    content: bytes
    cache: list[tuple[int, bytes]] = field(default_factory=list)
    on_event: OnEvent = field(default=quiet)

    def read(self, offset: int, count: int) -> bytes:
        """What the next reader sees: the newest writes."""
        seen = self.content[offset : offset + count]
        for at, data in self.cache:
            first, last = max(at, offset), min(at + len(data), offset + len(seen))
            if first < last:
                seen = seen[: first - offset] + data[first - at : last - at] + seen[last - offset :]
        return seen

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes into the cache."""
        assert offset + len(data) <= len(self.content)
        self.on_event(f"{self.nature.name}: write {len(data)} at {offset}", False)
        self.cache.append((offset, bytes(data)))

    def write_through(self, offset: int, data: bytes) -> None:
        """One call that returns when the bytes are on the medium."""
        self.write(offset, data)
        self.on_event(f"{self.nature.name}: write at {offset} reaches the medium", True)
        self.settle()

    def flush(self) -> None:
        """Bring the cache to the medium."""
        self.on_event(f"{self.nature.name}: flush", False)
        self.settle()

    def settle(self) -> None:
        """What the cache holds reaches the medium."""
        if self.nature.lies or not self.cache:
            return
        content = bytearray(self.content)
        atom = self.nature.atom
        for offset, data in self.cache:
            for start in range(offset - offset % atom, offset + len(data), atom):
                first, last = max(start, offset), min(start + atom, offset + len(data))
                if start not in self.nature.deaf:
                    content[first:last] = data[first - offset : last - offset]
        self.content = bytes(content)
        self.cache.clear()

    def listen(self, on_event: OnEvent) -> None:
        """See Running."""
        self.on_event = on_event

    def freeze(self) -> Block:
        """See Running."""
        return Block.of(self.nature, self.content, tuple(self.cache))
