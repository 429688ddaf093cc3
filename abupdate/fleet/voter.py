"""This node's part in deciding: what it would propose, what it thinks of proposals, its votes, and the height's end. Pure.

Votes are written to the log before they are sent, and are the same bytes whenever they are sent again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from abupdate.errors import Refused
from abupdate.fleet import journal, ledger
from abupdate.fleet import state as state_format
from abupdate.fleet.budget import lacking
from abupdate.fleet.consensus import Cast, Decide, Enter, Height, Offer, Validity
from abupdate.fleet.events import RecordKind
from abupdate.fleet.peers import ORIGIN, Position, position
from abupdate.fleet.proposer import candidate_entries, room
from abupdate.fleet.site import Next, Site
from abupdate.formats import entries, evidence, frame
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import Ending, GrantEntry, ReleaseEntry
from abupdate.formats.messages import Frame, Proposal, Thing, Type, Vote

_INLINE = 120
# Of base_s: how long a proposer is given before it is helped, and how much longer by each voter than by the one before it.
_HELP = 0.25
_HELP_APART = 1 / 64
_HELP_FACTS = 8
_AT_ONCE_S = 1e-9


@dataclass(slots=True)
class Ballot:
    """A verified vote's frame, kept for certificates and evidence."""

    signature: bytes
    data: bytes


@dataclass(slots=True)
class Voter:
    """The current height. paused, window_open: reasons of this node's own to hold a GRANT back."""

    site: Site
    paused: frozenset[bytes] = frozenset()
    window_open: bool = True
    stopped: str = ""
    newest: Position = ORIGIN
    newest_data: bytes = b""
    rounds: int = 0
    own: dict[tuple[Type, int], bytes] = field(default_factory=dict)
    ballots: dict[tuple[Type, int, int, bytes], Ballot] = field(default_factory=dict)
    proposals: dict[int, Frame] = field(default_factory=dict)
    nexts: dict[bytes, Next] = field(default_factory=dict)
    _by_entry: dict[bytes, Next] = field(default_factory=dict)
    height: Height = field(init=False)
    proposer: Callable[[int], int] = field(init=False)
    _candidate: tuple[int, Next | None] = (-1, None)
    _room: tuple[int, int] = (-1, 0)
    _ripe_s: float | None = None
    _wanted_s: float | None = None
    _help_s: float | None = None
    _helped: int = -1
    _judged: dict[bytes, tuple[int, Validity]] = field(default_factory=dict)
    _resend_s: float = 0.0
    _resends: int = 0
    equivocators: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """The next height begins."""
        site = self.site
        membership = site.membership
        self.own.clear()
        self.ballots.clear()
        self.proposals.clear()
        self.nexts.clear()
        self._by_entry.clear()
        self._judged.clear()
        self._candidate = (-1, None)
        self._ripe_s = self._wanted_s = self._help_s = None
        self._helped = -1
        self._resends = 0
        self._resend_s = 0.0
        standing = [voter for voter in membership.voters if voter not in site.state.leases] or list(membership.voters)
        number = site.state.height + 1
        self.proposer = lambda round_: standing[(number + round_) % len(standing)]
        self.height = Height(
            site.me if site.voter else None,
            membership.quorum,
            membership.faults,
            self.proposer,
            site.options.base_s,
        )

    # -- what the log gives back

    def restore_vote(self, data: bytes) -> None:
        """A VOTE record. Raises Refused."""
        one = frame.parse(data)
        message = one.message
        if isinstance(message, (Proposal, Vote)):
            self._note(position(message.height, message.round, one.type), data)
            if message.height == self.site.state.height + 1 and one.epoch == self.site.state.epoch:
                self.own[one.type, message.round] = data

    def restore(self, locks: list[tuple[int, int, bytes]]) -> None:
        """Take up the current height where the log left it: own votes, and the lock."""
        for (_, round_), data in sorted(self.own.items(), key=lambda item: item[0][1]):
            one = frame.parse(data)
            if isinstance(one.message, Vote):
                self.height.restore(one.type, round_, one.message.value)
                self.ballots[one.type, round_, self.site.me, one.message.value] = Ballot(one.signature, data)
            elif isinstance(one.message, Proposal):
                self.proposals[round_] = one
                self.height.restore_proposal(round_)
        # Whatever of it the others have missed is said again at once.
        self._resend_s = _AT_ONCE_S
        for height, round_, entry in locks:
            if height == self.site.state.height + 1:
                found = self._after(entries.parse(entry), entry)
                self.height.restore_lock(round_, found.value)

    # -- what comes in

    def hear_proposal(self, one: Frame, message: Proposal) -> bool:
        """A verified PROPOSAL; True where it was taken in."""
        site = self.site
        if message.height != site.state.height + 1 or one.epoch != site.state.epoch or message.round > self.height.round + 8:
            return False
        if self.proposer(message.round) != one.source or message.round in self.proposals:
            return False
        self.proposals[message.round] = one
        self._resolve(message.round)
        return True

    def _resolve(self, round_: int) -> None:
        """Learn the value of a round's proposal, as far as all that it names is here."""
        site, one = self.site, self.proposals[round_]
        message = one.message
        if not isinstance(message, Proposal) or round_ in self.height.proposals:
            return
        data = message.entry or site.archive.loose(message.entry_digest)
        if data is None:
            site.objects.want(Thing.ENTRY, message.entry_digest, one.source, site.now_s, pinned=True, soon=True)
            return
        try:
            entry = entries.parse(data)
        except Refused:
            return
        for thing, digest in _named(entry):
            if (site.archive.order(digest) if thing is Thing.ORDER else site.archive.membership(digest)) is None:
                site.objects.want(thing, digest, one.source, site.now_s, pinned=True)
                return
        try:
            found = self._after(entry, data)
        except (KeyError, ValueError):
            # An entry that does not even fit to the state is not valid, whatever it is called.
            return
        self.height.hear_proposal(round_, found.value, message.valid_round)

    def hear_vote(self, one: Frame, message: Vote, data: bytes) -> bool:
        """A verified PREVOTE or PRECOMMIT; True where it was taken in."""
        site = self.site
        if message.height != site.state.height + 1 or one.epoch != site.state.epoch or one.source not in site.membership.voters:
            return False
        if (one.type, message.round, one.source, message.value) in self.ballots:
            return True
        if one.source != site.me and one.source not in self.equivocators:
            first = next((ballot for key, ballot in self.ballots.items() if key[:3] == (one.type, message.round, one.source)), None)
            if first is not None:
                self._catch(one.source, first.data, data)
        # What does not count now may count when it comes again.
        counts = self.height.hear_vote(one.type, message.round, one.source, message.value)
        if counts:
            self.ballots[one.type, message.round, one.source, message.value] = Ballot(one.signature, data)
        return counts

    def _catch(self, liar: int, first: bytes, second: bytes) -> None:
        """Two votes of one voter for the same step: evidence, which raises an alarm and changes no voters."""
        if liar in self.equivocators:
            return
        self.equivocators.add(liar)
        site = self.site
        site.alarm(f"node {liar} has voted twice in one step: its key is in two hands, or it lies")
        proof = evidence.pack(evidence.between(first, second))
        site.announce(Type.EVIDENCE, Thing.EVIDENCE, site.archive.add_loose(proof), proof)

    # -- what this node thinks

    def candidate(self) -> Next | None:
        """What this node would propose now."""
        version = self.site.version
        if self._candidate[0] != version:
            self._candidate = (version, self._find_candidate())
        found = self._candidate[1]
        if found is not None and (self._held(found) or self._early(found)):
            found = None
        if found is None:
            self._wanted_s = None
        elif self._wanted_s is None:
            self._wanted_s = self.site.now_s
        return found

    @property
    def undecided_s(self) -> float | None:
        """For how long there has been something to agree on at this height, None: there is nothing."""
        return None if self._wanted_s is None else self.site.now_s - self._wanted_s

    def _early(self, found: Next) -> bool:
        """More nodes may be named by it soon. One height for all of them costs the site one height.

        Who went down together comes back at about the same time; and who has just started does not know of all requests yet.
        """
        site = self.site
        match found.entry:
            case ReleaseEntry(releases):
                held = sum(not lease.lost and not lease.overdue for lease in site.state.leases.values())
                whole = len(releases) >= held or any(release.ending is not Ending.COMPLETE for release in releases)
                wait_s = site.options.base_s
            case GrantEntry(_, grants):
                whole = len(grants) >= self._spare()
                wait_s = 2 * _HELP * site.options.base_s
            case _:
                return False
        if whole:
            return False
        if self._ripe_s is None:
            self._ripe_s = site.now_s + wait_s
        return site.now_s < self._ripe_s

    def _spare(self) -> int:
        """How many nodes of the open plan could go down now; asked at every event, and the same as long as nothing new is known."""
        if self._room[0] != self.site.version:
            self._room = (self.site.version, room(self.site))
        return self._room[1]

    def _find_candidate(self) -> Next | None:
        site = self.site
        for entry in candidate_entries(site):
            data = entries.pack(entry)
            if ledger.judge(site.state, site.membership, entry, site.archive).valid:
                return self._after(entry, data)
        return None

    def _after(self, entry: entries.Entry, data: bytes) -> Next:
        """What an entry makes of this height's state: the same whenever it is asked. Raises as `Site.after` does."""
        found = self._by_entry.get(data)
        if found is None:
            found = self.site.after(entry, data)
            self._by_entry[data] = self.nexts[found.value] = found
        return found

    def _held(self, found: Next) -> bool:
        """This node would rather not have it now."""
        entry, site = found.entry, self.site
        if not isinstance(entry, GrantEntry):
            return False
        if not self.window_open or entry.plan in self.paused or bytes(32) in self.paused:
            return True
        down = set(site.state.leases) | {node for node, _ in entry.grants}
        return bool(lacking(site.membership, (site.seen() | {site.me}) - down))

    def validity(self, value: bytes) -> Validity:
        """What this node thinks of a value now."""
        found = self.nexts.get(value)
        if found is None:
            return Validity.MISSING
        known = self._judged.get(value)
        if known is None or known[0] != self.site.version or known[1] is Validity.MISSING:
            known = (self.site.version, self._judge(found))
            self._judged[value] = known
        if known[1] is Validity.VALID and self._held(found):
            return Validity.HELD
        return known[1]

    def _judge(self, found: Next) -> Validity:
        site = self.site
        judgement = ledger.judge(site.state, site.membership, found.entry, site.archive)
        if judgement.valid:
            return Validity.VALID
        if not judgement.missing:
            return Validity.INVALID
        if self.height.vouched(found.value):
            # Validity is objective. The facts may be gone for good: who signed them may have no reason to say them again.
            return Validity.VALID
        holder = next(
            (one.source for round_, one in self.proposals.items() if self.height.proposals.get(round_, (b"",))[0] == found.value), None
        )
        for thing, digest in judgement.missing:
            if holder is not None and holder != site.me:
                # Votes overtake facts on a slow medium: most are on their way.
                site.objects.want(thing, digest, holder, site.now_s, pinned=True, soon=True)
        return Validity.MISSING

    # -- what it does

    def may_vote(self) -> bool:
        """It is a voter, its log is whole, and enough others have confirmed that it has not voted since."""
        site = self.site
        if not site.voter or self.stopped:
            return False
        seen = site.peers.acknowledged(site.wire.boot, self.newest, site.membership.voters)
        return len(seen) >= site.membership.quorum - 1

    def turn(self) -> tuple[Next, Certificate] | None:
        """Do all that there is to do at this height; returns what was decided, when it was."""
        site = self.site
        for round_ in [round_ for round_ in self.proposals if round_ not in self.height.proposals]:
            self._resolve(round_)
        may_vote = self.may_vote()
        while True:
            candidate = self.candidate() if may_vote else None
            action = self.height.advance(site.now_s, candidate.value if candidate else None, self.validity, may_vote=may_vote)
            match action:
                case None:
                    return None
                case Enter():
                    self.rounds += 1
                    self._resends, self._resend_s = 0, 0.0
                case Offer():
                    self._propose(action)
                case Cast():
                    self._cast(action)
                case Decide():
                    found = self.nexts.get(action.value)
                    if found is None:
                        # The entry is not here: the others have a certificate for who missed the proposal.
                        self.height.undecided(action.round)
                        return None
                    return found, self._certificate(action, found)

    def _propose(self, offer: Offer) -> None:
        site, found = self.site, self.nexts[offer.value]
        inline = found.data if len(found.data) <= _INLINE else b""
        message = Proposal(site.state.height + 1, offer.round, offer.valid_round, entries.digest(found.data), inline)
        one, data = site.make(Type.PROPOSAL, message)
        self._record(Type.PROPOSAL, message.height, offer.round, data)
        self.proposals[offer.round] = one
        self.height.hear_proposal(offer.round, offer.value, offer.valid_round)
        for digest in ledger.facts_of(site.state, found.entry):
            fact = site.facts.get(digest)
            if fact is not None and fact.frame.source == site.me:
                # It may still wait for its turn, and nobody votes for what names a fact that he does not have.
                site.send(fact.frame.type, fact.data, urgent=True)
        site.send(Type.PROPOSAL, data)
        if not inline:
            site.archive.add_loose(found.data)
            site.hand_out(message.entry_digest, found.data, urgent=True)

    def _cast(self, cast: Cast) -> None:
        site = self.site
        height = site.state.height + 1
        if cast.lock:
            site.persist(RecordKind.LOCK, journal.lock(height, cast.round, self.nexts[cast.value].data))
        one, data = site.make(cast.kind, Vote(height, cast.round, cast.value))
        self._record(cast.kind, height, cast.round, data)
        self.ballots[cast.kind, cast.round, site.me, cast.value] = Ballot(one.signature, data)
        self.height.hear_vote(cast.kind, cast.round, site.me, cast.value)
        site.send(cast.kind, data)
        self._resend_s = site.now_s + site.options.resend_s

    def _record(self, kind: Type, height: int, round_: int, data: bytes) -> None:
        """To the log first; nothing is sent that the log does not hold."""
        self.site.persist(RecordKind.VOTE, data)
        self.own[kind, round_] = data
        self._note(position(height, round_, kind), data)

    def _note(self, where: Position, data: bytes) -> None:
        if where > self.newest:
            self.newest, self.newest_data = where, data

    def lock(self) -> bytes | None:
        """The LOCK record of this height, None where nothing is locked."""
        if self.height.locked is None:
            return None
        round_, value = self.height.locked
        return journal.lock(self.site.state.height + 1, round_, self.nexts[value].data)

    def newest_votes(self) -> list[bytes]:
        """The records that show how far this node has voted: all of this height, or the last one before it."""
        return list(self.own.values()) or ([self.newest_data] if self.newest_data else [])

    def _certificate(self, decide: Decide, found: Next) -> Certificate:
        signatures = sorted(
            (voter, ballot.signature)
            for (kind, round_, voter, value), ballot in self.ballots.items()
            if kind is Type.PRECOMMIT and round_ == decide.round and value == decide.value
        )
        quorum = self.site.membership.quorum
        return Certificate(found.state.height, decide.round, found.data, _state_digest(found), tuple(signatures[:quorum]))

    # -- what it says again

    @property
    def wake_s(self) -> float | None:
        """When the height wants to be looked at again."""
        ripe_s = self._ripe_s if self._ripe_s is not None and self._ripe_s > self.site.now_s else None
        times = [time for time in (self.height.wake_s, self._resend_s if self.own else None, ripe_s, self._help_s) if time]
        return min(times, default=None)

    def repeat(self) -> None:
        """Say again what this round's others may have missed."""
        site = self.site
        if not self.own or not self._resend_s or site.now_s < self._resend_s:
            return
        self._resends += 1
        self._resend_s = site.now_s + min(site.options.resend_s * 1.5 ** min(self._resends, 8), 15.0)
        # Up to f others may still wait for the end of the round before; who is further behind follows more than f.
        rounds = {self.height.round, self.height.round - 1}
        if self.height.locked is not None:
            rounds.add(self.height.locked[0])
        for (kind, round_), data in sorted(self.own.items(), key=lambda item: (item[0][1], item[0][0])):
            if round_ in rounds:
                site.send(kind, data)
        valid = self.height.valid
        if valid is not None and valid[0] < self.height.round:
            # Who has not seen the quorum of that round cannot vote for a proposal that rests on it.
            for (kind, round_, voter, value), ballot in self.ballots.items():
                if kind is Type.PREVOTE and (round_, value) == valid and voter != site.me:
                    site.send(kind, ballot.data)

    def help_proposer(self) -> None:
        """The proposer may lack a fact that this node has (it has forgotten all when it started again): say it, unless somebody does."""
        site, round_ = self.site, self.height.round
        # What costs least is asked first: this is done at every event.
        settled = self._helped == round_ or round_ in self.proposals or self.proposer(round_) == site.me
        found = self.candidate() if not settled and self.may_vote() else None
        digests = ledger.facts_of(site.state, found.entry) if found is not None else ()
        if not 0 < len(digests) <= _HELP_FACTS:
            self._help_s = None
            return
        if self._help_s is None:
            place = site.membership.voters.index(site.me)
            self._help_s = site.now_s + (_HELP + _HELP_APART * place) * site.options.base_s
        elif site.now_s >= self._help_s:
            self._help_s, self._helped = None, round_
            facts = [fact for digest in digests if (fact := site.facts.get(digest)) is not None]
            for fact in facts:
                if site.wire.silent_s(fact.data, site.now_s) > site.options.base_s * _HELP:
                    site.wire.remember(fact.frame.signature, site.now_s)
                    site.send(fact.frame.type, fact.data, urgent=True)

    def tallies(self) -> Counter[str]:
        """Votes of the round, for people."""
        counts: Counter[str] = Counter()
        for kind, round_, _, _ in self.ballots:
            if round_ == self.height.round:
                counts[kind.name.lower()] += 1
        return counts


def _named(entry: entries.Entry) -> list[tuple[Thing, bytes]]:
    """Objects without which nobody can tell what an entry does."""
    match entry:
        case entries.OrderEntry() | entries.LostEntry() | entries.PlanEntry():
            return [(Thing.ORDER, entry.order)]
        case entries.GrantEntry() | entries.HaltEntry():
            return [(Thing.ORDER, entry.plan)]
        case entries.ReconfigEntry():
            return [(Thing.MEMBERSHIP, entry.membership)]
        case _:
            return []


def _state_digest(found: Next) -> bytes:
    return state_format.digest(found.state)
