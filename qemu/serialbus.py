"""A serial bus of emulated devices: a half-duplex line that all share, on which bytes take their time, collide, and suffer from noise.

Each device's adapter is a PCI serial port whose character device connects to the hub. QEMU's port sends at once whatever baud it is set
to, so it is the hub that makes a byte take as long as on a line: what a device sends begins when the hub gets it, or behind what that
device has sent before. Where two send at the same time, what either says is garbled where both get to, and a sender hears nothing.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from abupdate.fleet.framing import Deframer
from qemu.cables import Cables, Port

# Start bit, eight bits, stop bit.
BITS = 10
_KEPT_S = 0.1


@dataclass
class _Sender:
    """What one device has on the line. bytes_: (end, value) of those that are not through. spans: (begin, end) of its last bursts."""

    bytes_: deque[tuple[float, int]] = field(default_factory=deque)
    spans: deque[tuple[float, float]] = field(default_factory=deque)
    deframer: Deframer = field(default_factory=Deframer)

    def free_s(self, now_s: float) -> float:
        """When the next byte can begin."""
        return max(now_s, self.bytes_[-1][0]) if self.bytes_ else now_s

    def sends(self, begin_s: float, end_s: float) -> bool:
        """Whether it is sending at any time in between."""
        return any(begin < end_s and end > begin_s for begin, end in self.spans)


class SerialBus(Cables):
    """See Cables; `path(port)` is for the `-chardev socket` of a device's adapter. baud: of the line. noise: share of bytes that come out
    wrong, at each receiver on its own."""

    name = "bus"
    # Short against what a node waits for an answer, long against a byte.
    pause_s = 0.002

    def __init__(self, folder: Path, ports: int, seed: int = 0, *, baud: int = 115200, noise: float = 0.0) -> None:
        super().__init__(folder, ports, seed)
        self._byte_s = BITS / baud
        self._noise = noise
        self._senders = [_Sender() for _ in range(ports)]
        self.collided_bytes = 0
        self.noisy_bytes = 0

    def sort(self, port: Port) -> bool:
        """See Cables: what was sent gets its place in time."""
        sender = self._senders[port.number]
        begin_s = sender.free_s(time.monotonic())
        for place, value in enumerate(port.inbox, 1):
            sender.bytes_.append((begin_s + place * self._byte_s, value))
        if sender.spans and sender.spans[-1][1] == begin_s:
            begin_s = sender.spans.pop()[0]
        sender.spans.append((begin_s, sender.bytes_[-1][0]))
        for data in sender.deframer.feed(bytes(port.inbox)):
            self.note(port, data)
        port.inbox.clear()
        return True

    def carry(self) -> None:
        """See Cables: all bytes whose time is over come out of the line, in their order."""
        now_s = time.monotonic()
        through: list[tuple[float, int, int]] = []
        for number, sender in enumerate(self._senders):
            while sender.bytes_ and sender.bytes_[0][0] <= now_s:
                end_s, value = sender.bytes_.popleft()
                through.append((end_s, number, value))
        for end_s, number, value in sorted(through):
            self._deliver(self._ports[number], end_s, value)
        for sender in self._senders:
            while sender.spans and sender.spans[0][1] < now_s - _KEPT_S:
                sender.spans.popleft()

    def _deliver(self, port: Port, end_s: float, value: int) -> None:
        begin_s = end_s - self._byte_s
        busy = {number for number, sender in enumerate(self._senders) if sender.sends(begin_s, end_s)}
        collided = False
        for other in self._ports:
            if other.number in busy or not self.reaches(port, other):
                continue
            came = value
            # Only what gets there can collide there: who is cut off drowns nobody.
            if any((number, other.number) not in self._cut for number in busy - {port.number}):
                collided = True
                came ^= self._random.randrange(1, 256)
            if self._random.random() < self._noise:
                self.noisy_bytes += 1
                came ^= 1 << self._random.randrange(8)
            other.outbox.append(came)
        self.collided_bytes += collided
