"""What this node would propose next: the entries that are due by the facts at hand, the most urgent first. Pure.

How an honest proposer orders nodes (by hash of node and plan) is its own affair; validity (ledger.py) does not ask for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from abupdate.fleet import ledger
from abupdate.fleet.ledger import ENDINGS
from abupdate.fleet.site import Site
from abupdate.formats.entries import (
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
from abupdate.formats.messages import NOTHING, Approve, Outcome, Overdue, SlotRequest, Type
from abupdate.formats.order import Order, OrderKind

_RELEASES = 40


def candidate_entries(site: Site) -> Iterator[Entry]:
    """Entries that may be valid now; whoever proposes one judges it first."""
    state = site.state
    for membership in site.archive.memberships():
        if membership.epoch == state.epoch + 1 and membership.genesis == state.genesis:
            yield ReconfigEntry(membership.digest)
    for order in sorted(site.archive.orders(), key=lambda order: (order.admin_seq, order.id)):
        if order.admin_seq > state.admin_seq and order.epoch == state.epoch:
            yield LostEntry(order.id) if order.kind is OrderKind.LOST else OrderEntry(order.id)
    yield from _endings(site)
    yield from _overdue(site)
    if state.plan is None:
        if state.pending != NOTHING:
            approvers = frozenset(fact.frame.source for fact in site.facts.of(Type.APPROVE) if _approves(fact.frame.message, state.pending))
            yield PlanEntry(state.pending, approvers - state.evicted)
        return
    if not state.plan.halted and not state.is_paused(state.plan.order):
        yield from _grants(site)


def _approves(message: object, order: bytes) -> bool:
    return isinstance(message, Approve) and message.order == order


def _endings(site: Site) -> Iterator[Entry]:
    held: list[Release] = []
    lost: list[Release] = []
    for node, lease in sorted(site.state.leases.items(), key=lambda item: item[1].height):
        for kind, ending in ENDINGS.items():
            fact = site.facts.find(kind, node, lease.height)
            if fact is not None and isinstance(fact.frame.message, Outcome):
                (lost if lease.lost else held).append(Release(lease.height, node, ending, fact.digest))
                break
    if held:
        yield ReleaseEntry(tuple(_ordered(held)))
    if lost:
        yield ReturnEntry(tuple(_ordered(lost)))


def _ordered(releases: list[Release]) -> list[Release]:
    return sorted(releases, key=lambda release: (release.lease, release.node))[:_RELEASES]


def _overdue(site: Site) -> Iterator[Entry]:
    state = site.state
    if state.plan is None:
        return
    voters = frozenset(site.membership.voters)
    for lease in state.leases.values():
        if lease.overdue or lease.plan != state.plan.order:
            continue
        saying = frozenset(
            fact.frame.source
            for fact in site.facts.of(Type.OVERDUE)
            if isinstance(fact.frame.message, Overdue) and fact.frame.message.lease == lease.height
        )
        if len(saying & voters) > site.membership.faults:
            yield HaltEntry(lease.plan, lease.height, saying & voters)


def _grants(site: Site) -> Iterator[Entry]:
    """As many nodes at once as the budgets let down, by the hash's order."""
    plan = site.state.plan
    order = site.archive.order(plan.order) if plan is not None else None
    if plan is None or order is None:
        return
    asking: list[tuple[bytes, int, int]] = []
    for fact in site.facts.of(Type.SLOT_REQ):
        message = fact.frame.message
        if isinstance(message, SlotRequest) and message.plan == plan.order:
            rank = hashlib.sha256(bytes([fact.frame.source]) + plan.order).digest()
            asking.append((rank, fact.frame.source, message.attempt))
    attempts = {node: attempt for _, node, attempt in asking}
    chosen = _fitting(site, order, [node for _, node, _ in sorted(asking)])
    if chosen:
        yield GrantEntry(plan.order, tuple((node, attempts[node]) for node in sorted(chosen)))


def room(site: Site) -> int:
    """How many nodes of the open plan could be let down now if all asked for it."""
    plan = site.state.plan
    order = site.archive.order(plan.order) if plan is not None else None
    return len(_fitting(site, order, sorted(plan.nodes))) if plan is not None and order is not None else 0


def _fitting(site: Site, order: Order, nodes: Iterable[int]) -> list[int]:
    """Of these nodes, in this order, as many as the budgets let down."""
    chosen: list[int] = []
    for node in nodes:
        if not ledger.grant_fault(site.state, site.membership, order, [*chosen, node]):
            chosen.append(node)
    return chosen
