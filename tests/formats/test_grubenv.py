"""GRUB's environment block: read as GRUB's own tool reads it, written as the tool can read and change it, others' bytes kept."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abupdate.errors import ConfigError, StoreUnreadable
from abupdate.formats.grubenv import SECTOR_BYTES, SIGNATURE, SIZE_BYTES, WARNING, Block, encode, parse, salvaged, sectors
from tests.sim.grub import saved, variables

OURS = {"ORDER": b"A B", "A_LEFT": b"10", "B_LEFT": b"03", "TRIAL": None}
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
values = st.text(st.sampled_from("ab=# \\\n'\"$äx"), max_size=12)


def block(*lines: bytes) -> bytes:
    return (SIGNATURE + b"".join(lines)).ljust(SIZE_BYTES, b"#")


def tool(path: Path, *words: str) -> bytes:
    return subprocess.run(["grub-editenv", path, *words], check=True, capture_output=True).stdout


@pytest.mark.parametrize("warning", [b"", WARNING + b"\n"])
def test_both_headers_that_grub_writes_are_kept_in_front(warning: bytes) -> None:
    data = encode(parse(block(warning, b"foo=1\n"), "grubenv"), OURS, "grubenv")
    assert data.startswith(SIGNATURE + warning + b"ORDER=A B\nA_LEFT=10\nB_LEFT=03\n#")
    assert data[SECTOR_BYTES:].startswith(b"#\nfoo=1\n###")
    assert len(data) == SIZE_BYTES


@given(st.dictionaries(names, values, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_tool_writes_is_read_as_it_lists_it_and_kept_byte_for_byte(tmp_path: Path, wanted: dict[str, str]) -> None:
    path = tmp_path / "grubenv"
    tool(path, "create")
    if wanted:
        tool(path, "set", *(f"{name}={value}" for name, value in wanted.items()))
    data = path.read_bytes()
    found = parse(data, "grubenv")
    for name, value in wanted.items():
        assert found.get(name) == value.encode()
    assert variables(data) == {name: value.encode().decode("latin-1") for name, value in wanted.items()}
    ours = {f"our_{name}": value for name, value in OURS.items()}
    new = encode(found, ours, "grubenv")
    kept = data[len(SIGNATURE) + len(WARNING) + 1 :].rstrip(b"#")
    assert new[SECTOR_BYTES:].rstrip(b"#") == b"#\n" + kept
    path.write_bytes(new)
    listed = tool(path, "list")
    lines = [f"{name}=".encode() + value for name, value in ours.items() if value is not None]
    lines += [f"{name}={value}".encode() for name, value in wanted.items()]
    assert all(line + b"\n" in listed for line in lines)


@given(st.lists(st.sampled_from([b"a=1\n", b"#", b"# c\n", b"\\", b"b=\\\\\n", b"\n", b"=", b"x", b"ORDER=A\n", b"##\n"]), max_size=30))
def test_any_block_is_read_as_the_simulators_grub_reads_it(pieces: list[bytes]) -> None:
    data = block(*pieces)
    found, said = parse(data, "grubenv"), variables(data)
    assert said is not None
    for name in ("a", "b", "ORDER", "x"):
        got = found.get(name)
        assert (None if got is None else got.decode("latin-1")) == said.get(name)


@given(st.integers(0, 99), st.lists(st.sampled_from([b"a=1\n", b"# c\n", b"b=\\\\\n", b"ORDER=A\n"]), max_size=9))
def test_a_change_of_ours_changes_the_first_sector_alone(left: int, pieces: list[bytes]) -> None:
    first = encode(parse(block(*pieces), "grubenv"), OURS, "grubenv")
    ours = {**OURS, "B_LEFT": b"%d" % left, "TRIAL": b"B", "VERITY": b"5a" * 32}
    second = encode(parse(first, "grubenv"), ours, "grubenv")
    assert [offset for offset, _ in sectors(first, second)] == [0]
    assert sectors(second, second) == ()
    # So does GRUB's own change of a counter.
    counted = saved(second, "A_LEFT", "09")
    assert [at for at in range(SIZE_BYTES) if counted[at] != second[at]] == list(
        range(second.index(b"A_LEFT=10") + 7, second.index(b"A_LEFT=10") + 9)
    )


@given(
    st.lists(st.sampled_from([b"a=1", b"# c", b"b=\\\\", b"a_name_of_some_length=1"]), max_size=4, unique=True),
    st.integers(0, 440),
    st.booleans(),
)
def test_between_the_two_sectors_of_a_first_write_everybody_reads_what_was_there(lines: list[bytes], filler: int, warned: bool) -> None:
    """Also where a line lies in both sectors."""
    old = block(*([WARNING + b"\n"] if warned else []), b"filler=" + b"x" * filler + b"\n", *(line + b"\n" for line in lines))
    new = encode(parse(old, "grubenv"), OURS, "grubenv")
    (second, first) = sectors(old, new)
    assert (second[0], first[0]) == (SECTOR_BYTES, 0)
    torn = old[:SECTOR_BYTES] + second[1]
    before, between = variables(old), variables(torn)
    assert before is not None
    assert between is not None
    assert between.items() >= before.items()
    # Nobody is told that there is no room, and what is complete comes out as if nothing had been in between.
    again = variables(encode(parse(torn, "grubenv"), OURS, "grubenv"))
    assert again is not None
    assert again.items() >= before.items()


@given(
    st.booleans(),
    st.integers(0, 420),
    st.lists(st.sampled_from([b"ORDER=B A", b"A_LEFT=10", b"A_LEFT=07", b"B_LEFT=01", b"TRIAL=B", b"a=1", b"ORDER=A"]), max_size=7),
)
def test_cut_anywhere_in_a_first_write_leaves_the_old_boot_state_or_the_new(warned: bool, filler: int, lines: list[bytes]) -> None:
    """Where others (a long saved_entry, kernelopts) have filled the first sector, our variables, or RAUC's, begin in the second."""
    warning = [WARNING + b"\n"] if warned else []
    old = block(*warning, b"kernelopts=" + b"x" * filler + b"\n", *(line + b"\n" for line in lines))
    now, seen = old, [ours_in(old)]
    new = encode(parse(old, "grubenv"), OURS, "grubenv")
    for offset, piece in sectors(old, new):
        now = now[:offset] + piece + now[offset + SECTOR_BYTES :]
        seen.append(ours_in(now))
        assert (variables(now) or {})["kernelopts"] == "x" * filler
    assert now == new
    assert seen in ([ours_in(old)] * (len(seen) - 1) + [ours_in(new)], [ours_in(old)] + [ours_in(new)] * (len(seen) - 1))


def test_boot_state_behind_what_others_keep_is_moved_in_three_writes() -> None:
    old = block(WARNING + b"\n", b"kernelopts=" + b"x" * 400 + b"\n", b"ORDER=B A\nA_LEFT=10\nB_LEFT=01\n")
    new = encode(parse(old, "grubenv"), {**OURS, "TRIAL": b"B"}, "grubenv")
    first, second, third = sectors(old, new)
    assert [first[0], second[0], third[0]] == [SECTOR_BYTES, 0, SECTOR_BYTES]
    for between in (old[:SECTOR_BYTES] + first[1], second[1] + first[1]):
        assert ours_in(between) == {"ORDER": "B A", "A_LEFT": "10", "B_LEFT": "01"}
        # The next commit after a cut ends where this one would have.
        assert encode(parse(between, "grubenv"), {**OURS, "TRIAL": b"B"}, "grubenv") == new


def ours_in(data: bytes) -> dict[str, str]:
    """An empty variable is none."""
    found = variables(data) or {}
    return {name: found[name] for name in OURS if found.get(name)}


def test_boot_state_is_moved_even_where_others_leave_no_room_for_it_to_stand_twice() -> None:
    old = block(b"kernelopts=" + b"x" * 480 + b"\n", b"ORDER=B A\n", b"A_LEFT=01\n")
    new = encode(parse(old, "grubenv"), OURS, "grubenv")
    assert sectors(old, new) == ((SECTOR_BYTES, new[SECTOR_BYTES:]), (0, new[:SECTOR_BYTES]))


@pytest.mark.parametrize(
    "data",
    [b"", SIGNATURE, block()[:-1], block() + b"#", bytes(SIZE_BYTES), b"x" + block()[1:], block().replace(b"Block", b"block")],
    ids=["empty", "signature alone", "short", "long", "zeros", "first byte", "other word"],
)
def test_what_is_no_block_of_that_size_is_unreadable(data: bytes) -> None:
    with pytest.raises(StoreUnreadable, match="grubenv") as caught:
        parse(data, "grubenv")
    assert caught.value.exit_code == 2
    assert "grub-editenv grubenv create" in caught.value.hint


def test_a_block_of_another_size_is_salvaged() -> None:
    assert salvaged(block(b"foo=1\n", b"bar=2\n")[:-7], "grubenv").lines == (b"foo=1", b"bar=2")
    assert salvaged(b"rubbish", "grubenv") == Block()


def test_a_longer_file_that_begins_otherwise_is_somebody_elses_and_no_hint_says_to_write_over_it() -> None:
    script = b"menuentry x { linux /vmlinuz }\n".ljust(SIZE_BYTES + 1, b"#")
    for read in (parse, salvaged):
        with pytest.raises(ConfigError, match="grubenv has more than 1024 bytes and does not begin") as caught:
            read(script, "grubenv")
        assert caught.value.hint == "is it the right file? [bootloader] grubenv names it"


def test_hand_edited_lines_are_read_as_grub_reads_them() -> None:
    found = parse(block(b"# a comment\n", b"foo=1\n", b"no equals\nbar=2\n", b"foo=3\n", b"end=4"), "grubenv")
    assert (found.get("foo"), found.get("bar"), found.get("end")) == (b"3", None, None)
    assert found.lines == (b"# a comment", b"foo=1", b"no equals\nbar=2", b"foo=3")


def test_too_much_of_others_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="variables of others take 511 bytes, 510 are left") as caught:
        encode(Block((b"x=" + b"y" * 508,)), OURS, "grubenv")
    assert "grub-editenv grubenv list" in caught.value.hint
    assert len(encode(Block((b"x=" + b"y" * 507,)), OURS, "grubenv")) == SIZE_BYTES
    with pytest.raises(ConfigError, match="of its first 512"):
        encode(Block(), {"ORDER": b"x" * 490}, "grubenv")
