"""A copy of U-Boot's environment in a range of a regular file or a block device."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from abupdate.bootloaders.envcalls import LINUX, Calls
from abupdate.bootloaders.envio import Span, compare, medium_of, opened, read_exactly, unusable, write_all
from abupdate.errors import ConfigError, Failed
from abupdate.formats.fwenvconfig import EnvLocation
from abupdate.formats.ubootenv import Scheme


@dataclass(frozen=True, slots=True)
class FileArea:
    """A range of a regular file or a block device."""

    location: EnvLocation
    sys_block: Path
    scheme: Scheme = Scheme.INCREMENTAL
    calls: Calls = LINUX

    def read(self) -> bytes:
        with opened(self.location, os.O_RDONLY, self.calls) as fd:
            return read_exactly(fd, self._start(fd), self.location, calls=self.calls)

    def write(self, data: bytes) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._unprotected())
            # O_DSYNC: a process killed between a write and its flush would leave a state that everybody reads and a power cut undoes.
            fd = stack.enter_context(opened(self.location, os.O_RDWR | os.O_DSYNC, self.calls))
            start = self._start(fd)
            try:
                write_all(fd, data, start, self.calls)
                self.calls.fsync(fd)
                # The comparison must see the medium instead of the cache.
                self._forget(fd, start, len(data))
            except OSError as error:
                # The kernel may keep what never reached the medium, and everybody would read it as if it had.
                with suppress(OSError):
                    self._forget(fd, start, len(data))
                if error.errno in (errno.EPERM, errno.EROFS):  # a read-only disk opens for writing and refuses the first write
                    raise unusable(self.location, error) from None
                raise Failed(f"{self.location.device}: cannot write the U-Boot environment: {error.strerror}") from None
            compare(read_exactly(fd, start, self.location, calls=self.calls), data, self.location)

    def _forget(self, fd: int, start: int, length: int) -> None:
        """Take the range out of the page cache: whole pages, else the kernel keeps them."""
        first = start - start % mmap.PAGESIZE
        self.calls.forget(fd, first, start - first + length + mmap.PAGESIZE)

    def flush(self) -> None:
        with opened(self.location, os.O_RDONLY, self.calls) as fd:
            try:
                self.calls.fsync(fd)
            except OSError as error:
                text = f"{self.location.device}: cannot bring the U-Boot environment to the medium: {error.strerror}"
                raise Failed(text, "the medium under the U-Boot environment is failing") from None

    def mark_obsolete(self) -> None:
        raise Failed(f"{self.location.device}: has no boolean flag")

    def span(self) -> Span:
        with opened(self.location, os.O_RDONLY, self.calls) as fd:
            start = self._start(fd)
            return Span(medium_of(fd, self.calls), start, start + self.location.size_bytes)

    def _start(self, fd: int) -> int:
        mode = self.calls.fstat(fd).st_mode
        end = self.calls.end(fd)
        location = self.location
        if location.offset < 0 and not stat.S_ISBLK(mode):
            raise ConfigError(f"{location.device}: a negative offset is for block devices", "fw_printenv refuses it in a file too")
        start = location.offset + (end if location.offset < 0 else 0)
        if start < 0 or start + location.size_bytes > end:
            raise ConfigError(
                f"{location.device}: {end} bytes, too short for {location.size_bytes:#x} bytes of environment at {location.offset:#x}",
                "see the offset and ENV-SIZE in fw_env.config",
            )
        return start

    @contextmanager
    def _unprotected(self) -> Iterator[None]:
        """eMMC boot partitions are write-protected by the kernel until their `force_ro` is cleared."""
        switch = self.sys_block / Path(self.location.device).resolve().name / "force_ro"
        try:
            protected = switch.read_text().strip() == "1"
        except OSError:
            protected = False
        if not protected:
            yield
            return
        try:
            switch.write_text("0")
        except OSError as error:
            raise ConfigError(f"{self.location.device}: write-protected, and {switch} cannot be cleared: {error.strerror}") from None
        try:
            yield
        finally:
            switch.write_text("1")
