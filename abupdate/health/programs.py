"""Which files in health.d are health programs, and whether they may be trusted to run as root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from abupdate.errors import ConfigError

MAX_PROGRAMS = 256
_LEFTOVERS = ("~", ".bak", ".dpkg-old", ".dpkg-new", ".dpkg-dist", ".rpmsave", ".rpmnew")


def find_programs(directory: Path) -> tuple[Path, ...]:
    """Executable regular files (links followed), sorted by name; an absent directory is an empty one.

    Hidden files, editors' and packagers' leftovers and files without an execute bit are passed over. Raises ConfigError for a
    program that others could have put there, and when the directory cannot be read or holds more than 256 entries of ours.
    """
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}", "[health] dir names the directory of health programs") from None
    if problem := distrust(directory):
        # Who can write it decides which programs there are.
        raise ConfigError(f"{directory}: {problem}", f"chown root {directory} && chmod go-w {directory}")
    wanted = [directory / name for name in names if not name.startswith(".") and not name.endswith(_LEFTOVERS)]
    programs = tuple(path for path in wanted if _is_program(path))
    if len(programs) > MAX_PROGRAMS:
        raise ConfigError(f"{directory}: {len(programs)} health programs, {MAX_PROGRAMS} are the limit")
    for path in programs:
        if problem := distrust(path):
            raise ConfigError(f"{path}: {problem}", f"chown root {path} && chmod go-w {path}")
    return programs


def distrust(path: Path) -> str:
    """Empty, or why a program must not be run, or a folder's programs: others can write it, or it is neither root's nor the caller's."""
    try:
        found = path.stat()
    except OSError as error:
        return error.strerror or "cannot be looked at"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "group or others can write it"
    if found.st_uid not in (0, os.geteuid()):
        return f"it belongs to user {found.st_uid}, neither root nor the caller"
    return ""


def _is_program(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111)
