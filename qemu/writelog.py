"""Reads the log of QEMU's `blklogwrites`: the kernel's dm-log-writes format, as far as QEMU writes it.

Little-endian, in sectors of the size that the superblock tells. Sector 0: magic 8, version 8, number of entries 8, sector size 4.
Then entries, each a sector with sector 8, count of sectors 8, flags 8, length of what follows in that sector 8, and behind it `count`
sectors of data unless the entry is a discard. The superblock is written at a flush only, so its number of entries is not looked at:
the log ends where an entry is all zeros or the file ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from qemu.powerloss import Event, Flush, Write

MAGIC = 0x6A736677736872
_SUPERBLOCK = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
_MAX_SECTORS = 1 << 17


class LogError(ValueError):
    """The file is no such log, or an entry makes no sense."""


def read_log(path: Path, sector_bytes: int = 512) -> Iterator[Event]:
    """The log's writes and flushes, in the order in which they were done; a flush comes before the data of its entry.

    sector_bytes: what the superblock must say where it is there at all. Raises LogError.
    """
    with path.open("rb") as file:
        block = file.read(sector_bytes)
        if len(block) < sector_bytes:
            raise LogError(f"{path} has no superblock")
        magic, version, _, size = _SUPERBLOCK.unpack_from(block)
        if any(block) and (magic, version, size) != (MAGIC, 1, sector_bytes):
            raise LogError(f"{path}: magic {magic:#x}, version {version}, sectors of {size} bytes")
        while len(block := file.read(sector_bytes)) == sector_bytes:
            sector, count, flags, more = _ENTRY.unpack_from(block)
            if (sector, count, flags, more) == (0, 0, 0, 0):
                return
            if flags & ~(_FLUSH | _FUA | _DISCARD | _MARK) or count > _MAX_SECTORS or more > sector_bytes - _ENTRY.size:
                raise LogError(f"{path}: a strange entry: sector {sector}, {count} sectors, flags {flags:#x}")
            if flags & _FLUSH:
                yield Flush()
            if flags & _DISCARD:
                raise LogError(f"{path}: a discard of {count} sectors from {sector}: what it leaves is not known")
            data = file.read(count * sector_bytes)
            if len(data) != count * sector_bytes:
                raise LogError(f"{path} ends within an entry")
            if count and not flags & _MARK:
                yield Write(sector * sector_bytes, data, fua=bool(flags & _FUA))
