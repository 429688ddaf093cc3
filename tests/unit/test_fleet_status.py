"""The status document: what every part says, why nothing moves, and the lines that people read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from abupdate.cli import fleet_text
from abupdate.fleet.history import document as history
from abupdate.fleet.state import Close, Closed
from abupdate.fleet.status import blocked, document, phase
from abupdate.fleet.view import HeldLease, PendingOrder, PlanView, Seen, View
from abupdate.formats.entries import (
    Ending,
    Entry,
    GrantEntry,
    HaltEntry,
    LostEntry,
    OrderEntry,
    PlanEntry,
    ReconfigEntry,
    Release,
    ReleaseEntry,
    ReturnEntry,
)
from abupdate.formats.membership import Member, Membership
from abupdate.formats.messages import Stage
from abupdate.formats.order import OnHalt, Order, OrderKind

ORDER = bytes.fromhex("3f2a") + bytes(30)
ID = ORDER.hex()


def membership(count: int = 4, *, faults: int = 0, stall_ok: bool = False, min_up: int = 0, learners: int = 0) -> Membership:
    """Nodes gw1, gw2...; the last ones are learners."""
    members = tuple(
        Member(index, bytes([index]) * 32, f"gw{index + 1}", index < count - learners, frozenset({"pumps"}) if index < 2 else frozenset())
        for index in range(count)
    )
    return Membership(
        "plant-7", 1, bytes(32), bytes(32), b"", members, faults, min_up or count - 1, {"pumps": 1}, faults + 1, stall_ok, 5,
        (), 1, (), 1, 1, by_index={member.index: member for member in members},
    )  # fmt: skip


def view(rules: Membership | None = None, *, silent: tuple[int, ...] = (), **fields: object) -> View:
    """Everybody is up and idle but the silent ones, who were heard a minute ago. This node is gw1."""
    rules = rules or membership()
    members = {
        index: Seen(60.0 if index in silent else 1.0, 12, Stage.IDLE, healthy=True, bundle=bytes([index]) * 8) for index in rules.by_index
    }
    made = View(rules, 0, 12, 0, members, answered=len(rules.voters))
    return replace(made, **fields)  # type: ignore[arg-type]


def seen(of: View, index: int, **fields: object) -> View:
    """The view with another word of a member."""
    return replace(of, members={**of.members, index: replace(of.members[index], **fields)})  # type: ignore[arg-type]


def order(kind: OrderKind = OrderKind.UPDATE, **fields: object) -> Order:
    made = Order(ORDER, kind, bytes(32), 1, 3, b"", bundle=bytes([9]) * 32, version="2.0", width=2)
    return replace(made, **fields)  # type: ignore[arg-type]


def plan(*, requests: tuple[int, ...] = (0, 1, 2, 3), **fields: object) -> PlanView:
    """A plan in its second wave, where every node asks for a slot."""
    made = PlanView(order(), 1, 1, requests=frozenset(requests), nodes=frozenset(range(4)))
    return replace(made, **fields)  # type: ignore[arg-type]


def pending(approvals: tuple[int, ...] = (), rejects: dict[int, str] | None = None, needed: int = 4) -> PendingOrder:
    return PendingOrder(order(), True, frozenset(approvals), needed, rejects or {})


def lease(node: int, **fields: object) -> HeldLease:
    return replace(HeldLease(9, node, ORDER, 42.0), **fields)  # type: ignore[arg-type]


def halted() -> PlanView:
    return plan(halted="gw2 reverted", done=frozenset({0}), reverted=frozenset({1}))


def going_back() -> PlanView:
    """Two nodes are to go back; the others never came forth."""
    return plan(order=order(on_halt=OnHalt.ROLLBACK), back=True, nodes=frozenset({0, 1}))


NOT_BLOCKED = {
    "nothing to do": view(),
    "nothing to do, and nobody there": view(silent=(1, 2, 3)),
    "a slot is about to be given": view(plan=plan()),
    "the last ones are done": view(plan=plan(done=frozenset({0, 1, 2, 3}))),
    "an order with all of its approvals": view(orders=(pending((0, 1, 2, 3)),)),
    "an order that is no update": view(orders=(PendingOrder(order(OrderKind.PAUSE), False, frozenset(), 0, {}),)),
    "halted, and going back": view(plan=going_back()),
    "a lease of an earlier plan in wave 0": view(membership(5, min_up=2), plan=plan(wave=0), leases=(lease(4, plan=bytes(32), lost=True),)),
    "one silent node among four that may spare it": view(membership(4, min_up=2, stall_ok=True), silent=(3,), plan=plan()),
}
BLOCKED: dict[str, tuple[View, str]] = {
    "too few voters": (
        view(silent=(2, 3), plan=plan()),
        "3 voters decide and 2 are heard; missing: gw3, gw4",
    ),
    "voters that are heard and do not vote": (
        seen(seen(view(plan=plan()), 1, stopped=True), 3, stopped=True),
        "3 voters decide and 2 are heard; missing: gw2, gw4",
    ),
    "paused": (view(plan=plan(), paused="Betriebsversammlung"), "paused by an admin: Betriebsversammlung"),
    "halted": (
        view(plan=halted()),
        "the plan is halted: gw2 reverted (`fleet resume 3f2a00000000 --halt-at N` or `fleet cancel 3f2a00000000`)",
    ),
    "approvals are missing": (
        view(orders=(pending((0, 2)),)),
        "order 3f2a00000000 has 2 of 4 approvals; not yet by gw2, gw4",
    ),
    "somebody rejects, the others are enough": (
        view(orders=(pending((0,), {1: "kein Platz"}, needed=3),)),
        "order 3f2a00000000 has 1 of 3 approvals; rejected by gw2 (kein Platz); not yet by gw3, gw4",
    ),
    "too many reject": (
        view(orders=(pending((0,), {1: "no room", 2: "too old"}, needed=3),)),
        "order 3f2a00000000 has 1 of 3 approvals and cannot get more: rejected by gw2 (no room), gw3 (too old)",
    ),
    "the slots are taken": (view(plan=plan(), leases=(lease(2),)), "waits for gw3 (lease 9, for 42 s)"),
    "wave 0 goes one by one": (
        view(membership(10, faults=0, min_up=2), plan=plan(wave=0), leases=(lease(2),)),
        "waits for gw3 (lease 9, for 42 s)",
    ),
    "a lost node uses up the budget": (
        view(plan=plan(), leases=(lease(2, lost=True),)),
        "lost and never returned: gw3; 2 voters would be down, the site can spare 1 (until it returns or the next membership replaces it)",
    ),
    "n = 4 with f = 1": (
        view(membership(4, faults=1), plan=plan()),
        "no voter may ever go down: with 4 voters, f = 1 and Q = 3 none can be spared (a membership with `stall_ok`, fewer faults or more "
        "voters)",
    ),
    "n = 3 with one dead": (
        view(membership(3), silent=(2,), plan=plan(nodes=frozenset({0, 1, 2}))),
        "nobody may go down: 1 other voters are seen, 2 are needed (silent: gw3; a membership with `stall_ok` waives the voters' quorum)",
    ),
    "min_up": (
        view(membership(6, learners=2, min_up=5, stall_ok=True), silent=(5,), plan=plan()),
        "nobody may go down: 4 other nodes are seen, 5 must stay up (silent: gw6)",
    ),
    "a group": (
        view(membership(6, min_up=2, learners=2, stall_ok=True), silent=(1,), plan=plan(nodes=frozenset({0}))),
        "nobody may go down: 0 other nodes of group pumps are seen, 1 must stay up (silent: gw2)",
    ),
    "nobody is ready": (
        seen(view(plan=plan(requests=(), done=frozenset({0, 1}))), 2, stage=Stage.FETCHING),
        "nobody asks for a slot; not yet ready: gw3 (fetching), gw4 (idle)",
    ),
    "this node does not vote": (view(plan=plan(), stopped="its log was lost"), "this node does not vote: its log was lost"),
    "this node does not know the site's state": (view(plan=plan(), adrift=True), "this node waits for the site's state from the others"),
    "this node was not answered": (
        view(plan=plan(), answered=1),
        "this node does not vote yet: since its start 1 of 3 voters have answered it",
    ),
    "outside the window": (view(plan=plan(), window_open=False), "this node's maintenance window is closed, and it lets no update begin"),
    "an order without a table of its own": (replace(view(), waiting=("lost 3f2a (number 4)",)), "not decided yet: lost 3f2a (number 4)"),
    "an order that too few voters hear of": (
        replace(view(silent=(2, 3)), waiting=("lost 3f2a (number 4)",)),
        "3 voters decide and 2 are heard; missing: gw3, gw4",
    ),
    "no agreement": (view(plan=plan(), undecided_s=40.0, round=3), "the voters have not agreed for 40 s on what comes next (round 3)"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_BLOCKED)
def test_nothing_is_blocked_where_something_moves_or_there_is_nothing_to_do(case: str) -> None:
    assert blocked(NOT_BLOCKED[case]) == ""


@pytest.mark.parametrize("case", BLOCKED)
def test_why_nothing_moves_is_one_sentence(case: str) -> None:
    what, sentence = BLOCKED[case]
    assert blocked(what) == sentence
    assert f"why nothing moves: {sentence}" in fleet_text.status(document(what)).splitlines()


def test_a_stopped_node_counts_itself_out_of_the_quorum() -> None:
    assert blocked(view(silent=(3,), plan=plan(), stopped="its log was lost")).startswith("3 voters decide and 2 are heard")


@pytest.mark.parametrize(
    ("what", "word"),
    [
        (view(), "idle"),
        (seen(view(), 1, stage=Stage.WAITING), "waiting"),
        (seen(view(plan=plan(done=frozenset({1}))), 1, stage=Stage.IDLE), "done"),
        (view(plan=plan(reverted=frozenset({1}))), "reverted"),
        (view(plan=plan(barred=frozenset({1}))), "evicted"),
        (view(silent=(1,)), "silent"),
        (seen(view(), 1, age_s=None), "never heard"),
        (view(silent=(1,), leases=(lease(1),)), "down"),
        (seen(view(leases=(lease(1),)), 1, stage=Stage.TRIAL), "trial"),
        (view(leases=(lease(1, lost=True),)), "lost"),
        (view(silent=(1,), plan=plan(done=frozenset({1}))), "done"),
    ],
)
def test_the_phase_of_a_member_is_one_word(what: View, word: str) -> None:
    assert phase(what, 1) == word


def test_the_document_is_json_and_says_everything() -> None:
    what = seen(
        view(
            plan=plan(done=frozenset({0}), reverted=frozenset({3}), requests=(1,)),
            leases=(lease(2, overdue=frozenset({0, 1})), lease(1, lost=True, lease=7)),
            orders=(replace(pending((0, 1), {2: "kein Platz"}), here="`fleet approve`"),),
            last_seq=3,
            alarms=("gw4 has signed two votes of one round",),
        ),
        3,
        reason="health: bus silent",
        doubts=frozenset({2}),
    )
    found = json.loads(json.dumps(document(what)))
    assert found["site"] == "plant-7"
    assert (found["epoch"], found["height"], found["node"], found["last_admin_seq"]) == (1, 12, "gw1", 3)
    assert found["genesis"] == bytes(32).hex()
    assert found["agreement"]["quorum"] == 3
    assert found["agreement"]["worth"] == "no Byzantine tolerance: every node is trusted"
    assert [member["name"] for member in found["members"]] == ["gw1", "gw2", "gw3", "gw4"]
    third = found["members"][2]
    assert third["lease"] == {"lease": 9, "node": "gw3", "plan": ID, "age_s": 42.0, "overdue_by": ["gw1", "gw2"]}
    assert third["doubted_by"] == ["gw4"]
    assert found["members"][3]["reason"] == "health: bus silent"
    assert [one["node"] for one in found["leases"]["held"]] == ["gw3"]
    assert [one["node"] for one in found["leases"]["lost"]] == ["gw2"]
    assert (found["plan"]["order"], found["plan"]["version"], found["plan"]["wave"], found["plan"]["width"]) == (ID, "2.0", 1, 2)
    assert (found["plan"]["done"], found["plan"]["reverted"], found["plan"]["asking"]) == (["gw1"], ["gw4"], ["gw2"])
    assert found["orders"][0]["approved_by"] == ["gw1", "gw2"]
    assert found["orders"][0]["rejected"] == {"gw3": "kein Platz"}
    assert found["orders"][0]["waits_here_for"] == "`fleet approve`"
    assert found["alarms"] == ["gw4 has signed two votes of one round"]


def test_the_table() -> None:
    what = seen(
        view(
            membership(5, learners=1, min_up=3),
            silent=(3,),
            plan=plan(done=frozenset({0}), reverted=frozenset({1})),
            leases=(lease(2),),
        ),
        1,
        reason="health: bus silent",
        stopped=True,
        address="192.0.2.2",
    )  # fmt: skip
    what = seen(what, 2, stage=Stage.TRIAL, trial=True, doubts=frozenset({1}))
    assert fleet_text.status(document(what)).splitlines() == [
        "site plant-7, epoch 1, height 12; this is gw1",
        "5 nodes, 4 vote, Q = 3, f = 0 (no Byzantine tolerance: every node is trusted)",
        "voters down at once: at most 1; always up: 3 nodes, 1 of group pumps",
        "  NODE  STATE             HEIGHT  PHASE     RUNS          LEASE     ADDRESS",
        "* gw1   ok                12      done      -             -         -",
        "  gw2   ok                12      reverted  010101010101  -         192.0.2.2  does not vote; doubted by gw3; health: bus silent",
        "  gw3   trial             12      trial     020202020202  9 (42 s)  -",
        "  gw4   silent 1 min 0 s  12      silent    030303030303  -         -",
        "  gw5   ok                12      idle      040404040404  -         -  learner",
        "plan 3f2a00000000: update to version 2.0, wave 1, 2 at once: 1 of 4 done, 1 reverted, 0 deferred",
        "  asks for a slot: gw1, gw2, gw3, gw4",
        "why nothing moves: 3 voters decide and 2 are heard; missing: gw2, gw4",
    ]


ENTRIES: tuple[tuple[Entry, str], ...] = (
    (OrderEntry(ORDER), "order 3f2a00000000"),
    (LostEntry(ORDER), "lost 3f2a00000000"),
    (PlanEntry(ORDER, frozenset({0, 2})), "plan 3f2a00000000, approved by gw1, gw3"),
    (GrantEntry(ORDER, ((1, 1), (2, 3))), "slot for gw2 (attempt 1), gw3 (attempt 3) of plan 3f2a00000000"),
    (ReleaseEntry((Release(9, 1, Ending.ROLLED_BACK, bytes(32)),)), "release of gw2 rolled back (lease 9)"),
    (ReturnEntry((Release(9, 77, Ending.COMPLETE, bytes(32)),)), "return of node 77 complete (lease 9)"),
    (HaltEntry(ORDER, 9, frozenset({0})), "halt of plan 3f2a00000000: lease 9 is overdue, say gw1"),
    (ReconfigEntry(ORDER), "next membership 3f2a00000000"),
)


@pytest.mark.parametrize(("entry", "text"), ENTRIES, ids=lambda value: type(value).__name__)
def test_what_was_decided_and_who_signed_it(entry: Entry, text: str) -> None:
    found = json.loads(json.dumps(history(membership(), 13, 0, entry, (0, 1, 3))))
    assert (found["height"], found["epoch"], found["signed_by"]) == (13, 1, ["gw1", "gw2", "gw4"])
    assert fleet_text.log({"entries": [found]}) == f"    13  {text}; signed by gw1, gw2, gw4"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (order(), "update to version 2.0"),
        (order(OrderKind.PAUSE, version="", reason="Schicht"), "pause (Schicht)"),
        (order(OrderKind.CANCEL, version="", target=bytes([0x77]) * 32), "cancel of 777777777777"),
        (order(OrderKind.ROLLBACK, now=True, nodes=frozenset({1})), "rollback now to version 2.0 of gw2"),
    ],
)
def test_the_log_tells_what_an_order_says(said: Order, text: str) -> None:
    found = json.loads(json.dumps(history(membership(), 13, 0, OrderEntry(ORDER), (0,), said)))
    assert fleet_text.log({"entries": [found]}) == f"    13  order 3f2a00000000: {text}; signed by gw1"


def test_a_log_of_nothing_and_of_a_late_round() -> None:
    assert fleet_text.log({"entries": []}) == "nothing is decided yet"
    assert fleet_text.log({"entries": [], "height": 5}) == "nothing is kept from there on: the site is at height 5"
    late = history(membership(), 1, 4, OrderEntry(ORDER), (0,))
    assert fleet_text.log({"entries": [late]}).endswith("signed by gw1 in round 4")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min"), (90000, "1 d 1 h")],
)
def test_ages_have_two_units(seconds: float, text: str) -> None:
    assert fleet_text.age(seconds) == text


def test_an_order_and_its_way_to_a_plan() -> None:
    lines = fleet_text.status(document(view(orders=(replace(pending((0,), {1: ""}), committed=False, here="the bundle"),)))).splitlines()
    assert "order 3f2a00000000: update to version 2.0, 1 of 4 approvals, not yet in the log" in lines
    assert "  approved by gw1" in lines
    assert "  rejected by gw2: no reason given" in lines
    assert "  waits here for the bundle" in lines


def test_pauses_halts_alarms_and_lost_nodes_have_their_lines() -> None:
    what = view(
        plan=halted(),
        leases=(lease(3, lost=True, lease=7),),
        evicted=frozenset({3}),
        liars=frozenset({2}),
        paused="",
        alarms=("two votes",),
    )
    lines = fleet_text.status(document(what)).splitlines()
    assert "lost: gw4 (lease 7, for 42 s)" in lines
    assert "  halted: gw2 reverted (halt_at 1, on_halt hold)" in lines
    assert "alarm: two votes" in lines
    assert any(line.endswith("  HAS VOTED TWICE") and "gw3" in line for line in lines)
    assert any(line.endswith("  evicted") and "gw4" in line for line in lines)
    assert any("rolling back, wave 1" in line for line in fleet_text.status(document(view(plan=going_back()))).splitlines())


def test_the_last_line_says_how_the_last_plan_ended() -> None:
    assert fleet_text.status(document(view())).splitlines()[-1] == "nothing to do"
    closed = (Closed(bytes(32), Close.REPLACED, 0, 0, 3), Closed(ORDER, Close.DONE, 3, 1, 11))
    assert fleet_text.status(document(view(closed=closed))).splitlines()[-1] == (
        "nothing to do; plan 3f2a00000000 is done: 3 completed, 1 reverted"
    )


def test_a_learner_needs_no_answers() -> None:
    learner = replace(view(membership(6, learners=2, min_up=4), plan=plan(), answered=0), me=5)
    assert blocked(learner) == ""
