"""Keyrings: round trips, every flipped byte, thresholds by distinct keys, the security role."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats import bundle, keyring, signature
from abupdate.formats.signature import Domain
from abupdate.host.keys import KeyPair
from abupdate.host.signing import sign_all
from abupdate.model import Keyring, Manifest, PublicKey, Role, RoleName, Signature


def trusted(data: bytes) -> Keyring:
    """What a device does with a keyring's bytes."""
    ring = keyring.parse(data)
    keyring.check_self_signed(ring)
    return ring


def ring_of(
    pairs: dict[str, KeyPair], roles: Mapping[RoleName, tuple[int, tuple[str, ...]]], signers: tuple[str, ...] = ("root",)
) -> bytes:
    """A keyring file with these roles (threshold, names of the keys)."""
    made = {name: Role(name, threshold, tuple(pairs[key].public for key in keys)) for name, (threshold, keys) in roles.items()}
    body = keyring.encode_body(3, made)
    return keyring.build(body, sign_all([pairs[name] for name in signers], signature.message(Domain.KEYRING, body)))


def test_what_was_built_is_read_back(ring_bytes: bytes, pairs: dict[str, KeyPair]) -> None:
    ring = trusted(ring_bytes)
    assert ring.version == 1
    assert {name: role.threshold for name, role in ring.roles.items()} == {
        RoleName.ROOT: 1,
        RoleName.RELEASE: 2,
        RoleName.SECURITY: 1,
        RoleName.ADMIN: 1,
    }
    assert {key.raw for key in ring.roles[RoleName.RELEASE].keys} == {pairs["release-1"].public.raw, pairs["release-2"].public.raw}
    assert keyring.encode_body(ring.version, ring.roles) == ring.body
    assert keyring.build(ring.body, ring.signatures) == ring_bytes


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_refused(ring_bytes: bytes, mask: int) -> None:
    for position in range(len(ring_bytes)):
        damaged = bytearray(ring_bytes)
        damaged[position] ^= mask
        with pytest.raises(Refused):
            trusted(bytes(damaged))


def test_every_truncation_and_any_tail_is_refused(ring_bytes: bytes) -> None:
    for length in range(len(ring_bytes)):
        with pytest.raises(Refused):
            keyring.parse(ring_bytes[:length])
    for tail in (b"\0", b"more", ring_bytes):
        with pytest.raises(Refused):
            keyring.parse(ring_bytes + tail)
    with pytest.raises(Refused, match="more than"):
        keyring.parse(ring_bytes + bytes(keyring.MAX_FILE_BYTES))


@given(data=st.data())
def test_fuzz_gives_refusals_only(ring_bytes: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(ring_bytes)))
    end = data.draw(st.integers(start, len(ring_bytes)))
    mutated = ring_bytes[:start] + data.draw(st.binary(max_size=60)) + ring_bytes[end:]
    try:
        ring = trusted(mutated)
    except Refused:
        return
    assert mutated == ring_bytes
    assert ring.version == 1


def test_root_threshold_counts_root_keys_only(pairs: dict[str, KeyPair]) -> None:
    roles = {RoleName.ROOT: (2, ("root", "admin")), RoleName.RELEASE: (1, ("release-1",))}
    trusted(ring_of(pairs, roles, ("root", "admin")))
    for signers in ((), ("root",), ("root", "release-1"), ("root", "stranger")):
        with pytest.raises(Refused, match="root keys"):
            trusted(ring_of(pairs, roles, signers))


def test_signature_for_another_body_is_refused_and_a_strangers_is_passed_over(pairs: dict[str, KeyPair]) -> None:
    roles = {RoleName.ROOT: (1, ("root",)), RoleName.RELEASE: (1, ("release-1",))}
    ring = keyring.parse(ring_of(pairs, roles, ("root", "stranger")))
    keyring.check_self_signed(ring)
    other = pairs["release-1"].sign(b"something else")
    wrong = Signature(pairs["release-1"].public.raw, other)
    with pytest.raises(Refused, match="wrong"):
        keyring.check_self_signed(replace(ring, signatures=(*ring.signatures, wrong)))
    stranger = Signature(pairs["stranger"].public.raw, other)
    keyring.check_self_signed(replace(ring, signatures=(ring.signatures[0], ring.signatures[1], stranger)))


@pytest.mark.parametrize(
    ("roles", "text"),
    [
        ({RoleName.ROOT: (1, ("root",))}, "no release"),
        ({RoleName.RELEASE: (1, ("root",))}, "no root"),
        ({RoleName.ROOT: (2, ("root",)), RoleName.RELEASE: (1, ("root",))}, "threshold"),
        ({RoleName.ROOT: (0, ("root",)), RoleName.RELEASE: (1, ("root",))}, "threshold"),
        ({RoleName.ROOT: (1, ()), RoleName.RELEASE: (1, ("root",))}, "threshold"),
        ({RoleName.ROOT: (1, ("root", "root")), RoleName.RELEASE: (1, ("root",))}, "ascending"),
    ],
)
def test_rules_of_roles(pairs: dict[str, KeyPair], roles: Mapping[RoleName, tuple[int, tuple[str, ...]]], text: str) -> None:
    with pytest.raises(Refused, match=text):
        ring_of(pairs, roles)


def test_test_keys_are_marked_everywhere_and_refused(pairs: dict[str, KeyPair]) -> None:
    root = pairs["root"].public
    marked = replace(root, test=True)
    release = Role(RoleName.RELEASE, 1, (marked,))
    with pytest.raises(Refused, match="one role only"):
        keyring.encode_body(1, {RoleName.ROOT: Role(RoleName.ROOT, 1, (root,)), RoleName.RELEASE: release})
    body = keyring.encode_body(1, {RoleName.ROOT: Role(RoleName.ROOT, 1, (marked,)), RoleName.RELEASE: release})
    ring = trusted(keyring.build(body, sign_all([pairs["root"]], signature.message(Domain.KEYRING, body))))
    assert keyring.all_keys(ring) == (marked,)
    keyring.check_test_keys(ring, allowed=True)
    with pytest.raises(Refused, match="test key"):
        keyring.check_test_keys(ring, allowed=False)


def test_a_key_of_small_order_is_refused(pairs: dict[str, KeyPair]) -> None:
    weak = PublicKey((1).to_bytes(32, "little"))
    root = Role(RoleName.ROOT, 1, (pairs["root"].public,))
    with pytest.raises(Refused, match="safe"):
        keyring.encode_body(1, {RoleName.ROOT: root, RoleName.RELEASE: Role(RoleName.RELEASE, 1, (weak,))})


def approve(ring: Keyring, manifest: Manifest, manifest_bytes: bytes, pairs: dict[str, KeyPair], names: tuple[str, ...]) -> RoleName:
    """Sign with these keys and ask the keyring."""
    signatures = sign_all([pairs[name] for name in names], signature.message(Domain.BUNDLE, manifest_bytes))
    return keyring.check_bundle(manifest, manifest_bytes, signatures, ring).role


def test_bundle_thresholds(ring: Keyring, small_bundle: bytes, pairs: dict[str, KeyPair]) -> None:
    signed = bundle.read_signed(BytesIO(small_bundle).read, len(small_bundle))
    plain = signed.manifest
    fix = replace(plain, flags=frozenset({"security-fix"}))
    names = tuple(pairs)
    for count in range(len(names) + 1):
        for chosen in combinations(names, count):
            by_release = {"release-1", "release-2"} <= set(chosen)
            by_security = "security" in chosen
            for manifest, wanted in ((plain, by_release), (fix, by_release or by_security)):
                if wanted:
                    role = approve(ring, manifest, signed.manifest_bytes, pairs, chosen)
                    assert role is (RoleName.RELEASE if by_release else RoleName.SECURITY)
                else:
                    with pytest.raises(Refused):
                        approve(ring, manifest, signed.manifest_bytes, pairs, chosen)


def test_a_wrong_signature_by_any_key_of_the_keyring_is_refused(ring: Keyring, small_bundle: bytes, pairs: dict[str, KeyPair]) -> None:
    signed = bundle.read_signed(BytesIO(small_bundle).read, len(small_bundle))
    keyring.check_bundle(signed.manifest, signed.manifest_bytes, signed.signatures, ring)
    wrong = pairs["admin"].sign(b"another message")
    for name, refused in (("admin", True), ("stranger", False)):
        signatures = (*signed.signatures, Signature(pairs[name].public.raw, wrong))
        if refused:
            with pytest.raises(Refused, match="wrong"):
                keyring.check_bundle(signed.manifest, signed.manifest_bytes, signatures, ring)
        else:
            keyring.check_bundle(signed.manifest, signed.manifest_bytes, signatures, ring)
    with pytest.raises(Refused, match="not signed"):
        keyring.check_bundle(signed.manifest, signed.manifest_bytes, (), ring)
    # One signature that is there twice is one signer.
    twice = (signed.signatures[0], signed.signatures[0])
    with pytest.raises(Refused, match="signed by 1"):
        keyring.check_bundle(signed.manifest, signed.manifest_bytes, twice, ring)
