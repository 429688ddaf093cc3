"""state_dir on a real file system: two copies, other versions beside them, the lock, modes, and what fails."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate.devices.statedir import StateDir
from abupdate.durable import LinuxFiles
from abupdate.errors import Busy, Failed
from abupdate.formats.record import decode, encode
from abupdate.model import Attempt, Phase, Record, SlotRecord, SlotState

RECORD = Record(
    floor=3,
    slots={"A": SlotRecord(SlotState.CONFIRMED, "1.0", "aa", 3, extra={"origin": "factory"})},
    attempt=Attempt("B", Phase.WRITING, "boot", extra={"started": 4}),
    store="here",
    extra={"cohort": 2},
)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "lib" / "state")


def newer(major: int, sequence: int, floor: int) -> bytes:
    payload = b'{"floor":%d,"whatever":[]}' % floor
    head = struct.pack(">4sHHQI", b"ABUR", major, 0, sequence, len(payload))
    return head + payload + struct.pack(">I", zlib.crc32(head + payload))


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def test_nothing_there_is_a_lost_record(state: StateDir) -> None:
    assert state.load() == (None, 0)
    assert state.load_head("A") is None
    assert not state.path.exists()


def test_what_is_saved_is_loaded_from_two_equal_copies(state: StateDir) -> None:
    state.save(RECORD)
    assert state.load() == (RECORD, 3)
    assert (state.path / "record.0").read_bytes() == (state.path / "record.1").read_bytes()
    assert dict(state.copies()) == {"record.0": "whole", "record.1": "whole"}
    assert sorted(path.name for path in state.path.iterdir()) == ["record.0", "record.1"]


def test_modes_are_private_whatever_the_umask(state: StateDir) -> None:
    before = os.umask(0)
    try:
        with state.lock():
            state.save(RECORD)
            state.save_head("A", b"head")
    finally:
        os.umask(before)
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(state.path.parent.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.path.iterdir()}
    assert modes == dict.fromkeys(("lock", "record.0", "record.1", "head.A"), 0o600)


@pytest.mark.parametrize("name", ["record.0", "record.1"])
@pytest.mark.parametrize("how", ["flipped", "empty", "cut", "gone", "folder"])
def test_one_bad_copy_loses_nothing(state: StateDir, name: str, how: str) -> None:
    state.save(RECORD)
    path = state.path / name
    data = path.read_bytes()
    if how == "flipped":
        spoil(path)
    elif how in ("gone", "folder"):
        path.unlink()
        if how == "folder":
            path.mkdir()
    else:
        path.write_bytes(b"" if how == "empty" else data[:-1])
    assert state.load() == (RECORD, 3)
    assert dict(state.copies())[name] != "whole"
    if how != "folder":
        state.save(RECORD)
        assert set(dict(state.copies()).values()) == {"whole"}


def test_the_copy_with_the_higher_number_counts_in_either_place(state: StateDir) -> None:
    state.save(RECORD)
    newest = replace(RECORD, floor=9)
    for name in ("record.0", "record.1"):
        state.save(RECORD)
        sequence, _ = decode((state.path / name).read_bytes())
        (state.path / name).write_bytes(encode(newest, sequence + 1))
        assert state.load() == (newest, 9)


def test_the_floor_of_an_older_copy_is_a_witness(state: StateDir) -> None:
    state.save(RECORD)
    (state.path / "record.1").write_bytes(encode(replace(RECORD, floor=30), 0))
    assert state.load() == (RECORD, 30)


def test_both_copies_bad_is_a_lost_record_that_can_be_written_again(state: StateDir) -> None:
    state.save(RECORD)
    spoil(state.path / "record.0")
    spoil(state.path / "record.1")
    assert state.load() == (None, 0)
    state.save(RECORD)
    assert state.load() == (RECORD, 3)


def test_unknown_fields_survive_a_rewrite(state: StateDir) -> None:
    state.save(RECORD)
    found, _ = state.load()
    assert found is not None
    state.save(replace(found, floor=4))
    again, _ = state.load()
    assert again is not None
    assert again.extra == {"cohort": 2}
    assert again.slots["A"].extra == {"origin": "factory"}
    assert again.attempt is not None
    assert again.attempt.extra == {"started": 4}


def test_another_major_version_is_lost_kept_beside_and_its_floor_read(state: StateDir) -> None:
    state.save(RECORD)
    foreign = newer(2, 77, 12)
    for name in ("record.0", "record.1"):
        (state.path / name).write_bytes(foreign)
    assert state.load() == (None, 12)
    assert all("format 2" in condition for _, condition in state.copies())
    state.save(replace(RECORD, floor=12))
    assert state.load() == (replace(RECORD, floor=12), 12)
    assert (state.path / "record.0.v2").read_bytes() == foreign
    assert (state.path / "record.1.v2").read_bytes() == foreign
    assert decode((state.path / "record.0").read_bytes())[0] == 78


def test_one_copy_of_another_version_does_not_hide_ours_nor_its_floor(state: StateDir) -> None:
    state.save(RECORD)
    (state.path / "record.1").write_bytes(newer(9, 1, 40))
    assert state.load() == (RECORD, 40)


def test_the_highest_sequence_number_is_not_the_end(state: StateDir) -> None:
    state.save(RECORD)
    for name in ("record.0", "record.1"):
        (state.path / name).write_bytes(encode(RECORD, (1 << 64) - 1))
    changed = replace(RECORD, floor=5)
    state.save(changed)
    assert state.load() == (changed, 5)


HOLDER = """
import sys
from pathlib import Path
from abupdate.devices.statedir import StateDir
with StateDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_excludes_another_process_until_that_ends(state: StateDir) -> None:
    command = [sys.executable, "-c", HOLDER, str(state.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy) as caught, state.lock():
            pytest.fail("two hold the lock")
        assert caught.value.exit_code == 5
        with pytest.raises(Busy), state.lock(0.2):
            pytest.fail("two hold the lock")
        holder.kill()
        holder.wait()
        with state.lock():
            state.save(RECORD)
    assert state.load() == (RECORD, 3)


def test_the_lock_waits_for_one_that_is_given_back(state: StateDir) -> None:
    command = [sys.executable, "-c", HOLDER, str(state.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        holder.stdin.close()
        with state.lock(30.0):
            pass


def test_two_locks_of_one_process_exclude_each_other(state: StateDir) -> None:
    with state.lock(), pytest.raises(Busy), state.lock():
        pytest.fail("two hold the lock")


def test_the_spare_lock_stands_in_for_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = tmp_path / "file" / "state"
    with pytest.raises(Failed, match="Not a directory"), StateDir(folder).lock():
        pytest.fail("locked nothing")
    spare = tmp_path / "run" / "abupdate" / "lock"
    tolerant = StateDir(folder, spare)
    with tolerant.lock(), pytest.raises(Busy), tolerant.lock():
        pytest.fail("two hold the lock")
    assert tolerant.load() == (None, 0)
    assert stat.S_IMODE(spare.stat().st_mode) == 0o600


def test_a_lock_that_is_a_link_is_not_followed(state: StateDir, tmp_path: Path) -> None:
    state.save(RECORD)
    (state.path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failed), state.lock():
        pytest.fail("followed")
    assert not (tmp_path / "elsewhere").exists()


class Worn(LinuxFiles):
    """A file system that refuses one kind of call, as the kernel words it."""

    def __init__(self, call: str, number: int) -> None:
        self.call, self.number = call, number

    def _pass(self, call: str) -> None:
        if call == self.call:
            raise OSError(self.number, os.strerror(self.number))

    def open(self, path: Path, flags: int, mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            self._pass("open")
        return super().open(path, flags, mode)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._pass("write")
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._pass("fsync")
        super().fsync(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        self._pass("rename")
        super().rename(path, target)


@pytest.mark.parametrize(
    ("call", "number"),
    [("open", errno.EROFS), ("open", errno.EACCES), ("write", errno.ENOSPC), ("fsync", errno.EIO), ("rename", errno.EDQUOT)],
)
def test_a_write_that_fails_is_failed_and_leaves_the_old_record(state: StateDir, call: str, number: int) -> None:
    state.save(RECORD)
    worn = StateDir(state.path, files=Worn(call, number))
    writes: tuple[Callable[[], None], ...] = (
        lambda: worn.save(replace(RECORD, floor=4)),
        lambda: worn.save_head("A", b"head"),
        lambda: worn.save_keyring(b"keyring"),
    )
    for write in writes:
        with pytest.raises(Failed) as caught:
            write()
        assert caught.value.exit_code == 1
        assert os.strerror(number) in caught.value.message
        assert caught.value.hint
    assert state.load() == (RECORD, 3)
    assert sorted(path.name for path in state.path.iterdir()) == ["record.0", "record.1"]


@pytest.fixture
def small_mount(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    place = tmp_path / "mnt"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_real_file_system_that_is_full_or_read_only(small_mount: Path, how: str) -> None:
    state = StateDir(small_mount / "state")
    with state.lock():
        state.save(RECORD)
    if how == "full":
        with (small_mount / "filler").open("wb") as filler, pytest.raises(OSError, match="No space"):
            filler.write(bytes(1 << 20))
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_mount], check=True)
    with pytest.raises(Failed, match="No space left on device" if how == "full" else "Read-only file system"):
        state.save(replace(RECORD, floor=4))
    assert state.load() == (RECORD, 3)


def test_heads_are_replaced_whole_and_bounded(state: StateDir) -> None:
    state.save_head("A", b"first" * 500_000)
    assert state.load_head("A") == b"first" * 500_000
    state.save_head("A", b"second")
    assert state.load_head("A") == b"second"
    assert state.load_head("B") is None
    with (state.path / "head.B").open("wb") as file:
        file.truncate(1 << 30)
    found = state.load_head("B")
    assert found is not None
    assert len(found) == 65 << 20
