"""A half-duplex multi-drop bus in simulated time, with the real ring and the real framing on every station.

A byte takes its time on the line. Who sends hears nothing meanwhile, or its own echo. Where two send at once, everybody hears garbage.
Noise flips bytes, cuts some out and puts some in. A station reads late (`latency_s`), and works on a frame for as long as its program
says; what came in meanwhile it reads in one go. Everything follows from the seed.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from abupdate.fleet.framing import Deframer, burst
from abupdate.fleet.ring import Ring, Timing
from abupdate.formats import frame
from abupdate.formats.messages import EVERYBODY, Frame, Heartbeat, Message, Stage, Type, Vote
from tests.fleet.clock import Clock

TAG = b"site"
BITS = 10
# What a UART hands over at once.
CHUNK_BYTES = 16

Program = Callable[["Station", Frame, float], float]
"""What a station does with a frame that it hears; returns the seconds that it works on it."""


def idle(station: Station, one: Frame, now_s: float) -> float:
    """Nothing."""
    return 0.0


def make(kind: Type, source: int, message: Message, to: int = EVERYBODY, seq: int = 0) -> bytes:
    """A frame with a made-up signature."""
    mark = zlib.crc32(repr((kind, source, message)).encode()).to_bytes(4, "big")
    return frame.pack(Frame(kind, source, to, TAG, 1, 1, seq, message, b"" if kind is Type.POLL else mark * 16))


def heartbeat(source: int, seq: int = 0) -> bytes:
    """A heartbeat of 104 bytes and a few."""
    return make(Type.HEARTBEAT, source, Heartbeat(seq, 0, Stage.IDLE, True, False, False, bytes(8)), seq=seq)


def vote(kind: Type, source: int, height: int = 1) -> bytes:
    """A vote of 125 bytes."""
    return make(kind, source, Vote(height, 0, bytes([7]) * 32))


@dataclass(slots=True)
class Noise:
    """Chances for each byte: to be flipped, cut out, followed by one more. local: flips for one listener alone."""

    flip: float = 0.0
    cut: float = 0.0
    more: float = 0.0
    local: float = 0.0


@dataclass(slots=True)
class Sending:
    """Bytes on the line. ruined: as heard by others, where another one sent at the same time."""

    source: int
    data: bytes
    start_s: float
    end_s: float


@dataclass(slots=True)
class Station:
    """One member on the bus. listen: takes frames as they come, in place of the program."""

    number: int
    ring: Ring
    program: Program = idle
    deframer: Deframer = field(default_factory=Deframer)
    on: bool = True
    echo: bool = False
    deaf: bool = False
    latency_s: float = 0.001
    heard: list[tuple[float, Frame]] = field(default_factory=list)
    keep: bool = True
    listen: Callable[[bytes], float] | None = None
    _inbox: list[bytes] = field(default_factory=list)
    _free_s: float = 0.0
    _run_s: float = 0.0

    def put(self, data: bytes, now_s: float, *, urgent: bool = False) -> None:
        """Have a frame sent."""
        self.ring.put(data, now_s, urgent=urgent)


@dataclass(frozen=True, slots=True)
class Burst:
    """What was sent: when its first bit and its last one were on the line, by whom, and the frames."""

    start_s: float
    end_s: float
    source: int
    frames: tuple[bytes, ...]


class Bus(Clock):
    """`run` lets time pass. bursts: all that was sent. collisions: bursts that met another one."""

    def __init__(
        self,
        members: int,
        baud: int = 115200,
        turnaround_s: float = 0.003,
        seed: int = 0,
        noise: Noise | None = None,
        *,
        tag: bytes = TAG,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        super().__init__()
        self.tag = tag
        self.chunk_bytes = chunk_bytes
        self.byte_s = BITS / baud
        self.timing = Timing(self.byte_s, turnaround_s)
        self.members = tuple(range(members))
        self.noise = noise or Noise()
        self.random = Random(seed)
        self.bursts: list[Burst] = []
        self.collisions = 0
        self.stations: dict[int, Station] = {}
        self._line: list[Sending] = []

    # -- what happens from outside

    def join(self, number: int, program: Program = idle, at_s: float = 0.0) -> Station:
        """A station is switched on (again: it has forgotten everything)."""
        ring = Ring(number, self.tag, self.timing, max(at_s, self.now_s))
        ring.follow(1, self.members)
        station = self.stations[number] = Station(number, ring, program)
        self.at(at_s, partial(self._wake, station))
        return station

    def leave(self, number: int) -> None:
        """A station is switched off; what it was sending ends where it is."""
        self.stations.pop(number).on = False
        for one in self._line:
            if one.source == number:
                one.end_s = min(one.end_s, self.now_s)

    def poke(self, station: Station) -> None:
        """The station's program has put something."""
        self._wake(station)

    def shout(self, source: int, data: bytes) -> None:
        """Bytes on the line from somebody who keeps to no rule."""
        self._send(source, data, ())

    # -- the line

    def _send(self, source: int, data: bytes, frames: tuple[bytes, ...]) -> None:
        sending = Sending(source, data, self.now_s, self.now_s + len(data) * self.byte_s)
        self._line = [one for one in self._line if one.end_s > self.now_s - 0.2]
        self.collisions += sum(one.end_s > self.now_s for one in self._line)
        self._line.append(sending)
        if frames:
            self.bursts.append(Burst(sending.start_s, sending.end_s, source, frames))
        for begin in range(0, len(data), self.chunk_bytes):
            end = min(begin + self.chunk_bytes, len(data))
            self.at(sending.start_s + end * self.byte_s, partial(self._carry, sending, begin, end))

    def _carry(self, sending: Sending, begin: int, end: int) -> None:
        """A piece has gone over the line: everybody who listens gets it."""
        first_s, last_s = sending.start_s + begin * self.byte_s, self.now_s
        if sending.end_s < first_s:
            return
        others = [one for one in self._line if one is not sending and one.start_s < last_s and one.end_s > first_s]
        piece = sending.data[begin:end]
        heard = self._noisy(self._garbage(len(piece)) if others else piece)
        talking = {one.source for one in others}
        for number, station in self.stations.items():
            if station.deaf or (not station.echo if number == sending.source else number in talking):
                continue
            own = heard
            if self.noise.local and self.random.random() < self.noise.local * len(heard):
                own = self._garbage(len(heard))
            station._inbox.append(own)
            self.at(self.now_s + station.latency_s, partial(self._wake, station))

    def _garbage(self, length: int) -> bytes:
        return self.random.randbytes(length)

    def _noisy(self, piece: bytes) -> bytes:
        noise = self.noise
        if not noise.flip + noise.cut + noise.more:
            return piece
        heard = bytearray()
        for byte in piece:
            draw = self.random.random()
            if draw < noise.cut:
                continue
            heard.append(byte ^ (1 << self.random.randrange(8)) if draw < noise.cut + noise.flip else byte)
            if self.random.random() < noise.more:
                heard.append(self.random.randrange(256))
        return bytes(heard)

    # -- the stations

    def _wake(self, station: Station) -> None:
        """The station runs: reads all that is there, or else sends."""
        if not station.on:
            return
        if self.now_s < station._free_s:
            self.at(station._free_s, partial(self._wake, station))
            return
        ring = station.ring
        if station._inbox:
            data = b"".join(station._inbox)
            station._inbox.clear()
            ring.hear_bytes(self.now_s)
            for raw in station.deframer.feed(data):
                if ring.hear(raw, self.now_s):
                    station._free_s = max(station._free_s, self.now_s) + self._listen(station, raw)
        else:
            frames = ring.act(self.now_s)
            if frames:
                self._send(station.number, burst(frames), tuple(frames))
        due_s = max(ring.wake_s, station._free_s, self.now_s)
        # Many wakes are scheduled; one that comes too early does nothing.
        if due_s < 1e9 and (station._run_s <= self.now_s or due_s < station._run_s):
            station._run_s = due_s
            self.at(due_s, partial(self._wake, station))

    def _listen(self, station: Station, raw: bytes) -> float:
        """The seconds that the station works on the frame."""
        if station.listen is not None:
            return station.listen(raw)
        one = frame.parse(raw)
        if station.keep:
            station.heard.append((self.now_s, one))
        return station.program(station, one, self.now_s)

    # -- figures

    def usage(self) -> dict[Type, tuple[int, int, float]]:
        """Frames, bytes on the line and seconds of it, by type."""
        frames: Counter[Type] = Counter()
        sizes: Counter[Type] = Counter()
        for one in self.bursts:
            for data in one.frames:
                frames[Type(data[1])] += 1
                sizes[Type(data[1])] += len(data) + 2
        return {kind: (frames[kind], sizes[kind], sizes[kind] * self.byte_s) for kind in sorted(frames)}
