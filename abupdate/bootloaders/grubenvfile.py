"""GRUB's environment block as a file that is rewritten where it lies, sector by sector: GRUB writes to the blocks that it found it in.

Nor at another length: GRUB looks the blocks up at each boot, but a file that a cut left without any would stop it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from abupdate.bootloaders.envcalls import LINUX, Calls
from abupdate.bootloaders.inplace import InPlace
from abupdate.errors import Busy, Failed
from abupdate.formats.grubenv import SIZE_BYTES, sectors

LOCK_WAIT_S = 10.0
_RETRY_S = 0.005
Lock = Callable[[int, float], None]


class GrubenvFile(InPlace):
    """See InPlace. Changes are made under a lock on the file itself, against another abupdate: grub-editenv takes none."""

    __slots__ = ()

    @staticmethod
    def at(path: Path, calls: Calls = LINUX) -> GrubenvFile:
        """The block at `path`."""
        hint = f"[bootloader] grubenv names it; grub-editenv {path} create makes an empty one"
        return GrubenvFile(path, SIZE_BYTES, "GRUB's environment block", hint, calls)

    def update(self, wanted: Callable[[bytes], bytes], lock: Lock | None = None, wait_s: float | None = None) -> None:
        """Read, let `wanted` say what is to be there, write the sectors that differ, each in one call, and look at the medium.

        wait_s: for the lock. Returns when all of it is on the medium, also where nothing differs. Raises what `wanted` does; ConfigError,
        Failed, Busy.
        """
        # O_DSYNC: a process killed between a write and its flush would leave a state that everybody reads and a power cut undoes.
        with self.opened(os.O_RDWR | os.O_DSYNC) as fd:
            (lock or _flock)(fd, LOCK_WAIT_S if wait_s is None else wait_s)
            found = self.content(fd)
            data = wanted(found)
            if len(found) > SIZE_BYTES:
                self._shorten(fd)
            for offset, piece in sectors(found, data):
                self.put(fd, piece, offset)
            self.settle(fd, data)

    def _shorten(self, fd: int) -> None:
        try:
            os.ftruncate(fd, SIZE_BYTES)
        except OSError as error:
            raise Failed(f"{self.path} cannot be cut to {SIZE_BYTES} bytes: {error.strerror}") from None


def _flock(fd: int, wait_s: float) -> None:
    """Hold the file until it is closed. Raises Busy."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Busy("another program holds GRUB's environment block", "see who has it open: fuser") from None
            time.sleep(_RETRY_S)
        else:
            return
