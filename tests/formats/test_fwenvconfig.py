"""fw_env.config: every form that libubootenv reads, and a refusal with a hint for everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import ConfigError
from abupdate.formats.fwenvconfig import MAX_CONFIG_BYTES, EnvLocation, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dev/mtd1 0x0000 0x4000 0x4000\n", [EnvLocation("/dev/mtd1", 0, 0x4000, 0x4000)]),
        ("/dev/mtd0\t0x4000\t0x4000\t0x20000\t2", [EnvLocation("/dev/mtd0", 0x4000, 0x4000, 0x20000, 2)]),
        ("/dev/mtd0 0 4000 1000 4 1", [EnvLocation("/dev/mtd0", 0, 0x4000, 0x1000, 4, lock=False)]),
        ("/dev/mtd0 0 4000 1000 4 0", [EnvLocation("/dev/mtd0", 0, 0x4000, 0x1000, 4)]),
        (
            "# comment\n\n   # another\n/dev/mmcblk0 0xc0000 0x20000 # U-Boot\r\n/dev/mmcblk0 -0x20000 0x20000\r\n",
            [EnvLocation("/dev/mmcblk0", 0xC0000, 0x20000), EnvLocation("/dev/mmcblk0", -0x20000, 0x20000)],
        ),
        ("/boot/uboot.env 1048576 4000", [EnvLocation("/boot/uboot.env", 0x100000, 0x4000)]),
        ("/boot/uboot.env 010000 4000", [EnvLocation("/boot/uboot.env", 0o10000, 0x4000)]),
        ("/e +16 4000\n/e 0x4010 4000", [EnvLocation("/e", 16, 0x4000), EnvLocation("/e", 0x4010, 0x4000)]),
    ],
)
def test_forms(text: str, expected: list[EnvLocation]) -> None:
    assert list(parse(text.encode())) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "names no environment"),
        ("# nothing\n", "names no environment"),
        ("/dev/mtd1 0x0\n", "2 fields"),
        ("/dev/mtd1 0x0 0x4000 0x4000 1 0 7\n", "7 fields"),
        ("mtd1 0x0 0x4000\n", "absolute path"),
        (f"/{'x' * 255} 0x0 0x4000\n", "absolute path"),
        ("/dev/mtd1 4k 0x4000\n", "not a number"),
        ("/dev/mtd1 08 0x4000\n", "not a number"),
        ("/dev/mtd1 0x0 16k\n", "not a hexadecimal"),
        ("/dev/mtd1 0x0 -0x4000\n", "not a hexadecimal"),
        ("/dev/mtd1 0x0 0\n", "an environment of 0 bytes"),
        ("/dev/mtd1 0x0 0x40000000\n", "an environment of"),
        ("/dev/mtd1 -0x100 0x4000\n", "no room"),
        ("/dev/mtd1 0x0 0x4000 0x1000 4 yes\n", "sixth field"),
        ("/dev/a 0x0 0x4000\n/dev/b 0x0 0x2000\n", "differ in size"),
        ("/dev/a 0x0 0x4000\n/dev/a 0x3fff 0x4000\n", "overlap"),
        ("/dev/a 0x0 0x4000\n/dev/a 0x0 0x4000\n", "overlap"),
        ("/dev/a 0x0 0x4000\n/dev/b 0x0 0x4000\n/dev/c 0x0 0x4000\n", "third copy"),
        ("uboot:\n  size: 0x4000\n", "fields"),
    ],
)
def test_nonsense_is_refused_with_a_word(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        parse(text.encode(), "/etc/fw_env.config")
    assert caught.value.message.startswith("/etc/fw_env.config: ")
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_file_that_is_no_configuration() -> None:
    for raw in (b"\x7fELF\xff\xfe 0 1", b"#" * (MAX_CONFIG_BYTES + 1)):
        with pytest.raises(ConfigError):
            parse(raw)


fields = st.sampled_from(
    ["/dev/a", "/dev/b", "0", "0x0", "-0x4000", "4000", "0x4000", "#", "\t", " ", "\n", "\r", "x", "0x", "99999999999999999999", "\0", "é"]
)


@given(st.binary(max_size=300) | st.lists(fields, max_size=24).map(lambda parts: " ".join(parts).encode()))
def test_fuzz_raises_only_project_errors(text: bytes) -> None:
    try:
        locations = parse(text)
    except ConfigError:
        return
    assert 1 <= len(locations) <= 2
    assert all(location.size_bytes > 0 for location in locations)
    assert parse("\n".join(f"{place.device} {place.offset} {place.size_bytes:x}" for place in locations).encode()) == tuple(
        EnvLocation(place.device, place.offset, place.size_bytes) for place in locations
    )
