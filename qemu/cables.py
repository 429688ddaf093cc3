"""What cables of emulated devices end in: sockets of a hub that decides who hears whom, and keeps what was said as evidence from outside.

The hub believes no device's own report: what it has heard of the fleet's frames (heartbeats, announcements of going down) is what
was on the cable. Nothing leaves this process.
"""

from __future__ import annotations

import random
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from abupdate.formats import frame
from abupdate.formats.messages import Type

_BACKLOG_BYTES = 1 << 20


@dataclass(frozen=True)
class Heard:
    """A frame of the fleet on the wire. at_s: time.monotonic(). port: of the hub, which is a device's cable. data: the frame."""

    at_s: float
    port: int
    source: int
    type: Type
    data: bytes = b""


@dataclass
class Port:
    """A device's cable. inbox: what it has sent and nobody has looked at; outbox: what it has yet to read."""

    number: int
    link: socket.socket | None = None
    inbox: bytearray = field(default_factory=bytearray)
    outbox: bytearray = field(default_factory=bytearray)


class Cables(ABC):
    """Use it as a context manager; `path(port)` is where a device connects to. A kind of network says what becomes of what is sent."""

    name = "hub"
    pause_s = 0.2

    def __init__(self, folder: Path, ports: int, seed: int = 0) -> None:
        self._folder = folder
        self._ports = [Port(number) for number in range(ports)]
        self._random = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._cut: set[tuple[int, int]] = set()
        self._heard: list[Heard] = []
        self._ended = False
        self._doors: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, name=self.name, daemon=True)

    def path(self, port: int) -> Path:
        """The socket of a port."""
        return self._folder / f"{self.name}{port}"

    def __enter__(self) -> Self:
        for port in self._ports:
            door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            door.bind(str(self.path(port.number)))
            door.listen(1)
            door.setblocking(False)
            self._selector.register(door, selectors.EVENT_READ, port)
            self._doors.append(door)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended = True
        self._thread.join(timeout=5)
        for port in self._ports:
            if port.link is not None:
                port.link.close()
        for door in self._doors:
            door.close()
        self._selector.close()

    # ---- what the network does to the devices

    def partition(self, *sides: set[int]) -> None:
        """Only ports of one side hear each other; a port in none of them hears nobody."""
        count = len(self._ports)
        together = {(a, b) for side in sides for a in side for b in side}
        with self._lock:
            self._cut = {(a, b) for a in range(count) for b in range(count) if (a, b) not in together}

    def cut(self, source: int, target: int) -> None:
        """One way: what `source` says does not get to `target`."""
        with self._lock:
            self._cut.add((source, target))

    def heal(self) -> None:
        """A whole network again."""
        with self._lock:
            self._cut = set()

    @property
    def heard(self) -> list[Heard]:
        """All frames of the fleet that were sent so far, whoever got them."""
        with self._lock:
            return list(self._heard)

    # ---- for a kind of network, under the lock

    @abstractmethod
    def sort(self, port: Port) -> bool:
        """Take what there is out of a port's inbox. False: it is nonsense, and the cable is dropped."""

    @abstractmethod
    def carry(self) -> None:
        """What time brings, at least every `pause_s`."""

    def note(self, port: Port, data: bytes) -> None:
        """Keep a frame of the fleet as evidence; anything else is ignored."""
        seen = frame.peek(data)
        if seen is not None:
            self._heard.append(Heard(time.monotonic(), port.number, seen.source, seen.type, data))

    def reaches(self, source: Port, target: Port) -> bool:
        """Whether what one says gets to the other. A device that does not read must not stop the others."""
        whole = (source.number, target.number) not in self._cut
        return whole and source is not target and target.link is not None and len(target.outbox) < _BACKLOG_BYTES

    # ---- the thread

    def _serve(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(timeout=self.pause_s):
                port: Port = key.data
                if key.fileobj in self._doors:
                    self._accept(key.fileobj, port)
                elif port.link is key.fileobj:
                    self._read(port)
            with self._lock:
                self.carry()
            for port in self._ports:
                self._flush(port)

    def _accept(self, door: socket.socket, port: Port) -> None:
        link, _ = door.accept()
        link.setblocking(False)
        self._drop(port)
        port.link = link
        self._selector.register(link, selectors.EVENT_READ, port)

    def _drop(self, port: Port) -> None:
        if port.link is not None:
            self._selector.unregister(port.link)
            port.link.close()
        port.link = None
        port.inbox.clear()
        port.outbox.clear()

    def _read(self, port: Port) -> None:
        assert port.link is not None
        try:
            data = port.link.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        port.inbox += data
        with self._lock:
            sound = bool(data) and self.sort(port)
        if not sound:
            self._drop(port)

    def _flush(self, port: Port) -> None:
        if port.link is None or not port.outbox:
            return
        try:
            sent = port.link.send(port.outbox)
        except BlockingIOError:
            return
        except OSError:
            self._drop(port)
            return
        del port.outbox[:sent]
