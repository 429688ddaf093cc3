"""The shell around the core: one thread, one loop that waits for frames, children, questions and time, and carries effects out in order.

What stands behind a record happens only after that record is durable; records in a row share one flush. A log that cannot be written ends
the daemon: nothing that depends on it was sent, and the next start finds out what the medium holds.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from abupdate.fleet.answers import Answers
from abupdate.fleet.carrier import Carrier
from abupdate.fleet.controlserver import ControlServer
from abupdate.fleet.events import (
    Alarm,
    Compact,
    Conditions,
    Decided,
    Effect,
    Event,
    Persist,
    Received,
    Send,
    Start,
    Tick,
)
from abupdate.fleet.outlook import doubts, peer_health
from abupdate.fleet.ports import Core, Log, Medium
from abupdate.formats.peerhealth import PeerHealth
from abupdate.log import log
from abupdate.ports import Announcer

LOOK_S = 5.0
# A daemon that starts again and again must not wear out a TPM.
NOTE_AFTER_S = 60.0
# Frames of one medium between two looks at everything else: a flood must not keep the node from speaking.
_FRAMES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class World:
    """What the daemon asks the system for.

    clock: seconds that never go back. boottime_s: since boot, with suspend. window_open: of this moment, by local time. tell_health: puts
    the word for the trial's health check where that looks for it. note_start: keeps the number of this start outside the log.
    """

    clock: Callable[[], float]
    boottime_s: Callable[[], float]
    window_open: Callable[[], bool]
    tell_health: Callable[[PeerHealth], None]
    note_start: Callable[[int], None]


class Stop(Exception):
    """The daemon is asked to end."""


class Daemon:
    """`abupdate fleet daemon`. The core has been made from the log's records; `run` starts it."""

    def __init__(
        self,
        core: Core,
        log_: Log,
        media: Sequence[Medium],
        carrier: Carrier,
        control: ControlServer,
        announcer: Announcer,
        world: World,
    ) -> None:
        self._core = core
        self._log = log_
        self._media = tuple(media)
        self._carrier = carrier
        self._control = control
        self._announcer = announcer
        self._world = world
        self._counts: Counter[str] = Counter()
        self._answers = Answers(control, core, self._hand_in, self.counters)
        self._conditions = Conditions()
        self._look_s = 0.0
        self._note_s = 0.0
        self._status = ""
        self._wake = -1
        self._stop = False

    def run(self, start: Start) -> int:
        """Serve until SIGTERM. Raises Failed where the log cannot be written."""
        with self._signals():
            try:
                self._begin(start)
                while True:
                    self._round()
            except Stop:
                self._announcer.stopping()
                return 0
            finally:
                self._carrier.close()
                self._control.close()
                for medium in self._media:
                    medium.close()
                self._log.close()

    def _begin(self, start: Start) -> None:
        now_s = self._world.clock()
        self._note_s = now_s + NOTE_AFTER_S
        # First: before the window is known to be open it is not.
        self._conditions = Conditions(window_open=self._world.window_open())
        self._hand_in(self._conditions)
        self._hand_in(start)
        self._status = self._line()
        self._announcer.ready(self._status)
        self._look(now_s)

    def _round(self) -> None:
        self._wait()
        now_s = self._world.clock()
        for medium in self._media:
            for data, address in medium.receive(now_s, _FRAMES_AT_ONCE):
                self._counts[f"{medium.name} frames in"] += 1
                self._counts[f"{medium.name} bytes in"] += len(data)
                self._hand_in(Received(data, address))
        for event in self._carrier.poll(now_s):
            self._hand_in(event)
        for asked in self._control.handle(now_s):
            self._answers.take(asked, now_s)
        if now_s >= self._core.wake_s:
            self._hand_in(Tick())
        if now_s >= self._look_s:
            self._look(now_s)
        self._answers.go_on(now_s)
        if self._announcer.watchdog_s is not None:
            self._announcer.alive()

    def _look(self, now_s: float) -> None:
        """At the device, and at what the node makes of its peers."""
        view = self._core.view()
        # As often as the node speaks: its doubts are in its heartbeats, and a peer's trial may end on an old one.
        self._look_s = now_s + min(LOOK_S, view.membership.heartbeat_s)
        if now_s >= self._note_s:
            self._note_s = math.inf
            self._world.note_start(self._core.boot)
        seen = self._carrier.observe()
        if seen is not None:
            self._hand_in(seen)
            view = self._core.view()
        conditions = Conditions(self._world.window_open(), seen is not None, doubts(view))
        if conditions != self._conditions:
            self._conditions = conditions
            self._hand_in(conditions)
        self._world.tell_health(peer_health(view, self._world.boottime_s()))
        line = self._line()
        if line != self._status:
            self._status = line
            self._announcer.status(line)

    def _line(self) -> str:
        view = self._core.view()
        doing = self._carrier.doing
        return f"{view.membership.site}: height {view.height}" + (f", {doing.lower()}" if doing else "")

    # -- the core

    def _hand_in(self, event: Event) -> None:
        """An event, and what follows from it. Raises Refused for a Submitted that cannot be valid, Failed where the log fails."""
        self._carry_out(self._core.handle(event, self._world.clock()))

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        records: list[Persist] = []
        for effect in effects:
            if isinstance(effect, Persist):
                records.append(effect)
                continue
            self._flush(records)
            match effect:
                case Send(data, urgent):
                    self._send(data, urgent=urgent)
                case Compact(kept):
                    self._log.replace(kept)
                    self._counts["log compactions"] += 1
                case Decided(height, entry):
                    self._counts["decided"] += 1
                    log.info("height %d: %s", height, type(entry).__name__)
                case Alarm(text):
                    self._counts["alarms"] += 1
                    log.error("%s", text)
                case _:
                    log.info("the core wants: %s", type(effect).__name__)
                    self._carrier.carry(effect, self._world.clock())
        self._flush(records)

    def _flush(self, records: list[Persist]) -> None:
        if records:
            self._log.append([(record.kind, record.data) for record in records])
            self._counts["log records"] += len(records)
            self._counts["log flushes"] += 1
            records.clear()

    def _send(self, data: bytes, *, urgent: bool) -> None:
        for medium in self._media:
            medium.send(data, urgent=urgent)
            self._counts[f"{medium.name} frames out"] += 1
            self._counts[f"{medium.name} bytes out"] += len(data)

    def counters(self) -> Mapping[str, object]:
        """The document of the request `metrics`."""
        view = self._core.view()
        leases = [{"lease": one.lease, "node": one.node, "age_s": round(one.age_s, 1), "lost": one.lost} for one in view.leases]
        return {
            "daemon": dict(sorted(self._counts.items())),
            "media": {medium.name: dict(medium.counters()) for medium in self._media},
            "core": {group: dict(values) for group, values in view.counters.items()},
            "height": view.height,
            "leases": leases,
        }

    # -- waiting

    def _wait(self) -> None:
        """Until something is to be done; raises Stop as soon as a signal asks for the end."""
        times = (self._core.wake_s, self._look_s, self._carrier.wake_s, self._control.wake_s, self._answers.wake_s)
        limits = [one.watchdog_s / 3 for one in (self._announcer,) if one.watchdog_s is not None]
        wake_s = min(*times, *(medium.wake_s for medium in self._media))
        wait_s = max(0.0, min([wake_s - self._world.clock(), *limits]))
        if not self._stop:
            poll = select.poll()
            for descriptor in (self._wake, self._control.fileno(), *self._carrier.descriptors):
                poll.register(descriptor, select.POLLIN)
            for medium in self._media:
                for descriptor, events in medium.descriptors():
                    poll.register(descriptor, events)
            # Rounded up: waking a moment too early would spin.
            poll.poll(math.ceil(wait_s * 1000))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 64)
        if self._stop:
            raise Stop

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(number: int, frame: FrameType | None) -> None:
            self._stop = True

        self._wake, other = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        signal.set_wakeup_fd(other, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._wake)
            os.close(other)
