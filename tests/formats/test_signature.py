"""Ed25519 by the strict rules: what the library takes and we do not."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats import signature
from abupdate.formats.signature import Domain
from abupdate.host.keys import KeyPair
from abupdate.model import Signature
from tests.formats.edwards import SMALL, L, P, Point, encode, times

# RFC 8032, 7.1: public key, message, signature.
VECTORS = (
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
)


def test_the_list_holds_exactly_the_points_of_small_order() -> None:
    assert len(SMALL) == 8
    assert all(times(8, point) == (0, 1) for point in SMALL)
    assert {y for _x, y in SMALL} == signature.SMALL_ORDER_Y


@pytest.mark.parametrize(("key", "message", "value"), VECTORS)
def test_published_vectors(key: str, message: str, value: str) -> None:
    raw, signed, good = bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(value)
    assert signature.verify(raw, good, signed)
    assert not signature.verify(raw, good, signed + b"x")
    malleable = good[:32] + (int.from_bytes(good[32:], "little") + L).to_bytes(32, "little")
    assert not signature.verify(raw, malleable, signed)


def test_the_library_takes_a_signature_of_nobody_and_we_do_not() -> None:
    identity = encode((0, 1))
    forged = identity + bytes(32)
    for message in (b"anything", b"anything else"):
        Ed25519PublicKey.from_public_bytes(identity).verify(forged, message)
        assert not signature.verify(identity, forged, message)


@pytest.mark.parametrize("point", SMALL)
def test_small_order_is_refused_as_key_and_as_r(point: Point, pairs: dict[str, KeyPair]) -> None:
    encodings = {encode(point), bytes([*encode(point)[:31], encode(point)[31] ^ 0x80])}
    if point[1] + P < 2**255:
        encodings.add((point[1] + P).to_bytes(32, "little"))
    for raw in encodings:
        with pytest.raises(Refused):
            signature.check_public_key(raw)
        assert not signature.verify(raw, raw + bytes(32), b"message")
        assert not signature.verify(pairs["root"].public.raw, raw + bytes(32), b"message")


def secret_number(pair: KeyPair) -> int:
    """The number behind a key (RFC 8032, 5.1.5): its public key is that many times the base point."""
    seed = pair.private.private_bytes_raw()
    digest = bytearray(hashlib.sha512(seed).digest()[:32])
    digest[0] &= 248
    digest[31] = digest[31] & 127 | 64
    return int.from_bytes(digest, "little") % L


def test_a_key_of_small_order_is_refused_whatever_r_is(pairs: dict[str, KeyPair]) -> None:
    """Under the identity as key, S times the base point as R is a signature of every message."""
    identity = encode((0, 1))
    forged = pairs["root"].public.raw + secret_number(pairs["root"]).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(identity).verify(forged, b"anything")
    assert not signature.verify(identity, forged, b"anything")


def test_an_r_of_small_order_is_refused_whatever_the_key_is(pairs: dict[str, KeyPair]) -> None:
    """Who has the key can sign so, and another library may see it otherwise: one file, two verdicts."""
    key, signed, r = pairs["root"].public.raw, b"message", encode((0, 1))
    challenge = int.from_bytes(hashlib.sha512(r + key + signed).digest(), "little") % L
    value = r + (challenge * secret_number(pairs["root"]) % L).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(key).verify(value, signed)
    assert not signature.verify(key, value, signed)


@pytest.mark.parametrize("y", [P, P + 3, 2**255 - 1])
def test_keys_that_are_not_canonical_are_refused(y: int) -> None:
    with pytest.raises(Refused):
        signature.check_public_key(y.to_bytes(32, "little"))


@pytest.mark.parametrize("value", [b"", bytes(64), bytes(63), bytes(65), b"\x01" * 63])
def test_empty_and_zero_signatures_never_reach_the_library(
    value: bytes, pairs: dict[str, KeyPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ed25519PublicKey, "from_public_bytes", None)
    assert not signature.verify(pairs["root"].public.raw, value, b"message")


def test_a_signature_of_one_kind_is_none_of_another(pairs: dict[str, KeyPair]) -> None:
    pair = pairs["root"]
    messages = {domain: signature.message(domain, b"object") for domain in Domain}
    for signed_domain, message in messages.items():
        value = pair.sign(message)
        assert [domain for domain, other in messages.items() if signature.verify(pair.public.raw, value, other)] == [signed_domain]
    # No domain is the start of another, so that no object can be chosen to turn one message into another.
    assert not any(a is not b and b.value.startswith(a.value) for a in Domain for b in Domain)


def test_signers_counts_keys_and_not_signatures(pairs: dict[str, KeyPair]) -> None:
    message = signature.message(Domain.BUNDLE, b"object")
    one, two = (Signature(pairs[name].public.raw, pairs[name].sign(message)) for name in ("release-1", "release-2"))
    assert signature.signers([one, one, one], [one.public_key, two.public_key], message) == {one.public_key}
    assert signature.signers([one, two], [one.public_key], message) == {one.public_key}
    with pytest.raises(Refused, match="wrong"):
        signature.signers([one, Signature(two.public_key, one.value)], [one.public_key, two.public_key], message)
    assert signature.signers([one, Signature(two.public_key, one.value)], [one.public_key], message) == {one.public_key}


@given(
    st.lists(
        st.tuples(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64)), max_size=5, unique_by=lambda pair: pair[0]
    )
)
def test_block_round_trip(items: list[tuple[bytes, bytes]]) -> None:
    signatures = tuple(Signature(key, value) for key, value in items)
    block = signature.pack_block(signatures)
    assert signature.unpack_block(block) == tuple(sorted(signatures, key=lambda item: item.public_key))


@given(st.binary(max_size=400))
def test_block_takes_nothing_that_it_would_not_write(data: bytes) -> None:
    try:
        signatures = signature.unpack_block(data)
    except Refused:
        return
    assert signature.pack_block(signatures) == data


def test_block_refuses_a_key_twice_wrong_order_and_wrong_lengths() -> None:
    a, b = (Signature(bytes([n]) * 32, bytes([n]) * 64) for n in (1, 2))
    good = signature.pack_block([a, b])
    half = len(good) // 2
    assert signature.unpack_block(good) == (a, b)
    for bad in (good[half:] + good[:half], good[:half] * 2, good[:-1], good + b"\0", b"\x01\x00\x20\x00" + bytes(32)):
        with pytest.raises(Refused):
            signature.unpack_block(bad)
    with pytest.raises(ValueError, match="one key"):
        signature.pack_block([a, a])
    with pytest.raises(ValueError, match="too many"):
        signature.pack_block(Signature(n.to_bytes(32, "big"), bytes(64)) for n in range(200))
    with pytest.raises(Refused, match="more than"):
        signature.unpack_block(bytes(signature.MAX_BLOCK_BYTES + 1))
