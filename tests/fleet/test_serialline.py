"""Frames over real terminals: a bus of pseudo terminals, adapters that come and go, and what a serial line needs to be there."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from abupdate.fleet import serialport, usbserial
from abupdate.fleet.framing import MAX_ENCODED_BYTES, Deframer, burst
from abupdate.fleet.ring import with_token
from abupdate.fleet.serialport import Gone, SerialPort
from abupdate.fleet.usbserial import find
from abupdate.formats import frame
from abupdate.formats.messages import Type
from tests.fleet.bus import heartbeat, vote
from tests.fleet.ptybus import PtyBus


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PtyBus]:
    with PtyBus(tmp_path) as made:
        yield made


def joined(bus: PtyBus, members: int) -> PtyBus:
    """A bus with so many nodes, in touch."""
    bus.members = tuple(range(members))
    for number in bus.members:
        bus.plug(number)
        bus.join(number)
    bus.until(lambda: all(line.counters()["present"] == members for line in bus.lines.values()), "in touch")
    return bus


def said(data: bytes) -> tuple[Type, int, int]:
    """What a frame says, without what the ring has changed in it."""
    one = frame.parse(data)
    return one.type, one.source, one.seq


def flow(bus: PtyBus, number: int, action: int) -> None:
    """Stop a terminal from taking anything, or let it go on."""
    terminal = os.open(bus.path(number), os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    termios.tcflow(terminal, action)
    os.close(terminal)


def test_every_node_hears_what_every_other_one_says(bus: PtyBus) -> None:
    joined(bus, 3)
    for number, line in bus.lines.items():
        for seq in range(5):
            line.send(vote(Type.PREVOTE, number, seq + 1), urgent=True)
    bus.until(lambda: all(len(heard) == 10 for heard in bus.heard.values()), "heard")
    for number, heard in bus.heard.items():
        assert sorted(frame.parse(data).source for data in heard) == sorted(5 * [other for other in range(3) if other != number])
        for other in set(range(3)) - {number}:
            heights = [one.message.height for one in map(frame.parse, heard) if one.source == other]  # type: ignore[union-attr]
            assert heights == [1, 2, 3, 4, 5]


def test_votes_go_before_what_was_to_be_said_earlier(bus: PtyBus) -> None:
    joined(bus, 3)
    line = bus.lines[1]
    line.send(heartbeat(1), urgent=False)
    line.send(vote(Type.PREVOTE, 1), urgent=True)
    bus.until(lambda: len(bus.heard[0]) == 2, "heard")
    assert [said(data)[0] for data in bus.heard[0]] == [Type.PREVOTE, Type.HEARTBEAT]


def test_who_hears_its_own_echo_takes_it_for_nothing(bus: PtyBus) -> None:
    bus.echo = True
    joined(bus, 3)
    for number, line in bus.lines.items():
        line.send(heartbeat(number), urgent=False)
    bus.until(lambda: all(len(heard) == 2 for heard in bus.heard.values()), "heard")
    assert all(said(data)[1] != number for number, heard in bus.heard.items() for data in heard)
    assert all(line.counters()["in: echo"] > 0 for line in bus.lines.values())


def test_garbage_costs_no_more_than_the_frames_that_it_meets(bus: PtyBus) -> None:
    joined(bus, 3)
    for seq in range(20):
        bus.spread(os.urandom(300))
        bus.lines[0].send(heartbeat(0, seq), urgent=False)
        end_s = time.monotonic() + 0.02
        bus.until(lambda: time.monotonic() > end_s, "later")  # noqa: B023
    bus.lines[0].send(vote(Type.PRECOMMIT, 0), urgent=True)
    bus.until(lambda: Type.PRECOMMIT in [said(data)[0] for data in bus.heard[2]], "heard")
    assert bus.lines[2].counters()["in: too long"] > 0


def test_an_adapter_that_is_plugged_in_again_is_taken_again(bus: PtyBus) -> None:
    joined(bus, 3)
    bus.unplug(1)
    bus.until(lambda: bus.lines[1].counters()["line"] == 0, "lost")
    bus.lines[1].send(vote(Type.PREVOTE, 1), urgent=True)
    bus.until(lambda: bus.lines[0].counters()["present"] == 2, "left out")
    bus.plug(1)
    bus.until(lambda: len(bus.heard[0]) == 1 and len(bus.heard[2]) == 1, "heard")
    counters = bus.lines[1].counters()
    assert (counters["line"], counters["line lost"]) == (1, 1)


def test_a_line_that_is_not_there_yet_is_waited_for(bus: PtyBus, caplog: pytest.LogCaptureFixture) -> None:
    bus.members = (0, 1)
    bus.plug(0)
    bus.join(0)
    with caplog.at_level(logging.WARNING, "abupdate"):
        bus.join(1)
        bus.until(lambda: bus.lines[1].counters().get("open errors", 0) >= 2, "tried twice")
    assert caplog.text.count("it is not there") == 1
    assert list(bus.lines[1].descriptors()) == []
    bus.plug(1)
    bus.until(lambda: bus.lines[1].counters()["present"] == 2, "in touch")


def test_what_the_kernel_does_not_take_at_once_is_sent_later(bus: PtyBus) -> None:
    joined(bus, 3)
    flow(bus, 1, termios.TCOOFF)
    line = bus.lines[1]
    line.send(vote(Type.PREVOTE, 1), urgent=True)
    bus.spread(burst([with_token(heartbeat(0), 1)]))
    bus.until(lambda: any(events & select.POLLOUT for _, events in line.descriptors()), "full")
    flow(bus, 1, termios.TCOON)
    bus.until(lambda: len(bus.heard[0]) == 1, "sent")


def test_a_line_that_takes_nothing_for_long_is_given_up_on(bus: PtyBus) -> None:
    joined(bus, 3)
    flow(bus, 1, termios.TCOOFF)
    line = bus.lines[1]
    bus.until(lambda: line.counters().get("out: the line takes nothing", 0) == 1, "given up")
    flow(bus, 1, termios.TCOON)
    line.send(heartbeat(1), urgent=False)
    bus.until(lambda: bool(bus.heard[0]), "works again")


def test_two_daemons_do_not_share_a_line(bus: PtyBus) -> None:
    bus.plug(0)
    first = SerialPort(bus.path(0), 115200, rs485=False)
    with pytest.raises(Gone):
        SerialPort(bus.path(0), 115200, rs485=False)
    first.close()
    SerialPort(bus.path(0), 115200, rs485=False).close()


def test_what_is_no_serial_port_is_an_open_error(bus: PtyBus) -> None:
    bus.path(0).write_bytes(b"")
    with pytest.raises(Gone):
        SerialPort(bus.path(0), 115200, rs485=False)


# -- the direction of RS-485


def test_where_the_kernel_refuses_the_adapter_must_switch_and_the_log_says_so(bus: PtyBus, caplog: pytest.LogCaptureFixture) -> None:
    bus.members = (0, 1)
    for number in bus.members:
        bus.plug(number)
    with caplog.at_level(logging.WARNING, "abupdate"):
        bus.join(0, rs485=True)
        bus.join(1, rs485=True)
        bus.until(lambda: all(line.counters()["present"] == 2 for line in bus.lines.values()), "in touch")
    assert "the adapter must do that by itself" in caplog.text
    assert bus.lines[0].counters()["kernel switches"] == 0


@pytest.mark.parametrize(("can", "switches"), [(0xFFFF, True), (0, False)])
def test_the_kernel_is_asked_and_believed(bus: PtyBus, monkeypatch: pytest.MonkeyPatch, can: int, switches: bool) -> None:
    asked: list[bytes] = []

    def driver(descriptor: int, request: int, argument: bytes) -> bytes:
        """As a serial driver does: it keeps the flags that it can do."""
        if request == 0x542F:
            asked.append(argument)
        flags = int.from_bytes(asked[-1][:4], sys.byteorder) & can
        return flags.to_bytes(4, sys.byteorder) + asked[-1][4:]

    monkeypatch.setattr(serialport, "fcntl", SimpleNamespace(ioctl=driver))
    bus.plug(0)
    port = SerialPort(bus.path(0), 115200, rs485=True)
    assert port.kernel_switches is switches
    # Enabled, RTS high while sending, nobody hears itself, no delays: struct serial_rs485.
    assert asked == [(3).to_bytes(4, sys.byteorder) + bytes(28)]
    port.close()


# -- adapters


def sysfs(folder: Path, *adapters: tuple[str, str, str, str]) -> Path:
    """/sys/class/tty with these adapters (name, vendor, product, serial number) and a port that is none."""
    classes = folder / "class"
    classes.mkdir()
    (classes / "console").mkdir()
    for number, (name, vendor, product, number_text) in enumerate(adapters):
        usb = folder / f"devices/usb1/1-{number}"
        tty = usb / f"1-{number}:1.0/{name}"
        tty.mkdir(parents=True)
        (usb / "idVendor").write_text(vendor + "\n")
        (usb / "idProduct").write_text(product + "\n")
        if number_text:
            (usb / "serial").write_text(number_text + "\n")
        (classes / name).mkdir()
        (classes / name / "device").symlink_to(tty)
    return classes


def test_an_adapter_is_found_by_its_numbers(tmp_path: Path) -> None:
    folder = sysfs(tmp_path, ("ttyUSB0", "1a86", "7523", ""), ("ttyUSB1", "0403", "6001", "A9"), ("ttyUSB2", "0403", "6001", "A10"))
    assert find("usb:0403:6001:A10", folder=folder) == Path("/dev/ttyUSB2")
    assert find("usb:1a86:7523", folder=folder) == Path("/dev/ttyUSB0")
    assert find("usb:0403:6001:A1", folder=folder) is None
    assert find("usb:0403:6015", folder=folder) is None
    assert find("usb:1a86:7523:A9", folder=folder) is None


def test_an_adapter_whose_number_is_no_text_is_no_hindrance(tmp_path: Path) -> None:
    folder = sysfs(tmp_path, ("ttyUSB0", "1a86", "7523", "x"), ("ttyUSB1", "0403", "6001", "A9"))
    (tmp_path / "devices/usb1/1-0/serial").write_bytes(b"\xff\xfe\n")
    assert find("usb:0403:6001:A9", folder=folder) == Path("/dev/ttyUSB1")
    assert find("usb:1a86:7523", folder=folder) == Path("/dev/ttyUSB0")


def test_of_several_adapters_the_first_is_taken_and_the_log_names_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = sysfs(tmp_path, ("ttyUSB4", "0403", "6001", "A9"), ("ttyUSB3", "0403", "6001", ""))
    with caplog.at_level(logging.WARNING, "abupdate"):
        assert find("usb:0403:6001", folder=folder) == Path("/dev/ttyUSB3")
    assert "/dev/ttyUSB3 (no serial number), /dev/ttyUSB4 (A9)" in caplog.text


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "by-id").touch()
    assert find(str(tmp_path / "by-id")) == tmp_path / "by-id"
    assert find(str(tmp_path / "gone")) is None


class Udev:
    """pyudev, as far as it is used: two adapters, and whatever happens."""

    def __init__(self) -> None:
        self.actions: list[str] = []
        self.Monitor = SimpleNamespace(from_netlink=lambda context: self)

    def Context(self) -> Udev:
        return self

    def list_devices(self, subsystem: str) -> list[SimpleNamespace]:
        assert subsystem == "tty"
        usb = {"ID_BUS": "usb", "ID_VENDOR_ID": "0403", "ID_MODEL_ID": "6001"}
        return [
            SimpleNamespace(device_node="/dev/ttyS0", properties={}),
            SimpleNamespace(device_node="/dev/ttyUSB7", properties={**usb, "ID_SERIAL_SHORT": "B1"}),
            SimpleNamespace(device_node="/dev/ttyUSB5", properties={**usb, "ID_SERIAL_SHORT": "B2"}),
        ]

    def filter_by(self, subsystem: str) -> None:
        assert subsystem == "tty"

    def start(self) -> None:
        pass

    def fileno(self) -> int:
        return 99

    def poll(self, timeout: float) -> SimpleNamespace | None:
        return SimpleNamespace(action=self.actions.pop(0)) if self.actions else None


def test_udev_is_asked_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    udev = Udev()
    monkeypatch.setattr(usbserial, "_pyudev", lambda: udev)
    assert find("usb:0403:6001:B1") == Path("/dev/ttyUSB7")
    assert find("usb:0403:6001:B2") == Path("/dev/ttyUSB5")
    watch = usbserial.PlugWatch()
    assert watch.descriptor == 99
    assert not watch.came()
    udev.actions = ["remove", "add"]
    assert watch.came()
    udev.actions = ["remove"]
    assert not watch.came()
    watch.close()
    assert watch.descriptor == -1


# -- what must be installed


@pytest.mark.parametrize(("missing", "package"), [("serial", "python3-serial"), ("cobs", "pip install cobs")])
def test_a_library_that_is_missing_is_named(missing: str, package: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
from abupdate.errors import ConfigError
try:
    import abupdate.fleet.serialline
except ConfigError as error:
    print(error.line)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert package in done.stdout


# -- frames in a stream of bytes


def test_frames_come_out_of_any_pieces() -> None:
    frames = [heartbeat(1), bytes(247), b"\xff" * 247, vote(Type.PREVOTE, 2)]
    whole = burst(frames)
    for size in (1, 2, 7, 100, len(whole)):
        deframer = Deframer()
        found = [one for start in range(0, len(whole), size) for one in deframer.feed(whole[start : start + size])]
        assert found == frames
        assert not deframer.dropped


def test_a_frame_stands_alone_behind_whatever_a_driver_makes_when_it_is_switched_on() -> None:
    deframer = Deframer()
    assert deframer.feed(b"\xff" + burst([heartbeat(1)])) == [heartbeat(1)]
    assert deframer.dropped == {"no frame": 1}


def test_the_longest_frame_fits_and_a_vote_takes_127_bytes() -> None:
    # One more delimiter stands before a burst.
    assert len(burst([vote(Type.PREVOTE, 1)])) == 1 + 127
    assert len(burst([bytes(range(1, 248))])) - 2 <= MAX_ENCODED_BYTES
    assert MAX_ENCODED_BYTES + 1 <= 256


def test_a_stream_without_an_end_takes_no_memory() -> None:
    deframer = Deframer()
    for _ in range(1000):
        assert deframer.feed(b"\x55" * 1000) == []
        assert deframer.held_bytes <= MAX_ENCODED_BYTES
    assert deframer.feed(b"\x00" + burst([heartbeat(3)])) == [heartbeat(3)]
    assert deframer.dropped == {"too long": 1}
