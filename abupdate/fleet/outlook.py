"""What this node makes of its peers for itself: whom it doubts, and what the health check of its own trial is told. Pure."""

from __future__ import annotations

from abupdate.fleet.status import FRESH_PERIODS, name
from abupdate.fleet.view import View
from abupdate.formats.peerhealth import PeerHealth


def doubts(view: View) -> frozenset[int]:
    """Peers that are about to confirm what they run, or may be, and look ill from here: silent, or not well by their own word."""
    silent_s = FRESH_PERIODS * view.membership.heartbeat_s
    holders = {lease.node for lease in view.leases if not lease.lost}
    return frozenset(
        node
        for node, seen in view.members.items()
        if node != view.me and (seen.trial or node in holders) and (seen.age_s is None or seen.age_s > silent_s or not seen.healthy)
    )


def peer_health(view: View, at_s: float) -> PeerHealth:
    """The word for the health check. at_s: now, seconds since boot."""
    doubters = tuple(name(view.membership, node) for node in sorted(view.doubters))
    return PeerHealth(at_s, view.sees_quorum, doubters, view.membership.faults + 1)
