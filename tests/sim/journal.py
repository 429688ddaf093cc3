"""The running device as a tuple of media, and the journal of every step that changed one.

A port's call on media that it met before is not run again: production code is deterministic, so its steps, its result and its error are
those of the first time. That is what makes a state cheap; faults are never remembered. For the same reason a whole verb is not run again
while its ports answer as they did before: the answers lead it to the same next call, and at last to the same end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

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


# Production code at work on running media; the machine is for what it asks of other media meanwhile.
Action = Callable[[Mapping[str, Running], "Machine"], Any]


@dataclass(frozen=True, slots=True)
class _Done:
    """What a call did: media of its names before each step and at its end, its result or its error.

    answer: equal ones are equal for whoever called. idle: no medium has changed.
    """

    steps: tuple[tuple[str, bool, tuple[Part, ...]], ...]
    last: tuple[Part, ...]
    result: Any
    error: BaseException | None
    answer: Hashable
    idle: bool


@dataclass(slots=True)
class _Node:
    """Where a verb stands: about to make a call (settled: what boot.settled was then), or at its end, where it has an outcome.

    after: the next node by the call's answer.
    """

    what: Hashable = None
    names: tuple[str, ...] = ()
    action: Action | None = None
    settled: bool = False
    after: dict[Hashable, _Node] = field(default_factory=dict)
    ended: bool = False
    result: Any = None
    error: BaseException | None = None


_REMEMBERED: dict[tuple[object, ...], _Done] = {}
_TRAILS: dict[Hashable, _Node] = {}
_SEEN: dict[Hashable, Any] = {}

# Called before each step; may raise. The name of the medium and of the step.
Fault = Callable[[str, str], None]


class Settling(Protocol):
    """What of a boot a verb may change."""

    settled: bool


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
    # Where the verb that runs stands, None: it is not followed.
    _at: _Node | None = None

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

    def call(self, what: Hashable, names: tuple[str, ...], action: Action) -> Any:
        """Let production code work on some media. what: names the call and its arguments."""
        node, self._at = self._at, None
        settled = self.settled()
        done = self._perform(what, names, action, settled)
        if node is not None:
            assert node.action is None or node.what == what, f"{what} where {node.what} came before: not deterministic"
            node.what, node.names, node.action, node.settled = what, names, action, settled
            self._at = node.after.setdefault(done.answer, _Node())
        if done.error is not None:
            raise copy.copy(done.error).with_traceback(None)
        return done.result

    def look(self, what: Hashable, boot: Settling, names: tuple[str, ...], run: Callable[[], Any]) -> Any:
        """As `verb`, for one that only reads these media. The same answers give the same object."""
        if self.fault is not None or self._at is not None:
            return run()
        key = (what, boot.settled, self.locked, *[self.parts[index] for index in _indexes(self.names, names)])
        found = _SEEN.get(key)
        if found is None:
            found = _SEEN[key] = self.verb(what, boot, run)
        return found

    def verb(self, what: Hashable, boot: Settling, run: Callable[[], Any]) -> Any:
        """Run a verb, or go the way that it went when its ports gave the same answers.

        what: names the verb, and all that it is told by other means than `call`, apart from `boot.settled`.
        """
        if self.fault is not None or self._at is not None:
            return run()
        root = _TRAILS.setdefault((what, boot.settled, self.locked), _Node())
        before, written, settled = self.parts, len(self.journal), boot.settled
        end = self._follow(root, boot)
        if end is None:
            # A way that was not gone yet: from the start.
            self.parts, boot.settled = before, settled
            del self.journal[written:]
            end = self._record(root, boot, run)
        if end.error is not None:
            raise copy.copy(end.error).with_traceback(None)
        return end.result

    def _follow(self, node: _Node, boot: Settling) -> _Node | None:
        """Make a verb's calls without it. None where it gets an answer that it never got there."""
        while not node.ended:
            if node.action is None:
                return None
            boot.settled = node.settled
            found = node.after.get(self._perform(node.what, node.names, node.action, node.settled).answer)
            if found is None:
                return None
            node = found
        boot.settled = node.settled
        return node

    def _record(self, root: _Node, boot: Settling, run: Callable[[], Any]) -> _Node:
        self._at = root
        result: Any = None
        error: BaseException | None = None
        try:
            result = run()
        except Exception as raised:
            error = raised
        finally:
            node, self._at = self._at, None
        assert node is not None
        node.ended, node.result, node.error, node.settled = True, result, error, boot.settled
        return node

    def _perform(self, what: Hashable, names: tuple[str, ...], action: Action, settled: bool) -> _Done:
        parts = self.parts
        at = _indexes(self.names, names)
        before = (parts[at[0]],) if len(at) == 1 else tuple([parts[index] for index in at])
        if self.fault is not None:
            done = self._run(names, before, action)
        else:
            key = (what, *before)
            found = _REMEMBERED.get(key)
            done = found if found is not None else _REMEMBERED.setdefault(key, self._run(names, before, action))
        if done.idle and self.parts is parts:
            return done
        now = list(self.parts)
        for step, inside, changed in done.steps:
            for index, part in zip(at, changed, strict=True):
                now[index] = part
            self.journal.append(Moment(step, inside, tuple(now), settled))
        for index, part in zip(at, done.last, strict=True):
            now[index] = part
        self.parts = tuple(now)
        return done

    def _run(self, names: tuple[str, ...], before: tuple[Part, ...], action: Action) -> _Done:
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
            result = action(running, self)
        except (Exception, KeyboardInterrupt) as raised:
            error = raised
        last = tuple(medium.freeze() for medium in running.values())
        return _Done(tuple(steps), last, result, error, _answer(result, error), not steps and last == before)


@cache
def _indexes(all_names: tuple[str, ...], names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(all_names.index(name) for name in names)


def _answer(result: object, error: BaseException | None) -> Hashable:
    """Stands for what the caller sees. What is not a plain value is known by its repr, which shows all of a dataclass."""
    if error is not None:
        return type(error), repr(error.args), repr(vars(error))
    return result if result is None or isinstance(result, bytes) else repr(result)


def forget() -> None:
    """Drop what was remembered (its memory, not its truth)."""
    _REMEMBERED.clear()
    _TRAILS.clear()
    _SEEN.clear()
