"""Raw flash of the simulated machine: NOR and SLC NAND as /dev/mtdN offers them.

There is no cache: a cut hits the one erase or program that is going on. An erase may have done part of its sector and left bits that
read as neither; a program may have done some pages; a NAND page that was cut in either cannot be read (its ECC does not add up).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tests.sim.parts import OnEvent, quiet

NOR, NAND = 3, 4
PAGE_BYTES = 512
_MEMGETINFO, _MEMERASE, _MEMLOCK, _MEMUNLOCK, _MEMGETBADBLOCK = 0x80204D01, 0x40084D02, 0x40084D05, 0x40084D06, 0x40084D0B

_INTERNED: dict[tuple[object, ...], Flash] = {}


@dataclass(frozen=True)
class ChipKind:
    """kind: NOR or NAND. sector_bytes: what an erase takes. bad: starts of NAND sectors that are marked bad."""

    name: str
    kind: int
    sector_bytes: int
    bad: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Flight:
    """An erase (data is None) or a program that has begun."""

    offset: int
    length: int
    data: bytes | None


@dataclass(eq=False, frozen=True)
class Flash:
    """`parts.Part` of a chip. unreadable: starts of pages whose ECC does not add up."""

    kind: ChipKind
    content: bytes
    unreadable: frozenset[int] = frozenset()
    flight: Flight | None = None

    @staticmethod
    def of(kind: ChipKind, content: bytes, unreadable: frozenset[int] = frozenset(), flight: Flight | None = None) -> Flash:
        """The one object for these values."""
        key = (kind, content, unreadable, flight)
        found = _INTERNED.get(key)
        if found is None:
            found = _INTERNED[key] = Flash(*key)
        return found

    @cached_property
    def _ways(self) -> tuple[Flash, ...]:
        flight = self.flight
        if flight is None:
            return (self,)
        return (*self._torn(flight), _done(self, flight))

    def _torn(self, flight: Flight) -> Iterator[Flash]:
        start, end = flight.offset, flight.offset + flight.length
        old = self.content[start:end]
        new = b"\xff" * flight.length if flight.data is None else flight.data
        nand = self.kind.kind == NAND
        pages = range(0, flight.length, PAGE_BYTES)
        yield self._with(start, old, ())
        if flight.data is None:
            half = flight.length // 2
            # Bits that are on their way from 0 to 1 read as either.
            weak = bytes(byte | 0x5A for byte in old)
            if nand:
                yield self._with(start, old, pages)
                yield self._with(start, new[:half] + old[half:], [page for page in pages if page >= half])
                yield self._with(start, new, pages)
            else:
                for part in (new[:half] + old[half:], old[:half] + new[half:], weak, new[:half] + weak[half:]):
                    yield self._with(start, part, ())
            return
        for page in pages[:-1] if nand else pages:
            whole = new[: page + PAGE_BYTES] + old[page + PAGE_BYTES :]
            yield self._with(start, whole, [page] if nand else ())
            if page + PAGE_BYTES < flight.length:
                yield self._with(start, whole, ())
        if not nand:
            # A program clears bits one by one.
            yield self._with(
                start, new[: flight.length // 2] + bytes(a & (b | 0x5A) for a, b in zip(old, new, strict=True))[flight.length // 2 :], ()
            )

    def _with(self, start: int, data: bytes, unreadable: object) -> Flash:
        content = self.content[:start] + data + self.content[start + len(data) :]
        assert isinstance(unreadable, (tuple, list, range))
        broken = frozenset(start + page for page in unreadable) | self.unreadable
        return Flash.of(self.kind, content, broken)

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """See Part."""
        return (len(self._ways),) if self.flight else ()

    def after(self, picks: Iterator[int]) -> Flash:
        """See Part."""
        return self._ways[next(picks)] if self.flight else self

    def thaw(self, on_event: OnEvent = quiet) -> Chip:
        """See Part."""
        return Chip(self.kind, self.content, self.unreadable, on_event=on_event)


def _done(part: Flash, flight: Flight) -> Flash:
    data = b"\xff" * flight.length if flight.data is None else flight.data
    content = part.content[: flight.offset] + data + part.content[flight.offset + flight.length :]
    gone = range(flight.offset, flight.offset + flight.length)
    return Flash.of(part.kind, content, frozenset(page for page in part.unreadable if page not in gone))


@dataclass
class Chip:
    """`parts.Running` of a chip, with the ioctls of mtd-abi.h."""

    kind: ChipKind
    content: bytes
    unreadable: frozenset[int] = frozenset()
    flight: Flight | None = None
    on_event: OnEvent = field(default=quiet)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes; EBADMSG where a page cannot be read."""
        if any(offset < page + PAGE_BYTES and page < offset + count for page in self.unreadable):
            raise OSError(errno.EBADMSG, "Bad message")
        return self.content[offset : offset + count]

    def program(self, offset: int, data: bytes) -> None:
        """Clear bits."""
        old = self.content[offset : offset + len(data)]
        assert all(new & ~before == 0 for before, new in zip(old, data, strict=True)), "programmed without an erase"
        self._run(f"program {len(data)} at {offset}", Flight(offset, len(data), bytes(data)))

    def erase(self, offset: int) -> None:
        """Set a sector's bits."""
        assert offset % self.kind.sector_bytes == 0
        assert offset not in self.kind.bad
        self._run(f"erase {offset}", Flight(offset, self.kind.sector_bytes, None))

    def _run(self, what: str, flight: Flight) -> None:
        self.on_event(f"{self.kind.name}: {what}", False)
        self.flight = flight
        self.on_event(f"{self.kind.name}: {what} goes on", True)
        done = _done(Flash(self.kind, self.content, self.unreadable), flight)
        self.content, self.unreadable, self.flight = done.content, done.unreadable, None

    def ioctl(self, fd: int, request: int, buffer: bytearray) -> int:
        """`envflash.Ioctl`."""
        if request == _MEMGETINFO:
            page = 1 if self.kind.kind == NOR else PAGE_BYTES
            buffer[:] = struct.pack("@BIIIIIQ", self.kind.kind, 0, len(self.content), self.kind.sector_bytes, page, 0, 0)
        elif request == _MEMGETBADBLOCK:
            return int(struct.unpack("@q", buffer)[0] in self.kind.bad)
        elif request == _MEMERASE:
            self.erase(struct.unpack("@II", buffer)[0])
        else:
            assert request in (_MEMLOCK, _MEMUNLOCK)
        return 0

    def listen(self, on_event: OnEvent) -> None:
        """See Running."""
        self.on_event = on_event

    def freeze(self) -> Flash:
        """See Running."""
        return Flash.of(self.kind, self.content, self.unreadable, self.flight)
