"""The rules of the log, rule by rule: what is valid on which state, and what it makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abupdate.fleet import ledger
from abupdate.fleet import state as state_format
from abupdate.fleet.state import Lease, State
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
from abupdate.formats.membership import Membership
from abupdate.formats.messages import NOTHING, Approve, Outcome, Overdue, SlotRequest, Type
from abupdate.formats.order import OnHalt, Order, OrderKind
from tests.fleet.sitekit import ADMIN, ADMIN_TWO, NEW, OLD, ROOT, Key, Shelf, next_epoch, node_key, order, site, start

WORDS = {Ending.COMPLETE: Type.COMPLETE, Ending.ROLLED_BACK: Type.ROLLED_BACK, Ending.DEFER: Type.DEFER}


class Log:
    """A site's log as a test writes it: every entry is judged before it is applied."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.state, self.shelf, _ = start(membership)
        self.seq = 0

    def judge(self, entry: Entry) -> ledger.Judgement:
        return ledger.judge(self.state, self.membership, entry, self.shelf)

    def write(self, entry: Entry) -> State:
        judgement = self.judge(entry)
        assert judgement.valid, judgement.why
        self.state = ledger.apply(self.state, self.membership, entry, self.shelf)
        assert state_format.decode(state_format.encode(self.state)) == self.state
        return self.state

    def make(self, kind: OrderKind, *signers: Key, **fields: object) -> Order:
        self.seq += 1
        return self.shelf.put(order(self.membership, kind, self.seq, *signers, **fields))

    def command(self, kind: OrderKind, *signers: Key, **fields: object) -> Order:
        made = self.make(kind, *signers, **fields)
        self.write(LostEntry(made.id) if kind is OrderKind.LOST else OrderEntry(made.id))
        return made

    def plan(self, **fields: object) -> Order:
        made = self.command(OrderKind.UPDATE, **fields)
        nodes = range(len(self.membership.members))
        for node in nodes:
            self.shelf.say(Type.APPROVE, node, Approve(made.id))
        self.write(PlanEntry(made.id, frozenset(nodes)))
        return made

    def ask(self, *nodes: int) -> GrantEntry:
        plan = self.state.plan
        assert plan is not None
        grants = tuple((node, plan.nodes[node].grants + 1) for node in nodes)
        for node, attempt in grants:
            self.shelf.say(Type.SLOT_REQ, node, SlotRequest(plan.order, attempt))
        return GrantEntry(plan.order, grants)

    def grant(self, *nodes: int) -> int:
        return self.write(self.ask(*nodes)).height

    def word(self, node: int, ending: Ending, epoch: int = 0) -> Release:
        lease = self.state.leases[node].height
        reason = "" if ending is Ending.COMPLETE else "because"
        return Release(lease, node, ending, self.shelf.say(WORDS[ending], node, Outcome(lease, NEW, reason), epoch))

    def end(self, node: int, ending: Ending = Ending.COMPLETE) -> State:
        return self.write(ReleaseEntry((self.word(node, ending),)))

    def go(self, node: int, ending: Ending = Ending.COMPLETE) -> State:
        self.grant(node)
        return self.end(node, ending)


def why(log: Log, entry: Entry) -> str:
    return log.judge(entry).why


def test_a_plan_needs_as_many_approvals_as_the_order_and_the_membership_ask_for() -> None:
    log = Log(site(4, approvals=2))
    update = log.command(OrderKind.UPDATE, share=75)
    for node in (0, 1):
        log.shelf.say(Type.APPROVE, node, Approve(update.id))
    assert "too few" in why(log, PlanEntry(update.id, frozenset({0, 1})))
    missing = log.judge(PlanEntry(update.id, frozenset({0, 1, 3})))
    assert len(missing.missing) == 1
    log.shelf.say(Type.APPROVE, 3, Approve(update.id))
    assert log.write(PlanEntry(update.id, frozenset({0, 1, 3}))).plan is not None
    assert "another plan" in why(log, PlanEntry(update.id, frozenset({0, 1, 3})))


def test_the_share_counts_nodes_and_is_rounded_up() -> None:
    membership = site(7)
    assert ledger.wanted_approvals(membership, order(membership, OrderKind.UPDATE, share=50)) == 4
    assert ledger.wanted_approvals(membership, order(membership, OrderKind.UPDATE, share=1)) == 1
    assert ledger.wanted_approvals(site(7, 1, approvals=5), order(site(7, 1), OrderKind.UPDATE, share=1)) == 5


def test_an_approver_that_is_no_member_counts_for_nothing() -> None:
    log = Log(site(4))
    update = log.command(OrderKind.UPDATE)
    assert "no member" in why(log, PlanEntry(update.id, frozenset({0, 1, 2, 9})))


def test_only_the_newest_order_can_become_a_plan() -> None:
    log = Log(site(4))
    first, second = log.command(OrderKind.UPDATE), log.command(OrderKind.UPDATE, bundle=OLD)
    assert "not the pending one" in why(log, PlanEntry(first.id, frozenset(range(4))))
    assert log.state.pending == second.id


def test_an_order_needs_its_admins_its_epoch_its_site_and_a_fresh_number() -> None:
    log = Log(site(4, admin_threshold=2))
    for fields, signers, reason in (
        ({}, (ADMIN,), "signed by 1"),
        ({}, (node_key(1), ADMIN), "signed by 1"),
    ):
        made = log.shelf.put(order(log.membership, OrderKind.UPDATE, 5, *signers, **fields))
        assert reason in why(log, OrderEntry(made.id))
    good = log.shelf.put(order(log.membership, OrderKind.UPDATE, 5, ADMIN, ADMIN_TWO))
    log.write(OrderEntry(good.id))
    again = log.shelf.put(order(log.membership, OrderKind.UPDATE, 5, ADMIN, ADMIN_TWO, version="3"))
    assert "used up" in why(log, OrderEntry(again.id))
    elsewhere = log.shelf.put(order(site(5), OrderKind.UPDATE, 6, ADMIN, ADMIN_TWO))
    assert "another site" in why(log, OrderEntry(elsewhere.id))
    later = log.shelf.put(order(next_epoch(log.membership), OrderKind.UPDATE, 6, ADMIN, ADMIN_TWO))
    assert "epoch 2" in why(log, OrderEntry(later.id))
    unknown = log.judge(OrderEntry(bytes(32)))
    assert unknown.missing


def test_a_changed_signature_of_an_admin_is_refused() -> None:
    log = Log(site(4))
    made = order(log.membership, OrderKind.UPDATE)
    broken = replace(made, signatures=(replace(made.signatures[0], value=bytes(64)),))
    log.shelf.orders[made.id] = broken
    assert "wrong" in why(log, OrderEntry(made.id))


def test_an_entry_says_of_which_kind_its_order_is() -> None:
    log = Log(site(4))
    made = log.make(OrderKind.UPDATE)
    assert "kind" in why(log, LostEntry(made.id))


def test_the_first_nodes_go_one_after_another_until_f_plus_1_are_through() -> None:
    log = Log(site(10, 2, min_up=7))
    log.plan(width=3)
    assert "one after another" in why(log, log.ask(0, 1))
    log.grant(0)
    assert "one after another" in why(log, log.ask(1))
    log.end(0)
    for node in (1, 2):
        log.go(node)
    assert log.state.plan is not None
    assert log.state.plan.wide
    assert log.judge(log.ask(3)).valid
    # k_live of n = 10, f = 2 is 1: a wider plan does not stretch the voters' budget.
    assert "voters" in why(log, log.ask(3, 4))


def test_a_liar_that_says_complete_does_not_open_the_plan_alone() -> None:
    log = Log(site(6, 1, min_up=3))
    log.plan(width=3)
    log.go(0)
    assert log.state.plan is not None
    assert not log.state.plan.wide


def test_no_grant_breaks_the_voters_budget_min_up_the_width_or_a_group() -> None:
    log = Log(site(5, min_up=2))
    log.plan(width=2)
    log.go(0)
    log.grant(1)
    assert log.membership.voter_budget == 2
    log.grant(2)
    assert why(log, log.ask(3))
    groups = Log(site(5, min_up=1, groups={"gate": 1}, members=tuple(_grouped(site(5)))))
    groups.plan(width=5)
    groups.go(4)
    groups.grant(0)
    assert "group gate" in why(groups, groups.ask(1))
    assert groups.judge(groups.ask(2)).valid


def _grouped(membership: Membership) -> list[object]:
    return [replace(member, groups=frozenset({"gate"}) if member.index < 2 else frozenset()) for member in membership.members]


def test_stall_ok_lets_one_voter_go_where_the_log_then_waits_for_it() -> None:
    assert site(4, 1).voter_budget == 0
    assert site(4, 1, stall_ok=True).voter_budget == 1
    log = Log(site(4, 1))
    log.plan()
    assert "voters" in why(log, log.ask(0))


def test_a_grant_needs_the_nodes_own_request_for_this_very_attempt() -> None:
    log = Log(site(4))
    made = log.plan()
    assert log.judge(GrantEntry(made.id, ((2, 1),))).missing
    log.shelf.say(Type.SLOT_REQ, 2, SlotRequest(made.id, 1))
    assert "attempt 2" in why(log, GrantEntry(made.id, ((2, 2),)))
    log.go(2, Ending.DEFER)
    assert "attempt 1" in why(log, GrantEntry(made.id, ((2, 1),)))


def test_one_attempt_a_node_but_for_three_deferrals() -> None:
    log = Log(site(4))
    log.plan()
    for _ in range(3):
        log.go(1, Ending.DEFER)
    assert "no place" in why(log, log.ask(1))
    log.go(0)
    assert "no place" in why(log, log.ask(0))


def test_a_lease_ends_by_its_holders_word_alone() -> None:
    log = Log(site(4))
    log.plan()
    lease = log.grant(0)
    foreign = log.shelf.say(Type.COMPLETE, 1, Outcome(lease, NEW))
    assert why(log, ReleaseEntry((Release(lease, 0, Ending.COMPLETE, foreign),)))
    other = log.shelf.say(Type.COMPLETE, 0, Outcome(lease + 1, NEW))
    assert why(log, ReleaseEntry((Release(lease, 0, Ending.COMPLETE, other),)))
    said = log.word(0, Ending.ROLLED_BACK)
    assert "something else" in why(log, ReleaseEntry((replace(said, ending=Ending.COMPLETE),)))
    assert log.judge(ReleaseEntry((replace(said, fact=bytes(32)),))).missing
    assert why(log, ReleaseEntry((replace(said, node=1),)))
    assert why(log, ReturnEntry((said,)))
    log.write(ReleaseEntry((said,)))
    assert not log.state.leases


def test_a_word_of_an_epoch_before_the_grant_ends_nothing() -> None:
    log = Log(site(4))
    log.plan()
    log.grant(0)
    log.state = replace(log.state, leases={0: replace(log.state.leases[0], epoch=3)})
    assert "something else" in why(log, ReleaseEntry((log.word(0, Ending.COMPLETE, epoch=2),)))


def test_the_first_node_that_reverts_halts_the_plan() -> None:
    log = Log(site(4))
    log.plan(halt_at=3)
    log.go(0, Ending.ROLLED_BACK)
    assert log.state.plan is not None
    assert "first nodes" in log.state.plan.halted
    assert "halted" in why(log, log.ask(1))
    assert "higher halt_at" in why(log, OrderEntry(log.make(OrderKind.RESUME, target=log.state.plan.order, halt_at=1).id))
    log.command(OrderKind.RESUME, target=log.state.plan.order, halt_at=2)
    log.go(1)
    assert log.state.plan.wide
    log.go(2, Ending.ROLLED_BACK)
    assert "2 of its nodes" in log.state.plan.halted


def test_reverted_lost_and_overdue_count_towards_halt_at() -> None:
    log = Log(site(10, min_up=4))
    made = log.plan(halt_at=3, width=4)
    log.go(0)
    log.grant(1, 2, 3)
    log.end(1, Ending.ROLLED_BACK)
    log.command(OrderKind.LOST, nodes=frozenset({2}))
    lease = log.state.leases[3].height
    entry = HaltEntry(made.id, lease, frozenset({5}))
    assert log.judge(entry).missing
    log.shelf.say(Type.OVERDUE, 5, Overdue(lease))
    assert log.state.plan is not None
    assert not log.state.plan.halted
    # The lease of node 3 is that of node 1 and 2 too: their GRANT was one.
    log.write(entry)
    assert log.state.plan.halted
    assert log.state.leases[3].overdue
    assert "no such lease" in why(log, entry)


def test_overdue_needs_more_than_f_voters_and_frees_nothing() -> None:
    log = Log(site(10, 2, min_up=4))
    made = log.plan()
    lease = log.grant(0)
    for voter in (1, 2, 3):
        log.shelf.say(Type.OVERDUE, voter, Overdue(lease))
    assert "too few" in why(log, HaltEntry(made.id, lease, frozenset({1, 2})))
    assert "no voter" in why(log, HaltEntry(made.id, lease, frozenset({1, 2, 40})))
    log.write(HaltEntry(made.id, lease, frozenset({1, 2, 3})))
    assert 0 in log.state.leases
    assert log.state.plan is not None
    assert log.state.plan.halted


def test_a_lost_lease_counts_until_its_holder_returns() -> None:
    log = Log(site(5, min_up=2))
    log.plan(width=2, halt_at=5)
    log.go(0)
    log.grant(1)
    assert "holds no lease" in why(log, LostEntry(log.make(OrderKind.LOST, nodes=frozenset({2})).id))
    log.command(OrderKind.LOST, nodes=frozenset({1}))
    assert log.state.leases[1].lost
    assert why(log, ReleaseEntry((log.word(1, Ending.ROLLED_BACK),)))
    log.grant(2)
    assert why(log, log.ask(3))
    log.write(ReturnEntry((log.word(1, Ending.COMPLETE),)))
    assert 1 not in log.state.leases


def test_a_trouble_that_has_passed_excuses_no_later_one() -> None:
    log = Log(site(7, 1, min_up=4))
    made = log.plan(halt_at=1)
    log.grant(0)
    log.command(OrderKind.LOST, nodes=frozenset({0}))
    log.command(OrderKind.RESUME, target=made.id, halt_at=2)
    assert log.state.plan is not None
    assert not log.state.plan.halted
    log.write(ReturnEntry((log.word(0, Ending.COMPLETE),)))
    log.go(1, Ending.ROLLED_BACK)
    assert log.state.plan.halted


def test_a_plan_closes_when_every_member_is_through_lost_or_evicted() -> None:
    log = Log(site(4))
    made = log.plan(halt_at=4)
    log.go(0)
    log.go(1)
    log.grant(2)
    log.command(OrderKind.LOST, nodes=frozenset({2}))
    log.command(OrderKind.EVICT, nodes=frozenset({3}))
    assert log.state.plan is None
    assert log.state.closed[-1].order == made.id
    assert log.state.closed[-1].completed == 2
    # The lost node's lease stays: it may be down for ever.
    assert log.state.leases[2].lost
    assert "evicted already" in why(log, OrderEntry(log.make(OrderKind.EVICT, nodes=frozenset({3})).id))


def test_a_cancelled_plan_leaves_the_leases_held() -> None:
    log = Log(site(4))
    made = log.plan()
    log.grant(1)
    log.command(OrderKind.CANCEL, target=made.id)
    assert log.state.plan is None
    assert 1 in log.state.leases
    assert "not open" in why(log, OrderEntry(log.make(OrderKind.CANCEL, target=made.id).id))
    log.end(1, Ending.ROLLED_BACK)
    assert not log.state.leases


def test_a_pending_order_can_be_cancelled() -> None:
    log = Log(site(4))
    made = log.command(OrderKind.UPDATE)
    log.command(OrderKind.CANCEL, target=made.id)
    assert log.state.pending == NOTHING


def test_paused_nobody_gets_a_lease_and_resumed_somebody_does() -> None:
    log = Log(site(4))
    made = log.plan()
    log.command(OrderKind.PAUSE, target=made.id, reason="audit")
    assert "paused already" in why(log, OrderEntry(log.make(OrderKind.PAUSE, target=made.id).id))
    assert "paused" in why(log, log.ask(1))
    log.command(OrderKind.RESUME, target=made.id)
    assert "neither" in why(log, OrderEntry(log.make(OrderKind.RESUME, target=made.id).id))
    log.command(OrderKind.PAUSE)
    assert "paused" in why(log, log.ask(1))
    log.command(OrderKind.RESUME)
    log.grant(1)
    assert "not open" in why(log, OrderEntry(log.make(OrderKind.PAUSE, target=OLD).id))


def test_a_halted_plan_turns_round_where_its_order_says_so() -> None:
    log = Log(site(5, min_up=2))
    log.plan(width=2, on_halt=OnHalt.ROLLBACK, rollback_to=OLD, rollback_version="1")
    log.go(0)
    log.go(1)
    log.grant(2, 3)
    log.end(2, Ending.ROLLED_BACK)
    plan = log.state.plan
    assert plan is not None
    assert plan.back
    assert {node for node, standing in plan.nodes.items() if standing.ending is None} == {0, 1}
    # Who was on its way when the plan turned goes back as well if it got through, with a request of its own.
    log.end(3)
    assert log.state.plan is not None
    assert log.state.plan.nodes[3].ending is None
    log.shelf.say(Type.SLOT_REQ, 3, SlotRequest(plan.order, 1))
    assert "attempt 1" in why(log, GrantEntry(plan.order, ((3, 1),)))
    for node in (0, 1, 3):
        assert log.write(log.ask(node)).leases[node].back
        log.end(node)
    assert log.state.plan is None
    assert log.state.closed[-1].completed == 3


def test_a_rollback_of_some_nodes_opens_a_plan_of_its_own() -> None:
    log = Log(site(5, min_up=2))
    made = log.plan(width=2)
    log.go(0)
    back = log.command(OrderKind.ROLLBACK, nodes=frozenset({0, 1}), width=2)
    assert log.state.plan is not None
    assert log.state.plan.order == back.id
    assert set(log.state.plan.nodes) == {0, 1}
    assert log.state.closed[-1].order == made.id
    log.grant(0, 1)
    log.end(0)
    log.end(1)
    assert log.state.plan is None


def test_a_rollback_now_needs_more_admins_and_closes_the_plan() -> None:
    log = Log(site(4))
    log.plan()
    assert "needs 2" in why(log, OrderEntry(log.make(OrderKind.ROLLBACK, now=True).id))
    made = log.command(OrderKind.ROLLBACK, ADMIN, ADMIN_TWO, now=True)
    assert log.state.plan is None
    assert log.state.now == made.id
    assert "no member" in why(log, OrderEntry(log.make(OrderKind.ROLLBACK, nodes=frozenset({77})).id))
    log.plan()
    assert log.state.now == NOTHING


def test_a_new_membership_takes_over_with_the_leases_of_who_remains() -> None:
    log = Log(site(5, min_up=3))
    log.plan(width=1)
    log.grant(1)
    fresh = next_epoch(log.membership, members=log.membership.members[:4])
    log.shelf.memberships[fresh.digest] = fresh
    assert log.judge(ReconfigEntry(bytes(32))).missing
    state = log.write(ReconfigEntry(fresh.digest))
    assert (state.epoch, state.membership) == (2, fresh.digest)
    assert 1 in state.leases
    assert state.plan is not None
    assert 4 not in state.plan.nodes


def test_a_new_membership_is_refused_where_its_budgets_do_not_bear_the_leases() -> None:
    log = Log(site(5, min_up=2))
    log.plan(width=2)
    log.go(0)
    log.grant(1, 2)
    tight = next_epoch(log.membership, min_up=4)
    log.shelf.memberships[tight.digest] = tight
    assert "must stay up" in why(log, ReconfigEntry(tight.digest))
    stranger = next_epoch(log.membership, Key("somebody"), roots=(Key("somebody").public,))
    log.shelf.memberships[stranger.digest] = stranger
    assert "root keys" in why(log, ReconfigEntry(stranger.digest))
    elsewhere = next_epoch(site(4), ROOT)
    log.shelf.memberships[elsewhere.digest] = elsewhere
    assert "another site" in why(log, ReconfigEntry(elsewhere.digest))


def test_a_new_membership_voids_what_has_no_plan_yet() -> None:
    log = Log(site(4))
    log.command(OrderKind.UPDATE)
    log.command(OrderKind.EVICT, nodes=frozenset({3}))
    fresh = next_epoch(log.membership)
    log.shelf.memberships[fresh.digest] = fresh
    state = log.write(ReconfigEntry(fresh.digest))
    assert state.pending == NOTHING
    assert not state.evicted


def test_over_a_new_membership_the_site_and_the_plan_stay_paused_and_a_void_order_leaves_nothing() -> None:
    log = Log(site(4))
    made = log.plan()
    log.command(OrderKind.PAUSE, target=made.id)
    log.command(OrderKind.PAUSE)
    void = log.command(OrderKind.UPDATE)
    log.command(OrderKind.PAUSE, target=void.id)
    assert log.state.paused == {made.id, NOTHING, void.id}
    fresh = next_epoch(log.membership)
    log.shelf.memberships[fresh.digest] = fresh
    assert log.write(ReconfigEntry(fresh.digest)).paused == {made.id, NOTHING}


@pytest.mark.parametrize("name", ["plan", "order", "membership"])
def test_what_an_entry_names_must_be_here_to_apply_it(name: str) -> None:
    log = Log(site(4))
    nowhere: dict[str, Entry] = {
        "plan": PlanEntry(NEW, frozenset()),
        "order": OrderEntry(NEW),
        "membership": ReconfigEntry(NEW),
    }
    with pytest.raises(KeyError):
        ledger.apply(log.state, log.membership, nowhere[name], Shelf(log.membership))


def test_a_recovered_site_goes_on_with_the_leases_that_were_held() -> None:
    from abupdate.formats.membership import Recovery

    membership = site(4, recovery=Recovery(bytes([7]) * 32, 41, {2: 40}))
    state, _, _ = start(membership)
    assert state.height == 41
    assert state.leases == {2: Lease(2, 40, NOTHING, 1)}
