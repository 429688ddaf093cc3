"""One height of the log: Tendermint's rounds of proposal, prevote and precommit, as a machine without clock, keys and entries.

Tendermint's 2f+1 reads Q here (membership.quorum), its f+1 stays f+1 (Buchman, Kwon, Milosevic: The latest gossip on BFT consensus, 2018,
algorithm 1). Values are hashes. Timers run only while something is pending, so a site at rest says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from abupdate.formats.messages import NOTHING, Type

GROWTH = 1.5
LONGEST_S = 60.0
# A height that stays open for weeks (the others' windows, say) must not use up the rounds.
_SLOWER = 512
_AHEAD = 8
MAX_ROUND = (1 << 15) - 1


class Step(IntEnum):
    """Where a voter stands in a round."""

    PROPOSE = 0
    PREVOTE = 1
    PRECOMMIT = 2


class Validity(IntEnum):
    """What the caller says of a value. HELD: valid, and this node would rather not (for a first vote). MISSING: cannot tell yet."""

    INVALID = 0
    VALID = 1
    HELD = 2
    MISSING = 3


@dataclass(frozen=True, slots=True)
class Offer:
    """Propose this value in this round. valid_round: -1 where it is new."""

    round: int
    value: bytes
    valid_round: int


@dataclass(frozen=True, slots=True)
class Cast:
    """Vote. kind: PREVOTE or PRECOMMIT. lock: the vote locks the value, which must be remembered with it."""

    kind: Type
    round: int
    value: bytes
    lock: bool = False


@dataclass(frozen=True, slots=True)
class Decide:
    """Q precommits of one round are for this value."""

    round: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Enter:
    """A round begins (for counters)."""

    round: int


Action = Offer | Cast | Decide | Enter


@dataclass(slots=True)
class Votes:
    """The votes of one kind and round. voters: all who voted. supporters: by value; a liar may stand under more than one."""

    voters: set[int] = field(default_factory=set)
    supporters: dict[bytes, set[int]] = field(default_factory=dict)

    def count(self, voter: int, value: bytes, faults: int) -> bool:
        """Take a vote in; False where it does not count.

        A voter's second vote counts only for a value that more than f others support. Somebody may have counted it as the first one, and
        locked by it: who refused it for good could never follow.
        """
        others = self.supporters.get(value, set()) - {voter}
        if voter in self.voters and len(others) <= faults and voter not in self.supporters.get(value, ()):
            return False
        self.voters.add(voter)
        self.supporters.setdefault(value, set()).add(voter)
        return True

    def of(self, value: bytes) -> int:
        """How many support a value."""
        return len(self.supporters.get(value, ()))


class Height:
    """The rounds of one height, as one node sees them. me: None for who only looks on."""

    def __init__(self, me: int | None, quorum: int, faults: int, proposer: Callable[[int], int], base_s: float) -> None:
        """proposer: round -> voter. base_s: how long the first round's steps wait."""
        self._me = me
        self._quorum = quorum
        self._faults = faults
        self._proposer = proposer
        self._base_s = base_s
        self.round = 0
        self.step = Step.PROPOSE
        self.locked: tuple[int, bytes] | None = None
        self.valid: tuple[int, bytes] | None = None
        self.proposals: dict[int, tuple[bytes, int]] = {}
        self.votes: dict[tuple[Type, int], Votes] = {}
        self._highest: dict[int, int] = {}
        self._deadline: float | None = None
        self._decided: set[int] = set()
        self._offered: set[int] = set()

    @property
    def wake_s(self) -> float | None:
        """When the current step's patience ends; None while nothing waits."""
        return self._deadline

    def restore(self, kind: Type, round_: int, value: bytes) -> None:
        """A vote of mine that the log holds."""
        self._count(kind, round_, self._me if self._me is not None else -1, value)
        step = Step.PREVOTE if kind is Type.PREVOTE else Step.PRECOMMIT
        if (round_, step) > (self.round, self.step):
            self.round, self.step = round_, step

    def restore_proposal(self, round_: int) -> None:
        """A proposal of mine that the log holds: there is no second one for its round."""
        self._offered.add(round_)

    def restore_lock(self, round_: int, value: bytes) -> None:
        """A lock of mine that the log holds."""
        if self.locked is None or round_ > self.locked[0]:
            self.locked = self.valid = (round_, value)

    def hear_proposal(self, round_: int, value: bytes, valid_round: int) -> None:
        """A proposal by the round's proposer; the first one of a round counts."""
        if round_ <= self.round + _AHEAD:
            self.proposals.setdefault(round_, (value, valid_round))

    def hear_vote(self, kind: Type, round_: int, voter: int, value: bytes) -> bool:
        """A verified vote; False where it does not count (now)."""
        self._highest[voter] = max(round_, self._highest.get(voter, 0))
        return round_ <= self.round + _AHEAD and self._count(kind, round_, voter, value)

    def _count(self, kind: Type, round_: int, voter: int, value: bytes) -> bool:
        return self.votes.setdefault((kind, round_), Votes()).count(voter, value, self._faults)

    def tally(self, kind: Type, round_: int, value: bytes) -> int:
        """Votes for a value in a round."""
        votes = self.votes.get((kind, round_))
        return votes.of(value) if votes is not None else 0

    def vouched(self, value: bytes) -> bool:
        """More than f voters have prevoted the value in one round: an honest one among them has found it valid."""
        return any(kind is Type.PREVOTE and votes.of(value) > self._faults for (kind, _), votes in self.votes.items())

    def _voters(self, kind: Type, round_: int) -> set[int]:
        votes = self.votes.get((kind, round_))
        return votes.voters if votes is not None else set()

    def advance(self, now_s: float, candidate: bytes | None, validity: Callable[[bytes], Validity], *, may_vote: bool) -> Action | None:
        """The next thing to do, None where there is nothing; call again after it is done.

        candidate: value that this node would propose. validity: of any value that was proposed. may_vote: False: only look on.
        """
        for (kind, round_), votes in self.votes.items():
            if kind is Type.PRECOMMIT and len(votes.voters) >= self._quorum and round_ not in self._decided:
                for value, supporters in votes.supporters.items():
                    if value != NOTHING and len(supporters) >= self._quorum:
                        self._decided.add(round_)
                        return Decide(round_, value)
        if (later := self._later_round()) is not None:
            return self._enter(later)
        if not self._active(candidate, validity):
            self._deadline = None
            return None
        takes_part = may_vote and self._me is not None
        action = self._rules(candidate, validity) if takes_part else None
        return action if action is not None else self._patience(now_s, takes_part=takes_part)

    def undecided(self, round_: int) -> None:
        """The decided value of a round is not at hand yet: say so again, when something has come in.

        No patience runs meanwhile. A timer that has run out and cannot be acted on would wake the node for nothing, again and again.
        """
        self._decided.discard(round_)
        self._deadline = None

    def _later_round(self) -> int | None:
        """The latest round beyond mine in which more than f voters are."""
        rounds = sorted((round_ for voter, round_ in self._highest.items() if round_ > self.round and voter != self._me), reverse=True)
        return rounds[self._faults] if len(rounds) > self._faults else None

    def _enter(self, round_: int) -> Enter:
        self.round, self.step = round_, Step.PROPOSE
        self._deadline = None
        return Enter(self.round)

    def _active(self, candidate: bytes | None, validity: Callable[[bytes], Validity]) -> bool:
        if candidate is not None or self.valid is not None:
            return True
        proposal = self.proposals.get(self.round)
        if proposal is not None and validity(proposal[0]) is not Validity.INVALID:
            return True
        voted = self._voters(Type.PREVOTE, self.round) | self._voters(Type.PRECOMMIT, self.round)
        return len(voted - {self._me}) > self._faults

    def _rules(self, candidate: bytes | None, validity: Callable[[bytes], Validity]) -> Action | None:
        round_ = self.round
        if self.step is Step.PROPOSE:
            if round_ not in self.proposals and round_ not in self._offered and self._proposer(round_) == self._me:
                if self.valid is not None:
                    self._offered.add(round_)
                    return Offer(round_, self.valid[1], self.valid[0])
                if candidate is not None:
                    self._offered.add(round_)
                    return Offer(round_, candidate, -1)
            if (value := self._prevote(validity)) is not None:
                self._to(Step.PREVOTE)
                return Cast(Type.PREVOTE, round_, value)
            return None
        proposal = self.proposals.get(round_)
        if proposal is not None and self.tally(Type.PREVOTE, round_, proposal[0]) >= self._quorum:
            value = proposal[0]
            if validity(value) in (Validity.VALID, Validity.HELD):
                self.valid = (round_, value)
                if self.step is Step.PREVOTE:
                    self._to(Step.PRECOMMIT)
                    self.locked = (round_, value)
                    return Cast(Type.PRECOMMIT, round_, value, lock=True)
        if self.step is Step.PREVOTE and self.tally(Type.PREVOTE, round_, NOTHING) >= self._quorum:
            self._to(Step.PRECOMMIT)
            return Cast(Type.PRECOMMIT, round_, NOTHING)
        return None

    def _to(self, step: Step) -> None:
        self.step = step
        self._deadline = None

    def _prevote(self, validity: Callable[[bytes], Validity]) -> bytes | None:
        """What to prevote on the round's proposal; None: wait."""
        proposal = self.proposals.get(self.round)
        if proposal is None:
            return None
        value, valid_round = proposal
        said = validity(value)
        if said is Validity.MISSING:
            return None
        if valid_round < 0:
            if said is Validity.HELD and (self.locked is None or self.locked[1] != value):
                return None
            fits = self.locked is None or self.locked[1] == value
        elif valid_round < self.round and self.tally(Type.PREVOTE, valid_round, value) >= self._quorum:
            fits = self.locked is None or self.locked[0] <= valid_round or self.locked[1] == value
        else:
            return None
        return value if fits and said is not Validity.INVALID else NOTHING

    def _patience(self, now_s: float, *, takes_part: bool) -> Action | None:
        """Start the step's timer where it is due, and act when it has run out. takes_part: this node votes."""
        # Q precommits of a round end it, whatever step of it this node is in.
        ended = len(self._voters(Type.PRECOMMIT, self.round)) >= self._quorum
        prevoted = len(self._voters(Type.PREVOTE, self.round)) >= self._quorum
        if not (ended or (takes_part and (self.step is Step.PROPOSE or (self.step is Step.PREVOTE and prevoted)))):
            self._deadline = None
            return None
        if self._deadline is None:
            longest_s = LONGEST_S * (1 + self.round / _SLOWER)
            self._deadline = now_s + min(self._base_s * GROWTH ** min(self.round, 64), longest_s)
        if now_s < self._deadline:
            return None
        if ended:
            # A round that began again would be voted in twice.
            return self._enter(self.round + 1) if self.round < MAX_ROUND else None
        kind, step = (Type.PREVOTE, Step.PREVOTE) if self.step is Step.PROPOSE else (Type.PRECOMMIT, Step.PRECOMMIT)
        self._to(step)
        return Cast(kind, self.round, NOTHING)
