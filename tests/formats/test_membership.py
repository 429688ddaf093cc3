"""Memberships: round trips, every rule from both sides, who signed, which epoch follows, hostile bytes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats import layout, payloads, signature, signedfile, tlv
from abupdate.formats import membership as memberships
from abupdate.formats.membership import Member, Membership, Recovery
from abupdate.model import Signature
from tests.formats import fleetvalues
from tests.formats.sitefiles import enacted, membership_file, raw, site
from tests.formats.test_layout import values
from tests.rings import pair

HASH = bytes(range(32))


def agree(data: bytes, decoded: Membership) -> None:
    """Compare what construct reads with what the decoder made of it."""
    declared = layout.MEMBERSHIP.parse(data)
    assert layout.MEMBERSHIP.build(declared) == data
    found = values(declared.body)
    assert [found[tag] for tag in (1, 2, 4, 5, 6, 7, 8, 9, 10)] == [
        [decoded.site],
        [decoded.epoch],
        [decoded.wire_version],
        [decoded.store_version],
        [decoded.faults],
        [decoded.min_up],
        [decoded.approvals],
        [decoded.stall_ok],
        [decoded.heartbeat_s],
    ]
    assert found.get(3, []) == ([] if decoded.epoch == 1 else [decoded.genesis])
    groups = [values(group) for group in found.get(0x10, [])]
    assert {group[1][0]: group[2][0] for group in groups} == decoded.groups
    members = [values(member) for member in found[0x20]]
    assert [Member(member[1][0], member[2][0], member[3][0], member[4][0], frozenset(member.get(5, ()))) for member in members] == list(
        decoded.members
    )
    assert [found[tag] for tag in (0x30, 0x31, 0x32, 0x33, 0x34)] == [
        [decoded.root_threshold],
        list(decoded.roots),
        [decoded.admin_threshold],
        [decoded.now_threshold],
        list(decoded.admins),
    ]
    if decoded.recovery is None:
        assert 0x40 not in found
    else:
        recovery = values(found[0x40][0])
        leases = {lease.node: lease.lease for lease in recovery.get(3, [])}
        assert Recovery(recovery[1][0], recovery[2][0], leases) == decoded.recovery
    assert [Signature(item.value.public_key, item.value.value) for item in declared.signatures] == list(decoded.signatures)


@settings(max_examples=60, deadline=None)
@given(fleetvalues.sites(), st.randoms(use_true_random=False))
def test_a_membership_is_read_as_it_was_written(wanted: Membership, chance: random.Random) -> None:
    shuffled = replace(wanted, members=tuple(chance.sample(wanted.members, len(wanted.members))), roots=wanted.roots[::-1])
    data = membership_file(shuffled, "root", "stranger")
    read = memberships.parse(data)
    digest = hashlib.sha256(read.body).digest()
    assert read == replace(
        wanted,
        genesis=digest if wanted.epoch == 1 else wanted.genesis,
        digest=digest,
        body=read.body,
        signatures=read.signatures,
        by_index={member.index: member for member in wanted.members},
    )
    assert memberships.build(memberships.body(read), read.signatures) == data
    assert len(data) <= payloads.MAX_OBJECT_BYTES
    agree(data, read)


def test_the_largest_site_fits_into_an_object() -> None:
    """64 nodes with long names in two groups, and 16 signatures."""
    members = tuple(
        Member(
            index + 190,
            pair(f"node-{index}").public.raw,
            f"node-with-a-long-name-{index}",
            index < 16,
            frozenset({"group-one", "group-two"}),
        )
        for index in range(64)
    )
    signers = [f"root-{number}" for number in range(16)]
    wanted = site(members=members, faults=5, approvals=6, groups={"group-one": 3, "group-two": 63}, roots=raw(*signers), root_threshold=16)
    data = membership_file(wanted, *signers)
    assert len(data) < payloads.MAX_OBJECT_BYTES
    memberships.check_signed(memberships.parse(data))


def test_the_genesis_of_epoch_1_is_its_own_body() -> None:
    first = enacted(site())
    assert first.genesis == first.digest == hashlib.sha256(first.body).digest()
    second = enacted(replace(first, epoch=2))
    assert second.genesis == first.genesis != second.digest


def member(place: int, **changes: Any) -> Member:
    """A node of the plain site, changed."""
    return replace(site(place + 1).members[place], **changes)


def members(*changed: Member, count: int = 4) -> tuple[Member, ...]:
    """The plain site's nodes, some of them replaced."""
    found = {one.index: one for one in site(count).members}
    return tuple({**found, **{one.index: one for one in changed}}.values())


UNSAFE_KEY = b"\1" + bytes(31)
BROKEN: Mapping[str, tuple[Membership, str]] = {
    "two nodes": (site(2), "2 nodes instead of 3 to 64"),
    "65 nodes": (site(65), "65 nodes instead of 3 to 64"),
    "a node number 255": (site(members=(*members(), member(3, index=255, key=HASH[:31] + b"\x10", name="x"))), "index of node x is 255"),
    "a number twice": (site(members=(*members(), member(3, key=HASH[:31] + b"\x10", name="x"))), "strictly ascending"),
    "a key twice": (site(members=members(member(3, key=pair("node-2").public.raw))), "one key"),
    "a name twice": (site(members=members(member(3, name="gw2"))), "one name"),
    "a name of digits": (site(members=members(member(3, name="12"))), "12 is no name of a node"),
    "a name with a space": (site(members=members(member(3, name="a b"))), "no name of a node"),
    "a name of 65 letters": (site(members=members(member(3, name="a" * 65))), "no name of a node"),
    "an unsafe key": (site(members=members(member(3, key=UNSAFE_KEY))), "not a safe Ed25519 key"),
    "a key of 31 bytes": (site(members=members(member(3, key=HASH[:31]))), "has 31 bytes instead of 32"),
    "a name that is no text": (site(members=members(member(3, name="\ud800"))), "name of a node is not UTF-8"),
    "a site that is no name": (site(site="../x"), "no name of a site"),
    "a site without a name": (site(site=""), "no name of a site"),
    "epoch 0": (site(epoch=0, genesis=HASH), "epoch 0"),
    "epoch 65536": (site(epoch=65536, genesis=HASH), "epoch is 65536"),
    "a genesis of 31 bytes": (site(epoch=2, genesis=HASH[:31]), "genesis has 31 bytes"),
    "wire version 2": (site(wire_version=2), "needs a newer abupdate"),
    "store version 2": (site(store_version=2), "needs a newer abupdate"),
    "wire version 0": (site(wire_version=0), "needs a newer abupdate"),
    "f = 1 of 3": (site(3, faults=1, approvals=2), "f is 1, and 3 voters outlast 0"),
    "f = 2 of 6": (site(6, faults=2, approvals=3), "f is 2, and 6 voters outlast 1"),
    "f = 6 of 16 voters": (site(64, faults=6, approvals=7), "f is 6, and 16 voters outlast 5"),
    "15 of 16 vote": (site(16, members=members(member(3, voter=False), count=16)), "15 of the 16 nodes are voters instead of 16"),
    "17 of 17 vote": (site(17, members=members(member(16, voter=True), count=17)), "17 of the 17 nodes are voters instead of 16"),
    "15 of 17 vote": (site(17, members=members(member(3, voter=False), count=17)), "15 of the 17 nodes are voters instead of 16"),
    "min_up 0": (site(min_up=0), "min_up is 0 instead of 1 to 3"),
    "min_up of all": (site(min_up=4), "min_up is 4 instead of 1 to 3"),
    "min_up 256": (site(min_up=256), "min_up is 256"),
    "A = f": (site(4, faults=1, approvals=1), "1 approvals are needed instead of 2 to 3"),
    "A = 0": (site(4, approvals=0), "0 approvals"),
    "A more than n - f": (site(4, faults=1, approvals=4), "4 approvals are needed instead of 2 to 3"),
    "no heartbeat": (site(heartbeat_s=0), "a heartbeat every 0 s"),
    "a heartbeat every 3601 s": (site(heartbeat_s=3601), "more than 3600"),
    "a group that nobody knows": (site(groups={}), "in the group pumps, which the membership does not have"),
    "a group without nodes": (site(groups={"pumps": 1, "x": 0}), "no node is in the group x"),
    "a group that stays up whole": (site(groups={"pumps": 2}), "min_up of the group pumps is 2 of 2 nodes"),
    "a group of no name": (site(groups={"pumps": 1, "a/b": 0}), "no name of a group"),
    "no root": (site(roots=()), "0 root keys"),
    "65 roots": (site(roots=raw(*(f"root-{number}" for number in range(65)))), "65 root keys"),
    "a root twice": (site(roots=raw("root", "root")), "root keys are not in strictly ascending order"),
    "an unsafe root": (site(roots=(UNSAFE_KEY,)), "not a safe"),
    "no root needed": (site(root_threshold=0), "2 root keys and a threshold of 0"),
    "more roots needed than there are": (site(root_threshold=3), "2 root keys and a threshold of 3"),
    "no admin": (site(admins=()), "0 admin keys"),
    "an admin twice": (site(admins=raw("admin", "admin")), "admin keys are not in strictly ascending order"),
    "no admin needed": (site(admin_threshold=0), "3 admin keys and a threshold of 0"),
    "more admins needed than there are": (site(admin_threshold=4, now_threshold=4), "3 admin keys and a threshold of 4"),
    "now by fewer": (site(admin_threshold=2, now_threshold=1), "for a rollback now is 1 instead of 2 to 3"),
    "now by more than there are": (site(now_threshold=4), "for a rollback now is 4 instead of 1 to 3"),
    "a recovery in epoch 2": (site(epoch=2, genesis=HASH, recovery=Recovery(HASH, 1, {})), "and not of epoch 1"),
    "a recovered lease of a stranger": (site(recovery=Recovery(HASH, 5, {9: 1})), "a lease of node 9, which is none"),
    "a recovered lease 0": (site(recovery=Recovery(HASH, 5, {1: 0})), "the lease 0"),
    "a recovered lease above the height": (site(recovery=Recovery(HASH, 5, {1: 6})), "the lease 6, and its last height is 5"),
    "a recovered genesis of 33 bytes": (site(recovery=Recovery(HASH + b"x", 5, {})), "has 33 bytes"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_membership_that_breaks_a_rule_is_refused_in_one_line(what: str) -> None:
    wanted, why = BROKEN[what]
    with pytest.raises(Refused, match=why) as refused:
        memberships.body(wanted)
    assert "\n" not in refused.value.message
    assert not refused.value.message.endswith(".")


@pytest.mark.parametrize(
    "wanted",
    [
        site(3),
        site(4, faults=1, approvals=2),
        site(4, faults=1, approvals=3, min_up=3),
        site(16, faults=5, approvals=6),
        site(17, faults=5, approvals=12),
        site(64, faults=5, min_up=63, approvals=59),
        site(heartbeat_s=3600, epoch=0xFFFF, genesis=HASH),
        site(groups={"pumps": 0}, root_threshold=2, admin_threshold=3, now_threshold=3),
        site(recovery=Recovery(HASH, 5, {0: 5, 3: 1})),
        site(recovery=Recovery(HASH, 0, {})),
    ],
)
def test_a_number_at_its_bound_is_taken(wanted: Membership) -> None:
    assert memberships.parse(membership_file(wanted)).members == wanted.members


@pytest.mark.parametrize(
    ("nodes", "faults", "stall_ok", "numbers"),
    [
        # nodes, f -> Q, k_live, V, as fleet.md lists them
        (3, 0, False, (2, 1, 1)),
        (4, 0, False, (3, 1, 1)),
        (4, 1, False, (3, 0, 0)),
        (4, 1, True, (3, 0, 1)),
        (5, 1, False, (4, 0, 0)),
        (6, 1, False, (4, 1, 1)),
        (7, 1, False, (5, 1, 1)),
        (10, 2, False, (7, 1, 1)),
        (16, 3, False, (10, 3, 3)),
        (64, 3, True, (10, 3, 3)),
    ],
)
def test_quorum_and_budgets(nodes: int, faults: int, stall_ok: bool, numbers: tuple[int, int, int]) -> None:
    made = enacted(site(nodes, faults=faults, approvals=faults + 1, stall_ok=stall_ok))
    assert (made.quorum, made.live_budget, made.voter_budget) == numbers
    assert made.voters == tuple(range(min(nodes, 16)))


# -- who signed, and what follows


def test_enough_of_its_own_roots_must_sign() -> None:
    wanted = site(root_threshold=2)
    memberships.check_signed(enacted(wanted, "root", "root-2"))
    memberships.check_signed(enacted(wanted, "root", "root-2", "stranger"))
    for signers in (("root",), ("root", "admin"), ("stranger", "admin")):
        with pytest.raises(Refused, match=r"signed by [01] of its root keys and needs 2"):
            memberships.check_signed(enacted(wanted, *signers))


def spoiled(made: Membership, name: str) -> Membership:
    """With the signature of one key changed."""
    wrong = [replace(one, value=one.value[:63] + b"\0") if one.public_key == pair(name).public.raw else one for one in made.signatures]
    return memberships.parse(memberships.build(made.body, wrong))


def test_a_wrong_signature_by_a_root_is_refused_and_a_strangers_is_passed_over() -> None:
    made = enacted(site(), "root", "root-2", "stranger")
    memberships.check_signed(spoiled(made, "stranger"))
    with pytest.raises(Refused, match=r"signature by key [0-9a-f]+ is wrong"):
        memberships.check_signed(spoiled(made, "root-2"))


def test_a_signature_of_another_kind_of_file_does_not_count() -> None:
    body = memberships.body(site())
    signed = signature.message(signature.Domain.ORDER, body)
    made = memberships.parse(memberships.build(body, [Signature(pair("root").public.raw, pair("root").sign(signed))]))
    with pytest.raises(Refused, match="is wrong"):
        memberships.check_signed(made)


def test_the_next_epoch_needs_the_roots_of_both() -> None:
    old = enacted(site(roots=raw("root", "root-2"), root_threshold=2), "root", "root-2")
    wanted = replace(old, epoch=2, roots=raw("root-2", "root-3"), root_threshold=2)
    memberships.follows(old, enacted(wanted, "root", "root-2", "root-3"))
    with pytest.raises(Refused, match="signed by 1 of the root keys of epoch 1 and needs 2"):
        memberships.follows(old, enacted(wanted, "root-2", "root-3"))
    with pytest.raises(Refused, match="signed by 1 of its root keys and needs 2"):
        memberships.follows(old, enacted(wanted, "root", "root-2"))


NEXT: Mapping[str, tuple[Callable[[Membership], Membership], str]] = {
    "the same epoch": (lambda old: old, "epoch 1 and cannot follow epoch 1"),
    "an epoch left out": (lambda old: replace(old, epoch=3), "epoch 3 and cannot follow epoch 1"),
    "another genesis": (lambda old: replace(old, epoch=2, genesis=HASH), "another site"),
    "another name": (lambda old: replace(old, epoch=2, site="plant-8"), "another site plant-8, not of this plant-7"),
}


@pytest.mark.parametrize("what", NEXT)
def test_nothing_else_follows(what: str) -> None:
    old = enacted(site())
    change, why = NEXT[what]
    with pytest.raises(Refused, match=why):
        memberships.follows(old, enacted(change(old)))


@pytest.mark.parametrize("field", ["wire_version", "store_version"])
def test_no_version_goes_back(field: str) -> None:
    old = enacted(site())
    later: dict[str, Any] = {field: 2}
    with pytest.raises(Refused, match="older wire or store version"):
        memberships.follows(replace(old, **later), enacted(replace(old, epoch=2)))


# -- hostile bytes


def rebuilt(change: Callable[[list[tuple[int, bytes]]], list[tuple[int, bytes]]]) -> bytes:
    """A file whose body's records are changed; the header fits."""
    records = []
    body = memberships.body(site())
    position = 0
    while position < len(body):
        tag, length = int.from_bytes(body[position : position + 2], "little"), int.from_bytes(body[position + 2 : position + 4], "little")
        records.append((tag, body[position + 4 : position + 4 + length]))
        position += 4 + length
    return memberships.build(tlv.pack(change(records)), ())


def with_value(tag: int, value: bytes) -> bytes:
    """A file with another value of one record (the first one of a list)."""

    def change(records: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        at = next(number for number, (found, _) in enumerate(records) if found == tag)
        return [*records[:at], (tag, value), *records[at + 1 :]]

    return rebuilt(change)


@pytest.mark.parametrize("tag", [1, 2, *range(0x04, 0x0B), 0x20, 0x30, 0x31, 0x32, 0x33, 0x34])
def test_every_field_is_needed_and_has_its_length(tag: int) -> None:
    with pytest.raises(Refused):
        memberships.parse(rebuilt(lambda records: [record for record in records if record[0] != tag]))
    for value in (b"", b"\1" * 70):
        with pytest.raises(Refused):
            memberships.parse(with_value(tag, value))


def test_a_field_that_nobody_knows_needs_a_newer_abupdate() -> None:
    with pytest.raises(Refused, match="needs a newer abupdate"):
        memberships.parse(rebuilt(lambda records: [*records, (0x0041, b"")]))
    assert memberships.parse(rebuilt(lambda records: [*records, (0x8041, b"x")])).members == site().members


def test_epoch_1_names_no_genesis() -> None:
    with pytest.raises(Refused, match="names a genesis, and is one itself"):
        memberships.parse(rebuilt(lambda records: [*records[:2], (3, HASH), *records[2:]]))


def test_a_flag_is_0_or_1() -> None:
    with pytest.raises(Refused, match="stall_ok is 2, more than 1"):
        memberships.parse(with_value(9, b"\2"))


@pytest.mark.parametrize(
    ("leases", "why"),
    [
        ([b"\1\1\0\0\0", b"\1\2\0\0\0"], "not in strictly ascending order"),
        ([b"\2\1\0\0\0", b"\1\2\0\0\0"], "not in strictly ascending order"),
        ([b"\1\1\0\0"], "has 4 bytes instead of 5"),
        ([b"\1\0\0\0\0"], "the lease 0"),
    ],
)
def test_recovered_leases_are_in_order(leases: list[bytes], why: str) -> None:
    recovery = tlv.pack([(1, HASH), (2, b"\5\0\0\0"), *((3, lease) for lease in leases)])
    with pytest.raises(Refused, match=why):
        memberships.parse(rebuilt(lambda records: [*records, (0x40, recovery)]))


@pytest.mark.parametrize("names", [(b"pumps", b"pumps"), (b"pumps", b"a")])
def test_groups_are_in_order(names: tuple[bytes, ...]) -> None:
    groups = [(0x10, tlv.pack([(1, name), (2, b"\0")])) for name in names]

    def change(records: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        return [*records[:9], *groups, *records[10:]]

    with pytest.raises(Refused, match="groups are not in strictly ascending order"):
        memberships.parse(rebuilt(change))


def test_nodes_are_in_order() -> None:
    with pytest.raises(Refused, match="nodes are not in strictly ascending order"):
        memberships.parse(rebuilt(lambda records: [*records[:10], *sorted(records[10:14], reverse=True), *records[14:]]))


HEADER = signedfile.HEADER
GOOD = membership_file(site(), "root")


def patched(offset: int, value: bytes) -> bytes:
    return GOOD[:offset] + value + GOOD[offset + len(value) :]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "this is not a membership"),
        (b"\x89ABO\r\n\x1a\n" + GOOD[8:], "this is not a membership"),
        (GOOD[:8], "has 8 bytes instead of 52 to 16384"),
        (GOOD[:51], "has 51 bytes"),
        (GOOD[:-1], "bytes instead of"),
        (GOOD + b"x", "bytes instead of"),
        (GOOD + bytes(16384), "instead of 52 to 16384"),
        (patched(8, b"\2"), "format 2 needs a newer abupdate"),
        (patched(10, b"\1"), "flags 0x0001 needs a newer abupdate"),
        (patched(12, b"\xff\xff\xff\xff"), "bytes instead of"),
        (patched(20, b"x"), "damaged signatures"),
        (patched(len(GOOD) - 1, b"x"), "damaged signatures"),
        (signedfile.HEADER.pack(memberships.MAGIC, 1, 0, 12289, 0, hashlib.sha256(b"").digest()) + bytes(12289), "a body of 12289 bytes"),
    ],
)
def test_a_damaged_file_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        memberships.parse(data)


def test_a_file_that_is_too_long_is_not_written() -> None:
    with pytest.raises(ValueError, match="a body of 12289 bytes"):
        memberships.build(bytes(12289), ())
    many = [Signature(bytes([number]) * 32, bytes(64)) for number in range(41)]
    memberships.build(bytes(12288), many[:40])
    with pytest.raises(ValueError, match="is longer than 16384"):
        memberships.build(bytes(12288), many)
    with pytest.raises(ValueError, match="two signatures by one key"):
        memberships.build(b"", many[:1] * 2)
