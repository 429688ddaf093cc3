"""The codec of U-Boot's environment against mkenvimage, fw_printenv, its own construct declaration and random bytes."""

from __future__ import annotations

import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abupdate.errors import AbupdateError, ConfigError, StoreUnreadable
from abupdate.formats.ubootenv import Environment, Scheme, choose, declaration, decode, encode, header_bytes, next_flag

SIZE = 4096
SCHEMES = list(Scheme)
entries = st.lists(st.binary(min_size=1, max_size=40).filter(lambda entry: b"\0" not in entry), max_size=20).map(tuple)


@given(entries, st.sampled_from(SCHEMES), st.integers(0, 255))
def test_what_is_written_is_read(content: tuple[bytes, ...], scheme: Scheme, flag: int) -> None:
    raw = encode(Environment(content), SIZE, scheme, flag)
    assert len(raw) == SIZE
    copy = decode(raw, scheme)
    assert copy.environment.entries == content
    assert copy.flag == (0 if scheme is Scheme.SINGLE else flag)


@given(entries, st.sampled_from(SCHEMES), st.integers(0, 255))
def test_the_declaration_agrees_in_both_directions(content: tuple[bytes, ...], scheme: Scheme, flag: int) -> None:
    raw = encode(Environment(content), SIZE, scheme, flag)
    form = declaration(SIZE, scheme)
    parsed = form.parse(raw)
    assert tuple(parsed.data.value) == (*content, b"")
    data = raw[header_bytes(scheme) :]
    assert parsed.crc == zlib.crc32(data)
    if scheme is not Scheme.SINGLE:
        assert parsed.flag == flag
    assert form.build({"crc": zlib.crc32(data), "flag": flag, "data": {"value": [*content, b""]}}) == raw


@given(entries, st.sampled_from(SCHEMES), st.integers(0, SIZE * 8 - 1))
def test_a_flipped_bit_is_seen_everywhere_but_in_the_flag(content: tuple[bytes, ...], scheme: Scheme, bit: int) -> None:
    raw = bytearray(encode(Environment(content), SIZE, scheme, 7))
    raw[bit // 8] ^= 1 << bit % 8
    if scheme is not Scheme.SINGLE and bit // 8 == 4:
        assert decode(bytes(raw), scheme).environment.entries == content
        return
    with pytest.raises(StoreUnreadable):
        decode(bytes(raw), scheme)


@given(st.binary(max_size=200), st.sampled_from(SCHEMES), st.booleans())
def test_random_bytes_raise_nothing_but_our_errors(raw: bytes, scheme: Scheme, mend: bool) -> None:
    """With `mend` the checksum is made right, so that the fuzz reaches the entries."""
    header = header_bytes(scheme)
    if mend and len(raw) > header:
        raw = zlib.crc32(raw[header:]).to_bytes(4, "little") + raw[4:]
    try:
        copy = decode(raw, scheme)
    except AbupdateError:
        assert not (mend and len(raw) > header)
        return
    assert all(entry and b"\0" not in entry for entry in copy.environment.entries)
    try:
        again = encode(copy.environment, len(raw), scheme, copy.flag)
    except ConfigError:
        assert b"\0\0" not in raw[header:], "only data without its closing zero does not fit where it was"
    else:
        assert decode(again, scheme) == copy


@pytest.mark.parametrize("scheme", SCHEMES)
def test_overflow_is_refused_at_the_very_byte(scheme: Scheme) -> None:
    room = SIZE - header_bytes(scheme)
    full = Environment((b"a=" + b"x" * (room - 4),))
    assert decode(encode(full, SIZE, scheme), scheme).environment == full
    with pytest.raises(ConfigError, match="no room"):
        encode(Environment((b"a=" + b"x" * (room - 3),)), SIZE, scheme)


@pytest.mark.parametrize("entry", [b"", b"a=\0"])
def test_entries_that_would_end_the_environment_are_refused(entry: bytes) -> None:
    with pytest.raises(ConfigError):
        encode(Environment((entry,)), SIZE, Scheme.SINGLE)


@given(st.integers(0, 255), st.integers(0, 255))
def test_the_next_flag_wins_over_the_current_one(flag: int, other: int) -> None:
    following = next_flag(flag, Scheme.INCREMENTAL)
    assert choose(flag, following, Scheme.INCREMENTAL) == 1
    assert choose(following, flag, Scheme.INCREMENTAL) == 0
    if flag == other:
        assert choose(flag, other, Scheme.INCREMENTAL) == 0


@pytest.mark.parametrize(
    ("first", "second", "scheme", "counts"),
    [
        (255, 0, Scheme.INCREMENTAL, 1),
        (0, 255, Scheme.INCREMENTAL, 0),
        (255, 1, Scheme.INCREMENTAL, 0),
        (254, 0, Scheme.INCREMENTAL, 0),
        (3, 3, Scheme.INCREMENTAL, 0),
        (1, 0, Scheme.BOOLEAN, 0),
        (0, 1, Scheme.BOOLEAN, 1),
        (1, 1, Scheme.BOOLEAN, 0),
        (1, 255, Scheme.BOOLEAN, 1),
        (255, 0, Scheme.BOOLEAN, 0),
        (255, 255, Scheme.BOOLEAN, 0),
    ],
)
def test_which_copy_counts(first: int, second: int, scheme: Scheme, counts: int) -> None:
    assert choose(first, second, scheme) == counts


def test_lookups_follow_u_boots_import() -> None:
    environment = Environment((b"a=1", b"b=x=y", b"a=2", b"empty=", b"bare", b"c=1", b"c", b"\xff=\xfe"))
    assert environment.get("a") == b"2"
    assert environment.get("b") == b"x=y"
    assert [environment.get(name) for name in ("empty", "bare", "c", "none")] == [None] * 4


@given(entries, st.dictionaries(st.sampled_from(["BOOT_ORDER", "a", "b"]), st.none() | st.binary(min_size=1, max_size=5)))
def test_a_change_touches_nothing_else(content: tuple[bytes, ...], values: dict[str, bytes | None]) -> None:
    def foreign(environment: Environment) -> list[bytes]:
        return [entry for entry in environment.entries if entry.partition(b"=")[0] not in [name.encode() for name in values]]

    before = Environment((*content, b"a=1", b"a=2", b"z=\xff\xfe"))
    after = before.changed(values)
    assert foreign(after) == foreign(before)
    for name, value in values.items():
        assert after.get(name) == value
        assert sum(entry.partition(b"=")[0] == name.encode() for entry in after.entries) == (value is not None)
    assert after.changed(values) == after


@pytest.mark.parametrize("redundant", [False, True])
@pytest.mark.parametrize("pad", ["0x00", "0xff"])
def test_what_mkenvimage_makes_is_read(tmp_path: Path, redundant: bool, pad: str) -> None:
    (tmp_path / "text").write_bytes(b"BOOT_ORDER=A B\nfoo=b\xe4r baz\nbootcmd=run a; if test x = y; then z; fi\n")
    image = tmp_path / "image"
    subprocess.run(["mkenvimage", *(["-r"] if redundant else []), "-p", pad, "-s", "0x1000", "-o", image, tmp_path / "text"], check=True)
    copy = decode(image.read_bytes(), Scheme.INCREMENTAL if redundant else Scheme.SINGLE)
    assert copy.environment.get("foo") == b"b\xe4r baz"
    assert copy.environment.get("bootcmd") == b"run a; if test x = y; then z; fi"
    assert copy.environment.get("BOOT_ORDER") == b"A B"


names = st.text("abcdefgXYZ_.0123456789", min_size=1, max_size=12).filter(lambda name: name != ".flags")
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)


@settings(deadline=None)
@given(st.dictionaries(names, values, max_size=12), st.integers(0, 255), st.integers(0, 255))
def test_fw_printenv_reads_what_we_write_and_takes_the_same_copy(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, str], first: int, second: int
) -> None:
    folder = tmp_path_factory.mktemp("env")
    store, config = folder / "env", folder / "config"
    lines = tuple(f"{name}={value}".encode() for name, value in content.items())
    copies = [
        encode(Environment((*lines, b"copy=%d" % index)), 0x1000, Scheme.INCREMENTAL, flag) for index, flag in enumerate((first, second))
    ]
    store.write_bytes(b"".join(copies))
    config.write_text(f"{store} 0x0 0x1000\n{store} 0x1000 0x1000\n")
    printed = subprocess.run(["fw_printenv", "-c", config], check=True, capture_output=True).stdout.decode().splitlines()
    expected = {**content, "copy": str(choose(first, second, Scheme.INCREMENTAL))}
    assert dict(line.split("=", 1) for line in printed) == expected
