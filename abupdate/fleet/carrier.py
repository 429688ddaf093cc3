"""Carries out what the core wants done to this device, by commands of abupdate's own that run beside the daemon.

At most one acts on the slots at a time; a Prepare gives way to whatever else is wanted. Hooks about peers run one after the other beside
that. What a command reached is never believed: the device is looked at again after it, and the core decides on that.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from abupdate.errors import AbupdateError
from abupdate.fleet.events import (
    Device,
    Disarm,
    Effect,
    Event,
    Leave,
    LeaveEnded,
    Observed,
    PeerLeaving,
    PeerReturned,
    Prepare,
    Prepared,
    Reboot,
    Restored,
    RollBackNow,
)
from abupdate.fleet.jobs import Ended, Job
from abupdate.formats.order import Order
from abupdate.log import log

# A bundle may come over a slow line; a shutdown that was ordered and does not happen is noticed after this.
_FETCH_S = 12 * 3600.0
_ACT_S = 3600.0
_GOING_DOWN_S = 180.0
_MAX_HOOKS = 64
_NOTHING: Mapping[str, object] = {}
_FAILED = 1
_REFUSED = 3
_WRONG_USE = 2

Acting = Prepare | Leave | Reboot | Disarm | RollBackNow


@dataclass(frozen=True, slots=True)
class Commands:
    """Command lines, as `abupdate` is called on this device.

    fetch: writes a SOURCE's bundle, which must have this id, to the inactive slot. act: `leave`, `reboot`, `disarm` or `back` with more
    words. hooks: runs the programs of a kind. has_hooks: whether there are any.
    """

    fetch: Callable[[str, bytes], tuple[str, ...]]
    act: Callable[..., tuple[str, ...]]
    hooks: Callable[[str], tuple[str, ...]]
    has_hooks: Callable[[str], bool]


@dataclass(slots=True)
class _Running:
    """What acts on the device now. sources: of a Prepare, those that were not tried yet. faults: what the tried ones said.

    down_s: the reboot is ordered, when it should have happened; or there is no source to try, now.
    """

    effect: Acting
    job: Job | None
    sources: deque[str]
    faults: list[tuple[int, str]]
    down_s: float = math.inf


class Carrier:
    """`carry` begins, `poll` goes on and tells the core what came of it. descriptors: readable when `poll` has something to do."""

    def __init__(
        self, commands: Commands, look: Callable[[], Device], name: Callable[[int], str], *, kept: int, drain_s: float, hook_s: float
    ) -> None:
        """look: raises AbupdateError where the device cannot be looked at. name: of a member. kept: a descriptor whose lock lasts as long
        as any command that goes down. drain_s, hook_s: for all programs of one kind together.
        """
        self._commands = commands
        self._look = look
        self._name = name
        self._kept = kept
        self._drain_s = drain_s
        self._hook_s = hook_s
        self._running: _Running | None = None
        self._next: Acting | None = None
        self._hook: Job | None = None
        self._hooks: deque[tuple[str, bytes]] = deque()
        self._complained = self._failed = ""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to wait on."""
        running = self._running.job if self._running else None
        return tuple(job.descriptor for job in (running, self._hook) if job is not None)

    @property
    def wake_s(self) -> float:
        """When `poll` is to be called at the latest; infinity: when a descriptor is readable."""
        running = self._running
        times = [job.wake_s for job in (running.job if running else None, self._hook) if job is not None]
        return min([*times, running.down_s if running else math.inf])

    @property
    def doing(self) -> str:
        """For people: what acts on the device now."""
        return type(self._running.effect).__name__ if self._running else ""

    def observe(self) -> Observed | None:
        """The device as it is now; None (said once) where it cannot be looked at."""
        try:
            device = self._look()
        except AbupdateError as error:
            if error.message != self._complained:
                self._complained = error.message
                log.error("the device cannot be looked at: %s", error.line)
            return None
        self._complained = ""
        return Observed(device)

    def carry(self, effect: Effect, now_s: float) -> bool:
        """Begin with an effect on this device; False where it is none. Raises OSError where no process can be started."""
        match effect:
            case Prepare() | Leave() | Reboot() | Disarm() | RollBackNow():
                self._want(effect, now_s)
            case PeerLeaving(node, lease, expected_s):
                self._queue("peer-leaving", {"node": self._name(node), "lease": lease, "expected_s": expected_s}, now_s)
            case PeerReturned(node, lease):
                self._queue("peer-returned", {"node": self._name(node), "lease": lease}, now_s)
            case Restored(lease, ending):
                self._queue("restore", {"lease": lease, "ending": ending}, now_s)
            case _:
                return False
        return True

    def poll(self, now_s: float) -> tuple[Event, ...]:
        """Look after what runs; the events that follow."""
        self._poll_hook(now_s)
        running = self._running
        if running is None:
            return ()
        if running.job is None:
            return self._overdue(running, now_s)
        ended = running.job.poll(now_s)
        if ended is None:
            return ()
        running.job = None
        events = self._ended(running, ended, now_s)
        if self._running is None and self._next is not None:
            following, self._next = self._next, None
            self._want(following, now_s)
        return events

    def close(self) -> None:
        """End what runs, unless the device is going down already."""
        running = self._running
        if running is not None and running.job is not None:
            running.job.kill()
        if self._hook is not None:
            self._hook.kill()
        self._running = self._hook = None

    # -- the device

    def _want(self, effect: Acting, now_s: float) -> None:
        running = self._running
        if running is None:
            self._start(effect, now_s)
        elif type(running.effect) is type(effect) and not isinstance(effect, Prepare):
            # Asked for again while it is being done.
            return
        elif isinstance(running.effect, Prepare) and running.job is not None:
            self._next = effect
            running.job.stop(now_s)
        else:
            self._next = effect

    def _start(self, effect: Acting, now_s: float) -> None:
        running = self._running = _Running(effect, None, deque(), [])
        match effect:
            case Prepare(order):
                running.sources.extend(order.sources)
                if not self._fetch(running, order, now_s):
                    running.down_s = now_s
            case Leave(lease, order, bundle, back):
                words = ("--lease", str(lease), "--bundle", bundle.hex())
                version = order.rollback_version if back and order.rollback_version else order.version
                said = {"lease": lease, "order": order.id.hex(), "bundle": bundle.hex(), "version": version, "back": back}
                self._act("leave", words, _ACT_S + self._drain_s, now_s, said)
            case Reboot():
                self._act("reboot", (), _ACT_S, now_s)
            case Disarm(lease):
                self._act("disarm", ("--lease", str(lease)), _ACT_S, now_s)
            case RollBackNow(order):
                said = {"lease": None, "order": order.id.hex(), "bundle": order.bundle.hex(), "version": order.version, "back": True}
                self._act("back", ("--bundle", order.bundle.hex()), _ACT_S + self._drain_s, now_s, said)

    def _act(self, verb: str, words: tuple[str, ...], limit_s: float, now_s: float, said: Mapping[str, object] = _NOTHING) -> None:
        """said: to the programs of drain/, where the verb runs them."""
        assert self._running is not None
        command = self._commands.act(verb, *words)
        self._running.job = Job(command, limit_s, now_s, said=_line("drain", said), kept=(self._kept,))

    def _fetch(self, running: _Running, order: Order, now_s: float) -> bool:
        """Begin with the next source; False where there is none any more."""
        while running.sources:
            source = _local(running.sources.popleft())
            if source.startswith("/") and not os.path.lexists(source):
                # A stick that is not plugged in yet is no reason to reject an order.
                running.faults.append((_FAILED, f"{source} is not there"))
                continue
            log.info("fetching version %s from %s", order.version, source)
            running.job = Job(self._commands.fetch(source, order.bundle), _FETCH_S, now_s)
            return True
        return False

    def _ended(self, running: _Running, ended: Ended, now_s: float) -> tuple[Event, ...]:
        match running.effect:
            case Prepare(order):
                return self._fetched(running, order, ended, now_s)
            case Leave() | Reboot() | RollBackNow() if ended.code == 0:
                # Ordered; whoever shuts the system down ends this process soon.
                running.down_s = now_s + _GOING_DOWN_S
                return ()
            case Leave(lease):
                self._running = None
                log.warning("not going down under lease %d: %s", lease, ended.fault)
                return (LeaveEnded(lease, ended.fault), *self._seen())
            case _:
                self._running = None
                # What an admin has ordered and cannot be done is tried again and again; it is said once.
                if ended.fault != self._failed:
                    self._failed = ended.fault
                    log.warning("%s: %s", type(running.effect).__name__, ended.fault)
                return self._seen()

    def _fetched(self, running: _Running, order: Order, ended: Ended, now_s: float) -> tuple[Event, ...]:
        seen = self._seen()
        if seen and order.bundle in (seen[0].device.written, seen[0].device.booted):
            self._running = None
            return (Prepared(order.id), *seen)
        running.faults.append((ended.code, ended.fault or "the slot does not hold the order's bundle"))
        log.warning("fetching version %s: %s", order.version, running.faults[-1][1])
        if self._next is None and self._fetch(running, order, now_s):
            return ()
        return (self._given_up(running, order), *seen)

    def _given_up(self, running: _Running, order: Order) -> Prepared:
        self._running = None
        # One source that may work next time is enough to try again.
        lasting = [fault for code, fault in running.faults if code in (_REFUSED, _WRONG_USE)]
        final = len(lasting) == len(running.faults)
        return Prepared(order.id, lasting[0] if final else running.faults[-1][1], final=final)

    def _overdue(self, running: _Running, now_s: float) -> tuple[Event, ...]:
        if now_s < running.down_s:
            return ()
        if isinstance(running.effect, Prepare):
            return (self._given_up(running, running.effect.order), *self._seen())
        self._running = None
        log.error("a reboot was ordered %d s ago and has not happened", _GOING_DOWN_S)
        ended = (LeaveEnded(running.effect.lease, "the reboot did not happen"),) if isinstance(running.effect, Leave) else ()
        return (*ended, *self._seen())

    def _seen(self) -> tuple[Observed, ...]:
        seen = self.observe()
        return (seen,) if seen is not None else ()

    # -- hooks

    def _queue(self, kind: str, said: Mapping[str, object], now_s: float) -> None:
        if not self._commands.has_hooks(kind):
            return
        if len(self._hooks) >= _MAX_HOOKS:
            log.error("hooks %s: %d others wait, this one is dropped", kind, _MAX_HOOKS)
            return
        self._hooks.append((kind, _line(kind, said)))
        self._poll_hook(now_s)

    def _poll_hook(self, now_s: float) -> None:
        if self._hook is not None:
            ended = self._hook.poll(now_s)
            if ended is None:
                return
            self._hook = None
            if ended.fault:
                log.warning("hooks: %s", ended.fault)
        if self._hooks:
            kind, said = self._hooks.popleft()
            self._hook = Job(self._commands.hooks(kind), self._hook_s, now_s, said=said)


def _local(source: str) -> str:
    """A file: URL as the path that it names; everything else as it is."""
    parts = urlsplit(source) if source.startswith("file:") else None
    return unquote(parts.path) if parts is not None and parts.netloc in ("", "localhost") else source


def _line(kind: str, said: Mapping[str, object]) -> bytes:
    return json.dumps({"event": kind, **said}).encode() + b"\n"
