"""What a UEFI boot manager reads: load options (Boot####), lists of them (BootOrder), and device paths to a file on a partition. Pure.

EFI_LOAD_OPTION: attributes (4 bytes, little-endian), length of the device paths (2), description (UTF-16, ends with NUL), device paths,
and the rest is optional data, which the loaded program gets as its load options: a Linux kernel's or stub's command line in UTF-16.
A device path is a list of nodes: type (1), subtype (1), length with this head (2), data; 7f ff 04 00 ends it. Of those only a hard disk's
partition and a file on it are understood here; everything else is bytes that stay as they are.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from abupdate.errors import ConfigError

ACTIVE = 1
# Bits of the attributes: what is none of the boot category (a firmware's own menu) is never booted in its turn.
_CATEGORY = 0x1F00
_HEAD = struct.Struct("<IH")
_NODE = struct.Struct("<BBH")
# Number, first block and blocks of the partition, its signature, format of the table, kind of signature.
_HARD_DRIVE = struct.Struct("<IQQ16sBB")
_MEDIA, _HARD_DRIVE_NODE, _FILE_NODE = 4, 1, 4
_END = b"\x7f\xff\x04\x00"
_OPTION_NAME = re.compile(r"Boot([0-9A-F]{4})")
# The kernel's own limit on every architecture is 2048 or less; x86 and arm64 have just that.
MAX_CMDLINE = 2047
_MAX_ORDER = 1024


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition as a device path names it. number: from 1. start, blocks: in logical blocks of the disk.

    signature: 16 bytes, a GUID as GPT stores it, or a DOS disk's 4 bytes and zeros; gpt: which of both.
    """

    number: int
    start: int
    blocks: int
    signature: bytes
    gpt: bool = True

    def __str__(self) -> str:
        name = str(uuid.UUID(bytes_le=self.signature)) if self.gpt else f"{int.from_bytes(self.signature[:4], 'little'):08x}"
        return f"partition {self.number} ({name})"


@dataclass(frozen=True, slots=True)
class LoadOption:
    """A Boot#### variable. path: the device paths' bytes. data: what the program gets."""

    attributes: int
    description: str
    path: bytes
    data: bytes = b""

    @property
    def active(self) -> bool:
        """The boot manager passes over what is not, unless BootNext names it."""
        return bool(self.attributes & ACTIVE)

    @property
    def in_turn(self) -> bool:
        """The boot manager starts it when its turn in BootOrder comes."""
        return self.active and not self.attributes & _CATEGORY


def decode_option(data: bytes) -> LoadOption | None:
    """A Boot#### variable's data, None where it is no load option."""
    if len(data) < _HEAD.size:
        return None
    attributes, path_bytes = _HEAD.unpack_from(data)
    end = next((at for at in range(_HEAD.size, len(data) - 1, 2) if data[at : at + 2] == b"\0\0"), None)
    if end is None or end + 2 + path_bytes > len(data):
        return None
    description = data[_HEAD.size : end].decode("utf-16-le", errors="surrogatepass")
    return LoadOption(attributes, description, data[end + 2 : end + 2 + path_bytes], data[end + 2 + path_bytes :])


def encode_option(option: LoadOption) -> bytes:
    """The Boot#### variable's data. Raises ConfigError for device paths that are too long or a description with a NUL."""
    if len(option.path) > 0xFFFF or "\0" in option.description:
        raise ConfigError(f"boot entry {option.description[:40]!r} does not fit into EFI's format", "shorten the path of the kernel")
    description = option.description.encode("utf-16-le", errors="surrogatepass")
    return _HEAD.pack(option.attributes, len(option.path)) + description + b"\0\0" + option.path + option.data


def option_name(number: int) -> str:
    """Name of the variable: 10 -> Boot000A."""
    return f"Boot{number:04X}"


def option_number(name: str) -> int | None:
    """The number of a Boot#### variable, None for any other name."""
    match = _OPTION_NAME.fullmatch(name)
    return int(match[1], 16) if match else None


def decode_order(data: bytes) -> tuple[int, ...] | None:
    """BootOrder, BootNext or BootCurrent: numbers of load options; None for what is no list of them."""
    if len(data) % 2 or len(data) > 2 * _MAX_ORDER:
        return None
    return struct.unpack(f"<{len(data) // 2}H", data)


def encode_order(numbers: Iterable[int]) -> bytes:
    """BootOrder, or BootNext with one number."""
    listed = tuple(numbers)
    return struct.pack(f"<{len(listed)}H", *listed)


def file_on(partition: Partition, file: str) -> bytes:
    """Device path to a file, in the short form that begins at the partition. file: from the file system's root, with `/`.

    Raises ConfigError for a name that the format cannot hold.
    """
    name = file.strip("/").replace("/", "\\")
    if "\0" in name or not name or len(name) > 512:
        raise ConfigError(f"{file[:60]!r} cannot be named in a boot entry", "a shorter path on the ESP")
    disk = _HARD_DRIVE.pack(
        partition.number, partition.start, partition.blocks, partition.signature, 2 if partition.gpt else 1, 2 if partition.gpt else 1
    )
    return _node(_HARD_DRIVE_NODE, disk) + _node(_FILE_NODE, f"\\{name}\0".encode("utf-16-le")) + _END


def place_of(path: bytes) -> tuple[Partition, str] | None:
    """Partition and file (with `/`) of a device path, whatever stands before them; None for a path to anything else."""
    partition: Partition | None = None
    file = ""
    for kind, subtype, data in _nodes(path):
        if (kind, subtype) == (_MEDIA, _HARD_DRIVE_NODE) and len(data) == _HARD_DRIVE.size:
            number, start, blocks, signature, table, _ = _HARD_DRIVE.unpack(data)
            partition = Partition(number, start, blocks, signature, table == 2)
        elif (kind, subtype) == (_MEDIA, _FILE_NODE):
            # A path may be cut into several nodes.
            part = data.decode("utf-16-le", errors="replace").partition("\0")[0]
            file = f"{file.rstrip('/')}/{part.replace(chr(92), '/').lstrip('/')}"
    return (partition, file) if partition is not None and file else None


def encode_cmdline(text: str) -> bytes:
    """Kernel arguments as optional data. Raises ConfigError for more than a kernel takes, or what is not ASCII."""
    if len(text) > MAX_CMDLINE or not text.isascii() or not text.isprintable():
        hint = f"at most {MAX_CMDLINE} printable ASCII characters"
        raise ConfigError(f"kernel arguments of {len(text)} characters cannot be handed over in a boot entry", hint)
    return f"{text}\0".encode("utf-16-le")


def decode_cmdline(data: bytes) -> str:
    """Kernel arguments in optional data, up to a NUL as the kernel's stub reads them; empty for data of another kind."""
    if len(data) % 2:
        return ""
    try:
        text = data.decode("utf-16-le").partition("\0")[0]
    except UnicodeDecodeError:
        return ""
    return text if text.isascii() and text.isprintable() else ""


def _node(subtype: int, data: bytes) -> bytes:
    return _NODE.pack(_MEDIA, subtype, _NODE.size + len(data)) + data


def _nodes(path: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Nodes up to the end of the first path, or to what is none."""
    at = 0
    while at + _NODE.size <= len(path):
        kind, subtype, length = _NODE.unpack_from(path, at)
        if kind == 0x7F or length < _NODE.size or at + length > len(path):
            return
        yield kind, subtype, path[at + _NODE.size : at + length]
        at += length
