"""`state_dir`: the lock of all mutating verbs, two copies of the record, the stored heads of the slots' bundles, the chain of keyrings."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from abupdate.durable import LINUX, Files, make_folder, read_file, replace, sync_folder
from abupdate.errors import Busy, Failed
from abupdate.formats.record import MAX_PAYLOAD_BYTES, RecordDamaged, RecordUnknown, decode, encode
from abupdate.model import Record

_COPIES = ("record.0", "record.1")
KEYRING = "keyring"
_MAX_HEAD_BYTES = 65 << 20
_LAST_SEQUENCE = (1 << 64) - 1
_RETRY_S = 0.1


class StateDir:
    """`ports.StateStore` in a folder of a file system; the folder is made (0700) by the first write."""

    def __init__(self, path: Path, spare_lock: Path | None = None, files: Files = LINUX) -> None:
        """spare_lock: taken where the folder cannot be used (the service goes on without it)."""
        self._path = path
        self._spare_lock = spare_lock
        self._files = files

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    def believed(self, slots: tuple[str, ...]) -> tuple[Path, ...]:
        """The files whose content counts, there or not."""
        return tuple(self._path / name for name in (*_COPIES, KEYRING, *(f"head.{slot}" for slot in slots)))

    @contextmanager
    def lock(self, wait_s: float = 0.0) -> Iterator[None]:
        """See ports.StateStore. A file lock: it goes with the process, however that ends."""
        descriptor = self._open_lock()
        try:
            self._take(descriptor, wait_s)
            self._sync_names()
            yield
        finally:
            self._files.close(descriptor)

    def _open_lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._make()
            return self._files.open(self._path / "lock", flags, 0o600)
        except OSError as error:
            if self._spare_lock is None:
                raise Failed(f"{self._path}: {error.strerror}", "state_dir must be writable; is its partition mounted?") from error
            try:
                make_folder(self._spare_lock.parent, files=self._files)
                return self._files.open(self._spare_lock, flags, 0o600)
            except OSError as second:
                raise Failed(f"{self._spare_lock}: {second.strerror}", "neither state_dir nor the runtime folder is writable") from second

    def _take(self, descriptor: int, wait_s: float) -> None:
        end = time.monotonic() + wait_s
        while True:
            try:
                self._files.flock(descriptor)
                return
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise Busy("another abupdate is at work", "wait until it has ended") from None
                time.sleep(_RETRY_S)

    def _sync_names(self) -> None:
        """A process that was killed before it flushed a folder left names that everybody sees and a power cut undoes."""
        for folder in (self._path, self._path.parent):
            with suppress(OSError):
                sync_folder(folder, self._files)

    def load(self) -> tuple[Record | None, int]:
        """See ports.StateStore. Of two whole copies the one with the higher sequence number counts."""
        found: list[tuple[int, Record]] = []
        floor = 0
        for name in _COPIES:
            try:
                found.append(decode(self._read(name, MAX_PAYLOAD_BYTES + 64)))
            except RecordUnknown as newer:
                floor = max(floor, newer.floor)
            except (OSError, RecordDamaged):
                continue
        floor = max([floor, *(record.floor for _, record in found)])
        if not found:
            return None, floor
        return max(found, key=lambda pair: pair[0])[1], floor

    def save(self, record: Record) -> None:
        """See ports.StateStore. Both copies, one after the other: a cut leaves at least one whole record, old or new."""
        try:
            self._make()
            data = encode(record, min(1 + max(self._sequence(name) for name in _COPIES), _LAST_SEQUENCE))
            for name in _COPIES:
                self._keep_unknown(name)
                replace(self._path / name, data, files=self._files)
        except OSError as error:
            raise Failed(f"{self._path}: {error.strerror}", "state_dir must be writable; is it full or read-only?") from error

    def load_head(self, slot: str) -> bytes | None:
        """See ports.StateStore."""
        try:
            return self._read(f"head.{slot}", _MAX_HEAD_BYTES)
        except OSError:
            return None

    def save_head(self, slot: str, head: bytes) -> None:
        """See ports.StateStore."""
        try:
            self._make()
            replace(self._path / f"head.{slot}", head, files=self._files)
        except OSError as error:
            raise Failed(f"{self._path}: {error.strerror}", "state_dir must be writable; is it full or read-only?") from error

    def load_keyring(self) -> bytes | None:
        """See ports.StateStore."""
        from abupdate.formats.rotation import MAX_CHAIN_BYTES

        try:
            return self._read(KEYRING, MAX_CHAIN_BYTES + 1)
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            return b""
        except OSError as error:
            # Not lost: what cannot be read now must not be replaced by something older.
            raise Failed(f"{self._path / KEYRING}: {error.strerror}", "the medium under state_dir is failing") from error

    def save_keyring(self, data: bytes) -> None:
        """See ports.StateStore. One copy: a cut leaves the old version or the new one, and the factory keyring is behind both."""
        try:
            self._make()
            self._keep_unknown_keyring()
            replace(self._path / KEYRING, data, files=self._files)
        except OSError as error:
            raise Failed(f"{self._path}: {error.strerror}", "state_dir must be writable; is it full or read-only?") from error

    def copies(self) -> tuple[tuple[str, str], ...]:
        """Name and condition ("whole", or why not) of each copy of the record, for `doctor`."""
        conditions: list[tuple[str, str]] = []
        for name in _COPIES:
            try:
                decode(self._read(name, MAX_PAYLOAD_BYTES + 64))
                conditions.append((name, "whole"))
            except (RecordUnknown, RecordDamaged) as error:
                conditions.append((name, error.message))
            except OSError as error:
                conditions.append((name, str(error.strerror)))
        return tuple(conditions)

    def _make(self) -> None:
        make_folder(self._path, files=self._files)

    def _read(self, name: str, limit: int) -> bytes:
        return read_file(self._path / name, limit, self._files)

    def _sequence(self, name: str) -> int:
        try:
            return decode(self._read(name, MAX_PAYLOAD_BYTES + 64))[0]
        except RecordUnknown as newer:
            return newer.sequence
        except (OSError, RecordDamaged):
            return 0

    def _keep_unknown(self, name: str) -> None:
        """A record of another major version stays beside ours: the agent that wrote it may come back."""
        try:
            decode(self._read(name, MAX_PAYLOAD_BYTES + 64))
        except RecordUnknown as newer:
            with suppress(OSError):
                self._files.rename(self._path / name, self._path / f"{name}.v{newer.major}")
                # Before the name is given away: a cut could keep the new file's name and lose this one.
                sync_folder(self._path, self._files)
        except (OSError, RecordDamaged):
            return

    def _keep_unknown_keyring(self) -> None:
        """As for the record: what a newer version wrote stays beside ours."""
        from abupdate.formats.rotation import MAX_CHAIN_BYTES, unknown_format

        with suppress(OSError):
            number = unknown_format(self._read(KEYRING, MAX_CHAIN_BYTES))
            if number is not None:
                self._files.rename(self._path / KEYRING, self._path / f"{KEYRING}.v{number}")
                sync_folder(self._path, self._files)
