"""The twelve invariants of fleet.md, judged from outside: by what honest nodes sign, by what is decided, and by what devices really do.

Every check costs little, so that all of them are made at every step. One that fails raises `Violation` with the number of the invariant:

    1 agreement                                     Witness.decided, adopted, _quorum
    2 one vote for each step, over restarts         Witness.sent, _vote
    3 held and lost within all budgets              oracle.Oracle.take, _grant (width), _reconfig
    4 who goes down on purpose holds a lease        Witness.going_down; oracle.Oracle._grant
    5 no lease ends without its holder's word       Witness._word, going_down, booted, spoke; oracle.Oracle._release
    6 what boots was in a committed plan            Witness.booted, _approve; oracle.Oracle._order, _plan (devices have no floor here)
    7 COMPLETE after the slot is confirmed          Witness._complete
    8 counters never fall                           Witness.sent, decided, adopted; oracle.Oracle._order, _reconfig
    9 no grant past n-Q+1 paused voters             Witness._held_back; oracle.Oracle._grant (once the PAUSE is decided)
    10 safety under any clock                       all of these, in schedules whose clocks jump and go wrong (kind `skewed`, and others)
    11 progress after healing                       progress.Progress
    12 evidence names real equivocators only        Witness.accused
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from abupdate.fleet.events import Device as Seen
from abupdate.formats import entries, frame
from abupdate.formats.entries import Ending, Entry, GrantEntry, ReconfigEntry, Release
from abupdate.formats.membership import Membership
from abupdate.formats.messages import NOTHING, Approve, Frame, Heartbeat, Outcome, SlotRequest, Type, Vote
from abupdate.formats.order import Order
from abupdate.model import Phase
from tests.fleet.device import Device, Why
from tests.fleet.oracle import Broken, Held, Oracle

ENDINGS = {Type.COMPLETE: Ending.COMPLETE, Type.ROLLED_BACK: Ending.ROLLED_BACK, Type.DEFER: Ending.DEFER}


class Violation(Exception):
    """An invariant is broken. The world adds the trace of the last steps."""


@dataclass(slots=True)
class Subject:
    """What is known of one node. honest: not byzantine, and its log is the one that it wrote. intact: that log was never lost.
    found_out: an older copy of it was put back, and enough others know so.

    words: lease -> (ending, digest of the fact), as it signed them. told: words that were checked already. paused: targets of PAUSE
    orders that it has taken in -> the order's number, and heights that it had prevoted before.
    """

    index: int
    key: bytes
    device: Device
    honest: bool = True
    intact: bool = True
    may_vote: bool = True
    found_out: bool = False
    words: dict[int, tuple[Ending, bytes]] = field(default_factory=dict)
    approved: set[tuple[bytes, int]] = field(default_factory=set)
    asked: set[tuple[bytes, int, int]] = field(default_factory=set)
    last_status: tuple[int, int] = (0, 0)
    height: int = 0
    decided: int = 0
    paused: dict[bytes, tuple[int, frozenset[int]]] = field(default_factory=dict)
    told: set[tuple[int, Ending]] = field(default_factory=set)


@dataclass
class Witness:
    """Sees everything. subjects: by index. former: nodes whose key was replaced. dropped: leases that a RECONFIG ended with their node."""

    oracle: Oracle
    subjects: dict[int, Subject]
    orders: Mapping[bytes, Order]
    votes: dict[tuple[bytes, int, int, int, Type], bytes] = field(default_factory=dict)
    precommitted: dict[tuple[int, int], dict[int, set[int]]] = field(default_factory=dict)
    prevoters: dict[int, set[int]] = field(default_factory=dict)
    log: dict[int, bytes] = field(default_factory=dict)
    states: dict[int, bytes] = field(default_factory=dict)
    waiting: dict[int, Entry] = field(default_factory=dict)
    dropped: set[tuple[int, int]] = field(default_factory=set)
    former: dict[int, list[Subject]] = field(default_factory=dict)
    known: dict[int, dict[int, set[bytes]]] = field(default_factory=dict)
    decisions: int = 0

    # -- what is said

    def sent(self, node: int, data: bytes) -> None:
        """An honest node sends a frame; what it only relays says nothing about it."""
        said = frame.parse(data)
        subject = self.subjects.get(node)
        if subject is None or said.source != node:
            return
        if subject.found_out and isinstance(said.message, Vote):
            key = (subject.key, said.epoch, said.message.height, said.message.round, said.type)
            if self.votes.get(key) != said.message.value:
                raise Violation(f"2: node {node} votes with a log that is older than votes of it that others know")
        if not subject.honest:
            return
        match said.message:
            case Vote():
                self._vote(subject, said, said.message)
            case Outcome():
                self._word(subject, said, said.message)
            case SlotRequest(plan=plan, attempt=attempt):
                subject.asked.add((plan, attempt, said.epoch))
            case Approve(order=order):
                self._approve(subject, said, order)
            case Heartbeat(height=height):
                if subject.intact and height < subject.height:
                    raise Violation(f"8: node {node} was at height {subject.height} and says {height}")
                subject.height = height
            case _:
                pass
        if said.type in frame.STATUS and said.type is not Type.POLL and subject.intact:
            if (said.boot, said.seq) <= subject.last_status:
                raise Violation(f"8: node {node} says boot {said.boot} seq {said.seq} after {subject.last_status}")
            subject.last_status = (said.boot, said.seq)

    def started(self, node: int) -> None:
        """A node's process starts anew: its boot counter must be beyond all that it has said."""
        subject = self.subjects[node]
        subject.last_status = (subject.last_status[0], 1 << 32)

    def _vote(self, subject: Subject, said: Frame, vote: Vote) -> None:
        if not subject.may_vote:
            raise Violation(f"2: node {subject.index} votes although its log is lost or older than its votes")
        key = (subject.key, said.epoch, vote.height, vote.round, said.type)
        before = self.votes.setdefault(key, vote.value)
        if before != vote.value:
            raise Violation(
                f"2: node {subject.index} votes twice: height {vote.height} round {vote.round} {said.type.name} "
                f"{before.hex()[:8]} and {vote.value.hex()[:8]}"
            )
        if vote.value == NOTHING:
            return
        if said.type is Type.PRECOMMIT:
            self.precommitted.setdefault((said.epoch, vote.height), {}).setdefault(vote.round, set()).add(subject.index)
        else:
            self.prevoters.setdefault(vote.height, set()).add(subject.index)

    def _word(self, subject: Subject, said: Frame, outcome: Outcome) -> None:
        ending = ENDINGS[said.type]
        digest = frame.fact_digest(said.type, said.source, said.epoch, frame.payload(said.message))
        device, lease, node = subject.device, outcome.lease, subject.index
        before = subject.words.setdefault(lease, (ending, digest))
        if before[0] is not ending:
            raise Violation(f"5: node {node} says {ending.name} for lease {lease} and said {before[0].name} before")
        if (lease, ending) in subject.told:
            return
        subject.told.add((lease, ending))
        seen = device.seen()
        went = any(one == (Why.LEASE, lease) for one in device.reboots)
        under = device.attempt is not None and device.attempt.lease == lease
        if ending is Ending.COMPLETE:
            self._complete(subject, outcome, seen)
        if device.down_for is not None and device.down_for[1] == lease:
            raise Violation(f"5: node {node} says {ending.name} for lease {lease} while it is down for it")
        if under and device.armed:
            raise Violation(f"5: node {node} says {ending.name} for lease {lease} while a slot is armed under it")
        if device.leaving == lease:
            raise Violation(f"5: node {node} says {ending.name} for lease {lease} while it is leaving")
        if ending is Ending.DEFER and went:
            raise Violation(f"5: node {node} says DEFER for lease {lease} and has been down for it")

    def _complete(self, subject: Subject, outcome: Outcome, seen: Seen) -> None:
        if seen.trial or not subject.device.slots[subject.device.booted].good:
            raise Violation(f"7: node {subject.index} says COMPLETE for lease {outcome.lease} before its slot is confirmed")
        if outcome.bundle != seen.booted:
            raise Violation(f"7: node {subject.index} says COMPLETE with a bundle that it does not run")
        if seen.lease == outcome.lease and seen.phase is not Phase.CONFIRMED:
            raise Violation(f"7: node {subject.index} says COMPLETE for lease {outcome.lease} in phase {seen.phase}")

    def _approve(self, subject: Subject, said: Frame, digest: bytes) -> None:
        order = self.orders.get(digest)
        seen = subject.device.seen()
        has = order is not None and order.bundle in (seen.written, seen.booted, seen.other)
        if not has and (digest, said.epoch) not in subject.approved:
            raise Violation(f"6: node {subject.index} approves an order whose bundle it does not have")
        subject.approved.add((digest, said.epoch))

    # -- what is decided

    def decided(self, node: int, height: int, entry: Entry, state: bytes) -> None:
        """An honest node decides. state: digest of its state after the entry."""
        subject = self.subjects.get(node)
        if subject is None or not subject.honest:
            return
        if height <= subject.decided and subject.intact:
            raise Violation(f"8: node {node} decides height {height} after {subject.decided}")
        subject.decided = height
        data = entries.pack(entry)
        if self.log.setdefault(height, data) != data:
            raise Violation(f"1: node {node} decides {entry} at height {height}, another node {entries.parse(self.log[height])}")
        if self.states.setdefault(height, state) != state:
            raise Violation(f"1: node {node} has another state than others after height {height}")
        if height > self.oracle.height and height not in self.waiting:
            self._quorum(node, height)
            self.waiting[height] = entry
        while (following := self.waiting.pop(self.oracle.height + 1, None)) is not None:
            self._take(following)

    def adopted(self, node: int, height: int, state: bytes) -> None:
        """An honest node goes on from a snapshot. state: digest of the state that it says."""
        subject = self.subjects.get(node)
        if subject is None or not subject.honest:
            return
        if height < subject.decided and subject.intact:
            raise Violation(f"8: node {node} was at height {subject.decided} and goes back to {height}")
        subject.decided = height
        if self.states.setdefault(height, state) != state:
            raise Violation(f"1: node {node} adopts another state than others have after height {height}")

    def _quorum(self, node: int, height: int) -> None:
        """Q voters have precommitted one value: those that are not honest may have said anything."""
        membership = self.oracle.membership
        liars = sum(not self.subjects[voter].honest for voter in membership.voters if voter in self.subjects)
        rounds = self.precommitted.get((membership.epoch, height), {})
        # Its own vote may lie in its log only: it crashed before it could send it.
        most = max((len((voters | {node}) & set(membership.voters)) for voters in rounds.values()), default=0)
        quorum = (len(membership.voters) + membership.faults) // 2 + 1
        if height == self.oracle.height + 1 and most + liars < quorum:
            raise Violation(f"1: node {node} decides height {height} with {most} honest precommits and {liars} liars, Q is {quorum}")

    def _take(self, entry: Entry) -> None:
        self.decisions += 1
        oracle = self.oracle
        if isinstance(entry, GrantEntry):
            self._held_back(entry)
        before = dict(oracle.held)
        try:
            oracle.take(entry)
        except Broken as broken:
            raise Violation(f"{broken} (height {oracle.height}: {entry})") from broken
        self._lift_pauses()
        if isinstance(entry, ReconfigEntry):
            for subject in self.subjects.values():
                subject.paused.clear()
            self.dropped |= {(node, held.lease) for node, held in before.items() if node not in oracle.held}

    def _held_back(self, entry: GrantEntry) -> None:
        """9: not with n-Q+1 honest voters that were paused before they prevoted anything at this height."""
        membership: Membership = self.oracle.membership
        height = self.oracle.height + 1
        held_back = set()
        for voter in membership.voters:
            subject = self.subjects.get(voter)
            if subject is None or not subject.honest:
                continue
            before = [heights for target, (_, heights) in subject.paused.items() if target in (entry.plan, NOTHING)]
            if before and all(height not in heights for heights in before):
                held_back.add(voter)
        quorum = (len(membership.voters) + membership.faults) // 2 + 1
        if len(held_back) >= len(membership.voters) - quorum + 1:
            raise Violation(f"9: a grant commits at height {height} although {sorted(held_back)} were paused before they prevoted it")

    def _lift_pauses(self) -> None:
        """What is paused by an order whose number is used up, the log alone says; the oracle judges that."""
        for subject in self.subjects.values():
            subject.paused = {target: one for target, one in subject.paused.items() if one[0] > self.oracle.admin_seq}

    def resumed_on_sight(self, target: bytes) -> None:
        """A RESUME is about: who has seen it need not wait for its commit."""
        for subject in self.subjects.values():
            subject.paused.pop(target, None)

    def paused_on_sight(self, node: int, order: Order) -> None:
        """An honest node has taken in a signed PAUSE completely (its effects are done)."""
        subject = self.subjects[node]
        if subject.honest and order.admin_seq > self.oracle.admin_seq:
            heights = frozenset(height for height, voters in self.prevoters.items() if node in voters)
            subject.paused.setdefault(order.target, (order.admin_seq, heights))

    def recovered(self, membership: Membership, oracle: Oracle, keys: Mapping[int, bytes]) -> None:
        """The site begins anew, from what is held; everything that was decided beyond its last height is void, and so are the old keys."""
        recovery = membership.recovery
        if recovery is None:
            raise AssertionError("no recovery")
        oracle.height = recovery.height
        oracle.held = {node: Held(lease, NOTHING) for node, lease in recovery.leases.items()}
        oracle.counts = self.oracle.counts
        oracle.planned, oracle.ever_now = dict(self.oracle.planned), set(self.oracle.ever_now)
        self.oracle = oracle
        self.waiting.clear()
        self.precommitted.clear()
        self.prevoters.clear()
        for height in [height for height in self.log if height > recovery.height]:
            del self.log[height]
        self.states.clear()
        for node, subject in list(self.subjects.items()):
            self.former.setdefault(node, []).append(subject)
            self.subjects[node] = Subject(node, keys[node], subject.device, honest=True, decided=recovery.height, height=recovery.height)

    # -- what devices do

    def going_down(self, node: int, why: Why, lease: int | None) -> None:
        """4: on purpose under a lease only."""
        subject = self.subjects.get(node)
        if subject is None or not subject.honest or why in (Why.FALLBACK, Why.POWER):
            return
        if why is Why.NOW:
            orders = (order for order in self.orders.values() if order.now and self.oracle.genuine(order))
            if not any(not order.nodes or node in order.nodes for order in orders):
                raise Violation(f"4: node {node} goes back at once and nobody ordered it")
            return
        held = self.oracle.held.get(node)
        if lease is None or held is None or held.lease != lease:
            if lease is not None and (node, lease) in self.dropped:
                return
            raise Violation(f"4: node {node} goes down for lease {lease} and holds {held}")
        if lease in subject.words:
            raise Violation(f"5: node {node} goes down for lease {lease} after it said {subject.words[lease][0].name}")

    def booted(self, node: int, bundle: bytes, why: Why, lease: int | None) -> None:
        """6: what boots was in a committed plan, or in an admin's order."""
        subject = self.subjects.get(node)
        if subject is None or not subject.honest or why in (Why.FACTORY, Why.FALLBACK, Why.POWER):
            return
        orders = [self.orders[one] for one in (*self.oracle.planned, *self.oracle.ever_now) if one in self.orders]
        if why is Why.NOW:
            orders += [order for order in self.orders.values() if order.now and self.oracle.genuine(order)]
        if not any(bundle == order.bundle or bundle == order.rollback_to for order in orders):
            raise Violation(f"6: node {node} boots {bundle.hex()[:8]}, which no committed plan names")
        if why is Why.LEASE and lease is not None and lease in subject.words:
            raise Violation(f"5: node {node} boots for lease {lease} after it said {subject.words[lease][0].name}")

    def settled(self, node: int, lease: int | None) -> None:
        """Nothing to check: the word that follows is."""

    # -- what is believed of others

    def accused(self, node: int, liars: frozenset[int]) -> None:
        """12: an honest node believes that these have voted twice."""
        subject = self.subjects.get(node)
        for liar in liars:
            other = self.subjects.get(liar)
            if subject is not None and subject.honest and other is not None and other.honest:
                raise Violation(f"12: node {node} believes that node {liar} has voted twice, and it has not")

    def heard(self, node: int, data: bytes) -> None:
        """A node's process hears a frame: so it can tell a peer that has lost its past about it."""
        head = frame.peek(data)
        if head is None or head.type not in (Type.PREVOTE, Type.PRECOMMIT):
            return
        self.known.setdefault(node, {}).setdefault(head.source, set()).add(data[-68:-4])

    def restored(self, node: int, lost: set[bytes]) -> None:
        """An older copy of a node's log was put back. lost: signatures of votes that the copy does not have and that others may know.

        It counts as one of the f that may be faulty. But where so many know a lost vote that any Q-1 others include one of them, it must
        find out before it votes again.
        """
        subject = self.subjects[node]
        subject.honest = subject.intact = False
        rules = self.oracle.membership
        others = [voter for voter in rules.voters if voter != node and voter in self.subjects and self.subjects[voter].honest]
        aware = [voter for voter in others if self.known.get(voter, {}).get(node, set()) & lost]
        subject.found_out = len(aware) >= len(rules.voters) - rules.quorum + 1

    # -- what the oracle asks

    def spoke(self, release: Release, held: Held) -> str:
        """Empty where the holder really gave this word, or is a liar."""
        subject = self.subjects.get(release.node)
        if subject is None or not subject.honest:
            return ""
        if any(release.lease in one.words and one.words[release.lease][0] is release.ending for one in self.former.get(release.node, ())):
            return ""
        device = subject.device
        if device.down_for is not None and device.down_for[1] == release.lease and device.down_for[0] is Why.LEASE:
            return f"lease {release.lease} ends while node {release.node} is down for it"
        said = subject.words.get(release.lease)
        if said is None or said[0] is not release.ending:
            return f"node {release.node} never said {release.ending.name} for lease {release.lease}"
        return ""

    def asked(self, node: int, plan: bytes, attempt: int) -> bool:
        """Whether it asked, as far as its honesty goes."""
        subject = self.subjects.get(node)
        return subject is None or not subject.honest or (plan, attempt, self.oracle.membership.epoch) in subject.asked

    def approved(self, node: int, order: bytes) -> bool:
        """Whether it approved, as far as its honesty goes."""
        subject = self.subjects.get(node)
        return subject is None or not subject.honest or (order, self.oracle.membership.epoch) in subject.approved
