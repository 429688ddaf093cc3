"""From health samples to a verdict on the trial: keep waiting, confirm, or go back. Pure; seconds are handed in.

    critical                                             back at once
    degraded longer than `degraded_row_s` in a row       back
    degraded longer than `degraded_total_s` in all       back
    end of the window, last sample degraded              back
    end of the window, healthy, `auto_confirm`           confirm
    end of the window, healthy, not `auto_confirm`       back: nobody confirmed
    end of the window, programs but no sample yet        wait for the first one, `degraded_row_s` longer; then back

A sample holds until the next one. Without any health program the slot is healthy: userspace reached the service.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from abupdate.health.results import Health
from abupdate.model import Decision, Verdict


@dataclass(frozen=True, slots=True)
class Limits:
    """The configured numbers, in seconds: [trial] window_s, auto_confirm; [health] degraded_row_s, degraded_total_s."""

    window_s: float = 300.0
    auto_confirm: bool = True
    degraded_row_s: float = 60.0
    degraded_total_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Monitor:
    """What was seen in this trial so far. Times are seconds since boot, suspend included; the window counts from boot.

    has_programs: samples are to be expected. health: the last sample, None before the first. since_s: since when it is degraded
    in a row. degraded_s: sum of all earlier rows. seen_s: the latest time; time never goes back.
    """

    limits: Limits
    has_programs: bool
    health: Health | None = None
    reason: str = ""
    since_s: float = 0.0
    degraded_s: float = 0.0
    seen_s: float = 0.0

    def sampled(self, now_s: float, health: Health, reason: str = "") -> Monitor:
        """The monitor with one more sample."""
        now_s = max(now_s, self.seen_s)
        was, becomes = self.health is Health.DEGRADED, health is Health.DEGRADED
        return replace(
            self,
            health=health,
            reason=reason,
            since_s=now_s if becomes and not was else self.since_s,
            degraded_s=self.degraded_s + (now_s - self.since_s if was and not becomes else 0.0),
            seen_s=now_s,
        )

    def decide(self, now_s: float) -> Decision:
        """The verdict at `now_s`."""
        now_s = max(now_s, self.seen_s)
        limits = self.limits
        if self.health is Health.CRITICAL:
            return Decision(Verdict.REVERT, f"health critical: {self.reason}")
        if self.health is Health.DEGRADED:
            row_s = now_s - self.since_s
            if row_s > limits.degraded_row_s:
                return Decision(Verdict.REVERT, f"health degraded for more than {limits.degraded_row_s:g} s in a row: {self.reason}")
            if self.degraded_s + row_s > limits.degraded_total_s:
                return Decision(Verdict.REVERT, f"health degraded for more than {limits.degraded_total_s:g} s in all: {self.reason}")
        if now_s < limits.window_s:
            return Decision(Verdict.WAIT, self.reason if self.health is Health.DEGRADED else "")
        return self._at_the_end(now_s)

    def _at_the_end(self, now_s: float) -> Decision:
        limits = self.limits
        if self.health is Health.DEGRADED:
            return Decision(Verdict.REVERT, f"health still degraded at the end of the window of {limits.window_s:g} s: {self.reason}")
        if self.health is None and self.has_programs:
            # A boot that took most of the window must not condemn a slot before its first check has ended.
            if now_s <= limits.window_s + limits.degraded_row_s:
                return Decision(Verdict.WAIT, "waiting for the first health result")
            return Decision(Verdict.REVERT, f"no health result {limits.degraded_row_s:g} s after the window of {limits.window_s:g} s")
        if not limits.auto_confirm:
            return Decision(Verdict.REVERT, f"not confirmed within {limits.window_s:g} s")
        return Decision(Verdict.CONFIRM, f"healthy for the window of {limits.window_s:g} s" + (f": {self.reason}" if self.reason else ""))
