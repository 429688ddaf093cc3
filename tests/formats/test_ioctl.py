"""Request numbers of ioctl(2): as the kernel's headers have them on both kinds of machines."""

from __future__ import annotations

import pytest

from abupdate.formats.ioctl import plain_number, read_number, read_write_number, write_number


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "armv7l", "riscv64", "i686"])
def test_the_generic_layout(machine: str) -> None:
    assert read_number("W", 0, 40, machine) == 0x80285700  # WDIOC_GETSUPPORT
    assert read_number("W", 5, 4, machine) == 0x80045705  # WDIOC_KEEPALIVE
    assert read_write_number("W", 6, 4, machine) == 0xC0045706  # WDIOC_SETTIMEOUT
    assert read_number("M", 1, 32, machine) == 0x80204D01  # MEMGETINFO
    assert write_number("M", 2, 8, machine) == 0x40084D02  # MEMERASE
    assert write_number("M", 11, 8, machine) == 0x40084D0B  # MEMGETBADBLOCK
    assert plain_number("\x12", 104, machine) == 0x1268  # BLKSSZGET


@pytest.mark.parametrize("machine", ["mips", "mips64", "ppc", "ppc64le", "sparc64"])
def test_the_layout_with_three_bits_of_direction(machine: str) -> None:
    assert read_number("W", 0, 40, machine) == 0x40285700
    assert read_write_number("W", 6, 4, machine) == 0xC0045706
    assert write_number("M", 2, 8, machine) == 0x80084D02
    assert plain_number("\x12", 104, machine) == 0x20001268


def test_this_machine_is_one_of_them() -> None:
    assert read_number("W", 5, 4) in (0x80045705, 0x40045705)
