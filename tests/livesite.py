"""A site of real nodes in one thread: real keys, real logs of what was decided, frames handed over in memory, real control sockets.

Devices are made up: what a node wants fetched is there at once, and nobody ever goes down.
"""

from __future__ import annotations

import itertools
import select
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from abupdate.fleet.answers import Answers
from abupdate.fleet.controlserver import ControlServer
from abupdate.fleet.events import Conditions, Device, Event, Observed, Prepare, Prepared, Received, Send, Start, Tick
from abupdate.fleet.identity import Identity
from abupdate.fleet.node import Node
from abupdate.fleet.site import Options
from abupdate.formats import membership as memberships
from abupdate.formats.messages import NOTHING

_POLL_S = 0.01


@dataclass
class LiveNode:
    """One node and its shell. inbox: frames from the others. outbox: frames to them."""

    core: Node
    control: ControlServer
    device: Device
    inbox: deque[bytes] = field(default_factory=deque)
    outbox: list[bytes] = field(default_factory=list)
    events: deque[Event] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.answers = Answers(self.control, self.core, self.hand_in, dict)

    def hand_in(self, event: Event) -> None:
        """An event, and what follows from it."""
        for effect in self.core.handle(event, time.monotonic()):
            if isinstance(effect, Send):
                self.outbox.append(effect.data)
            elif isinstance(effect, Prepare):
                self.device = replace(self.device, written=effect.order.bundle)
                self.events += [Prepared(effect.order.id), Observed(self.device)]

    def turn(self) -> None:
        """Everything that is due."""
        while self.inbox:
            self.hand_in(Received(self.inbox.popleft(), "peer"))
        while self.events:
            self.hand_in(self.events.popleft())
        now_s = time.monotonic()
        for asked in self.control.handle(now_s):
            self.answers.take(asked, now_s)
        self.answers.go_on(now_s)
        if now_s >= self.core.wake_s:
            self.hand_in(Tick())


class LiveSite:
    """Runs while it is entered. A node is `index`, its control socket `sockets[index]`."""

    def __init__(self, membership: bytes, keys: list[Identity], folder: Path) -> None:
        """keys: of the nodes, by their index; every order waits for a person's word (approve = manual)."""
        self.sockets = [folder / f"{member.index}.sock" for member in memberships.parse(membership).members]
        self.nodes: list[LiveNode] = []
        for index, (key, path) in enumerate(zip(keys, self.sockets, strict=True)):
            core = Node(index, (membership,), (), key, Options(base_s=0.5, resend_s=0.5, approve=False))
            device = Device(bytes([1]) * 32, NOTHING, NOTHING, trial=False, armed=False, lease=None, phase=None)
            self.nodes.append(LiveNode(core, ControlServer(path), device))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        for nonce, node in enumerate(self.nodes, 1):
            node.events += [Conditions(), Start(nonce), Observed(node.device)]
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(10)
        for node in self.nodes:
            node.control.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            if not any(node.inbox or node.events for node in self.nodes):
                select.select([node.control for node in self.nodes], [], [], _POLL_S)
            for node in self.nodes:
                node.turn()
            for sender, receiver in itertools.permutations(self.nodes, 2):
                receiver.inbox += sender.outbox
            for node in self.nodes:
                node.outbox.clear()
