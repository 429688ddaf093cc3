"""sd_notify over a real datagram socket, by path and in the abstract namespace."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from abupdate.devices.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@abupdate-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name[1:] if name.startswith("@") else name)
        receiver.settimeout(5)
        yield receiver, name


def test_every_word(listener: tuple[socket.socket, str]) -> None:
    receiver, name = listener
    notifier = Notifier({"NOTIFY_SOCKET": name})
    assert notifier.active
    assert notifier.ready("slot B on trial\nuntil 300 s")
    assert notifier.alive()
    assert notifier.status("confirmed")
    assert notifier.stopping()
    assert [receiver.recv(4096) for _ in range(4)] == [
        b"READY=1\nSTATUS=slot B on trial until 300 s",
        b"WATCHDOG=1",
        b"STATUS=confirmed",
        b"STOPPING=1",
    ]


def test_a_status_is_bounded(listener: tuple[socket.socket, str]) -> None:
    receiver, name = listener
    assert Notifier({"NOTIFY_SOCKET": name}).status("x" * 100_000)
    assert len(receiver.recv(1 << 20)) == 512 + len("STATUS=")


def test_a_full_queue_does_not_block(listener: tuple[socket.socket, str]) -> None:
    _receiver, name = listener
    notifier = Notifier({"NOTIFY_SOCKET": name})
    taken = [notifier.alive() for _ in range(2000)]
    assert taken[0]
    assert not taken[-1]


@pytest.mark.parametrize("name", ["", "vsock:2:1234", "relative", "/nonexistent/notify", "@nobody-listens-here", "/" + "x" * 200])
def test_nobody_listens(name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name} if name else {})
    assert notifier.active == name.startswith(("/", "@"))
    assert not notifier.ready()
    assert not notifier.alive()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_what_systemd_waits_for(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ).watchdog_s == seconds
