"""A bus of real terminals: each node has a pseudo terminal, and what one of them sends comes out of all others. One thread drives it all.

Bytes take no time here; the model of a bus's time is bus.py.
"""

from __future__ import annotations

import os
import select
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from abupdate.fleet.serialline import SerialLine
from tests.fleet.bus import TAG

BAUD = 1_000_000


class PtyBus:
    """Lines by the number of their node. The device of a node is `path(number)`, a link that is there while it is plugged in.

    echo: who sends hears itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.echo = False
        self.members: tuple[int, ...] = ()
        self.lines: dict[int, SerialLine] = {}
        self.heard: dict[int, list[bytes]] = {}
        self._masters: dict[int, int] = {}

    def __enter__(self) -> PtyBus:
        return self

    def __exit__(self, *error: object) -> None:
        for line in self.lines.values():
            line.close()
        for master in self._masters.values():
            os.close(master)

    def path(self, number: int) -> Path:
        """What the node's configuration names."""
        return self.folder / f"tty{number}"

    def plug(self, number: int) -> None:
        """The node has an adapter."""
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        self.path(number).unlink(missing_ok=True)
        self.path(number).symlink_to(os.ttyname(slave))
        os.close(slave)
        self._masters[number] = master

    def unplug(self, number: int) -> None:
        """It has none any more."""
        os.close(self._masters.pop(number))
        self.path(number).unlink()

    def join(self, number: int, *, rs485: bool = False) -> SerialLine:
        """A node's medium."""
        line = SerialLine(
            str(self.path(number)),
            BAUD,
            0.001,
            rs485=rs485,
            me=number,
            tag=TAG,
            members=lambda: (1, self.members),
            now_s=time.monotonic(),
        )
        self.lines[number] = line
        self.heard[number] = []
        return line

    def shout(self, data: bytes) -> None:
        """Bytes that everybody hears."""
        self._spread(-1, data)

    def until(self, true: Callable[[], bool], what: str, patience_s: float = 20.0) -> None:
        """Run until something is true; fail when that takes longer than is likely on a slow machine."""
        end_s = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < end_s, f"not {what}: {self.state()}"
            self.step()

    def state(self) -> str:
        """For a test that fails."""
        return "; ".join(f"{number}: {dict(line.counters())}" for number, line in self.lines.items())

    def step(self) -> None:
        """Wait until something is to be done, and do it."""
        now_s = time.monotonic()
        poll = select.poll()
        for line in self.lines.values():
            for descriptor, events in line.descriptors():
                poll.register(descriptor, events)
        for master in self._masters.values():
            poll.register(master, select.POLLIN)
        wake_s = min([line.wake_s for line in self.lines.values()] + [now_s + 0.1])
        for descriptor, events in poll.poll(max(0.0, wake_s - now_s) * 1000):
            # A terminal that nobody has opened yet is ready, for nothing.
            if events == select.POLLHUP and descriptor in self._masters.values():
                time.sleep(0.001)
        for number, master in list(self._masters.items()):
            self._take(number, master)
        for number, line in self.lines.items():
            self.heard[number] += [data for data, _ in line.receive(time.monotonic(), 64)]

    def _take(self, number: int, master: int) -> None:
        try:
            data = os.read(master, 4096)
        except (BlockingIOError, OSError):
            return
        self._spread(number, data)

    def _spread(self, source: int, data: bytes) -> None:
        for number, master in self._masters.items():
            if number != source or self.echo:
                with suppress(BlockingIOError):
                    os.write(master, data)
