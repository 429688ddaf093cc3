"""A disk that acknowledges every write and keeps none, as worn SD cards do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qemu.nbd import served


@dataclass
class ForgetfulDisk:
    """`nbd.Disk` with this content for ever. dropped: offset and length of the writes that were acknowledged."""

    content: bytes
    dropped: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """See nbd.Disk."""
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        """See nbd.Disk."""
        return self.content[offset : offset + length]

    def write(self, offset: int, data: bytes, *, fua: bool) -> None:
        """See nbd.Disk."""
        self.dropped.append((offset, len(data)))

    def flush(self) -> None:
        """See nbd.Disk."""


@contextlib.contextmanager
def forgetful_disk(socket: Path, content: bytes) -> Iterator[list[tuple[int, int]]]:
    """Serve `content` on the socket. Yields the list of writes that were acknowledged and dropped, as offset, length."""
    disk = ForgetfulDisk(content)
    with served(socket, disk):
        yield disk.dropped
