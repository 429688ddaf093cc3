"""Which partition the EFI system partition is, as firmware names it: from its mount point through sysfs to the disk's partition table."""

from __future__ import annotations

import os
from pathlib import Path

from abupdate.errors import ConfigError
from abupdate.formats import gpt
from abupdate.formats.efiboot import Partition
from abupdate.formats.mountinfo import parse_mounts

_SECTOR_BYTES = 512
_MAX_MOUNTINFO_BYTES = 4 << 20


def find_partition(
    esp: Path, *, mountinfo: Path = Path("/proc/self/mountinfo"), sysfs: Path = Path("/sys/dev/block"), dev: Path = Path("/dev")
) -> Partition:
    """The partition that is mounted at `esp`. Raises ConfigError where none is, or where it is none that firmware could find."""
    device = _mounted_device(esp, mountinfo)
    folder = sysfs / f"{os.major(device)}:{os.minor(device)}"
    try:
        folder = folder.resolve(strict=True)
        number, start, blocks = (int((folder / name).read_text()) for name in ("partition", "start", "size"))
        disk = folder.parent
        block_bytes = int((disk / "queue/logical_block_size").read_text())
    except (OSError, ValueError):
        hint = "the ESP must be a plain partition of a disk: firmware knows neither LVM nor RAID"
        raise ConfigError(f"what is mounted at {esp} is no partition of a disk", hint) from None
    if block_bytes < _SECTOR_BYTES or block_bytes > 1 << 16:
        raise ConfigError(f"the disk under {esp} has logical blocks of {block_bytes} bytes", "see its queue/logical_block_size in /sys")
    return _described(dev / disk.name.replace("!", "/"), number, start * _SECTOR_BYTES, blocks * _SECTOR_BYTES, block_bytes)


def _mounted_device(esp: Path, mountinfo: Path) -> int:
    """Number of the device that is mounted there. Raises ConfigError."""
    hint = f"[bootloader] esp names the mount point of the EFI system partition; is it in /etc/fstab? mount {esp}"
    try:
        # An automount point becomes one when somebody looks into it.
        os.listdir(esp)  # noqa: PTH208 # its iterdir() looks later
        with mountinfo.open("rb") as file:
            mounts = parse_mounts(file.read(_MAX_MOUNTINFO_BYTES))
    except OSError as error:
        raise ConfigError(f"{esp} cannot be looked at: {error.strerror}", hint) from None
    point = os.path.realpath(esp)
    found = [mount.device for mount in mounts if mount.point == point and mount.fs_type != "autofs"]
    if not found:
        raise ConfigError(f"nothing is mounted at {esp}", hint)
    return found[-1]


def _described(disk: Path, number: int, start: int, size: int, block_bytes: int) -> Partition:
    """start, size: bytes. Raises ConfigError."""
    try:
        with disk.open("rb") as file:
            first = file.read(2 * block_bytes)
            entries = gpt.parse_header(first[block_bytes:])
            if entries is None:
                return gpt.dos_partition(first, number, start // block_bytes, size // block_bytes)
            if number > entries.count:
                raise ConfigError(f"the partition table of {disk} has no partition {number}", "was it changed since the kernel read it?")
            file.seek(entries.start * block_bytes + (number - 1) * entries.size_bytes)
            found = gpt.parse_entry(file.read(entries.size_bytes), number)
    except OSError as error:
        raise ConfigError(f"{disk} cannot be read: {error.strerror}", "run as root") from None
    if found.start * block_bytes != start:
        raise ConfigError(f"the partition table of {disk} has partition {number} elsewhere than the kernel", "reboot, or run partprobe")
    return found
