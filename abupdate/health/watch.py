"""A trial's health as it is sampled: a round of programs every interval, and what the peers show; together a sample for the monitor."""

from __future__ import annotations

from abupdate.health.checks import CheckRun
from abupdate.health.monitor import Limits, Monitor
from abupdate.health.peers import Peers
from abupdate.health.results import Health
from abupdate.log import log
from abupdate.model import Decision, Verdict

_Word = tuple[Health, str]


class Watch:
    """`ports.TrialWatch` over health programs and, on a member of a site, its peers."""

    def __init__(self, run: CheckRun, limits: Limits, interval_s: float, *, has_programs: bool, peers: Peers | None = None) -> None:
        """interval_s: from the start of one round to the start of the next; a longer round delays it."""
        self._run = run
        self._interval_s = interval_s
        self._has_programs = has_programs
        self._peers = peers
        self._monitor = Monitor(limits, has_programs or peers is not None)
        self._next_s = 0.0
        self._patient_s = limits.window_s + limits.degraded_row_s
        self._programs: _Word | None = None
        self._seen: _Word | None = None

    def tick(self, now_s: float) -> Decision:
        """See ports.TrialWatch."""
        due = now_s >= self._next_s
        if due and not self._run.active:
            self._next_s = now_s + self._interval_s
            if self._has_programs:
                self._run.start(now_s)
            self._look(now_s)
        elif self._run.active:
            done = self._run.poll(now_s)
            if done is not None:
                log.info("health: %s%s", done.health.name.lower(), f" ({done.reason})" if done.reason else "")
                self._programs = (done.health, done.reason)
                self._sample(now_s)
        decision = self._monitor.decide(now_s)
        if decision.verdict is Verdict.CONFIRM and self._peers is not None and (why := self._peers.held_back(now_s)):
            # A doubt takes some heartbeats to come and to go: one lost frame at the wrong moment must not take a good slot back.
            lasting = now_s > self._patient_s
            return Decision(Verdict.REVERT if lasting else Verdict.WAIT, f"peers hold back the confirmation: {why}")
        if decision.verdict is Verdict.CONFIRM and self._peers is not None:
            # The last sample may be older than the daemon's last word: what it would be now counts, as it does in the next round.
            now = self._peers.sample(now_s)
            if now is not None and now[0] is not Health.OK:
                return Decision(Verdict.WAIT, now[1])
        return decision

    def stop(self) -> None:
        """See ports.TrialWatch."""
        self._run.cancel()

    def _look(self, now_s: float) -> None:
        if self._peers is None:
            return
        before, self._seen = self._seen, self._peers.sample(now_s)
        if self._seen is not None and self._seen != before:
            log.info("health: %s (%s)", self._seen[0].name.lower(), self._seen[1])
        self._sample(now_s)

    def _sample(self, now_s: float) -> None:
        """The worse of the two words; before both are there only a critical one counts."""
        wanted = [word for word, there in ((self._programs, self._has_programs), (self._seen, self._peers is not None)) if there]
        words = [word for word in wanted if word is not None]
        if not words:
            return
        health, reason = max(words, key=lambda word: word[0])
        if health is Health.CRITICAL or len(words) == len(wanted):
            self._monitor = self._monitor.sampled(now_s, health, reason)
