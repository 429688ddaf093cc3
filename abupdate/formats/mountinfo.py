"""What the kernel says of mounts and swap: /proc/self/mountinfo and /proc/swaps (proc(5)), bytes in, model values out.

The kernel escapes blank, tab, newline and backslash in a name, and nothing else: a name may hold carriage returns, form feeds and bytes
that are no UTF-8, and whoever may mount a stick chooses it. So only b"\\n" ends a line, and a line that makes no sense is passed over:
one odd mount must not take the others with it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
_DEVICE = re.compile(rb"(\d{1,10}):(\d{1,10})")
# The kernel's own bounds: 12 and 20 bits.
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. device: device number of the file system; read_write: neither the mount nor the file system is read-only.

    options: of the file system.
    """

    mount_id: int
    device: int
    point: str
    fs_type: str
    source: str
    read_write: bool
    options: tuple[str, ...] = ()


def parse_mounts(data: bytes) -> tuple[Mount, ...]:
    """Every mount of a mountinfo file, in order; lines that are none are passed over."""
    return tuple(mount for line in data.split(b"\n") if (mount := _mount(line)) is not None)


def parse_swaps(data: bytes) -> tuple[str, ...]:
    """The names of a swaps file, whose first line is a heading."""
    names = (re.split(rb"[ \t]", line, maxsplit=1)[0] for line in data.split(b"\n")[1:])
    return tuple(_unescape(name) for name in names if name)


def _mount(line: bytes) -> Mount | None:
    left, _, right = line.partition(b" - ")
    fields, tail = left.split(b" "), right.split(b" ")
    if len(fields) < 6 or len(tail) < 3 or not re.fullmatch(rb"\d{1,10}", fields[0]):
        return None
    device = _DEVICE.fullmatch(fields[2])
    if device is None or int(device[1]) > _MAX_MAJOR or int(device[2]) > _MAX_MINOR:
        return None
    writable = b"rw" in fields[5].split(b",") and b"rw" in tail[2].split(b",")
    number = os.makedev(int(device[1]), int(device[2]))
    options = tuple(os.fsdecode(tail[2]).split(","))
    return Mount(int(fields[0]), number, _unescape(fields[4]), os.fsdecode(tail[0]), _unescape(tail[1]), writable, options)


def _unescape(name: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), name))
