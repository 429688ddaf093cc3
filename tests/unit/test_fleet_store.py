"""The fleet's log on a real file system: what is durable, what is told apart at a start, and what a failure leaves."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from abupdate.durable import LinuxFiles
from abupdate.errors import Busy, ConfigError, Failed
from abupdate.fleet.events import RecordKind
from abupdate.fleet.store import LOG, MAX_LOG_BYTES, Store, create
from abupdate.formats import fleetlog

OWNER = bytes(range(32))
Records = list[tuple[RecordKind, bytes]]
FIRST: Records = [(RecordKind.BOOT, b"\0\0\0\1"), (RecordKind.VOTE, b"vote " * 30)]
SECOND: Records = [(RecordKind.LOCK, b""), (RecordKind.OBJECT, bytes(3000)), (RecordKind.VOTE, b"x")]
THIRD: Records = [(RecordKind.FACT, b"fact")]
LOST, DAMAGED, FOREIGN = (
    "the log of this node was lost",
    "the log of this node was damaged",
    "the log belonged to another key than this node's",
)


class Noted(LinuxFiles):
    """The real calls and a note of each that counts. faults: what a call raises, by its note; a write then has written half."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.faults: dict[str, OSError] = {}
        self._names: dict[int, str] = {}

    def _note(self, what: str) -> None:
        self.notes.append(what)
        if what in self.faults:
            raise self.faults[what]

    def open(self, path: Path, flags: int, mode: int) -> int:
        descriptor = super().open(path, flags, mode)
        self._names[descriptor] = path.name
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        count = super().write(descriptor, data[: (len(data) + 1) // 2])
        self._note(f"write {self._names[descriptor]}")
        return count

    def ftruncate(self, descriptor: int, length: int) -> None:
        self._note(f"truncate {self._names[descriptor]}")
        super().ftruncate(descriptor, length)

    def fsync(self, descriptor: int) -> None:
        self._note(f"fsync {self._names[descriptor]}")
        super().fsync(descriptor)

    def fdatasync(self, descriptor: int) -> None:
        self._note(f"fdatasync {self._names[descriptor]}")
        super().fdatasync(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        self._note(f"rename {path.name} {target.name}")
        super().rename(path, target)


class Site:
    """A folder with a log, and the stores that were opened on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state" / "fleet"
        self.folder.mkdir(0o700, parents=True)
        create(self.folder, OWNER)
        self.files = Noted()
        self._open: Store | None = None

    @property
    def path(self) -> Path:
        return self.folder / LOG

    def store(self, owner: bytes = OWNER) -> Store:
        """As after a restart of the process."""
        self.close()
        self._open = Store(self.folder, owner, self.files)
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None

    def wrote(self, *batches: Records) -> bytes:
        """The file after these calls of append."""
        store = self.store()
        store.load()
        for records in batches:
            store.append(records)
        self.close()
        return self.path.read_bytes()

    def records(self) -> tuple[tuple[RecordKind, bytes], ...]:
        loaded = self.store().load()
        assert loaded.fault == ""
        return loaded.records


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def test_what_was_appended_is_there_in_order_after_a_restart(site: Site) -> None:
    store = site.store()
    assert store.load().records == ()
    store.append(FIRST)
    store.append([])
    store.append(SECOND)
    assert site.records() == (*FIRST, *SECOND)
    assert site.records() == (*FIRST, *SECOND)


def test_records_of_one_call_share_one_flush_that_comes_before_it_returns(site: Site) -> None:
    store = site.store()
    store.load()
    site.files.notes.clear()
    store.append(SECOND)
    assert set(site.files.notes[:-1]) == {"write log"}
    assert site.files.notes[-1] == "fdatasync log"


def test_a_start_makes_durable_what_a_killed_process_left_before_it_believes_it(site: Site) -> None:
    site.store().load()
    assert site.files.notes[:4] == ["fsync fleet", "fsync state", f"fsync {site.folder.parents[1].name}", "fdatasync log"]


def test_log_and_lock_are_for_the_owner_alone(site: Site) -> None:
    site.store().load()
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in site.folder.iterdir()} == {"log": 0o600, "lock": 0o600}


def test_a_replaced_log_holds_the_new_records_and_goes_on(site: Site) -> None:
    store = site.store()
    store.load()
    store.append(FIRST)
    site.files.notes.clear()
    store.replace(SECOND)
    writes = [note for note in site.files.notes if note.startswith("write")]
    assert site.files.notes == [*writes, "fsync log.new", "rename log.new log", "fsync fleet"]
    store.append(THIRD)
    assert site.records() == (*SECOND, *THIRD)
    assert not site.folder.joinpath("log.new").exists()


def test_one_process_at_a_time(site: Site) -> None:
    site.store().load()
    other = Store(site.folder, OWNER)
    with pytest.raises(Busy):
        other.load()
    site.close()
    other.load()
    other.close()


# ---- torn ends


def test_every_torn_end_of_the_last_call_is_cut_off_and_counted(site: Site) -> None:
    before = site.wrote(FIRST)
    whole = site.wrote(SECOND)
    ends = [len(before) + at for at in range(0, len(whole) - len(before), 97)]
    for length in ends:
        site.path.write_bytes(whole[:length])
        loaded = site.store().load()
        assert loaded.fault == ""
        assert loaded.records[:2] == tuple(FIRST)
        assert loaded.records == (*FIRST, *SECOND)[: len(loaded.records)]
        assert len(loaded.records) < 5
        assert loaded.torn_bytes == length - site.path.stat().st_size
        assert site.records() == loaded.records


def test_a_later_piece_of_the_last_call_may_reach_the_medium_before_an_earlier_one(site: Site) -> None:
    before = site.wrote(FIRST)
    whole = bytearray(site.wrote(SECOND))
    whole[len(before) : len(before) + 20] = bytes(20)
    site.path.write_bytes(whole)
    loaded = site.store().load()
    assert (loaded.records, loaded.fault, loaded.torn_bytes) == (tuple(FIRST), "", len(whole) - len(before))


def test_a_torn_end_is_away_for_good_before_anything_is_written_there(site: Site) -> None:
    whole = site.wrote(FIRST)
    site.path.write_bytes(whole[:-1])
    site.files.notes.clear()
    store = site.store()
    store.load()
    assert site.files.notes[-2:] == ["truncate log", "fdatasync log"]
    store.append(THIRD)
    assert site.records() == (FIRST[0], *THIRD)


# ---- damage and loss


def test_every_flipped_bit_of_what_was_durable_when_more_was_written_is_damage(site: Site) -> None:
    head = len(site.wrote())
    first = len(site.wrote(FIRST))
    whole = site.wrote(THIRD)
    for at in range(first):
        site.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        loaded = site.store().load()
        assert loaded.fault == DAMAGED, at
        assert loaded.records == tuple(FIRST)[: len(loaded.records)]
        assert at >= head or not loaded.records
        site.close()


def test_every_flipped_bit_of_a_replaced_log_is_damage_also_with_nothing_behind_it(site: Site) -> None:
    store = site.store()
    store.load()
    store.replace(FIRST)
    site.close()
    whole = site.path.read_bytes()
    for at in range(len(whole)):
        site.path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :])
        assert site.store().load().fault == DAMAGED, at
    for length in range(len(whole)):
        site.path.write_bytes(whole[:length])
        assert site.store().load().fault == DAMAGED, length


def test_a_record_that_is_missing_or_repeated_or_moved_is_damage(site: Site) -> None:
    ends = [len(site.wrote()), len(site.wrote(THIRD)), len(site.wrote([(RecordKind.FACT, b"fect")])), len(site.wrote(FIRST))]
    whole = site.path.read_bytes()
    head, one, two, rest = whole[: ends[0]], whole[ends[0] : ends[1]], whole[ends[1] : ends[2]], whole[ends[2] :]
    for changed in (head + two + rest, head + one + rest, head + two + one + rest, head + one + one + two + rest, head + rest):
        site.path.write_bytes(changed)
        assert site.store().load().fault == DAMAGED


def test_records_of_an_earlier_file_of_this_log_do_not_count(site: Site) -> None:
    old = site.wrote(FIRST, SECOND)
    store = site.store()
    store.load()
    store.replace([])
    site.close()
    site.path.write_bytes(site.path.read_bytes() + old[fleetlog.HEAD_BYTES :])
    loaded = site.store().load()
    assert (loaded.records, loaded.fault, loaded.torn_bytes) == ((), "", len(old) - fleetlog.HEAD_BYTES)


def test_a_log_that_is_gone_is_lost(site: Site) -> None:
    site.path.unlink()
    loaded = site.store().load()
    assert (loaded.records, loaded.fault) == ((), LOST)


def test_the_log_of_another_node_is_foreign_and_says_nothing(site: Site) -> None:
    whole = site.wrote(FIRST)
    loaded = site.store(OWNER[::-1]).load()
    assert (loaded.records, loaded.fault) == ((), FOREIGN)
    assert site.folder.joinpath("log.foreign").read_bytes() == whole


def test_a_fault_stays_whatever_becomes_of_the_log(site: Site) -> None:
    whole = bytearray(site.wrote(FIRST, THIRD))
    whole[fleetlog.HEAD_BYTES + 5] ^= 1
    site.path.write_bytes(whole)
    store = site.store()
    assert store.load().fault == DAMAGED
    store.append(SECOND)
    assert site.folder.joinpath("log.damaged").read_bytes() == whole
    store = site.store()
    loaded = store.load()
    assert (loaded.fault, loaded.records) == (DAMAGED, tuple(SECOND))
    store.replace(FIRST)
    store.append(THIRD)
    loaded = site.store().load()
    assert (loaded.fault, loaded.records) == (DAMAGED, (*FIRST, *THIRD))


def test_the_records_before_the_damage_are_kept(site: Site) -> None:
    third = len(site.wrote(FIRST))
    whole = bytearray(site.wrote(THIRD, SECOND))
    whole[third + fleetlog.RECORD.size] ^= 1
    site.path.write_bytes(whole)
    for _ in range(2):
        loaded = site.store().load()
        assert (loaded.fault, loaded.records) == (DAMAGED, tuple(FIRST))


def test_a_file_that_is_larger_than_any_of_ours_is_damage(site: Site) -> None:
    with site.path.open("r+b") as file:
        file.truncate(MAX_LOG_BYTES + 1)
    assert site.store().load().fault == DAMAGED


# ---- other versions


def seal(head: bytes) -> bytes:
    """A head with the right checksum."""
    return head + struct.pack(">I", zlib.crc32(head))


def test_another_version_is_refused_and_kept(site: Site) -> None:
    whole = site.wrote(FIRST)
    head = bytearray(whole[: fleetlog.HEAD.size])
    head[9] = 2
    changed = seal(bytes(head)) + whole[fleetlog.HEAD_BYTES :]
    site.path.write_bytes(changed)
    with pytest.raises(ConfigError, match="version 2"):
        site.store().load()
    assert site.path.read_bytes() == changed


def test_a_kind_of_record_that_nobody_knows_is_refused_and_kept(site: Site) -> None:
    head, end = fleetlog.start(fleetlog.Head(OWNER, bytes(16)))
    whole = head + fleetlog.batch(end, [(1, b"boot"), (200, b"what?")])[0]
    site.path.write_bytes(whole)
    with pytest.raises(ConfigError, match="kind 200"):
        site.store().load()
    assert site.path.read_bytes() == whole


# ---- failures


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_is_taken_back_and_the_log_goes_on(site: Site, number: int) -> None:
    store = site.store()
    store.load()
    store.append(FIRST)
    length = site.path.stat().st_size
    site.files.faults = {"write log": OSError(number, os.strerror(number))}
    with pytest.raises(Failed, match=os.strerror(number)):
        store.append(SECOND)
    assert site.path.stat().st_size == length
    assert site.files.notes[-2:] == ["truncate log", "fdatasync log"]
    site.files.faults = {}
    assert store.usable
    store.append(THIRD)
    assert site.records() == (*FIRST, *THIRD)


@pytest.mark.parametrize("step", ["truncate log", "fdatasync log"])
def test_a_write_that_cannot_be_taken_back_closes_the_log(site: Site, step: str) -> None:
    store = site.store()
    store.load()
    store.append(FIRST)
    full = OSError(errno.EIO, "Input/output error")
    site.files.faults = {"write log": full, step: full}
    with pytest.raises(Failed):
        store.append(SECOND)
    site.files.faults = {}
    for write in (store.append, store.replace):
        with pytest.raises(Failed, match="closed"):
            write(THIRD)
    assert site.records()[:2] == tuple(FIRST)


def test_a_flush_that_fails_closes_the_log_since_the_next_one_would_prove_nothing(site: Site) -> None:
    store = site.store()
    store.load()
    site.files.faults = {"fdatasync log": OSError(errno.EIO, "Input/output error")}
    with pytest.raises(Failed, match="flush"):
        store.append(FIRST)
    site.files.faults = {}
    assert not store.usable
    with pytest.raises(Failed, match="closed"):
        store.append(FIRST)


def test_a_call_that_a_signal_ends_closes_the_log(site: Site) -> None:
    store = site.store()
    store.load()

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    site.files.fdatasync = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        store.append(FIRST)
    assert not store.usable


@pytest.mark.parametrize("step", ["write log.new", "fsync log.new"])
def test_a_replacement_that_cannot_be_written_leaves_the_log_as_it_was(site: Site, step: str) -> None:
    store = site.store()
    store.load()
    store.append(FIRST)
    site.files.faults = {step: OSError(errno.ENOSPC, "No space left on device")}
    with pytest.raises(Failed, match="No space"):
        store.replace(SECOND)
    assert not site.folder.joinpath("log.new").exists()
    store.append(THIRD)
    assert site.records() == (*FIRST, *THIRD)


@pytest.mark.parametrize(("step", "expected"), [("rename log.new log", FIRST), ("fsync fleet", SECOND)])
def test_a_replacement_that_may_or_may_not_count_closes_the_log(site: Site, step: str, expected: Records) -> None:
    store = site.store()
    store.load()
    store.append(FIRST)
    site.files.faults = {step: OSError(errno.EIO, "Input/output error")}
    with pytest.raises(Failed):
        store.replace(SECOND)
    with pytest.raises(Failed, match="closed"):
        store.append(THIRD)
    site.files.faults = {}
    assert site.records() == tuple(expected)


def test_a_medium_that_cannot_be_read_is_no_loss(site: Site) -> None:
    site.wrote(FIRST)
    site.files.faults = {"fdatasync log": OSError(errno.EIO, "Input/output error")}
    store = site.store()
    with pytest.raises(Failed):
        store.load()
    site.files.faults = {}
    # It has not kept the log to itself: the daemon tries again.
    other = Store(site.folder, OWNER)
    loaded = other.load()
    assert (loaded.records, loaded.fault) == (tuple(FIRST), "")
    other.close()


def test_what_is_out_of_bounds_is_not_written(site: Site) -> None:
    store = site.store()
    store.load()
    store.append([(RecordKind.OBJECT, bytes(fleetlog.MAX_DATA_BYTES))])
    with pytest.raises(ValueError, match="65537 bytes"):
        store.append([(RecordKind.OBJECT, bytes(fleetlog.MAX_DATA_BYTES + 1))])
    many: Records = [(RecordKind.OBJECT, bytes(fleetlog.MAX_DATA_BYTES))] * 1024
    for write in (store.append, store.replace):
        with pytest.raises(Failed, match="more than"):
            write(many)
    store.append(THIRD)
    assert len(site.records()) == 2


def test_a_store_that_was_not_loaded_writes_nothing(site: Site) -> None:
    with pytest.raises(Failed, match="closed"):
        site.store().append(FIRST)


def test_a_folder_that_is_not_there_is_a_failure_and_no_loss(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="No such file"):
        Store(tmp_path / "fleet", OWNER).load()
    assert list(tmp_path.iterdir()) == []


def test_the_length_of_the_log_is_told(site: Site) -> None:
    store = site.store()
    store.load()
    lengths = [store.size_bytes]
    for records in (FIRST, SECOND):
        store.append(records)
        lengths.append(store.size_bytes)
        assert store.size_bytes == site.path.stat().st_size
    store.replace(THIRD)
    assert store.size_bytes == site.path.stat().st_size < lengths[1]
    assert lengths[0] == fleetlog.HEAD_BYTES
