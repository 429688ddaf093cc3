"""One node of a site, sans-IO: `handle(event, now) -> effects`. No clock, no files, no randomness of its own.

The shell carries the effects out in their order. After an event the node does all that is due (`_turn`): its own update (own.py), its vote
(voter.py), and what it says to the others (talk.py, catchup.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from abupdate.errors import AbupdateError, Refused
from abupdate.fleet import journal
from abupdate.fleet.archive import Archive
from abupdate.fleet.catchup import CatchUp
from abupdate.fleet.decided import decided_entries
from abupdate.fleet.events import (
    Compact,
    Conditions,
    Decided,
    Effect,
    Event,
    LeaveEnded,
    Observed,
    Opinion,
    PeerLeaving,
    PeerReturned,
    Prepared,
    Received,
    RecordKind,
    Restored,
    Start,
    Submitted,
    Tick,
)
from abupdate.fleet.facts import Facts
from abupdate.fleet.intake import Intake
from abupdate.fleet.look import Own, look
from abupdate.fleet.objects import Done, Objects
from abupdate.fleet.own import OwnUpdate
from abupdate.fleet.peers import Peers, position
from abupdate.fleet.ports import DecidedEntry
from abupdate.fleet.replay import adopt, learn, replay
from abupdate.fleet.site import Next, Options, Site, first_state
from abupdate.fleet.state import State
from abupdate.fleet.talk import Talk
from abupdate.fleet.view import View
from abupdate.fleet.voter import Voter
from abupdate.fleet.wire import Seal, Wire
from abupdate.formats import certificate as certificate_format
from abupdate.formats import frame
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import LostEntry, OrderEntry, PlanEntry, ReconfigEntry, ReleaseEntry, ReturnEntry
from abupdate.formats.membership import Membership
from abupdate.formats.messages import (
    EVERYBODY,
    NOTHING,
    Announce,
    CertRequest,
    Fragment,
    Frame,
    Heartbeat,
    Hello,
    HelloAck,
    Nack,
    Outcome,
    Overdue,
    Proposal,
    Shutdown,
    Thing,
    Type,
    Vote,
)
from abupdate.formats.order import OrderKind

COMPACT_AFTER = 256
_EPOCHS_KEPT = 3
_SOONEST_S = 0.005
_OF_ORDERS = (OrderEntry, LostEntry, PlanEntry)


class Node:
    """me: this node's index. memberships: files of one site, the newest epoch and those before it that are at hand. records: the log's."""

    def __init__(
        self, me: int, memberships: Sequence[bytes], records: Sequence[tuple[RecordKind, bytes]], seal: Seal, options: Options
    ) -> None:
        """Raises Refused where the memberships are not of one site."""
        facts = Facts()
        archive = Archive(facts)
        known: dict[int, Membership] = {}
        for data in memberships:
            one = archive.add_membership(data)
            known[one.epoch] = one
        if not known or len({one.genesis for one in known.values()}) != 1:
            raise Refused("the memberships are not of one site")
        first = known[_entered(me, known, seal)]
        site = Site(
            me, options, Wire(me, seal, first.genesis), known, first_state(first), facts, archive, Peers(me), Objects(options.base_s)
        )
        # Without the log from the first epoch on there is no state to go on from: it comes as a snapshot.
        site.adrift = first.epoch != 1
        past = replay(site, records)
        self._site = site
        self._records = past.records
        self._voter = Voter(site, stopped=past.stopped)
        try:
            for data in past.votes:
                self._voter.restore_vote(data)
            self._voter.restore(past.locks)
        except (AbupdateError, KeyError, ValueError) as error:
            self._voter.stopped = self._voter.stopped or f"the log's votes cannot be read back ({error})"
        site.peers.follow(frozenset(site.membership.by_index))
        self._own = OwnUpdate(site, past)
        self._talk = Talk(site)
        self._catchup = CatchUp(site)
        self._intake = Intake(site, self._talk)
        self._started = False
        self._left: set[int] = set()
        self.decided = 0
        self.wake_s = 0.0

    @property
    def boot(self) -> int:
        """See ports.Core."""
        return self._site.wire.boot

    # -- events

    def handle(self, event: Event, now_s: float) -> tuple[Effect, ...]:
        """What there is to do after this event. Raises Refused for a `Submitted` that cannot be valid; nothing has changed then."""
        site = self._site
        site.now_s = max(site.now_s, now_s)
        site.out = []
        match event:
            case Start():
                self._start(event)
            case Received():
                if not self._receive(event.data, event.address) and now_s < self.wake_s:
                    return tuple(site.out)
            case Tick():
                pass
            case Observed():
                self._own.observe(event.device)
            case Submitted():
                self._intake.submit(event.data)
                self._follow_orders()
            case Opinion():
                self._own.opine(event)
            case Prepared():
                self._own.prepared(event)
            case LeaveEnded():
                self._own.left(event)
            case Conditions():
                self._own.conditions = event
                self._voter.window_open = event.window_open
        if self._started:
            self._turn()
        return tuple(site.out)

    def _start(self, event: Start) -> None:
        site = self._site
        self._started = True
        self._talk.nonce = event.nonce
        if event.fault:
            self._stop(event.fault)
        elif self._voter.stopped:
            site.alarm(f"this node votes no more: {self._voter.stopped}; enrol it anew")
        site.wire.boot += 1
        if event.tpm_boot is not None:
            if event.tpm_boot > site.wire.boot:
                self._stop("the log is older than the monotonic counter outside it")
            site.wire.boot = max(site.wire.boot, event.tpm_boot)
        site.persist(RecordKind.BOOT, journal.number(site.wire.boot))
        self._own.follow()
        self._follow_orders()

    def _stop(self, why: str) -> None:
        """Never vote again: what this node has said before is not known to it."""
        if self._voter.stopped:
            return
        self._voter.stopped = why
        self._site.persist(RecordKind.STOPPED, why.encode()[:512])
        self._site.alarm(f"this node votes no more: {why}; enrol it anew")

    def _follow_orders(self) -> None:
        """PAUSE and ROLLBACK now count on sight, a PAUSE until a later RESUME of the same thing is here."""
        site = self._site
        held: set[bytes] = set()
        for order in sorted(site.archive.orders(), key=lambda order: order.admin_seq):
            if order.admin_seq <= site.state.admin_seq or order.epoch != site.state.epoch:
                continue
            if order.kind is OrderKind.PAUSE:
                held.add(order.target)
            elif order.now:
                # It closes the plan when it is committed; until then nobody begins to go the other way.
                held.add(NOTHING)
            elif order.kind is OrderKind.RESUME:
                held.discard(order.target)
        self._voter.paused = self._own.paused = frozenset(held)

    # -- frames

    def _receive(self, data: bytes, address: str) -> bool:
        """A frame from outside; False where nothing that this node does can depend on it now."""
        site = self._site
        one = site.wire.open(data, site.membership, site.known, site.now_s)
        if one is None:
            return False
        if one.token:
            # The token was for whoever heard it on the bus. The frame may be relayed, and must not pass it again.
            one = replace(one, to=EVERYBODY, token=False)
            data = frame.pack(one)
        if one.source == site.me:
            self._recognise(one)
        elif one.type in frame.STATUS:
            return self._status(one, address)
        elif isinstance(one.message, Fragment):
            return self._fragment(one.source, one.message)
        elif isinstance(one.message, Announce):
            return self._intake.announced(one, one.message)
        elif isinstance(one.message, Vote) and one.message.height <= site.state.height:
            # It never counts again, and only tells of its author.
            self._voted(one, one.message, data)
            site.wire.remember(one.signature, site.now_s)
            return False
        elif self._fact(one, data):
            site.wire.remember(one.signature, site.now_s)
        return True

    def _fragment(self, sender: int, message: Fragment) -> bool:
        """True where an object has become whole."""
        done = self._site.objects.hear(sender, message, self._site.now_s)
        if done is not None:
            self._object(sender, done)
        return done is not None

    def _recognise(self, one: Frame) -> None:
        """A frame that this node's key has signed: an echo, or proof that the log is older than what was sent."""
        site, message = self._site, one.message
        if not isinstance(message, (Vote, Proposal)) or not self._same_key(one):
            return
        where = position(message.height, message.round, one.type)
        if where > self._voter.newest:
            self._stop("a vote of this node is newer than its log: the log is an older copy")
            return
        now = message.height == site.state.height + 1 and one.epoch == site.state.epoch
        if now and isinstance(message, Vote) and (one.type, message.round, one.source, message.value) not in self._voter.ballots:
            self._stop("a vote of this node is not in its log: its key is used twice, or the log is an older copy")

    def _same_key(self, one: Frame) -> bool:
        """The frame's author has the same key now as in the frame's epoch: it is the same device."""
        site = self._site
        then, now = site.known.get(one.epoch), site.membership.by_index.get(one.source)
        old = then.by_index.get(one.source) if then is not None else None
        return old is not None and now is not None and old.key == now.key

    def _key_of_now(self, one: Frame) -> bool:
        """The frame was verified by the key that its author's place has now."""
        site = self._site
        then = site.known.get(one.epoch, site.membership).by_index.get(one.source)
        now = site.membership.by_index.get(one.source)
        return then is not None and now is not None and then.key == now.key

    def _status(self, one: Frame, address: str) -> bool:
        """True where more than a peer's heartbeat was learned."""
        site, message = self._site, one.message
        peer = site.peers.others.get(one.source)
        if peer is None:
            return False
        if not self._key_of_now(one):
            # Its place has another device now, which must not be taken for up (or starved by a high boot counter) by the old one.
            site.wire.dropped["old key"] += 1
            return False
        if isinstance(message, Hello):
            stranger = not peer.noticed
            self._talk.hear_hello(one, message)
            # All that comes of it is an answer, in its time.
            self.wake_s = min(self.wake_s, self._talk.answer_s)
            return stranger
        if isinstance(message, HelloAck):
            stranger = not peer.noticed
            if not self._talk.hear_ack(one, message):
                return stranger
            contradicting = site.peers.contradicting(site.wire.boot, self._voter.newest)
            if len(contradicting) > site.membership.faults:
                self._stop("others have seen later starts or votes of this node than its log holds: the log is an older copy")
            return True
        peer.noticed = True
        if not peer.fresh and isinstance(message, Heartbeat) and self._talk.is_new(one.epoch, message.height):
            peer.fresh = True
        if not peer.fresh or not peer.newer(one.boot, one.seq):
            site.wire.dropped["stale"] += 1
            return False
        for_me = one.to in (site.me, EVERYBODY)
        match message:
            case Heartbeat():
                peer.heard_s, peer.beat, peer.address = site.now_s, message, address
                self._catchup.notice(one.source, message.height)
                return message.height > site.state.height
            case Nack() if for_me:
                self._catchup.serve(one.source, message)
            case CertRequest() if for_me:
                self._catchup.serve_height(one.source, message.height)
        return False

    def _fact(self, one: Frame, data: bytes) -> bool:
        """A verified fact; True where it was taken in, so that the same frame needs no second look."""
        site, message = self._site, one.message
        match message:
            case Vote():
                return self._vote(one, message, data)
            case Proposal():
                if message.height > site.state.height + 1:
                    self._catchup.notice(one.source, message.height - 1)
                return self._voter.hear_proposal(one, message)
            case Shutdown():
                self._leaving(one.source, message)
                return True
            case _:
                if one.epoch > site.state.epoch:
                    # Who may speak in that epoch, and by which key, is not known here yet. It is said again.
                    return False
                site.add_fact(one, data)
                return True

    def _vote(self, one: Frame, message: Vote, data: bytes) -> bool:
        site = self._site
        self._voted(one, message, data)
        if message.height > site.state.height + 1:
            self._catchup.notice(one.source, message.height - 1)
            return False
        return self._voter.hear_vote(one, message, data)

    def _voted(self, one: Frame, message: Vote, data: bytes) -> None:
        """Remember the newest vote of each peer: it is what a peer is told that has started again."""
        peer = self._site.peers.others.get(one.source)
        where = position(message.height, message.round, one.type)
        if peer is not None and where > peer.newest and self._same_key(one):
            peer.newest, peer.vote = where, data

    def _leaving(self, node: int, message: Shutdown) -> None:
        lease = self._site.state.leases.get(node)
        if lease is not None and lease.height == message.lease and lease.height not in self._left:
            self._left.add(lease.height)
            self._site.emit(PeerLeaving(node, lease.height, message.expected_s))

    def _object(self, sender: int, done: Done) -> None:
        """An object has come in whole; its bytes are what its digest says, and nothing else is known of it."""
        site, data = self._site, done.data
        try:
            match done.thing:
                case Thing.ORDER:
                    self._intake.order(data, pinned=done.pinned, certified=done.certified)
                    self._follow_orders()
                case Thing.MEMBERSHIP:
                    self._intake.membership(data)
                case Thing.ENTRY:
                    site.archive.add_loose(data)
                case Thing.CERTIFICATE:
                    one = certificate_format.parse(data)
                    found = self._catchup.certificate(sender, one)
                    if found is not None:
                        self._decide(found, one)
                case Thing.SNAPSHOT:
                    self._snapshot(sender, data)
                case Thing.EVIDENCE:
                    self._accuse(self._intake.evidence(data))
                case Thing.FACT:
                    pass
        except (Refused, KeyError, ValueError):
            site.wire.dropped["bad object"] += 1

    def _accuse(self, node: int | None) -> None:
        if node is not None and node not in self._voter.equivocators:
            self._voter.equivocators.add(node)
            self._site.alarm(f"node {node} has voted twice in one step: its key is in two hands, or it lies")

    # -- the log grows

    def _snapshot(self, sender: int, data: bytes) -> None:
        one = journal.read_snapshot(data)
        if self._catchup.snapshot(sender, one):
            adopt(self._site, one)
            self._epoch_began()
            self._next_height()
            self._compact()

    def _decide(self, found: Next, one: Certificate) -> None:
        site = self._site
        site.persist(RecordKind.DECIDED, certificate_format.pack(one))
        self._records += 1
        self.decided += 1
        site.before = site.state.last
        site.state = found.state
        site.archive.add_certificate(one)
        site.emit(Decided(found.state.height, found.entry))
        if isinstance(found.entry, ReconfigEntry):
            learn(site, found.entry.membership)
            self._epoch_began()
        if isinstance(found.entry, (ReleaseEntry, ReturnEntry)):
            self._freed(found.entry)
        self._next_height()
        if self._records >= COMPACT_AFTER:
            self._compact()

    def _epoch_began(self) -> None:
        site = self._site
        before = site.known.get(site.state.epoch - 1)
        for index, member in site.membership.by_index.items():
            old = before.by_index.get(index) if before is not None else None
            if old is not None and old.key != member.key:
                # Another device has the place: what the old one said is not its past.
                site.peers.others.pop(index, None)
                self._voter.equivocators.discard(index)
        site.peers.follow(frozenset(site.membership.by_index))
        for epoch in [epoch for epoch in site.known if epoch < site.state.epoch - _EPOCHS_KEPT]:
            del site.known[epoch]

    def _freed(self, entry: ReleaseEntry | ReturnEntry) -> None:
        site = self._site
        for release in entry.releases:
            fact = site.facts.get(release.fact)
            message = fact.frame.message if fact is not None else None
            site.words[release.node] = message.reason if isinstance(message, Outcome) else ""
            if release.node == site.me:
                self._own.released(release)
                site.emit(Restored(release.lease, release.ending.name.lower()))
            elif release.lease in self._left:
                self._left.discard(release.lease)
                site.emit(PeerReturned(release.node, release.lease))

    def _next_height(self) -> None:
        site = self._site
        site.version += 1
        site.facts.follow(site.state)
        site.objects.unpin()
        site.archive.prune(site.state, site.state.admin_seq)
        self._own.follow()
        self._voter.begin()
        self._follow_orders()
        self._catchup.follow()

    def _compact(self) -> None:
        """The log's whole content in as few records as it takes."""
        site, past = self._site, self._own.past
        records: list[tuple[RecordKind, bytes]] = [(RecordKind.BOOT, journal.number(site.wire.boot))]
        if self._voter.stopped:
            records.append((RecordKind.STOPPED, self._voter.stopped.encode()[:512]))
        for thing in (Thing.MEMBERSHIP, Thing.ORDER):
            records += [(RecordKind.OBJECT, bytes([thing]) + data) for data in site.archive.files(thing)]
        newest = self._catchup.snapshot_now()
        if newest is not None:
            records.append((RecordKind.SNAPSHOT, journal.snapshot(newest)))
        records += [(RecordKind.VOTE, data) for data in self._voter.newest_votes()]
        if (locked := self._voter.lock()) is not None:
            records.append((RecordKind.LOCK, locked))
        records += [(RecordKind.FACT, data) for data in past.words.values()]
        records += [(RecordKind.LEAVING, journal.number(lease)) for lease in sorted(past.began)]
        records += [(RecordKind.OPINION, journal.opinion(order, approve=yes, reason=why)) for order, (yes, why) in past.opinions.items()]
        self._records = len(records)
        site.emit(Compact(tuple(records)))

    # -- what is due

    def _turn(self) -> None:
        site = self._site
        for _ in range(64):
            self._own.live()
            decided = self._voter.turn() if not site.adrift else None
            if decided is None:
                break
            self._decide(*decided)
        if site.me not in site.membership.by_index:
            self.wake_s = site.now_s + site.membership.heartbeat_s
            return
        self._overdue()
        self._speak()
        times = [*self._talk.times(), self._voter.wake_s, site.objects.wake_s, self._catchup.wake_s]
        self.wake_s = max(site.now_s + _SOONEST_S, min(time for time in times if time is not None))

    def _overdue(self) -> None:
        """By this voter's own clock a lease is held for too long."""
        site = self._site
        if not site.voter or self._voter.stopped:
            return
        for lease in site.state.leases.values():
            order = site.archive.order(lease.plan)
            since_s = self._own.since.get(lease.height, site.now_s)
            if lease.overdue or lease.node == site.me or order is None or site.now_s - since_s <= order.overdue_s:
                continue
            if site.facts.find(Type.OVERDUE, site.me, lease.height) is None:
                one, data = site.make(Type.OVERDUE, Overdue(lease.height))
                if site.add_fact(one, data) is not None:
                    site.send(Type.OVERDUE, data)
                    site.alarm(f"node {lease.node} holds lease {lease.height} for more than {order.overdue_s} s")

    def _speak(self) -> None:
        site = self._site
        self._talk.greet()
        if site.now_s >= self._talk.beat_s:
            self._talk.beat_s = site.now_s + site.membership.heartbeat_s
            site.say(Type.HEARTBEAT, self._heartbeat())
        self._voter.repeat()
        self._voter.help_proposer()
        self._talk.again()
        due_s = site.objects.wake_s
        if due_s is not None and due_s <= site.now_s:
            for ask in site.objects.due(site.now_s, sorted(site.seen())):
                site.say(Type.NACK, Nack(ask.thing, ask.digest, ask.missing), ask.node)
        self._catchup.ask()

    def _heartbeat(self) -> Heartbeat:
        return self._own.heartbeat(healthy=self.sees_quorum, stopped=bool(self._voter.stopped))

    @property
    def sees_quorum(self) -> bool:
        """Enough voters, this node among them where it is one, have fresh status."""
        site = self._site
        seen = site.seen() & frozenset(site.membership.voters)
        return len(seen) + site.voter >= site.membership.quorum

    def decided_entries(self, first: int, count: int) -> list[DecidedEntry]:
        """See ports.Core."""
        site = self._site
        found = decided_entries(site.archive.certificates.values(), site.state.epoch, site.known, first, count)
        return [replace(one, order=site.archive.order(one.entry.order)) if isinstance(one.entry, _OF_ORDERS) else one for one in found]

    @property
    def state(self) -> State:
        """The site's state as this node knows it."""
        return self._site.state

    def view(self) -> View:
        """What `status` and the metrics show."""
        own = self._own
        mine = Own(
            own.stage,
            own.why,
            self._voter.stopped,
            self._site.adrift,
            self.sees_quorum,
            dict(own.since),
            self.decided,
            self._heartbeat(),
            own.conditions.window_open,
        )
        return look(self._site, self._voter, mine)


def _entered(me: int, known: Mapping[int, Membership], seal: Seal) -> int:
    """The epoch with which this device came to the site: the first of those, up to the newest, in which the place has its key.

    What was decided before is not its own past, and nobody listened to its key then.
    """
    probe = b"abupdate own key 1\x00"
    mine = seal.sign(probe)
    entered = max(known)
    for epoch in sorted(known, reverse=True):
        member = known[epoch].by_index.get(me)
        if member is None or not seal.verify(member.key, mine, probe):
            break
        entered = epoch
    return entered
