"""Simulated time: what happens when, in order; what is due at the same moment happens in the order in which it was asked for."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """now_s: simulated seconds, from 0."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._asked = 0

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Let something happen then, or now where that has passed."""
        self._asked += 1
        heapq.heappush(self._events, (max(when_s, self.now_s), self._asked, what))

    def run(self, until_s: float) -> None:
        """Let everything happen that happens before then."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self._events)
            what()
        self.now_s = until_s
