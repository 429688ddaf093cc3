"""The documents of `fleet log`: what was decided at a height, and who signed it."""

from __future__ import annotations

from collections.abc import Iterable

from abupdate.fleet.status import name, names
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
from abupdate.formats.membership import Membership
from abupdate.formats.messages import NOTHING
from abupdate.formats.order import Order

_KINDS: dict[type, str] = {
    OrderEntry: "order",
    PlanEntry: "plan",
    GrantEntry: "grant",
    ReleaseEntry: "release",
    LostEntry: "lost",
    ReturnEntry: "return",
    HaltEntry: "halt",
    ReconfigEntry: "reconfig",
}


def document(
    membership: Membership, height: int, round_: int, entry: Entry, signers: Iterable[int], order: Order | None = None
) -> dict[str, object]:
    """One decided entry. membership: of the epoch that decided it. signers: voters whose PRECOMMIT the certificate holds. order: that the
    entry names, where it is kept.
    """
    fields = {"height": height, "epoch": membership.epoch, "round": round_, "kind": _KINDS[type(entry)]}
    said = {} if order is None else _said(membership, order)
    return fields | _fields(membership, entry) | said | {"signed_by": names(membership, signers)}


def _said(membership: Membership, order: Order) -> dict[str, object]:
    """What an order says, as far as a line has room for it."""
    fields: dict[str, object] = {"order_kind": order.kind.name.lower() + (" now" if order.now else ""), "admin_seq": order.admin_seq}
    about = {"version": order.version, "nodes": names(membership, order.nodes), "reason": order.reason}
    if order.target != NOTHING:
        fields["target"] = order.target.hex()
    return fields | {key: value for key, value in about.items() if value}


def _fields(membership: Membership, entry: Entry) -> dict[str, object]:
    match entry:
        case OrderEntry(order) | LostEntry(order):
            return {"order": order.hex()}
        case PlanEntry(order, approvers):
            return {"order": order.hex(), "approved_by": names(membership, approvers)}
        case GrantEntry(plan, grants):
            return {"plan": plan.hex(), "grants": [{"node": name(membership, node), "attempt": attempt} for node, attempt in grants]}
        case ReleaseEntry(releases) | ReturnEntry(releases):
            return {"releases": [_release(membership, release) for release in releases]}
        case HaltEntry(plan, lease, voters):
            return {"plan": plan.hex(), "lease": lease, "overdue_by": names(membership, voters)}
        case ReconfigEntry(digest):
            return {"membership": digest.hex()}


def _release(membership: Membership, release: Release) -> dict[str, object]:
    return {"lease": release.lease, "node": name(membership, release.node), "ending": release.ending.name.lower()}
