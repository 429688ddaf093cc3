"""The boot-time service: deals with the outcome of this boot, pets the watchdog, judges a trial and ends it.

One thread, one loop: what stops the loop stops the petting. Everything that can take long runs beside it and is polled.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from abupdate import machine
from abupdate.errors import AbupdateError, Busy, Failed, StoreUnreadable
from abupdate.log import log
from abupdate.model import Facts, Situation, Verdict
from abupdate.operations import verdict
from abupdate.operations.board import Board, observe, perform, settle
from abupdate.ports import Announcer, TrialWatch, Watchdog

_TICK_S = 0.5
_LOOK_S = 5.0
_LATEST_S = 3600.0
_CONFIRM_TRIES_S = 20.0
_REBOOT_PATIENCE_S = 90.0


@dataclass(frozen=True, slots=True)
class Numbers:
    """Seconds, from [trial] and [watchdog]: of the window, granted to a shutdown, of the hardware between two pets."""

    window_s: float
    boot_timeout_s: int
    pet_timeout_s: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """open_watchdog: opens and so starts it (raises Busy, ConfigError). running: it runs already and waits to be petted.

    hinted: the boot side says that this boot is a trial. always: pet on every boot. disarm: stop it once the slot is confirmed.
    reboot: orders one; reboot_now: does without the init system. going_down: the init system is shutting down.
    rebooting: it does so for a reboot, not to power off.
    """

    open_watchdog: Callable[[], Watchdog]
    running: Callable[[], bool]
    hinted: bool
    always: bool
    disarm: bool
    reboot: Callable[[], None]
    reboot_now: Callable[[], None]
    going_down: Callable[[], bool]
    rebooting: Callable[[], bool] = lambda: False


class Stop(Exception):
    """The service is asked to end."""


class Service:
    """`abupdate service`. trial_only: return when the trial is confirmed, the watchdog armed for the next process."""

    def __init__(
        self,
        board: Board,
        watch: Callable[[], TrialWatch],
        hardware: Hardware,
        announcer: Announcer,
        numbers: Numbers,
        *,
        trial_only: bool = False,
    ) -> None:
        self._board = replace(board, breathe=self._breathe)
        self._watch = watch
        self._hardware = hardware
        self._announcer = announcer
        self._numbers = numbers
        self._trial_only = trial_only
        self._watchdog: Watchdog | None = None
        self._complained = ""
        self._wake = -1
        self._stop = False
        self._settled = False
        self._wanted = False
        self._next_pet_s = 0.0
        self._granted_s = numbers.pet_timeout_s
        self._again_s = 2 * _LOOK_S

    def run(self) -> int:
        """Serve until SIGTERM (the ordered reboot's too), a reboot that nobody carries out (exit 1), or the confirmation (trial_only)."""
        with self._signals():
            try:
                return self._serve()
            except Stop:
                self._announcer.stopping()
                self._depart()
                self._leave_watchdog()
                return 0

    def _serve(self) -> int:
        # Before anything that could take long: it may be running since the boot side armed it. One that runs because somebody
        # else holds and pets it (systemd) is left to them.
        self._wanted = self._hardware.hinted or self._hardware.always
        if self._wanted or self._hardware.running():
            self._try_watchdog()
            self._wanted = self._wanted or self._watchdog is not None
        facts = self._start()
        on_trial = facts is not None and machine.situation(facts) is Situation.ON_TRIAL
        if facts is None and self._hardware.hinted:
            # The store does not say, the boot side does: a trial that nobody can confirm ends with the window.
            on_trial = True
        if on_trial:
            self._wanted = True
            self._announcer.ready("on trial")
            log.warning("slot %s is on trial", facts.booted if facts else "?")
            uncounted = facts is not None and machine.tried_out(facts)
            code = self._go_back("tries exhausted: the bootloader could not count them") if uncounted else self._trial()
            if code is not None:
                return code
        else:
            self._announcer.ready("watching")
        if self._trial_only:
            if self._watchdog is not None:
                # The next process has as long as a boot has: on a busy device it starts slowly, and nobody pets until then.
                with contextlib.suppress(AbupdateError):
                    self._watchdog.set_timeout(max(self._numbers.boot_timeout_s, self._numbers.pet_timeout_s))
                self._watchdog.hand_over()
            return 0
        return self._watching()

    def _start(self) -> Facts | None:
        """Settle this boot's outcome, refill the running slot's boots. None where the boot store cannot be read."""
        board = self._board
        try:
            # Nobody pets while it waits, and some hardware leaves less than a flash takes.
            with board.state.lock(min(_LOOK_S, self._granted_s / 3)):
                facts = observe(board, readable=False)
                perform(board, machine.rebuild(facts))
                facts = settle(board)
                perform(board, machine.decide(facts, machine.Start()))
                if machine.situation(facts) is Situation.ARMED:
                    board.store.rearm()
                self._settled = True
                # Not where it failed: what nobody has dealt with must not look as if somebody had.
                with contextlib.suppress(OSError):
                    board.boot.mark_settled()
                # Copies of the floor that a cut or a new board has left behind: no part of this boot's outcome.
                perform(board, machine.lagging(observe(board)))
        except Busy:
            # A flash that outlived the service holds the lock; this boot's outcome is dealt with when it has ended.
            log.info("another abupdate is at work; settling later")
        except AbupdateError as error:
            self._complain(error.line)
            # What the medium refused now may work in a moment, or never: asking wears it out.
            self._settled = not isinstance(error, StoreUnreadable | Failed)
            self._again_s = min(2 * self._again_s, _LATEST_S) if isinstance(error, Failed) else 2 * _LOOK_S
        return self._look()

    def _look(self) -> Facts | None:
        try:
            return observe(self._board)
        except AbupdateError as error:
            self._complain(error.line)
            return None

    def _trial(self) -> int | None:
        """Watch over the trial; None when the slot is confirmed, else the exit code after ordering the reboot."""
        boot = self._board.boot
        try:
            watch = self._watch()
        except AbupdateError as error:
            # Health programs that cannot be run say as little for this slot as ones that fail.
            return self._go_back(f"health cannot be checked: {error.message}")
        look_s = boot.boottime_s() + _LOOK_S
        ended_by_hand = False
        try:
            while True:
                self._tick()
                now_s = boot.boottime_s()
                if now_s >= look_s:
                    look_s = now_s + _LOOK_S
                    facts = self._look()
                    where = machine.situation(facts) if facts else None
                    if where is Situation.STEADY:
                        log.warning("confirmed by hand")
                        return None
                    ended_by_hand = where is Situation.REBOOT_PENDING
                if ended_by_hand:
                    if now_s >= self._numbers.window_s:
                        return self._reboot("reverted by hand and not rebooted")
                    continue
                decision = watch.tick(now_s)
                if decision.verdict is Verdict.CONFIRM:
                    problem = self._confirm()
                    if not problem:
                        log.warning("slot is confirmed: %s", decision.reason)
                        return None
                    return self._go_back(f"confirm failed: {problem}")
                if decision.verdict is Verdict.REVERT:
                    return self._go_back(decision.reason)
        finally:
            watch.stop()

    def _confirm(self) -> str:
        """Confirm; empty, or why it does not work after some tries."""
        boot = self._board.boot
        end_s = boot.boottime_s() + _CONFIRM_TRIES_S
        while True:
            try:
                verdict.confirm(self._board, 0.0)
                return ""
            except AbupdateError as error:
                facts = self._look()
                if facts is not None and machine.situation(facts) is Situation.STEADY:
                    return ""
                self._complain(f"cannot confirm: {error.message}")
                if boot.boottime_s() >= end_s:
                    return error.message
                self._tick()

    def _go_back(self, reason: str) -> int:
        log.error("going back: %s", reason)
        self._pet(force=True)
        try:
            wait_s = min(self._numbers.pet_timeout_s, self._granted_s) / 3
            verdict.revert(self._board, reason, wait_s, on_trial_only=True)
        except Busy:
            # Whoever holds the lock does not end; the device's safety does not wait for it. The boot store has a lock of its own.
            self._revert_without_lock(reason)
        except AbupdateError as error:
            # The tries run out, then: every reboot of this slot costs one.
            log.error("the boot state cannot be turned back: %s", error.message)
        return self._reboot(reason)

    def _revert_without_lock(self, reason: str) -> None:
        try:
            perform(self._board, machine.decide(observe(self._board), machine.Revert(reason, on_trial_only=True)))
        except AbupdateError as error:
            log.error("the boot state cannot be turned back: %s", error.message)

    def _reboot(self, reason: str) -> int:
        """Order a reboot with the hardware armed, so that a shutdown that hangs ends too; nobody pets it any more."""
        self._announcer.status(f"rebooting: {reason}")
        if self._watchdog is None:
            self._try_watchdog()
        if self._watchdog is not None:
            with contextlib.suppress(AbupdateError):
                self._watchdog.set_timeout(self._numbers.boot_timeout_s)
                self._watchdog.hand_over()
            self._watchdog = None
        try:
            self._hardware.reboot()
        except AbupdateError as error:
            log.error("%s", error.message)
        end_s = self._board.boot.boottime_s() + _REBOOT_PATIENCE_S
        while self._board.boot.boottime_s() < end_s:
            try:
                self._sleep(_TICK_S)
            except Stop:
                # The shutdown has begun. To fail now would let FailureAction= cut it short.
                return 0
        self._hardware.reboot_now()
        return 1

    def _watching(self) -> int:
        """A slot that is not on trial: pet where that is configured, settle what could not be settled yet; until SIGTERM."""
        if self._hardware.disarm and self._watchdog is not None and not self._hardware.always:
            problem = self._watchdog.disarm()
            if problem:
                log.warning("the watchdog cannot be stopped and is petted on: %s", problem)
            else:
                self._watchdog, self._wanted = None, False
        look_s = self._board.boot.boottime_s() + self._again_s
        while True:
            self._tick()
            now_s = self._board.boot.boottime_s()
            if not self._settled and now_s >= look_s:
                self._start()
                look_s = now_s + self._again_s

    def _tick(self) -> None:
        self._pet()
        if self._announcer.watchdog_s is not None:
            self._announcer.alive()
        idle = not self._wanted and self._settled and self._announcer.watchdog_s is None
        self._sleep(60.0 if idle else _TICK_S)

    def _pet(self, *, force: bool = False) -> None:
        now_s = self._board.boot.boottime_s()
        if self._watchdog is None:
            if self._wanted:
                self._try_watchdog()
            return
        if force or now_s >= self._next_pet_s:
            self._next_pet_s = now_s + min(2.0, self._granted_s / 4)
            try:
                self._watchdog.pet()
            except AbupdateError as error:
                self._complain(f"watchdog: {error.message}")

    def _breathe(self) -> None:
        """Between two steps of the boot store that are bounded each, and not all together."""
        if self._watchdog is not None:
            self._pet()

    def _try_watchdog(self) -> None:
        try:
            watchdog = self._hardware.open_watchdog()
        except AbupdateError as error:
            self._complain(error.line)
            return
        self._watchdog = watchdog
        try:
            granted = watchdog.set_timeout(self._numbers.pet_timeout_s)
            self._granted_s = granted or self._numbers.pet_timeout_s
            if granted and granted != self._numbers.pet_timeout_s:
                log.warning("watchdog: asked for %d s, granted %d s", self._numbers.pet_timeout_s, granted)
            watchdog.pet()
        except AbupdateError as error:
            self._complain(f"watchdog: {error.message}")
        log.info("watchdog is open")

    def _depart(self) -> None:
        """At SIGTERM, while the file systems are mounted. Not for a confirmed slot, nor where the store itself tells what was tried."""
        try:
            if not self._board.store.traits.armed_in_store and self._hardware.rebooting():
                self._board.store.depart()
        except AbupdateError as error:
            # A trial that fails early is then called armed until somebody cancels it.
            log.error("%s", error.line)

    def _leave_watchdog(self) -> None:
        """At SIGTERM: a trial, a shutdown and `always` leave it armed; a stopped service on a confirmed slot must not reset the device."""
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is None:
            return
        facts = self._look()
        trial = (
            facts is None or facts.boot is None or facts.boot.trial == facts.booted or machine.situation(facts) is Situation.REBOOT_PENDING
        )
        with contextlib.suppress(AbupdateError):
            if trial or self._hardware.always:
                watchdog.hand_over()
            elif self._hardware.going_down():
                watchdog.set_timeout(self._numbers.boot_timeout_s)
                watchdog.hand_over()
            else:
                problem = watchdog.disarm()
                if problem:
                    log.error("the watchdog cannot be stopped and resets the machine unless the service is started again: %s", problem)
                    watchdog.hand_over()

    def _complain(self, text: str) -> None:
        """Say it once, not at every tick."""
        if text != self._complained:
            self._complained = text
            log.error("%s", text)

    def _sleep(self, seconds: float) -> None:
        """Wait; raises Stop as soon as a signal asks for the end."""
        if not self._stop:
            select.select([self._wake], [], [], seconds)
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
