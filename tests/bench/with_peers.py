"""abupdate's side of the lock benchmark: nodes in processes of their own over UDP on the loopback, with real keys and real logs.

Each brings itself up once under a lease: the node is gone for `hold_s` and starts again from its log. A node talks with `roll` by lines: it
says `ready N` when it sees all others and `done N` when the plan is over (N: bytes that it has sent); its input is the path of an order to
hand in, or its end.
"""

from __future__ import annotations

import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from abupdate.fleet.events import (
    Compact,
    Device,
    Effect,
    Event,
    Leave,
    Observed,
    Persist,
    Prepare,
    Prepared,
    Received,
    Send,
    Start,
    Submitted,
    Tick,
)
from abupdate.fleet.identity import load_or_create
from abupdate.fleet.node import Node
from abupdate.fleet.site import Options
from abupdate.fleet.store import Store
from abupdate.fleet.udp import Udp
from abupdate.formats.messages import NOTHING
from abupdate.model import Phase
from tests.fleet.authority import Authority, Shape
from tests.fleet.images import FACTORY
from tests.fleet.quietsite import TARGET
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
_FRAMES_AT_ONCE = 64


class Peer:
    """One node and its shell: what the daemon does, with a device that is made up."""

    def __init__(self, index: int, folder: Path, ports: list[int], hold_s: float) -> None:
        self._index = index
        self._membership = (folder / "site.abm").read_bytes()
        self._key = load_or_create(folder / str(index))
        self._folder = folder / str(index)
        others = [("127.0.0.1", port) for number, port in enumerate(ports) if number != index]
        self._udp = Udp("lo", "", ports[index], others)
        self._receivers = len(others)
        self._device = Device(FACTORY.bundle, NOTHING, NOTHING, trial=False, armed=False, lease=None, phase=None)
        self._hold_s = hold_s
        self._back: tuple[float, Device] | None = None
        self._events: list[Event] = []
        self.sent_bytes = 0
        self._start()

    def _start(self) -> None:
        """As after a boot."""
        self._log = Store(self._folder, self._key.public_key)
        loaded = self._log.load()
        self._node = Node(self._index, (self._membership,), loaded.records, self._key, Options())
        self._handle(Start(int.from_bytes(os.urandom(4), "big"), loaded.fault))
        self._handle(Observed(self._device))

    def run(self) -> None:
        """Until the input ends."""
        said: set[str] = set()
        while True:
            poll = select.poll()
            poll.register(sys.stdin, select.POLLIN)
            for descriptor, events in self._udp.descriptors():
                poll.register(descriptor, events)
            wake_s = self._back[0] if self._back is not None else self._node.wake_s
            ready = poll.poll(math.ceil(max(0.0, wake_s - time.monotonic()) * 1000))
            if any(descriptor == sys.stdin.fileno() for descriptor, _ in ready) and not self._told():
                return
            if self._back is not None:
                # It is down: what comes is lost.
                list(self._udp.receive(time.monotonic(), _FRAMES_AT_ONCE))
                if time.monotonic() < self._back[0]:
                    continue
                self._device = self._back[1]
                self._back = None
                self._log.close()
                self._start()
            for data, address in self._udp.receive(time.monotonic(), _FRAMES_AT_ONCE):
                self._handle(Received(data, address))
            if time.monotonic() >= self._node.wake_s:
                self._handle(Tick())
            self._say(said)

    def _told(self) -> bool:
        line = sys.stdin.readline()
        if line:
            self._handle(Submitted(Path(line.strip()).read_bytes()))
        return bool(line)

    def _say(self, said: set[str]) -> None:
        view = self._node.view()
        if "ready" not in said and all(seen.age_s is not None for seen in view.members.values()):
            said.add("ready")
            print("ready", self.sent_bytes, flush=True)
        if "done" not in said and view.closed:
            said.add("done")
            print("done", self.sent_bytes, flush=True)

    def _handle(self, event: Event) -> None:
        self._events.append(event)
        while self._events:
            self._carry_out(self._node.handle(self._events.pop(0), time.monotonic()))

    def _carry_out(self, effects: tuple[Effect, ...]) -> None:
        records: list[Persist] = []
        for effect in effects:
            if isinstance(effect, Persist):
                records.append(effect)
                continue
            self._flush(records)
            match effect:
                case Send(data, urgent):
                    self._udp.send(data, urgent=urgent)
                    self.sent_bytes += len(data) * self._receivers
                case Compact(kept):
                    self._log.replace(kept)
                case Prepare(order):
                    self._device = replace(self._device, written=order.bundle)
                    self._events += [Prepared(order.id), Observed(self._device)]
                case Leave(lease, _, bundle, _):
                    up = Device(bundle, FACTORY.bundle, NOTHING, False, False, lease, Phase.CONFIRMED, target=bundle)
                    self._back = time.monotonic() + self._hold_s, up
                case _:
                    pass
        self._flush(records)

    def _flush(self, records: list[Persist]) -> None:
        if records:
            self._log.append([(record.kind, record.data) for record in records])
            records.clear()


@dataclass
class Rolled:
    """seconds: from the order until every node knows that the plan is over. sent_bytes: in that time, of UDP payload."""

    seconds: float
    sent_bytes: int


@contextmanager
def peers(folder: Path, count: int, hold_s: float) -> Iterator[list[subprocess.Popen[str]]]:
    """A site whose nodes run and see each other."""
    keys = {index: load_or_create(folder / str(index)).public_key for index in range(count)}
    authority = Authority("bench")
    membership = authority.found(Shape(count, 0, count - 1, heartbeat_s=5), keys)
    (folder / "site.abm").write_bytes(authority.files[membership.digest])
    order = authority.update(membership, 1, TARGET, share=100, width=1, overdue_s=3600)
    (folder / "order.abo").write_bytes(authority.order_files[order.id])
    ports = free_ports(count)
    words = [str(folder), str(hold_s), *map(str, ports)]
    commands = [[sys.executable, "-m", "tests.bench.with_peers", str(index), *words] for index in range(count)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for command in commands]
    try:
        yield processes
    finally:
        for process in processes:
            process.communicate()


def roll(folder: Path, count: int, hold_s: float) -> Rolled:
    """One plan that brings all nodes up, one after the other."""
    with peers(folder, count, hold_s) as processes:
        before = sum(_number(process, "ready") for process in processes)
        assert processes[0].stdin is not None
        start_s = time.monotonic()
        processes[0].stdin.write(f"{folder / 'order.abo'}\n")
        processes[0].stdin.flush()
        after = sum(_number(process, "done") for process in processes)
        return Rolled(time.monotonic() - start_s, after - before)


def _number(process: subprocess.Popen[str], word: str) -> int:
    assert process.stdout is not None
    said, _, number = process.stdout.readline().strip().partition(" ")
    if said != word:
        raise RuntimeError(f"a node said {said!r} instead of {word!r}")
    return int(number)


def main() -> int:
    """One node's process."""
    index, folder, hold_s, *ports = sys.argv[1:]
    Peer(int(index), Path(folder), [int(port) for port in ports], float(hold_s)).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
