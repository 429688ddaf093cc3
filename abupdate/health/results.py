"""What health programs said: of one program, and of all of them in one round. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

_REASON_CHARACTERS = 200
NO_PROGRAMS = "no health programs: userspace reached the service"


class Health(IntEnum):
    """A program's word, which is its exit code; anything else is CRITICAL. Greater is worse."""

    OK = 0
    DEGRADED = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One program's word. reason: the last line that it printed, or what happened to it. duration_s: seconds that it ran."""

    name: str
    health: Health
    reason: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """All programs, run once, in order (up to the first critical one where the caller asked for that)."""

    results: tuple[CheckResult, ...] = ()

    @property
    def health(self) -> Health:
        """The worst word; OK when there is no program."""
        return max((result.health for result in self.results), default=Health.OK)

    @property
    def reason(self) -> str:
        """Why, in the words of the first of the worst programs."""
        if not self.results:
            return NO_PROGRAMS
        worst = next(result for result in self.results if result.health is self.health)
        if worst.health is Health.OK:
            return f"{len(self.results)} health programs are content"
        return f"{worst.name}: {worst.reason}" if worst.reason else f"{worst.name} is {worst.health.name.lower()}"


def last_line(tail: bytes) -> str:
    """What a program said last, from the end of its output, fit for a terminal: at most 200 printable characters, "" for nothing."""
    lines = [line for line in tail.decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return ""
    line = "".join(character if character.isprintable() else " " for character in lines[-1])
    return " ".join(line.split())[:_REASON_CHARACTERS].rstrip()
