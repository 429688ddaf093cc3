"""The rules between a membership's numbers (membership.py says where they stand).

Every voter must come to the same result, at any time and by any later version: so nothing but the membership's own body counts here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abupdate.errors import Refused
from abupdate.formats import tlv

if TYPE_CHECKING:
    from abupdate.formats.membership import Membership

MIN_MEMBERS, MAX_MEMBERS = 3, 64
MAX_VOTERS = 16
WIRE_VERSION = 1
STORE_VERSION = 1


def check(one: Membership) -> None:
    """Refuse a membership whose numbers do not fit together."""
    nodes, voters = len(one.members), len(one.voters)
    if one.epoch < 1 or one.heartbeat_s < 1:
        raise Refused(f"the membership has epoch {one.epoch} and a heartbeat every {one.heartbeat_s} s")
    if one.wire_version != WIRE_VERSION or one.store_version != STORE_VERSION:
        raise tlv.newer(f"a membership with wire version {one.wire_version} and store version {one.store_version}")
    if voters != min(nodes, MAX_VOTERS):
        raise Refused(f"{voters} of the {nodes} nodes are voters instead of {min(nodes, MAX_VOTERS)}")
    if one.faults > (voters - 1) // 3:
        raise Refused(f"f is {one.faults}, and {voters} voters outlast {(voters - 1) // 3} malicious ones at most")
    if not 1 <= one.min_up < nodes:
        raise Refused(f"min_up is {one.min_up} instead of 1 to {nodes - 1}", "or no node could ever go down")
    if not one.faults + 1 <= one.approvals <= nodes - one.faults:
        raise Refused(f"{one.approvals} approvals are needed instead of {one.faults + 1} to {nodes - one.faults}")
    _check_groups(one)
    for role, keys, threshold in (("root", one.roots, one.root_threshold), ("admin", one.admins, one.admin_threshold)):
        if not 1 <= threshold <= len(keys):
            raise Refused(f"the membership has {len(keys)} {role} keys and a threshold of {threshold}")
    if not one.admin_threshold <= one.now_threshold <= len(one.admins):
        raise Refused(f"the threshold for a rollback now is {one.now_threshold} instead of {one.admin_threshold} to {len(one.admins)}")
    if one.recovery is not None:
        if one.epoch != 1:
            raise Refused("the membership is a recovery, and not of epoch 1")
        for node in one.recovery.leases:
            if node not in one.by_index:
                raise Refused(f"the recovery names a lease of node {node}, which is none of the site")


def _check_groups(one: Membership) -> None:
    sizes = dict.fromkeys(one.groups, 0)
    for member in one.members:
        for name in member.groups:
            if name not in sizes:
                raise Refused(f"node {member.name} is in the group {name}, which the membership does not have")
            sizes[name] += 1
    for name, size in sizes.items():
        if not size:
            raise Refused(f"no node is in the group {name}")
        if one.groups[name] >= size:
            raise Refused(f"min_up of the group {name} is {one.groups[name]} of {size} nodes", "or none of them could ever go down")
