"""Who uses a device and what lies on what: against real mounts, loop devices and partitions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from abupdate.devices.usage import covers, device_name, devices_under, explain_use, identify, is_mounted_rw, lies_on, mounts, same_target
from abupdate.errors import ConfigError
from tests.workstation import environ

Loop = Callable[[Path], Path]
Mount = Callable[..., Path]


def test_same_target_by_whatever_name(tmp_path: Path, ext4: Path, loop: Loop) -> None:
    device = loop(ext4)
    (tmp_path / "by-label").symlink_to(device)
    node = tmp_path / "node"
    os.mknod(node, 0o60600, device.stat().st_rdev)
    (tmp_path / "hard").hardlink_to(ext4)
    assert same_target(device, tmp_path / "by-label")
    assert same_target(device, node)
    assert same_target(ext4, tmp_path / "hard")
    assert not same_target(device, ext4)
    with pytest.raises(ConfigError):
        identify(tmp_path)
    with pytest.raises(ConfigError):
        identify(tmp_path / "nothing")


def test_mounts_with_odd_names(tmp_path: Path, ext4: Path, loop: Loop) -> None:
    point = tmp_path / "a b\tc\\d"
    point.mkdir()
    device = loop(ext4)
    subprocess.run(["mount", "-o", "ro", device, point], check=True)
    try:
        [mount] = [mount for mount in mounts() if mount.point == str(point)]
        assert mount.device == device.stat().st_rdev
        assert mount.fs_type == "ext4"
        assert not mount.read_write
    finally:
        subprocess.run(["umount", point], check=True)


# In a mount namespace of its own: an earlier release, which other tests run meanwhile, cannot read such a list.
ODD_MOUNTS = """
import subprocess, sys
from pathlib import Path
from abupdate.devices.usage import devices_under, explain_use, identify, mounts
top, device = Path(sys.argv[1]), sys.argv[2]
for number, odd in enumerate(("\\r", "\\x0b", "\\x1c", "\\x85", "\\u2028")):
    point = top / f"STICK{odd}{number}"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", odd, point], check=True)
    assert explain_use(identify(device)) == "", odd
    assert devices_under(point) == set()
    assert str(point) in [mount.point for mount in mounts()]
last = top / "last"
last.mkdir()
subprocess.run(["mount", device, last], check=True)
assert explain_use(identify(device)) == f"mounted at {last}"
print("seen")
"""


def test_a_mount_point_with_line_breaks_of_other_kinds(ext4: Path, loop: Loop, tmp_path: Path) -> None:
    """The kernel escapes newlines and no other character at which text is split into lines."""
    command: list[str | Path] = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", ODD_MOUNTS, tmp_path, loop(ext4)]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True, check=False)
    assert done.stdout == "seen\n", done.stderr


def test_a_mount_that_only_calls_itself_the_slot(mount: Mount, ext4: Path, loop: Loop) -> None:
    """Of a tmpfs or a FUSE file system the source is free text."""
    device = loop(ext4)
    point = mount(str(device), "-t", "tmpfs")
    assert explain_use(identify(device)) == ""
    assert not is_mounted_rw(device)
    assert not lies_on(point, device)


def test_mounted_rw(ext4: Path, loop: Loop, mount: Mount) -> None:
    device = loop(ext4)
    assert not is_mounted_rw(device)
    point = mount(device)
    assert is_mounted_rw(device)
    assert is_mounted_rw(ext4)
    subprocess.run(["mount", "-o", "remount,ro", point], check=True)
    assert not is_mounted_rw(device)
    assert explain_use(identify(device)) == f"mounted at {point}"


def test_state_dir_on_a_slot_is_found(tmp_path: Path, ext4: Path, loop: Loop, mount: Mount) -> None:
    device = loop(ext4)
    state = mount(device) / "var" / "lib"
    state.mkdir(parents=True)
    other = tmp_path / "other"
    other.write_bytes(bytes(4096))
    assert lies_on(state, device)
    assert lies_on(state, ext4), "through the loop device that the file backs"
    assert not lies_on(state, other)
    assert not lies_on(tmp_path, device)
    assert not lies_on(tmp_path, other), "a slot that is a file may share its file system"
    assert not lies_on(tmp_path, ext4)


def test_state_dir_under_a_loop_on_a_loop(tmp_path: Path, ext4: Path, loop: Loop, mount: Mount) -> None:
    """A file system in a file on a file system on the slot: writing the slot destroys it all the same."""
    outer = loop(ext4)
    inner_file = mount(outer) / "inner"
    with inner_file.open("wb") as out:
        out.truncate(2 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", inner_file], check=True)
    inner = loop(inner_file)
    state = mount(inner)
    assert {inner.stat().st_rdev, outer.stat().st_rdev} <= devices_under(state)
    assert lies_on(state, outer)
    assert lies_on(state, inner_file)


def test_state_dir_on_a_partition_lies_on_its_disk_only(tmp_path: Path, loop: Loop) -> None:
    file = tmp_path / "disk"
    with file.open("wb") as out:
        out.truncate(16 << 20)
    disk = loop(file)
    for number, start in (("1", "2048"), ("2", "18432")):
        subprocess.run(["addpart", disk, number, start, "12288"], check=True)
    one, two, point = Path(f"{disk}p1"), Path(f"{disk}p2"), tmp_path / "point"
    point.mkdir()
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", one], check=True)
        subprocess.run(["mount", one, point], check=True)
        assert lies_on(point, one)
        assert lies_on(point, disk)
        assert not lies_on(point, two)
        assert device_name(one.stat().st_rdev) == str(one)
        assert explain_use(identify(two)) == ""
        first, second = (2048 * 512, 14336 * 512), (18432 * 512, 30720 * 512)
        for low, high, over in ((0, first[0], ()), (first[0] - 1, first[0] + 1, (one,)), (first[1], second[0], ()), (*second, (two,))):
            assert tuple(part for part in (one, two) if covers(part, disk, low, high)) == over
        assert covers(disk, two, 0, 1)
        assert covers(file, two, 0, 1), "the disk is a loop device over it"
        assert not covers(one, two, 0, 1)
        (point / "env").write_bytes(bytes(100))
        assert covers(one, point / "env", 0, 1)
        assert not covers(two, point / "env", 0, 1)
        assert not covers(one, "/dev/null", 0, 1), "no slot is raw flash"
    finally:
        subprocess.run(["umount", point], check=False)
        for number in ("1", "2"):
            subprocess.run(["delpart", disk, number], check=True)


def test_directory_without_a_device(mount: Mount, ext4: Path) -> None:
    assert devices_under(mount("tmpfs", "-t", "tmpfs")) == set()
    assert not lies_on(mount("tmpfs", "-t", "tmpfs"), ext4)
