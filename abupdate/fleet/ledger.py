"""The rules of the log: which entry is valid on which state, judged by facts that everyone can check, and what it makes of the state. Pure.

Nobody trusts a proposer: a PLAN's approvals, a GRANT's requests and budgets, a RELEASE's word are looked up and counted again by everyone.
A subjective doubt has no place here (it may hold back a prevote: node.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from abupdate.errors import Refused
from abupdate.fleet.budget import excess
from abupdate.fleet.state import MAX_DEFERRALS, Close, Closed, Lease, Plan, Standing, State, troubles
from abupdate.formats import frame
from abupdate.formats import membership as membership_format
from abupdate.formats import order as order_format
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
from abupdate.formats.messages import NOTHING, Approve, Frame, Message, Outcome, Overdue, SlotRequest, Thing, Type
from abupdate.formats.order import OnHalt, Order, OrderKind

_CLOSED_KEPT = 8
ENDINGS: Mapping[Type, Ending] = {Type.COMPLETE: Ending.COMPLETE, Type.ROLLED_BACK: Ending.ROLLED_BACK, Type.DEFER: Ending.DEFER}


class Library(Protocol):
    """Where entries find what they name. What is not there may still arrive."""

    def order(self, digest: bytes) -> Order | None:
        """An admin's order by its id; its signatures are not verified yet."""

    def membership(self, digest: bytes) -> Membership | None:
        """A membership by its digest; its signatures are not verified yet."""

    def fact(self, digest: bytes) -> Frame | None:
        """A fact whose author's signature was verified, by `frame.fact_digest`."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an entry is valid. why: empty for a valid one. missing: what must be fetched before that can be said (then why says so)."""

    why: str = ""
    missing: tuple[tuple[Thing, bytes], ...] = ()

    @property
    def valid(self) -> bool:
        """The entry may be decided on this state."""
        return not self.why


VALID = Judgement()


def canaries(membership: Membership) -> int:
    """How many nodes go first, one after another: f+1, since a single one may be the liar."""
    return membership.faults + 1


def wanted_approvals(membership: Membership, order: Order) -> int:
    """max(A, ceil(share x n_nodes))."""
    return max(membership.approvals, -(-order.share * len(membership.members) // 100))


def goal(order: Order, *, back: bool) -> bytes:
    """The bundle that a plan of this order brings its nodes to."""
    return order.rollback_to if back and order.kind is OrderKind.UPDATE else order.bundle


def fact_digest(kind: Type, source: int, epoch: int, message: Message) -> bytes:
    """Digest of a fact that has not been seen, from what it must say."""
    return frame.fact_digest(kind, source, epoch, frame.payload(message))


def facts_of(state: State, entry: Entry) -> tuple[bytes, ...]:
    """Digests of the facts that an entry rests on."""
    match entry:
        case PlanEntry():
            return tuple(fact_digest(Type.APPROVE, node, state.epoch, Approve(entry.order)) for node in sorted(entry.approvers))
        case GrantEntry():
            asked = ((node, SlotRequest(entry.plan, attempt)) for node, attempt in entry.grants)
            return tuple(fact_digest(Type.SLOT_REQ, node, state.epoch, request) for node, request in asked)
        case HaltEntry():
            return tuple(fact_digest(Type.OVERDUE, node, state.epoch, Overdue(entry.lease)) for node in sorted(entry.voters))
        case ReleaseEntry() | ReturnEntry():
            return tuple(release.fact for release in entry.releases)
        case _:
            return ()


def judge(state: State, membership: Membership, entry: Entry, library: Library) -> Judgement:
    """Whether `entry` may follow on `state`, whose epoch's membership this is."""
    match entry:
        case OrderEntry():
            return _order(state, membership, entry.order, library, lost=False)
        case LostEntry():
            return _order(state, membership, entry.order, library, lost=True)
        case PlanEntry():
            return _plan(state, membership, entry, library)
        case GrantEntry():
            return _grant(state, membership, entry, library)
        case ReleaseEntry():
            return _releases(state, entry.releases, library, lost=False)
        case ReturnEntry():
            return _releases(state, entry.releases, library, lost=True)
        case HaltEntry():
            return _halt(state, membership, entry, library)
        case ReconfigEntry():
            return _reconfig(state, membership, entry, library)


def check_order(state: State, membership: Membership, order: Order) -> str:
    """Empty where the order is signed by enough admins and makes sense on this state, else why not."""
    if order.genesis != state.genesis:
        return "the order is for another site"
    if order.epoch != state.epoch:
        return f"the order is for epoch {order.epoch}, the site is in epoch {state.epoch}"
    if order.admin_seq <= state.admin_seq:
        return f"the order's number {order.admin_seq} is used up, the next one is {state.admin_seq + 1}"
    needed = membership.admin_threshold
    if order.kind is OrderKind.ROLLBACK and order.now:
        needed = max(needed, membership.now_threshold)
    try:
        count = len(order_format.signers(order, membership.admins))
    except Refused as error:
        return error.message
    if count < needed:
        return f"the order is signed by {count} of the site's admins and needs {needed}"
    return _sense(state, membership, order)


def _sense(state: State, membership: Membership, order: Order) -> str:
    known = {member.index for member in membership.members}
    plan = state.plan
    match order.kind:
        case OrderKind.CANCEL:
            if order.target not in {state.pending, plan.order if plan else NOTHING} - {NOTHING}:
                return "the order to cancel is not open"
        case OrderKind.PAUSE:
            if order.target != NOTHING and order.target not in {state.pending, plan.order if plan else NOTHING}:
                return "the order to pause is not open"
            if order.target in state.paused:
                return "it is paused already"
        case OrderKind.RESUME:
            halted = plan is not None and bool(plan.halted) and order.target == plan.order
            if not halted and order.target not in state.paused:
                return "it is neither paused nor halted"
            if halted and plan is not None and order.target not in state.paused and order.halt_at <= troubles(state, plan):
                return f"the plan is halted with {troubles(state, plan)} troubles: resume it with a higher halt_at"
        case OrderKind.EVICT:
            if not order.nodes <= known or order.nodes <= state.evicted:
                return "the node is no member, or evicted already"
        case OrderKind.LOST:
            for node in order.nodes:
                lease = state.leases.get(node)
                if lease is None or lease.lost:
                    return f"node {node} holds no lease: a node without one is evicted, or replaced by a new membership"
        case OrderKind.ROLLBACK:
            if not order.nodes <= known:
                return "a node of the order is no member"
        case OrderKind.UPDATE:
            if plan is not None and plan.order == order.id:
                return "the order has its plan already"
    return ""


def _order(state: State, membership: Membership, digest: bytes, library: Library, *, lost: bool) -> Judgement:
    order = library.order(digest)
    if order is None:
        return Judgement("the order is not here yet", ((Thing.ORDER, digest),))
    if (order.kind is OrderKind.LOST) is not lost:
        return Judgement("the entry is not of the order's kind")
    return Judgement(check_order(state, membership, order))


def _plan(state: State, membership: Membership, entry: PlanEntry, library: Library) -> Judgement:
    if state.plan is not None:
        return Judgement("another plan is open")
    if entry.order == NOTHING or entry.order != state.pending:
        return Judgement("the order is not the pending one")
    order = library.order(entry.order)
    if order is None:
        return Judgement("the order is not here yet", ((Thing.ORDER, entry.order),))
    members = {member.index for member in membership.members} - state.evicted
    if not entry.approvers <= members:
        return Judgement("an approver is no member")
    if len(entry.approvers) < wanted_approvals(membership, order):
        return Judgement(f"{len(entry.approvers)} approvals are too few")
    return _have(facts_of(state, entry), library)


def _have(digests: Iterable[bytes], library: Library) -> Judgement:
    missing = tuple((Thing.FACT, digest) for digest in digests if library.fact(digest) is None)
    return Judgement("a fact is not here yet", missing) if missing else VALID


def grant_fault(state: State, membership: Membership, order: Order, nodes: Iterable[int]) -> str:
    """Empty where these nodes may get a lease together now (requests apart), else why not."""
    plan = state.plan
    if plan is None or plan.order != order.id:
        return "the plan is not open"
    if plan.halted:
        return f"the plan is halted: {plan.halted}"
    if state.is_paused(plan.order):
        return "the plan is paused"
    asked = list(nodes)
    known = {member.index for member in membership.members}
    for node in asked:
        standing = plan.nodes.get(node)
        if standing is None or standing.ending is not None or node in state.evicted or node not in known:
            return f"node {node} has no place in the plan any more"
        if node in state.leases:
            return f"node {node} holds a lease"
    if not plan.wide and len(asked) + sum(lease.plan == plan.order for lease in state.leases.values()) > 1:
        return f"the first {canaries(membership)} nodes go one after another"
    return excess(membership, set(state.leases) | set(asked), order.width)


def _grant(state: State, membership: Membership, entry: GrantEntry, library: Library) -> Judgement:
    order = library.order(entry.plan)
    if order is None:
        return Judgement("the order is not here yet", ((Thing.ORDER, entry.plan),))
    why = grant_fault(state, membership, order, (node for node, _ in entry.grants))
    if why or state.plan is None:
        return Judgement(why)
    for node, attempt in entry.grants:
        if attempt != state.plan.nodes[node].grants + 1:
            return Judgement(f"attempt {attempt} of node {node} is not its next one")
    return _have(facts_of(state, entry), library)


def release_fault(state: State, release: Release, fact: Frame) -> str:
    """Empty where this fact ends this lease, else why not."""
    lease = state.leases.get(release.node)
    if lease is None or lease.height != release.lease:
        return f"node {release.node} does not hold lease {release.lease}"
    message = fact.message
    if not isinstance(message, Outcome) or fact.source != release.node or message.lease != release.lease:
        return "the fact is not the holder's word for this lease"
    if ENDINGS.get(fact.type) is not release.ending or fact.epoch < lease.epoch:
        return "the fact says something else"
    return ""


def _releases(state: State, releases: tuple[Release, ...], library: Library, *, lost: bool) -> Judgement:
    missing: list[tuple[Thing, bytes]] = []
    for release in releases:
        lease = state.leases.get(release.node)
        if lease is None or lease.height != release.lease or lease.lost is not lost:
            return Judgement(f"node {release.node} does not hold lease {release.lease} like that")
        fact = library.fact(release.fact)
        if fact is None:
            missing.append((Thing.FACT, release.fact))
        elif why := release_fault(state, release, fact):
            return Judgement(why)
    return Judgement("a fact is not here yet", tuple(missing)) if missing else VALID


def _halt(state: State, membership: Membership, entry: HaltEntry, library: Library) -> Judgement:
    lease = next((lease for lease in state.leases.values() if lease.height == entry.lease and lease.plan == entry.plan), None)
    if state.plan is None or state.plan.order != entry.plan or lease is None or lease.overdue:
        return Judgement("there is no such lease to call overdue")
    if not entry.voters <= set(membership.voters):
        return Judgement("one of those who call it overdue is no voter")
    if len(entry.voters) <= membership.faults:
        return Judgement(f"{len(entry.voters)} voters are too few to call a lease overdue")
    return _have(facts_of(state, entry), library)


def _reconfig(state: State, membership: Membership, entry: ReconfigEntry, library: Library) -> Judgement:
    fresh = library.membership(entry.membership)
    if fresh is None:
        return Judgement("the membership is not here yet", ((Thing.MEMBERSHIP, entry.membership),))
    return Judgement(check_reconfig(state, membership, fresh))


def check_reconfig(state: State, membership: Membership, fresh: Membership) -> str:
    """Empty where the membership may take over from this one on this state, else why not."""
    if fresh.genesis != state.genesis:
        return "the membership is of another site"
    try:
        membership_format.follows(membership, fresh)
    except Refused as error:
        return error.message
    remaining = {member.index for member in fresh.members}
    return excess(fresh, set(state.leases) & remaining)


def apply(state: State, membership: Membership, entry: Entry, library: Library) -> State:
    """The state after a valid entry; `height` is one more, `last` is left to the caller. Raises KeyError where an order is not there."""
    height = state.height + 1
    state = replace(state, height=height)
    match entry:
        case OrderEntry() | LostEntry():
            order = library.order(entry.order)
            if order is None:
                raise KeyError(entry.order)
            return _settled(_ordered(replace(state, admin_seq=order.admin_seq), membership, order), membership, library)
        case PlanEntry():
            members = (member.index for member in membership.members if member.index not in state.evicted)
            order = library.order(entry.order)
            if order is None:
                raise KeyError(entry.order)
            plan = Plan(entry.order, {node: Standing() for node in members}, order.halt_at)
            return replace(state, plan=plan, pending=NOTHING, now=NOTHING)
        case GrantEntry():
            return _granted(state, entry)
        case ReleaseEntry() | ReturnEntry():
            return _settled(_released(state, membership, entry.releases), membership, library)
        case HaltEntry():
            leases = {node: replace(lease, overdue=lease.overdue or lease.height == entry.lease) for node, lease in state.leases.items()}
            return _settled(replace(state, leases=leases), membership, library)
        case ReconfigEntry():
            fresh = library.membership(entry.membership)
            if fresh is None:
                raise KeyError(entry.membership)
            return _settled(_reconfigured(state, fresh), fresh, library)


def _granted(state: State, entry: GrantEntry) -> State:
    plan = state.plan
    if plan is None:
        raise KeyError(entry.plan)
    nodes, leases = dict(plan.nodes), dict(state.leases)
    for node, attempt in entry.grants:
        nodes[node] = replace(nodes[node], grants=attempt)
        leases[node] = Lease(node, state.height, entry.plan, state.epoch, plan.back)
    return replace(state, plan=replace(plan, nodes=nodes), leases=leases)


def _released(state: State, membership: Membership, releases: tuple[Release, ...]) -> State:
    leases, plan = dict(state.leases), state.plan
    for release in releases:
        lease = leases.pop(release.node)
        if plan is None or plan.order != lease.plan:
            continue
        plan = _ended(plan, lease, release.ending)
    if plan is not None and not plan.wide and plan.completed >= canaries(membership):
        plan = replace(plan, wide=True)
    return replace(state, leases=leases, plan=plan)


def _ended(plan: Plan, lease: Lease, ending: Ending) -> Plan:
    nodes = dict(plan.nodes)
    standing = nodes.get(lease.node)
    if lease.back is not plan.back:
        # The plan has turned round while this node was on its way: it goes back too if it got through.
        if ending is Ending.COMPLETE:
            # Its attempts go on counting: a request of the way forth must not open the way back.
            nodes[lease.node] = Standing(grants=standing.grants if standing is not None else 0)
    elif standing is not None:
        deferrals = standing.deferrals + (ending is Ending.DEFER)
        final = None if ending is Ending.DEFER and deferrals < MAX_DEFERRALS else ending
        nodes[lease.node] = replace(standing, deferrals=deferrals, ending=final)
    return replace(plan, nodes=nodes)


def _ordered(state: State, membership: Membership, order: Order) -> State:
    plan = state.plan
    match order.kind:
        case OrderKind.UPDATE:
            # NOTHING in `paused` means the whole site, and is kept.
            return replace(state, pending=order.id, paused=state.paused - ({state.pending} - {NOTHING}))
        case OrderKind.CANCEL:
            if state.pending == order.target:
                return replace(state, pending=NOTHING, paused=state.paused - {order.target})
            return _close(state, Close.CANCELLED)
        case OrderKind.PAUSE:
            return replace(state, paused=state.paused | {order.target})
        case OrderKind.RESUME:
            state = replace(state, paused=state.paused - {order.target})
            if plan is None or not plan.halted or plan.order != order.target or order.halt_at <= troubles(state, plan):
                return state
            return replace(state, plan=replace(plan, halted="", halt_at=order.halt_at, excused=troubles(state, plan)))
        case OrderKind.EVICT:
            return replace(state, evicted=state.evicted | order.nodes)
        case OrderKind.LOST:
            leases = {node: replace(lease, lost=lease.lost or node in order.nodes) for node, lease in state.leases.items()}
            return replace(state, leases=leases)
        case OrderKind.ROLLBACK:
            state = replace(_close(state, Close.REPLACED), pending=NOTHING)
            if order.now:
                return replace(state, now=order.id)
            members = {member.index for member in membership.members} - state.evicted
            nodes = {node: Standing() for node in sorted(members & order.nodes if order.nodes else members)}
            return replace(state, plan=Plan(order.id, nodes, order.halt_at, back=True, wide=True), now=NOTHING)


def _close(state: State, how: Close) -> State:
    plan = state.plan
    if plan is None:
        return state
    reverted = sum(standing.ending is Ending.ROLLED_BACK for standing in plan.nodes.values())
    closed = Closed(plan.order, how, plan.completed, reverted, state.height)
    return replace(state, plan=None, paused=state.paused - {plan.order}, closed=(*state.closed, closed)[-_CLOSED_KEPT:])


def _reconfigured(state: State, fresh: Membership) -> State:
    remaining = {member.index for member in fresh.members}
    leases = {node: lease for node, lease in state.leases.items() if node in remaining}
    plan = state.plan
    if plan is not None:
        plan = replace(plan, nodes={node: standing for node, standing in plan.nodes.items() if node in remaining})
    return replace(
        state,
        epoch=fresh.epoch,
        membership=fresh.digest,
        leases=leases,
        plan=plan,
        pending=NOTHING,
        # What is void is paused no more: else the state would grow with every epoch.
        paused=state.paused & {NOTHING, plan.order if plan is not None else NOTHING},
        now=NOTHING,
        evicted=frozenset(),
    )


def _settled(state: State, membership: Membership, library: Library) -> State:
    """What follows by itself: too many troubles halt a plan, or turn it round where its order says so; it is closed when all is over."""
    plan = state.plan
    if plan is None:
        return state
    order = library.order(plan.order)
    if order is None:
        raise KeyError(plan.order)
    if not plan.halted:
        count = troubles(state, plan)
        if plan.wide and count >= plan.halt_at:
            plan = replace(plan, halted=f"{count} of its nodes reverted, are lost or overdue")
        elif not plan.wide and count > plan.excused:
            plan = replace(plan, halted="one of the first nodes reverted, is lost or overdue")
        else:
            # What has passed (who was lost has returned) does not excuse what comes later.
            plan = replace(plan, excused=min(plan.excused, count))
        if plan.halted and not plan.back and order.on_halt is OnHalt.ROLLBACK:
            nodes = _turned(state, plan)
            plan = replace(plan, nodes=nodes, back=True, halted="", excused=0, halt_at=order.halt_at, wide=True)
    state = replace(state, plan=plan)
    holding = any(lease.plan == plan.order and not lease.lost for lease in state.leases.values())
    over = all(standing.ending is not None or node in state.evicted or _lost(state, node) for node, standing in plan.nodes.items())
    return _close(state, Close.DONE) if over and not holding else state


def _turned(state: State, plan: Plan) -> dict[int, Standing]:
    """Who goes back: who is through, and who still holds a lease as soon as it is (until then it is out)."""
    nodes: dict[int, Standing] = {}
    for node, standing in plan.nodes.items():
        lease = state.leases.get(node)
        if standing.ending is Ending.COMPLETE:
            nodes[node] = Standing(grants=standing.grants)
        elif lease is not None and lease.plan == plan.order:
            nodes[node] = Standing(grants=standing.grants, ending=Ending.DEFER)
    return nodes


def _lost(state: State, node: int) -> bool:
    lease = state.leases.get(node)
    return lease is not None and lease.lost
