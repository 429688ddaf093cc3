"""What a node says by the clock: greetings after a start, heartbeats, and its own words as long as the log waits for them. Pure.

A medium may carry 11 KB/s for 64 nodes: nobody says what another has just said, and nothing again that nobody waits for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from abupdate.fleet import ledger
from abupdate.fleet.facts import Fact
from abupdate.fleet.peers import ORIGIN
from abupdate.fleet.site import Site
from abupdate.formats.messages import EVERYBODY, Announce, Echo, Frame, Hello, HelloAck, SlotRequest, Thing, Type
from abupdate.formats.order import Order, OrderKind

_ECHOES = 10
# The first pause between greetings: as long as all the others may need to answer.
_HELLO_S = 0.5
_HELLO_EACH_S = 0.02
_GREET_AGAIN_S = 0.1
_ANSWER_AGAIN_S = 1.0
_ANSWER_AT_MOST_S = 60.0
_APART_S = 0.01
_RELAYED_S = 3.0
# A learner is in no hurry to be answered by voters, nor anybody by learners: those who start one after the other get one answer.
_SOON_BEATS = 0.5
# In a rollout, where one node after the other starts and the log goes on; else many have been switched on, and nothing else tells of them.
_LATER_BEATS = 6.0
_IDLE_BEATS = 2.0
# A learner asks rarely and then several, so that it knows even of 60 strangers after 15 turns.
_LEARNER_ASKS = 4
_PROOF_HEIGHTS = 3
# What every node says is said again more rarely where there are many.
_LONGEST_S = 30.0
_LONGEST_EACH_S = 4.0
_FEW = 16


@dataclass(slots=True)
class _Answered:
    """A start (its nonce) that was answered: how often, and from when on it is answered again."""

    nonce: int
    count: int
    again_s: float


@dataclass(slots=True)
class Talk:
    """nonce: of this start's HELLO. mine: orders and memberships that came in through this node, announced until they are decided."""

    site: Site
    nonce: int = 0
    mine: set[bytes] = field(default_factory=set)
    beat_s: float = 0.0
    _hello_s: float = 0.0
    _hellos: int = 0
    _hailed_s: float = 0.0
    _asked: dict[int, float] = field(default_factory=dict)
    _fence: tuple[int, int] | None = None
    _greeted: dict[int, int] = field(default_factory=dict)
    _greet_s: float | None = None
    _greeted_s: float = float("-inf")
    _later: dict[int, tuple[int, int]] = field(default_factory=dict)
    _later_s: float = 0.0
    _answered: dict[int, _Answered] = field(default_factory=dict)
    _relayed: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    _again: dict[bytes, tuple[float, int]] = field(default_factory=dict)
    _again_s: float = 0.0
    _version: int = -1

    def times(self) -> list[float]:
        """When something is due."""
        times = [self.beat_s, self._again_s]
        if self._unacknowledged() or self._strangers():
            times.append(self._hello_s)
        if self._later:
            times.append(self._later_s)
        return times if self._greet_s is None else [*times, self._greet_s]

    @property
    def answer_s(self) -> float:
        """When this node answers those that have greeted it."""
        later_s = self._later_s if self._later else math.inf
        return later_s if self._greet_s is None else min(later_s, self._greet_s)

    # -- greeted by others

    def hear_hello(self, one: Frame, message: Hello) -> None:
        """Somebody has started: answered together with others that have."""
        site = self.site
        peer = site.peers.others[one.source]
        peer.noticed = True
        if peer.fresh:
            peer.newer(one.boot, one.seq)
        if one.to not in (site.me, EVERYBODY):
            return
        before = self._answered.get(one.source)
        if one.to == EVERYBODY and before is not None and before.nonce == message.nonce and site.now_s < before.again_s:
            return
        if one.to == EVERYBODY and not (site.voter and one.source in site.membership.voters):
            # Voters need the voters' answers at once. Whether learners are up shows in their heartbeats, if the log goes on.
            if not self._later:
                pause_s = _SOON_BEATS * site.membership.heartbeat_s if site.voter else self._learners_s
                self._later_s = site.now_s + pause_s + _APART_S * self._place()
            self._later[one.source] = (message.nonce, site.state.height)
            return
        self._greeted[one.source] = message.nonce
        if self._greet_s is None:
            self._greet_s = max(site.now_s, self._greeted_s + _GREET_AGAIN_S) + _APART_S * self._place()

    @property
    def _learners_s(self) -> float:
        """After how long a learner answers a start."""
        beats = _IDLE_BEATS if self.site.state.plan is None else _LATER_BEATS
        return beats * self.site.membership.heartbeat_s

    def _place(self) -> int:
        """One after another, so that answers do not collide."""
        return sum(index < self.site.me for index in self.site.membership.by_index)

    def _answer(self) -> None:
        """The votes that are spoken of first, then the echoes."""
        site = self.site
        echoes: list[Echo] = []
        for node, nonce in sorted(self._greeted.items()):
            peer = site.peers.others.get(node)
            if peer is None:
                continue
            height, round_, kind = peer.newest
            if peer.newest == ORIGIN:
                kind = Type.PREVOTE
            elif not self._lately(node, peer.vote):
                site.send(Type(kind), peer.vote)
                self._relayed[node] = peer.vote, site.now_s
            echoes.append(Echo(node, nonce, peer.boot, height, round_, Type(kind)))
            self._note_answered(node, nonce)
        self._greeted.clear()
        for start in range(0, len(echoes), _ECHOES):
            site.say(Type.HELLO_ACK, HelloAck(tuple(echoes[start : start + _ECHOES])))

    def _lately(self, node: int, vote: bytes) -> bool:
        """The node's vote was on the medium just now."""
        now_s = self.site.now_s
        mine, when_s = self._relayed.get(node, (b"", 0.0))
        return self.site.wire.silent_s(vote, now_s) < _RELAYED_S or (mine == vote and now_s - when_s < _RELAYED_S)

    def _note_answered(self, node: int, nonce: int) -> None:
        before = self._answered.get(node)
        count = before.count + 1 if before is not None and before.nonce == nonce else 0
        again_s = self.site.now_s + min(_ANSWER_AGAIN_S * 2.0 ** min(count, 8), _ANSWER_AT_MOST_S)
        self._answered[node] = _Answered(nonce, count, again_s)

    def _answer_late(self) -> None:
        """Whoever has not had a chance to see from my heartbeats that I am up."""
        for node, (nonce, height) in self._later.items():
            if self.site.voter or self.site.state.height < height + _PROOF_HEIGHTS:
                self._greeted[node] = nonce
        self._later.clear()
        if self._greeted:
            self._answer()

    # -- greeting others

    def hear_ack(self, one: Frame, message: HelloAck) -> bool:
        """An answer; True where it echoes this start."""
        site = self.site
        peer = site.peers.others[one.source]
        peer.noticed = True
        for echo in message.echoes:
            if echo.node == site.me and echo.nonce == self.nonce:
                peer.fresh = True
                peer.newer(one.boot, one.seq)
                peer.claim = echo
                if peer.heard_s is None:
                    peer.heard_s = site.now_s
                return True
        return False

    def is_new(self, epoch: int, height: int) -> bool:
        """Whoever has decided this height now has done so after this start: its status cannot be an old one.

        Q voters (with this node) have said since this start how far they are. Had the height h + 2 been decided before it, where h is
        the most that they say, then Q voters had decided h + 1 before, and an honest one of them would be among those who said h.
        """
        site = self.site
        if epoch != site.state.epoch:
            return False
        if self._fence is None or self._fence[0] != epoch:
            heights = [site.state.height]
            voters = 0
            for voter in site.membership.voters:
                peer = site.peers.others.get(voter)
                if peer is not None and peer.fresh and peer.beat is not None:
                    heights.append(peer.beat.height)
                    voters += 1
            if voters + site.voter < site.membership.quorum:
                return False
            self._fence = epoch, max(heights) + 1
        return height > self._fence[1]

    def _unacknowledged(self) -> bool:
        """Too few voters have answered this start for a vote."""
        site = self.site
        membership, others, answered = site.membership, site.peers.others, 0
        for voter in membership.voters:
            peer = others.get(voter)
            if voter == site.me or (peer is not None and peer.claim is not None):
                answered += 1
        return answered < membership.quorum

    def _strangers(self) -> list[int]:
        """Peers whose status does not count yet although they are there, and that will not answer by themselves soon."""
        site = self.site
        late = site.now_s >= self._hailed_s + self._learners_s + site.membership.heartbeat_s
        return [
            node
            for node, peer in site.peers.others.items()
            if peer.noticed and not peer.fresh and (late or node in site.state.leases or node in site.membership.voters)
        ]

    def _hello(self) -> None:
        """Greet all until enough voters have answered, then those that are still strangers, few at a time: first who holds a lease."""
        site = self.site
        pause_s = _HELLO_S + _HELLO_EACH_S * len(site.membership.members)
        longest_s = 2.0 * site.membership.heartbeat_s
        if not site.voter:
            pause_s = max(pause_s, site.membership.heartbeat_s)
        if self._unacknowledged():
            site.say(Type.HELLO, Hello(self.nonce))
            self._hellos += 1
            self._hailed_s = site.now_s
            self._hello_s = site.now_s + min(pause_s * 1.5 ** min(self._hellos - 1, 12), longest_s)
            return
        self._hello_s = site.now_s + pause_s
        strangers = sorted(self._strangers(), key=lambda node: (node not in site.state.leases, self._asked.get(node, 0.0)))
        for node in strangers[: 1 if site.voter else _LEARNER_ASKS]:
            self._asked[node] = site.now_s
            site.say(Type.HELLO, Hello(self.nonce), node)

    def greet(self) -> None:
        """Greet and answer where that is due."""
        now_s = self.site.now_s
        if now_s >= self._hello_s:
            self._hello()
        if self._greet_s is not None and now_s >= self._greet_s:
            self._greet_s = None
            self._greeted_s = now_s
            self._answer()
        if self._later and now_s >= self._later_s:
            self._answer_late()

    # -- said again

    def announce(self, digest: bytes) -> None:
        """An order or a membership came in through this node."""
        self.mine.add(digest)
        self._version = -1

    def again(self) -> None:
        """Say what the log still waits for, ever more rarely."""
        site = self.site
        if site.version == self._version and site.now_s < self._again_s:
            return
        self._version = site.version
        due: dict[bytes, tuple[float, int]] = {}
        crowd = max(1.0, len(site.membership.members) / _FEW)
        # A height may take as long as its patience: whoever waits for less says things twice.
        patience_s = max(site.options.resend_s, 2 * site.options.base_s)
        for fact in site.facts.mine(site.me):
            # All nodes say these two; the others come one by one.
            first_s = patience_s * (crowd if fact.frame.type in (Type.APPROVE, Type.SLOT_REQ) else 1.0)
            if not self._moot(fact) and self._is_due(fact.digest, first_s, due):
                site.send(fact.frame.type, fact.data)
        for digest in sorted(self.mine):
            order, fresh = site.archive.order(digest), site.archive.membership(digest)
            if (order is None or order.admin_seq <= site.state.admin_seq) and (fresh is None or fresh.epoch <= site.state.epoch):
                self.mine.discard(digest)
                continue
            thing = Thing.ORDER if order is not None else Thing.MEMBERSHIP
            data = site.archive.serve(thing, digest)
            if data is not None and self._is_due(digest, 2 * site.options.resend_s, due):
                site.say(order_type(order), Announce(thing, digest, len(data)))
        self._again = due
        self._again_s = min((when for when, _ in due.values()), default=math.inf)

    def _moot(self, fact: Fact) -> bool:
        """A request for a lease that could not be given now, whoever knows of it."""
        site = self.site
        message = fact.frame.message
        if not isinstance(message, SlotRequest):
            return False
        order = site.archive.order(message.plan)
        return order is not None and bool(ledger.grant_fault(site.state, site.membership, order, [site.me]))

    def _is_due(self, digest: bytes, first_s: float, due: dict[bytes, tuple[float, int]]) -> bool:
        now_s = self.site.now_s
        when, count = self._again.get(digest, (now_s + first_s, 0))
        ripe = now_s >= when
        if ripe:
            count += 1
            longest_s = max(_LONGEST_S, _LONGEST_EACH_S * len(self.site.membership.members))
            when = now_s + min(first_s * 2.0 ** min(count, 10), longest_s)
        due[digest] = (when, count)
        return ripe


def order_type(order: Order | None) -> Type:
    """The frame type that announces an order (None: a membership)."""
    return Type.LOST if order is not None and order.kind is OrderKind.LOST else Type.ORDER
