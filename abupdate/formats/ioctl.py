"""Request numbers of ioctl(2), computed as the kernel's headers do for the machine that runs this.

asm-generic/ioctl.h (x86, arm, arm64, riscv, ...): 8 bits number, 8 bits type, 14 bits size, 2 bits direction (write 1, read 2).
mips, powerpc, sparc and alpha have 13 bits of size and 3 of direction (none 1, read 2, write 4).
"""

from __future__ import annotations

import platform

_OTHER_LAYOUT = ("mips", "ppc", "powerpc", "sparc", "alpha")


def plain_number(kind: str, number: int, machine: str = "") -> int:
    """`_IO`: nothing whose size the number tells."""
    return _request(0, 1, kind, number, 0, machine)


def read_number(kind: str, number: int, size_bytes: int, machine: str = "") -> int:
    """`_IOR`: the kernel fills `size_bytes` for the caller. machine: as in uname, empty for this one."""
    return _request(2, 2, kind, number, size_bytes, machine)


def write_number(kind: str, number: int, size_bytes: int, machine: str = "") -> int:
    """`_IOW`: the caller hands `size_bytes` to the kernel."""
    return _request(1, 4, kind, number, size_bytes, machine)


def read_write_number(kind: str, number: int, size_bytes: int, machine: str = "") -> int:
    """`_IOWR`: both ways."""
    return _request(3, 6, kind, number, size_bytes, machine)


def _request(generic: int, other: int, kind: str, number: int, size_bytes: int, machine: str) -> int:
    base = ord(kind) << 8 | number | size_bytes << 16
    if (machine or platform.machine()).lower().startswith(_OTHER_LAYOUT):
        return base | other << 29
    return base | generic << 30
