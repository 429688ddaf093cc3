"""`doctor --import`: the other updater's configuration becomes one that abupdate reads, or is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.__main__ import main
from abupdate.bootwiring import uboot_dialect
from abupdate.config import Settings, compose
from abupdate.errors import ConfigError
from abupdate.formats import libconfig
from abupdate.formats.foreignconfig import KINDS, MAX_BYTES, to_toml

RAUC = b"""\
[system]
compatible=acme "gateway"
bootloader=uboot
boot-attempts=5
boot-attempts-primary=2
# a comment
[keyring]
path=/etc/rauc/keyring.pem
[slot.rootfs.0]
device=/dev/mmcblk0p2
type=ext4
bootname=system0
[slot.appfs.0]
device=/dev/mmcblk0p4
parent=rootfs.0
[slot.rootfs.1]
device=/dev/mmcblk0p3
type=ext4
bootname=system1
[slot.appfs.1]
device=/dev/mmcblk0p5
parent=rootfs.1
[slot.bootloader.0]
device=/dev/mmcblk0boot0
type=boot-emmc
"""
MENDER = b'{"RootfsPartA": "/dev/mmcblk0p2", "RootfsPartB": "/dev/mmcblk0p11", "ServerURL": "x", "TenantToken": ""}'
SWUPDATE = b"""\
software =
{
	version = "1.0"; // of the update
	myboard : {
		hardware-compatibility: [ "1.0", "2.0" ];
		stable : {
			copy-1 : {
				images: ( { filename = "rootfs." "ext4"; device = "/dev/mmcblk0p2"; compressed = true; size = 0x10L; } );
				/* what boots */
				bootenv: ( { name = "mmcpart"; value = "2"; }, { name = "bootcount"; value = "0"; }, { name = "ustate"; value = "1"; } );
			};
			copy-2 : {
				images: ( { filename = "rootfs.ext4"; device = "/dev/mmcblk0p3"; } );
				bootenv: ( { name = "mmcpart"; value = "3"; }, { name = "bootcount"; value = "0"; }, { name = "ustate"; value = "1"; } );
			};
		};
	};
}
"""
JSON = b"""{ "software": { "version": "1", "stable": {
  "a": { "images": [ { "filename": "r.img", "device": "/dev/x1" } ], "bootenv": [ { "name": "slot", "value": "first" } ] },
  "b": { "images": [ { "filename": "r.img", "device": "/dev/x2" } ], "bootenv": [ { "name": "slot", "value": "second" } ] } } } }"""


def imported(kind: str, data: bytes) -> Settings:
    return compose([(Path("/etc/abupdate/config.toml"), to_toml(kind, data, "file").encode())], Path("/etc/abupdate/config.toml"))


def test_raucs_system_conf(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = imported("rauc", RAUC)
    assert found.compatible == 'acme "gateway"'
    images = {slot: {image: str(path) for image, path in part.images.items()} for slot, part in found.slots.items()}
    assert images == {
        "system0": {"rootfs": "/dev/mmcblk0p2", "appfs": "/dev/mmcblk0p4"},
        "system1": {"rootfs": "/dev/mmcblk0p3", "appfs": "/dev/mmcblk0p5"},
    }
    assert (found.bootloader.kind, found.bootloader.dialect) == ("uboot", "rauc")
    assert (found.trial.tries, found.trial.confirmed_tries) == (2, 5)
    file = tmp_path / "system.conf"
    file.write_bytes(RAUC)
    assert main(["doctor", "--import", "rauc", str(file)]) == 0
    said = capsys.readouterr().out
    assert said == to_toml("rauc", RAUC, "system.conf")
    assert "# LOOK: slot bootloader.0 is left out" in said


def test_raucs_grub() -> None:
    found = imported("rauc", RAUC.replace(b"bootloader=uboot", b"bootloader=grub\ngrubenv=/boot/efi/grubenv"))
    assert (found.bootloader.kind, found.bootloader.dialect, str(found.bootloader.grubenv)) == ("grub", "rauc", "/boot/efi/grubenv")
    assert (found.trial.tries, found.trial.confirmed_tries) == (1, 0)


def test_counts_beyond_what_raucs_script_can_count_are_cut_to_it() -> None:
    assert imported("rauc", RAUC.replace(b"boot-attempts=5", b"boot-attempts=20")).trial.confirmed_tries == 9
    assert imported("rauc", RAUC.replace(b"boot-attempts=5\n", b"")).trial.confirmed_tries == 3


def test_mender_conf() -> None:
    found = imported("mender", MENDER)
    assert found.compatible == "CHANGE-ME"
    assert found.bootloader.partitions == {"A": 2, "B": 11}
    assert (found.bootloader.dialect, found.trial.tries, found.trial.confirmed_tries) == ("mender", 1, 0)
    assert uboot_dialect(found, tuple(found.slots)).name == "mender"


def test_mender_devices_that_do_not_tell_their_partition_are_marked() -> None:
    text = to_toml("mender", b'{"RootfsPartA": "/dev/disk/by-partlabel/a", "RootfsPartB": "/dev/disk/by-partlabel/b"}', "mender.conf")
    assert "# LOOK: partitions" in text
    assert compose([(Path("/c"), text.encode())], Path("/c")).bootloader.partitions == {"A": 2, "B": 3}


@pytest.mark.parametrize(
    ("data", "copy_var", "values"), [(SWUPDATE, "mmcpart", {"A": "2", "B": "3"}), (JSON, "slot", {"A": "first", "B": "second"})]
)
def test_sw_description_of_two_copies(data: bytes, copy_var: str, values: dict[str, str]) -> None:
    found = imported("swupdate", data)
    assert (found.bootloader.copy_var, found.bootloader.copy_values) == (copy_var, values)
    assert (found.bootloader.dialect, found.trial.confirmed_tries) == ("swupdate", 0)
    assert all(len(part.images) == 1 for part in found.slots.values())
    assert uboot_dialect(found, tuple(found.slots)).name == "swupdate"


def test_second_variable_that_differs_is_named() -> None:
    both = SWUPDATE.replace(b'value = "2"; },', b'value = "2"; }, { name = "root"; value = "p2"; },')
    both = both.replace(b'value = "3"; },', b'value = "3"; }, { name = "root"; value = "p3"; },')
    assert "# LOOK: copy_var: root differ too" in to_toml("swupdate", both, "x")


@pytest.mark.parametrize(
    ("kind", "data", "word"),
    [
        ("rauc", b"", "no [system]"),
        ("rauc", b"words", "no system.conf"),
        ("rauc", b"\xff\xfe", "not UTF-8"),
        ("rauc", RAUC.replace(b"=uboot", b"=barebox"), "no counterpart"),
        ("rauc", RAUC.replace(b"bootname=system1\n", b""), "1 bootable slots"),
        ("rauc", RAUC.replace(b"bootname=system1", b"bootname=system one"), "name of a slot"),
        ("rauc", RAUC.replace(b"[slot.appfs.1]\ndevice=/dev/mmcblk0p5\nparent=rootfs.1\n", b""), "same images"),
        ("rauc", RAUC.replace(b'acme "gateway"', b"acme\x1b[31m"), "cannot stand"),
        ("mender", b"{}", "RootfsPartA"),
        ("mender", b"[1]", "RootfsPartA"),
        ("mender", b"[" * 100000, "no JSON"),
        ("mender", b"{", "no JSON"),
        ("swupdate", b"", "no two copies"),
        ("swupdate", b"software = { stable = {", "libconfig"),
        ("swupdate", b"globals : { verbose = true; loglevel = 5; };", "no two copies"),
        ("swupdate", b"a = " + b"(" * 5000, "nested"),
        ("swupdate", b"a = {" * 5000, "libconfig"),
        ("swupdate", b"\x00", "libconfig"),
        ("swupdate", SWUPDATE.replace(b'value = "3"', b'value = "2"'), "no variable"),
        ("swupdate", b'@include "x"', "libconfig"),
        ("rauc", b"#" * (MAX_BYTES + 1), "larger"),
    ],
)
def test_what_is_no_such_configuration_is_refused_in_one_line(kind: str, data: bytes, word: str) -> None:
    with pytest.raises(ConfigError) as error:
        to_toml(kind, data, "file")
    assert (error.value.exit_code, bool(error.value.hint)) == (2, True)
    assert word in error.value.message or (word == "libconfig" and "nested" in error.value.message)
    assert error.value.line.isprintable()


def test_unknown_kind_and_missing_file_are_exit_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--import", "ostree", str(tmp_path / "x")]) == 2
    assert main(["doctor", "--import", "rauc", str(tmp_path / "x")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.startswith("abupdate: ") for line in said.err.splitlines()] == [True, True]


def test_libconfig_values() -> None:
    found = libconfig.parse(b'a = 1; b : -0x1f; c = 1.5, d = TRUE; "e" = ["x\\n\\x41\\"", "y"]; f = ((1, 2), {g = 3L;}); # end', "x")
    assert found == {"a": 1, "b": -31, "c": 1.5, "d": True, "e": ['x\nA"', "y"], "f": [[1, 2], {"g": 3}]}


@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from([RAUC, MENDER, SWUPDATE, JSON]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=4),
)
def test_any_change_of_a_file_gives_a_configuration_or_one_line(kind: str, data: bytes, changes: list[tuple[float, bytes]]) -> None:
    for place, piece in changes:
        at = int(place * len(data))
        data = data[:at] + piece + data[at + 1 :]
    complaint = ""
    try:
        text = to_toml(kind, data, "file")
    except ConfigError as error:
        complaint = error.line
    assert complaint.isprintable()
    if not complaint:
        compose([(Path("/c"), text.encode())], Path("/c"))
