"""EFI's load options, device paths and lists of them, our marker and partition tables: bytes and values, also as efibootmgr reads them."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import ConfigError
from abupdate.formats import efiboot, efimarker, gpt
from abupdate.formats.efiboot import ACTIVE, LoadOption, Partition
from abupdate.formats.efimarker import Marker

GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
PARTITION = Partition(2, 0x800, 0x80000, bytes.fromhex("215dae9a11a9104e94d947e8e3d8cd54"))
# Boot0003 as OVMF and the kernel's efivarfs had it, without the attributes of the file.
WHOLE = bytes.fromhex(
    "01000000 4e00 6100620075007000640061007400650020004100 0000"
    "04012a00 02000000 0008000000000000 0000080000000000 215dae9a11a9104e94d947e8e3d8cd54 02 02"
    "04042000 5c006100620075005c0041005c0076006d006c0069006e0075000000 7fff0400 72006f000000"
)


def test_a_load_option_is_taken_apart_and_put_together() -> None:
    found = efiboot.decode_option(WHOLE)
    assert found is not None
    assert (found.description, found.active, found.in_turn) == ("abupdate A", True, True)
    assert efiboot.place_of(found.path) == (PARTITION, "/abu/A/vmlinu")
    assert efiboot.decode_cmdline(found.data) == "ro"
    assert efiboot.encode_option(found) == WHOLE
    assert efiboot.file_on(PARTITION, "/abu/A/vmlinu") == found.path
    assert str(PARTITION) == "partition 2 (9aae5d21-a911-4e10-94d9-47e8e3d8cd54)"


@pytest.mark.parametrize("data", [b"", b"\1\0\0\0", b"\1\0\0\0\0\0", WHOLE[:20], WHOLE[:60], b"\1\0\0\0\xff\xff\0\0"])
def test_what_is_no_load_option_is_none(data: bytes) -> None:
    assert efiboot.decode_option(data) is None


@given(st.integers(0, 2**32 - 1), st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=20), st.binary(), st.binary())
def test_every_load_option_survives(attributes: int, description: str, path: bytes, data: bytes) -> None:
    option = LoadOption(attributes, description, path, data)
    assert efiboot.decode_option(efiboot.encode_option(option)) == option


@given(st.binary(max_size=200))
def test_any_device_path_leads_somewhere_or_nowhere(path: bytes) -> None:
    efiboot.place_of(path)


@pytest.mark.parametrize(
    "node",
    [
        b"\x04\x01\x04\x00",
        b"\x04\x01\x2a\x00\x02",
        b"\x04\x04\x03\x00",
        b"\x04\x04\x00\x00",
        b"\x7f\xff\x04\x00" + efiboot.file_on(PARTITION, "x"),
    ],
)
def test_broken_paths_lead_nowhere(node: bytes) -> None:
    assert efiboot.place_of(node) is None


def test_a_file_in_two_nodes_is_one_path() -> None:
    disk = efiboot.file_on(PARTITION, "x")[:42]
    nodes = b"".join(
        struct.pack("<BBH", 4, 4, 4 + len(part)) + part for part in (name.encode("utf-16-le") for name in ("\\EFI\0", "b\\c.efi\0"))
    )
    assert efiboot.place_of(disk + nodes + b"\x7f\xff\x04\x00") == (PARTITION, "/EFI/b/c.efi")


@pytest.mark.parametrize("name", ["", "/", "a\0b", "x" * 600])
def test_files_that_no_path_can_name_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        efiboot.file_on(PARTITION, name)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["x" * 2048, "ümlaut", "two\nlines", "nul\0"])
def test_arguments_that_no_kernel_takes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        efiboot.encode_cmdline(text)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("data", [b"\1", b"\x00\xd8", "é".encode("utf-16-le"), "a\tb".encode("utf-16-le"), bytes(range(16))])
def test_data_that_is_no_command_line_says_nothing(data: bytes) -> None:
    assert efiboot.decode_cmdline(data) == ""


def test_too_long_an_entry_is_refused() -> None:
    for option in (LoadOption(1, "x", bytes(0x10000)), LoadOption(1, "a\0b", b"")):
        with pytest.raises(ConfigError):
            efiboot.encode_option(option)


def test_orders_and_names() -> None:
    assert efiboot.decode_order(b"\x0a\0\x01\xff") == (10, 0xFF01)
    assert efiboot.encode_order([10, 0xFF01]) == b"\x0a\0\x01\xff"
    assert efiboot.decode_order(b"\x0a") is None
    assert efiboot.decode_order(bytes(4096)) is None
    assert efiboot.option_name(0xAF) == "Boot00AF"
    assert [efiboot.option_number(name) for name in ("Boot00AF", "Boot00af", "BootOrder", "Boot0", "xBoot0001")] == [0xAF, *[None] * 4]


def test_efibootmgr_reads_the_same(tmp_path: Path) -> None:
    option = LoadOption(ACTIVE, "abupdate B", efiboot.file_on(PARTITION, "abu/B/vmlinuz"), efiboot.encode_cmdline("ro abupdate.slot=B"))
    hidden = LoadOption(0, "Menu", b"\x7f\xff\x04\x00")
    for name, data in (
        (efiboot.option_name(0x1F), efiboot.encode_option(option)),
        (efiboot.option_name(2), efiboot.encode_option(hidden)),
        ("BootOrder", efiboot.encode_order([0x1F, 2])),
        ("BootNext", efiboot.encode_order([2])),
    ):
        (tmp_path / f"{name}-{GUID}").write_bytes(b"\7\0\0\0" + data)
    environment = {**os.environ, "EFIVARFS_PATH": f"{tmp_path}/", "LC_ALL": "C"}
    said = subprocess.run(["efibootmgr", "-v"], capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    assert said[:2] == ["BootNext: 0002", "BootOrder: 001F,0002"]
    assert said[2].startswith("Boot0002  Menu")
    place = "HD(2,GPT,9aae5d21-a911-4e10-94d9-47e8e3d8cd54,0x800,0x80000)/File(\\abu\\B\\vmlinuz)"
    assert said[3].startswith(f"Boot001F* abupdate B\t{place}")
    assert said[3].removeprefix(f"Boot001F* abupdate B\t{place}").replace(".", "").replace(" ", "") == "roabupdateslot=B"


# ---- marker

slots = st.lists(st.sampled_from(["A", "B", "main", "S2"]), max_size=4, unique=True).map(tuple)


@given(st.none() | st.sampled_from(["A", "B"]), slots, slots, st.none() | st.integers(0, 2**63 - 1))
def test_every_marker_survives(trial: str | None, good: tuple[str, ...], spent: tuple[str, ...], floor: int | None) -> None:
    marker = Marker(trial, good, spent, floor, ("later=1",))
    assert efimarker.decode(efimarker.encode(marker)) == marker


@pytest.mark.parametrize("data", [b"", b"\0\xff", b"trial", b"trial=", b"good=,,", b"floor=-1 spent=\xc3\xa9", b"trial=A/B", b" " * 5000])
def test_a_marker_of_rubbish_says_nothing(data: bytes) -> None:
    assert efimarker.decode(data) == Marker()


def test_words_of_others_give_way_before_ours() -> None:
    marker = Marker("A", ("A", "B"), (), 5, tuple(f"w{number}={'x' * 100}" for number in range(20)))
    raw = efimarker.encode(marker)
    assert len(raw) <= efimarker.MAX_BYTES
    assert efimarker.decode(raw) == Marker("A", ("A", "B"), (), 5, marker.others[: len(efimarker.decode(raw).others)])


# ---- partition tables

HEADER = b"EFI PART" + bytes(64) + struct.pack("<QII", 2, 128, 128)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        bytes(512),
        b"EFI PART",
        HEADER.replace(b"EFI", b"efi"),
        HEADER[:72] + struct.pack("<QII", 0, 128, 128),
        HEADER[:72] + struct.pack("<QII", 2, 0, 128),
        HEADER[:72] + struct.pack("<QII", 2, 2000, 128),
        HEADER[:72] + struct.pack("<QII", 2, 128, 8),
        HEADER[:72] + struct.pack("<QII", 2, 128, 1 << 20),
    ],
)
def test_what_is_no_gpt_is_none(block: bytes) -> None:
    assert gpt.parse_header(block) is None


def test_a_partition_of_gpt() -> None:
    assert gpt.parse_header(HEADER) == gpt.Entries(2, 128, 128)
    entry = bytes(range(1, 33)) + struct.pack("<QQ", 2048, 4095)
    assert gpt.parse_entry(entry, 3) == Partition(3, 2048, 2048, bytes(range(17, 33)))
    for ends in ((2048, 2047), (0, 2**64 - 1)):
        with pytest.raises(ConfigError):
            gpt.parse_entry(bytes(range(1, 33)) + struct.pack("<QQ", *ends), 3)
    for broken in (b"", bytes(128)):
        with pytest.raises(ConfigError) as caught:
            gpt.parse_entry(broken, 3)
        assert caught.value.hint


def test_a_partition_of_a_dos_disk() -> None:
    block = bytes(440) + b"\x12\x34\x56\x78" + bytes(66) + b"\x55\xaa"
    found = gpt.dos_partition(block, 1, 63, 100)
    assert (found.signature[:4], found.gpt, str(found)) == (b"\x12\x34\x56\x78", False, "partition 1 (78563412)")
    assert efiboot.place_of(efiboot.file_on(found, "x")) == (found, "/x")
    for broken in (bytes(512), block[:-1], bytes(510) + b"\x55\xaa"):
        with pytest.raises(ConfigError):
            gpt.dos_partition(broken, 1, 63, 100)
