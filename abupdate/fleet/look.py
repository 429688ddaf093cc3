"""Fills a node's view (view.py) from the parts of the core. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from abupdate.fleet import ledger
from abupdate.fleet.site import Site
from abupdate.fleet.state import troubles
from abupdate.fleet.view import HeldLease, PendingOrder, PlanView, Seen, View
from abupdate.fleet.voter import Voter
from abupdate.formats.entries import Ending
from abupdate.formats.messages import NOTHING, Heartbeat, Outcome, Overdue, Reject, SlotRequest, Stage, Type
from abupdate.formats.order import Order, OrderKind


@dataclass(frozen=True, slots=True)
class Own:
    """What only the node itself knows. since: own clock at which each lease was first seen. beat: what its heartbeat would say now."""

    stage: Stage
    why: str
    stopped: str
    adrift: bool
    sees_quorum: bool
    since: Mapping[int, float]
    decided: int
    beat: Heartbeat
    window_open: bool


def look(site: Site, voter: Voter, own: Own) -> View:
    """The view of now."""
    state, membership = site.state, site.membership
    counters = {
        "heard": {kind.name: count for kind, count in sorted(site.wire.heard.items())},
        "sent": {kind.name: count for kind, count in sorted(site.wire.sent.items())},
        "dropped": dict(sorted(site.wire.dropped.items())),
        "log": {"decided": own.decided, "rounds": voter.rounds},
    }
    acknowledged = site.peers.acknowledged(site.wire.boot, voter.newest, membership.voters)
    return View(
        membership=membership,
        me=site.me,
        height=state.height,
        round=voter.height.round,
        undecided_s=voter.undecided_s,
        members={member.index: _seen(site, own, member.index) for member in membership.members},
        leases=tuple(_lease(site, own, node) for node in sorted(state.leases)),
        plan=_plan(site),
        orders=_orders(site, own),
        last_seq=state.admin_seq,
        waiting=tuple(
            f"{order.kind.name.lower()} {order.id.hex()[:12]} (number {order.admin_seq})"
            for order in sorted(site.archive.orders(), key=lambda order: order.admin_seq)
            if order.kind is not OrderKind.UPDATE and order.epoch == state.epoch and order.admin_seq > state.admin_seq
        ),
        newest_seq=max([state.admin_seq, *(order.admin_seq for order in site.archive.orders() if order.epoch == state.epoch)]),
        paused=_paused(site, voter),
        stopped=own.stopped,
        answered=len(acknowledged) + site.voter,
        window_open=own.window_open,
        alarms=tuple(sorted(site.alarms)),
        adrift=own.adrift,
        sees_quorum=own.sees_quorum,
        doubters=site.peers.doubters(site.now_s, 3 * membership.heartbeat_s),
        liars=frozenset(voter.equivocators),
        evicted=state.evicted,
        closed=state.closed,
        counters=counters,
    )


def _seen(site: Site, own: Own, node: int) -> Seen:
    if node == site.me:
        return _from(0.0, own.beat, own.why)
    peer = site.peers.others.get(node)
    if peer is None or peer.beat is None or peer.heard_s is None:
        return Seen(None)
    return _from(site.now_s - peer.heard_s, peer.beat, _word(site, node), peer.address)


def _from(age_s: float, beat: Heartbeat, reason: str, address: str = "") -> Seen:
    return Seen(age_s, beat.height, beat.stage, reason, beat.healthy, beat.trial, beat.stopped, beat.bundle, beat.doubts, address)


def _word(site: Site, node: int) -> str:
    """Why, in the node's own words, where it has given some."""
    for kind in (Type.ROLLED_BACK, Type.DEFER, Type.REJECT):
        for fact in site.facts.of(kind):
            message = fact.frame.message
            if fact.frame.source == node and isinstance(message, (Outcome, Reject)):
                return message.reason
    return site.words.get(node, "")


def _lease(site: Site, own: Own, node: int) -> HeldLease:
    lease = site.state.leases[node]
    overdue = frozenset(
        fact.frame.source
        for fact in site.facts.of(Type.OVERDUE)
        if isinstance(fact.frame.message, Overdue) and fact.frame.message.lease == lease.height
    )
    return HeldLease(lease.height, node, lease.plan, site.now_s - own.since.get(lease.height, site.now_s), lease.lost, overdue)


def _plan(site: Site) -> PlanView | None:
    plan = site.state.plan
    order = site.archive.order(plan.order) if plan is not None else None
    if plan is None or order is None:
        return None
    ended: dict[Ending, set[int]] = {ending: set() for ending in Ending}
    for node, standing in plan.nodes.items():
        if standing.ending is not None:
            ended[standing.ending].add(node)
    requests = frozenset(
        fact.frame.source
        for fact in site.facts.of(Type.SLOT_REQ)
        if isinstance(fact.frame.message, SlotRequest) and fact.frame.message.plan == plan.order
    )
    return PlanView(
        order,
        int(plan.wide),
        plan.halt_at,
        plan.halted,
        plan.back,
        frozenset(ended[Ending.COMPLETE]),
        frozenset(ended[Ending.ROLLED_BACK]),
        frozenset(ended[Ending.DEFER]),
        frozenset(plan.nodes) & site.state.evicted,
        requests,
        troubles(site.state, plan),
        frozenset(plan.nodes),
    )


def _orders(site: Site, own: Own) -> tuple[PendingOrder, ...]:
    state = site.state
    found: list[PendingOrder] = []
    for order in sorted(site.archive.orders(), key=lambda order: order.admin_seq):
        committed = order.id == state.pending
        if order.kind is OrderKind.UPDATE and (committed or (order.admin_seq > state.admin_seq and order.epoch == state.epoch)):
            found.append(_pending(site, order, own.why if committed else "", committed=committed))
    return tuple(found)


def _pending(site: Site, order: Order, here: str, *, committed: bool) -> PendingOrder:
    approvals: set[int] = set()
    rejects: dict[int, str] = {}
    for node in site.membership.by_index:
        if site.facts.find(Type.APPROVE, node, order.id) is not None:
            approvals.add(node)
        fact = site.facts.find(Type.REJECT, node, order.id)
        if fact is not None and isinstance(fact.frame.message, Reject):
            rejects[node] = fact.frame.message.reason
    needed = ledger.wanted_approvals(site.membership, order)
    return PendingOrder(order, committed, frozenset(approvals), needed, rejects, "" if site.me in approvals else here)


def _paused(site: Site, voter: Voter) -> str:
    """Why the site or its plan is paused: in the words of the order that says so, as long as that is here."""
    state = site.state
    subjects = {NOTHING, state.pending, state.plan.order if state.plan is not None else NOTHING}
    paused = (state.paused | voter.paused) & subjects
    if not paused:
        return ""
    # The newest first: an earlier pause of the same thing was lifted since.
    for order in sorted(site.archive.orders(), key=lambda order: -order.admin_seq):
        if order.kind is OrderKind.PAUSE and order.target in paused:
            return order.reason or "an admin has paused it"
        if order.now and order.admin_seq > site.state.admin_seq:
            return "an admin has ordered nodes back at once"
    return "an admin has paused it"
