"""The manifest and its TLV records: one encoding for each value, and nothing else taken."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import Refused
from abupdate.formats import manifest, tlv
from abupdate.model import Codec, Image, ImageKind, Manifest

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x2FF, exclude_categories=["Cc"]), min_size=1, max_size=20)
DIGESTS = st.binary(min_size=32, max_size=32)
IMAGES = st.builds(
    Image,
    name=NAMES,
    kind=st.sampled_from(ImageKind),
    size_bytes=st.integers(1, 2**60),
    codec=st.sampled_from(Codec),
    table_sha256=DIGESTS,
    table_bytes=st.integers(0, 2**20),
    payload_bytes=st.integers(0, 2**50),
    verity_root=st.none() | DIGESTS,
)
MANIFESTS = st.builds(
    Manifest,
    bundle_id=st.just(b""),
    compatible=TEXTS,
    hardware_revisions=st.lists(TEXTS, max_size=3, unique=True).map(lambda items: tuple(sorted(items, key=str.encode))),
    version=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.+~:_-]{0,20}", fullmatch=True),
    security_counter=st.integers(0, 2**63 - 1),
    min_updater=st.sampled_from(["", "0", "1", "0.1", "1.20.300", "999999.0.0.1"]),
    build_time=st.integers(0, 2**63 - 1),
    description=st.just("") | TEXTS,
    flags=st.sampled_from([frozenset(), frozenset({"security-fix"})]),
    images=st.lists(IMAGES, min_size=1, max_size=4, unique_by=lambda image: image.name).map(tuple),
)
SAMPLE = Manifest(
    bundle_id=b"",
    compatible="acme",
    hardware_revisions=("r3", "r4"),
    version="1.0",
    security_counter=1,
    min_updater="0.1",
    build_time=2,
    description="text",
    flags=frozenset({"security-fix"}),
    images=(
        Image("a", ImageKind.RAW, 4096, Codec.ZSTD, bytes(32), 100, 200, bytes(32)),
        Image("b", ImageKind.FILE, 0, Codec.NONE, bytes(32), 16, 0),
    ),
)


@given(MANIFESTS)
def test_round_trip(value: Manifest) -> None:
    data = manifest.encode(value)
    assert manifest.decode(data) == replace(value, bundle_id=hashlib.sha256(data).digest())


@given(data=st.data())
def test_what_is_taken_is_what_would_be_written(data: st.DataObject) -> None:
    good = manifest.encode(SAMPLE)
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    mutated = good[:start] + data.draw(st.binary(max_size=30)) + good[end:]
    try:
        value = manifest.decode(mutated)
    except Refused:
        return
    # Only records that a reader may pass over can be lost on the way.
    if not any(tag & tlv.OPTIONAL for tag in tags(mutated)):
        assert manifest.encode(value) == mutated


def tags(data: bytes) -> list[int]:
    """The tags of a sequence and of the images in it, or what can be read of them."""
    found: list[int] = []
    position = 0
    while position + 4 <= len(data):
        tag, length = struct.unpack_from("<HH", data, position)
        found.append(tag)
        if tag == 0x0020:
            found += tags(data[position + 4 : position + 4 + length])
        position += 4 + length
    return found


@given(st.binary(max_size=300))
def test_fuzz_gives_refusals_only(data: bytes) -> None:
    with pytest.raises(Refused):
        manifest.decode(data)


def records(data: bytes) -> list[tuple[int, bytes]]:
    """A sequence as (tag, value) pairs."""
    found: list[tuple[int, bytes]] = []
    position = 0
    while position < len(data):
        tag, length = struct.unpack_from("<HH", data, position)
        found.append((tag, data[position + 4 : position + 4 + length]))
        position += 4 + length
    return found


GOOD = records(manifest.encode(SAMPLE))
IMAGE = records(next(value for tag, value in GOOD if tag == 0x0020))


def test_records_out_of_order_missing_or_twice() -> None:
    assert manifest.decode(tlv.pack(GOOD)).version == "1.0"
    for index in range(len(GOOD) - 1):
        swapped = [*GOOD[:index], GOOD[index + 1], GOOD[index], *GOOD[index + 2 :]]
        # Two images may change places: their order is the payload's.
        if GOOD[index][0] == GOOD[index + 1][0] == 0x0020:
            continue
        with pytest.raises(Refused):
            manifest.decode(tlv.pack(swapped))
    for index in range(len(GOOD)):
        with pytest.raises(Refused):
            manifest.decode(tlv.pack([*GOOD[: index + 1], *GOOD[index:]]))
    for required in (0x0001, 0x0002, 0x0004, 0x0005, 0x0007):
        with pytest.raises(Refused, match="lacks"):
            manifest.decode(tlv.pack(record for record in GOOD if record[0] != required))
    with pytest.raises(Refused, match="0 images"):
        manifest.decode(tlv.pack(record for record in GOOD if record[0] != 0x0020))


def changed(tag: int, value: bytes) -> bytes:
    """The sample with the first record of this tag replaced, or added in its place."""
    rest = [record for record in GOOD if record[0] != tag]
    return tlv.pack(sorted([*rest, (tag, value)], key=lambda record: record[0]))


def changed_image(tag: int, value: bytes) -> bytes:
    """The sample with one image in which this record is replaced or added."""
    rest = [record for record in IMAGE if record[0] != tag]
    return changed(0x0020, tlv.pack(sorted([*rest, (tag, value)], key=lambda record: record[0])))


@pytest.mark.parametrize(
    "data",
    [
        changed(0x0001, b"\x02\x00"),
        changed(0x0009, b"unknown-flag"),
        changed(0x0031, b"a later idea"),
        changed(0x7FFF, b""),
        changed_image(0x0002, b"\x05"),
        changed_image(0x0003, b"\x02"),
        changed_image(0x0009, b"hash tree"),
        changed_image(0x000A, b"patch group"),
    ],
)
def test_what_later_versions_may_add_is_refused_with_the_reason(data: bytes) -> None:
    with pytest.raises(Refused, match="needs a newer abupdate"):
        manifest.decode(data)


def test_optional_records_are_passed_over_once_each() -> None:
    optional = tlv.OPTIONAL | 0x0001
    assert manifest.decode(changed(optional, b"extra")).compatible == "acme"
    assert manifest.decode(changed_image(optional, b"extra")).images[0].name == "a"
    with pytest.raises(Refused, match="twice"):
        manifest.decode(tlv.pack([*GOOD, (optional, b"a"), (optional, b"a")]))
    with pytest.raises(Refused, match="wrong place"):
        manifest.decode(tlv.pack([(optional, b"a"), *GOOD]))


@pytest.mark.parametrize(
    "data",
    [
        changed(0x0002, b""),
        changed(0x0002, b"x" * 129),
        changed(0x0002, b"\xff"),
        changed(0x0002, b"a\nb"),
        changed(0x0002, "a\u202eb".encode()),
        changed(0x0002, b"\xc0\x80"),
        changed(0x0003, b"\x1b[2J"),
        changed(0x0004, b"1.0 beta"),
        changed(0x0004, b"../1"),
        changed(0x0004, b"1.0\n"),
        changed(0x0005, bytes(7)),
        changed(0x0005, b"\xff" * 8),
        changed(0x0006, b"01.0"),
        changed(0x0006, b"1."),
        changed(0x0006, "\u0661".encode()),
        changed(0x0007, bytes(9)),
        changed(0x0008, b""),
        changed(0x0008, b"a\x00"),
        changed_image(0x0001, b"../etc"),
        changed_image(0x0001, b".hidden"),
        changed_image(0x0001, b"a/b"),
        changed_image(0x0001, b"x" * 65),
        changed_image(0x0004, bytes(8)),
        changed_image(0x0004, struct.pack("<Q", 2**60 + 1)),
        changed_image(0x0005, struct.pack("<Q", 2**26 + 1)),
        changed_image(0x0006, bytes(31)),
        changed_image(0x0007, struct.pack("<Q", 2**60 + 1)),
        changed_image(0x0008, bytes(33)),
    ],
)
def test_values_out_of_bounds(data: bytes) -> None:
    with pytest.raises(Refused):
        manifest.decode(data)


def test_sums_are_bounded_too() -> None:
    image = SAMPLE.images[0]
    for large in (replace(image, payload_bytes=2**59 + 1), replace(image, table_bytes=2**25 + 1)):
        two = tuple(replace(large, name=name) for name in "ab")
        with pytest.raises(Refused, match="more than"):
            manifest.encode(replace(SAMPLE, images=two))
    with pytest.raises(Refused, match="twice"):
        manifest.encode(replace(SAMPLE, images=(image, image)))
    with pytest.raises(Refused, match="33 images"):
        manifest.encode(replace(SAMPLE, images=tuple(replace(image, name=f"i{n}") for n in range(33))))
    with pytest.raises(Refused, match="more than"):
        manifest.decode(bytes(manifest.MAX_MANIFEST_BYTES + 1))


def test_numbers_of_python_that_do_not_fit_are_refused() -> None:
    for bad in (replace(SAMPLE, security_counter=-1), replace(SAMPLE, security_counter=2**64), replace(SAMPLE, description="x" * 70000)):
        with pytest.raises(Refused):
            manifest.encode(bad)
