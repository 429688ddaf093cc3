"""A bundle that carries the keyring's chain, and the order in which a reader with a keyring looks at what it is given."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import Failed, Refused
from abupdate.formats import bundle, keyring, layout, manifest, rotation, signature
from abupdate.formats.bundle import Open, Signed
from abupdate.formats.signature import Domain
from abupdate.formats.trusted import at_end_of_chain, opener
from abupdate.host.signing import sign_all
from abupdate.model import Keyring, RoleName
from tests.rings import body_of, pair, signed

TWO = signed(body_of(2, ("root", "admin"), 2), "root", "admin")
THREE = signed(body_of(3, ("stranger",), release="release-2"), "root", "admin", "stranger")


def with_chain(data: bytes, chain: bytes) -> bytes:
    """The bundle with this chain and everything else as it was."""
    old = bundle.read_signed(BytesIO(data).read, len(data))
    block = old.raw[bundle.HEADER.size + len(old.manifest_bytes) :][: old.header.signatures_bytes]
    head = bundle.build_head(old.manifest_bytes, block, old.header.tables_bytes, old.header.payload_bytes, chain)
    return head + data[len(old.raw) :]


@pytest.fixture(scope="session")
def chained(small_bundle: bytes, ring_bytes: bytes) -> bytes:
    """The small bundle with versions 1 to 3."""
    return with_chain(small_bundle, ring_bytes + TWO + THREE)


def test_the_chain_is_beside_what_was_signed(small_bundle: bytes, chained: bytes, ring_bytes: bytes, ring: Keyring) -> None:
    plain = bundle.read_head(BytesIO(small_bundle).read, len(small_bundle)).signed
    head = bundle.read_head(BytesIO(chained).read, len(chained), opener(ring))
    assert head.signed.chain == ring_bytes + TWO + THREE
    assert head.raw == chained[: head.signed.header.head_bytes]
    assert (head.signed.manifest, head.signed.signatures) == (plain.manifest, plain.signatures)
    assert bundle.parse_stored_head(head.raw, opener(ring)) == head
    assert at_end_of_chain(ring, head.signed.chain).version == 3
    assert with_chain(chained, b"") == small_bundle


def test_construct_reads_the_same_chain(chained: bytes) -> None:
    head = bundle.read_head(BytesIO(chained).read, len(chained))
    declared = layout.BUNDLE_SIGNED.parse(chained)
    assert declared.chain == head.signed.chain
    assert layout.BUNDLE_SIGNED.build(declared) == head.signed.raw
    frames = rotation.split(head.signed.chain)
    found = layout.CHAIN.parse(head.signed.chain)
    assert [one.body[0].value for one in found] == [frame.version for frame in frames] == [1, 2, 3]
    assert layout.CHAIN.build(found) == b"".join(frame.data for frame in frames)


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_every_flipped_byte_of_header_and_chain_is_refused(chained: bytes, ring: Keyring, mask: int) -> None:
    signed_part = bundle.read_signed(BytesIO(chained).read, len(chained))
    start = len(signed_part.raw) - len(signed_part.chain)
    for position in (*range(bundle.HEADER.size), *range(start, len(signed_part.raw))):
        damaged = bytearray(chained)
        damaged[position] ^= mask
        for size in (len(damaged), None):
            with pytest.raises(Refused):
                bundle.read_head(BytesIO(damaged).read, size, opener(ring))


def test_every_cut_within_the_chain(chained: bytes, ring: Keyring) -> None:
    signed_part = bundle.read_signed(BytesIO(chained).read, len(chained))
    for cut in range(len(signed_part.raw) - len(signed_part.chain), len(signed_part.raw)):
        with pytest.raises(Refused):
            bundle.read_head(BytesIO(chained[:cut]).read, len(chained), opener(ring))
        with pytest.raises(Failed):
            bundle.read_head(BytesIO(chained[:cut]).read, None, opener(ring))


@given(data=st.data())
def test_whatever_stands_in_place_of_the_chain(small_bundle: bytes, ring_bytes: bytes, ring: Keyring, data: st.DataObject) -> None:
    """With the header put right each time: what is taken is versions of the true chain, from the front."""
    true = ring_bytes + TWO + THREE
    start = data.draw(st.integers(0, len(true)))
    end = data.draw(st.integers(start, len(true)))
    mutated = with_chain(small_bundle, true[:start] + data.draw(st.binary(max_size=40)) + true[end:])
    try:
        head = bundle.read_head(BytesIO(mutated).read, len(mutated), opener(ring))
    except Refused:
        return
    assert at_end_of_chain(ring, head.signed.chain).body in {ring.body, keyring.parse(TWO).body, keyring.parse(THREE).body}


def test_bounds(small_bundle: bytes, ring: Keyring) -> None:
    limit = rotation.MAX_CHAIN_BYTES
    whole = with_chain(small_bundle, bytes(limit))
    assert len(bundle.read_signed(BytesIO(whole).read, len(whole)).chain) == limit
    with pytest.raises(Refused, match="not a keyring"):
        bundle.read_signed(BytesIO(whole).read, len(whole), opener(ring))
    with pytest.raises(Refused, match="out of bounds"):
        with_chain(small_bundle, bytes(limit + 1))


def test_the_chain_decides_which_keys_count(chained: bytes, small_bundle: bytes, ring_bytes: bytes, ring: Keyring) -> None:
    """In version 3 release-2 alone releases; a bundle by release-1 is refused there and good for a device that stays at version 2."""
    by_one = resigned(small_bundle, "release-1")
    for chain, good in ((ring_bytes + TWO, True), (ring_bytes + TWO + THREE, False), (TWO, True), (b"", False)):
        data = with_chain(by_one, chain)
        if good:
            assert bundle.read_signed(BytesIO(data).read, len(data), opener(ring)).manifest.version == "1.2.0"
        else:
            with pytest.raises(Refused, match="of the keyring's release keys"):
                bundle.read_signed(BytesIO(data).read, len(data), opener(ring))


def resigned(data: bytes, *names: str, manifest_bytes: bytes | None = None) -> bytes:
    """The bundle's envelope with these signers, and another manifest where one is given."""
    old = bundle.read_signed(BytesIO(data).read, len(data))
    content = old.manifest_bytes if manifest_bytes is None else manifest_bytes
    block = signature.pack_block(sign_all([pair(name) for name in names], signature.message(Domain.BUNDLE, content)))
    return bundle.build_head(content, block, old.header.tables_bytes, old.header.payload_bytes, old.chain) + data[len(old.raw) :]


def read(data: bytes, open_: Open) -> Signed:
    """The envelope of a file."""
    return bundle.read_signed(BytesIO(data).read, len(data), open_)


ENOUGH = [("release-1", "release-2"), ("release-1", "release-2", "security"), ("security",), ("security", "release-1")]
TOO_FEW: list[tuple[str, ...]] = [(), ("release-1",), ("root",), ("admin",), ("root", "admin", "release-2"), ("stranger",)]


@pytest.mark.parametrize("names", [*ENOUGH, *TOO_FEW])
def test_a_manifest_that_makes_no_sense_is_looked_at_only_behind_enough_signatures(
    small_bundle: bytes, ring: Keyring, names: tuple[str, ...]
) -> None:
    """release: both keys; security: its one key. What is said tells which of the two came first."""
    for content in (b"no manifest at all", b"\1\0\2\0\2\0", bytes(65536)):
        rubbish = resigned(small_bundle, *names, manifest_bytes=content)
        with pytest.raises(Refused) as caught:
            read(rubbish, opener(ring))
        about_signatures = "signed by" in caught.value.message or "not signed" in caught.value.message
        assert about_signatures is (names in TOO_FEW), caught.value.message
        with pytest.raises(Refused, match="manifest"):
            read(rubbish, bundle.decode)


@pytest.mark.parametrize("names", [*ENOUGH, *TOO_FEW])
@pytest.mark.parametrize("fix", [False, True], ids=["plain", "security-fix"])
def test_the_role_must_fit_the_flags(small_bundle: bytes, ring: Keyring, names: tuple[str, ...], fix: bool) -> None:
    old = read(small_bundle, bundle.decode)
    content = manifest.encode(replace(old.manifest, flags=frozenset({"security-fix"}))) if fix else old.manifest_bytes
    data = resigned(small_bundle, *names, manifest_bytes=content)
    by_release = {"release-1", "release-2"} <= set(names)
    if by_release or (fix and "security" in names):
        found = read(data, opener(ring))
        wanted = RoleName.RELEASE if by_release else RoleName.SECURITY
        assert keyring.check_bundle(found.manifest, found.manifest_bytes, found.signatures, ring).role is wanted
    else:
        with pytest.raises(Refused, match="security fix" if "security" in names else "signed"):
            read(data, opener(ring))


def test_lengths_of_header_and_manifest_are_compared_behind_the_signatures(small_bundle: bytes, ring: Keyring) -> None:
    old = read(small_bundle, bundle.decode)
    block = signature.pack_block(old.signatures)
    head = bundle.build_head(old.manifest_bytes, block, old.header.tables_bytes + 84, old.header.payload_bytes - 84)
    data = head + small_bundle[len(old.raw) :]
    with pytest.raises(Refused, match="disagree about the length"):
        read(data, opener(ring))
    unsigned = bundle.build_head(old.manifest_bytes, b"", old.header.tables_bytes + 84, old.header.payload_bytes - 84)
    with pytest.raises(Refused, match="not signed"):
        read(unsigned + small_bundle[len(old.raw) :], opener(ring))


def test_a_wrong_signature_by_a_key_of_the_keyring_in_any_role(small_bundle: bytes, ring: Keyring) -> None:
    old = read(small_bundle, bundle.decode)
    for name, refused in (("root", True), ("admin", True), ("security", True), ("stranger", False)):
        extra = replace(old.signatures[0], public_key=pair(name).public.raw)
        block = signature.pack_block((*old.signatures, extra))
        data = (
            bundle.build_head(old.manifest_bytes, block, old.header.tables_bytes, old.header.payload_bytes) + small_bundle[len(old.raw) :]
        )
        if refused:
            with pytest.raises(Refused, match="is wrong"):
                read(data, opener(ring))
        else:
            assert read(data, opener(ring)).manifest == old.manifest
