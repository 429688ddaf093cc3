"""The half-duplex bus of tests/fleet/bus.py as a medium of a simulated site: real rings, real framing, turnarounds, every byte's time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tests.bench.fleetmedia import Hear, Sent
from tests.fleet.bus import Bus

# In larger pieces than a UART hands over: a site's simulation takes long enough.
_CHUNK_BYTES = 64
_COBS_BYTES = 254


class Serial:
    """See fleetmedia.Medium. tag: of the site."""

    def __init__(self, members: int, tag: bytes, baud: int = 115200, turnaround_s: float = 0.003) -> None:
        self.name = f"serial, {baud} baud, {turnaround_s * 1000:g} ms"
        self._bus = Bus(members, baud, turnaround_s, tag=tag, chunk_bytes=_CHUNK_BYTES)

    @property
    def now_s(self) -> float:
        """See Medium."""
        return self._bus.now_s

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """See Medium."""
        self._bus.at(when_s, what)

    def run(self, until_s: float) -> None:
        """See Medium."""
        self._bus.run(until_s)

    def join(self, number: int, hear: Hear) -> None:
        """See Medium."""
        self._bus.join(number, at_s=self.now_s).listen = hear

    def leave(self, number: int) -> None:
        """See Medium."""
        self._bus.leave(number)

    def send(self, number: int, data: bytes, *, urgent: bool) -> None:
        """See Medium."""
        station = self._bus.stations.get(number)
        if station is not None:
            station.put(data, self.now_s, urgent=urgent)
            self.at(self.now_s, partial(self._bus.poke, station))

    def sent(self) -> Iterator[Sent]:
        """See Medium."""
        byte_s = self._bus.byte_s
        for burst in self._bus.bursts:
            start_s = burst.start_s
            for data in burst.frames:
                end_s = start_s + byte_s * self.wire_bytes(data)
                yield Sent(start_s, end_s, data)
                start_s = end_s

    def wire_bytes(self, data: bytes) -> int:
        """With COBS and the delimiter."""
        return len(data) + -(-len(data) // _COBS_BYTES) + 1
