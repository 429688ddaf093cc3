"""Media of a simulated site, in simulated time: an ideal LAN, and the half-duplex bus of tests/fleet/bus.py. What was sent when is kept."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

Hear = Callable[[bytes], float]
"""Takes a frame; returns the seconds that the node works on it."""

LAN_DELAY_S = 0.0005


@dataclass(frozen=True, slots=True)
class Sent:
    """One frame on the medium: when its first bit was there and when its last, and its bytes without COBS."""

    start_s: float
    end_s: float
    data: bytes


class Medium(Protocol):
    """What a simulated site needs of one. name: for people."""

    name: str

    @property
    def now_s(self) -> float:
        """Simulated seconds."""

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Let something happen then."""

    def run(self, until_s: float) -> None:
        """Let time pass."""

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
    hear: Hear
    free_s: float = 0.0


class Lan:
    """Everybody hears everybody after LAN_DELAY_S. A node that works on a frame hears the next one when it is done."""

    def __init__(self) -> None:
        self.name = "LAN"
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._ports: dict[int, _Port] = {}
        self._sent: list[Sent] = []

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """See Medium."""
        heapq.heappush(self._events, (max(when_s, self.now_s), next(self._number), what))

    def run(self, until_s: float) -> None:
        """See Medium."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self._events)
            what()
        self.now_s = until_s

    def join(self, number: int, hear: Hear) -> None:
        """See Medium."""
        self._ports[number] = _Port(hear, self.now_s)

    def leave(self, number: int) -> None:
        """See Medium."""
        del self._ports[number]

    def send(self, number: int, data: bytes, *, urgent: bool) -> None:
        """See Medium. A frame leaves when what its node is at is done."""
        port = self._ports.get(number)
        self.at(max(self.now_s, port.free_s if port else 0.0), partial(self._leaves, number, data))

    def _leaves(self, number: int, data: bytes) -> None:
        self._sent.append(Sent(self.now_s, self.now_s, data))
        for other in list(self._ports):
            if other != number:
                self.at(self.now_s + LAN_DELAY_S, partial(self._arrives, other, data))

    def _arrives(self, number: int, data: bytes) -> None:
        port = self._ports.get(number)
        if port is None:
            return
        if self.now_s < port.free_s:
            self.at(port.free_s, partial(self._arrives, number, data))
            return
        port.free_s = self.now_s + port.hear(data)

    def sent(self) -> Iterator[Sent]:
        """See Medium."""
        return iter(self._sent)

    def wire_bytes(self, data: bytes) -> int:
        """UDP payload alone."""
        return len(data)
