"""The construct declarations and the `struct` decoders read the same values out of the same bytes, and write the same bytes."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from construct import ConstructError
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats import bundle, chunktable, keyring, layout
from abupdate.formats.bundle import Signed
from abupdate.model import Keyring, Manifest


def values(records: Any) -> dict[int, list[Any]]:
    """A sequence's values by tag."""
    found: dict[int, list[Any]] = {}
    for record in records:
        found.setdefault(record.tag, []).append(record.value)
    return found


def agree_on_manifest(declared: Any, decoded: Manifest) -> None:
    """Compare what construct read with what the decoder made of it."""
    found = values(declared)
    assert found[0x0001] == [1]
    assert found[0x0002] == [decoded.compatible]
    assert tuple(found.get(0x0003, ())) == decoded.hardware_revisions
    assert found[0x0004] == [decoded.version]
    assert found[0x0005] == [decoded.security_counter]
    assert found.get(0x0006, [""]) == [decoded.min_updater]
    assert found[0x0007] == [decoded.build_time]
    assert found.get(0x0008, [""]) == [decoded.description]
    assert set(found.get(0x0009, ())) == decoded.flags
    assert len(found[0x0020]) == len(decoded.images)
    for nested, image in zip(found[0x0020], decoded.images, strict=True):
        fields = values(nested)
        assert [fields[tag][0] for tag in range(0x0001, 0x0008)] == [
            image.name,
            image.kind.value,
            image.codec.value,
            image.size_bytes,
            image.table_bytes,
            image.table_sha256,
            image.payload_bytes,
        ]
        assert fields.get(0x0008, [None]) == [image.verity_root]
    if decoded.sealing is None:
        assert 0x0030 not in found
    else:
        fields = values(found[0x0030][0])
        assert fields[0x0001] == [1]
        assert (fields[0x0002], fields[0x0003]) == ([decoded.sealing.seal_id], [decoded.sealing.ephemeral])
        listed = [(item.key_id, item.wrapped_key) for item in decoded.sealing.recipients]
        assert [(item.key_id, item.wrapped_key) for item in fields[0x0004]] == listed


def agree_on_signed(data: bytes, signed: Signed) -> None:
    """Header, manifest and signatures, both ways."""
    declared = layout.BUNDLE_SIGNED.parse(data)
    header = signed.header
    assert (
        declared.header.manifest_bytes,
        declared.header.signatures_bytes,
        declared.header.chain_bytes,
        declared.header.tables_bytes,
        declared.header.payload_bytes,
        declared.header.total_bytes,
        declared.header.envelope_sha256,
    ) == (
        header.manifest_bytes,
        header.signatures_bytes,
        header.chain_bytes,
        header.tables_bytes,
        header.payload_bytes,
        header.total_bytes,
        header.envelope_sha256,
    )
    agree_on_manifest(declared.manifest, signed.manifest)
    assert [(record.value.public_key, record.value.value) for record in declared.signatures] == [
        (item.public_key, item.value) for item in signed.signatures
    ]
    assert layout.BUNDLE_SIGNED.build(declared) == signed.raw


@pytest.mark.parametrize("sealed", [False, True])
def test_bundle(small_bundle: bytes, sealed_bundle: bytes, sealed: bool) -> None:
    agree_on_bundle(sealed_bundle if sealed else small_bundle)


def agree_on_bundle(small_bundle: bytes) -> None:
    """The whole head, and every chunk."""
    head = bundle.read_head(BytesIO(small_bundle).read, len(small_bundle))
    agree_on_signed(small_bundle, head.signed)
    assert layout.BUNDLE_HEADER.sizeof() == bundle.HEADER.size
    assert layout.CHUNK.sizeof() == chunktable.ENTRY.size
    offset = 0
    for image in head.signed.manifest.images:
        table = head.tables.raw[offset : offset + image.table_bytes]
        declared = layout.CHUNK_TABLE.parse(table)
        decoded = list(head.tables.chunks(image.name))
        assert declared.count == len(decoded)
        for entry, chunk in zip(declared.chunks, decoded, strict=True):
            assert (entry.size, entry.stored_size, entry.probe, entry.sha256, entry.stored_sha256, entry.flags.zero, entry.flags.raw) == (
                chunk.size,
                chunk.stored_size,
                chunk.probe,
                chunk.sha256,
                chunk.stored_sha256,
                chunk.zero,
                chunk.raw,
            )
        assert layout.CHUNK_TABLE.build(declared) == table
        assert chunktable.pack_header(len(decoded)) + b"".join(map(chunktable.pack_entry, decoded)) == table
        offset += image.table_bytes


@given(data=st.data())
def test_whatever_the_decoder_takes_construct_reads_alike(small_bundle: bytes, sealed_bundle: bytes, data: st.DataObject) -> None:
    small_bundle = data.draw(st.sampled_from([small_bundle, sealed_bundle]))
    signed = bundle.read_signed(BytesIO(small_bundle).read, len(small_bundle))
    damaged = bytearray(signed.raw)
    # Numbers and hashes inside the manifest: many such changes are taken by both.
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(bundle.HEADER.size, bundle.HEADER.size + signed.header.manifest_bytes - 1))
        damaged[position] = data.draw(st.integers(0, 255))
    try:
        changed = bundle.read_signed(BytesIO(bytes(damaged)).read, None)
    except Refused:
        return
    agree_on_signed(bytes(damaged), changed)


def agree_on_keyring(data: bytes, ring: Keyring) -> None:
    """The keyring, both ways."""
    declared = layout.KEYRING.parse(data)
    found = values(declared.body)
    assert found[0x0001] == [ring.version]
    roles = [values(record) for record in found[0x0002]]
    assert [(str(role[1][0]), role[2][0], [(key.raw, key.test) for key in role[3]]) for role in roles] == [
        (role.name.value, role.threshold, [(key.raw, key.test) for key in role.keys]) for role in ring.roles.values()
    ]
    assert [(record.value.public_key, record.value.value) for record in declared.signatures] == [
        (item.public_key, item.value) for item in ring.signatures
    ]
    assert layout.KEYRING.build(declared) == data


def test_keyring(ring_bytes: bytes, ring: Keyring) -> None:
    agree_on_keyring(ring_bytes, ring)


@given(data=st.data())
def test_keyrings_that_are_taken_are_read_alike(ring_bytes: bytes, data: st.DataObject) -> None:
    damaged = bytearray(ring_bytes)
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] = data.draw(st.integers(0, 255))
    try:
        ring = keyring.parse(bytes(damaged))
    except Refused:
        return
    agree_on_keyring(bytes(damaged), ring)


@given(st.binary(max_size=400))
def test_what_construct_cannot_read_is_refused(data: bytes) -> None:
    whole = bundle.MAGIC + data
    try:
        layout.BUNDLE_SIGNED.parse(whole)
    except ConstructError:
        try:
            bundle.read_signed(BytesIO(whole).read, len(whole))
        except Refused:
            return
        raise AssertionError("the decoder took what the specification does not describe") from None
