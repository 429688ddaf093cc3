"""A LAN of emulated devices: a hub between QEMU's stream network backends, which can lose frames, cut ports off, and sees who says what.

QEMU's framing on the UNIX socket is a length (u32, big-endian) and an Ethernet frame. Nothing leaves this process. What is seen of the
fleet's frames (heartbeats, announcements of going down) is evidence from outside: the hub believes no device's own report.
"""

from __future__ import annotations

import random
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from abupdate.formats import frame
from abupdate.formats.messages import Type

FLEET_PORT = 7717
_LENGTH = struct.Struct(">I")
_MAX_FRAME_BYTES = 1 << 16
_BACKLOG_BYTES = 1 << 20
_ETHERNET, _IPV4, _IPV6, _UDP = 14, 0x0800, 0x86DD, 17


@dataclass(frozen=True)
class Heard:
    """A frame of the fleet on the wire. at_s: time.monotonic(). port: of the hub, which is a device's cable. data: the frame."""

    at_s: float
    port: int
    source: int
    type: Type
    data: bytes = b""


@dataclass
class _Port:
    number: int
    link: socket.socket | None = None
    inbox: bytearray = field(default_factory=bytearray)
    outbox: bytearray = field(default_factory=bytearray)


class Hub:
    """Use it as a context manager; `path(port)` is where a device's `-netdev stream` connects to."""

    def __init__(self, folder: Path, ports: int, seed: int = 0) -> None:
        self._folder = folder
        self._ports = [_Port(number) for number in range(ports)]
        self._random = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._cut: set[tuple[int, int]] = set()
        self._loss = 0.0
        self._heard: list[Heard] = []
        self._ended = False
        self._doors: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, name="lan", daemon=True)

    def path(self, port: int) -> Path:
        """The socket of a port."""
        return self._folder / f"lan{port}"

    def __enter__(self) -> Hub:
        for port in self._ports:
            door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            door.bind(str(self.path(port.number)))
            door.listen(1)
            door.setblocking(False)
            self._selector.register(door, selectors.EVENT_READ, port)
            self._doors.append(door)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
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

    def lose(self, share: float) -> None:
        """This share of all frames gets lost, to each receiver on its own."""
        with self._lock:
            self._loss = share

    def heal(self) -> None:
        """A whole network again."""
        with self._lock:
            self._cut = set()
            self._loss = 0.0

    @property
    def heard(self) -> list[Heard]:
        """All frames of the fleet that were sent so far, whoever got them."""
        with self._lock:
            return list(self._heard)

    # ---- the thread

    def _serve(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(timeout=0.2):
                port: _Port = key.data
                if key.fileobj in self._doors:
                    self._accept(key.fileobj, port)
                elif port.link is key.fileobj:
                    self._read(port)
            for port in self._ports:
                self._flush(port)

    def _accept(self, door: socket.socket, port: _Port) -> None:
        link, _ = door.accept()
        link.setblocking(False)
        self._drop(port)
        port.link = link
        self._selector.register(link, selectors.EVENT_READ, port)

    def _drop(self, port: _Port) -> None:
        if port.link is not None:
            self._selector.unregister(port.link)
            port.link.close()
        port.link = None
        port.inbox.clear()
        port.outbox.clear()

    def _read(self, port: _Port) -> None:
        assert port.link is not None
        try:
            data = port.link.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(port)
            return
        port.inbox += data
        while len(port.inbox) >= _LENGTH.size:
            length = _LENGTH.unpack_from(port.inbox)[0]
            if length > _MAX_FRAME_BYTES:
                self._drop(port)
                return
            if len(port.inbox) < _LENGTH.size + length:
                return
            whole = bytes(port.inbox[: _LENGTH.size + length])
            del port.inbox[: _LENGTH.size + length]
            self._forward(port, whole)

    def _forward(self, port: _Port, whole: bytes) -> None:
        with self._lock:
            data = look(whole[_LENGTH.size :])
            seen = frame.peek(data)
            if seen is not None:
                self._heard.append(Heard(time.monotonic(), port.number, seen.source, seen.type, data))
            for other in self._ports:
                lost = (port.number, other.number) in self._cut or self._random.random() < self._loss
                # A device that does not read must not stop the others.
                if other is not port and other.link is not None and not lost and len(other.outbox) < _BACKLOG_BYTES:
                    other.outbox += whole

    def _flush(self, port: _Port) -> None:
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


def look(ethernet: bytes) -> bytes:
    """The fleet's frame in an Ethernet frame, empty where it carries something else."""
    if len(ethernet) < _ETHERNET + 20:
        return b""
    kind = int.from_bytes(ethernet[12:14], "big")
    if kind == _IPV4:
        header, protocol = (ethernet[_ETHERNET] & 15) * 4, ethernet[_ETHERNET + 9]
    elif kind == _IPV6:
        header, protocol = 40, ethernet[_ETHERNET + 6]
    else:
        return b""
    datagram = ethernet[_ETHERNET + header :]
    if protocol != _UDP or len(datagram) < 8 or int.from_bytes(datagram[2:4], "big") != FLEET_PORT:
        return b""
    return datagram[8 : int.from_bytes(datagram[4:6], "big")]
