"""Frames over UDP: multicast on a chosen interface, and unicast to peers that multicast does not reach; one datagram a frame.

Every fault of the network is one that passes: it is counted, and the group is joined again when its interface is back. Limits are per
source ADDRESS: a frame with a forged `src` must not starve the node that it names.
"""

from __future__ import annotations

import contextlib
import errno
import math
import select
import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from abupdate.errors import Busy, ConfigError
from abupdate.formats.frame import MAX_FRAME_BYTES
from abupdate.log import log

FRAMES_A_SECOND = 200.0
BURST = 400.0
ADDRESSES = 256
_LOOK_S = 2.0
_RECEIVE_BYTES = 1 << 18
_MREQN = struct.Struct("@4s4si")
_MREQ6 = struct.Struct("@16si")


@dataclass(slots=True)
class _Bucket:
    left: float
    at_s: float


class Limits:
    """Token buckets of source addresses. The least lately heard address gives way, so that nobody fills the table for good."""

    def __init__(self, rate: float = FRAMES_A_SECOND, burst: float = BURST, addresses: int = ADDRESSES) -> None:
        self._rate, self._burst, self._addresses = rate, burst, addresses
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def allows(self, address: str, now_s: float) -> bool:
        """One more frame of this address is taken."""
        bucket = self._buckets.get(address)
        if bucket is None:
            if len(self._buckets) >= self._addresses:
                self._buckets.popitem(last=False)
            bucket = self._buckets[address] = _Bucket(self._burst, now_s)
        self._buckets.move_to_end(address)
        bucket.left = min(self._burst, bucket.left + (now_s - bucket.at_s) * self._rate)
        bucket.at_s = now_s
        if bucket.left < 1.0:
            return False
        bucket.left -= 1.0
        return True


class Udp:
    """`ports.Medium` over UDP."""

    name = "udp"

    def __init__(self, interface: str, group: str, port: int, peers: Sequence[tuple[str, int]]) -> None:
        """group: IPv4 or IPv6 multicast address, empty: unicast alone. Raises ConfigError, Busy where the port cannot be had."""
        self._interface = interface
        self._group = group
        self._port = port
        self._peers = tuple(peers)
        self._near = any(_is_link_local(address) for address, _ in peers)
        self._index = 0
        self._counts: Counter[str] = Counter()
        self._limits = Limits()
        self._joined = 0
        self._look_s = -math.inf
        self._sockets: dict[socket.AddressFamily, socket.socket] = {}
        families = {_family(address) for address, _ in peers} | ({_family(group)} if group else set())
        try:
            for family in sorted(families):
                self._sockets[family] = _bound(family, port)
        except OSError as error:
            self.close()
            # Busy: whoever has the port now may let it go, and systemd tries again.
            blame = Busy if error.errno == errno.EADDRINUSE else ConfigError
            raise blame(f"UDP port {port} cannot be used: {error.strerror}", "is another daemon running?") from error
        self._join()

    @property
    def wake_s(self) -> float:
        """See ports.Medium."""
        return self._look_s + _LOOK_S if self._group or self._near else math.inf

    def descriptors(self) -> Iterable[tuple[int, int]]:
        """See ports.Medium."""
        return [(one.fileno(), select.POLLIN) for one in self._sockets.values()]

    def receive(self, now_s: float, limit: int) -> Iterable[tuple[bytes, str]]:
        """See ports.Medium."""
        if (self._group or self._near) and now_s - self._look_s >= _LOOK_S:
            self._look_s = now_s
            self._join()
        found: list[tuple[bytes, str]] = []
        for one in self._sockets.values():
            for _ in range(limit):
                try:
                    data, sender = one.recvfrom(MAX_FRAME_BYTES + 1)
                except BlockingIOError:
                    break
                except OSError:
                    # What an unreachable peer's host has answered to a datagram of ours comes out here.
                    self._counts["receive errors"] += 1
                    continue
                address = f"{sender[0]}:{sender[1]}"
                if len(data) > MAX_FRAME_BYTES:
                    self._counts["dropped: too long"] += 1
                elif not self._limits.allows(sender[0], now_s):
                    self._counts["dropped: too many"] += 1
                else:
                    found.append((data, address))
        return found

    def send(self, data: bytes, *, urgent: bool) -> None:
        """See ports.Medium. The kernel's queue is short: nothing goes before anything else."""
        if self._group and self._joined:
            self._send_to(data, self._group, self._port)
        for address, port in self._peers:
            self._send_to(data, address, port)

    def _send_to(self, data: bytes, address: str, port: int) -> None:
        # A link-local address says nothing of the link.
        where = (address, port, 0, self._index) if _is_link_local(address) else (address, port)
        try:
            self._sockets[_family(address)].sendto(data, where)
        except OSError:
            self._counts["send errors"] += 1

    def counters(self) -> Mapping[str, int]:
        """See ports.Medium."""
        return self._counts

    def close(self) -> None:
        """See ports.Medium."""
        for one in self._sockets.values():
            one.close()

    def _join(self) -> None:
        """Be in the group on the interface that has the name now; it may be another one than before, or none."""
        try:
            index = socket.if_nametoindex(self._interface)
        except OSError:
            index = 0
        self._index = index
        if not self._group or index == self._joined:
            return
        if index == 0:
            log.warning("fleet: the network interface %s is gone", self._interface)
            self._joined = 0
            return
        one = self._sockets[_family(self._group)]
        try:
            if one.family is socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                group = _MREQ6.pack(socket.inet_pton(socket.AF_INET6, self._group), index)
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP, group)
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            else:
                request = _MREQN.pack(socket.inet_aton(self._group), bytes(4), index)
                one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, request)
                one.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        except OSError:
            self._counts["join errors"] += 1
            return
        log.info("fleet: in group %s on %s", self._group, self._interface)
        self._joined = index


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _is_link_local(address: str) -> bool:
    """fe80::/10."""
    return ":" in address and socket.inet_pton(socket.AF_INET6, address)[:2] == b"\xfe\x80"


def _bound(family: socket.AddressFamily, port: int) -> socket.socket:
    """A socket for this port. What it sends does not leave the link, and does not come back to this host."""
    one = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        if family is socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            one.bind(("::", port))
        else:
            one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            one.bind(("", port))
    except OSError:
        one.close()
        raise
    return one
