"""Reads SITE.toml, from which a site's membership is made.

    site = "plant-7"
    keyring = "ring.abk"         # whose root and admin roles, with their thresholds, are the site's; or, instead of it:
    roots = ["root.pub"]         # public key files, relative to the SITE's folder
    root_threshold = 1           # optional
    admins = ["anna.pub", "ben.pub"]
    admin_threshold = 1          # optional: how many of them must sign an order
    now_threshold = 2            # optional: how many for a rollback past the budgets; one more than the others, if there are so many
    faults = 0                   # optional: f, malicious nodes that the agreement outlasts; as many as leave room for updates
    min_up = 3                   # optional: nodes that are always up
    approvals = 1                # optional: A, the least number of nodes that make an order a plan; f + 1
    stall_ok = false             # optional: one voter may go down although the log waits for it then
    heartbeat_s = 5              # optional
    [groups]
    pumps = 1                    # optional: nodes of this group that are always up; all but one
    [nodes.gw1]
    key = "3b6a27bc..."          # as `abupdate fleet join` shows it on the device, or a .pub file
    index = 0                    # optional: 0 to 254; that of the membership before, or the next free one
    voter = true                 # optional: all vote, of more than 16 nodes the first 16
    groups = ["pumps"]           # optional

Unknown keys are errors. What breaks a rule of fleet.md is said by formats/membership.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from abupdate.errors import ConfigError
from abupdate.formats.membership import Member, Membership
from abupdate.formats.messages import EVERYBODY, NOTHING
from abupdate.formats.siterules import MAX_VOTERS
from abupdate.host import keyrings, keys, tables
from abupdate.host.tables import Table
from abupdate.model import RoleName

DEFAULT_HEARTBEAT_S = 5
_TOP = (
    "site",
    "keyring",
    "roots",
    "root_threshold",
    "admins",
    "admin_threshold",
    "now_threshold",
    "faults",
    "min_up",
    "approvals",
    "stall_ok",
    "heartbeat_s",
    "groups",
    "nodes",
)
_NODE = ("key", "index", "voter", "groups")
_BY_ROLE = ("roots", "root_threshold", "admins", "admin_threshold")
_KEY_DIGITS = 64


def load(path: Path, previous: Membership | None = None) -> Membership:
    """The membership that a SITE.toml describes, not encoded and not signed (no digest, no body). previous: whose next epoch it is.

    Raises ConfigError; rules between the numbers are the format's to check.
    """
    table = Table(tables.read(path, "SITE"), str(path), _TOP)
    members = _members(table, path.parent, previous)
    voters = sum(member.voter for member in members)
    faults = table.number("faults", 0, MAX_VOTERS, _faults(voters))
    stall_ok = table.flag("stall_ok", default=False)
    spared = max(_live_budget(voters, faults), 1)
    groups = Table(table.table("groups"), f"{path}: [groups]", tuple(table.table("groups")))
    sizes = {name: sum(name in member.groups for member in members) for member in members for name in member.groups}
    if strange := set(groups.values) - set(sizes):
        raise ConfigError(f"{path}: no node is in the group {min(strange)!r}", "write groups = [...] below [nodes.NAME]")
    roots, root_threshold, admins, admin_threshold = _keys(table, path.parent)
    now = table.number("now_threshold", 1, 255, min(admin_threshold + 1, max(len(admins), 1)))
    return Membership(
        site=table.text("site"),
        epoch=previous.epoch + 1 if previous else 1,
        genesis=previous.genesis if previous else NOTHING,
        digest=NOTHING,
        body=b"",
        members=members,
        faults=faults,
        min_up=table.number("min_up", 1, 255, max(1, len(members) - spared)),
        groups={name: groups.number(name, 0, 255, max(0, size - 1)) for name, size in sorted(sizes.items())},
        approvals=table.number("approvals", 1, 255, faults + 1),
        stall_ok=stall_ok,
        heartbeat_s=table.number("heartbeat_s", 1, 3600, DEFAULT_HEARTBEAT_S),
        roots=roots,
        root_threshold=root_threshold,
        admins=admins,
        admin_threshold=admin_threshold,
        now_threshold=now,
        wire_version=previous.wire_version if previous else 1,
        store_version=previous.store_version if previous else 1,
        by_index={member.index: member for member in members},
    )


def _live_budget(voters: int, faults: int) -> int:
    return voters - faults - ((voters + faults) // 2 + 1)


def _faults(voters: int) -> int:
    """The most malicious voters that still leave one who may be down: an agreement that never lets anybody go is of no use here."""
    allowed = [faults for faults in range(1, (voters - 1) // 3 + 1) if _live_budget(voters, faults) >= 1]
    return max(allowed, default=0)


def _members(table: Table, folder: Path, previous: Membership | None) -> tuple[Member, ...]:
    nodes = table.table("nodes")
    if not nodes:
        raise ConfigError(f"{table.place}: no nodes", 'add [nodes.NAME] with key = "..."')
    before = {member.name: member for member in previous.members} if previous else {}
    parts = {name: _node(table.place, name, value) for name, value in nodes.items()}
    indices = _indices(table.place, parts, before)
    first = set(sorted(indices.values())[:MAX_VOTERS])
    members = [
        Member(
            index=indices[name],
            key=_node_key(part, folder),
            name=name,
            voter=part.flag("voter", default=_votes(name, before, indices[name] in first) if len(parts) > MAX_VOTERS else True),
            groups=frozenset(part.texts("groups")),
        )
        for name, part in parts.items()
    ]
    return tuple(sorted(members, key=lambda member: member.index))


def _votes(name: str, before: Mapping[str, Member], is_first: bool) -> bool:
    return before[name].voter if name in before else is_first


def _node(place: str, name: str, value: object) -> Table:
    where = f"{place}: [nodes.{name}]"
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not a table", f'write [nodes.{name}] and key = "..." below it')
    return Table(value, where, _NODE)


def _indices(place: str, parts: Mapping[str, Table], before: Mapping[str, Member]) -> dict[str, int]:
    """Numbers are what leases and votes name: a node keeps its own, and a new one gets one that the epoch before did not use."""
    given: dict[str, int] = {}
    for name, part in parts.items():
        if "index" in part.values:
            given[name] = part.number("index", 0, EVERYBODY - 1)
        elif name in before:
            given[name] = before[name].index
    taken = set(given.values())
    if len(taken) != len(given):
        twice = next(index for index in sorted(taken) if list(given.values()).count(index) > 1)
        raise ConfigError(f"{place}: two nodes have the index {twice}", "give each its own")
    used = taken | {member.index for member in before.values()}
    free = iter(index for index in range(EVERYBODY) if index not in used)
    try:
        return {name: given[name] if name in given else next(free) for name in parts}
    except StopIteration:
        raise ConfigError(f"{place}: more than {EVERYBODY} nodes") from None


def _node_key(part: Table, folder: Path) -> bytes:
    text = part.text("key")
    if len(text) == _KEY_DIGITS and not set(text.lower()) - set("0123456789abcdef"):
        return bytes.fromhex(text)
    if "\0" in text:
        raise ConfigError(f"{part.place}: key holds a NUL")
    return keys.load_public(folder / text).raw


def _keys(table: Table, folder: Path) -> tuple[tuple[bytes, ...], int, tuple[bytes, ...], int]:
    """Root keys and threshold, admin keys and threshold."""
    if "keyring" not in table.values:
        roots, admins = (_public(table.paths(key, folder)) for key in ("roots", "admins"))
        if not roots:
            raise ConfigError(f"{table.place}: no root keys", 'add roots = ["root.pub"], or keyring = "ring.abk"')
        return roots, table.number("root_threshold", 1, 255, 1), admins, table.number("admin_threshold", 1, 255, 1)
    both: list[Any] = [key for key in _BY_ROLE if key in table.values]
    if both:
        raise ConfigError(f"{table.place}: {both[0]} is given beside keyring", "the keyring says it already")
    path = folder / table.text("keyring")
    ring = keyrings.load_signed(path)
    admin = ring.roles.get(RoleName.ADMIN)
    if admin is None:
        raise ConfigError(f"{path} has no admin role", "`abupdate keys rotate --admin KEY.pub` adds one")
    root = ring.roles[RoleName.ROOT]
    return tuple(sorted(key.raw for key in root.keys)), root.threshold, tuple(sorted(key.raw for key in admin.keys)), admin.threshold


def _public(paths: Sequence[Path]) -> tuple[bytes, ...]:
    return tuple(sorted(keys.load_public(path).raw for path in paths))
