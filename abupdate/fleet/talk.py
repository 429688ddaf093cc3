"""What a node says by the clock: greetings after a start, heartbeats, and its own words as long as the log waits for them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from abupdate.fleet.peers import ORIGIN
from abupdate.fleet.site import Site
from abupdate.formats.messages import Announce, Echo, Frame, Hello, HelloAck, Thing, Type
from abupdate.formats.order import Order, OrderKind

_ECHOES = 10
_HELLO_S = 0.5
_GREET_AGAIN_S = 0.1
_APART_S = 0.01
_LONGEST_S = 30.0


@dataclass(slots=True)
class Talk:
    """nonce: of this start's HELLO. mine: orders and memberships that came in through this node, announced until they are decided."""

    site: Site
    nonce: int = 0
    mine: set[bytes] = field(default_factory=set)
    beat_s: float = 0.0
    _hello_s: float = 0.0
    _hellos: int = 0
    _greeted: dict[int, int] = field(default_factory=dict)
    _greet_s: float | None = None
    _greeted_s: float = float("-inf")
    _again: dict[bytes, tuple[float, int]] = field(default_factory=dict)

    def times(self) -> list[float]:
        """When something is due."""
        times = [self.beat_s, *(due for due, _ in self._again.values())]
        if self.strangers():
            times.append(self._hello_s)
        return times if self._greet_s is None else [*times, self._greet_s]

    def strangers(self) -> bool:
        """There are peers whose status does not count yet."""
        return any(not peer.fresh for peer in self.site.peers.others.values())

    def hear_hello(self, one: Frame, message: Hello) -> None:
        """Somebody has started: answered together with others that have."""
        site = self.site
        peer = site.peers.others[one.source]
        if peer.fresh:
            peer.newer(one.boot, one.seq)
        self._greeted[one.source] = message.nonce
        if self._greet_s is None:
            # One after another, so that answers do not collide.
            place = sorted(site.membership.by_index).index(site.me) if site.me in site.membership.by_index else 0
            self._greet_s = max(site.now_s, self._greeted_s + _GREET_AGAIN_S) + _APART_S * place

    def hear_ack(self, one: Frame, message: HelloAck) -> bool:
        """An answer; True where it echoes this start."""
        site = self.site
        peer = site.peers.others[one.source]
        for echo in message.echoes:
            if echo.node == site.me and echo.nonce == self.nonce:
                peer.fresh = True
                peer.newer(one.boot, one.seq)
                peer.claim = echo
                if peer.heard_s is None:
                    peer.heard_s = site.now_s
                return True
        return False

    def hello(self) -> None:
        """Greet as long as there are strangers, and answer those who greet."""
        site = self.site
        if self.strangers() and site.now_s >= self._hello_s:
            site.say(Type.HELLO, Hello(self.nonce))
            self._hellos += 1
            self._hello_s = site.now_s + min(_HELLO_S * 1.5 ** min(self._hellos, 12), 2.0 * site.membership.heartbeat_s)
        if self._greet_s is not None and site.now_s >= self._greet_s:
            self._greet_s = None
            self._greeted_s = site.now_s
            self._answer()

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
            else:
                site.send(Type(kind), peer.vote)
            echoes.append(Echo(node, nonce, peer.boot, height, round_, Type(kind)))
        self._greeted.clear()
        for start in range(0, len(echoes), _ECHOES):
            site.say(Type.HELLO_ACK, HelloAck(tuple(echoes[start : start + _ECHOES])))

    def again(self) -> None:
        """Say what the log still waits for, ever more rarely."""
        site = self.site
        due: dict[bytes, tuple[float, int]] = {}
        for fact in site.facts.mine(site.me):
            if self._is_due(fact.digest, site.options.resend_s, due):
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

    def _is_due(self, digest: bytes, first_s: float, due: dict[bytes, tuple[float, int]]) -> bool:
        now_s = self.site.now_s
        when, count = self._again.get(digest, (now_s + first_s, 0))
        ripe = now_s >= when
        if ripe:
            count += 1
            when = now_s + min(first_s * 1.5 ** min(count, 10), _LONGEST_S)
        due[digest] = (when, count)
        return ripe


def order_type(order: Order | None) -> Type:
    """The frame type that announces an order (None: a membership)."""
    return Type.LOST if order is not None and order.kind is OrderKind.LOST else Type.ORDER
