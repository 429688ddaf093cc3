"""Facts of the running boot, from a made-up /proc, /sys and /run, and the real clock."""

from __future__ import annotations

import os
from pathlib import Path, PosixPath

import pytest

from abupdate.devices.thisboot import LinuxBoot, kernel_argument
from abupdate.errors import ConfigError

DOG = Path("/dev/watchdog0")


def root_with(folder: Path, cmdline: str) -> Path:
    (folder / "proc/sys/kernel/random").mkdir(parents=True)
    (folder / "proc/cmdline").write_text(cmdline)
    (folder / "proc/sys/kernel/random/boot_id").write_text("1234-5678\n")
    return folder


def boot_of(root: Path, *, believed: str | None = None, slots: dict[str, tuple[Path, ...]] | None = None) -> LinuxBoot:
    places = {"A": (Path("/nowhere/a"),), "B": (Path("/nowhere/b"),)}
    return LinuxBoot(places if slots is None else slots, DOG, believed, root)


def test_time_counts_from_the_start_of_the_kernel() -> None:
    """Neither the wall clock, which may be set in the middle of a trial, nor the process: /proc/uptime counts the same way."""
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    assert uptime_s - 0.1 <= boot_of(Path("/")).boottime_s() < uptime_s + 30


@pytest.mark.parametrize(
    ("cmdline", "slot"),
    [
        ("quiet abupdate.slot=B panic=10", "B"),
        ("rauc.slot=A", "A"),
        ("rauc.slot=A abupdate.slot=B", "B"),
        ("abupdate.slot=A abupdate.slot=B", "B"),
        ("xabupdate.slot=A abupdate.slot.old=A rauc.slot=B", "B"),
    ],
)
def test_the_kernels_arguments_name_the_slot(tmp_path: Path, cmdline: str, slot: str) -> None:
    root = root_with(tmp_path, cmdline)
    assert boot_of(root).booted() == slot
    assert boot_of(root, believed="A").booted() == "A", "what the configuration says is believed"


def test_a_slot_that_is_none_is_an_error_and_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"abupdate\.slot=C, which is not a slot"):
        boot_of(root_with(tmp_path, "abupdate.slot=C rauc.slot=A")).booted()


class Placed(PosixPath):
    """Files whose numbers of devices are chosen: `a` and `b` are block devices, and everything else lies on `b`."""

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        number = {"a": os.makedev(8, 1), "b": os.makedev(8, 2)}.get(self.name, 0)
        found = list(super().stat() if not number else os.stat_result(range(10)))[:10]
        found[2] = os.makedev(8, 2)
        return os.stat_result(found, {"st_rdev": number})


def test_without_arguments_the_device_of_the_root_file_system_tells(tmp_path: Path) -> None:
    root = Placed(root_with(tmp_path, "quiet"))
    assert boot_of(root, slots={"A": (Path("/nowhere/a"), Placed("/dev/a")), "B": (Placed("/dev/b"),)}).booted() == "B"
    with pytest.raises(ConfigError, match="nothing tells which slot runs"):
        boot_of(root, slots={"A": (Placed("/dev/a"),), "B": (Path("/nowhere/b"),)}).booted()


def test_a_kernel_without_arguments_or_boot_id(tmp_path: Path) -> None:
    assert kernel_argument("panic", tmp_path) is None
    with pytest.raises(ConfigError, match="boot id cannot be read"):
        _ = boot_of(tmp_path).boot_id


def test_settled_is_of_this_boot_alone(tmp_path: Path) -> None:
    boot = boot_of(root_with(tmp_path, ""))
    assert not boot.settled
    boot.mark_settled()
    assert boot.settled
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("another\n")
    assert not boot.settled, "a marker that outlived its boot"


def test_a_crash_dump_tells_of_a_panic(tmp_path: Path) -> None:
    boot = boot_of(root_with(tmp_path, ""))
    assert boot.reset_reason() == ""
    pstore = tmp_path / "sys/fs/pstore"
    pstore.mkdir(parents=True)
    (pstore / "console-ramoops-0").touch()
    assert boot.reset_reason() == ""
    (pstore / "dmesg-ramoops-0").touch()
    assert boot.reset_reason() == "panic"
