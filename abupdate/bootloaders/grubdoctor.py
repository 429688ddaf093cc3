"""What `doctor` says about GRUB: whether it can write to the environment block where that lies, and whether a boot script counts there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from abupdate.bootloaders import grubvars
from abupdate.bootloaders.grubenvfile import GrubenvFile
from abupdate.errors import AbupdateError
from abupdate.formats import grubenv
from abupdate.formats.mountinfo import Mount, parse_mounts
from abupdate.model import Finding, Grade

TOPIC = "boot store"
_MAX_MOUNTINFO_BYTES = 4 << 20
_MAX_SCRIPT_BYTES = 1 << 20
_SECTOR_BYTES = 512
# GRUB overwrites blocks that it finds by reading: what keeps checksums of them, copies them on write or maps them anew is lost on it.
_WRITABLE = ("ext2", "ext3", "ext4", "vfat", "msdos", "xfs")
_ELSEWHERE = "put grubenv on a plain partition with ext4 or FAT, load it from there in grub.cfg, and name it in [bootloader] grubenv"


def inspect(path: Path, slots: tuple[str, ...], *, rauc: bool, mountinfo: Path, sysfs: Path, ext4: Path) -> Iterator[Finding]:
    """The findings. slots: those that are configured. rauc: RAUC's script is to be there instead of ours. mountinfo, sysfs, ext4:
    /proc/self/mountinfo, /sys/dev/block, /proc/fs/ext4."""
    try:
        block = grubenv.parse(GrubenvFile.at(path).read(), str(path))
        found = path.stat()
    except AbupdateError as error:
        yield Finding(Grade.FAIL, TOPIC, error.message, error.hint)
        return
    for name in grubvars.strangers_in(block, slots):
        text = f"{path} names {name[:40]!a} in ORDER or TRIAL, which is no slot that is configured: it is passed over"
        yield Finding(Grade.WARN, TOPIC, text, "the next commit leaves it out; [slots] names the slots, as the boot script does")
    problems = False
    for finding in _medium(path, found, mountinfo, sysfs, ext4):
        problems = True
        yield finding
    if not problems:
        yield Finding(Grade.OK, TOPIC, f"GRUB can write to {path} where it lies", "")
    yield from _script(path.with_name("grub.cfg"), rauc=rauc)


def _medium(path: Path, found: os.stat_result, mountinfo: Path, sysfs: Path, ext4: Path) -> Iterator[Finding]:
    if found.st_blocks * _SECTOR_BYTES < grubenv.SIZE_BYTES:
        hint = f"cp {path} {path}.new && mv {path}.new {path}"
        yield Finding(Grade.FAIL, TOPIC, f"{path} has a hole: GRUB cannot write where no block is", hint)
    mount = _mount_of(path, mountinfo)
    if mount is None:
        yield Finding(Grade.WARN, TOPIC, f"{mountinfo} does not say which file system {path} lies on", _ELSEWHERE)
        return
    if mount.fs_type not in _WRITABLE:
        text = f"{path} lies on {mount.fs_type}, to which GRUB cannot write: boots would not be counted, and no trial would start"
        yield Finding(Grade.FAIL, TOPIC, text, _ELSEWHERE)
    if not mount.read_write:
        yield Finding(Grade.FAIL, TOPIC, f"{mount.point} is mounted read-only: nothing can be armed, confirmed or refilled", "mount it rw")
    try:
        name = (sysfs / f"{os.major(mount.device)}:{os.minor(mount.device)}").resolve(strict=True).name
    except OSError:
        name = ""
    if "data=journal" in mount.options or _journals(ext4 / name / "options"):
        text = f"{mount.point} is mounted with data=journal: what GRUB has counted can be undone by the journal"
        hint = "mount it without that option; where the file system has it as its default: tune2fs -o ^journal_data"
        yield Finding(Grade.FAIL, TOPIC, text, hint)
    if name.startswith("dm-"):
        text = f"{path} lies on {name}, a device-mapper device (LVM, encryption): GRUB does not write to it"
        yield Finding(Grade.FAIL, TOPIC, text, _ELSEWHERE)
    elif name.startswith("md"):
        text = f"{path} lies on {name}, a RAID: GRUB does not write to it"
        yield Finding(Grade.FAIL, TOPIC, text, _ELSEWHERE)


def _journals(options: Path) -> bool:
    """Whether ext4 keeps data in its journal: mountinfo does not show what is the file system's own default."""
    try:
        return "data=journal" in options.read_text(errors="replace").split()
    except OSError:
        return False


def _mount_of(path: Path, mountinfo: Path) -> Mount | None:
    """The mount that the file is reached through, None where nothing tells."""
    try:
        with mountinfo.open("rb") as file:
            mounts = parse_mounts(file.read(_MAX_MOUNTINFO_BYTES))
    except OSError:
        return None
    parents = [str(parent) for parent in Path(os.path.realpath(path)).parents]
    over = [mount for mount in mounts if mount.point in parents]
    # Of two on one place the later one lies on top.
    return max(reversed(over), key=lambda mount: len(mount.point), default=None)


def _script(config: Path, *, rauc: bool) -> Iterator[Finding]:
    try:
        with config.open("rb") as file:
            text = file.read(_MAX_SCRIPT_BYTES)
    except OSError as error:
        hint = "see that GRUB runs a script that counts in this block; each boot must have abupdate.slot= on its command line"
        yield Finding(Grade.WARN, TOPIC, f"{config}: {error.strerror}: no boot script beside the environment block", hint)
        return
    # The argument alone may come from GRUB_CMDLINE_LINUX in a script that counts nothing.
    ours, theirs = b"abupdate.slot=" in text and b"_LEFT" in text, b"_TRY" in text
    if theirs if rauc else ours:
        name = "RAUC's boot script" if rauc else "abupdate's boot script"
        yield Finding(Grade.OK, TOPIC, f"{config} is {name}", "")
    elif rauc and ours:
        yield Finding(Grade.FAIL, TOPIC, f"{config} is abupdate's boot script, not RAUC's", 'take dialect = "rauc" out of [bootloader]')
    elif theirs:
        hint = 'set dialect = "rauc" in [bootloader], or copy bootloader-hooks/grub/grub.cfg there'
        yield Finding(Grade.FAIL, TOPIC, f"{config} is RAUC's boot script, which does not know abupdate's counters", hint)
    else:
        said = f"{config} boots the slots without counting: a trial that fails would never be left"
        yield Finding(Grade.FAIL, TOPIC, said, f"copy bootloader-hooks/grub/grub.cfg to {config} and edit its block `board`")
