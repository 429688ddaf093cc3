"""Variables through efivarfs, on a plain folder that stands for it, and what the kernel says where it refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from abupdate.bootloaders import efivars
from abupdate.bootloaders.efivars import GLOBAL_GUID, KEPT, EfiVars, Variable
from abupdate.errors import AbupdateError, ConfigError, Failed

OWN = "01234567-89ab-4cde-8f01-23456789abcd"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one variable, as efivarfs shows it."""
    (tmp_path / f"BootOrder-{GLOBAL_GUID}").write_bytes(b"\x07\0\0\0\x01\0\0\0")
    return tmp_path


def test_a_variable_is_attributes_and_data(folder: Path) -> None:
    assert EfiVars(folder).read("BootOrder") == Variable(7, b"\x01\0\0\0")


def test_an_absent_variable_is_none_and_deleting_it_is_no_error(folder: Path) -> None:
    store = EfiVars(folder)
    assert store.read("BootNext") is None
    store.delete("BootNext")


def test_a_file_that_is_just_being_created_is_no_variable(folder: Path) -> None:
    (folder / f"BootNext-{GLOBAL_GUID}").write_bytes(b"")
    assert EfiVars(folder).read("BootNext") is None


def test_what_is_written_is_read_back_and_a_shorter_value_leaves_nothing_of_the_longer_one(folder: Path) -> None:
    store = EfiVars(folder)
    store.write("State", b"long value", OWN)
    store.write("State", b"short", OWN)
    assert store.read("State", OWN) == Variable(KEPT, b"short")
    assert (folder / f"State-{OWN}").read_bytes() == b"\x07\0\0\0short"


def test_the_same_value_is_not_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EfiVars(folder)
    store.write("State", b"value", OWN)
    monkeypatch.setattr(efivars, "_write_once", lambda path, raw: pytest.fail("written again"))
    store.write("State", b"value", OWN)
    with pytest.raises(pytest.fail.Exception):
        store.write("State", b"value", OWN, efivars.NON_VOLATILE)


def test_names_are_those_of_one_vendor(folder: Path) -> None:
    store = EfiVars(folder)
    store.write("State", b"x", OWN)
    (folder / "no variable").write_bytes(b"")
    assert store.names() == ("BootOrder",)
    assert store.names(OWN) == ("State",)


def test_deleted_is_gone(folder: Path) -> None:
    store = EfiVars(folder)
    store.write("State", b"x", OWN)
    store.delete("BootOrder")
    assert [path.name for path in folder.iterdir()] == [f"State-{OWN}"]


@pytest.mark.parametrize("size", [0, efivars.MAX_VARIABLE_BYTES + 1])
def test_a_value_that_no_firmware_takes_is_not_written(folder: Path, size: int) -> None:
    with pytest.raises(ConfigError, match="would hold"):
        EfiVars(folder).write("State", bytes(size), OWN)
    assert len(list(folder.iterdir())) == 1


def test_a_variable_without_end_is_not_read(folder: Path) -> None:
    (folder / f"BootNext-{GLOBAL_GUID}").write_bytes(bytes(efivars.MAX_VARIABLE_BYTES + 5))
    with pytest.raises(Failed, match="larger than"):
        EfiVars(folder).read("BootNext")


@pytest.mark.parametrize("there", [True, False])
def test_no_efivarfs_is_told_from_no_variable(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "efivars"
    if there:
        folder.mkdir()
    store = EfiVars(folder)
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.read("BootNext"),
        lambda: store.write("BootNext", b"\0\0"),
        lambda: store.delete("BootNext"),
    )
    for call in calls:
        with pytest.raises(ConfigError, match="is empty" if there else "is not there") as caught:
            call()
        assert caught.value.hint
    assert list(tmp_path.rglob("*")) == ([folder] if there else [])


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, ConfigError, "store is full"),
        (errno.EACCES, ConfigError, "run as root"),
        (errno.EPERM, ConfigError, "run as root"),
        (errno.EIO, Failed, "refuses"),
        (errno.EINVAL, Failed, "refuses"),
    ],
)
def test_what_the_firmware_says_becomes_one_line_with_a_hint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[AbupdateError], words: str
) -> None:
    def refuse(path: Path, raw: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(efivars, "_write_once", refuse)
    with pytest.raises(kind) as caught:
        EfiVars(folder).write("BootNext", b"\x01\0")
    assert "\n" not in caught.value.message
    assert words in caught.value.hint


@pytest.mark.parametrize("busy", [1, 6])
def test_a_firmware_that_is_busy_for_a_moment_is_asked_again(folder: Path, monkeypatch: pytest.MonkeyPatch, busy: int) -> None:
    refusals = iter([errno.EBUSY] * busy)
    write_once = efivars._write_once
    monkeypatch.setattr(efivars, "_WAIT_S", 0)

    def sometimes(path: Path, raw: bytes) -> int:
        for code in refusals:
            raise OSError(code, os.strerror(code))
        return write_once(path, raw)

    monkeypatch.setattr(efivars, "_write_once", sometimes)
    EfiVars(folder).write("BootNext", b"\x01\0")
    assert EfiVars(folder).read("BootNext") == Variable(KEPT, b"\x01\0")


def test_a_firmware_that_is_always_busy_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(path: Path, raw: bytes) -> int:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(efivars, "_WAIT_S", 0)
    monkeypatch.setattr(efivars, "_write_once", busy)
    with pytest.raises(Failed, match="cannot write EFI variable BootNext"):
        EfiVars(folder).write("BootNext", b"\x01\0")


def test_a_firmware_that_takes_a_write_and_keeps_nothing_is_found_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efivars, "_write_once", lambda path, raw: len(raw))
    with pytest.raises(Failed, match="does not hold"):
        EfiVars(folder).write("BootNext", b"\x01\0")


def test_a_short_write_is_no_success(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efivars, "_write_once", lambda path, raw: os.write(os.open(path, os.O_WRONLY | os.O_CREAT), raw[:5]))
    with pytest.raises(Failed, match="does not hold"):
        EfiVars(folder).write("BootNext", b"\x01\0")


def test_the_immutable_flag_is_lifted_for_the_change_and_put_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EfiVars(folder)
    store.write("State", b"old", OWN)
    said: list[int] = []
    monkeypatch.setattr(efivars, "_flags", lambda fd: 0x18)
    monkeypatch.setattr(efivars, "_set_flags", lambda fd, flags: said.append(flags))
    store.write("State", b"new", OWN)
    assert said == [0x08, 0x18]
    store.delete("State", OWN)
    assert said == [0x08, 0x18] * 2


def test_the_real_flag_keeps_others_out_and_not_us(folder: Path) -> None:
    store = EfiVars(folder)
    store.write("State", b"old", OWN)
    path = folder / f"State-{OWN}"
    fd = os.open(path, os.O_RDONLY)
    try:
        try:
            efivars._set_flags(fd, efivars._flags(fd) | 0x10)
        except OSError as error:
            pytest.skip(f"no immutable files here: {error.strerror}")
        with pytest.raises(PermissionError):
            path.write_bytes(b"")
        store.write("State", b"new", OWN)
        assert efivars._flags(fd) & 0x10
        store.delete("State", OWN)
        assert not path.exists()
    finally:
        os.close(fd)


def test_what_cannot_be_read_listed_or_deleted_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EfiVars(folder)

    def fail(*words: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(efivars, "_contents", fail)
    with pytest.raises(Failed, match="cannot read EFI variable BootOrder: Input/output error"):
        store.read("BootOrder")
    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(Failed, match="cannot delete EFI variable BootOrder"):
        store.delete("BootOrder")
    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(Failed, match="cannot list"):
        store.names()


def test_a_deletion_that_changes_nothing_is_found_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda path: None)
    with pytest.raises(Failed, match="is still there"):
        EfiVars(folder).delete("BootOrder")


def test_a_read_only_efivarfs_is_told_with_the_command_that_changes_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.statvfs(folder)

    def read_only(path: object) -> os.statvfs_result:
        return os.statvfs_result((*whole[:8], whole.f_flag | os.ST_RDONLY, whole.f_namemax))

    def refuse(path: Path, raw: bytes) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "statvfs", read_only)
    monkeypatch.setattr(efivars, "_write_once", refuse)
    store = EfiVars(folder)
    assert store.problem() == (f"{folder} is mounted read-only", f"mount -o remount,rw {folder}")
    with pytest.raises(ConfigError, match="is mounted read-only") as caught:
        store.write("BootNext", b"\1\0")
    assert "remount,rw" in caught.value.hint
    # Reading goes on.
    assert store.read("BootNext") is None
    assert store.read("BootOrder") is not None


def test_free_room_is_what_the_kernel_says_or_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = EfiVars(folder).free_bytes()
    assert found is not None
    assert found > 0
    assert EfiVars(folder / "absent").free_bytes() is None
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255)))
    assert EfiVars(folder).free_bytes() is None


@pytest.mark.parametrize(("code", "known"), [(errno.ENOTTY, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)])
def test_a_file_system_without_flags_has_none(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, known: bool) -> None:
    def refuse(*words: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.ioctl", refuse)
    if known:
        EfiVars(folder).write("BootOrder", b"\2\0")
    else:
        with pytest.raises(Failed, match="cannot write EFI variable BootOrder"):
            EfiVars(folder).write("BootOrder", b"\2\0")
