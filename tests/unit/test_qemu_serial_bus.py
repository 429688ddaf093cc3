"""The serial bus of emulated devices: bytes take their time, collide, suffer from noise, and no device can stop the others."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from abupdate.fleet.framing import burst
from abupdate.formats import frame
from abupdate.formats.messages import EVERYBODY, Frame, Poll, Type
from qemu.serialbus import SerialBus

PATIENCE_S = 20.0
PIECE = bytes(range(1, 251))


@contextmanager
def bus(count: int = 3, *, baud: int = 115200, noise: float = 0.0) -> Iterator[tuple[SerialBus, list[socket.socket]]]:
    """A bus, and what the adapters of its devices are connected to."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abu-bus-")))
        hub = stack.enter_context(SerialBus(folder, count, baud=baud, noise=noise))
        ends: list[socket.socket] = []
        for number in range(count):
            end = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            end.settimeout(PATIENCE_S)
            end.connect(str(hub.path(number)))
            # Who is heard, or has heard somebody, is connected for the hub too.
            if ends:
                end.sendall(b"!")
            for other in ends:
                exactly(other, 1)
            ends.append(end)
        yield hub, ends


def exactly(end: socket.socket, count: int) -> bytes:
    """So many bytes from the bus."""
    data = b""
    while len(data) < count:
        piece = end.recv(count - len(data))
        assert piece, "the bus has closed the connection"
        data += piece
    return data


def test_what_one_sends_comes_out_of_all_others_in_the_time_that_it_takes() -> None:
    with bus() as (_, ends):
        start_s = time.monotonic()
        ends[0].sendall(PIECE * 4)
        assert exactly(ends[1], 1000) == PIECE * 4
        assert time.monotonic() - start_s >= 1000 * 10 / 115200
        assert exactly(ends[2], 1000) == PIECE * 4
        ends[0].setblocking(False)
        with suppress(BlockingIOError):
            assert not ends[0].recv(1), "it hears itself"


def test_two_at_the_same_time_garble_each_other_and_hear_nothing() -> None:
    # Slow enough for both to be at it.
    with bus(baud=9600) as (hub, ends):
        ends[0].sendall(PIECE)
        ends[1].sendall(PIECE)
        heard = exactly(ends[2], 500)
        assert hub.collided_bytes > 400
        assert PIECE[:100] not in heard
        ends[2].sendall(b"clear")
        assert exactly(ends[0], 5) == b"clear", "what was said while it was sending was not for it to hear"


def test_noise_changes_bytes_for_each_receiver_on_its_own() -> None:
    with bus(noise=0.2) as (hub, ends):
        ends[0].sendall(PIECE)
        one, other = exactly(ends[1], 250), exactly(ends[2], 250)
        assert 0 < sum(a != b for a, b in zip(one, PIECE, strict=True)) < 125
        assert one != other
        assert hub.noisy_bytes > 0


def test_who_is_cut_off_hears_nothing_and_is_not_heard_until_it_is_back() -> None:
    with bus() as (hub, ends):
        hub.partition({0, 1})
        ends[0].sendall(b"first")
        assert exactly(ends[1], 5) == b"first"
        hub.heal()
        ends[0].sendall(b"second")
        assert exactly(ends[2], 6) == b"second"


def test_who_is_cut_off_garbles_nothing_while_it_talks_to_itself() -> None:
    with bus(baud=9600) as (hub, ends):
        hub.partition({0, 1})
        ends[2].sendall(PIECE)
        ends[0].sendall(PIECE)
        assert exactly(ends[1], len(PIECE)) == PIECE
        assert hub.collided_bytes == 0


def test_a_device_that_does_not_read_stops_nobody() -> None:
    with bus(baud=100_000_000) as (_, ends):
        for _ in range(8):
            ends[0].sendall(PIECE * 200)
            assert exactly(ends[1], len(PIECE) * 200) == PIECE * 200


def test_frames_are_kept_as_evidence_with_the_cable_that_they_came_by() -> None:
    data = frame.pack(Frame(Type.POLL, 7, EVERYBODY, bytes(4), 1, 0, 0, Poll(), b""))
    with bus() as (hub, ends):
        ends[1].sendall(burst([data, data]))
        exactly(ends[0], len(burst([data, data])))
        assert [(one.port, one.source, one.type, one.data) for one in hub.heard] == [(1, 7, Type.POLL, data)] * 2
