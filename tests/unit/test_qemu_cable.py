"""Processes on the emulated devices' LAN: real UDP in network namespaces, through the hub and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from abupdate.formats import frame
from abupdate.formats.messages import EVERYBODY, Frame, Poll, Type
from qemu.cable import plugged
from qemu.lan import FLEET_PORT, Hub
from tests.workstation import environ

PATIENCE_S = 30.0
# Says its frame every 50 ms, and whom it hears.
SPEAKER = """
import sys, time
from abupdate.fleet.udp import Udp
udp = Udp("eth0", "239.255.77.71", int(sys.argv[1]), ())
while True:
    udp.send(bytes.fromhex(sys.argv[2]), urgent=False)
    for _, address in udp.receive(time.monotonic(), 64):
        print(address, flush=True)
    time.sleep(0.05)
"""


def poll(source: int) -> bytes:
    return frame.pack(Frame(Type.POLL, source, EVERYBODY, bytes(4), 1, 0, 0, Poll(), b""))


def until(reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_processes_hear_each_other_through_the_hub_which_knows_who_spoke_and_can_part_them(tmp_path: Path) -> None:
    with ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abu-lan-")))
        hub = stack.enter_context(Hub(sockets, 3))
        said = [tmp_path / f"heard{number}" for number in range(3)]

        def speak(number: int) -> subprocess.Popen[bytes]:
            words = [sys.executable, "-c", SPEAKER, str(FLEET_PORT), poll(number).hex()]
            command = plugged(hub.path(number), f"192.0.2.{number + 1}/24", f"52:54:00:ab:01:0{number}", words)
            with said[number].open("w") as file:
                process = subprocess.Popen(command, env=environ(), stdout=file, stderr=subprocess.STDOUT)
            stack.callback(process.wait, 20)
            stack.callback(process.kill)
            return process

        def heard(number: int) -> set[str]:
            return set(said[number].read_text().split())

        addresses = [f"192.0.2.{number + 1}:{FLEET_PORT}" for number in range(3)]
        first, *_ = (speak(number) for number in range(3))
        until(lambda: all(heard(number) == set(addresses) - {addresses[number]} for number in range(3)))
        seen = {(one.port, one.source, one.data) for one in hub.heard}
        assert seen == {(number, number, poll(number)) for number in range(3)}

        hub.partition({0, 1}, {2})
        # What was under way has arrived when everybody has said some more.
        spoken = len(hub.heard)
        until(lambda: len(hub.heard) > spoken + 9)
        for path in said:
            path.open("w").close()
        until(lambda: len(hub.heard) > spoken + 40)
        alone = said[2].read_text().strip("\0").split()
        assert alone == []

        # The process that was started is the command itself; another takes its place at the same port.
        first.kill()
        first.wait(20)
        hub.heal()
        spoken = len(hub.heard)
        until(lambda: len(hub.heard) > spoken + 20)
        assert {one.port for one in hub.heard[spoken + 5 :]} == {1, 2}
        speak(0)
        until(lambda: addresses[2] in heard(0))
