"""The order of the kernel's calls by which small files and folders become durable, on a real file system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from abupdate.devices.statedir import StateDir
from abupdate.durable import LinuxFiles, make_folder, replace
from tests.rings import one


class Noted(LinuxFiles):
    """The real calls, and a note of each that changes something or makes a change durable."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.notes: list[str] = []
        self._paths: dict[int, Path] = {}

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.top))

    def mkdir(self, path: Path, mode: int) -> None:
        super().mkdir(path, mode)
        self.notes.append(f"mkdir {self._name(path)}")

    def open(self, path: Path, flags: int, mode: int) -> int:
        descriptor = super().open(path, flags, mode)
        self._paths[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        # Half of it: the kernel owes nobody a whole write.
        count = super().write(descriptor, data[: (len(data) + 1) // 2])
        self.notes.append(f"write {self._name(self._paths[descriptor])}")
        return count

    def fsync(self, descriptor: int) -> None:
        super().fsync(descriptor)
        self.notes.append(f"fsync {self._name(self._paths[descriptor])}")

    def rename(self, path: Path, target: Path) -> None:
        super().rename(path, target)
        self.notes.append(f"rename {self._name(path)} {self._name(target)}")


def test_a_file_is_flushed_before_it_gets_its_name_and_the_folder_after(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    files = Noted(tmp_path)
    replace(tmp_path / "file", b"fresh", files=files)
    assert (tmp_path / "file").read_bytes() == b"fresh"
    assert files.notes == [*["write file.new"] * 3, "fsync file.new", "rename file.new file", "fsync ."]


def test_a_keyring_of_another_format_has_its_new_name_for_good_before_the_old_one_is_taken(tmp_path: Path) -> None:
    """Else a cut could keep the new file under the old name, and nothing of what a newer agent had written."""
    frame = bytearray(one(2))
    frame[8:10] = b"\x02\x00"
    (tmp_path / "keyring").write_bytes(frame)
    files = Noted(tmp_path)
    StateDir(tmp_path, files=files).save_keyring(b"ours")
    aside = ["rename keyring keyring.v2", "fsync ."]
    writes = [note for note in files.notes if note.startswith("write")]
    assert files.notes == [*aside, *writes, "fsync keyring.new", "rename keyring.new keyring", "fsync ."]
    assert (tmp_path / "keyring.v2").read_bytes() == frame


def test_a_link_in_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "file.new").symlink_to("other")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        replace(tmp_path / "file", b"fresh")
    assert (tmp_path / "other").read_bytes() == b"other"


def test_a_new_folder_is_durable_in_each_folder_above_it(tmp_path: Path) -> None:
    files = Noted(tmp_path)
    make_folder(tmp_path / "a/b/c", files=files)
    assert files.notes == ["mkdir a", "fsync .", "mkdir a/b", "fsync a", "mkdir a/b/c", "fsync a/b"]
    files.notes.clear()
    make_folder(tmp_path / "a/b/c", files=files)
    assert files.notes == []


def test_a_folder_in_a_place_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    class Rootless(LinuxFiles):
        def mkdir(self, path: Path, mode: int) -> None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    with pytest.raises(FileNotFoundError) as caught:
        make_folder(tmp_path / "a", files=Rootless())
    assert caught.value.filename == "/"
