"""Media of a simulated site, in simulated time: an ideal LAN, and the half-duplex bus of bus.py. What was sent when is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from tests.fleet.bus import Bus, Noise
from tests.fleet.clock import Clock

Hear = Callable[[bytes], float]
"""Takes a frame; returns the seconds that the node works on it."""

LAN_DELAY_S = 0.0005
BAUD = 115200
TURNAROUND_S = 0.003
# In larger pieces than a UART hands over: a site's simulation takes long enough.
_CHUNK_BYTES = 64
_COBS_BYTES = 254


@dataclass(frozen=True, slots=True)
class Sent:
    """One frame on the medium: when its first bit was there and when its last, and its bytes without COBS."""

    start_s: float
    end_s: float
    data: bytes


class Medium(Protocol):
    """What a simulated site needs of one. name: for people. base_s: patience of a round's steps on it."""

    name: str
    clock: Clock
    base_s: float

    def join(self, number: int, hear: Hear) -> None:
        """A node is there from now on."""

    def leave(self, number: int) -> None:
        """A node is off."""

    def send(self, number: int, data: bytes, *, urgent: bool) -> None:
        """A node has something to say."""

    def sent(self) -> Iterator[Sent]:
        """All that was sent so far, in order."""

    def wire_bytes(self, data: bytes) -> int:
        """Of a frame on this medium."""


@dataclass(slots=True)
class _Port:
    """A node on the LAN. waiting: frames that came while it was busy, until free_s. saying: what it says to the frame at hand."""

    number: int
    hear: Hear
    free_s: float
    waiting: deque[bytes] = field(default_factory=deque)
    saying: list[bytes] | None = None


class Lan:
    """Everybody hears everybody after LAN_DELAY_S. A node works on one frame after the other, and speaks when it is done."""

    def __init__(self) -> None:
        self.name = "LAN"
        self.clock = Clock()
        self.base_s = 1.0
        self._ports: dict[int, _Port] = {}
        self._sent: list[Sent] = []

    def join(self, number: int, hear: Hear) -> None:
        """See Medium."""
        self._ports[number] = _Port(number, hear, self.clock.now_s)

    def leave(self, number: int) -> None:
        """See Medium."""
        del self._ports[number]

    def send(self, number: int, data: bytes, *, urgent: bool) -> None:
        """See Medium."""
        port = self._ports.get(number)
        if port is not None and port.saying is not None:
            port.saying.append(data)
        elif port is not None:
            self.clock.at(port.free_s, partial(self._leaves, port, [data]))

    def _leaves(self, port: _Port, frames: list[bytes]) -> None:
        if self._ports.get(port.number) is not port:
            return
        now_s = self.clock.now_s
        self._sent += [Sent(now_s, now_s, data) for data in frames]
        for other in self._ports.values():
            if other is not port:
                self.clock.at(now_s + LAN_DELAY_S, partial(self._arrive, other, frames))

    def _arrive(self, port: _Port, frames: list[bytes]) -> None:
        idle = not port.waiting
        port.waiting += frames
        if idle:
            self.clock.at(port.free_s, partial(self._work, port))

    def _work(self, port: _Port) -> None:
        """One frame that waits; it is counted as waiting until it is done."""
        if self._ports.get(port.number) is not port:
            return
        port.saying = []
        took_s = port.hear(port.waiting[0])
        said, port.saying = port.saying, None
        port.free_s = self.clock.now_s + took_s
        if said:
            self.clock.at(port.free_s, partial(self._leaves, port, said))
        self.clock.at(port.free_s, partial(self._done, port))

    def _done(self, port: _Port) -> None:
        port.waiting.popleft()
        if port.waiting:
            self._work(port)

    def sent(self) -> Iterator[Sent]:
        """See Medium."""
        return iter(self._sent)

    def wire_bytes(self, data: bytes) -> int:
        """UDP payload alone."""
        return len(data)


class Serial:
    """The bus: real rings, real framing, turnarounds, every byte's time. tag: of the site."""

    def __init__(self, members: int, tag: bytes, *, seed: int = 0, noise: Noise | None = None) -> None:
        self.name = "serial"
        self.bus = Bus(members, BAUD, TURNAROUND_S, seed, noise, tag=tag, chunk_bytes=_CHUNK_BYTES)
        self.clock: Clock = self.bus
        self.base_s = 4.0

    def join(self, number: int, hear: Hear) -> None:
        """See Medium."""
        self.bus.join(number, at_s=self.bus.now_s).listen = hear

    def leave(self, number: int) -> None:
        """See Medium."""
        self.bus.leave(number)

    def send(self, number: int, data: bytes, *, urgent: bool) -> None:
        """See Medium."""
        station = self.bus.stations.get(number)
        if station is not None:
            station.put(data, self.bus.now_s, urgent=urgent)
            self.bus.at(self.bus.now_s, partial(self.bus.poke, station))

    def sent(self) -> Iterator[Sent]:
        """See Medium."""
        byte_s = self.bus.byte_s
        for burst in self.bus.bursts:
            start_s = burst.start_s
            for data in burst.frames:
                end_s = start_s + byte_s * self.wire_bytes(data)
                yield Sent(start_s, end_s, data)
                start_s = end_s

    def wire_bytes(self, data: bytes) -> int:
        """With COBS and the delimiter."""
        return len(data) + -(-len(data) // _COBS_BYTES) + 1
