"""A bus of real terminals: each node has a pseudo terminal, and what one of them sends comes out of all others.

Bytes take no time here; the model of a bus's time is bus.py.
"""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from abupdate.fleet.serialline import SerialLine
from tests.fleet.bus import TAG

BAUD = 1_000_000
_PAUSE_S = 0.1


class PtyHub:
    """The wire. The device of a node is `path(number)`, a link that is there while its adapter is plugged in.

    echo: who sends hears itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.echo = False
        self._masters: dict[int, int] = {}

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

    def close(self) -> None:
        """Unplug all."""
        for number in list(self._masters):
            self.unplug(number)

    def watch(self, poll: select.poll) -> None:
        """Register what there may be to carry."""
        for master in self._masters.values():
            poll.register(master, select.POLLIN)

    def is_idle(self, descriptor: int, events: int) -> bool:
        """A terminal that nobody has open is ready, for nothing."""
        return events == select.POLLHUP and descriptor in self._masters.values()

    def carry(self) -> None:
        """Whatever was sent comes out of the others."""
        for number, master in list(self._masters.items()):
            with suppress(OSError):
                self.spread(os.read(master, 4096), number)

    def spread(self, data: bytes, source: int | None = None) -> None:
        """Bytes that everybody hears."""
        for number, master in self._masters.items():
            if number != source or self.echo:
                with suppress(BlockingIOError):
                    os.write(master, data)


@contextmanager
def running_hub(folder: Path, numbers: range) -> Iterator[PtyHub]:
    """A hub that a thread drives, for nodes that are processes."""
    hub, ended = PtyHub(folder), threading.Event()
    for number in numbers:
        hub.plug(number)

    def run() -> None:
        while not ended.is_set():
            poll = select.poll()
            hub.watch(poll)
            if any(hub.is_idle(*ready) for ready in poll.poll(_PAUSE_S * 1000)):
                ended.wait(0.001)
            hub.carry()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        ended.set()
        thread.join()
        hub.close()


class PtyBus(PtyHub):
    """Media on a hub, all in one thread. lines: by the number of their node. heard: frames, likewise."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.members: tuple[int, ...] = ()
        self.lines: dict[int, SerialLine] = {}
        self.heard: dict[int, list[bytes]] = {}

    def __enter__(self) -> PtyBus:
        return self

    def __exit__(self, *error: object) -> None:
        for line in self.lines.values():
            line.close()
        self.close()

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
        self.watch(poll)
        wake_s = min([line.wake_s for line in self.lines.values()] + [now_s + _PAUSE_S])
        if any(self.is_idle(*ready) for ready in poll.poll(max(0.0, wake_s - now_s) * 1000)):
            time.sleep(0.001)
        self.carry()
        for number, line in self.lines.items():
            self.heard[number] += [data for data, _ in line.receive(time.monotonic(), 64)]
