"""A simulated device: two slots, a boot loader that counts tries, and the update core that carries out the effects of the fleet's core.

It outlives its node's process, and knows what really happened: the invariants are judged by its word, not by the core's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Protocol

from abupdate.fleet.events import Device as Seen
from abupdate.formats.messages import NOTHING
from abupdate.formats.order import Order
from abupdate.model import Phase
from tests.fleet.images import FACTORY, Fate, Image

TRIES = 2


class Why(Enum):
    """Why a device runs what it runs, or goes down."""

    FACTORY = "factory"
    LEASE = "lease"  # armed under a lease
    NOW = "now"  # an admin's ROLLBACK now
    FALLBACK = "fallback"  # the boot loader's or the update core's own way back
    POWER = "power"  # the same slot again after a power cut


@dataclass(slots=True)
class Slot:
    """What lies in a slot. good: confirmed once, so that it may be gone back to. written: verified, never booted."""

    bundle: bytes
    good: bool = False
    written: bool = False


@dataclass(slots=True)
class Attempt:
    """The record's last attempt. fallen: the boot loader has gone back, and the record does not say so yet."""

    target: bytes
    lease: int | None
    phase: Phase
    reason: str = ""
    tries: int = TRIES
    trial: bool = True
    why: Why = Why.LEASE
    fallen: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds from .. to that a device takes."""

    prepare: tuple[float, float] = (0.5, 6.0)
    drain: tuple[float, float] = (0.1, 2.0)
    boot: tuple[float, float] = (1.0, 8.0)
    window: tuple[float, float] = (3.0, 8.0)


class Watcher(Protocol):
    """Who is told what really happens to a device."""

    def going_down(self, node: int, why: Why, lease: int | None) -> None:
        """It begins to go down on purpose."""

    def booted(self, node: int, bundle: bytes, why: Why, lease: int | None) -> None:
        """It runs this bundle from now on. lease: under which it was armed."""

    def settled(self, node: int, lease: int | None) -> None:
        """What it went down for is over: it is up, and confirmed or back."""


@dataclass(frozen=True, slots=True)
class Shell:
    """What a device can ask of the world around it: later, tell the node's process, be down and up."""

    later: Callable[[float, Callable[[], None]], None]
    observe: Callable[[], None]
    prepared: Callable[[bytes, str, bool], None]
    leave_ended: Callable[[int, str], None]
    power_off: Callable[[], None]
    power_on: Callable[[], None]
    doubted: Callable[[], bool]


@dataclass
class Device:
    """One device. `era` rises with every power cut and `run` with every end of the process: what was under way before never ends."""

    node: int
    random: Random
    shell: Shell
    watcher: Watcher
    images: dict[bytes, Image]
    pace: Pace = Pace()
    refuses_drain: float = 0.0
    slots: dict[str, Slot] = field(default_factory=lambda: {"A": Slot(FACTORY.bundle, good=True), "B": Slot(NOTHING)})
    booted: str = "A"
    attempt: Attempt | None = None
    on_trial: bool = False
    powered: bool = True
    scrapped: bool = False
    down_for: tuple[Why, int | None] | None = None
    era: int = 0
    run: int = 0
    leaving: int | None = None
    reboots: list[tuple[Why, int | None]] = field(default_factory=list)

    @property
    def bundle(self) -> bytes:
        """What runs, or ran last."""
        return self.slots[self.booted].bundle

    @property
    def other(self) -> Slot:
        """The slot that is not booted."""
        return self.slots["B" if self.booted == "A" else "A"]

    @property
    def armed(self) -> bool:
        """The next boot is another slot's first."""
        attempt = self.attempt
        return (
            attempt is not None and attempt.phase is Phase.ARMED and not (self.on_trial or attempt.fallen or self.bundle == attempt.target)
        )

    def seen(self) -> Seen:
        """What the update core's status says."""
        other, attempt = self.other, self.attempt
        return Seen(
            booted=self.bundle,
            other=other.bundle if other.good else NOTHING,
            written=other.bundle if other.written else NOTHING,
            trial=self.on_trial,
            armed=self.armed,
            lease=attempt.lease if attempt else None,
            phase=attempt.phase if attempt else None,
            reason=attempt.reason if attempt else "",
            target=attempt.target if attempt else NOTHING,
        )

    def _span(self, span: tuple[float, float]) -> float:
        return span[0] + (span[1] - span[0]) * self.random.random()

    def _later(self, span: tuple[float, float], act: Callable[[], None]) -> None:
        """By the boot loader, the watchdog or the service: only a power cut stops it."""
        era = self.era

        def unless_cut() -> None:
            if self.powered and self.era == era:
                act()

        self.shell.later(self._span(span), unless_cut)

    def _in_process(self, span: tuple[float, float], act: Callable[[], None]) -> None:
        """By the node's process: its end stops it as well."""
        run = self.run

        def unless_ended() -> None:
            if self.run == run:
                act()

        self._later(span, unless_ended)

    def process_ended(self) -> None:
        """What the node's process was doing ends with it."""
        self.run += 1
        self.leaving = None

    # -- what the core asks for

    def prepare(self, order: Order) -> None:
        """Fetch, verify, write to the inactive slot."""
        if self.other.written and self.other.bundle == order.bundle:
            self._in_process((0.0, 0.1), lambda: self.shell.prepared(order.id, "", True))
            return
        if self.on_trial or self.armed or self.leaving is not None:
            self._in_process((0.0, 0.1), lambda: self.shell.prepared(order.id, "another update is under way", False))
            return
        if order.bundle == self.bundle:
            self._in_process((0.0, 0.1), lambda: self.shell.prepared(order.id, "", True))
            return
        self.slots["B" if self.booted == "A" else "A"] = Slot(NOTHING)
        self.attempt = Attempt(order.bundle, None, Phase.WRITING)
        self._in_process(self.pace.prepare, lambda: self._written(order))

    def _written(self, order: Order) -> None:
        image = self.images.get(order.bundle)
        attempt = self.attempt
        if attempt is None or attempt.target != order.bundle or attempt.phase is not Phase.WRITING:
            return
        if image is None or image.fate(self.node) is Fate.UNWRITABLE:
            attempt.phase = Phase.FAILED
            self.shell.prepared(order.id, "the bundle is not what the order says", True)
        else:
            attempt.phase = Phase.WRITTEN
            slot = self.other
            slot.bundle, slot.written, slot.good = order.bundle, True, False
            self.shell.prepared(order.id, "", True)
        self.shell.observe()

    def leave(self, lease: int, bundle: bytes, *, back: bool) -> None:
        """Drain, arm, go down."""
        if self.leaving is not None or self.on_trial:
            return
        self.leaving = lease

        def drained() -> None:
            self._activate(lease, bundle, back=back)

        if self.refuses_drain and self.random.random() < self.refuses_drain:
            self._in_process(self.pace.drain, lambda: self._stays(lease, "a drain hook refuses"))
        else:
            self._in_process(self.pace.drain, drained)

    def _stays(self, lease: int, reason: str) -> None:
        if self.leaving == lease:
            self.leaving = None
            self.shell.leave_ended(lease, reason)
            self.shell.observe()

    def _activate(self, lease: int, bundle: bytes, *, back: bool) -> None:
        if self.leaving != lease:
            return
        slot, image = self.other, self.images.get(bundle)
        reverts = back and slot.good and slot.bundle == bundle
        if not reverts and not (slot.written and slot.bundle == bundle):
            self._stays(lease, "the bundle is not in the other slot")
        elif image is not None and image.fate(self.node) is Fate.STUCK:
            self.attempt = Attempt(bundle, lease, Phase.FAILED, "the boot environment cannot be written")
            self._stays(lease, "activation failed")
        else:
            self.attempt = Attempt(bundle, lease, Phase.ARMED, trial=not reverts)
            self._in_process((0.0, 0.3), lambda: self.reboot(lease))

    def reboot(self, lease: int) -> None:
        """Boot what is armed under the lease."""
        attempt = self.attempt
        if self.powered and self.armed and attempt is not None and attempt.lease == lease:
            self._go_down(Why.LEASE, lease)

    def disarm(self, lease: int) -> None:
        """Cancel what is armed under the lease, or is being drained for it."""
        attempt = self.attempt
        if self.leaving == lease:
            self.leaving = None
        if self.armed and attempt is not None and attempt.lease == lease:
            attempt.phase = Phase.CANCELLED
        self._in_process((0.0, 0.1), self.shell.observe)

    def roll_back_now(self, order: Order) -> None:
        """Go back at once, by an admin's word."""
        other = self.other
        if self.bundle == order.bundle or not self.powered or self.down_for == (Why.NOW, None):
            return
        if not (other.bundle == order.bundle and (other.good or other.written)):
            return
        self.leaving = None
        self.on_trial = False
        self.attempt = Attempt(order.bundle, None, Phase.ARMED, trial=not other.good, why=Why.NOW)
        self._go_down(Why.NOW, None)

    # -- down and up

    def _go_down(self, why: Why, lease: int | None) -> None:
        self.watcher.going_down(self.node, why, lease)
        self.down_for = (why, lease)
        self.reboots.append((why, lease))
        self._off()
        self.shell.later(self._span(self.pace.boot), self.power_on)

    def _off(self) -> None:
        self.powered = False
        self.era += 1
        self.process_ended()
        self.shell.power_off()

    def power_cut(self) -> None:
        """Out of the blue; `power_on` ends it."""
        if self.powered:
            self._off()
        else:
            self.era += 1

    def power_on(self) -> None:
        """What the boot loader does. Does nothing where it is on, or gone for good."""
        if self.powered or self.scrapped:
            return
        self.powered = True
        self.era += 1
        attempt = self.attempt
        if attempt is not None and attempt.phase is Phase.WRITING:
            attempt.phase = Phase.FAILED
        if attempt is not None and (self.armed or self.on_trial):
            self._boot_armed(attempt)
        else:
            self.watcher.booted(self.node, self.bundle, Why.POWER, None)
            self._settle()
            if attempt is not None and attempt.fallen and attempt.phase is Phase.ARMED:
                self._record_fallback(attempt)
        self.shell.power_on()

    def _boot_armed(self, attempt: Attempt) -> None:
        if attempt.tries == 0:
            self._fall_back(attempt, "the boot loader fell back")
            return
        attempt.tries -= 1
        if not self.on_trial:
            self.booted = "B" if self.booted == "A" else "A"
            # An armed slot that a power cut boots goes down for its lease all the same.
            self.down_for = self.down_for or (attempt.why, attempt.lease)
        self.watcher.booted(self.node, self.bundle, attempt.why, attempt.lease)
        if not attempt.trial:
            self._confirm(attempt)
            return
        self.on_trial = True
        image = self.images[attempt.target]
        fate = image.fate(self.node)
        if fate is Fate.HANGS:
            self._later(self.pace.window, self._bitten)
        elif fate is Fate.CRITICAL:
            self._later(self.pace.window, lambda: self._revert(attempt, "a health check is critical"))
        else:
            self._later(self.pace.window, lambda: self._window_ends(attempt))

    def _bitten(self) -> None:
        self._off()
        self.shell.later(self._span(self.pace.boot), self.power_on)

    def _revert(self, attempt: Attempt, reason: str) -> None:
        attempt.tries = 0
        attempt.reason = reason
        self._bitten()

    def _fall_back(self, attempt: Attempt, reason: str) -> None:
        self.slots[self.booted] = Slot(NOTHING)
        self.booted = "B" if self.booted == "A" else "A"
        self.on_trial = False
        attempt.fallen, attempt.reason = True, attempt.reason or reason
        self.watcher.booted(self.node, self.bundle, Why.FALLBACK, attempt.lease)
        self._settle()
        self._record_fallback(attempt)

    def _record_fallback(self, attempt: Attempt) -> None:
        """What the service does at its start, before or after the node's process looks."""

        def record() -> None:
            if self.attempt is attempt:
                attempt.phase = Phase.REVERTED
                self.shell.observe()

        if self.random.random() < 0.5:
            attempt.phase = Phase.REVERTED
        else:
            self._later((0.0, 3.0), record)

    def _window_ends(self, attempt: Attempt) -> None:
        if self.shell.doubted():
            self._revert(attempt, "peers doubt it")
        else:
            self._confirm(attempt)
            self.shell.observe()

    def _confirm(self, attempt: Attempt) -> None:
        self.on_trial = False
        attempt.phase = Phase.CONFIRMED
        slot = self.slots[self.booted]
        slot.good, slot.written = True, False
        self._settle()

    def _settle(self) -> None:
        if self.down_for is not None:
            lease = self.down_for[1]
            self.down_for = None
            self.watcher.settled(self.node, lease)
