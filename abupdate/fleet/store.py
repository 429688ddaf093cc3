"""The fleet's log on the device: `state_dir/fleet/log`, appended to and now and then replaced (format: formats/fleetlog.py).

`append` writes its records and flushes once; `replace` writes `log.new`, flushes it, gives it the log's name and flushes the folder.
The node's key (identity.py) gets its name only when the log has one, and the log's head names the key. That, and the format, tell what
happened:

    what is found                                                      what it was
    no log, but a key                                                  LOST: no power cut does that
    a head that is not whole; a record that is not whole, although     DAMAGED
      one behind it was written when it was durable already, or
      although it was flushed before the file got its name
    another key in the head                                            FOREIGN: copied from another node, or the key was replaced
    a record that is not whole, none of these                          torn: `append` never returned; cut off and counted

Not told apart from a torn end: damage to the records that were appended last, in one call. Not seen at all: the whole log of an earlier
day (a restored snapshot), and an end that is missing since the medium lied about a flush. For these the peers keep this node's newest
vote and boot counter (HELLO_ACK), and a TPM its counter. Writing behind a sector's durable bytes is taken to leave those bytes alone, as
SQLite takes it.

After a fault a new log is begun that says so in its head, and so do all that replace it: a node with a fault never finds a good log again
under its key. The file that was damaged or foreign is kept beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from abupdate.durable import LINUX, Files, read, sync_folder, write_all
from abupdate.errors import Busy, Failed
from abupdate.fleet.events import RecordKind
from abupdate.fleet.ports import Entries, Loaded
from abupdate.formats import fleetlog
from abupdate.formats.fleetlog import Contents, End, Fault, Head, UnknownVersion

LOG = "log"
_NEW = "log.new"
# The core replaces its log long before.
MAX_LOG_BYTES = 64 << 20
Entropy = Callable[[int], bytes]

_FAULTS = {
    Fault.NONE: "",
    Fault.LOST: "the log of this node was lost",
    Fault.DAMAGED: "the log of this node was damaged",
    Fault.FOREIGN: "the log belonged to another key than this node's",
}
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_HINT = "state_dir must be writable; is it full or read-only?"


@contextmanager
def hold(folder: Path, files: Files = LINUX) -> Iterator[None]:
    """Keep every other process away from log and key. Raises Busy, Failed."""
    descriptor = _lock(folder, files)
    try:
        yield
    finally:
        files.close(descriptor)


def _lock(folder: Path, files: Files) -> int:
    try:
        descriptor = files.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror}", _HINT) from error
    try:
        files.flock(descriptor)
    except BlockingIOError:
        files.close(descriptor)
        raise Busy("another process has the fleet's log", "the fleet's daemon is running") from None
    return descriptor


def create(folder: Path, owner: bytes, files: Files = LINUX, entropy: Entropy = os.urandom) -> None:
    """Begin an empty log for a key that is not kept yet, in place of any there is. Raises OSError."""
    files.close(_write(folder, Head(owner, entropy(fleetlog.NONCE_BYTES)), (), files).descriptor)
    _name(folder, files, "")


def peek(folder: Path, files: Files = LINUX) -> Contents | None:
    """What the log holds, None where there is none. Changes nothing. Raises OSError, UnknownVersion."""
    try:
        descriptor = files.open(folder / LOG, _FLAGS, 0)
    except FileNotFoundError:
        return None
    try:
        return fleetlog.read(read(descriptor, MAX_LOG_BYTES + 1, files))
    finally:
        files.close(descriptor)


class Store:
    """`ports.Log` of the node whose public key is `owner`, in a folder that `identity.load_or_create` has filled."""

    def __init__(self, folder: Path, owner: bytes, files: Files = LINUX, entropy: Entropy = os.urandom) -> None:
        """entropy: returns so many random bytes that nobody can guess."""
        self._folder = folder
        self._owner = owner
        self._files = files
        self._entropy = entropy
        self._fault = Fault.NONE
        self._lock: int | None = None
        self._descriptor: int | None = None
        # Only while nothing is half done: whatever ends a call early leaves the log closed.
        self._usable = False
        self._end = End(0, 0, 0)
        self._length = 0

    @property
    def usable(self) -> bool:
        """False after a failure behind which this process cannot know what the medium holds; a new start finds out."""
        return self._usable

    @property
    def size_bytes(self) -> int:
        """Length of the file."""
        return self._length

    def load(self) -> Loaded:
        """See ports.Log."""
        self._lock = _lock(self._folder, self._files)
        try:
            loaded = self._load()
            self._usable = True
        except OSError as error:
            raise Failed(f"{self._folder / LOG}: {error.strerror}", _HINT) from error
        finally:
            if not self._usable:
                self.close()
        return loaded

    def _load(self) -> Loaded:
        # A process that was killed left names and bytes that everybody sees and a power cut undoes. Nobody may act on them before.
        for folder in (self._folder, self._folder.parent, self._folder.parent.parent):
            sync_folder(folder, self._files)
        try:
            self._descriptor = self._files.open(self._folder / LOG, _FLAGS, 0)
        except FileNotFoundError:
            return self._go_on(Fault.LOST, (), "")
        self._files.fdatasync(self._descriptor)
        data = read(self._descriptor, MAX_LOG_BYTES + 1, self._files)
        contents = fleetlog.read(data)
        if contents.head is None:
            return self._go_on(Fault.DAMAGED, (), "log.damaged")
        if contents.head.owner != self._owner:
            return self._go_on(Fault.FOREIGN, (), "log.foreign")
        records = tuple((_kind(kind), record) for kind, record in contents.records)
        if contents.damaged or len(data) > MAX_LOG_BYTES:
            return self._go_on(Fault.DAMAGED, records, "log.damaged")
        torn_bytes = len(data) - contents.whole_bytes
        if torn_bytes:
            # Durable before anything is written there: old bytes must not come back behind new ones.
            self._files.ftruncate(self._descriptor, contents.whole_bytes)
            self._files.fdatasync(self._descriptor)
        self._fault, self._end, self._length = contents.head.fault, contents.end, contents.whole_bytes
        return Loaded(records, _FAULTS[self._fault], torn_bytes)

    def _go_on(self, fault: Fault, records: Entries, aside: str) -> Loaded:
        """Begin the log that says what happened to the one before."""
        self._fault = fault
        self._begin(self._write(records), aside)
        return Loaded(tuple(records), _FAULTS[fault])

    def append(self, records: Entries) -> None:
        """See ports.Log."""
        descriptor = self._ready()
        data, end = fleetlog.batch(self._end, records)
        if not data:
            return
        _check_room(self._length + len(data))
        self._usable = False
        try:
            write_all(descriptor, data, self._files)
        except OSError as error:
            self._take_back(descriptor)
            raise Failed(f"{self._folder / LOG}: {error.strerror}", _HINT) from error
        try:
            self._files.fdatasync(descriptor)
        except OSError as error:
            # The kernel forgets what it could not write: a second flush would succeed and prove nothing.
            raise Failed(f"{self._folder / LOG}: flush: {error.strerror}", "the medium under state_dir is failing") from error
        self._end, self._length, self._usable = end, self._length + len(data), True

    def _take_back(self, descriptor: int) -> None:
        """Cut off what was written in part; the log goes on where that is durable."""
        with suppress(OSError):
            self._files.ftruncate(descriptor, self._length)
            self._files.fdatasync(descriptor)
            self._usable = True

    def replace(self, records: Entries) -> None:
        """See ports.Log."""
        self._ready()
        try:
            new = self._write(records)
            self._usable = False
            self._begin(new)
        except OSError as error:
            raise Failed(f"{self._folder / LOG}: {error.strerror}", _HINT) from error
        self._usable = True

    def close(self) -> None:
        """See ports.Log."""
        self._usable = False
        for descriptor in (self._descriptor, self._lock):
            if descriptor is not None:
                self._files.close(descriptor)
        self._descriptor = self._lock = None

    def _ready(self) -> int:
        if not self._usable or self._descriptor is None:
            raise Failed("the fleet's log is closed after a failure", "start the daemon again")
        return self._descriptor

    def _write(self, records: Entries) -> _New:
        return _write(self._folder, Head(self._owner, self._entropy(fleetlog.NONCE_BYTES), fault=self._fault), records, self._files)

    def _begin(self, new: _New, aside: str = "") -> None:
        """Go on in a file that is written. Raises OSError; which of the two a start finds is open then."""
        old, self._descriptor = self._descriptor, new.descriptor
        if old is not None:
            self._files.close(old)
        _name(self._folder, self._files, aside)
        self._end, self._length = new.end, new.length


def _kind(number: int) -> RecordKind:
    try:
        return RecordKind(number)
    except ValueError:
        raise UnknownVersion(f"holds a record of kind {number}") from None


@dataclass(frozen=True, slots=True)
class _New:
    """A file that is whole and has no name yet."""

    descriptor: int
    end: End
    length: int


def _write(folder: Path, head: Head, records: Entries, files: Files) -> _New:
    """Write and flush log.new. Raises OSError and ValueError; nothing has changed then."""
    start, end = fleetlog.start(replace(head, founding=len(records)))
    data, end = fleetlog.batch(end, records)
    length = len(start) + len(data)
    _check_room(length)
    descriptor = files.open(folder / _NEW, _FLAGS | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(descriptor, start + data, files)
        files.fsync(descriptor)
    except OSError:
        files.close(descriptor)
        with suppress(OSError):
            files.unlink(folder / _NEW)
        raise
    return _New(descriptor, end, length)


def _name(folder: Path, files: Files, aside: str) -> None:
    """Give log.new the log's name, and the log the name `aside` if there is one. Raises OSError."""
    if aside:
        files.rename(folder / LOG, folder / aside)
    files.rename(folder / _NEW, folder / LOG)
    sync_folder(folder, files)


def _check_room(length: int) -> None:
    if length > MAX_LOG_BYTES:
        raise Failed(f"the fleet's log would take {length} bytes, more than {MAX_LOG_BYTES}", "it has to be replaced before")
