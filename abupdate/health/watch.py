"""A trial's health as it is sampled: a round of programs every interval, each round a sample for the monitor."""

from __future__ import annotations

from abupdate.health.checks import CheckRun
from abupdate.health.monitor import Limits, Monitor
from abupdate.log import log
from abupdate.model import Decision


class Watch:
    """`ports.TrialWatch` over health programs."""

    def __init__(self, run: CheckRun, limits: Limits, interval_s: float, *, has_programs: bool) -> None:
        """interval_s: from the start of one round to the start of the next; a longer round delays it."""
        self._run = run
        self._interval_s = interval_s
        self._has_programs = has_programs
        self._monitor = Monitor(limits, has_programs)
        self._next_s = 0.0

    def tick(self, now_s: float) -> Decision:
        """See ports.TrialWatch."""
        if self._has_programs:
            if self._run.active:
                done = self._run.poll(now_s)
                if done is not None:
                    log.info("health: %s%s", done.health.name.lower(), f" ({done.reason})" if done.reason else "")
                    self._monitor = self._monitor.sampled(now_s, done.health, done.reason)
            elif now_s >= self._next_s:
                self._next_s = now_s + self._interval_s
                self._run.start(now_s)
        return self._monitor.decide(now_s)

    def stop(self) -> None:
        """See ports.TrialWatch."""
        self._run.cancel()
