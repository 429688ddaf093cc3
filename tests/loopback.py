"""A medium for tests on one machine: datagrams on the loopback to every peer's port. Implements fleet.ports.Medium."""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress


class Loopback:
    """Sends from its own port to those of the others."""

    name = "udp"
    wake_s = math.inf

    def __init__(self, port: int, peers: Iterable[tuple[str, int]]) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(("127.0.0.1", port))
        self._peers = tuple(peer for peer in peers if peer[1] != port)

    def descriptors(self) -> Iterable[tuple[int, int]]:
        """See ports.Medium."""
        return ((self._socket.fileno(), select.POLLIN),)

    def receive(self, now_s: float, limit: int) -> Iterator[tuple[bytes, str]]:
        """See ports.Medium."""
        for _ in range(limit):
            try:
                data, address = self._socket.recvfrom(2048)
            except OSError:
                return
            yield data, f"{address[0]}:{address[1]}"

    def send(self, data: bytes, *, urgent: bool) -> None:
        """See ports.Medium."""
        for peer in self._peers:
            # Nobody listens there while the peer's daemon is down.
            with suppress(OSError):
                self._socket.sendto(data, peer)

    def counters(self) -> Mapping[str, int]:
        """See ports.Medium."""
        return {}

    def close(self) -> None:
        """See ports.Medium."""
        self._socket.close()
