"""Build -> parse -> equal for what the other files here do not do it for: whole heads, chunk tables, keyrings, chains, TLV, fw_env.config,
the configuration. The way back, parse -> build -> the same bytes, is asserted by the fuzz targets (tests/fuzz/targets.py) too.
"""

from __future__ import annotations

import hashlib
import json
import string
from io import BytesIO
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from abupdate import config
from abupdate.formats import bundle, chunktable, fwenvconfig, keyring, layout, manifest, rotation, signature, tlv
from abupdate.formats.fwenvconfig import EnvLocation
from abupdate.model import Chunk, Codec, Image, ImageKind, Manifest, PublicKey, Role, RoleName, Signature
from tests.formats.test_layout import agree_on_keyring, agree_on_signed

BLOCK = chunktable.ALIGN_BYTES
digests = st.binary(min_size=32, max_size=32)
sizes = st.integers(1, chunktable.MAX_CHUNK_BYTES // BLOCK).map(lambda blocks: blocks * BLOCK)
# Random points are canonical and of large order, for all that a test will ever see.
keys = st.binary(min_size=32, max_size=32).map(lambda raw: raw[:31] + bytes([raw[31] & 0x3F | 0x10]))
blocks = st.lists(st.builds(Signature, keys, st.binary(min_size=64, max_size=64)), max_size=5, unique_by=lambda item: item.public_key)


@st.composite
def chunk_lists(draw: st.DrawFn, codec: Codec) -> list[Chunk]:
    """Chunks that a table may hold, one after the other."""
    wanted = draw(st.lists(sizes, max_size=6))
    if draw(st.booleans()):
        wanted.append(draw(st.integers(1, BLOCK)))
    found: list[Chunk] = []
    offset = stored_offset = 0
    for size in wanted:
        sha256 = draw(digests)
        probe = sha256[:8] if size <= chunktable.PROBE_BYTES else draw(st.binary(min_size=8, max_size=8))
        kind = draw(st.sampled_from(("zero", "raw", "coded"))) if size > 1 else "raw"
        if kind == "zero":
            sha256, probe = chunktable.zero_digests(size)
            stored, stored_sha256 = 0, bytes(32)
        elif kind == "raw" or codec is Codec.NONE:
            stored, stored_sha256 = size, sha256
        else:
            stored, stored_sha256 = draw(st.integers(1, size - 1)), draw(digests)
        raw = kind == "raw" and codec is Codec.ZSTD
        found.append(Chunk(offset, size, sha256, probe, stored_offset, stored, stored_sha256, kind == "zero", raw))
        offset, stored_offset = offset + size, stored_offset + stored
    return found


def table_of(chunks: list[Chunk]) -> bytes:
    """The bytes of a table."""
    return chunktable.pack_header(len(chunks)) + b"".join(map(chunktable.pack_entry, chunks))


def image_of(name: str, chunks: list[Chunk], codec: Codec) -> Image:
    """What the manifest says of these chunks."""
    table = table_of(chunks)
    size, stored = sum(chunk.size for chunk in chunks), sum(chunk.stored_size for chunk in chunks)
    kind = ImageKind.RAW if size else ImageKind.FILE
    return Image(name, kind, size, codec, hashlib.sha256(table).digest(), len(table), stored)


@given(st.data(), st.sampled_from(Codec))
def test_chunk_tables(data: st.DataObject, codec: Codec) -> None:
    chunks = data.draw(chunk_lists(codec))
    table = table_of(chunks)
    chunktable.check(table, image_of("rootfs", chunks, codec))
    assert list(chunktable.chunks(table)) == chunks
    declared = layout.CHUNK_TABLE.parse(table)
    assert [(entry.size, entry.stored_size, entry.sha256) for entry in declared.chunks] == [
        (chunk.size, chunk.stored_size, chunk.sha256) for chunk in chunks
    ]
    assert layout.CHUNK_TABLE.build(declared) == table


@settings(max_examples=40)
@given(st.data(), st.sampled_from(Codec), blocks, st.binary(max_size=300))
def test_heads(data: st.DataObject, codec: Codec, signatures: list[Signature], chain: bytes) -> None:
    """Any images, signatures (which nobody verifies here) and chain (which the reader of a bundle does not judge)."""
    tables = {name: data.draw(chunk_lists(codec)) for name in ("rootfs", "boot")[: data.draw(st.integers(1, 2))]}
    images = tuple(image_of(name, chunks, codec) for name, chunks in tables.items())
    wanted = Manifest(b"", "acme", ("r1",), "1.0", 1, "", 0, "", frozenset(), images)
    manifest_bytes = manifest.encode(wanted)
    raw = b"".join(table_of(chunks) for chunks in tables.values())
    payload = sum(image.payload_bytes for image in images)
    built = bundle.build_head(manifest_bytes, signature.pack_block(signatures), len(raw), payload, chain) + raw
    for head in (bundle.parse_stored_head(built), bundle.read_head(BytesIO(built).read, len(built) + payload)):
        assert head.raw == built
        assert head.signed.manifest.images == images
        assert head.signed.chain == chain
        assert sorted(head.signed.signatures, key=lambda item: item.public_key) == sorted(signatures, key=lambda item: item.public_key)
        assert {name: list(head.tables.chunks(name)) for name in tables} == tables
    agree_on_signed(head.signed.raw, head.signed)


@st.composite
def roles(draw: st.DrawFn) -> dict[RoleName, Role]:
    """Root, release and perhaps more; a key has one mark in all of them."""
    pool = [PublicKey(raw, draw(st.booleans())) for raw in draw(st.lists(keys, min_size=1, max_size=6, unique=True))]
    names = [RoleName.ROOT, RoleName.RELEASE, *draw(st.sets(st.sampled_from((RoleName.SECURITY, RoleName.ADMIN))))]
    found: dict[RoleName, Role] = {}
    for name in sorted(names, key=list(RoleName).index):
        mine = draw(st.lists(st.sampled_from(pool), min_size=1, unique_by=lambda key: key.raw))
        ordered = tuple(sorted(mine, key=lambda key: key.raw))
        found[name] = Role(name, draw(st.integers(1, len(ordered))), ordered)
    return found


@settings(max_examples=40)
@given(st.integers(1, 2**32 - 1), roles(), blocks)
def test_keyrings(version: int, wanted: dict[RoleName, Role], signatures: list[Signature]) -> None:
    body = keyring.encode_body(version, wanted)
    data = keyring.build(body, signatures)
    ring = keyring.parse(data)
    assert (ring.version, dict(ring.roles), ring.body) == (version, wanted, body)
    assert keyring.build(keyring.encode_body(ring.version, ring.roles), ring.signatures) == data
    agree_on_keyring(data, ring)


@settings(max_examples=40)
@given(st.integers(1, 2**32 - 9), st.lists(roles(), max_size=4), blocks)
def test_chains(first: int, wanted: list[dict[RoleName, Role]], signatures: list[Signature]) -> None:
    files = [keyring.build(keyring.encode_body(first + number, one), signatures) for number, one in enumerate(wanted)]
    frames = rotation.split(b"".join(files))
    assert [frame.data for frame in frames] == files
    assert [dict(keyring.decode(frame).roles) for frame in frames] == wanted


@given(st.dictionaries(st.integers(0, 0x7FFF), st.lists(st.binary(max_size=50), min_size=1, max_size=3), max_size=6))
def test_sequences(wanted: dict[int, list[bytes]]) -> None:
    ordered = {tag: wanted[tag] for tag in sorted(wanted)}
    data = tlv.pack((tag, value) for tag, values in ordered.items() for value in values)
    assert tlv.unpack(data, dict.fromkeys(ordered, True), "it") == ordered
    declared = layout._sequence({}).parse(data)
    assert [(record.tag, record.value) for record in declared] == [(tag, value) for tag, values in ordered.items() for value in values]


devices = st.text(string.ascii_letters + string.digits + "/._-é", min_size=1, max_size=40).map(lambda name: "/" + name)
env_sizes = st.integers(64, 1 << 24)


@given(devices, st.integers(0, 2**40), env_sizes, st.integers(0, 2**40), st.integers(0, 2**40), st.booleans(), st.booleans())
def test_fw_env_config(device: str, offset: int, size: int, sector: int, sectors: int, lock: bool, two: bool) -> None:
    wanted = [EnvLocation(device, offset, size, sector, sectors, lock)]
    if two:
        wanted.append(EnvLocation(device, offset + size, size, sector, sectors, lock))
    lines = [
        f"{one.device}\t{one.offset:#x} {one.size_bytes:x} 0x{one.sector_bytes:X} {one.sectors:x} {int(not lock)} # it" for one in wanted
    ]
    assert fwenvconfig.parse("\n\n".join(lines).encode()) == tuple(wanted)


words = st.text(string.ascii_letters + string.digits + " -_.\"'\\äß€/", min_size=1, max_size=30)


@given(words, words, st.integers(1, 86400), st.integers(0, 99), st.booleans(), st.booleans())
def test_configurations(compatible: str, place: str, window_s: int, tries: int, always: bool, split: bool) -> None:
    """JSON's strings are TOML's. Whatever is in one file may be in a fragment."""
    base = Path("/etc/abupdate/config.toml")
    first = f"compatible = {json.dumps(compatible)}\n[slots.A]\nimages = {{ x = {json.dumps('a' + place)} }}\n"
    first += '[slots.B]\nimages = { x = "b" }\n'
    second = f'[bootloader]\nkind = "uboot"\n[trust]\nkeyring = "/k"\n[trial]\nwindow_s = {window_s}\nconfirmed_tries = {tries}\n'
    second += f"[watchdog]\nalways = {json.dumps(always)}\n"
    texts = [first, second] if split else [first + second]
    made = config.compose(((base, text.encode()) for text in texts), base)
    assert made.compatible == compatible
    assert made.slots["A"].images == {"x": base.parent / ("a" + place)}
    assert (made.trial.window_s, made.trial.confirmed_tries, made.watchdog.always) == (window_s, tries, always)
