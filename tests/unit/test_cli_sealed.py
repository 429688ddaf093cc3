"""Sealed bundles through the whole command line: who can install them, what needs no key, and what is refused before a byte is written."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from abupdate.formats import bundle as bundle_format
from abupdate.formats import chunktable, manifest
from abupdate.formats.signature import Domain, message, pack_block
from abupdate.host.keys import load_private
from abupdate.host.signing import sign_all
from abupdate.model import Chunk
from tests.unit.test_cli_refused import Flash, assert_target_out, assert_untouched, from_file, from_pipe, ways
from tests.workstation import Kit, Workstation

Chunks = dict[str, list[Chunk]]


@pytest.fixture
def sealed(kit: Kit) -> Path:
    """A bundle that `device` and `product` open."""
    return make(kit, "zstd")


def make(kit: Kit, codec: str) -> Path:
    for name in ("device", "product", "foreign"):
        kit.recipient(name)
    return kit.bundle(f"sealed-{codec}", version="5.0", counter=5, seed=5, codec=codec, recipients=("device", "product"))


def give_keys(workstation: Workstation, *names: str) -> None:
    """Configure these keys, in files of the device's own."""
    for name in names:
        shutil.copyfile(workstation.kit.folder / f"{name}.pem", workstation.folder / f"{name}.key")
        (workstation.folder / f"{name}.key").chmod(0o600)
    with workstation.config.open("a") as config:
        config.write("[encryption]\nkeys = [" + ", ".join(f'"{name}.key"' for name in names) + "]\n")


def take_keys(workstation: Workstation) -> None:
    """The device has no key any more."""
    text = workstation.config.read_text()
    workstation.config.write_text(text[: text.index("[encryption]")])


@pytest.mark.parametrize("codec", ["zstd", "none"])
@ways
def test_created_flashed_and_confirmed(workstation: Workstation, kit: Kit, flash: Flash, codec: str) -> None:
    path = make(kit, codec)
    give_keys(workstation, "foreign", "product")
    done = flash(workstation, path.read_bytes())
    assert done.code == 0, done.err
    assert workstation.holds("B", path.stem)
    workstation.reboot("B")
    workstation.ok("confirm")
    assert workstation.slot_state("B") == "confirmed"
    # What lies on the slot is verified by the hashes of the slot's bytes: nobody needs a key for that any more.
    take_keys(workstation)
    workstation.ok("verify")
    with workstation.places["B.boot"].open("r+b") as slot:
        slot.write(b"?")
    assert workstation.run("verify").code == 1


def test_activate_needs_no_key(workstation: Workstation, sealed: Path) -> None:
    give_keys(workstation, "device")
    workstation.ok("flash", sealed, "--no-activate")
    take_keys(workstation)
    workstation.ok("activate")
    assert workstation.slot_state("B") == "trial" or workstation.status()["primary"] == "B"


@ways
def test_without_the_right_key_nothing_is_written(workstation: Workstation, kit: Kit, sealed: Path, flash: Flash) -> None:
    before = workstation.snapshot()
    wanted = {kit.recipient("device"), kit.recipient("product")}
    for mine in ("none", kit.recipient("foreign")):
        done = flash(workstation, sealed.read_bytes())
        assert done.code == 3, done.err
        assert all(name in done.err for name in wanted), done.err
        assert f"keys here: {mine}" in done.err
        assert_untouched(workstation, before)
        if mine == "none":
            give_keys(workstation, "foreign")


def test_a_key_is_needed_also_where_all_chunks_are_there(workstation: Workstation, sealed: Path) -> None:
    give_keys(workstation, "device")
    workstation.ok("flash", sealed, "--no-activate")
    take_keys(workstation)
    before = workstation.snapshot()
    assert workstation.run("flash", sealed).code == 3
    assert_untouched(workstation, before)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601])
def test_a_key_that_others_can_read_or_change(workstation: Workstation, kit: Kit, sealed: Path, mode: int) -> None:
    """Also where the bundle is not sealed: the configuration is not safe."""
    give_keys(workstation, "device")
    (workstation.folder / "device.key").chmod(mode)
    before = workstation.snapshot()
    for path in (sealed, kit["v1"]):
        done = workstation.run("flash", path)
        assert done.code == 2, done.err
        assert "chmod" in done.err
        assert_untouched(workstation, before)


@pytest.mark.parametrize("fault", ["missing", "folder", "garbage", "signing key", "public half", "encrypted", "test key"])
def test_a_key_that_is_none_hinders_only_sealed_bundles(
    workstation: Workstation, kit: Kit, sealed: Path, tmp_path: Path, fault: str
) -> None:
    give_keys(workstation, "device")
    key = workstation.folder / "device.key"
    if fault == "missing":
        key.unlink()
    elif fault == "folder":
        key.unlink()
        key.mkdir(0o700)
    elif fault == "garbage":
        key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    elif fault == "signing key":
        key.write_bytes((kit.folder / "release.pem").read_bytes())
    elif fault == "public half":
        key.write_bytes((kit.folder / "device.pub").read_bytes())
    elif fault == "encrypted":
        (tmp_path / "word").write_text("word\n")
        (tmp_path / "word").chmod(0o600)
        kit.make("keys", "generate", "--recipient", tmp_path / "made", "--passphrase-file", tmp_path / "word")
        key.write_bytes((tmp_path / "made.pem").read_bytes())
    else:
        kit.make("keys", "generate", "--recipient", "--test", tmp_path / "made")
        key.write_bytes((tmp_path / "made.pem").read_bytes())
    before = workstation.snapshot()
    done = workstation.run("flash", sealed)
    assert done.code == 2, done.err
    assert "device.key" in done.err
    assert_untouched(workstation, before)
    workstation.ok("flash", kit["v1"])


def test_a_test_key_where_test_keys_are_allowed(workstation: Workstation, kit: Kit) -> None:
    if not (kit.folder / "toy.pem").exists():
        kit.make("keys", "generate", "--recipient", "--test", kit.folder / "toy")
    path = kit.bundle("for-toys", recipients=("toy",))
    give_keys(workstation, "toy")
    assert workstation.run("flash", path).code == 2
    workstation.edit('keyring = "ring.abk"', 'keyring = "ring.abk"\nallow_test_keys = true')
    workstation.ok("flash", path)
    assert workstation.holds("B", "for-toys")


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.999])
def test_after_a_stream_that_ended_early_the_next_flash_finishes(workstation: Workstation, sealed: Path, cut: float) -> None:
    give_keys(workstation, "device")
    before = workstation.snapshot()
    data = sealed.read_bytes()
    done = from_pipe(workstation, data[: int(len(data) * cut)])
    assert done.code == 1, done.err
    assert_target_out(workstation, before)
    workstation.ok("flash", sealed)
    assert workstation.holds("B", sealed.stem)


# Whoever holds the signing key but not the content key: chunks of the bundle, rearranged.


def forged(kit: Kit, path: Path, edit: Callable[[Chunks, Callable[[str, Chunk], bytearray]], None]) -> bytes:
    """The bundle after `edit` has changed chunks (a copy of the tables) and stored bytes (views of them); hashed and signed anew."""
    data = bytearray(path.read_bytes())
    head = bundle_format.read_head(BytesIO(bytes(data)).read, len(data))
    chunks = {image.name: list(head.tables.chunks(image.name)) for image in head.signed.manifest.images}
    edits: list[tuple[int, bytearray]] = []

    def stored(image: str, chunk: Chunk) -> bytearray:
        start = head.signed.payload_offset(image) + chunk.stored_offset
        edits.append((start, data[start : start + chunk.stored_size]))
        return edits[-1][1]

    edit(chunks, stored)
    for start, piece in edits:
        data[start : start + len(piece)] = piece
    tables, images = [], []
    for image in head.signed.manifest.images:
        start = head.signed.payload_offset(image.name)
        table = chunktable.pack_header(len(chunks[image.name]))
        for chunk in chunks[image.name]:
            here = start + chunk.stored_offset
            digest = hashlib.sha256(data[here : here + chunk.stored_size]).digest()
            table += chunktable.pack_entry(chunk if chunk.zero else replace(chunk, stored_sha256=digest))
        tables.append(table)
        images.append(replace(image, table_sha256=hashlib.sha256(table).digest()))
    changed = manifest.encode(replace(head.signed.manifest, images=tuple(images)))
    signatures = pack_block(sign_all([load_private(kit.folder / "release.pem")], message(Domain.BUNDLE, changed)))
    header = head.signed.header
    front = bundle_format.build_head(changed, signatures, header.tables_bytes, header.payload_bytes)
    return front + b"".join(tables) + data[header.head_bytes :]


def nothing(chunks: Chunks, stored: Callable[[str, Chunk], bytearray]) -> None:
    return


def swap_stored(chunks: Chunks, stored: Callable[[str, Chunk], bytearray]) -> None:
    one, two = stored("rootfs", chunks["rootfs"][0]), stored("rootfs", chunks["rootfs"][1])
    one[:], two[:] = bytes(two), bytes(one)


def swap_places(chunks: Chunks, stored: Callable[[str, Chunk], bytearray]) -> None:
    """Two whole chunks change places, with hashes and all: what the table says of each is true."""
    first, second = chunks["rootfs"][0], chunks["rootfs"][1]
    swap_stored(chunks, stored)
    chunks["rootfs"][0] = replace(second, offset=first.offset, stored_offset=first.stored_offset)
    chunks["rootfs"][1] = replace(first, offset=second.offset, stored_offset=second.stored_offset)


def from_another_image(chunks: Chunks, stored: Callable[[str, Chunk], bytearray]) -> None:
    """A chunk of the one image in the same place of the other, again with hashes and all."""
    here, there = chunks["boot"][0], chunks["rootfs"][0]
    stored("boot", here)[:] = bytes(stored("rootfs", there))
    chunks["boot"][0] = there


def flip(position: int) -> Callable[[Chunks, Callable[[str, Chunk], bytearray]], None]:
    def edit(chunks: Chunks, stored: Callable[[str, Chunk], bytearray]) -> None:
        stored("boot", chunks["boot"][1])[position] ^= 0x40

    return edit


@pytest.mark.parametrize(
    ("edit", "flash"),
    [
        pytest.param(swap_stored, from_file, id="stored bytes"),
        pytest.param(swap_places, from_file, id="places"),
        pytest.param(swap_places, from_pipe, id="places, pipe"),
        pytest.param(from_another_image, from_file, id="image"),
        pytest.param(flip(0), from_file, id="nonce"),
        pytest.param(flip(5000), from_pipe, id="text, pipe"),
        pytest.param(flip(-1), from_file, id="tag"),
    ],
)
def test_chunks_out_of_place_although_the_tables_are_signed(
    workstation: Workstation, kit: Kit, flash: Flash, edit: Callable[[Chunks, Callable[[str, Chunk], bytearray]], None]
) -> None:
    path = make(kit, "none")
    give_keys(workstation, "device")
    before = workstation.snapshot()
    done = flash(workstation, forged(kit, path, edit))
    assert done.code == 3, done.err
    assert "was not sealed for its place" in done.err
    assert_target_out(workstation, before)
    # The forger's hand itself leaves a good bundle good.
    assert flash(workstation, forged(kit, path, nothing)).code == 0
    assert workstation.holds("B", path.stem)


def test_a_chunk_of_another_bundle_for_the_same_recipients(workstation: Workstation, kit: Kit) -> None:
    """The same content, sealed twice: the chunks of one do not open in the other."""
    path = make(kit, "none")
    twin = kit.bundle("twin", version="5.0", counter=5, seed=5, codec="none", recipients=("device", "product"))
    data, other = path.read_bytes(), twin.read_bytes()
    assert len(data) == len(other)
    head = bundle_format.read_head(BytesIO(other).read, len(other))

    def transplant(chunks: Chunks, stored: Callable[[str, Chunk], bytearray]) -> None:
        chunk = chunks["boot"][0]
        start = head.signed.payload_offset("boot") + chunk.stored_offset
        stored("boot", chunk)[:] = other[start : start + chunk.stored_size]

    give_keys(workstation, "device")
    before = workstation.snapshot()
    done = from_file(workstation, forged(kit, path, transplant))
    assert done.code == 3, done.err
    assert "was not sealed for its place" in done.err
    assert_target_out(workstation, before)


def test_info_and_doctor_name_the_keys(workstation: Workstation, kit: Kit, sealed: Path) -> None:
    shown = workstation.ok("--json", "info", sealed).document
    assert shown["sealed_for"] == sorted([kit.recipient("device"), kit.recipient("product")])
    text = workstation.ok("info", sealed).out
    assert f"sealed for        2 recipients: {', '.join(shown['sealed_for'])}" in text
    assert workstation.ok("--json", "info", kit["v1"]).document["sealed_for"] is None

    def findings() -> list[tuple[str, str]]:
        rows = workstation.run("--json", "doctor").document["findings"]
        return [(row["grade"], row["text"]) for row in rows if row["topic"] == "encryption"]

    assert findings() == []
    give_keys(workstation, "device", "product")
    assert findings() == [("ok", f"this device opens what is sealed for {kit.recipient('device')}, {kit.recipient('product')}")]
    (workstation.folder / "product.key").chmod(0o640)
    assert [grade for grade, _ in findings()] == ["fail"]
    (workstation.folder / "product.key").unlink()
    assert [grade for grade, _ in findings()] == ["fail"]
