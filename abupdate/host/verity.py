"""The dm-verity root hash of an image, from its data: the hash tree is built anew and must be the one that the image carries."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from abupdate.errors import ConfigError
from abupdate.formats import verity
from abupdate.formats.verity import DIGEST_BYTES, Superblock

_BATCH_BYTES = 4 << 20


def root_hash(path: Path) -> bytes:
    """Read the whole image once and return its root hash. Raises ConfigError where it has no hash tree or not the right one."""
    try:
        with path.open("rb") as file:
            fd = file.fileno()
            offset = verity.superblock_offset(os.pread(fd, verity.HEAD_BYTES, 0))
            block = verity.decode(os.pread(fd, verity.SUPERBLOCK.size, offset), offset)
            return _checked(fd, block, block.tree_offset(offset))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.hint) from error


def _checked(fd: int, block: Superblock, tree_offset: int) -> bytes:
    levels = block.levels()
    ends = tree_offset + sum(levels) * block.hash_block
    # From the leaves up: the digests of one level are the blocks of the next.
    digests = _digests(fd, block, 0, block.data_blocks, block.data_block)
    for count in reversed(levels):
        start = ends - count * block.hash_block
        if _filled(digests, block.hash_block, count) != os.pread(fd, count * block.hash_block, start):
            raise ConfigError("its hash tree is not that of its data", "append the tree after the last change of the file system")
        digests = _digests(fd, block, start, count, block.hash_block)
        ends = start
    return digests


def _digests(fd: int, block: Superblock, start: int, count: int, size: int) -> bytes:
    """SHA-256 of the salt and each of `count` blocks of `size` bytes from byte `start` on, one after the other."""
    salted = hashlib.sha256(block.salt)
    found: list[bytes] = []
    each = _BATCH_BYTES // size
    for first in range(0, count, each):
        some = min(each, count - first)
        batch = memoryview(os.pread(fd, some * size, start + first * size))
        if len(batch) != some * size:
            raise ConfigError("it ends before its data does", "the superblock tells of more blocks than there are")
        for at in range(0, len(batch), size):
            one = salted.copy()
            one.update(batch[at : at + size])
            found.append(one.digest())
    return b"".join(found)


def _filled(digests: bytes, size: int, count: int) -> bytes:
    """`count` blocks of `size` bytes with these digests, and zeros behind them. A power of two of digests fills a block."""
    assert size % DIGEST_BYTES == 0
    return digests.ljust(count * size, b"\0")
