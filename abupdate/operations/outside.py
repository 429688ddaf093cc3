"""The floor's copy outside state_dir and boot store, as the verbs use it: asked once, tried again seldom, never a reason to fail."""

from __future__ import annotations

import time
from collections.abc import Callable

from abupdate.errors import AbupdateError
from abupdate.log import log
from abupdate.ports import FloorCopy

_AGAIN_S = 60.0


class OutsideFloor:
    """A `ports.FloorCopy` that may be missing or broken: the other copies decide then, and one warning says so."""

    def __init__(self, copy: FloorCopy, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds that never go back."""
        self._copy = copy
        self._clock = clock
        self._known: int | None = None
        self._again_s = 0.0
        self._complained = ""
        self.problem: AbupdateError | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return self._copy.name

    def value(self) -> int:
        """The counter that it keeps, 0 where it does not answer (`problem` says why then)."""
        if self._known is None and self._clock() >= self._again_s:
            try:
                self._known = self._copy.value()
                self.problem = None
            except AbupdateError as error:
                self._failed(error)
        return self._known or 0

    def raise_to(self, counter: int) -> None:
        """Raise it where it is lower; says so once where that does not work."""
        if self.value() >= counter or self._known is None:
            return
        try:
            self._copy.raise_to(counter)
            self._known = counter
        except AbupdateError as error:
            self._known = None
            self._failed(error)

    def _failed(self, error: AbupdateError) -> None:
        self.problem = error
        self._again_s = self._clock() + _AGAIN_S
        if error.message != self._complained:
            self._complained = error.message
            log.warning("the other copies of the floor decide: %s", error.line)
