"""Frames over a serial line that all nodes share: the ring (ring.py) and the framing on a real port, which may come and go."""

from __future__ import annotations

import select
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from abupdate.fleet.framing import Deframer, burst
from abupdate.fleet.ring import Ring, Timing
from abupdate.fleet.serialport import Gone, SerialPort
from abupdate.fleet.usbserial import PlugWatch, find
from abupdate.log import log

# Start bit, eight bits, stop bit.
BITS = 10
_AGAIN_S = 1.0
_FOLLOW_S = 5.0
_STALLED_S = 2.0

Members = Callable[[], tuple[int, tuple[int, ...]]]
"""The site's epoch and the numbers of its members, now."""


class SerialLine:
    """`ports.Medium` over a serial line."""

    name = "serial"

    def __init__(
        self, device: str, baud: int, turnaround_s: float, *, rs485: bool, me: int, tag: bytes, members: Members, now_s: float
    ) -> None:
        """device: a path, or `usb:VENDOR:PRODUCT[:SERIAL]`; it need not be there yet."""
        self._device = device
        self._baud = baud
        self._rs485 = rs485
        self._members = members
        self._byte_s = BITS / baud
        self._ring = Ring(me, tag, Timing(self._byte_s, turnaround_s), now_s)
        self._deframer = Deframer()
        self._watch = PlugWatch()
        self._counts: Counter[str] = Counter()
        self._port: SerialPort | None = None
        self._left = b""
        self._left_s = 0.0
        self._now_s = now_s
        self._again_s = now_s
        self._follow_s = now_s
        self._complained = ""

    @property
    def wake_s(self) -> float:
        """See ports.Medium."""
        if self._port is None:
            return self._again_s
        due_s = self._left_s + _STALLED_S if self._left else self._ring.wake_s
        return min(due_s, self._follow_s)

    def descriptors(self) -> Iterable[tuple[int, int]]:
        """See ports.Medium."""
        if self._port is not None:
            yield self._port.fileno(), select.POLLIN | (select.POLLOUT if self._left else 0)
        elif self._watch.descriptor >= 0:
            yield self._watch.descriptor, select.POLLIN

    def receive(self, now_s: float, limit: int) -> Iterable[tuple[bytes, str]]:
        """See ports.Medium. The node is to have worked on all that is here before its turn is used: so either, or."""
        self._now_s = now_s
        if now_s >= self._follow_s:
            self._follow_s = now_s + _FOLLOW_S
            self._ring.follow(*self._members())
        if self._port is None and (self._watch.came() or now_s >= self._again_s):
            self._open(now_s)
        if self._port is None:
            return ()
        try:
            data = self._port.read()
            if data:
                return [(frame, self.name) for frame in self._hear(data, now_s)]
            self._write(self._port, now_s)
        except Gone as error:
            self._lose(str(error), now_s)
        return ()

    def send(self, data: bytes, *, urgent: bool) -> None:
        """See ports.Medium. It waits for this node's turn."""
        self._ring.put(data, self._now_s, urgent=urgent)

    def counters(self) -> Mapping[str, int]:
        """See ports.Medium. `line`: the port is open; `kernel switches`: the direction of RS-485."""
        port = self._port
        here = {
            "line": int(port is not None),
            "kernel switches": int(port is not None and port.kernel_switches),
            "present": len(self._ring.present),
            "waiting": len(self._ring.outbox),
        }
        dropped = {f"in: {why}": count for why, count in self._deframer.dropped.items()}
        return {**self._counts, **self._ring.counts, **self._ring.outbox.dropped, **dropped, **here}

    def close(self) -> None:
        """See ports.Medium."""
        self._watch.close()
        if self._port is not None:
            self._port.close()
            self._port = None

    def _hear(self, data: bytes, now_s: float) -> list[bytes]:
        self._ring.hear_bytes(now_s)
        self._counts["bytes heard"] += len(data)
        return [frame for frame in self._deframer.feed(data) if self._ring.hear(frame, now_s)]

    def _write(self, port: SerialPort, now_s: float) -> None:
        """Go on with a burst that the kernel did not take whole, or begin one when it is this node's turn."""
        if not self._left:
            frames = self._ring.act(now_s)
            if not frames:
                return
            self._left = burst(frames)
            self._left_s = now_s
            self._counts["bytes said"] += len(self._left)
        self._left = self._left[port.write(self._left) :]
        if self._left and now_s - self._left_s > _STALLED_S:
            self._counts["out: the line takes nothing"] += 1
            self._left = b""
            port.drop_output()

    def _open(self, now_s: float) -> None:
        self._again_s = now_s + _AGAIN_S
        path = find(self._device)
        try:
            if path is None:
                raise Gone("it is not there")
            port = SerialPort(path, self._baud, rs485=self._rs485)
        except Gone as error:
            self._counts["open errors"] += 1
            if str(error) != self._complained:
                self._complained = str(error)
                log.warning("fleet: serial line %s: %s", self._device, error)
            return
        log.info("fleet: on serial line %s at %d baud", path, self._baud)
        self._complained = ""
        self._port = port
        self._left = b""
        self._deframer.forget()
        self._ring.listen(now_s)

    def _lose(self, why: str, now_s: float) -> None:
        log.warning("fleet: serial line %s: %s", self._device, why)
        self._counts["line lost"] += 1
        if self._port is not None:
            self._port.close()
        self._port = None
        self._again_s = now_s + _AGAIN_S
