"""A file that is rewritten in one write of its one sector: on FAT the only replacement that a power cut cannot halve."""

from __future__ import annotations

import os

from abupdate.bootloaders.inplace import InPlace
from abupdate.errors import ConfigError


class OneSector(InPlace):
    """See InPlace; `size_bytes` is no more than a sector."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        """Replace the whole content by `size_bytes` bytes and return when they are on the medium, read back and equal.

        A shorter file is brought to that size first, its content kept: its length lies in another sector. Raises ConfigError (absent,
        read-only), Failed.
        """
        assert len(data) == self.size_bytes
        # O_DSYNC: a process killed between a write and its flush would leave a state that everybody reads and a power cut undoes.
        with self.opened(os.O_RDWR | os.O_DSYNC) as fd:
            found = self.content(fd)
            if len(found) > self.size_bytes:
                raise ConfigError(f"{self.path} has more than {self.size_bytes} bytes", self.hint)
            if len(found) < self.size_bytes:
                self.put(fd, b"\n" * (self.size_bytes - len(found)), len(found))
            if found != data:
                self.put(fd, data, 0)
            self.settle(fd, data)
