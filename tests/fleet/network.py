"""The medium between simulated nodes: delay, loss, duplicates, reordering, partitions of any shape, and frames that arrive years late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

from abupdate.formats import frame
from abupdate.formats.messages import NOTHING, Type, Vote

_KEPT = 400
_HARMLESS = frozenset({Type.PROPOSAL, Type.PREVOTE, Type.HELLO, Type.HELLO_ACK, Type.APPROVE, Type.SLOT_REQ})


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


@dataclass(slots=True)
class Trap:
    """Lets one node decide a value that the others are locked on, without their hearing of it, and one more know nothing of the lock.

    value: the first one that anybody prevotes. Precommits for it reach the favourite alone, prevotes for it do not reach the blind one
    (mild: those of the favourite do not), and what the favourite says of its decision reaches nobody. Other values go through.
    """

    favourite: int
    blind: int
    mild: bool = False
    value: bytes = NOTHING

    def swallows(self, source: int, target: int, data: bytes) -> bool:
        """The frame is lost."""
        head = frame.peek(data)
        if head is None:
            return False
        if source == self.favourite and head.type not in _HARMLESS:
            return True
        if head.type not in (Type.PREVOTE, Type.PRECOMMIT):
            return False
        vote = frame.parse(data).message
        value = vote.value if isinstance(vote, Vote) else NOTHING
        if self.value == NOTHING:
            self.value = value
        if value == NOTHING or value != self.value:
            return False
        if head.type is Type.PRECOMMIT:
            return target != self.favourite and not self.mild
        return target == self.blind and (source == self.favourite or not self.mild)


class Network:
    """Says when a frame arrives where. cut: pairs (from, to) that hear nothing of each other."""

    def __init__(self, random: Random, weather: Weather) -> None:
        self._random = random
        self.weather = weather
        self.cut: set[tuple[int, int]] = set()
        self.trap: Trap | None = None
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
        self.trap = None
        self.weather = FAIR

    def arrivals(self, source: int, target: int, data: bytes) -> Iterator[float]:
        """Seconds until each copy of a frame arrives; none: lost."""
        if (source, target) in self.cut or (self.trap is not None and self.trap.swallows(source, target, data)):
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
