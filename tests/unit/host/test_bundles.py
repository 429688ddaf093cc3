"""Building, signing and unpacking bundles from files."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abupdate.errors import ConfigError, Failed, NothingToDo, Refused
from abupdate.formats import bundle
from abupdate.host import atomic, keys, resign
from abupdate.host import spec as specs
from abupdate.host.chunking import encode_image
from abupdate.host.create import build_time, create
from abupdate.host.extract import extract
from abupdate.host.keys import KeyPair
from abupdate.model import Codec

HEAD = 'compatible = "acme"\nversion = "1"\nsecurity_counter = 1\n'


@pytest.fixture
def pair(tmp_path: Path) -> KeyPair:
    """A key pair in a.pem and a.pub."""
    return keys.load_private(keys.generate(tmp_path / "a")[0])


def written(folder: Path, text: str) -> Path:
    """A SPEC in this folder."""
    path = folder / "spec.toml"
    path.write_text(text)
    return path


def read(path: Path) -> bundle.Head:
    """The head of a bundle file."""
    data = path.read_bytes()
    return bundle.read_head(BytesIO(data).read, len(data))


def sparse(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    """A file with data at some offsets and holes between them."""
    with path.open("wb") as file:
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
        file.truncate(size)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 60_000),
    pieces=st.dictionaries(st.integers(0, 60_000), st.integers(1, 9000), max_size=4),
    chunk_bytes=st.sampled_from([4096, 8192, 16384]),
    codec=st.sampled_from(["zstd", "none"]),
    seed=st.integers(0, 3),
)
def test_round_trip(tmp_path: Path, pair: KeyPair, size: int, pieces: dict[int, int], chunk_bytes: int, codec: str, seed: int) -> None:
    source = random.Random(seed)
    content = {
        offset: source.choice((source.randbytes(length), b"abc " * (length // 4 + 1), bytes(length))) for offset, length in pieces.items()
    }
    sparse(tmp_path / "image", size, content)
    spec = written(tmp_path, f'{HEAD}chunk_bytes = {chunk_bytes}\n[images.x]\nfile = "image"\ncodec = "{codec}"\n')
    create(specs.load(spec), tmp_path / "out.abu", [pair])
    assert len(list(read(tmp_path / "out.abu").tables.chunks("x"))) == -(-size // chunk_bytes)
    for old in (tmp_path / "d").glob("*"):
        old.unlink()
    assert extract(tmp_path / "out.abu", tmp_path / "d") == {"x": tmp_path / "d" / "x.img"}
    assert (tmp_path / "d" / "x.img").read_bytes() == (tmp_path / "image").read_bytes()


def test_a_bundle_made_twice_is_the_same(tmp_path: Path, pair: KeyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")
    (tmp_path / "image").write_bytes(random.Random(1).randbytes(3_000_000).replace(b"\x01", b"\x02\x02"))
    spec = specs.load(written(tmp_path, HEAD + '[images.x]\nfile = "image"\n'))
    for name in ("one.abu", "two.abu"):
        create(spec, tmp_path / name, [pair])
    assert (tmp_path / "one.abu").read_bytes() == (tmp_path / "two.abu").read_bytes()
    assert read(tmp_path / "one.abu").signed.manifest.build_time == 1234567890
    for bad in ("", "x", "-1", "1.5", "²", str(2**63)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", bad)
        with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH"):
            build_time()


def test_holes_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse(tmp_path / "image", 1 << 40, {5 << 20: b"x", (1 << 39) + 12345: b"y" * 5000})
    read_at: list[int] = []
    pread = os.pread

    def watched(fd: int, size: int, offset: int) -> bytes:
        read_at.append(offset)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", watched)
    size = 1 << 30
    with (tmp_path / "image").open("rb") as file:
        chunks = [piece.chunk for piece in encode_image(file.fileno(), size, 1 << 20, Codec.ZSTD, 3)]
    assert read_at == [5 << 20]
    assert [chunk.offset for chunk in chunks if not chunk.zero] == [5 << 20]
    assert len(chunks) == 1024


def test_an_image_that_gets_shorter_fails_and_leaves_nothing(tmp_path: Path, pair: KeyPair) -> None:
    (tmp_path / "image").write_bytes(b"x" * 5_000_000)
    spec = specs.load(written(tmp_path, HEAD + 'chunk_bytes = 4096\n[images.x]\nfile = "image"\n'))

    def cut(done: int, total: int) -> None:
        os.truncate(tmp_path / "image", 2_000_000)

    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(Failed, match="shorter"):
        create(spec, tmp_path / "out.abu", [pair], cut)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_existing_bundle_survives_a_failure(tmp_path: Path, pair: KeyPair) -> None:
    (tmp_path / "out.abu").write_bytes(b"old")
    (tmp_path / "image").write_bytes(b"x" * 5_000)
    spec = specs.load(written(tmp_path, HEAD + '[images.x]\nfile = "image"\n'))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(spec, tmp_path / "out.abu", [pair], stop)
    assert (tmp_path / "out.abu").read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ConfigError, match="file of image"):
        create(spec, tmp_path / "image", [pair])
    with pytest.raises(ConfigError, match="folder"):
        create(spec, tmp_path, [pair])
    with pytest.raises(ConfigError, match="cannot write"):
        create(spec, tmp_path / "missing" / "out.abu", [pair])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("compatible", "not TOML"),
        ("compatible = " + "9" * 5000, "not TOML"),
        ("compatible = " + "[" * 5000, "not TOML"),
        (HEAD, "no images"),
        (HEAD + "images = 3", "no images"),
        (HEAD + "[images]\nx = 3", "not a table"),
        (HEAD + "[images.x]", "file is missing"),
        (HEAD + '[images.x]\nfile = "other"', "does not exist"),
        (HEAD + "[images.x]\nfile = 3", "not a string"),
        (HEAD + '[images.x]\nfile = "image"\nfiel = "image"', "unknown key 'fiel'"),
        (HEAD + '[images.x]\nfile = "image"\nkind = "blob"', "unknown kind"),
        (HEAD + '[images.x]\nfile = "image"\nkind = "tree"', "cannot be built yet"),
        (HEAD + '[images.x]\nfile = "image"\ncodec = "gzip"', "unknown codec"),
        (HEAD + '[images.x]\nfile = "image"\nlevel = 23', "level"),
        (HEAD + '[images.x]\nfile = "image"\nlevel = true', "level"),
        (HEAD + 'verison = "2"\n[images.x]\nfile = "image"', "unknown key 'verison'"),
        ('compatible = "a"\nversion = "1"\n[images.x]\nfile = "image"', "security_counter is missing"),
        ('version = "1"\nsecurity_counter = 1\n[images.x]\nfile = "image"', "compatible is missing"),
        (HEAD + 'chunk_bytes = 5000\n[images.x]\nfile = "image"', "multiple"),
        (HEAD + 'chunk_bytes = 8388608\n[images.x]\nfile = "image"', "chunk_bytes"),
        (HEAD + 'hardware_revisions = "r1"\n[images.x]\nfile = "image"', "list of strings"),
        (HEAD + 'hardware_revisions = ["r1", "r1"]\n[images.x]\nfile = "image"', "twice"),
        (HEAD + 'flags = ["security-fixx"]\n[images.x]\nfile = "image"', "security-fixx"),
        (HEAD + 'min_updater = "1.x"\n[images.x]\nfile = "image"', "1.x"),
        (HEAD + '[images."a/b"]\nfile = "image"', "a/b"),
        (HEAD + '[images.x]\nfile = "empty"', "empty"),
        (HEAD + '[images.x]\nfile = "."', "neither a file"),
        (HEAD.replace('"1"', '"1 0"') + '[images.x]\nfile = "image"', "1 0"),
        (HEAD.replace("= 1", "= -1") + '[images.x]\nfile = "image"', "security_counter"),
        (HEAD + f'description = "{"x" * 70000}"\n[images.x]\nfile = "image"', "70000"),
    ],
)
def test_bad_specs(tmp_path: Path, pair: KeyPair, text: str, match: str) -> None:
    (tmp_path / "image").write_bytes(b"x" * 5000)
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match=match) as caught:
        create(specs.load(written(tmp_path, text)), tmp_path / "out.abu", [pair])
    assert "\n" not in caught.value.message
    assert not (tmp_path / "out.abu").exists()


def test_signatures_are_added_in_turn(tmp_path: Path, pair: KeyPair) -> None:
    other = keys.load_private(keys.generate(tmp_path / "b")[0])
    (tmp_path / "image").write_bytes(random.Random(2).randbytes(50_000) + bytes(9000))
    spec = specs.load(written(tmp_path, HEAD + 'chunk_bytes = 4096\n[images.x]\nfile = "image"\n'))
    out = tmp_path / "out.abu"
    create(spec, out, [pair])
    out.chmod(0o640)
    first = read(out)
    signed = resign.add_signatures(out, [other])
    second = read(out)
    assert second.signed == signed
    assert {item.public_key for item in signed.signatures} == {pair.public.raw, other.public.raw}
    assert second.signed.manifest_bytes == first.signed.manifest_bytes
    assert second.tables.raw == first.tables.raw
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    extract(out, tmp_path / "d")
    assert (tmp_path / "d" / "x.img").read_bytes() == (tmp_path / "image").read_bytes()
    before = out.read_bytes()
    with pytest.raises(NothingToDo):
        resign.add_signatures(out, [other, pair])
    assert out.read_bytes() == before
    # A signature by someone else was damaged, with the header's plain hash made to fit: the next signer does not add to that.
    damaged = before.replace(signed.signatures[0].value, bytes(range(64)))
    head = bundle.build_head(signed.manifest_bytes, damaged[96 + len(signed.manifest_bytes) : len(signed.raw)], *lengths(signed))
    out.write_bytes(head + damaged[len(head) :])
    third = keys.load_private(keys.generate(tmp_path / "c")[0])
    with pytest.raises(Refused, match="wrong"):
        resign.add_signatures(out, [third])
    with pytest.raises(ConfigError):
        resign.add_signatures(tmp_path / "missing", [third])


def lengths(signed: bundle.Signed) -> tuple[int, int]:
    """Tables and payload of a bundle."""
    return signed.header.tables_bytes, signed.header.payload_bytes


def test_an_unsigned_bundle_can_be_built_and_signed_later(tmp_path: Path, pair: KeyPair) -> None:
    (tmp_path / "image").write_bytes(b"content")
    out = tmp_path / "out.abu"
    create(specs.load(written(tmp_path, HEAD + '[images.x]\nfile = "image"\n')), out, [])
    assert read(out).signed.signatures == ()
    resign.add_signatures(out, [pair])
    assert [item.public_key for item in read(out).signed.signatures] == [pair.public.raw]


def test_extract_writes_nothing_that_is_damaged_and_overwrites_nothing(tmp_path: Path, pair: KeyPair) -> None:
    (tmp_path / "image").write_bytes(random.Random(2).randbytes(50_000))
    spec = specs.load(written(tmp_path, HEAD + 'chunk_bytes = 4096\n[images.x]\nfile = "image"\n'))
    out = tmp_path / "out.abu"
    create(spec, out, [pair])
    good = out.read_bytes()
    out.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(Refused, match="image x"):
        extract(out, tmp_path / "d")
    assert list((tmp_path / "d").iterdir()) == []
    out.write_bytes(good)
    (tmp_path / "d" / "x.img").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        extract(out, tmp_path / "d")
    assert (tmp_path / "d" / "x.img").read_text() == "mine"

    def refuse(envelope: bundle.Envelope) -> bundle.Signed:
        raise Refused("not trusted")

    with pytest.raises(Refused, match="not trusted"):
        extract(out, tmp_path / "e", refuse)
    assert not (tmp_path / "e").exists()


def test_output_takes_no_name_that_appeared_meanwhile(tmp_path: Path) -> None:
    def write() -> None:
        with atomic.output(tmp_path / "x", replace=False) as fd:
            os.write(fd, b"new")
            (tmp_path / "x").write_text("theirs")

    with pytest.raises(ConfigError, match="exists"):
        write()
    assert (tmp_path / "x").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_no_room_is_a_failure_that_leaves_nothing(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)

    def write() -> None:
        with atomic.output(tmp_path / "x") as fd:
            os.dup2(full, fd)
            atomic.pwrite_all(fd, b"data", 0)

    try:
        with pytest.raises(Failed, match="No space left"):
            write()
    finally:
        os.close(full)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bundle_of_more_than_4_gib(tmp_path: Path, pair: KeyPair) -> None:
    """Sparse image, and with the codec none a sparse bundle: every length is over 32 bits, few blocks are on the disk."""
    size = (4 << 30) + (300 << 20) + 4096 + 17
    sparse(tmp_path / "image", size, {number << 20: number.to_bytes(8, "big") * 16 for number in range(1 + (size >> 20))})
    for codec in ("zstd", "none"):
        out = tmp_path / f"{codec}.abu"
        create(specs.load(written(tmp_path, f'{HEAD}[images.x]\nfile = "image"\ncodec = "{codec}"\nlevel = 3\n')), out, [pair])
        size_bytes = out.stat().st_size
        assert (size_bytes > 1 << 32) is (codec == "none")
        assert out.stat().st_blocks * 512 < 100 << 20
        with out.open("rb") as file:
            head = bundle.read_head(file.read, size_bytes)
            assert head.signed.image("x").size_bytes == size
            file.seek(0)
            with pytest.raises(Refused, match="header says"):
                # What a reader with 32 bits would see.
                bundle.read_signed(file.read, size_bytes & 0xFFFFFFFF if codec == "none" else size_bytes - 1)
        extract(out, tmp_path / codec)
        subprocess.run(["cmp", tmp_path / codec / "x.img", tmp_path / "image"], check=True)
        # The very last byte of all this is covered too.
        with out.open("r+b") as file:
            file.seek(size_bytes - 1)
            last = file.read(1)
            file.seek(size_bytes - 1)
            file.write(bytes([last[0] ^ 1]))
        with pytest.raises(Refused, match="stored bytes of the chunk"):
            extract(out, tmp_path / f"{codec}-again")
        for path in (out, tmp_path / codec / "x.img"):
            path.unlink()
