"""Finds block devices for `doctor` and `status`: partition labels, types, sizes, what is mounted. From udev where it runs, else sysfs.

pyudev is an extra and is imported when asked for only. Nothing here decides anything: slots are what the configuration names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from abupdate.devices.usage import holder_names, mounts_of

_UDEV_DATA = Path("/run/udev/data")
_CLASS_BLOCK = Path("/sys/class/block")
_SECTOR_BYTES = 512  # sysfs counts in these, whatever the device's block size


class Origin(Enum):
    """Who described the devices."""

    UDEV = "udev"
    SYSFS = "sysfs"


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """A block device or partition. Empty texts: not known (or not set).

    node: such as /dev/sda3. kind: disk or partition. label/type_id: the partition's in the table (GPT: name and type GUID).
    filesystem: type and label of its content, from udev only. mounted_at: mount points. holders: devices stacked on it.
    """

    node: str
    kind: str
    size_bytes: int
    read_only: bool
    label: str = ""
    type_id: str = ""
    filesystem: str = ""
    filesystem_label: str = ""
    mounted_at: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found, by whom, and in `note` one line for the user about what could not be known (empty when nothing is missing)."""

    origin: Origin
    devices: tuple[FoundDevice, ...]
    note: str = ""


def discover() -> Discovery:
    """Describe every block device that has a size, by name. Never raises for a missing pyudev or udev: `note` says so."""
    try:
        import pyudev

        context = pyudev.Context()
    except ImportError as error:
        missing = "pyudev is not installed" if error.name == "pyudev" else "libudev is not installed"
        # Not the extra of a package name that nobody owns on any index: root would install what a stranger put there.
        hint = "install pyudev; Debian: apt install python3-pyudev" if error.name == "pyudev" else "install libudev1"
        return _from_sysfs(f"{missing} ({hint}): partition types and file systems are not shown")
    if not _UDEV_DATA.is_dir():
        return _from_sysfs("udev's database is absent (udevd does not run): partition types and file systems are not shown")
    found = [_describe(Path(device.sys_path), device.properties) for device in context.list_devices(subsystem="block")]
    return Discovery(Origin.UDEV, _sorted(found))


def find_label(discovery: Discovery, label: str) -> tuple[FoundDevice, ...]:
    """The partitions of that label; more than one is a device that cannot be addressed by label."""
    return tuple(device for device in discovery.devices if device.label == label)


def _from_sysfs(note: str) -> Discovery:
    try:
        entries = sorted(_CLASS_BLOCK.iterdir())
    except OSError:
        return Discovery(Origin.SYSFS, (), "sysfs is not mounted at /sys: no block devices can be shown")
    return Discovery(Origin.SYSFS, _sorted([_describe(entry, {}) for entry in entries]), note)


def _describe(folder: Path, properties: Mapping[str, str]) -> FoundDevice | None:
    """One device from its sysfs folder and what udev adds; None where it is empty (an unused loop device) or has just gone."""
    try:
        # Read-only, but of the kernel: the numbers are right even where udev's are from before a resize.
        size_bytes = int((folder / "size").read_text()) * _SECTOR_BYTES
        read_only = (folder / "ro").read_text().strip() == "1"
        event = dict(line.split("=", 1) for line in (folder / "uevent").read_text().splitlines() if "=" in line)
        number = os.makedev(int(event["MAJOR"]), int(event["MINOR"]))
    except (OSError, ValueError, KeyError):
        return None
    if size_bytes == 0:
        return None
    return FoundDevice(
        node=f"/dev/{event.get('DEVNAME', folder.name)}",
        kind="partition" if event.get("DEVTYPE") == "partition" else "disk",
        size_bytes=size_bytes,
        read_only=read_only,
        label=_plain(properties.get("ID_PART_ENTRY_NAME", "")) or event.get("PARTNAME", ""),
        type_id=properties.get("ID_PART_ENTRY_TYPE", ""),
        filesystem=properties.get("ID_FS_TYPE", ""),
        filesystem_label=_plain(properties.get("ID_FS_LABEL_ENC", "")),
        mounted_at=tuple(mount.point for mount in mounts_of(number)),
        holders=tuple(holder_names(number)),
    )


def _plain(encoded: str) -> str:
    r"""Undo udev's \x20 encoding of unsafe characters."""
    head, *rest = encoded.split("\\x")
    raw = head.encode()
    for part in rest:
        try:
            raw += bytes.fromhex(part[:2]) + part[2:].encode()
        except ValueError:
            raw += b"\\x" + part.encode()
    return raw.decode("utf-8", "replace")


def _sorted(found: list[FoundDevice | None]) -> tuple[FoundDevice, ...]:
    return tuple(sorted((device for device in found if device is not None), key=lambda device: device.node))
