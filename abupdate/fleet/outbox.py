"""Frames that wait for their turn on a slow medium: bounded, votes and proposals first, and never two that say the same. Pure.

A newer frame takes the place of an older one that it makes useless, without losing its turn; what another node has sent meanwhile (a
relayed vote) is not sent again. What waits for too long is dropped: its author says it again as long as it matters.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from abupdate.formats.frame import HEADER, SIGNATURE_BYTES, STATUS, TOKEN
from abupdate.formats.messages import EVERYBODY, Type

URGENT_FRAMES = 64
FRAMES = 512
_STALE_S = 15.0
_TAIL_BYTES = SIGNATURE_BYTES + 4
_SIGNATURE = slice(-_TAIL_BYTES, -4)
# Of these only the newest counts, whatever they say.
_LATEST = frozenset({Type.HELLO, Type.HEARTBEAT})


class Outbox:
    """dropped: frames that were not sent, by reason."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self._urgent: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._plain: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._plain)

    def put(self, data: bytes, now_s: float, *, urgent: bool) -> None:
        """Let a frame wait. The oldest one gives way where there are too many."""
        queue, most = (self._urgent, URGENT_FRAMES) if urgent else (self._plain, FRAMES)
        name = _name(data)
        if urgent:
            self._plain.pop(name, None)
        if name in queue:
            self.dropped["out: replaced"] += 1
        elif len(queue) >= most:
            queue.popitem(last=False)
            self.dropped["out: too many"] += 1
        queue[name] = data, now_s

    def heard(self, data: bytes) -> None:
        """Somebody else has just sent this: with the same signature it need not be sent from here as well."""
        if data[1] in STATUS:
            return
        # With the token `to` is who has it next.
        name = _name(bytes((data[0], data[1], data[2], EVERYBODY)) + data[4:] if data[0] & TOKEN else data)
        for queue in (self._urgent, self._plain):
            if name in queue and queue[name][0][_SIGNATURE] == data[_SIGNATURE]:
                del queue[name]
                self.dropped["out: sent by another"] += 1

    def expire(self, now_s: float) -> None:
        """Drop what waits for too long."""
        for queue in (self._urgent, self._plain):
            for name in [name for name, (_, since_s) in queue.items() if now_s - since_s > _STALE_S]:
                del queue[name]
                self.dropped["out: stale"] += 1

    def take(self, most_bytes: int, *, urgent: bool) -> list[bytes]:
        """The next frames of a kind, as many as fit; one in any case."""
        queue = self._urgent if urgent else self._plain
        taken: list[bytes] = []
        while queue:
            data = next(iter(queue.values()))[0]
            most_bytes -= len(data)
            if taken and most_bytes < 0:
                break
            queue.popitem(last=False)
            taken.append(data)
        return taken


def _name(data: bytes) -> bytes:
    """What a frame says to whom, without when it was said."""
    head = data[1:10]
    return head if data[1] in _LATEST else head + data[HEADER.size : -_TAIL_BYTES]
