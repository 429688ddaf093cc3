"""Every byte of a bundle flipped, and the bundle cut at every length, onto a device that holds nothing of it.

The quick part takes a sample that changes with the commit, and always the sections' edges; under --all every byte is taken.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from abupdate.errors import AbupdateError, Refused
from abupdate.formats import bundle, keyring, trusted
from abupdate.formats.bundle import HEADER
from abupdate.host.extract import extract
from abupdate.host.resign import add_signatures
from tests.fuzz import shapes
from tests.hostile import specimen
from tests.hostile.conftest import Choose
from tests.hostile.specimen import Specimen
from tests.hostile.victim import Victim
from tests.workstation import call

KINDS = ("plain", "chain", "sealed")
SAMPLE = 24
each_kind = pytest.mark.parametrize("kind", KINDS)
extent = pytest.mark.parametrize("extent", ["a sample", pytest.param("all", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])


def edges(data: bytes) -> list[int]:
    """Where sections and chunks start and end."""
    head = bundle.read_head(BytesIO(data).read, len(data))
    header = head.signed.header
    found = [0, 8, HEADER.size]
    for length in (header.manifest_bytes, header.signatures_bytes, header.chain_bytes, header.tables_bytes):
        found.append(found[-1] + length)
    for image in head.signed.manifest.images:
        start = head.signed.payload_offset(image.name)
        found += [start + chunk.stored_offset for chunk in head.tables.chunks(image.name)]
    return found


def head_bytes(data: bytes) -> int:
    """Length of everything before the payload."""
    return bundle.read_head(BytesIO(data).read, len(data)).signed.header.head_bytes


def positions(data: bytes, chosen: Choose) -> list[int]:
    """Every position, or a sample with all edges."""
    near = {at + step for at in edges(data) for step in (-1, 0)}
    every = [at for at in range(len(data)) if at not in near]
    return sorted({at for at in near if 0 <= at < len(data)} | set(chosen(every, SAMPLE)))


def flipped(data: bytes, position: int, mask: int) -> bytes:
    """One byte is another."""
    out = bytearray(data)
    out[position] ^= mask
    return bytes(out)


def masks(position: int, extent: str) -> tuple[int, ...]:
    """One bit, and all bits."""
    both = 1 << position % 8, 0xFF
    return both if extent == "all" else (both[position % 2],)


def damage_is_contained(victim: Victim, images: dict[str, bytes]) -> None:
    """What must hold after a fault in the payload."""
    assert not victim.bootable()
    assert victim.covered(images)
    assert victim.slot_a_is_untouched()
    assert not victim.unchanged(), "the target is taken out before its first byte is written"


def test_the_specimen(victim: Victim, variants: dict[str, Specimen]) -> None:
    """Untouched it is installed, with chunks of every sort."""
    for kind in (*KINDS, "other"):
        data, images = variants[kind].data, variants[kind].images
        assert len(data) < 4096
        assert victim.unchanged()
        for flash in (victim.flash_bytes, victim.flash_stream):
            assert flash(data) == 0
            assert victim.bootable()
            assert victim.holds(images)
            assert victim.covered(images)
            assert victim.slot_a_is_untouched()
            victim.reset()
    head = bundle.read_head(BytesIO(variants["plain"].data).read, len(variants["plain"].data))
    sorts = {(chunk.zero, chunk.raw) for image in images for chunk in head.tables.chunks(image)}
    assert sorts == {(False, False), (True, False), (False, True)}
    assert len(head.signed.signatures) == 2


def test_both_signers_are_needed(victim: Victim, tmp_path: Path) -> None:
    for signers in ((), ("release-1",), ("release-2", "root"), ("root", "security")):
        assert victim.flash_bytes(specimen.build(tmp_path, signers=signers).data) == 3
        assert victim.unchanged()


@each_kind
@extent
def test_a_flipped_byte_of_a_file(victim: Victim, variants: dict[str, Specimen], kind: str, extent: str, chosen: Choose) -> None:
    data, images = variants[kind].data, variants[kind].images
    length = head_bytes(data)
    for position in positions(data, chosen):
        for mask in masks(position, extent):
            assert victim.flash_bytes(flipped(data, position, mask)) == 3, (position, mask)
            if position < length:
                assert victim.unchanged(), (position, mask)
            else:
                damage_is_contained(victim, images)
            victim.reset()


@each_kind
@extent
def test_a_flipped_byte_of_a_stream(victim: Victim, variants: dict[str, Specimen], kind: str, extent: str, chosen: Choose) -> None:
    data, images = variants[kind].data, variants[kind].images
    length = head_bytes(data)
    for position in positions(data, chosen)[:: 1 if extent == "all" else 3]:
        mask = masks(position, extent)[0]
        assert victim.flash_stream(flipped(data, position, mask)) == 3, position
        if position < length:
            assert victim.unchanged(), position
        else:
            damage_is_contained(victim, images)
        victim.reset()


@each_kind
@extent
def test_a_file_that_is_cut(victim: Victim, variants: dict[str, Specimen], kind: str, extent: str, chosen: Choose) -> None:
    data = variants[kind].data
    for length in positions(data, chosen)[:: 1 if extent == "all" else 3]:
        assert victim.flash_bytes(data[:length]) == 3, length
        assert victim.unchanged(), length
        victim.reset()


@each_kind
@extent
def test_a_stream_that_is_cut(victim: Victim, variants: dict[str, Specimen], kind: str, extent: str, chosen: Choose) -> None:
    data, images = variants[kind].data, variants[kind].images
    whole = head_bytes(data)
    for length in positions(data, chosen)[:: 1 if extent == "all" else 3]:
        assert victim.flash_stream(data[:length]) == 1, length
        if length < whole:
            assert victim.unchanged(), length
        else:
            damage_is_contained(victim, images)
        victim.reset()


@each_kind
def test_what_follows_the_end(victim: Victim, variants: dict[str, Specimen], kind: str) -> None:
    data, images = variants[kind].data, variants[kind].images
    for tail in (b"\0", b"\xff" * 100, data):
        assert victim.flash_bytes(data + tail) == 3
        assert victim.unchanged()
        assert victim.flash_stream(data + tail) == 3
        damage_is_contained(victim, images)
        victim.reset()


def test_parts_in_other_places(victim: Victim, variants: dict[str, Specimen]) -> None:
    """Sections and payloads change places, also with those of another bundle that is as good: all lengths and plain hashes are right."""

    def parts(kind: str) -> shapes.BundleParts:
        found = shapes.take_bundle_apart(variants[kind].data)
        assert found is not None
        return found

    made: list[bytes] = []
    for tables in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        one = parts("plain")
        one.tables = [one.tables[number] for number in tables]
        made.append(one.join())
        one.refit()
        made.append(one.join())
    for name in ("manifest", "block", "tables"):
        one = parts("plain")
        setattr(one, name, getattr(parts("other"), name))
        made.append(one.join())
    for first, second in (("block", "chain"), ("manifest", "block"), ("chain", "payload")):
        one, same = parts("plain"), parts("plain")
        setattr(one, first, getattr(same, second))
        setattr(one, second, getattr(same, first))
        made.append(one.join())
    one = parts("chain")
    one.chain = one.chain[len(one.chain) // 2 :] + one.chain[: len(one.chain) // 2]
    made.append(one.join())
    for data in made:
        assert victim.flash_bytes(data) == 3
        assert victim.unchanged()
        assert victim.flash_stream(data) in (1, 3)
        assert victim.unchanged()
        victim.reset()
    length = head_bytes(variants["plain"].data)
    payload = variants["plain"].data[length:]
    for other in (payload[::-1], payload[100:] + payload[:100], bytes(len(payload)), variants["other"].data[-len(payload) :]):
        assert victim.flash_bytes(variants["plain"].data[:length] + other) == 3
        damage_is_contained(victim, variants["plain"].images)
        victim.reset()


LIMITS = {"manifest": 65536, "signatures": 16384, "chain": 262144, "tables": 1 << 26, "payload": 1 << 60, "total": 0}
# A piece of 1 MiB, twice, and what a flash needs before it.
PEAK_BYTES = 3 << 20
NUMBERS = {0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1, 2**60, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1}


@pytest.fixture
def measured() -> Iterator[None]:
    """Memory is counted."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("field", LIMITS)
@pytest.mark.parametrize("adds_up", [False, True])
def test_lengths_in_the_header(victim: Victim, variants: dict[str, Specimen], field: str, adds_up: bool) -> None:
    """Each length at its bound and at the edges of the words that it is stored in, with a total that fits or not. No number that nobody
    signed makes the device allocate more than a piece of reading takes.
    """
    data = variants["plain"].data
    magic, version, flags, *lengths, digest, zeros = HEADER.unpack_from(data)
    number = list(LIMITS).index(field)
    width = 4 if number < 3 else 8
    wanted = {value for step in (-1, 0, 1) for value in (LIMITS[field] + step, lengths[number] + step, len(data) + step)} | NUMBERS
    for turn, value in enumerate(sorted(wanted - {lengths[number]})):
        if not 0 <= value < 1 << 8 * width:
            continue
        changed = [*lengths]
        changed[number] = value
        if adds_up and field != "total":
            changed[-1] = (HEADER.size + sum(changed[:-1])) % (1 << 64)
        made = HEADER.pack(magic, version, flags, *changed, digest, zeros) + data[HEADER.size :]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        # By turns, since both read the header alike. A stream that is to be longer than it is may be whole at the next try.
        if (turn + adds_up) % 2:
            assert victim.flash_bytes(made) == 3, value
        else:
            assert victim.flash_stream(made) in (1, 3), value
        assert victim.unchanged(), value
        assert tracemalloc.get_traced_memory()[1] - before < PEAK_BYTES, value


@each_kind
@extent
def test_the_build_host(variants: dict[str, Specimen], kind: str, extent: str, chosen: Choose, tmp_path: Path) -> None:
    """`info` and `extract` of damaged bundles: refused, or what comes out is what was signed, or the manifest's words alone differ."""
    from abupdate.formats.contentkey import Identity

    data, images = variants[kind].data, variants[kind].images
    opener = trusted.opener(keyring.parse(specimen.ring()))
    identity = Identity(specimen.device_key())
    path, out = tmp_path / "damaged.abu", tmp_path / "out"
    made = [flipped(data, at, masks(at, "a sample")[0]) for at in positions(data, chosen)] + [
        data[:at] for at in positions(data, chosen)[::4]
    ]
    for number, damaged in enumerate(made):
        path.write_bytes(damaged)
        with pytest.raises(Refused):
            extract(path, out, opener, identity=identity)
        try:
            written = extract(path, out, identity=identity)
        except AbupdateError:
            pass
        else:
            # A name in a manifest that nobody's signature was asked for may be another.
            assert [file.read_bytes() for file in written.values()] == list(images.values())
        for left in out.glob("*"):
            assert left.read_bytes() in images.values()
            left.unlink()
        if number % 8 == 0:
            assert call("info", path).code in (0, 3)
        path.write_bytes(damaged)
        try:
            add_signatures(path, [specimen.pair("security")])
        except AbupdateError:
            assert path.read_bytes() == damaged
        else:
            # Nobody looked at the payload or the chain; the manifest is what it was, and its signatures are all good.
            trusted.by_anyone(bundle.read_head(path.open("rb").read, path.stat().st_size).signed.envelope)
            assert path.read_bytes()[-len(damaged) + head_bytes(data) :] == damaged[head_bytes(data) :]
