"""Discovery with the real udevd in a mount namespace of its own, and without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from abupdate.devices.discovery import Discovery, FoundDevice, Origin, discover, find_label

REPORT = """
import dataclasses, json, sys
from abupdate.devices.discovery import discover
found = discover()
print(json.dumps([found.origin.value, found.note, [dataclasses.asdict(device) for device in found.devices]]))
"""

# udevd gets a /run and a /dev of its own, with one disk in it: neither the machine nor other tests see anything of it.
WITH_UDEVD = """
set -eu
mount --make-rprivate /
mount -t tmpfs none /run
mkdir /run/dev && mount -t tmpfs none /run/dev
cp -a "$1" "$1"p* /dev/null /run/dev/
mount --move /run/dev /dev
/lib/systemd/systemd-udevd >/dev/null 2>&1 & daemon=$!
trap 'kill $daemon; wait $daemon || true' EXIT
tries=0
until udevadm control --ping 2>/dev/null; do tries=$((tries + 1)); test $tries -lt 200; sleep 0.02; done
udevadm trigger --settle --action=change --name-match="$1" --name-match="$1"p1 --name-match="$1"p2
"$2" -c "$3"
"""


def parse(output: str) -> Discovery:
    origin, note, devices = json.loads(output)
    found = [
        FoundDevice(**{**device, "mounted_at": tuple(device["mounted_at"]), "holders": tuple(device["holders"])}) for device in devices
    ]
    return Discovery(Origin(origin), tuple(found), note)


@pytest.fixture
def disk(tmp_path: Path, loop: Callable[[Path], Path]) -> Path:
    """A GPT disk with two labelled partitions, the second with a file system."""
    file = tmp_path / "disk"
    with file.open("wb") as out:
        out.truncate(32 << 20)
    table = ["-n1:2048:+8M", "-c1:root fs a", "-t1:8305", "-n2:0:+8M", "-c2:rootfs_b", "-t2:8300"]
    subprocess.run(["sgdisk", *table, file], check=True, capture_output=True)
    return loop(file)


@pytest.fixture
def partitions(disk: Path) -> object:
    """Partitions made known to the kernel by number: not every kernel reads GPT itself."""
    for number, start in (("1", "2048"), ("2", "18432")):
        subprocess.run(["addpart", disk, number, start, "16384"], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "two words", f"{disk}p2"], check=True)
    yield
    for number in ("1", "2"):
        subprocess.run(["delpart", disk, number], check=True)


@pytest.mark.usefixtures("partitions")
def test_with_udevd(disk: Path) -> None:
    command = ["unshare", "-m", "sh", "-c", WITH_UDEVD, "sh", str(disk), sys.executable, REPORT]
    found = parse(subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout)
    assert found.origin is Origin.UDEV
    assert found.note == ""
    [one] = find_label(found, "root fs a")
    assert (one.node, one.kind, one.size_bytes, one.type_id) == (f"{disk}p1", "partition", 8 << 20, "b921b045-1df0-41c3-af44-4c6f280d3fae")
    [two] = find_label(found, "rootfs_b")
    assert (two.filesystem, two.filesystem_label) == ("ext4", "two words")
    assert find_label(found, "rootfs_c") == ()
    [whole] = [device for device in found.devices if device.node == str(disk)]
    assert (whole.kind, whole.size_bytes) == ("disk", 32 << 20)


@pytest.mark.usefixtures("partitions")
def test_without_udevs_database_sysfs_still_tells_sizes_and_mounts(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "point").mkdir()
    script = 'mount --make-rprivate / && mount -t tmpfs none /run && mount "$1"p2 "$2" && "$3" -c "$4"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(disk), str(tmp_path / "point"), sys.executable, REPORT]
    found = parse(subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout)
    assert found.origin is Origin.SYSFS
    assert "udevd does not run" in found.note
    [two] = [device for device in found.devices if device.node == f"{disk}p2"]
    assert (two.kind, two.size_bytes, two.mounted_at) == ("partition", 8 << 20, (str(tmp_path / "point"),))
    assert not any(device.size_bytes == 0 for device in found.devices)


@pytest.mark.parametrize(("missing", "word"), [("pyudev", "pyudev is not installed"), ("libudev", "libudev is not installed")])
def test_without_pyudev_or_libudev(missing: str, word: str) -> None:
    hide = {
        "pyudev": "import sys; sys.modules['pyudev'] = None\n",
        "libudev": """
import ctypes.util
find_library = ctypes.util.find_library
ctypes.util.find_library = lambda name: None if name == "udev" else find_library(name)
""",
    }
    done = subprocess.run([sys.executable, "-c", hide[missing] + REPORT], check=True, capture_output=True, text=True)
    found = parse(done.stdout)
    assert found.origin is Origin.SYSFS
    assert found.note.startswith(word)


def test_pyudev_is_imported_when_asked_only() -> None:
    code = "import sys, abupdate.devices.discovery, abupdate.devices.block; print('pyudev' in sys.modules, 'ctypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False False\n"


def test_here() -> None:
    found = discover()
    root = [device for device in found.devices if "/" in device.mounted_at]
    assert all(device.size_bytes > 0 for device in found.devices)
    assert len(root) <= 1
