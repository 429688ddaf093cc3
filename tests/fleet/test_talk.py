"""What one node says to starts of others, and whose status it believes after its own: driven by hand, frame by frame."""

from __future__ import annotations

from dataclasses import replace

from abupdate.fleet.events import Received, Send, Start, Submitted, Tick
from abupdate.fleet.identity import Identity
from abupdate.fleet.node import Node
from abupdate.fleet.ring import with_token
from abupdate.fleet.site import Options
from abupdate.fleet.state import Plan
from abupdate.formats import frame
from abupdate.formats.messages import (
    EVERYBODY,
    NOTHING,
    Echo,
    Frame,
    Heartbeat,
    Hello,
    HelloAck,
    Message,
    Stage,
    Type,
    Vote,
)
from abupdate.formats.order import OrderKind
from tests.fleet import sitekit

NONCE = 77
# Of the heartbeats of `sitekit.site`.
BEAT_S = 5.0


class Bench:
    """A node that has just started, and what it says from then on."""

    def __init__(self, me: int = 0, count: int = 4) -> None:
        self.membership = sitekit.site(count)
        self.now_s = 100.0
        self.said: list[Frame] = []
        self.seqs: dict[int, int] = {}
        data = sitekit.membership_file(self.membership)
        self.node = Node(me, (data,), (), Identity(sitekit.node_key(me).private), Options())
        self._carry(self.node.handle(Start(NONCE), self.now_s))

    def _carry(self, effects: tuple[object, ...]) -> None:
        self.said += [frame.parse(effect.data) for effect in effects if isinstance(effect, Send)]

    def hear(self, kind: Type, source: int, message: Message, *, to: int = EVERYBODY, boot: int = 1, token: int | None = None) -> None:
        """A frame with its author's real signature, newer than those before."""
        self.seqs[source] = self.seqs.get(source, 0) + 1
        content = frame.content(
            self.membership.genesis, kind, source, to, self.membership.epoch, frame.payload(message), boot, self.seqs[source]
        )
        signature = sitekit.node_key(source).private.sign(content)
        one = Frame(kind, source, to, self.membership.genesis[:4], 1, boot, self.seqs[source], message, signature)
        data = frame.pack(one)
        data = data if token is None else with_token(data, token)
        self._carry(self.node.handle(Received(data, f"192.0.2.{source + 1}"), self.now_s))

    def hand_in(self, order: bytes) -> None:
        """An order that an admin brings to this node."""
        self._carry(self.node.handle(Submitted(order), self.now_s))

    def wait(self, seconds: float) -> list[Frame]:
        """Let time pass, as the daemon does; what the node has said since the last time."""
        end_s = self.now_s + seconds
        while self.node.wake_s <= end_s:
            self.now_s = max(self.now_s, self.node.wake_s)
            self._carry(self.node.handle(Tick(), self.now_s))
        self.now_s = end_s
        said, self.said = self.said, []
        return said

    def hello(self, source: int, nonce: int = 5, *, to: int = EVERYBODY, token: int | None = None) -> None:
        self.hear(Type.HELLO, source, Hello(nonce), to=to, token=token)

    def ack(self, *sources: int) -> None:
        for source in sources:
            self.hear(Type.HELLO_ACK, source, HelloAck((Echo(self.node._site.me, NONCE, 0, 0, 0, Type.PREVOTE),)))

    def beat(self, source: int, height: int) -> None:
        self.hear(Type.HEARTBEAT, source, Heartbeat(height, 0, Stage.IDLE, True, False, False, bytes(8)))

    def sees(self, node: int) -> bool:
        return self.node.view().members[node].age_s is not None


def test_a_node_tells_where_its_peers_are_heard_from_and_for_how_long_nothing_is_agreed() -> None:
    bench = Bench()
    bench.ack(1, 2, 3)
    bench.beat(1, 0)
    bench.node.handle(Received(b"garbage", "192.0.2.66"), bench.now_s)
    assert [seen.address for _, seen in sorted(bench.node.view().members.items())] == ["", "192.0.2.2", "", ""]
    assert bench.node.view().undecided_s is None
    bench.hand_in(sitekit.order_file(bench.membership, OrderKind.PAUSE, target=NOTHING, reason="lunch"))
    bench.wait(60.0)
    assert bench.node.view().undecided_s == 60.0


def answered(said: list[Frame]) -> list[list[int]]:
    """Whose starts each answer echoes."""
    return [[echo.node for echo in one.message.echoes] for one in said if isinstance(one.message, HelloAck)]


def greeted(said: list[Frame]) -> list[int]:
    return [one.to for one in said if one.type is Type.HELLO]


def test_a_start_is_answered_once_and_again_only_when_it_is_still_asked_about_later() -> None:
    bench = Bench()
    bench.hello(1)
    bench.hello(1)
    assert answered(bench.wait(0.5)) == [[1]]
    bench.hello(1)
    assert answered(bench.wait(0.4)) == []
    bench.wait(1.0)
    bench.hello(1)
    assert answered(bench.wait(0.5)) == [[1]]
    # Another start is another matter.
    bench.hello(1, nonce=6)
    assert answered(bench.wait(0.5)) == [[1]]


def test_a_greeting_of_one_node_is_answered_by_that_one_alone_and_every_time() -> None:
    bench = Bench()
    bench.hello(1, to=2)
    assert answered(bench.wait(1.0)) == []
    bench.hello(1, to=0)
    assert answered(bench.wait(0.5)) == [[1]]
    bench.hello(1, to=0)
    assert answered(bench.wait(0.5)) == [[1]]


def test_a_greeting_that_carries_the_token_is_for_all() -> None:
    bench = Bench()
    bench.hello(1, token=2)
    assert answered(bench.wait(0.5)) == [[1]]


def test_a_vote_that_has_carried_the_token_is_relayed_without_it() -> None:
    bench = Bench()
    bench.hear(Type.PREVOTE, 1, Vote(1, 0, bytes([7]) * 32), token=2)
    bench.wait(10.0)
    bench.hello(1)
    (relayed,) = [one for one in bench.wait(0.5) if one.source == 1]
    assert not relayed.token
    assert relayed.to == EVERYBODY


def test_the_vote_that_an_answer_speaks_of_is_not_relayed_when_it_was_heard_just_now() -> None:
    bench = Bench()
    bench.hear(Type.PREVOTE, 1, Vote(1, 0, bytes([7]) * 32))
    bench.hello(1)
    assert [one.type for one in bench.wait(0.5) if one.source == 1] == []
    bench.wait(10.0)
    bench.hello(1, nonce=6)
    assert [one.type for one in bench.wait(0.5) if one.source == 1] == [Type.PREVOTE]


def test_voters_answer_learners_that_start_one_after_the_other_together() -> None:
    bench = Bench(count=20)
    bench.hello(17)
    assert answered(bench.wait(1.0)) == []
    bench.hello(18)
    assert answered(bench.wait(BEAT_S)) == [[17, 18]]
    bench.hello(1)
    assert answered(bench.wait(0.5)) == [[1]]


def test_learners_answer_late_and_not_at_all_when_the_log_has_shown_that_they_are_up() -> None:
    bench = Bench(me=17, count=20)
    site = bench.node._site
    site.state = replace(site.state, plan=Plan(bytes(32), {}, halt_at=1))
    bench.hello(1)
    assert answered(bench.wait(5 * BEAT_S)) == []
    assert answered(bench.wait(2 * BEAT_S)) == [[1]]
    bench.hello(2)
    site.state = replace(site.state, height=site.state.height + 3)
    assert answered(bench.wait(7 * BEAT_S)) == []
    # Who asks for it is answered at once.
    bench.hello(2, to=17)
    assert answered(bench.wait(0.5)) == [[2]]


def test_learners_answer_sooner_where_no_plan_is_open_that_would_have_the_log_go_on() -> None:
    bench = Bench(me=17, count=20)
    bench.hello(1)
    assert answered(bench.wait(1.5 * BEAT_S)) == []
    bench.hello(2)
    assert answered(bench.wait(BEAT_S)) == [[1, 2]]


def test_a_learner_asks_all_strangers_within_a_few_heartbeats() -> None:
    bench = Bench(me=19, count=40)
    bench.ack(*range(16))
    strangers = range(20, 32)
    for number in strangers:
        bench.beat(number, 0)
    bench.wait(3 * BEAT_S)
    asked = greeted(bench.wait(3 * BEAT_S))
    assert sorted(asked) == list(strangers)


def test_who_has_started_asks_strangers_only_when_they_have_had_time_to_answer() -> None:
    bench = Bench(count=20)
    bench.ack(*range(1, 12))
    assert bench.node.view().members[18].age_s is None
    bench.beat(18, 0)
    assert 18 not in greeted(bench.wait(2.5 * BEAT_S))
    assert 18 in greeted(bench.wait(1.5 * BEAT_S))


def test_all_are_greeted_until_enough_have_answered_and_then_who_has_not() -> None:
    bench = Bench()
    assert greeted(bench.wait(0.1)) == [EVERYBODY]
    bench.ack(1)
    assert set(greeted(bench.wait(3.0))) == {EVERYBODY}
    bench.ack(2)
    # Nobody knows whether node 3 is up.
    assert greeted(bench.wait(20.0)) == []
    bench.beat(3, 0)
    assert set(greeted(bench.wait(3.0))) == {3}
    bench.ack(3)
    assert greeted(bench.wait(20.0)) == []


def test_status_of_a_node_that_has_not_answered_counts_when_it_tells_of_what_came_after_this_start() -> None:
    bench = Bench()
    bench.ack(1, 2)
    bench.beat(3, 9)
    assert not bench.sees(3)
    # One is at height 5: it may be that others have decided 6 before this node started, and nobody 7.
    bench.beat(1, 5)
    bench.beat(2, 4)
    for height in (5, 6):
        bench.beat(3, height)
        assert not bench.sees(3)
    bench.beat(3, 7)
    assert bench.sees(3)


def test_status_of_strangers_counts_for_nothing_before_a_quorum_has_said_how_far_it_is() -> None:
    bench = Bench(count=7)
    bench.ack(1, 2)
    bench.beat(1, 5)
    bench.beat(2, 5)
    bench.beat(6, 100)
    assert not bench.sees(6)
