"""The daemon's loop around a core that only does what the test says: order of effects, floods, signals, time, and a log that fails."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from abupdate.errors import Failed, Refused
from abupdate.fleet.answers import slot
from abupdate.fleet.carrier import Carrier, Commands
from abupdate.fleet.control import AskLog, AskMetrics, AskStatus, AskUpdate, Judge, Submit, encode
from abupdate.fleet.controlserver import ControlServer
from abupdate.fleet.daemon import Daemon, World
from abupdate.fleet.events import (
    Alarm,
    Compact,
    Conditions,
    Device,
    Effect,
    Event,
    Observed,
    Opinion,
    Persist,
    Prepare,
    Received,
    RecordKind,
    Send,
    Start,
    Submitted,
    Tick,
)
from abupdate.fleet.outlook import doubts, peer_health
from abupdate.fleet.ports import DecidedEntry, Entries, Loaded
from abupdate.fleet.view import HeldLease, PendingOrder, PlanView, Seen, View
from abupdate.formats.entries import OrderEntry
from abupdate.formats.membership import Member, Membership
from abupdate.formats.order import Order, OrderKind
from abupdate.formats.peerhealth import PeerHealth

NOTHING = bytes(32)
IDLE = Device(NOTHING, NOTHING, NOTHING, trial=False, armed=False, lease=None, phase=None)
MEMBERS = tuple(Member(index, bytes([index]) * 32, f"gw{index}", voter=True) for index in range(4))
BY_INDEX = {one.index: one for one in MEMBERS}
GENESIS = b"\x01" * 32
MEMBERSHIP = Membership("bench", 1, GENESIS, GENESIS, b"", MEMBERS, 0, 3, {}, 1, False, 2, (), 1, (), 1, 1, by_index=BY_INDEX)
ORDER = Order(
    b"\x0a" * 32, OrderKind.UPDATE, MEMBERSHIP.genesis, 1, 1, b"", bundle=b"\x02" * 32, version="2.0", sources=("http://nowhere/x",)
)
VIEW = View(MEMBERSHIP, 0, 7, 0, {index: Seen(0.5, healthy=True) for index in range(4)}, sees_quorum=True)


@dataclass
class Core:
    """Notes events; answers the n-th with what the test gave."""

    answers: dict[type, list[Sequence[Effect]]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    now: View = VIEW
    wake_s: float = math.inf
    boot: int = 5
    after: Callable[[Event], None] = lambda event: None
    refuse: bool = False

    def handle(self, event: Event, now_s: float) -> tuple[Effect, ...]:
        if self.refuse and isinstance(event, Submitted):
            raise Refused("signed by nobody", "sign it")
        self.events.append(event)
        self.after(event)
        given = self.answers.get(type(event), [])
        return tuple(given.pop(0)) if given else ()

    def view(self) -> View:
        return self.now

    def decided_entries(self, first: int, count: int) -> Sequence[DecidedEntry]:
        return [DecidedEntry(7, 0, MEMBERSHIP, OrderEntry(ORDER.id), frozenset({0, 2}))]

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


@dataclass
class Notes:
    """Log and medium in one: what was done, in order."""

    done: list[object] = field(default_factory=list)
    incoming: list[bytes] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    fails: bool = False
    name: str = "wire"
    wake_s: float = math.inf

    def load(self) -> Loaded:
        return Loaded(())

    def append(self, records: Entries) -> None:
        if self.fails:
            raise Failed("the medium is failing")
        self.done.append([data for _, data in records])

    def replace(self, records: Entries) -> None:
        self.done.append(("replaced", [data for _, data in records]))

    def descriptors(self) -> Iterable[tuple[int, int]]:
        return ()

    def receive(self, now_s: float, limit: int) -> Iterator[tuple[bytes, str]]:
        self.limits.append(limit)
        taken, self.incoming = self.incoming[:limit], self.incoming[limit:]
        for data in taken:
            yield data, "someone"

    def send(self, data: bytes, *, urgent: bool) -> None:
        self.done.append(data)

    def counters(self) -> Mapping[str, int]:
        return {"dropped": 3}

    def close(self) -> None:
        self.done.append("closed")


class Announcer:
    """Notes what the init system would be told."""

    watchdog_s: float | None = None

    def __init__(self) -> None:
        self.said: list[str] = []

    def ready(self, status: str = "") -> bool:
        self.said.append(f"ready {status}")
        return True

    def alive(self) -> bool:
        self.said.append("alive")
        return True

    def status(self, status: str) -> bool:
        self.said.append(status)
        return True

    def stopping(self, status: str = "") -> bool:
        self.said.append("stopping")
        return True


class Bench:
    """A daemon of fakes that a test drives by what the core answers. Time stands still unless the test moves it."""

    def __init__(self, folder: Path) -> None:
        self.core, self.notes, self.announcer = Core(), Notes(), Announcer()
        self.now_s = 100.0
        self.window_open = True
        self.device = IDLE
        self.health: list[PeerHealth] = []
        self.starts: list[int] = []
        self.path = folder / "fleet.sock"
        none = Commands(lambda *words: ("false",), lambda *words: ("false",), lambda kind: ("false",), lambda kind: False)
        self.carrier = Carrier(none, lambda: self.device, str, kept=0, drain_s=1, hook_s=1)
        self.control = ControlServer(self.path)

    def run(self) -> int:
        world = World(lambda: self.now_s, lambda: 5000.0, lambda: self.window_open, self.health.append, self.starts.append)
        daemon = Daemon(self.core, self.notes, [self.notes], self.carrier, self.control, self.announcer, world)
        return daemon.run(Start(1))

    def ask(self, question: object) -> socket.socket:
        asker = socket.socket(socket.AF_UNIX)
        asker.connect(str(self.path))
        asker.sendall(encode(question))  # type: ignore[arg-type]
        return asker


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def record(data: bytes) -> Persist:
    return Persist(RecordKind.VOTE, data)


def test_records_in_a_row_share_a_flush_and_nothing_overtakes_them(bench: Bench) -> None:
    bench.core.answers[Start] = [[record(b"a"), record(b"b"), Send(b"1"), Send(b"2"), record(b"c"), Send(b"3"), record(b"d")]]
    bench.core.after = lambda event: stop() if isinstance(event, Observed) else None
    assert bench.run() == 0
    assert bench.notes.done == [[b"a", b"b"], b"1", b"2", [b"c"], b"3", [b"d"], "closed", "closed"]


def test_a_log_that_fails_ends_the_daemon_before_anything_that_stands_behind_is_sent(bench: Bench) -> None:
    bench.notes.fails = True
    bench.core.answers[Start] = [[Send(b"0"), record(b"a"), Send(b"1")]]
    with pytest.raises(Failed):
        bench.run()
    assert bench.notes.done == [b"0", "closed", "closed"]
    assert not bench.path.exists()


def test_compaction_replaces_the_log(bench: Bench) -> None:
    bench.core.answers[Start] = [[record(b"a"), Compact(((RecordKind.SNAPSHOT, b"s"),)), record(b"b"), Alarm("look")]]
    bench.core.after = lambda event: stop() if isinstance(event, Observed) else None
    bench.run()
    assert bench.notes.done[:3] == [[b"a"], ("replaced", [b"s"]), [b"b"]]


def test_conditions_come_before_the_start_and_the_device_after_it(bench: Bench) -> None:
    bench.window_open = False
    bench.core.after = lambda event: stop() if isinstance(event, Observed) else None
    bench.run()
    assert bench.core.events == [Conditions(window_open=False), Start(1), Observed(IDLE)]
    assert bench.announcer.said[0] == "ready bench: height 7"
    assert bench.announcer.said[-1] == "stopping"


def test_a_flood_keeps_nothing_else_waiting(bench: Bench) -> None:
    bench.notes.incoming = [b"x%d" % number for number in range(200)]
    bench.notes.wake_s = 0.0
    bench.core.wake_s = 0.0
    order: list[str] = []

    def after(event: Event) -> None:
        order.append(type(event).__name__)
        if order.count("Received") == 200:
            stop()

    bench.core.after = after
    bench.run()
    assert max(bench.notes.limits) <= 64
    assert order.count("Tick") >= 3, "between the pieces of the flood the core is asked what is due"
    assert bench.core.of(Received)[0] == Received(b"x0", "someone")


def test_a_tick_comes_when_the_core_wants_one_and_not_before(bench: Bench) -> None:
    bench.core.wake_s = 101.0
    bench.notes.wake_s = 0.0
    ticks: list[float] = []

    def after(event: Event) -> None:
        if isinstance(event, Tick):
            ticks.append(bench.now_s)
            stop()

    def receive(now_s: float, limit: int) -> Iterator[tuple[bytes, str]]:
        bench.now_s += 0.25
        return iter(())

    bench.core.after = after
    bench.notes.receive = receive  # type: ignore[method-assign]
    bench.run()
    assert ticks == [101.0] or ticks == [101.25]


def test_the_device_the_window_and_the_peers_are_looked_at_again_and_again(bench: Bench) -> None:
    bench.notes.wake_s = 0.0
    looks = 0

    def after(event: Event) -> None:
        nonlocal looks
        if isinstance(event, Observed):
            looks += 1
            if looks == 2:
                bench.window_open = False
                bench.core.now = replace(VIEW, members={**VIEW.members, 2: Seen(0.5, trial=True, healthy=False)}, doubters=frozenset({3}))
            if looks == 32:
                stop()

    def receive(now_s: float, limit: int) -> Iterator[tuple[bytes, str]]:
        bench.now_s += 1.0
        return iter(())

    bench.core.after = after
    bench.notes.receive = receive  # type: ignore[method-assign]
    bench.run()
    assert bench.core.of(Conditions) == [Conditions(), Conditions(window_open=False, doubts=frozenset({2}))]
    assert bench.health[0] == PeerHealth(5000.0, True, (), 1)
    assert bench.health[1] == PeerHealth(5000.0, True, ("gw3",), 1)
    assert bench.now_s > 160
    assert bench.starts == [5], "kept outside the log once, when it has run for a while"


def test_a_supervisor_that_waits_for_a_word_gets_it(bench: Bench) -> None:
    bench.announcer.watchdog_s = 0.03
    rounds = 0

    def alive() -> bool:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            stop()
        return True

    bench.announcer.alive = alive  # type: ignore[method-assign]
    assert bench.run() == 0


def answered(bench: Bench, question: object) -> dict[str, object]:
    """Ask a daemon that runs until it has answered."""
    asker = bench.ask(question)
    bench.notes.wake_s = 0.0

    def receive(now_s: float, limit: int) -> Iterator[tuple[bytes, str]]:
        bench.now_s += 0.1
        if select.select([asker], [], [], 0)[0]:
            stop()
        return iter(())

    bench.notes.receive = receive  # type: ignore[method-assign]
    bench.run()
    data = b""
    while piece := asker.recv(1 << 16):
        data += piece
    asker.close()
    found = json.loads(data)
    assert isinstance(found, dict)
    return found


def test_status_log_and_metrics_are_answered(bench: Bench) -> None:
    assert answered(bench, AskStatus())["site"] == "bench"


def test_the_log_is_answered(bench: Bench) -> None:
    document = answered(bench, AskLog(0, 5))
    assert document == {
        "height": 7,
        "entries": [{"height": 7, "epoch": 1, "round": 0, "kind": "order", "order": ORDER.id.hex(), "signed_by": ["gw0", "gw2"]}],
    }


def test_metrics_are_answered(bench: Bench) -> None:
    bench.core.now = replace(VIEW, leases=(HeldLease(5, 2, ORDER.id, 12.25),), counters={"heard": {"PREVOTE": 3}})
    bench.core.answers[Start] = [[record(b"a"), record(b"b"), Send(b"1234")]]
    document = answered(bench, AskMetrics())
    assert document["daemon"] == {"log flushes": 1, "log records": 2, "wire bytes out": 4, "wire frames out": 1}
    assert document["media"] == {"wire": {"dropped": 3}}
    assert document["core"] == {"heard": {"PREVOTE": 3}}
    assert document["leases"] == [{"lease": 5, "node": 2, "age_s": 12.2, "lost": False}]


def test_what_an_admin_hands_in_reaches_the_core_or_is_refused_in_words(bench: Bench, tmp_path: Path) -> None:
    assert answered(bench, Submit(b"order")) == {}
    assert bench.core.of(Submitted) == [Submitted(b"order")]
    (tmp_path / "second").mkdir()
    second = Bench(tmp_path / "second")
    second.core.refuse = True
    assert answered(second, Submit(b"order")) == {"error": "signed by nobody", "hint": "sign it", "exit_code": 3}


def test_a_persons_word_on_an_order_that_nobody_knows_is_refused(bench: Bench, tmp_path: Path) -> None:
    assert answered(bench, Judge(ORDER.id, approve=True))["exit_code"] == 3
    (tmp_path / "second").mkdir()
    second = Bench(tmp_path / "second")
    second.core.now = replace(VIEW, orders=(PendingOrder(ORDER, True, frozenset(), 1, {}),))
    assert answered(second, Judge(ORDER.id, approve=False, reason="not now")) == {}
    assert second.core.of(Opinion) == [Opinion(ORDER.id, False, "not now")]


PLAN = PlanView(ORDER, 0, 1, nodes=frozenset({0, 1}))


def test_who_waits_for_a_slot_is_answered_when_it_comes(bench: Bench) -> None:
    bench.core.now = replace(VIEW, plan=PLAN)
    looks = 0

    def view() -> View:
        nonlocal looks
        looks += 1
        held = (HeldLease(9, 0, ORDER.id, 0.0),) if looks > 20 else ()
        return replace(bench.core.now, leases=held)

    bench.core.view = view  # type: ignore[method-assign]
    assert answered(bench, AskUpdate(ORDER.bundle, 1000)) == {"lease": 9}
    assert looks > 20


@pytest.mark.parametrize(
    ("view", "word", "code"),
    [
        (VIEW, "no open plan", 6),
        (replace(VIEW, orders=(PendingOrder(ORDER, True, frozenset({1}), 3, {}),)), "1 of", 6),
        (replace(VIEW, plan=replace(PLAN, nodes=frozenset({1}))), "no open plan", 6),
        (replace(VIEW, plan=replace(PLAN, order=replace(ORDER, bundle=NOTHING))), "no open plan", 6),
        (replace(VIEW, plan=replace(PLAN, back=True)), "no open plan", 6),
        (replace(VIEW, plan=replace(PLAN, done=frozenset({0}))), "done its part", 4),
        (replace(VIEW, plan=replace(PLAN, reverted=frozenset({0}))), "has failed", 6),
        (replace(VIEW, plan=replace(PLAN, barred=frozenset({0}))), "barred", 6),
        (replace(VIEW, plan=replace(PLAN, halted="gw1 reverted")), "halted: gw1 reverted", 6),
        (replace(VIEW, leases=(HeldLease(9, 0, ORDER.id, 1.0, lost=True),)), "no open plan", 6),
    ],
)
def test_who_waits_for_a_slot_that_does_not_come_is_told_why_at_once(bench: Bench, view: View, word: str, code: int) -> None:
    bench.core.now = view
    document = answered(bench, AskUpdate(ORDER.bundle, 1000))
    assert document["exit_code"] == code
    assert word in str(document["error"])


def test_the_wait_for_a_slot_has_an_end(bench: Bench) -> None:
    bench.core.now = replace(VIEW, plan=PLAN, leases=(HeldLease(9, 1, ORDER.id, 1.0),))
    assert slot(bench.core.now, ORDER.bundle, waited=False) is None
    assert answered(bench, AskUpdate(ORDER.bundle, 2))["exit_code"] == 6
    assert bench.now_s >= 102.0


def test_an_effect_on_the_device_is_carried_out(bench: Bench) -> None:
    bench.core.answers[Start] = [[Prepare(ORDER)]]
    seen: list[str] = []

    def after(event: Event) -> None:
        if type(event).__name__ == "Prepared":
            seen.append(event.fault)  # type: ignore[union-attr]
            stop()

    bench.core.after = after
    bench.run()
    assert seen == ["exit code 1"]


@pytest.mark.parametrize(
    ("seen", "held", "doubted"),
    [
        (Seen(0.5, healthy=True), False, False),
        (Seen(0.5, healthy=True, trial=True), False, False),
        (Seen(0.5, healthy=False, trial=True), False, True),
        (Seen(6.5, healthy=True, trial=True), False, True),
        (Seen(None), False, False),
        (Seen(None), True, True),
        (Seen(6.5, healthy=True), True, True),
        (Seen(6.5, healthy=True), False, False),
        (Seen(0.5, healthy=False), False, False),
    ],
)
def test_only_who_may_be_about_to_confirm_is_doubted(seen: Seen, held: bool, doubted: bool) -> None:
    leases = (HeldLease(5, 2, ORDER.id, 1.0),) if held else ()
    view = replace(VIEW, members={**VIEW.members, 2: seen}, leases=leases)
    assert doubts(view) == (frozenset({2}) if doubted else frozenset())


def test_nobody_doubts_itself_or_who_is_lost(bench: Bench) -> None:
    view = replace(
        VIEW, members={**VIEW.members, 0: Seen(0.0, trial=True), 3: Seen(None)}, leases=(HeldLease(5, 3, ORDER.id, 1.0, lost=True),)
    )
    assert doubts(view) == frozenset()
    word = peer_health(replace(view, doubters=frozenset({1, 3}), sees_quorum=False), 8.0)
    assert word == PeerHealth(8.0, False, ("gw1", "gw3"), 1)
