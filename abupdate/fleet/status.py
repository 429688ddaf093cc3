"""The document of `fleet status`, from a node's view; and why nothing moves, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable

from abupdate.fleet import budget
from abupdate.fleet.view import HeldLease, PendingOrder, PlanView, Seen, View
from abupdate.formats.membership import Membership
from abupdate.formats.order import OrderKind

# Silent for so many heartbeats: not counted as up (the pre-flight's own rule).
FRESH_PERIODS = 3


def document(view: View) -> dict[str, object]:
    """The whole status as JSON values; names stand for members, ids are in hex, ages in seconds."""
    membership = view.membership
    held = [_lease(view, lease) for lease in view.leases if not lease.lost]
    lost = [_lease(view, lease) for lease in view.leases if lease.lost]
    return {
        "site": membership.site,
        "genesis": membership.genesis.hex(),
        "epoch": membership.epoch,
        "height": view.height,
        "round": view.round,
        "node": name(membership, view.me),
        "agreement": agreement(membership),
        "members": [_member(view, index) for index in sorted(membership.by_index)],
        "leases": {"held": held, "lost": lost},
        "plan": _plan(view, view.plan) if view.plan else None,
        "orders": [_order(membership, order) for order in view.orders],
        "closed": [
            {"order": one.order.hex(), "how": one.how.value, "completed": one.completed, "reverted": one.reverted, "height": one.height}
            for one in view.closed
        ],
        "paused": view.paused,
        "stopped": view.stopped,
        "last_admin_seq": view.last_seq,
        "newest_admin_seq": max(view.last_seq, view.newest_seq),
        "adrift": view.adrift,
        "blocked": blocked(view),
        "alarms": list(view.alarms),
    }


def agreement(membership: Membership) -> dict[str, object]:
    """The site's numbers, and what they are worth."""
    if membership.faults:
        worth = f"{membership.faults} malicious node{'s' if membership.faults > 1 else ''} cannot break the agreement"
    else:
        worth = "no Byzantine tolerance: every node is trusted"
    return {
        "nodes": len(membership.members),
        "voters": len(membership.voters),
        "faults": membership.faults,
        "quorum": membership.quorum,
        "live_budget": membership.live_budget,
        "voter_budget": membership.voter_budget,
        "stall_ok": membership.stall_ok,
        "min_up": membership.min_up,
        "groups": dict(sorted(membership.groups.items())),
        "approvals": membership.approvals,
        "heartbeat_s": membership.heartbeat_s,
        "worth": worth,
    }


def name(membership: Membership, index: int) -> str:
    """A member's name; its number where the membership does not know it (any more)."""
    member = membership.by_index.get(index)
    return member.name if member else f"node {index}"


def names(membership: Membership, indices: Iterable[int]) -> list[str]:
    """The members' names in the order of their numbers."""
    return [name(membership, index) for index in sorted(indices)]


def is_up(view: View, index: int) -> bool:
    """Whether a member was heard within the last heartbeats (the node hears itself)."""
    seen = view.members.get(index)
    limit_s = FRESH_PERIODS * view.membership.heartbeat_s
    return index == view.me or (seen is not None and seen.age_s is not None and seen.age_s <= limit_s)


def phase(view: View, index: int) -> str:
    """How far a member is, in one word: what is decided goes before its own word."""
    lease = next((lease for lease in view.leases if lease.node == index), None)
    seen = view.members.get(index, Seen(None))
    if lease is not None:
        return "lost" if lease.lost else seen.stage.name.lower() if is_up(view, index) else "down"
    plan = view.plan
    if plan is not None:
        for word, some in (("evicted", plan.barred), ("reverted", plan.reverted), ("done", plan.done)):
            if index in some:
                return word
    if not is_up(view, index):
        return "silent" if seen.age_s is not None else "never heard"
    return seen.stage.name.lower()


def _member(view: View, index: int) -> dict[str, object]:
    membership = view.membership
    member = membership.by_index[index]
    seen = view.members.get(index, Seen(None))
    lease = next((lease for lease in view.leases if lease.node == index), None)
    return {
        "index": index,
        "name": member.name,
        "me": index == view.me,
        "voter": member.voter,
        "groups": sorted(member.groups),
        "up": is_up(view, index),
        "age_s": seen.age_s,
        "address": seen.address,
        "healthy": seen.healthy,
        "trial": seen.trial,
        "stopped": seen.stopped,
        "height": seen.height,
        "phase": phase(view, index),
        "reason": seen.reason,
        "bundle": seen.bundle.hex(),
        "lease": _lease(view, lease) if lease else None,
        "evicted": index in view.evicted,
        "voted_twice": index in view.liars,
        "doubted_by": names(membership, (other for other, its in view.members.items() if index in its.doubts)),
    }


def _lease(view: View, lease: HeldLease) -> dict[str, object]:
    return {
        "lease": lease.lease,
        "node": name(view.membership, lease.node),
        "plan": lease.plan.hex(),
        "age_s": lease.age_s,
        "overdue_by": names(view.membership, lease.overdue),
    }


def _plan(view: View, plan: PlanView) -> dict[str, object]:
    order = plan.order
    parts = {"done": plan.done, "reverted": plan.reverted, "deferred": plan.deferred, "evicted": plan.barred, "asking": plan.requests}
    return {
        "order": order.id.hex(),
        "kind": order.kind.name.lower(),
        "version": order.version,
        "bundle": order.bundle.hex(),
        "width": order.width,
        "wave": plan.wave,
        "halt_at": plan.halt_at,
        "troubles": plan.troubles,
        "halted": plan.halted,
        "on_halt": order.on_halt.name.lower(),
        "rolling_back": plan.back,
        "overdue_s": order.overdue_s,
        "nodes": names(view.membership, plan.nodes),
        **{word: names(view.membership, some) for word, some in parts.items()},
    }


def _order(membership: Membership, pending: PendingOrder) -> dict[str, object]:
    order = pending.order
    return {
        "order": order.id.hex(),
        "kind": order.kind.name.lower(),
        "admin_seq": order.admin_seq,
        "version": order.version,
        "bundle": order.bundle.hex(),
        "rollback_to": order.rollback_to.hex() if any(order.rollback_to) else None,
        "on_halt": order.on_halt.name.lower(),
        "committed": pending.committed,
        "needed": pending.needed,
        "approved_by": names(membership, pending.approvals),
        "rejected": {name(membership, index): pending.rejects[index] for index in sorted(pending.rejects)},
        "waits_here_for": pending.here,
    }


def blocked(view: View) -> str:
    """Why nothing moves, in one sentence without a full stop; empty where something does or there is nothing to do."""
    waiting = f"not decided yet: {_listed(list(view.waiting))}" if view.waiting else ""
    if not view.plan and not view.orders:
        return waiting and (_no_quorum(view) or _own_fault(view) or waiting)
    return _no_quorum(view) or _stopped_by_people(view) or _no_plan(view) or _no_slot(view) or _own_fault(view) or waiting


def _no_quorum(view: View) -> str:
    membership = view.membership
    voting = {index for index in membership.voters if is_up(view, index) and not _is_stopped(view, index)}
    if len(voting) >= membership.quorum:
        return ""
    missing = _listed(names(membership, set(membership.voters) - voting))
    return f"{membership.quorum} voters decide and {len(voting)} are heard; missing: {missing}"


def _is_stopped(view: View, index: int) -> bool:
    if index == view.me:
        return bool(view.stopped)
    seen = view.members.get(index)
    return seen is not None and seen.stopped


def _stopped_by_people(view: View) -> str:
    if view.paused:
        return f"paused by an admin: {view.paused}"
    plan = view.plan
    if plan is None or not plan.halted:
        return ""
    short = plan.order.id.hex()[:12]
    return f"the plan is halted: {plan.halted} (`fleet resume {short} --halt-at N` or `fleet cancel {short}`)"


def _no_plan(view: View) -> str:
    if view.plan is not None:
        return ""
    pending = next((one for one in view.orders if one.order.kind is OrderKind.UPDATE), None)
    if pending is None:
        return ""
    membership = view.membership
    have, need = len(pending.approvals), pending.needed
    if have >= need:
        return ""
    short = pending.order.id.hex()[:12]
    open_ones = set(membership.by_index) - pending.approvals - set(pending.rejects)
    refusals = _listed([f"{name(membership, index)} ({pending.rejects[index]})" for index in sorted(pending.rejects)])
    text = f"order {short} has {have} of {need} approvals"
    if have + len(open_ones) < need:
        return f"{text} and cannot get more: rejected by {refusals}"
    return text + (f"; rejected by {refusals}" if refusals else "") + f"; not yet by {_listed(names(membership, open_ones))}"


def _no_slot(view: View) -> str:
    """As the validity of a GRANT and the pre-flight of each node that is still to go would say it."""
    plan, membership = view.plan, view.membership
    if plan is None:
        return ""
    down = {lease.node for lease in view.leases}
    left = plan.nodes - plan.done - plan.reverted - plan.deferred - plan.barred - down
    if not left:
        return ""
    if not membership.voter_budget and left <= set(membership.voters):
        return (
            f"no voter may ever go down: with {len(membership.voters)} voters, f = {membership.faults} and Q = {membership.quorum} "
            "none can be spared (a membership with `stall_ok`, fewer faults or more voters)"
        )
    if plan.wave == 0 and any(lease.plan == plan.order.id for lease in view.leases):
        return _slots_taken(view, "the first nodes go one after another")
    excesses = [budget.excess(membership, down | {node}, plan.order.width) for node in sorted(left)]
    if all(excesses):
        return _slots_taken(view, excesses[0])
    return _no_room(view, left, down) or _nobody_asks(view, plan, left)


def _slots_taken(view: View, excess: str) -> str:
    held = [f"{name(view.membership, one.node)} (lease {one.lease}, for {one.age_s:.0f} s)" for one in view.leases if not one.lost]
    if held:
        return f"waits for {_listed(held)}"
    lost = names(view.membership, (one.node for one in view.leases))
    return f"lost and never returned: {_listed(lost)}; {excess} (until it returns or the next membership replaces it)"


def _no_room(view: View, left: frozenset[int], down: set[int]) -> str:
    membership = view.membership
    up = {index for index in membership.by_index if is_up(view, index) and index not in down}
    lacks = [budget.lacking(membership, up - {node}) for node in sorted(left & up)]
    if not lacks or not all(lacks):
        return ""
    silent = _listed(names(membership, set(membership.by_index) - up - down)) or "nobody"
    waived = "" if membership.stall_ok else "; a membership with `stall_ok` waives the voters' quorum"
    return f"nobody may go down: {lacks[0]} (silent: {silent}{waived})"


def _nobody_asks(view: View, plan: PlanView, left: frozenset[int]) -> str:
    if plan.requests & left:
        return ""
    waiting = _listed([f"{name(view.membership, index)} ({phase(view, index)})" for index in sorted(left)])
    return f"nobody asks for a slot; not yet ready: {waiting}"


def _own_fault(view: View) -> str:
    """What holds back this node alone; others may move on."""
    if view.stopped:
        return f"this node does not vote: {view.stopped}"
    if view.adrift:
        return "this node waits for the site's state from the others"
    if view.me in view.membership.voters and view.answered < view.membership.quorum:
        return f"this node does not vote yet: since its start {view.answered} of {view.membership.quorum} voters have answered it"
    if not view.window_open:
        return "this node's maintenance window is closed, and it lets no update begin"
    if view.undecided_s is not None and view.undecided_s > FRESH_PERIODS * view.membership.heartbeat_s:
        return f"the voters have not agreed for {view.undecided_s:.0f} s on what comes next (round {view.round})"
    return ""


def _listed(some: list[str]) -> str:
    return ", ".join(some)
