"""The site's log seen from outside: what every decided entry does by the text of fleet.md, written apart from the core's own ledger.

It is given each entry once, in order, and every order and membership that was ever made. It raises `Broken` where an entry breaks a rule
that can be judged from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

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
from abupdate.formats.messages import NOTHING
from abupdate.formats.order import OnHalt, Order, OrderKind

DEFERRALS = 3


class Broken(Exception):
    """A rule of the log is broken: which invariant, and how."""


@dataclass(frozen=True, slots=True)
class Held:
    """A lease."""

    lease: int
    plan: bytes
    back: bool = False
    lost: bool = False
    overdue: bool = False


@dataclass(slots=True)
class Open:
    """The open plan. grants, deferrals: by node. over: nodes that get no further lease. done: those that completed."""

    order: Order
    nodes: set[int]
    halt_at: int
    back: bool
    canaries: int
    grants: dict[int, int] = field(default_factory=dict)
    deferrals: dict[int, int] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    reverted: set[int] = field(default_factory=set)
    halted: bool = False
    excused: int = 0
    wide: bool = False


def over_budget(membership: Membership, down: set[int]) -> str:
    """Which of the site's budgets so many nodes would break; empty: none. Counted as fleet.md writes it."""
    n = len(membership.voters)
    quorum = (n + membership.faults) // 2 + 1
    spare = n - membership.faults - quorum
    allowed = max(spare, 1) if membership.stall_ok else spare
    indices = {member.index for member in membership.members}
    down = down & indices
    if len(down & set(membership.voters)) > allowed:
        return f"voters {sorted(down)} down, V = {allowed}"
    if len(down) > len(indices) - membership.min_up:
        return f"nodes {sorted(down)} down, min_up = {membership.min_up} of {len(indices)}"
    for group, up in membership.groups.items():
        within = {member.index for member in membership.members if group in member.groups}
        if len(down & within) > len(within) - up:
            return f"nodes {sorted(down & within)} of group {group} down, {up} of {len(within)} must stay up"
    return ""


@dataclass
class Oracle:
    """What is held by whom after the last decided height.

    orders, memberships: all that were ever made, by id and digest. genuine: ids of orders that enough admins really signed.
    spoke(node, digest): whether this node, if it is honest, really gave the word that the digest names.
    asked(node, plan, attempt), approved(node, order): likewise. honest: nodes whose words count.
    """

    membership: Membership
    orders: Mapping[bytes, Order]
    memberships: Mapping[bytes, Membership]
    genuine: Callable[[Order], bool]
    spoke: Callable[[Release, Held], str]
    asked: Callable[[int, bytes, int], bool]
    approved: Callable[[int, bytes], bool]
    height: int = 0
    admin_seq: int = 0
    held: dict[int, Held] = field(default_factory=dict)
    pending: bytes = NOTHING
    plan: Open | None = None
    planned: dict[bytes, frozenset[int]] = field(default_factory=dict)
    paused: set[bytes] = field(default_factory=set)
    evicted: set[int] = field(default_factory=set)
    now: bytes = NOTHING
    ever_now: set[bytes] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def down(self) -> set[int]:
        """held and lost."""
        return set(self.held)

    def take(self, entry: Entry) -> None:
        """The next height's entry. Raises Broken."""
        self.height += 1
        self._note(type(entry).__name__.removesuffix("Entry").lower())
        if len(self.membership.voters) < len(self.membership.members):
            self._note("with learners")
        match entry:
            case OrderEntry() | LostEntry():
                self._order(entry)
            case PlanEntry():
                self._plan(entry)
            case GrantEntry():
                self._grant(entry)
            case ReleaseEntry() | ReturnEntry():
                self._release(entry)
            case HaltEntry():
                self._overdue(entry)
            case ReconfigEntry():
                self._reconfig(entry)
        if not isinstance(entry, ReconfigEntry) and (why := over_budget(self.membership, self.down)):
            raise Broken(f"3: {why}")
        self._settle()

    def _note(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def _order(self, entry: OrderEntry | LostEntry) -> None:
        order = self.orders.get(entry.order)
        if order is None or not self.genuine(order):
            raise Broken("6: an order that no quorum of admins signed is committed")
        if order.epoch != self.membership.epoch:
            raise Broken("8: an order of another epoch is committed")
        if order.admin_seq <= self.admin_seq:
            raise Broken(f"8: an order numbered {order.admin_seq} is committed after {self.admin_seq}")
        if (order.kind is OrderKind.LOST) is not isinstance(entry, LostEntry):
            raise Broken("6: an order is committed as another kind")
        self.admin_seq = order.admin_seq
        self._note(f"{order.kind.name}{' now' if order.now else ''}")
        plan = self.plan
        match order.kind:
            case OrderKind.UPDATE:
                self.pending = order.id
            case OrderKind.CANCEL:
                if order.target == self.pending:
                    self.pending = NOTHING
                elif plan is not None and plan.order.id == order.target:
                    self.plan = None
                self.paused.discard(order.target)
            case OrderKind.PAUSE:
                self.paused.add(order.target)
            case OrderKind.RESUME:
                self.paused.discard(order.target)
                if plan is not None and plan.halted and plan.order.id == order.target and order.halt_at > self.troubles(plan):
                    plan.halted, plan.halt_at, plan.excused = False, order.halt_at, self.troubles(plan)
            case OrderKind.EVICT:
                self.evicted |= order.nodes
            case OrderKind.LOST:
                for node in order.nodes & self.held.keys():
                    self.held[node] = replace(self.held[node], lost=True)
            case OrderKind.ROLLBACK:
                self.pending = NOTHING
                self.plan = None
                if order.now:
                    self.now = order.id
                    self.ever_now.add(order.id)
                else:
                    nodes = {member.index for member in self.membership.members} - self.evicted
                    nodes = nodes & order.nodes if order.nodes else nodes
                    self.planned[order.id] = frozenset()
                    self.plan = Open(order, nodes, order.halt_at, back=True, canaries=0, wide=True)

    def _plan(self, entry: PlanEntry) -> None:
        order = self.orders.get(entry.order)
        if order is None or entry.order != self.pending:
            raise Broken("6: a plan of an order that is not the pending one")
        if self.plan is not None:
            raise Broken("6: two plans are open")
        members = {member.index for member in self.membership.members}
        needed = max(self.membership.approvals, -(-order.share * len(members) // 100))
        good = {node for node in entry.approvers if node in members and node not in self.evicted and self.approved(node, entry.order)}
        if len(good) < needed or good != entry.approvers:
            raise Broken(f"6: a plan with {sorted(entry.approvers)} of which {sorted(good)} approved, {needed} are needed")
        self.pending = NOTHING
        self.planned[order.id] = frozenset(good)
        self.plan = Open(order, members - self.evicted, order.halt_at, back=False, canaries=self.membership.faults + 1)

    def _grant(self, entry: GrantEntry) -> None:
        plan = self.plan
        if plan is None or plan.order.id != entry.plan:
            raise Broken("4: a grant of a plan that is not open")
        if plan.halted:
            raise Broken("4: a grant of a halted plan")
        if self.paused & {entry.plan, NOTHING}:
            raise Broken("9: a grant of a paused plan")
        for node, attempt in entry.grants:
            if node in self.held:
                raise Broken(f"5: node {node} gets a lease while it holds one")
            if node not in plan.nodes or node in plan.over or node in self.evicted:
                raise Broken(f"4: node {node} has no attempt left in this plan")
            if attempt != plan.grants.get(node, 0) + 1 or not self.asked(node, entry.plan, attempt):
                raise Broken(f"4: node {node} never asked for attempt {attempt}")
        mine = {node for node, held in self.held.items() if held.plan == entry.plan}
        if not plan.wide and len(mine) + len(entry.grants) > 1:
            raise Broken("4: wave 0 goes one after another")
        if len(self.held) + len(entry.grants) > plan.order.width:
            raise Broken(f"3: {len(self.held) + len(entry.grants)} nodes down, the plan's width is {plan.order.width}")
        if len(entry.grants) > 1:
            self._note("several leases at once")
        for node, attempt in entry.grants:
            if node not in self.membership.voters:
                self._note("a lease of a learner")
            plan.grants[node] = attempt
            self.held[node] = Held(self.height, entry.plan, plan.back)

    def _release(self, entry: ReleaseEntry | ReturnEntry) -> None:
        for release in entry.releases:
            held = self.held.get(release.node)
            if held is None or held.lease != release.lease or held.lost is not isinstance(entry, ReturnEntry):
                raise Broken(f"5: a release of lease {release.lease}, which node {release.node} does not hold so")
            if why := self.spoke(release, held):
                raise Broken(f"5: {why}")
            del self.held[release.node]
            self._note(f"release {release.ending.name}")
            plan = self.plan
            if plan is not None and plan.order.id == held.plan:
                self._ended(plan, release, held)

    def _ended(self, plan: Open, release: Release, held: Held) -> None:
        node, ending = release.node, release.ending
        if held.back is not plan.back:
            if ending is Ending.COMPLETE:
                plan.nodes.add(node)
                plan.over.discard(node)
            return
        if node not in plan.nodes:
            return
        if ending is Ending.DEFER:
            plan.deferrals[node] = plan.deferrals.get(node, 0) + 1
            if plan.deferrals[node] >= DEFERRALS:
                plan.over.add(node)
            return
        plan.over.add(node)
        (plan.done if ending is Ending.COMPLETE else plan.reverted).add(node)
        if len(plan.done) >= plan.canaries:
            plan.wide = True

    def troubles(self, plan: Open) -> int:
        """reverted + lost + overdue."""
        mine = (held for held in self.held.values() if held.plan == plan.order.id and held.back is plan.back)
        return len(plan.reverted) + sum(held.lost or held.overdue for held in mine)

    def _overdue(self, entry: HaltEntry) -> None:
        if len(entry.voters & set(self.membership.voters)) < self.membership.faults + 1:
            raise Broken("4: a lease is overdue by the word of too few")
        for node, held in self.held.items():
            if held.lease == entry.lease and held.plan == entry.plan:
                self.held[node] = replace(held, overdue=True)

    def _reconfig(self, entry: ReconfigEntry) -> None:
        fresh = self.memberships.get(entry.membership)
        if fresh is None or fresh.epoch != self.membership.epoch + 1 or fresh.genesis != self.membership.genesis:
            raise Broken("8: a membership that does not follow is committed")
        remaining = {member.index for member in fresh.members}
        if self.held:
            self._note("an epoch begins while leases are held")
        self.held = {node: held for node, held in self.held.items() if node in remaining}
        self.membership = fresh
        self.pending, self.now = NOTHING, NOTHING
        self.evicted.clear()
        if self.plan is not None:
            self.plan.nodes &= remaining
        if why := over_budget(fresh, self.down):
            raise Broken(f"3: {why} after a reconfiguration")

    def _settle(self) -> None:
        """A plan that has to stop stops, one that is over closes."""
        plan = self.plan
        if plan is None:
            return
        if not plan.halted and self.troubles(plan) > plan.excused and (self.troubles(plan) >= plan.halt_at or not plan.wide):
            plan.halted = True
            self._note("a plan halts")
            if plan.order.on_halt is OnHalt.ROLLBACK and not plan.back:
                self._note("a plan turns back")
                turned = Open(plan.order, set(plan.done), plan.order.halt_at, back=True, canaries=0, wide=True)
                turned.grants = dict(plan.grants)
                self.plan = plan = turned
        if not plan.halted:
            plan.excused = min(plan.excused, self.troubles(plan))
        holding = any(held.plan == plan.order.id and not held.lost for held in self.held.values())
        lost = {node for node, held in self.held.items() if held.lost}
        if not holding and plan.nodes <= plan.over | self.evicted | lost:
            self.plan = None
