"""The membership of a site (`.abm`): who belongs to it and by which numbers its budgets are kept. One file for each epoch.

The file is that of signedfile.py with the magic 89 41 42 4D 0D 0A 1A 0A; signed is the body, in the domain `membership`, by enough of its
own root keys, and for epoch N+1 by enough of epoch N's too. The body is a TLV sequence (tlv.py), numbers are little-endian:

    0001  site, a name
    0002  epoch, u16, 1 and up
    0003  genesis, 32 bytes: SHA-256 of the body of epoch 1, where this field is left out
    0004  wire version, u16, 1
    0005  store version, u16, 1
    0006  f, u8: malicious voters that the agreement outlasts, at most (voters - 1) / 3
    0007  min_up, u8: nodes that are always up, 1 to nodes - 1
    0008  A, u8: the least number of nodes whose approval makes an order a plan, f + 1 to nodes - f
    0009  stall_ok, u8: 1 where one voter may be down for an update although the log then waits for it, else 0
    000A  heartbeat, u16: seconds from one to the next, 1 to 3600
    0010  group, a nested sequence; ascending by name, each has a member
          0001  name
          0002  min_up of the group, u8: 0 to its members - 1
    0020  member, a nested sequence; 3 to 64, ascending by index, no key and no name twice
          0001  index, u8, 0 to 254
          0002  raw Ed25519 public key, 32 bytes
          0003  name; not of digits alone, since people may write the index instead
          0004  voter, u8: 0 or 1. All are where they are at most 16; else exactly 16
          0005  name of a group; ascending
    0030  threshold of the root keys, u8, 1 to their number
    0031  root key, 32 bytes; 1 to 64, ascending
    0032  threshold of the admin keys, u8, 1 to their number
    0033  threshold of the admin keys for a ROLLBACK now, u8, from the other one to their number
    0034  admin key, 32 bytes; 1 to 64, ascending
    0040  recovery, a nested sequence; in epoch 1 alone, of a site that lost its log
          0001  genesis of the site that it goes on from, 32 bytes
          0002  height of the last entry that is known of it, u32
          0003  lease that was held: node u8 | lease u32, from 1 to that height; ascending by node

Names have 1 to 64 letters, digits, dots, hyphens and underscores (ASCII), the first one a letter or digit.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from abupdate.errors import Refused
from abupdate.formats import signature, siterules, text, tlv
from abupdate.formats.messages import EVERYBODY
from abupdate.formats.signature import Domain
from abupdate.formats.signedfile import MAX_BODY_BYTES, Form, flag, hash_of, number
from abupdate.formats.siterules import MAX_MEMBERS, MIN_MEMBERS
from abupdate.model import Signature

MAGIC = b"\x89ABM\r\n\x1a\n"
FORM = Form(MAGIC, "a membership", "`abupdate fleet init` makes one")
MAX_KEYS = 64
MAX_HEARTBEAT_S = 3600

_SITE, _EPOCH, _GENESIS, _WIRE, _STORE, _FAULTS, _MIN_UP, _APPROVALS, _STALL_OK, _HEARTBEAT = range(0x0001, 0x000B)
_GROUP, _MEMBER, _RECOVERY = 0x0010, 0x0020, 0x0040
_ROOT_THRESHOLD, _ROOT, _ADMIN_THRESHOLD, _NOW_THRESHOLD, _ADMIN = range(0x0030, 0x0035)
_LISTS = frozenset({_GROUP, _MEMBER, _ROOT, _ADMIN})
_TAGS = {
    tag: tag in _LISTS
    for tag in (
        *range(_SITE, _HEARTBEAT + 1),
        _GROUP,
        _MEMBER,
        *range(_ROOT_THRESHOLD, _ADMIN + 1),
        _RECOVERY,
    )
}
_GROUP_NAME, _GROUP_MIN_UP = 0x0001, 0x0002
_GROUP_TAGS = {_GROUP_NAME: False, _GROUP_MIN_UP: False}
_INDEX, _KEY, _NAME, _VOTER, _IN_GROUP = range(0x0001, 0x0006)
_MEMBER_TAGS = {_INDEX: False, _KEY: False, _NAME: False, _VOTER: False, _IN_GROUP: True}
_OLD_GENESIS, _OLD_HEIGHT, _LEASE = 0x0001, 0x0002, 0x0003
_RECOVERY_TAGS = {_OLD_GENESIS: False, _OLD_HEIGHT: False, _LEASE: True}
_LEASE_FORM = struct.Struct("<BI")
_WHAT = "the membership"


@dataclass(frozen=True, slots=True)
class Member:
    """One node. index: 0-254. key: raw Ed25519 public key (32 bytes). name: for people. groups: redundancy groups it belongs to."""

    index: int
    key: bytes
    name: str
    voter: bool
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a site goes on from after it lost its log: the old genesis, its last height, and the leases (node -> lease) that are held."""

    genesis: bytes
    height: int
    leases: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Membership:
    """One epoch's rules. genesis: SHA-256 of the body of epoch 1 (its own body there). digest: SHA-256 of `body`.

    members: ascending by index, 3-64. faults: f. groups: group -> nodes of it that stay up. approvals: A. stall_ok: one voter may go down
    although the log then waits for it. heartbeat_s: period. roots, admins: raw keys; now_threshold: admin signatures for a ROLLBACK now.
    """

    site: str
    epoch: int
    genesis: bytes
    digest: bytes
    body: bytes
    members: tuple[Member, ...]
    faults: int
    min_up: int
    groups: Mapping[str, int]
    approvals: int
    stall_ok: bool
    heartbeat_s: int
    roots: tuple[bytes, ...]
    root_threshold: int
    admins: tuple[bytes, ...]
    admin_threshold: int
    now_threshold: int
    wire_version: int = 1
    store_version: int = 1
    recovery: Recovery | None = None
    signatures: tuple[Signature, ...] = ()
    by_index: Mapping[int, Member] = field(default_factory=dict)
    voters: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """voters: their indices, ascending; looked at for every frame."""
        object.__setattr__(self, "voters", tuple(member.index for member in self.members if member.voter))

    @property
    def quorum(self) -> int:
        """Q: two sets of so many voters share more than f."""
        return (len(self.voters) + self.faults) // 2 + 1

    @property
    def live_budget(self) -> int:
        """k_live: voters that may be down for updates while the log still moves."""
        return len(self.voters) - self.faults - self.quorum

    @property
    def voter_budget(self) -> int:
        """V: voters in held and lost leases."""
        return max(self.live_budget, 1) if self.stall_ok else self.live_budget


def body(membership: Membership) -> bytes:
    """The bytes that root keys sign; `digest`, `body`, `signatures` and `by_index` are not looked at, nor `genesis` in epoch 1.

    The order of members and keys does not matter. Raises Refused where a rule is broken.
    """
    records = [
        (_SITE, text.encoded(membership.site, "the name of the site")),
        (_EPOCH, number(membership.epoch, 2, "the epoch")),
        *([(_GENESIS, membership.genesis)] if membership.epoch != 1 else []),
        (_WIRE, number(membership.wire_version, 2, "the wire version")),
        (_STORE, number(membership.store_version, 2, "the store version")),
        (_FAULTS, number(membership.faults, 1, "f")),
        (_MIN_UP, number(membership.min_up, 1, "min_up")),
        (_APPROVALS, number(membership.approvals, 1, "the number of approvals")),
        (_STALL_OK, bytes([membership.stall_ok])),
        (_HEARTBEAT, number(membership.heartbeat_s, 2, "the heartbeat's period")),
        *((_GROUP, _encode_group(name, min_up)) for name, min_up in sorted(membership.groups.items())),
        *((_MEMBER, _encode_member(member)) for member in sorted(membership.members, key=lambda member: member.index)),
        (_ROOT_THRESHOLD, number(membership.root_threshold, 1, "the root threshold")),
        *((_ROOT, key) for key in sorted(membership.roots)),
        (_ADMIN_THRESHOLD, number(membership.admin_threshold, 1, "the admin threshold")),
        (_NOW_THRESHOLD, number(membership.now_threshold, 1, "the threshold for a rollback now")),
        *((_ADMIN, key) for key in sorted(membership.admins)),
        *([(_RECOVERY, _encode_recovery(membership.recovery))] if membership.recovery is not None else []),
    ]
    encoded = tlv.pack(records)
    _decode(encoded, ())
    return encoded


def build(body: bytes, signatures: Iterable[Signature]) -> bytes:
    """A whole file from a body (see `body`) and signatures over it. Raises ValueError where it would be too long."""
    return FORM.build(body, signatures)


def parse(data: bytes) -> Membership:
    """Decode a whole file, and check every rule that its numbers must keep. Verifies no signature: `check_signed`. Raises Refused."""
    return _decode(*FORM.take_apart(data))


def check_signed(membership: Membership) -> None:
    """Refuse a membership that not enough of its own root keys signed, or that holds a wrong signature by one of them."""
    _check_roots(membership, membership, "its root keys")


def follows(old: Membership, new: Membership) -> None:
    """Refuse what is not the next epoch of the same site, signed by enough root keys of both."""
    if new.genesis != old.genesis or new.site != old.site:
        raise Refused(f"the membership is of another site {new.site}, not of this {old.site}")
    if new.epoch != old.epoch + 1:
        raise Refused(
            f"the membership is of epoch {new.epoch} and cannot follow epoch {old.epoch}", f"epoch {old.epoch + 1} must come next"
        )
    if new.wire_version < old.wire_version or new.store_version < old.store_version:
        raise Refused("the membership goes back to an older wire or store version")
    _check_roots(old, new, f"the root keys of epoch {old.epoch}")
    check_signed(new)


def _check_roots(judge: Membership, signed: Membership, whose: str) -> None:
    count = len(signature.signers(signed.signatures, judge.roots, signature.message(Domain.MEMBERSHIP, signed.body)))
    if count < judge.root_threshold:
        hint = "sign it with `abupdate fleet sign`"
        raise Refused(f"the membership of epoch {signed.epoch} is signed by {count} of {whose} and needs {judge.root_threshold}", hint)


def _encode_group(name: str, min_up: int) -> bytes:
    return tlv.pack(
        [(_GROUP_NAME, text.encoded(name, "the name of a group")), (_GROUP_MIN_UP, number(min_up, 1, f"min_up of the group {name}"))]
    )


def _encode_member(member: Member) -> bytes:
    return tlv.pack(
        [
            (_INDEX, number(member.index, 1, "a node's index")),
            (_KEY, member.key),
            (_NAME, text.encoded(member.name, "the name of a node")),
            (_VOTER, bytes([member.voter])),
            *((_IN_GROUP, text.encoded(name, "the name of a group")) for name in sorted(member.groups)),
        ]
    )


def _encode_recovery(recovery: Recovery) -> bytes:
    leases = sorted(recovery.leases.items())
    return tlv.pack(
        [
            (_OLD_GENESIS, recovery.genesis),
            (_OLD_HEIGHT, number(recovery.height, 4, "the last height")),
            *((_LEASE, number(node, 1, "a node's index") + number(lease, 4, "a lease")) for node, lease in leases),
        ]
    )


def _decode(body: bytes, signatures: tuple[Signature, ...]) -> Membership:
    if len(body) > MAX_BODY_BYTES:
        raise Refused(f"the membership's body has {len(body)} bytes, more than {MAX_BODY_BYTES}")
    found = tlv.unpack(body, _TAGS, _WHAT)
    epoch = _number(found, _EPOCH, 2, 0xFFFF, "the epoch")
    digest = hashlib.sha256(body).digest()
    if epoch == 1 and found[_GENESIS]:
        raise Refused("the membership of epoch 1 names a genesis, and is one itself")
    roots, admins = _keys(found[_ROOT], "root"), _keys(found[_ADMIN], "admin")
    members = _decode_members(found[_MEMBER])
    membership = Membership(
        site=text.matching(text.NAME, tlv.one(found, _SITE, _WHAT), "name of a site"),
        epoch=epoch,
        genesis=digest if epoch == 1 else hash_of(tlv.one(found, _GENESIS, _WHAT), "the genesis"),
        digest=digest,
        body=body,
        members=members,
        faults=_number(found, _FAULTS, 1, MAX_MEMBERS, "f"),
        min_up=_number(found, _MIN_UP, 1, 255, "min_up"),
        groups=_decode_groups(found[_GROUP]),
        approvals=_number(found, _APPROVALS, 1, 255, "the number of approvals"),
        stall_ok=flag(tlv.one(found, _STALL_OK, _WHAT), "stall_ok"),
        heartbeat_s=_number(found, _HEARTBEAT, 2, MAX_HEARTBEAT_S, "the heartbeat's period"),
        roots=roots,
        root_threshold=_number(found, _ROOT_THRESHOLD, 1, 255, "the root threshold"),
        admins=admins,
        admin_threshold=_number(found, _ADMIN_THRESHOLD, 1, 255, "the admin threshold"),
        now_threshold=_number(found, _NOW_THRESHOLD, 1, 255, "the threshold for a rollback now"),
        wire_version=_number(found, _WIRE, 2, 0xFFFF, "the wire version"),
        store_version=_number(found, _STORE, 2, 0xFFFF, "the store version"),
        recovery=_decode_recovery(found[_RECOVERY][0]) if found[_RECOVERY] else None,
        signatures=signatures,
        by_index={member.index: member for member in members},
    )
    siterules.check(membership)
    return membership


def _number(found: Mapping[int, list[bytes]], tag: int, width: int, limit: int, what: str) -> int:
    return tlv.unsigned(tlv.one(found, tag, _WHAT), width, limit, what)


def _keys(values: list[bytes], role: str) -> tuple[bytes, ...]:
    if not 1 <= len(values) <= MAX_KEYS:
        raise Refused(f"the membership has {len(values)} {role} keys instead of 1 to {MAX_KEYS}")
    for key in values:
        signature.check_public_key(key)
    tlv.ascending(values, f"the membership's {role} keys")
    return tuple(values)


def _decode_groups(values: list[bytes]) -> dict[str, int]:
    groups: dict[str, int] = {}
    for value in values:
        found = tlv.unpack(value, _GROUP_TAGS, "a group")
        name = text.matching(text.NAME, tlv.one(found, _GROUP_NAME, "a group"), "name of a group")
        if groups and name <= next(reversed(groups)):
            raise Refused("the membership's groups are not in strictly ascending order")
        groups[name] = tlv.unsigned(tlv.one(found, _GROUP_MIN_UP, "a group"), 1, 255, f"min_up of the group {name}")
    return groups


def _decode_members(values: list[bytes]) -> tuple[Member, ...]:
    if not MIN_MEMBERS <= len(values) <= MAX_MEMBERS:
        raise Refused(f"the membership has {len(values)} nodes instead of {MIN_MEMBERS} to {MAX_MEMBERS}")
    members = tuple(_decode_member(value) for value in values)
    if any(left.index >= right.index for left, right in pairwise(members)):
        raise Refused("the membership's nodes are not in strictly ascending order")
    for what, count in (("key", len({member.key for member in members})), ("name", len({member.name for member in members}))):
        if count != len(members):
            raise Refused(f"two nodes of the membership have one {what}")
    return members


def _decode_member(value: bytes) -> Member:
    what = "a node of the membership"
    found = tlv.unpack(value, _MEMBER_TAGS, what)
    name = text.matching(text.NAME, tlv.one(found, _NAME, what), "name of a node")
    if name.isdigit():
        raise Refused(f"{name} is no name of a node", "it would be taken for a node's number")
    key = tlv.one(found, _KEY, what)
    signature.check_public_key(key)
    tlv.ascending(found[_IN_GROUP], f"the groups of node {name}")
    return Member(
        index=tlv.unsigned(tlv.one(found, _INDEX, what), 1, EVERYBODY - 1, f"the index of node {name}"),
        key=key,
        name=name,
        voter=flag(tlv.one(found, _VOTER, what), f"the voter's mark of node {name}"),
        groups=frozenset(text.matching(text.NAME, group, "name of a group") for group in found[_IN_GROUP]),
    )


def _decode_recovery(value: bytes) -> Recovery:
    what = "the recovery"
    found = tlv.unpack(value, _RECOVERY_TAGS, what)
    height = tlv.unsigned(tlv.one(found, _OLD_HEIGHT, what), 4, 2**32 - 1, "the last height")
    leases: dict[int, int] = {}
    for lease in found[_LEASE]:
        if len(lease) != _LEASE_FORM.size:
            raise Refused(f"a lease of the recovery has {len(lease)} bytes instead of {_LEASE_FORM.size}")
        node, number = _LEASE_FORM.unpack(lease)
        if leases and node <= next(reversed(leases)):
            raise Refused("the leases of the recovery are not in strictly ascending order")
        if not 1 <= number <= height:
            raise Refused(f"the recovery names the lease {number}, and its last height is {height}")
        leases[node] = number
    return Recovery(hash_of(tlv.one(found, _OLD_GENESIS, what), "the genesis of the recovery"), height, leases)
