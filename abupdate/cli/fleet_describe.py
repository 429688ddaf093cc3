"""Memberships and orders as JSON documents, and as lines for those who are to sign them."""

from __future__ import annotations

from abupdate.formats import signature
from abupdate.formats.membership import Membership
from abupdate.formats.order import Order, OrderKind


def describe(thing: Membership | Order) -> tuple[dict[str, object], list[str]]:
    """Everything that is signed."""
    return _membership(thing) if isinstance(thing, Membership) else _order(thing)


def _membership(thing: Membership) -> tuple[dict[str, object], list[str]]:
    numbers = {
        "nodes": len(thing.members),
        "voters": len(thing.voters),
        "faults": thing.faults,
        "quorum": thing.quorum,
        "voter_budget": thing.voter_budget,
        "min_up": thing.min_up,
        "groups": dict(thing.groups),
        "approvals": thing.approvals,
        "stall_ok": thing.stall_ok,
        "heartbeat_s": thing.heartbeat_s,
    }
    members = [
        {"index": one.index, "name": one.name, "key": one.key.hex(), "voter": one.voter, "groups": sorted(one.groups)}
        for one in thing.members
    ]
    keys = {name: [signature.key_id(key) for key in some] for name, some in (("roots", thing.roots), ("admins", thing.admins))}
    thresholds = {"root": thing.root_threshold, "admin": thing.admin_threshold, "now": thing.now_threshold}
    document: dict[str, object] = {"membership": thing.digest.hex(), "genesis": thing.genesis.hex(), "site": thing.site}
    document |= {"epoch": thing.epoch, **numbers, "members": members, **keys, "thresholds": thresholds}
    lines = [f"membership of {thing.site}, epoch {thing.epoch}, {thing.digest.hex()}"]
    if thing.recovery is not None:
        held = ", ".join(f"node {node} holds {lease}" for node, lease in sorted(thing.recovery.leases.items())) or "none is held"
        document["recovery"] = {
            "genesis": thing.recovery.genesis.hex(),
            "height": thing.recovery.height,
            "leases": dict(thing.recovery.leases),
        }
        lines.append(f"  a new beginning after height {thing.recovery.height} of {thing.recovery.genesis.hex()[:12]}; leases: {held}")
    for one in thing.members:
        groups = f", {', '.join(sorted(one.groups))}" if one.groups else ""
        lines.append(f"  {one.index:>3}  {one.name}: key {signature.key_id(one.key)}, {'votes' if one.voter else 'learns'}{groups}")
    worth = "no Byzantine tolerance" if not thing.faults else f"{thing.faults} may be malicious"
    lines.append(
        f"  {len(thing.voters)} voters, f = {thing.faults} ({worth}), Q = {thing.quorum}; voters down at once: {thing.voter_budget}"
    )
    if not thing.voter_budget:
        lines.append("  no voter may ever go down: set stall_ok, take fewer faults or more voters")
    lines.append(f"  always up: {thing.min_up} nodes" + "".join(f", {least} of {name}" for name, least in sorted(thing.groups.items())))
    lines.append(f"  roots: {thing.root_threshold} of {', '.join(map(str, keys['roots']))}")
    lines.append(
        f"  admins: {thing.admin_threshold} of {', '.join(map(str, keys['admins'])) or 'nobody'}; {thing.now_threshold} for a rollback now"
    )
    return document, lines


def _order(order: Order) -> tuple[dict[str, object], list[str]]:
    document: dict[str, object] = {
        "order": order.id.hex(),
        "kind": order.kind.name.lower(),
        "genesis": order.genesis.hex(),
        "epoch": order.epoch,
        "admin_seq": order.admin_seq,
    }
    lines = [f"order {order.id.hex()}", f"  {order.kind.name.lower()}, number {order.admin_seq} in epoch {order.epoch}"]
    fields = _fields(order)
    document |= fields
    lines += [f"  {name}: {_text(value)}" for name, value in fields.items() if value not in (None, "", [])]
    return document, lines


def _fields(order: Order) -> dict[str, object]:
    rollout = {"width": order.width, "halt_at": order.halt_at, "overdue_s": order.overdue_s}
    match order.kind:
        case OrderKind.UPDATE:
            return {
                "version": order.version,
                "bundle": order.bundle.hex(),
                "compatible": order.compatible,
                "security_counter": order.counter,
                "sources": list(order.sources),
                "share": order.share,
                **rollout,
                "on_halt": order.on_halt.name.lower(),
                "rollback_to": order.rollback_to.hex() if any(order.rollback_to) else None,
                "rollback_version": order.rollback_version or None,
            }
        case OrderKind.ROLLBACK:
            return {"version": order.version, "bundle": order.bundle.hex(), "nodes": sorted(order.nodes), **rollout, "now": order.now}
        case OrderKind.CANCEL | OrderKind.PAUSE | OrderKind.RESUME:
            target = order.target.hex() if any(order.target) else None
            return {"target": target, "reason": order.reason, "halt_at": order.halt_at if order.kind is OrderKind.RESUME else None}
        case OrderKind.EVICT | OrderKind.LOST:
            return {"nodes": sorted(order.nodes), "reason": order.reason}


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
