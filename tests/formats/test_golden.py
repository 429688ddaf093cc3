"""Golden files: what was written once must be read for ever, and written again byte for byte.

The files in golden/ are never made anew for a change of the code: a change that needs that is a new format version.
`golden.abu` stores bytes as they are, so that it does not depend on the zstd library; `golden-zstd.abu` is only read, and so is
`golden-sealed.abu`, which is never twice the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from abupdate.formats import bundle, keyring, rotation
from abupdate.formats.codec import Decoder
from abupdate.formats.contentkey import ContentKey, Identity, unseal
from abupdate.formats.record import decode as decode_record
from abupdate.formats.record import encode as encode_record
from abupdate.formats.trusted import opener
from abupdate.host.create import create
from abupdate.host.keys import KeyPair
from abupdate.host.spec import load
from abupdate.model import Attempt, Codec, ImageKind, Phase, RoleName, SlotRecord, SlotState
from tests.rings import body_of, signed

GOLDEN = Path(__file__).parent / "golden"
SPEC = """
compatible = "golden-device"
version = "1.0.0+golden"
security_counter = 42
hardware_revisions = ["r1", "r2"]
description = "A bundle that every later version reads."
flags = ["security-fix"]
min_updater = "0.1"
chunk_bytes = 8192
[images.rootfs]
file = "rootfs"
codec = "{codec}"
[images.boot]
file = "boot"
codec = "{codec}"
"""
ROOTFS = b"".join(b"golden line %d\n" % number for number in range(700)) + bytes(16384) + b"end"
BOOT = hashlib.shake_256(b"golden").digest(5000)
BUNDLE_IDS = {
    "golden.abu": "f777da9ed89a88317289675fcf29aa8a5f79a0e04bc3e29d2b67b3f4c6a82a13",
    "golden-chain.abu": "f777da9ed89a88317289675fcf29aa8a5f79a0e04bc3e29d2b67b3f4c6a82a13",
    "golden-zstd.abu": "82df1891f5d2608ad2390a4207a392928f66ebf01e0017ce217f8783782b9232",
    "golden-sealed.abu": "e4c5f3393157cd658e45cab2bed70a9da8e1fbb0e868727a2429366815e4f3b4",
}


def build(folder: Path, pairs: dict[str, KeyPair], codec: str, chain: bytes = b"") -> bytes:
    """The bundle that the golden file holds, built now."""
    (folder / "rootfs").write_bytes(ROOTFS)
    (folder / "boot").write_bytes(BOOT)
    (folder / "spec.toml").write_text(SPEC.format(codec=codec))
    create(replace(load(folder / "spec.toml"), chain=chain), folder / "out.abu", [pairs["release-2"], pairs["release-1"]])
    return (folder / "out.abu").read_bytes()


def test_bundle_is_written_byte_for_byte(tmp_path: Path, pairs: dict[str, KeyPair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert build(tmp_path, pairs, "none") == (GOLDEN / "golden.abu").read_bytes()


def test_bundle_with_a_chain_is_written_byte_for_byte(tmp_path: Path, pairs: dict[str, KeyPair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    chain = (GOLDEN / "golden-chain.abk").read_bytes()
    assert build(tmp_path, pairs, "none", chain) == (GOLDEN / "golden-chain.abu").read_bytes()


def test_keyring_is_written_byte_for_byte(ring_bytes: bytes) -> None:
    assert ring_bytes == (GOLDEN / "golden.abk").read_bytes()


def test_chain_is_written_byte_for_byte_and_walked(ring_bytes: bytes) -> None:
    """Version 2: two of root and admin are root now, and release-1 alone releases."""
    chain = (GOLDEN / "golden-chain.abk").read_bytes()
    assert chain == ring_bytes + signed(body_of(2, ("root", "admin"), 2), "root", "admin")
    (step,) = rotation.walk(keyring.parse(ring_bytes), chain, allow_test_keys=False)
    assert (step.ring.version, step.ring.roles[RoleName.ROOT].threshold, len(step.ring.roles[RoleName.RELEASE].keys)) == (2, 2, 1)
    data = (GOLDEN / "golden-chain.abu").read_bytes()
    head = bundle.read_head(BytesIO(data).read, len(data), opener(keyring.parse(ring_bytes)))
    assert head.signed.chain == chain


def test_record_is_read_and_nothing_of_it_is_lost() -> None:
    """As version 0.1.0 wrote it, with fields of a version that nobody knows. Later fields may join these."""
    data = (GOLDEN / "golden.record").read_bytes()
    sequence, record = decode_record(data)
    assert (sequence, record.floor, record.extra) == (1700000000, 42, {"kept": {"unknown": "field"}})
    assert record.store == "uboot:/dev/golden@0x0+0x4000,/dev/golden@0x4000+0x4000"
    assert record.slots == {
        "A": SlotRecord(SlotState.CONFIRMED, "1.0.0+golden", "f7" * 32, 42),
        "B": SlotRecord(SlotState.TRIAL, "1.1.0", "82" * 32, 43, {"kept": ["by", 1, None]}),
    }
    assert record.attempt == Attempt("B", Phase.ARMED, "8b9c4f34-boot", "82" * 32, "1.1.0", 43, "A", 7, "", {"kept": True})
    before, after = (json.loads(part[20:-4]) for part in (data, encode_record(record, sequence)))
    assert {**after, **before} == after
    for name in ("A", "B"):
        assert {**after["slots"][name], **before["slots"][name]} == after["slots"][name]


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("golden.abu", (Codec.NONE, Codec.NONE)),
        ("golden-chain.abu", (Codec.NONE, Codec.NONE)),
        ("golden-zstd.abu", (Codec.ZSTD, Codec.ZSTD)),
        ("golden-sealed.abu", (Codec.ZSTD, Codec.NONE)),
    ],
)
def test_bundle_is_read(name: str, codecs: tuple[Codec, Codec], identities: dict[str, Identity]) -> None:
    data = (GOLDEN / name).read_bytes()
    ring = keyring.parse((GOLDEN / "golden.abk").read_bytes())
    keyring.check_self_signed(ring)
    head = bundle.read_head(BytesIO(data).read, len(data))
    read = head.signed
    assert len(keyring.check_bundle(read.manifest, read.manifest_bytes, read.signatures, ring).keys) == 2
    manifest = read.manifest
    assert manifest.bundle_id.hex() == BUNDLE_IDS[name]
    assert (manifest.compatible, manifest.version, manifest.security_counter) == ("golden-device", "1.0.0+golden", 42)
    assert (manifest.hardware_revisions, manifest.min_updater, manifest.flags) == (("r1", "r2"), "0.1", frozenset({"security-fix"}))
    assert (manifest.build_time, manifest.description) == (1700000000, "A bundle that every later version reads.")
    assert [(image.name, image.kind, image.codec) for image in manifest.images] == [
        ("rootfs", ImageKind.RAW, codecs[0]),
        ("boot", ImageKind.RAW, codecs[1]),
    ]
    keys: list[ContentKey | None] = [None]
    if name == "golden-sealed.abu":
        assert manifest.sealing is not None
        # Whoever of the two it is sealed for; the third one is a stranger.
        keys = [unseal(manifest.sealing, [identities["other"], identities[who]]) for who in ("device", "product")]
    else:
        assert manifest.sealing is None
    for key in keys:
        contents(head, data, key)


def contents(head: bundle.Head, data: bytes, key: ContentKey | None) -> None:
    """Compare the images of a golden bundle with what went into it."""
    for image, content in (("rootfs", ROOTFS), ("boot", BOOT)):
        decoder, codec = Decoder(None if key is None else key.image(image)), head.signed.image(image).codec
        start = head.signed.payload_offset(image)
        pieces = [
            decoder.plain(chunk, codec, data[start + chunk.stored_offset :][: chunk.stored_size]) for chunk in head.tables.chunks(image)
        ]
        assert b"".join(pieces) == content
