"""Whose turn it is on a half-duplex bus without a master: the members pass a token in the order of their numbers. Pure: no I/O, no clock.

The token is a flag of a frame whose `to` is the next holder; all others take the frame for what it says. A turn is one burst of frames,
the last of which passes the token; where none can, an unsigned POLL follows. What keeps the ring going:

- An idle holder keeps the token for 20 to 40 ms, unless something comes up. While anything is said at all, it passes it on at once.
- While votes and proposals are about, other frames wait; every fourth turn one of them is let through.
- After passing, silence for 70 to 98 ms means that nobody took it. The same frame goes out once more; after that the member is absent:
  it is left out, and tried again now and then by whoever has the token when a try is due.
- Silence that lasts longer means that the token is lost. The member with the lowest number is the first to make a new one.
- Who holds the token and hears another one being passed gives its own up: only the other one's holder can be sending.
- Two who send at the same time hear no answer; how long each waits depends on its number and on how often that has happened.

Nothing here is authentic, nor needs to be: whoever can send on a bus can also drown it.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from abupdate.fleet.outbox import Outbox
from abupdate.formats import frame
from abupdate.formats.frame import CRC, MAX_FRAME_BYTES, STATUS, TOKEN, Head
from abupdate.formats.messages import EVERYBODY, Frame, Poll, Type

USAGE_S = 0.070
LOST_S = 0.250
TRY_S = 1.0
IDLE_S = (0.020, 0.040)
_IDLE_ROUND_S = 0.320
_BACKOFF_S = 0.004
_BACKOFFS = 8
_RANK_S = 0.008
_QUIET_S = 0.010
_ALONE_S = 0.5
_ROUND_S = 0.5
_MAX_TURN_BYTES = 1024
_URGENT_BYTES = 3 * MAX_FRAME_BYTES
_HELD_TURNS = 4
_HURRY_S = 0.1
_URGENT = frozenset({Type.PROPOSAL, Type.PREVOTE, Type.PRECOMMIT})
_VOTE_BYTES = 128


@dataclass(frozen=True, slots=True)
class Timing:
    """byte_s: of one byte on the line. turnaround_s: from the end of what is heard to what is said."""

    byte_s: float
    turnaround_s: float

    @property
    def longest_frame_s(self) -> float:
        """Of the longest frame."""
        return MAX_FRAME_BYTES * self.byte_s


class Turn(Enum):
    """Who is to speak next, as far as this member knows."""

    OTHERS = "others"
    MINE = "mine"
    PASSED = "passed"


class Standing(Enum):
    """What is known of a member. NEW: neither heard nor tried."""

    NEW = "new"
    PRESENT = "present"
    ABSENT = "absent"


@dataclass(slots=True)
class _Member:
    standing: Standing = Standing.NEW
    tried_s: float = -math.inf


@dataclass(frozen=True, slots=True)
class _Passing:
    """A token on its way. data: the frame that carried it."""

    source: int
    to: int
    data: bytes


@dataclass(slots=True)
class Ring:
    """One member's part. The caller tells it of every byte (`hear_bytes`) and frame (`hear`) before it lets it `act`.

    me: this node's number. tag: of the site; frames of others only keep the line busy. start_s: now.
    """

    me: int
    tag: bytes
    timing: Timing
    start_s: float
    outbox: Outbox = field(default_factory=Outbox)
    counts: Counter[str] = field(default_factory=Counter)
    turn: Turn = Turn.OTHERS
    _epoch: int = 1
    _members: dict[int, _Member] = field(default_factory=dict)
    _order: tuple[int, ...] = ()
    _next_of: dict[int, int] = field(default_factory=dict)
    _rank: int = 0
    _turn_s: float = 0.0
    _busy_s: float = 0.0
    _valid_s: float = 0.0
    _urgent_s: float = -math.inf
    _tried_s: float = -math.inf
    _said: bool = True
    _held_turns: int = 0
    _failures: int = 0
    _again: bool = False
    _late: bool = False
    _passing: _Passing | None = None
    _echoes: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.listen(self.start_s)

    # -- what is known

    def listen(self, now_s: float) -> None:
        """Begin anew: nothing is known of who has the token, and nothing was heard before now."""
        self._have(Turn.OTHERS, now_s)
        self._busy_s = self._valid_s = now_s

    def follow(self, epoch: int, members: Collection[int]) -> None:
        """The site's members now. Who is not among them is silent."""
        self._epoch = epoch
        self._order = tuple(sorted(members))
        self._next_of = dict(zip(self._order, self._order[1:] + self._order[:1], strict=True))
        self._rank = self._order.index(self.me) if self.me in self._order else 0
        self._members = {index: self._members.get(index, _Member()) for index in self._order}

    @property
    def present(self) -> tuple[int, ...]:
        """Members that take part, this one among them."""
        return tuple(index for index, one in self._members.items() if index == self.me or one.standing is Standing.PRESENT)

    @property
    def wake_s(self) -> float:
        """When `act` is to be called at the latest; infinity: when something was heard."""
        if self.me not in self._members or len(self._order) < 2:
            return math.inf
        match self.turn:
            case Turn.MINE:
                return self._speak_s()
            case Turn.PASSED:
                return self._unused_s()
            case Turn.OTHERS:
                lost_s = LOST_S + self.timing.longest_frame_s + _RANK_S * self._rank
                return max(self._valid_s + lost_s, self._busy_s + _QUIET_S + self.timing.turnaround_s)

    def _speak_s(self) -> float:
        free_s = self._busy_s + self.timing.turnaround_s
        if self._alone:
            return max(free_s, self._turn_s + (_ALONE_S if self._failures >= len(self._order) else 0.0))
        if self._said or self.outbox:
            return free_s
        return max(free_s, self._turn_s + self.idle_s)

    def _unused_s(self) -> float:
        """When a token that was passed counts as not taken. The wait differs from member to member, and from time to time."""
        wait_s = USAGE_S + _BACKOFF_S * (zlib.crc32(bytes((self.me, self._failures & 0xFF))) % _BACKOFFS)
        # Garbage may be an answer, but not for ever.
        return min(self._busy_s + wait_s, self._turn_s + 3 * wait_s)

    @property
    def idle_s(self) -> float:
        """How long a holder keeps the token when nobody has anything to say."""
        return min(max(_IDLE_ROUND_S / max(len(self.present), 1), IDLE_S[0]), IDLE_S[1])

    @property
    def _alone(self) -> bool:
        return all(one.standing is Standing.ABSENT for index, one in self._members.items() if index != self.me)

    def _hurried(self, now_s: float) -> bool:
        """Votes are about: within the last round of the token, if all vote in it."""
        round_s = len(self._order) * (self.timing.turnaround_s + _VOTE_BYTES * self.timing.byte_s)
        return now_s - self._urgent_s < max(round_s, _HURRY_S)

    # -- in

    def hear_bytes(self, now_s: float) -> None:
        """Anything at all comes in."""
        self._busy_s = max(self._busy_s, now_s)

    def hear(self, data: bytes, now_s: float) -> bool:
        """A frame comes in. True: it is for the node as well; False: garbage, another site's, an echo, or of the ring alone."""
        head = frame.peek(data)
        if head is None:
            self.counts["in: damaged"] += 1
            return False
        if head.tag != self.tag:
            self.counts["in: other site"] += 1
            return False
        if data in self._echoes or (head.token and head.source == self.me):
            self.counts["in: echo"] += 1
            return False
        self._valid_s = now_s
        self._failures = 0
        if self.turn is Turn.PASSED:
            self._have(Turn.OTHERS, now_s)
        if head.type in _URGENT:
            self._urgent_s = now_s
        if head.type is not Type.POLL:
            self._said = True
            self.outbox.heard(data)
        if head.token:
            self._hear_token(head, data, now_s)
        return head.type is not Type.POLL

    def _hear_token(self, head: Head, data: bytes, now_s: float) -> None:
        """The token goes from its author to somebody. (The author of a frame without it may be anybody: it may be relayed.)"""
        before, self._passing = self._passing, _Passing(head.source, head.to, data)
        giver, taker = self._members.get(head.source), self._members.get(head.to)
        if giver is not None:
            giver.standing = Standing.PRESENT
        if before is not None and before.source == head.source and before.to != head.to:
            # It has passed the token twice: who was to have it first does not answer.
            self._missing(before.to, now_s)
        if taker is not None and taker.standing is Standing.ABSENT:
            taker.tried_s = self._tried_s = now_s
        elif taker is not None:
            self._hear_skipped(head.source, head.to)
        if head.to == self.me:
            if self.turn is not Turn.MINE:
                self._have(Turn.MINE, now_s)
        elif self.turn is Turn.MINE:
            self.counts["tokens given up"] += 1
            self._have(Turn.OTHERS, now_s)

    def _hear_skipped(self, source: int, to: int) -> None:
        """Members between the two are left out. Who is left out itself has come into a ring that knows who is there."""
        if to == self._next_of.get(source):
            return
        between = [index for index in self._order if (source < index < to if source < to else index > source or index < to)]
        self._late = self._late or self.me in between
        for index in between:
            if self._late and index != self.me and self._members[index].standing is Standing.NEW:
                self._members[index].standing = Standing.ABSENT

    def _missing(self, index: int, now_s: float) -> None:
        one = self._members.get(index)
        if one is not None and index != self.me:
            one.standing = Standing.ABSENT
            one.tried_s = now_s

    def _have(self, turn: Turn, now_s: float) -> None:
        self.turn = turn
        self._turn_s = now_s
        self._again = False

    # -- out

    def put(self, data: bytes, now_s: float, *, urgent: bool) -> None:
        """Let a frame wait for this member's turn."""
        self.outbox.put(data, now_s, urgent=urgent)

    def act(self, now_s: float) -> list[bytes]:
        """The frames to send now, in one go; mostly none. Whoever gets some must send them, and they take their time from now on."""
        if now_s < self.wake_s:
            return []
        match self.turn:
            case Turn.MINE:
                return self._burst(now_s)
            case Turn.PASSED:
                return self._not_taken(now_s)
            case Turn.OTHERS:
                self.counts["tokens made"] += 1
                return self._burst(now_s)

    def _not_taken(self, now_s: float) -> list[bytes]:
        passing = self._passing
        assert passing is not None
        self.counts["passed in vain"] += 1
        self._failures += 1
        taker = self._members.get(passing.to)
        if not self._again and taker is not None and taker.standing is Standing.PRESENT:
            self._sending([passing.data], now_s)
            self._again = True
            return [passing.data]
        self._missing(passing.to, now_s)
        self._have(Turn.MINE, now_s)
        return [] if now_s < self.wake_s else self._burst(now_s)

    def _burst(self, now_s: float) -> list[bytes]:
        """A turn: what waits, as far as it fits, and the token."""
        hurried = self._hurried(now_s)
        self.outbox.expire(now_s)
        self._held_turns = self._held_turns + 1 if hurried else 0
        frames = self.outbox.take(_URGENT_BYTES, urgent=True)
        if not hurried:
            frames += self.outbox.take(self._turn_bytes, urgent=False)
        elif self._held_turns >= _HELD_TURNS:
            frames += self.outbox.take(MAX_FRAME_BYTES, urgent=False)
            self._held_turns = 0
        self._said = bool(frames)
        to = self._next(now_s)
        if frames and _may_carry(frames[-1], self.me):
            frames[-1] = with_token(frames[-1], to)
        else:
            poll = Frame(Type.POLL, self.me, to, self.tag, self._epoch, 0, 0, Poll(), b"", token=True)
            frames.append(frame.pack(poll))
        if any(data[1] in _URGENT for data in frames):
            self._urgent_s = now_s
        self.counts["turns"] += 1
        self._passing = _Passing(self.me, to, frames[-1])
        self._have(Turn.PASSED, now_s)
        self._sending(frames, now_s)
        return frames

    @property
    def _turn_bytes(self) -> int:
        """Of a turn without votes: so many that a round of the token stays short; one frame at least."""
        fair = int(_ROUND_S / self.timing.byte_s / max(len(self.present), 1))
        return min(max(fair, 1), _MAX_TURN_BYTES)

    def _next(self, now_s: float) -> int:
        """The next member that is there, or, when that is due, the absent one that was tried the longest ago."""
        absent = [index for index, one in self._members.items() if index != self.me and one.standing is Standing.ABSENT]
        if absent and (self._alone or (now_s - self._tried_s >= TRY_S and not self._hurried(now_s))):
            self._tried_s = now_s
            return min(absent, key=lambda index: self._members[index].tried_s)
        after = self._order[self._rank + 1 :] + self._order[: self._rank]
        return next(index for index in after if self._members[index].standing is not Standing.ABSENT)

    def _sending(self, frames: list[bytes], now_s: float) -> None:
        self._echoes = set(frames)
        bytes_ = sum(len(data) + 2 for data in frames) + 1
        self._busy_s = max(self._busy_s, now_s) + bytes_ * self.timing.byte_s
        # The wait for an answer begins when the last byte is out.
        self._turn_s = self._valid_s = self._busy_s


def with_token(data: bytes, to: int) -> bytes:
    """The frame, passing the token to that member. Only for one that was signed for everybody, or for whom its type says so."""
    whole = bytes((data[0] | TOKEN, data[1], data[2], to)) + data[4 : -CRC.size]
    return whole + CRC.pack(zlib.crc32(whole))


def _may_carry(data: bytes, me: int) -> bool:
    """Status for one node is signed for that node. A relayed frame names its author, who is not the one that passes the token."""
    return data[2] == me and (data[3] == EVERYBODY or data[1] not in STATUS)
