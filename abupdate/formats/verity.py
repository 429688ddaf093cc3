"""A file system's own length, and the dm-verity superblock that follows it on the same partition. Pure.

    file system      squashfs, erofs or ext4, its length from its own superblock, rounded up to 4096 bytes
    superblock       512 bytes: "verity\\0\\0", version 1, hash type 1, uuid[16], algorithm[32], data block, hash block (bytes), data blocks
                     (u64), length of the salt (u16), 6 bytes, salt[256], zeros; little-endian
    hash tree        from the next multiple of the hash block on, root first; each block is SHA-256 of the salt and a block below it,
                     digest by digest, filled up with zeros

As `veritysetup format --hash-offset=` writes it, and as bootloader-hooks/initramfs/open-verity.c reads it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from abupdate.errors import ConfigError

MAGIC = b"verity\0\0"
SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6s256s168s")
ALIGN_BYTES = 4096
HEAD_BYTES = 4096
MAX_SALT_BYTES = 256
MAX_BYTES = 1 << 60
DIGEST_BYTES = 32
_BLOCKS = tuple(1 << shift for shift in range(9, 13))


@dataclass(frozen=True, slots=True)
class Superblock:
    """data_block, hash_block: bytes of a block of data and of hashes. data_blocks: how many of data there are."""

    data_block: int
    hash_block: int
    data_blocks: int
    salt: bytes

    def levels(self) -> tuple[int, ...]:
        """Blocks of each level of the tree, the root's first; none at all for one block of data."""
        each = self.hash_block // DIGEST_BYTES
        found: list[int] = []
        below = self.data_blocks
        while below > 1:
            below = -(-below // each)
            found.append(below)
        return tuple(reversed(found))

    def tree_offset(self, offset: int) -> int:
        """Where the tree starts when the superblock lies at `offset`, bytes."""
        return -(-(offset + SUPERBLOCK.size) // self.hash_block) * self.hash_block


def filesystem_bytes(head: bytes) -> int:
    """Length of the file system that starts with `head` (HEAD_BYTES), as it says itself; 0 where it is none of the three."""
    if len(head) < HEAD_BYTES:
        return 0
    if head[:4] == b"hsqs":
        size = int(struct.unpack_from("<Q", head, 40)[0])
    elif head[1024:1028] == b"\xe2\xe1\xf5\xe0" and head[1036] < 32:
        size = int(struct.unpack_from("<I", head, 1024 + 36)[0]) << head[1036]
    elif head[1080:1082] == b"\x53\xef" and (shift := struct.unpack_from("<I", head, 1024 + 24)[0]) <= 6:
        blocks = int(struct.unpack_from("<I", head, 1024 + 4)[0])
        if struct.unpack_from("<I", head, 1024 + 96)[0] & 0x80:  # feature 64bit
            blocks |= int(struct.unpack_from("<I", head, 1024 + 336)[0]) << 32
        size = blocks << (10 + int(shift))
    else:
        return 0
    return size if size < MAX_BYTES else 0


def superblock_offset(head: bytes) -> int:
    """Where the superblock lies behind the file system that starts with `head`, bytes. Raises ConfigError for an unknown file system."""
    size = filesystem_bytes(head)
    if not size:
        raise ConfigError("no squashfs, erofs or ext4", "a file system with dm-verity is one of these, its hash tree behind it")
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES


def decode(data: bytes, offset: int) -> Superblock:
    """Decode a superblock that lies at `offset`. Raises ConfigError."""
    if len(data) < SUPERBLOCK.size or data[:8] != MAGIC:
        hint = f"veritysetup format --data-blocks={offset // ALIGN_BYTES} --hash-offset={offset} IMAGE IMAGE appends superblock and tree"
        raise ConfigError("no verity superblock behind the file system", hint)
    _, version, kind, _, algorithm, data_block, hash_block, data_blocks, salt_bytes, _, salt, _ = SUPERBLOCK.unpack_from(data)
    if (version, kind, algorithm.rstrip(b"\0")) != (1, 1, b"sha256"):
        raise ConfigError("not a verity superblock of version 1 with sha256", "veritysetup format --hash=sha256 --format=1 makes such")
    if data_block not in _BLOCKS or hash_block not in _BLOCKS or salt_bytes > MAX_SALT_BYTES:
        raise ConfigError("the verity superblock is damaged", "blocks have 512 to 4096 bytes, a salt has at most 256")
    if not data_blocks or data_blocks * data_block > offset:
        raise ConfigError("the verity superblock is of another file system", "append it anew")
    return Superblock(data_block, hash_block, data_blocks, salt[:salt_bytes])
