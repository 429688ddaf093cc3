"""How many nodes may be down at once: the budgets of a membership, and whether a set of leases keeps to them. Pure."""

from __future__ import annotations

from collections.abc import Set

from abupdate.formats.membership import Membership


def excess(membership: Membership, down: Set[int], width: int | None = None) -> str:
    """Empty where these nodes may hold leases (or be lost) at the same time, else which budget they break.

    width: the plan's own, None where no plan is meant. Nodes that are no members count for nothing.
    """
    members = [member for member in membership.members if member.index in down]
    voters = sum(member.voter for member in members)
    if voters > membership.voter_budget:
        return f"{voters} voters would be down, the site can spare {membership.voter_budget}"
    spare = len(membership.members) - membership.min_up
    if len(members) > spare:
        return f"{len(members)} nodes would be down, {membership.min_up} of {len(membership.members)} must stay up"
    if width is not None and len(members) > width:
        return f"{len(members)} nodes would be down, the order allows {width} at once"
    for group, up in membership.groups.items():
        size = sum(group in member.groups for member in membership.members)
        gone = sum(group in member.groups for member in members)
        if gone > size - up:
            return f"{gone} nodes of group {group} would be down, {up} of {size} must stay up"
    return ""


def lacking(membership: Membership, up: Set[int]) -> str:
    """Empty where a node may go down while exactly these others are seen to be up, else what is missing."""
    members = [member for member in membership.members if member.index in up]
    voters = sum(member.voter for member in members)
    if voters < membership.quorum and not membership.stall_ok:
        return f"{voters} other voters are seen, {membership.quorum} are needed"
    if len(members) < membership.min_up:
        return f"{len(members)} other nodes are seen, {membership.min_up} must stay up"
    for group, needed in membership.groups.items():
        seen = sum(group in member.groups for member in members)
        if seen < needed:
            return f"{seen} other nodes of group {group} are seen, {needed} must stay up"
    return ""
