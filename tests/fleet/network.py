"""The medium between simulated nodes: delay, loss, duplicates, reordering, partitions of any shape, and frames that arrive years late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

_KEPT = 400


@dataclass(frozen=True, slots=True)
class Weather:
    """How the medium is. delay_s: from .. to for each frame and receiver, so that frames overtake each other.

    loss, twice: probabilities for each frame and receiver. late: probability for each frame that an old one comes again.
    """

    delay_s: tuple[float, float] = (0.002, 0.05)
    loss: float = 0.0
    twice: float = 0.0
    late: float = 0.0


FAIR = Weather()


class Network:
    """Says when a frame arrives where. cut: pairs (from, to) that hear nothing of each other."""

    def __init__(self, random: Random, weather: Weather) -> None:
        self._random = random
        self.weather = weather
        self.cut: set[tuple[int, int]] = set()
        self._past: list[bytes] = []
        self._seen = 0

    def split(self, groups: Iterable[Iterable[int]]) -> None:
        """Only nodes of one group hear each other; a node in two groups hears both (a partition that is not clean)."""
        sides = [frozenset(group) for group in groups]
        everybody = frozenset().union(*sides)
        together = {(one, other) for side in sides for one in side for other in side}
        self.cut = {(one, other) for one in everybody for other in everybody if one != other} - together

    def deafen(self, speakers: Iterable[int], hearers: Iterable[int]) -> None:
        """One way only: the hearers do not hear the speakers, who still hear them."""
        hearing = tuple(hearers)
        self.cut |= {(one, other) for one in speakers for other in hearing if one != other}

    def heal(self) -> None:
        """Everybody hears everybody, soon and once."""
        self.cut.clear()
        self.weather = FAIR

    def arrivals(self, source: int, target: int) -> Iterator[float]:
        """Seconds until each copy of a frame arrives; none: lost."""
        if (source, target) in self.cut:
            return
        random, weather = self._random, self.weather
        low, high = weather.delay_s
        if not weather.loss or random.random() >= weather.loss:
            yield low + (high - low) * random.random()
        if weather.twice and random.random() < weather.twice:
            yield low + 3 * (high - low) * random.random()

    def keep(self, data: bytes) -> None:
        """Remember a frame, so that it can come again much later. A fair sample of all that was ever sent is kept."""
        self._seen += 1
        if len(self._past) < _KEPT:
            self._past.append(data)
        else:
            at = self._random.randrange(self._seen)
            if at < _KEPT:
                self._past[at] = data

    def old_frame(self) -> bytes | None:
        """Any frame of the past, whoever sent it, in whatever epoch and boot."""
        return self._random.choice(self._past) if self._past else None
