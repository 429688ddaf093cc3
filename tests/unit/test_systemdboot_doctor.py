"""What `doctor` says about systemd-boot, and what `doctor --fix` does about it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from abupdate import bootwiring
from abupdate.bootloaders.efivars import GLOBAL_GUID, KEPT, Variable
from abupdate.bootloaders.espfiles import LinuxEspFiles
from abupdate.bootloaders.sdbootdoctor import LOADER_GUID, default_problem
from abupdate.bootloaders.systemdboot import SystemdBootStore
from abupdate.config import load
from abupdate.errors import ConfigError
from abupdate.formats.bootentry import encode, setting, with_setting
from abupdate.formats.efiboot import decode_order, encode_order
from abupdate.model import BootState, Finding, Grade, TrialPolicy
from tests.workstation import ROOT

SLOTS = ("A", "B")
CMDLINE = {"A": "root=/dev/a ro", "B": "root=/dev/b ro"}
ARMED_B = BootState(("B", "A"), {"A": 1, "B": 3}, trial="B", policy=TrialPolicy(3, 0, 90))
UTF16 = "utf-16-le"


@dataclass
class Firmware:
    """`Variables` in memory."""

    kept: dict[tuple[str, str], bytes] = field(default_factory=dict)
    fault: tuple[str, str] | None = None

    def read(self, name: str, guid: str = GLOBAL_GUID) -> Variable | None:
        data = self.kept.get((name, guid))
        return None if data is None else Variable(KEPT, data)

    def write(self, name: str, data: bytes, guid: str = GLOBAL_GUID, attributes: int = KEPT) -> None:
        self.kept[name, guid] = data

    def delete(self, name: str, guid: str = GLOBAL_GUID) -> None:
        self.kept.pop((name, guid), None)

    def names(self, guid: str = GLOBAL_GUID) -> tuple[str, ...]:
        return tuple(sorted(name for name, owner in self.kept if owner == guid))

    def free_bytes(self) -> int | None:
        return None

    def problem(self) -> tuple[str, str] | None:
        return self.fault


@pytest.fixture
def firmware() -> Firmware:
    """systemd-boot has started this boot, and stands often enough in BootOrder."""
    order = encode_order([2, 2, 2, 2, 0])
    kept = {("BootCurrent", GLOBAL_GUID): encode_order([2]), ("BootOrder", GLOBAL_GUID): order}
    return Firmware({**kept, ("LoaderInfo", LOADER_GUID): "systemd-boot 252\0".encode(UTF16)})


@pytest.fixture
def esp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ESP as it should be, with a trial waiting on B."""
    monkeypatch.setattr(Path, "is_mount", lambda path: True)
    esp = tmp_path / "efi"
    (esp / "loader/entries").mkdir(parents=True)
    (esp / "EFI/systemd").mkdir(parents=True)
    (esp / "EFI/systemd/systemd-bootx64.efi").write_bytes(b"loader")
    (esp / "loader/loader.conf").write_text("timeout 0\ndefault slot-*\n")
    for slot in SLOTS:
        (esp / "abu" / slot).mkdir(parents=True)
        (esp / "abu" / slot / "vmlinuz").write_bytes(b"kernel")
    store_on(esp).rebuild(BootState(("A",), {"A": 1, "B": 0}))
    store_on(esp).commit(ARMED_B)
    return esp


def store_on(esp: Path, firmware: Firmware | None = None, cmdline: dict[str, str] = CMDLINE) -> SystemdBootStore:
    images = {slot: {"kernel": esp / f"abu/{slot}/vmlinuz"} for slot in SLOTS}
    return SystemdBootStore(esp, SLOTS, images, cmdline, variables=lambda: firmware or Firmware())


def bad(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.grade is not Grade.OK]


def test_a_device_that_is_set_up_has_no_complaint_and_nothing_to_fix(esp: Path, firmware: Firmware) -> None:
    found = list(store_on(esp, firmware).inspect())
    assert bad(found) == []
    assert any("slot-B+3.conf boots slot B on trial" in one.text for one in found)
    assert store_on(esp, firmware).repairs() == ()


@pytest.mark.parametrize(
    ("conf", "problem"),
    [
        ("", "no default"),
        ("# default slot-*\n", "no default"),
        ("default slot-a.conf\n", "has `default slot-a.conf`"),
        ("default slot-*\ndefault @saved\n", "has `default @saved`"),
        ("default slot-a*\n", "has `default slot-a*`"),
        ("default slot-*\n", ""),
        ("default\tSLOT-*  \r\n", ""),
        ("default *\n", ""),
    ],
)
def test_only_a_pattern_for_both_slots_is_a_default(conf: str, problem: str) -> None:
    assert problem in default_problem(conf.encode())
    assert bool(problem) == bool(default_problem(conf.encode()))


@pytest.mark.parametrize("conf", [None, b"", b"default slot-a.conf\ntimeout 3\n# mine\nodd \xff\n"])
def test_fix_writes_the_default_and_keeps_the_other_lines(esp: Path, firmware: Firmware, conf: bytes | None) -> None:
    path = esp / "loader/loader.conf"
    path.unlink()
    if conf is not None:
        path.write_bytes(conf)
    store = store_on(esp, firmware)
    assert [one.grade for one in bad(list(store.inspect()))] == [Grade.FAIL]
    (repair,) = store.repairs()
    repair.run()
    assert setting(path.read_bytes(), "default") == "slot-*"
    assert path.read_bytes().splitlines()[1:] == [line for line in (conf or b"").splitlines() if not line.startswith(b"default")]
    assert bad(list(store.inspect())) == []


def test_an_esp_that_is_mounted_read_only_is_named(esp: Path, firmware: Firmware, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = os.statvfs(esp)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((*mounted[:8], mounted.f_flag | os.ST_RDONLY, mounted[9])))
    (finding,) = [one for one in bad(list(store_on(esp, firmware).inspect())) if one.grade is Grade.FAIL]
    assert "mounted read-only" in finding.text
    assert "remount,rw" in finding.hint


def test_fix_on_an_esp_that_cannot_be_written_is_one_line_with_a_hint(esp: Path, firmware: Firmware) -> None:
    class ReadOnly(LinuxEspFiles):
        def rewrite(self, path: Path, data: bytes) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

    (esp / "loader/loader.conf").write_text("timeout 3\n")
    images = {slot: {"kernel": esp / f"abu/{slot}/vmlinuz"} for slot in SLOTS}
    (repair,) = SystemdBootStore(esp, SLOTS, images, CMDLINE, files=ReadOnly(), variables=lambda: firmware).repairs()
    with pytest.raises(ConfigError, match=r"loader.conf cannot be written: Read-only file system") as caught:
        repair.run()
    assert caught.value.hint
    assert (esp / "loader/loader.conf").read_text() == "timeout 3\n"


def test_what_is_missing_or_edited_on_the_esp_is_named(esp: Path, firmware: Firmware) -> None:
    entries = esp / "loader/entries"
    (esp / "EFI/systemd/systemd-bootx64.efi").unlink()
    (esp / "abu/B/vmlinuz").unlink()
    (entries / "slot-A.conf").write_text("title hand\nlinux /abu/A/vmlinuz\n")
    (entries / "slot-C.conf").write_text("linux /abu/A/vmlinuz\n")
    (entries / "slot-B.conf").write_bytes(b"")
    (entries / "slot-B+2-1.conf").write_bytes((entries / "slot-B+3.conf").read_bytes())
    found = bad(list(store_on(esp, firmware).inspect()))
    texts = "\n".join(f"{one.grade.value} {one.text}" for one in found)
    assert f"fail no boot loader in {esp}/EFI" in texts
    assert "slot-B+3.conf names /abu/B/vmlinuz, which is not there" in texts
    assert "slot-A.conf was not written by abupdate, or edited by hand" in texts
    assert "slot-C.conf is of no slot that is configured" in texts
    assert "slot-B.conf is empty or damaged" in texts
    assert "slot B has two counted entries" in texts
    assert all(one.hint for one in found)


def test_an_entry_that_says_something_else_than_the_configuration_is_named(esp: Path, firmware: Firmware) -> None:
    (esp / "abu/A/other").write_bytes(b"kernel")
    path = esp / "loader/entries/slot-A.conf"
    entry = next(one.entry for one in store_on(esp).load() if one.name.file == "slot-A.conf")
    path.write_bytes(encode(replace(entry, kernel="/abu/A/other")))
    assert "names other files" in bad(list(store_on(esp, firmware).inspect()))[0].text
    path.write_bytes(encode(entry))
    found = bad(list(store_on(esp, firmware, {**CMDLINE, "A": "root=/dev/a rw"}).inspect()))
    assert [("other kernel arguments" in one.text, one.grade) for one in found] == [(True, Grade.WARN)]


def test_entries_on_an_xbootldr_partition_are_refused(esp: Path, firmware: Firmware, tmp_path: Path) -> None:
    from abupdate.bootloaders.espfiles import LINUX
    from abupdate.bootloaders.sdbootdoctor import inspect

    other = tmp_path / "boot"
    (other / "loader/entries").mkdir(parents=True)
    (other / "loader/entries/slot-A.conf").write_text("linux /vmlinuz\n")
    (other / "loader/entries/debian.conf").write_text("linux /vmlinuz\n")
    store = store_on(esp, firmware)
    found = bad(list(inspect(esp, store._plain, store.load(), LINUX, other)))
    assert [(one.grade, "second entry" in one.text) for one in found] == [(Grade.FAIL, True)]
    assert bad(list(inspect(esp, store._plain, store.load(), LINUX, esp))) == []


@pytest.mark.parametrize("name", ["LoaderEntryDefault", "LoaderEntryOneShot", "LoaderEntrySysFail"])
def test_a_variable_above_loader_conf_is_refused(esp: Path, firmware: Firmware, name: str) -> None:
    firmware.write(name, "slot-a.conf\0".encode(UTF16), LOADER_GUID)
    (found,) = bad(list(store_on(esp, firmware).inspect()))
    assert found.grade is Grade.FAIL
    assert name in found.text
    assert found.hint


@pytest.mark.parametrize("order", [[2, 0], [0, 2], [2, 2, 0, 2, 2], [2], []])
def test_fix_puts_the_loader_into_the_boot_order_once_for_each_try_and_once_more(esp: Path, firmware: Firmware, order: list[int]) -> None:
    firmware.write("BootOrder", encode_order(order))
    store = store_on(esp, firmware)
    (found,) = bad(list(store.inspect()))
    assert found.grade is Grade.WARN
    assert "--fix" in found.hint
    (repair,) = store.repairs()
    assert repair.text.startswith("BootOrder: 0002,0002,0002,0002")
    repair.run()
    data = firmware.read("BootOrder")
    assert data is not None
    assert decode_order(data.data) == (2, 2, 2, 2, *([0] if 0 in order else []))
    assert bad(list(store.inspect())) == []
    assert store.repairs() == ()


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("image", ["uki", "kernel"])
def test_secure_boot_with_a_unified_kernel_image_is_refused(esp: Path, firmware: Firmware, on: bool, image: str) -> None:
    firmware.write("SecureBoot", bytes([on]))
    images = {slot: {image: esp / f"abu/{slot}/vmlinuz"} for slot in SLOTS}
    store = SystemdBootStore(esp, SLOTS, images, CMDLINE, variables=lambda: firmware)
    found = [one for one in bad(list(store.inspect())) if "Secure Boot" in one.text]
    assert [one.grade for one in found] == [Grade.FAIL] * (on and image == "uki")


def test_a_boot_that_systemd_boot_did_not_start_changes_nothing_in_the_boot_order(esp: Path, firmware: Firmware) -> None:
    firmware.delete("LoaderInfo", LOADER_GUID)
    firmware.write("BootOrder", encode_order([0]))
    assert "not started by systemd-boot" in bad(list(store_on(esp, firmware).inspect()))[0].text
    assert store_on(esp, firmware).repairs() == ()


def test_without_variables_that_alone_is_said(esp: Path) -> None:
    (found,) = bad(list(store_on(esp, Firmware(fault=("no variables", "mount them"))).inspect()))
    assert (found.grade, found.text, found.hint) == (Grade.WARN, "no variables", "mount them")
    assert store_on(esp, Firmware(fault=("no variables", "mount them"))).repairs() == ()


def test_a_folder_whose_names_take_more_than_a_sector_is_named(esp: Path, firmware: Firmware) -> None:
    for number in range(4):
        assert bad(list(store_on(esp, firmware).inspect())) == [] or number == 3
        if number < 2:
            (esp / f"loader/entries/debian{number}.conf").write_text("linux /vmlinuz\n")
        else:
            (esp / f"loader/entries/0123456789abcdef0123456789abcdef-6.1.0-{number}-amd64.conf").write_text("linux /vmlinuz\n")
            break
    (found,) = bad(list(store_on(esp, firmware).inspect()))
    assert "first sector" in found.text


def test_a_setting_that_is_changed_is_read_back() -> None:
    conf = with_setting(b"timeout 3\ndefault x\n", "default", "slot-*")
    assert (setting(conf, "default"), setting(conf, "timeout"), setting(conf, "editor")) == ("slot-*", "3", "")


def test_the_configuration_and_loader_conf_of_the_porting_guide_are_valid() -> None:
    hooks = ROOT / "bootloader-hooks/systemd-boot"
    settings = load(hooks / "config.toml")
    store, tears = bootwiring.bootloader(settings)
    assert isinstance(store, SystemdBootStore)
    assert tears == ""
    bootwiring.check_traits(settings, store.traits)
    assert default_problem((hooks / "loader.conf").read_bytes()) == ""
