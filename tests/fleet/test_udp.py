"""Frames over real sockets: multicast between network namespaces, unicast over loopback, limits, and an interface that comes and goes."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from abupdate.errors import Busy
from abupdate.fleet.udp import Limits, Udp

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
FRAME = bytes(range(127))


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@contextmanager
def namespaces(count: int) -> Iterator[list[str]]:
    """Network namespaces that are joined by a bridge in one more; each has an interface `lan`."""
    tag = f"abf{os.getpid()}x{threading.get_ident() % 1000}"
    names = [f"{tag}n{number}" for number in range(count)]
    with ExitStack() as stack:
        for name in (tag, *names):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        ip("-n", tag, "link", "add", "hub", "type", "bridge", "mcast_snooping", "0")
        ip("-n", tag, "link", "set", "hub", "up")
        for number, name in enumerate(names):
            ip("-n", tag, "link", "add", f"p{number}", "type", "veth", "peer", "name", "lan", "netns", name)
            ip("-n", tag, "link", "set", f"p{number}", "master", "hub", "up")
            up(name, number)
        yield names


def up(name: str, number: int) -> None:
    ip("-n", name, "addr", "add", f"192.0.2.{number + 1}/24", "dev", "lan")
    ip("-n", name, "addr", "add", f"fd00::{number + 1}/64", "dev", "lan", "nodad")
    ip("-n", name, "link", "set", "lan", "up")


@contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread's sockets are opened in that namespace."""
    with Path("/proc/thread-self/ns/net").open() as here, Path(f"/run/netns/{name}").open() as there:
        assert LIBC.setns(there.fileno(), CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert LIBC.setns(here.fileno(), CLONE_NEWNET) == 0


def hear(one: Udp, wanted: int = 1, patience_s: float = 5.0) -> list[bytes]:
    """The next frames; at most as long as that."""
    found: list[bytes] = []
    end = time.monotonic() + patience_s
    while len(found) < wanted and time.monotonic() < end:
        poll = select.poll()
        for descriptor, events in one.descriptors():
            poll.register(descriptor, events)
        poll.poll(100)
        found += [data for data, _ in one.receive(time.monotonic(), 64)]
    return found


@pytest.fixture
def sites() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def open_in(stack: ExitStack, name: str, group: str, *peers: tuple[str, int]) -> Udp:
    with inside(name):
        one = Udp("lan", group, 7717, peers)
    stack.callback(one.close)
    return one


@pytest.mark.parametrize("group", ["239.255.77.71", "ff02::4d47"])
def test_a_frame_reaches_all_others_of_the_group_and_not_its_sender(sites: ExitStack, group: str) -> None:
    with namespaces(3) as names:
        nodes = [open_in(sites, name, group) for name in names]
        # A group's membership takes a moment to be known: frames may be lost, so the sender says it again.
        for _ in range(20):
            nodes[0].send(FRAME, urgent=False)
            if hear(nodes[1], patience_s=0.3) and hear(nodes[2], patience_s=0.3):
                break
        else:
            raise AssertionError("nobody heard it")
        assert hear(nodes[0], patience_s=0.2) == []


def test_peers_that_multicast_does_not_reach_get_it_by_unicast(sites: ExitStack) -> None:
    with namespaces(2) as names:
        first = open_in(sites, names[0], "", ("192.0.2.2", 7717), ("fd00::2", 7717))
        second = open_in(sites, names[1], "", ("192.0.2.1", 7717), ("fd00::1", 7717))
        first.send(FRAME, urgent=True)
        assert hear(second, 2) == [FRAME, FRAME]
        second.send(FRAME, urgent=True)
        assert hear(first, 2) == [FRAME, FRAME]


def test_peers_may_be_named_by_their_addresses_on_the_link(sites: ExitStack) -> None:
    with namespaces(2) as names:
        for name, address in zip(names, ("fe80::a1", "fe80::a2"), strict=True):
            ip("-n", name, "addr", "add", f"{address}/64", "dev", "lan", "nodad")
            # Another network, which the kernel would take for such addresses.
            ip("-n", name, "link", "add", "away", "type", "veth", "peer", "name", "end")
            ip("-n", name, "link", "set", "away", "up")
            ip("-n", name, "link", "set", "end", "up")
            ip("-n", name, "-6", "route", "add", "fe80::/64", "dev", "away", "metric", "1")
        first = open_in(sites, names[0], "", ("fe80::a2", 7717))
        second = open_in(sites, names[1], "", ("fe80::a1", 7717))
        first.send(FRAME, urgent=False)
        # The interface is looked for again while it hears.
        with inside(names[1]):
            assert hear(second) == [FRAME]
        second.send(FRAME, urgent=False)
        with inside(names[0]):
            assert hear(first) == [FRAME]
        assert first.counters()["send errors"] == 0


def test_an_interface_that_comes_back_is_joined_again(sites: ExitStack) -> None:
    with namespaces(2) as names:
        first, second = (open_in(sites, name, "239.255.77.71") for name in names)
        with inside(names[1]):
            ip("link", "del", "lan")
            assert hear(second, patience_s=0.1) == []
            second.receive(time.monotonic() + 10, 1)
            second.send(FRAME, urgent=False)
            ip("link", "add", "lan", "type", "veth", "peer", "name", "other")
            ip("link", "set", "lan", "up")
            second.receive(time.monotonic() + 20, 1)
            assert second._joined == socket.if_nametoindex("lan")
        first.send(FRAME, urgent=False)
        assert first.counters()["join errors"] == 0


def test_faults_of_the_network_are_counted_and_never_raised(sites: ExitStack) -> None:
    with namespaces(1) as names:
        one = open_in(sites, names[0], "239.255.77.71", ("198.51.100.1", 7717))
        ip("-n", names[0], "link", "set", "lan", "down")
        for _ in range(3):
            one.send(FRAME, urgent=False)
            assert hear(one, patience_s=0.05) == []
        assert one.counters()["send errors"] >= 3


def test_a_taken_port_is_no_fault_for_good() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        with pytest.raises(Busy, match="cannot be used"):
            Udp("lo", "", taken.getsockname()[1], (("127.0.0.1", 9),))


def test_what_is_longer_than_a_frame_is_dropped() -> None:
    one = Udp("lo", "", 0, (("127.0.0.1", 9),))
    port = next(iter(one._sockets.values())).getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.sendto(bytes(1400), ("127.0.0.1", port))
        other.sendto(FRAME, ("127.0.0.1", port))
        assert hear(one) == [FRAME]
    assert one.counters()["dropped: too long"] == 1
    one.close()


def test_a_flood_from_one_address_leaves_the_others_their_share() -> None:
    limits = Limits(rate=10, burst=20)
    assert sum(limits.allows("192.0.2.66:1", 0.0) for _ in range(1000)) == 20
    assert limits.allows("192.0.2.1:7717", 0.0)
    assert sum(limits.allows("192.0.2.66:1", 1.0) for _ in range(1000)) == 10


def test_a_flood_from_many_addresses_fills_no_memory() -> None:
    limits = Limits(addresses=16)
    for number in range(10_000):
        limits.allows(f"192.0.2.1:{number}", 0.0)
    assert len(limits._buckets) == 16
