"""Who uses a block device or slot file: mounts, swap, holders, loop devices; and what lies on what.

Facts come from /proc/self/mountinfo, /proc/swaps and sysfs, never from commands. A device number here is the kernel's `st_rdev`.
Light to import (no threads, no ctypes): the configuration checks of every verb use it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from abupdate.errors import ConfigError
from abupdate.formats.mountinfo import Mount, parse_mounts, parse_swaps

SYS_BLOCK = Path("/sys/dev/block")
# The unit of sysfs, whatever the disk's own is.
_SECTOR_BYTES = 512
# File systems on block devices whose mounts do not show the device's number. Of others with such numbers (tmpfs, FUSE) the source is
# whatever whoever mounted them wrote there.
_ANONYMOUS = frozenset({"btrfs", "bcachefs"})


@dataclass(frozen=True, slots=True)
class Identity:
    """What a path is, by whatever name: `device` is set for a block device, `file` (st_dev, st_ino) for a regular file."""

    device: int | None = None
    file: tuple[int, int] | None = None


def identify(path: str | Path) -> Identity:
    """Identity behind a path, symbolic links followed. Raises ConfigError when it is absent or neither block device nor regular file."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "check the slot's path in the configuration") from error
    return identify_status(path, status)


def identify_status(path: str | Path, status: os.stat_result) -> Identity:
    """Like `identify`, for the status of a descriptor that is open already."""
    if stat.S_ISBLK(status.st_mode):
        return Identity(device=status.st_rdev)
    if stat.S_ISREG(status.st_mode):
        return Identity(file=(status.st_dev, status.st_ino))
    raise ConfigError(f"{path} is neither a block device nor a regular file", "check the slot's path in the configuration")


def is_to_be_made(path: Path) -> bool:
    """True for a path at which a flash may make a file: nothing lies there, its folder does, and it is no device's.

    A missing device node is a missing device: whatever would be written there would lie in memory.
    """
    folder_there = os.path.isdir(path.parent)  # noqa: PTH112 # pathlib's raises where the medium fails
    return folder_there and not os.path.lexists(path) and Path("/dev") not in path.absolute().parents


def same_target(one: str | Path, other: str | Path) -> bool:
    """True when both paths name the same device or file (symbolic links, hard links and extra device nodes included)."""
    return identify(one) == identify(other)


def mounts() -> tuple[Mount, ...]:
    """Every mount of this mount namespace."""
    return parse_mounts(Path("/proc/self/mountinfo").read_bytes())


def mounts_of(device: int) -> list[Mount]:
    """Mounts of a block device."""
    return [mount for mount in mounts() if mount.device == device or _source(mount) == device]


def is_mounted_rw(path: str | Path) -> bool:
    """True when the block device, or a loop device that the file backs, is mounted and can be written through the mount."""
    return any(mount.read_write for device in _devices_over(identify(path)) for mount in mounts_of(device))


def explain_use(identity: Identity) -> str:
    """Why a target must not be written now, for the user ("mounted at /boot"); empty when nothing is known to use it.

    Looks at the device, its partitions, what is stacked on it (device-mapper, md), and loop devices that it backs.
    """
    for device in _devices_over(identity):
        name = "" if device == identity.device else f"{device_name(device)}, which lies on it, is "
        points = [mount.point for mount in mounts_of(device)]
        if points:
            return f"{name}mounted at {', '.join(points)}"
        if device in _swaps():
            return f"{name}used as swap"
        holders = holder_names(device)
        if holders:
            return f"{name}held by {', '.join(holders)}"
    if identity.file is not None and identity.file in _swap_files():
        return "used as swap"
    return ""


def holder_names(device: int) -> list[str]:
    """Devices stacked on a block device, by name; device-mapper ones with the name their owner gave them."""
    names = []
    for holder in _entries(_sys(device) / "holders"):
        mapped = _read(holder / "dm" / "name")
        names.append(f"{holder.name} ({mapped})" if mapped else holder.name)
    return names


def device_name(device: int) -> str:
    """Kernel's node of a device number, such as /dev/loop0; the numbers where sysfs does not know it."""
    try:
        return f"/dev/{_sys(device).resolve(strict=True).name.replace('!', '/')}"
    except OSError:
        return f"{os.major(device)}:{os.minor(device)}"


def devices_under(path: str | Path) -> set[int]:
    """Block devices that the file system of `path` lies on, directly or through device-mapper, md, loop devices and partitions."""
    found: set[int] = set()
    waiting = list(_filesystem_devices(Path(path)))
    while waiting:
        device = waiting.pop()
        if device in found:
            continue
        found.add(device)
        waiting += [number for slave in _entries(_sys(device) / "slaves") if (number := _number(slave)) is not None]
        if (_sys(device) / "partition").exists() and (whole := _number(_sys(device).resolve().parent)) is not None:
            waiting.append(whole)
        backing = _backing_status(device)
        if backing is not None:
            waiting.append(backing.st_rdev if stat.S_ISBLK(backing.st_mode) else backing.st_dev)
    return found


def lies_on(path: str | Path, target: str | Path) -> bool:
    """True when the file system of `path` would be overwritten with `target`.

    For a block device: the file system lies on it (through loop, device-mapper, partitions too). For a regular file: the file
    system lies on a loop device that the file backs; merely sharing the file's own file system is fine.
    """
    identity = identify(target)
    under = devices_under(path)
    if identity.device is None:
        return any(device in under for device in _devices_over(identity))
    return identity.device in under


def covers(target: str | Path, place: str | Path, start: int = 0, end: int = 1 << 62) -> bool:
    """True when whoever writes all of `target` writes into the bytes from start to end of `place`, or over the file system it lies on.

    Both are block devices or regular files; in one and the same device or file no byte is safe. A partition covers its part of the
    disk, a disk all of its partitions. A file that is still to be made covers nothing, and lies where its folder does. Raises
    ConfigError where one is neither.
    """
    if is_to_be_made(Path(target)):
        return False
    if is_to_be_made(Path(place)):
        return lies_on(Path(place).parent, target)
    mine = identify(target)
    if Path(place).is_char_device():
        return False  # raw flash: slots are not written through it
    other = identify(place)
    if mine == other:
        return True
    if other.device is None:
        return lies_on(place, target)
    if other.device in _devices_over(mine):
        return True
    entry = _sys(mine.device) if mine.device is not None else None
    if entry is None or not (entry / "partition").exists() or _number(entry.resolve().parent) != other.device:
        return False
    first = int(_read(entry / "start")) * _SECTOR_BYTES
    return first < end and start < first + int(_read(entry / "size")) * _SECTOR_BYTES


def _filesystem_devices(path: Path) -> set[int]:
    number = path.stat().st_dev
    if os.major(number) != 0:
        return {number}
    mount_id = _mount_id(path)
    real = next((_source(mount) for mount in mounts() if mount.mount_id == mount_id), None)
    return set() if real is None else {real}


def _source(mount: Mount) -> int | None:
    """The block device that a mount with an anonymous device number names as its source, where that word can be believed."""
    return _rdev(mount.source) if os.major(mount.device) == 0 and mount.fs_type in _ANONYMOUS else None


def _mount_id(path: Path) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    finally:
        os.close(descriptor)
    return -1


def _devices_over(identity: Identity) -> list[int]:
    """The device itself, its partitions, and loop devices (with partitions) that it, or the file, backs."""
    found: list[int] = []
    if identity.device is not None:
        found += [identity.device, *_partitions(identity.device)]
    for loop in _entries(Path("/sys/block")):
        number = _number(loop)
        if number is None or not (loop / "loop").is_dir():
            continue
        backing = _backing_status(number)
        if backing is None:
            continue
        same_file = identity.file == (backing.st_dev, backing.st_ino)
        if same_file or (stat.S_ISBLK(backing.st_mode) and backing.st_rdev in found):
            found += [number, *_partitions(number)]
    return found


def _partitions(device: int) -> list[int]:
    return [number for entry in _entries(_sys(device)) if (entry / "partition").exists() and (number := _number(entry)) is not None]


def _backing_status(device: int) -> os.stat_result | None:
    """Status of the file behind a loop device, None for anything else (or where the file has been deleted: it is no path's any more)."""
    backing = _read(_sys(device) / "loop" / "backing_file")
    try:
        return Path(backing).stat() if backing else None
    except OSError:
        return None


def _swaps() -> set[int]:
    return {number for name in _swap_names() if (number := _rdev(name)) is not None}


def _swap_files() -> set[tuple[int, int]]:
    found = set()
    for name in _swap_names():
        try:
            status = Path(name).stat()
        except OSError:
            continue
        found.add((status.st_dev, status.st_ino))
    return found


def _swap_names() -> tuple[str, ...]:
    try:
        return parse_swaps(Path("/proc/swaps").read_bytes())
    except OSError:
        return ()


def _sys(device: int) -> Path:
    return SYS_BLOCK / f"{os.major(device)}:{os.minor(device)}"


def _number(entry: Path) -> int | None:
    major, _, minor = _read(entry / "dev").partition(":")
    return os.makedev(int(major), int(minor)) if minor else None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _rdev(name: str) -> int | None:
    try:
        status = Path(name).stat()
    except (OSError, ValueError):
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None


def _read(path: Path) -> str:
    """One value of sysfs; names are taken as they are but for the newline behind them."""
    try:
        return os.fsdecode(path.read_bytes().removesuffix(b"\n"))
    except OSError:
        return ""
