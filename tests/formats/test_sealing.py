"""Sealed bundles: who opens them, what is refused in the list of recipients, and that a chunk opens nowhere but in its place.

`by_the_book` opens a bundle with nothing but the specification in formats/bundle.py and the bare primitives.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats import bundle, chunktable, contentkey, manifest, sealing, tlv
from abupdate.formats.codec import Decoder
from abupdate.formats.contentkey import ContentKey, Identity, seal_for, unseal
from abupdate.model import Chunk, Codec, Image, ImageKind, Manifest, Recipient, Sealing
from tests.formats.test_golden import BOOT, GOLDEN, ROOTFS
from tests.workstation import ROOT

P = 2**255 - 19
PLAIN = Manifest(b"", "acme", (), "1.0", 1, "", 2, "", frozenset(), (Image("a", ImageKind.RAW, 4096, Codec.NONE, bytes(32), 100, 4096),))


def read(data: bytes) -> bundle.Head:
    return bundle.read_head(BytesIO(data).read, len(data))


def expand(key: bytes, info: bytes) -> bytes:
    """HKDF-Expand (RFC 5869) of 32 bytes."""
    return hmac.digest(key, info + b"\x01", "sha256")


def by_the_book(data: bytes, private: bytes) -> dict[str, bytes]:
    """The images of a sealed bundle by name, each as it lies on a slot."""
    head = read(data)
    seal = head.signed.manifest.sealing
    assert seal is not None
    key = X25519PrivateKey.from_private_bytes(private)
    public = key.public_key().public_bytes_raw()
    wrapped = {item.key_id: item.wrapped_key for item in seal.recipients}[hashlib.sha256(public).digest()[:8]]
    shared = key.exchange(X25519PublicKey.from_public_bytes(seal.ephemeral))
    extracted = hmac.digest(seal.seal_id, shared, "sha256")
    wrap_key = expand(extracted, b"abupdate seal 1 wrap\x00" + seal.ephemeral + public)
    content_key = ChaCha20Poly1305(wrap_key).decrypt(bytes(12), wrapped, b"")
    images = {}
    for image in head.signed.manifest.images:
        start, pieces = head.signed.payload_offset(image.name), []
        for chunk in head.tables.chunks(image.name):
            if chunk.zero:
                pieces.append(bytes(chunk.size))
                continue
            stored = data[start + chunk.stored_offset :][: chunk.stored_size]
            assert hashlib.sha256(stored).digest() == chunk.stored_sha256
            name = bytes([len(image.name)]) + image.name.encode()
            place = struct.pack("<QI", chunk.offset, chunk.size) + chunk.sha256
            chunk_key = expand(content_key, b"abupdate seal 1 chunk\x00" + seal.seal_id + name + place)
            opened = ChaCha20Poly1305(chunk_key).decrypt(stored[:12], stored[12:], b"")
            pieces.append(opened if chunk.raw or image.codec is Codec.NONE else zstandard.ZstdDecompressor().decompress(opened))
        images[image.name] = b"".join(pieces)
    return images


@pytest.mark.parametrize("who", ["device", "product"])
def test_every_recipient_opens_it_by_the_book_and_by_the_decoder(
    sealed_bundle: bytes, small_images: dict[str, bytes], identities: dict[str, Identity], who: str
) -> None:
    assert by_the_book(sealed_bundle, hashlib.sha256(who.encode()).digest()) == small_images
    head = read(sealed_bundle)
    seal = head.signed.manifest.sealing
    assert seal is not None
    for keys in ([identities[who]], [identities["other"], identities[who]]):
        key = unseal(seal, keys)
        for image in head.signed.manifest.images:
            decoder, start = Decoder(key.image(image.name)), head.signed.payload_offset(image.name)
            stored = (
                (chunk, sealed_bundle[start + chunk.stored_offset :][: chunk.stored_size]) for chunk in head.tables.chunks(image.name)
            )
            assert b"".join(decoder.plain(chunk, image.codec, piece) for chunk, piece in stored) == small_images[image.name]


def test_the_golden_bundle_by_the_book() -> None:
    data = (GOLDEN / "golden-sealed.abu").read_bytes()
    assert by_the_book(data, hashlib.sha256(b"product").digest()) == {"rootfs": ROOTFS, "boot": BOOT}


def test_what_is_stored_shows_nothing_of_the_content(sealed_bundle: bytes, small_bundle: bytes) -> None:
    """Hashes and sizes of slot bytes are those of the plain bundle; stored bytes are other ones, and never twice the same."""
    sealed, plain = read(sealed_bundle), read(small_bundle)
    seen = set()
    for name in ("rootfs", "boot"):
        for one, other in zip(sealed.tables.chunks(name), plain.tables.chunks(name), strict=True):
            assert (one.offset, one.size, one.sha256, one.probe) == (other.offset, other.size, other.sha256, other.probe)
            assert (one.zero, one.raw) == (other.zero, other.raw)
            assert one.stored_size == (0 if one.zero else other.stored_size + 28)
            if not one.zero:
                assert one.stored_sha256 not in (other.stored_sha256, other.sha256)
                start = sealed.signed.payload_offset(name) + one.stored_offset
                seen.add(sealed_bundle[start : start + 12])
    assert len(seen) == sum(not chunk.zero for name in ("rootfs", "boot") for chunk in sealed.tables.chunks(name))
    # The text in the images starts with this line; what is not encrypted shows it.
    assert b"line 1\n" in small_bundle
    assert b"line 1\n" not in sealed_bundle


def test_nobody_else_opens_it(sealed_bundle: bytes, identities: dict[str, Identity]) -> None:
    seal = read(sealed_bundle).signed.manifest.sealing
    assert seal is not None
    for keys, mine in (([], "none"), ([identities["other"]], identities["other"].key_id.hex())):
        with pytest.raises(Refused, match=f"keys here: {mine}$") as caught:
            unseal(seal, keys)
        for name in ("device", "product"):
            assert identities[name].key_id.hex() in caught.value.message
    # Somebody who puts the own id in place of another's has no more than before.
    stolen = replace(seal.recipients[0], key_id=identities["other"].key_id)
    with pytest.raises(Refused, match="does not open"):
        unseal(replace(seal, recipients=(stolen,)), [identities["other"]])


@given(st.integers(0, 47), st.integers(0, 7))
def test_a_damaged_wrapped_key_is_refused(identities: dict[str, Identity], position: int, bit: int) -> None:
    seal, _ = seal_for([identities["device"].public_key])
    wrapped = bytearray(seal.recipients[0].wrapped_key)
    wrapped[position] ^= 1 << bit
    damaged = replace(seal, recipients=(replace(seal.recipients[0], wrapped_key=bytes(wrapped)),))
    with pytest.raises(Refused, match="does not open"):
        unseal(damaged, [identities["device"]])


def test_the_wrapped_key_is_bound_to_seal_id_and_ephemeral_key(identities: dict[str, Identity]) -> None:
    seal, _ = seal_for([identities["device"].public_key])
    other, _ = seal_for([identities["device"].public_key])
    unseal(seal, [identities["device"]])
    for damaged in (replace(seal, seal_id=other.seal_id), replace(seal, ephemeral=other.ephemeral)):
        with pytest.raises(Refused, match="does not open"):
            unseal(damaged, [identities["device"]])


def test_names_of_many_recipients_stay_short() -> None:
    ids = [bytes([number]) * 8 for number in range(6)]
    assert sealing.names(ids[:2]) == f"{'00' * 8}, {'01' * 8}"
    assert sealing.names(ids).endswith(f"{'03' * 8} and 2 more")
    assert sealing.names([]) == "none"


# What stands in the manifest.

SAMPLE = Sealing(b"\x51" * 32, (9).to_bytes(32, "little"), (Recipient(b"a" * 8, b"w" * 48), Recipient(b"b" * 8, b"x" * 48)))
RECORDS = [(1, b"\x01"), (2, SAMPLE.seal_id), (3, SAMPLE.ephemeral), (4, b"a" * 8 + b"w" * 48), (4, b"b" * 8 + b"x" * 48)]


def encoded(records: list[tuple[int, bytes]]) -> bytes:
    """A manifest whose tag 0030 holds these records."""
    plain = manifest.encode(PLAIN)
    return plain + tlv.pack([(0x0030, tlv.pack(records))])


def without(tag: int, *more: tuple[int, bytes]) -> list[tuple[int, bytes]]:
    """The sample's records with these in place of a tag's."""
    return sorted([*(record for record in RECORDS if record[0] != tag), *more], key=lambda record: record[0])


def sealed_manifest(value: Sealing) -> Manifest:
    return replace(PLAIN, images=tuple(replace(image, sealed=True) for image in PLAIN.images), sealing=value)


def test_the_sample_is_taken_and_written_alike() -> None:
    found = manifest.decode(encoded(RECORDS))
    assert found.sealing == SAMPLE
    assert all(image.sealed for image in found.images)
    assert manifest.encode(sealed_manifest(SAMPLE)) == encoded(RECORDS)
    assert manifest.decode(manifest.encode(PLAIN)).sealing is None
    for half in (replace(PLAIN, sealing=SAMPLE), replace(sealed_manifest(SAMPLE), sealing=None)):
        with pytest.raises(Refused, match="either all images"):
            manifest.encode(half)


IDS = st.lists(st.binary(min_size=8, max_size=8), min_size=1, max_size=5, unique=True).map(sorted)


@given(IDS, st.binary(min_size=48, max_size=48), st.binary(min_size=32, max_size=32), st.integers(2, P - 2))
def test_sealing_round_trip(ids: list[bytes], wrapped: bytes, seal_id: bytes, u: int) -> None:
    if u in sealing.SMALL_ORDER_U:
        return
    value = Sealing(seal_id, u.to_bytes(32, "little"), tuple(Recipient(key_id, wrapped) for key_id in ids))
    data = manifest.encode(sealed_manifest(value))
    assert manifest.decode(data).sealing == value


@pytest.mark.parametrize(
    ("records", "words"),
    [
        pytest.param(without(1), "lacks", id="no suite"),
        pytest.param(without(1, (1, b"\x01\x00")), "suite has 2 bytes", id="long suite"),
        pytest.param(without(2), "lacks", id="no seal id"),
        pytest.param(without(2, (2, bytes(31))), "seal id has 31", id="short seal id"),
        pytest.param(without(2, (2, bytes(32)), (2, bytes(32))), "twice", id="two seal ids"),
        pytest.param(without(3), "lacks", id="no ephemeral key"),
        pytest.param(without(3, (3, SAMPLE.ephemeral[:31])), "ephemeral key has 31", id="short ephemeral key"),
        pytest.param(without(3, (3, SAMPLE.ephemeral + b"\0")), "ephemeral key has 33", id="long ephemeral key"),
        pytest.param(without(3, (3, (P + 9).to_bytes(32, "little"))), "not a safe", id="not canonical"),
        pytest.param(without(3, (3, (9 | 1 << 255).to_bytes(32, "little"))), "not a safe", id="high bit"),
        pytest.param(without(4), "for 0 recipients", id="nobody"),
        pytest.param(without(4, (4, b"a" * 8 + b"w" * 47)), "has 55 bytes", id="truncated wrapped key"),
        pytest.param(without(4, (4, b"a" * 8 + b"w" * 49)), "has 57 bytes", id="long wrapped key"),
        pytest.param(without(4, (4, b"")), "has 0 bytes", id="empty recipient"),
        pytest.param(without(4, (4, b"a" * 8 + b"w" * 48), (4, b"a" * 8 + b"w" * 48)), "ascending", id="the same twice"),
        pytest.param(without(4, (4, b"a" * 8 + b"w" * 48), (4, b"a" * 8 + b"x" * 48)), "ascending", id="one id twice"),
        pytest.param(without(4, (4, b"b" * 8 + b"w" * 48), (4, b"a" * 8 + b"w" * 48)), "ascending", id="descending"),
        pytest.param([*RECORDS[:3], RECORDS[4], RECORDS[3]], "ascending", id="swapped"),
        pytest.param([RECORDS[1], RECORDS[0], *RECORDS[2:]], "wrong place", id="tags out of order"),
        pytest.param(without(1, (1, b"\x02")), "suite 2.*needs a newer abupdate", id="unknown suite"),
        pytest.param(without(1, (1, b"\x00")), "suite 0.*needs a newer abupdate", id="suite zero"),
        pytest.param([*RECORDS, (5, b"")], "needs a newer abupdate", id="unknown tag"),
    ],
)
def test_a_hostile_list_of_recipients(records: list[tuple[int, bytes]], words: str) -> None:
    with pytest.raises(Refused, match=words):
        manifest.decode(encoded(records))


def test_the_tag_comes_once_and_last() -> None:
    value = tlv.pack(RECORDS)
    with pytest.raises(Refused, match="twice"):
        manifest.decode(encoded(RECORDS) + tlv.pack([(0x0030, value)]))
    with pytest.raises(Refused, match="wrong place"):
        manifest.decode(tlv.pack([(0x0030, value)]) + manifest.encode(PLAIN))
    with pytest.raises(Refused, match="lacks"):
        manifest.decode(manifest.encode(PLAIN) + tlv.pack([(0x0030, b"")]))


def test_as_many_recipients_as_fit_into_every_manifest() -> None:
    def listed(count: int) -> Sealing:
        return replace(SAMPLE, recipients=tuple(Recipient(number.to_bytes(8, "big"), bytes(48)) for number in range(count)))

    most = listed(sealing.MAX_RECIPIENTS)
    full = replace(
        sealed_manifest(most),
        compatible="c" * 128,
        hardware_revisions=tuple(f"{number:064}" for number in range(64)),
        version="1" * 64,
        min_updater="999999.999999.999999.999999",
        description="d" * 4096,
        flags=frozenset({"security-fix"}),
        images=tuple(
            Image(f"{number:064}", ImageKind.RAW, 4096, Codec.NONE, bytes(32), 100, 4096, bytes(32), sealed=True) for number in range(32)
        ),
    )
    assert manifest.decode(manifest.encode(full)).sealing == most
    with pytest.raises(Refused, match="513 recipients"):
        manifest.encode(sealed_manifest(listed(sealing.MAX_RECIPIENTS + 1)))
    with pytest.raises(Refused, match="recipients"):
        seal_for([])
    with pytest.raises(Refused, match="recipients"):
        seal_for([bytes(32)] * (sealing.MAX_RECIPIENTS + 1))


@pytest.mark.parametrize("u", sorted(sealing.SMALL_ORDER_U))
def test_keys_that_make_the_secret_zero(u: int, identities: dict[str, Identity]) -> None:
    weak = u.to_bytes(32, "little")
    # The library knows the same ones: with them every private key gives the same secret.
    with pytest.raises(ValueError, match="shared key"):
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(weak))
    with pytest.raises(Refused, match="not a safe"):
        manifest.decode(encoded(without(3, (3, weak))))
    with pytest.raises(Refused, match="not a safe"):
        seal_for([weak])
    # Even where the first check would be missing.
    seal, _ = seal_for([identities["device"].public_key])
    with pytest.raises(Refused, match="does not open"):
        unseal(replace(seal, ephemeral=weak), [identities["device"]])


def test_a_recipient_twice_is_refused(identities: dict[str, Identity]) -> None:
    with pytest.raises(Refused, match="twice"):
        seal_for([identities["device"].public_key, identities["device"].public_key])


# Chunks: whoever signs may claim anything of the stored bytes, the place decides.

DATA = b"the bytes of a chunk " * 400


def chunk_of(data: bytes, offset: int = 0) -> Chunk:
    return Chunk(offset, len(data), hashlib.sha256(data).digest(), chunktable.probe(data), 0, 0, b"", zero=False, raw=False)


def signed_for(chunk: Chunk, stored: bytes) -> Chunk:
    """The chunk as a table would list it that was made (and signed) for these stored bytes."""
    return replace(chunk, stored_size=len(stored), stored_sha256=hashlib.sha256(stored).digest())


KEY = ContentKey(b"k" * 32, b"s" * 32)


def test_the_same_chunk_is_stored_differently_every_time() -> None:
    chunk, cipher = chunk_of(DATA), KEY.image("rootfs")
    one, two = cipher.seal(chunk, DATA), cipher.seal(chunk, DATA)
    assert len(one) == len(DATA) + sealing.OVERHEAD_BYTES
    assert one[:12] != two[:12]
    assert one[12:] != two[12:]
    # Sealed again by somebody who has the key: it opens all the same.
    assert cipher.open(chunk, memoryview(one)) == cipher.open(chunk, memoryview(two)) == DATA


@pytest.mark.parametrize(
    ("key", "image", "change"),
    [
        pytest.param(KEY, "rootfs", lambda chunk: replace(chunk, offset=8192), id="another position"),
        pytest.param(KEY, "boot", lambda chunk: chunk, id="another image"),
        pytest.param(KEY, "rootfs2", lambda chunk: chunk, id="a longer name"),
        pytest.param(ContentKey(b"k" * 32, b"t" * 32), "rootfs", lambda chunk: chunk, id="another bundle under the same key"),
        pytest.param(ContentKey(b"l" * 32, b"s" * 32), "rootfs", lambda chunk: chunk, id="another key"),
        pytest.param(KEY, "rootfs", lambda chunk: replace(chunk, size=chunk.size - 1), id="another size"),
        pytest.param(KEY, "rootfs", lambda chunk: replace(chunk, sha256=bytes(32)), id="another content"),
    ],
)
def test_a_chunk_opens_only_in_its_place(key: ContentKey, image: str, change: Callable[[Chunk], Chunk]) -> None:
    stored = KEY.image("rootfs").seal(chunk_of(DATA), DATA)
    elsewhere = signed_for(change(chunk_of(DATA)), stored)
    out = memoryview(bytearray(b"\xee" * elsewhere.size))
    with pytest.raises(Refused, match="not sealed for its place"):
        Decoder(key.image(image)).decode(elsewhere, Codec.NONE, memoryview(stored), out)
    assert set(bytes(out)) == {0xEE}


@given(st.integers(0, 27), st.integers(0, 7), st.booleans())
def test_flipped_bits_in_nonce_text_and_tag_although_the_table_lists_them(position: int, bit: int, behind: bool) -> None:
    chunk = chunk_of(DATA)
    stored = bytearray(KEY.image("rootfs").seal(chunk, DATA))
    stored[-1 - position if behind else position] ^= 1 << bit
    with pytest.raises(Refused, match="not sealed for its place"):
        Decoder(KEY.image("rootfs")).plain(signed_for(chunk, bytes(stored)), Codec.NONE, bytes(stored))


@pytest.mark.parametrize("length", [0, 1, 11, 12, 27, 28])
def test_stored_bytes_too_short_to_be_sealed(length: int) -> None:
    stored = bytes(length)
    with pytest.raises(Refused, match="not sealed for its place"):
        Decoder(KEY.image("rootfs")).plain(signed_for(chunk_of(DATA), stored), Codec.NONE, stored)


def test_stored_bytes_are_verified_before_they_are_opened() -> None:
    class Never:
        def open(self, chunk: Chunk, sealed: memoryview) -> bytes:
            raise AssertionError("opened what the table does not list")

    chunk = chunk_of(DATA)
    stored = KEY.image("rootfs").seal(chunk, DATA)
    twin = KEY.image("rootfs").seal(chunk, DATA)
    with pytest.raises(Refused, match="stored bytes"):
        Decoder(Never()).plain(signed_for(chunk, stored), Codec.NONE, twin)


def test_what_was_sealed_is_decoded_by_the_same_rules() -> None:
    cipher, chunk = KEY.image("rootfs"), chunk_of(DATA)
    frame = zstandard.ZstdCompressor().compress(DATA)
    for inner, codec, word in (
        (DATA[:-1], Codec.NONE, "wrong stored size"),
        (DATA + b"\0", Codec.NONE, "wrong stored size"),
        (b"!" * len(DATA), Codec.NONE, "does not match"),
        (frame + b"\0", Codec.ZSTD, "follow"),
        (zstandard.ZstdCompressor().compress(b"!" * len(DATA)), Codec.ZSTD, "does not match"),
    ):
        stored = cipher.seal(chunk, inner)
        with pytest.raises(Refused, match=word):
            Decoder(cipher).plain(signed_for(chunk, stored), codec, stored)
    stored = cipher.seal(chunk, frame)
    assert Decoder(cipher).plain(signed_for(chunk, stored), Codec.ZSTD, stored) == DATA
    stored = cipher.seal(chunk, DATA)
    assert Decoder(cipher).plain(replace(signed_for(chunk, stored), raw=True), Codec.ZSTD, stored) == DATA


# What a table of a sealed image may say of stored sizes.


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("codec", [Codec.NONE, Codec.ZSTD])
@pytest.mark.parametrize("raw", [False, True])
def test_bounds_of_stored_sizes(sealed: bool, codec: Codec, raw: bool) -> None:
    added = sealing.OVERHEAD_BYTES if sealed else 0
    as_it_is = codec is Codec.NONE or raw

    def accepted(stored_size: int) -> bool:
        stored_sha256 = bytes([7]) * 32 if sealed or not as_it_is else chunk_of(DATA).sha256
        entry = replace(chunk_of(DATA), stored_size=stored_size, stored_sha256=stored_sha256, raw=raw)
        table = chunktable.pack_header(1) + chunktable.pack_entry(entry)
        image = Image("a", ImageKind.RAW, len(DATA), codec, b"", len(table), stored_size, sealed=sealed)
        try:
            chunktable.check(table, image)
        except Refused:
            return False
        return True

    sizes = [
        0,
        1,
        added,
        added + 1,
        len(DATA) - 1,
        len(DATA),
        len(DATA) + 1,
        len(DATA) + added - 1,
        len(DATA) + added,
        len(DATA) + added + 1,
    ]
    found = {size for size in sizes if accepted(size)}
    if codec is Codec.NONE and raw:
        assert found == set()
    elif as_it_is:
        assert found == {len(DATA) + added}
    else:
        assert found == {size for size in sizes if added < size < len(DATA) + added}


def test_a_zero_chunk_stays_nothing() -> None:
    sha256, probe = chunktable.zero_digests(4096)
    image = Image("a", ImageKind.RAW, 4096, Codec.NONE, b"", 100, 0, sealed=True)
    chunk = Chunk(0, 4096, sha256, probe, 0, 0, bytes(32), zero=True, raw=False)
    chunktable.check(chunktable.pack_header(1) + chunktable.pack_entry(chunk), image)
    for stored_size, digest in ((28, bytes(32)), (0, bytes([1]) * 32), (28, bytes([1]) * 32)):
        entry = chunktable.pack_entry(replace(chunk, stored_size=stored_size, stored_sha256=digest))
        with pytest.raises(Refused, match="contradicts"):
            chunktable.check(chunktable.pack_header(1) + entry, replace(image, payload_bytes=stored_size))


def test_a_machine_without_the_cipher_says_so(tmp_path: Path) -> None:
    """OpenSSL that has only what FIPS allows, by its own configuration."""
    (tmp_path / "openssl.cnf").write_text(
        'openssl_conf = start\n[start]\nalg_section = properties\n[properties]\ndefault_properties = "fips=yes"\n'
    )
    code = "from abupdate.formats.contentkey import _cipher\n_cipher(bytes(32))"
    environment = {**os.environ, "OPENSSL_CONF": str(tmp_path / "openssl.cnf"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "ConfigError: this machine's OpenSSL has no ChaCha20-Poly1305" in done.stderr


def test_ids_are_those_of_keys(identities: dict[str, Identity]) -> None:
    for identity in identities.values():
        assert identity.key_id == hashlib.sha256(identity.public_key).digest()[:8] == contentkey.key_id(identity.public_key)
