"""The running device as a tuple of media, and the journal of every step that changed one.

A port's call on media that it met before is not run again: production code is deterministic, so its steps, its result and its error are
those of the first time. That is what makes a state cheap; faults are never remembered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.sim.parts import Part, Running


@dataclass(frozen=True)
class Moment:
    """All media just before `step`. inside: in the middle of one call of the kernel, where a process cannot be killed.

    settled: the service had dealt with this boot's outcome by then.
    """

    step: str
    inside: bool
    parts: tuple[Part, ...]
    settled: bool


@dataclass(frozen=True)
class _Done:
    """What a call did: media of its names before each step and at its end, its result or its error."""

    steps: tuple[tuple[str, bool, tuple[Part, ...]], ...]
    last: tuple[Part, ...]
    result: Any
    error: BaseException | None


_REMEMBERED: dict[tuple[object, ...], _Done] = {}

# Called before each step; may raise. The name of the medium and of the step.
Fault = Callable[[str, str], None]


@dataclass
class Machine:
    """The media, by name in a fixed order, and what happens to them."""

    names: tuple[str, ...]
    parts: tuple[Part, ...]
    journal: list[Moment] = field(default_factory=list)
    fault: Fault | None = None
    settled: Callable[[], bool] = lambda: False
    # Somebody holds the lock of state_dir.
    locked: bool = False

    @property
    def faulty(self) -> bool:
        """A fault waits for its step."""
        return self.fault is not None

    def part(self, name: str) -> Part:
        """One medium."""
        return self.parts[self.names.index(name)]

    def put(self, name: str, part: Part) -> None:
        """Replace one medium."""
        at = self.names.index(name)
        self.parts = (*self.parts[:at], part, *self.parts[at + 1 :])

    def clone(self) -> Machine:
        """An independent copy without journal and fault."""
        return Machine(self.names, self.parts)

    def call(self, what: Hashable, names: tuple[str, ...], action: Callable[[Mapping[str, Running]], Any]) -> Any:
        """Let production code work on some media. what: names the call and its arguments."""
        at = [self.names.index(name) for name in names]
        before = tuple(self.parts[index] for index in at)
        if self.fault is not None:
            done = self._run(names, before, action)
        else:
            key = (what, *before)
            found = _REMEMBERED.get(key)
            done = found if found is not None else _REMEMBERED.setdefault(key, self._run(names, before, action))
        parts = list(self.parts)
        for step, inside, changed in done.steps:
            for index, part in zip(at, changed, strict=True):
                parts[index] = part
            self.journal.append(Moment(step, inside, tuple(parts), self.settled()))
        for index, part in zip(at, done.last, strict=True):
            parts[index] = part
        self.parts = tuple(parts)
        if done.error is not None:
            raise copy.copy(done.error).with_traceback(None)
        return done.result

    def _run(self, names: tuple[str, ...], before: tuple[Part, ...], action: Callable[[Mapping[str, Running]], Any]) -> _Done:
        steps: list[tuple[str, bool, tuple[Part, ...]]] = []
        running = dict(zip(names, (part.thaw() for part in before), strict=True))

        def listen(name: str) -> Callable[[str, bool], None]:
            def note(step: str, inside: bool) -> None:
                steps.append((step, inside, tuple(medium.freeze() for medium in running.values())))
                if self.fault is not None and not inside:
                    self.fault(name, step)

            return note

        for name, medium in running.items():
            medium.listen(listen(name))
        result: Any = None
        error: BaseException | None = None
        try:
            result = action(running)
        except (Exception, KeyboardInterrupt) as raised:
            error = raised
        return _Done(tuple(steps), tuple(medium.freeze() for medium in running.values()), result, error)


def forget() -> None:
    """Drop what was remembered (its memory, not its truth)."""
    _REMEMBERED.clear()
