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


def document(membership: Membership, height: int, round_: int, entry: Entry, signers: Iterable[int]) -> dict[str, object]:
    """One decided entry. membership: of the epoch that decided it. signers: voters whose PRECOMMIT the certificate holds."""
    fields = {"height": height, "epoch": membership.epoch, "round": round_, "kind": _KINDS[type(entry)]}
    return fields | _fields(membership, entry) | {"signed_by": names(membership, signers)}


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
