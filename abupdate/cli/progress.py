"""Progress of flash and verify on standard error: a bar, JSON lines, or nothing."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import suppress

from abupdate.ports import Progress

_JSON_EVERY_S = 0.5
_NAMES = {"write": "writing", "verify": "verifying"}


def progress(kind: str, *, quiet: bool) -> Progress:
    """The reporter for --progress KIND; "auto" is a bar on a terminal and nothing elsewhere."""
    if kind == "json":
        return _Lines()
    if kind == "bar" or (kind == "auto" and not quiet and sys.stderr.isatty()):
        return _Bar()
    return lambda phase, done, total: None


class _Lines:
    """One JSON object a line, at most two a second, and always the last of a phase."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now < self._next:
            return
        self._next = now + _JSON_EVERY_S
        _show(json.dumps({"phase": phase, "done_bytes": done, "total_bytes": total}) + "\n")


class _Bar:
    """A line that is drawn over itself whenever it changes."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        width = max(10, min(40, shutil.get_terminal_size().columns - 40))
        filled = width * done // total if total else width
        percent = 100 * done // total if total else 100
        line = f"{_NAMES[phase]:>9} [{'#' * filled}{'.' * (width - filled)}] {percent:3d}% of {total / (1 << 20):.0f} MiB"
        if line != self._last:
            self._last = line
            end = "\n" if done >= total else ""
            _show(f"\r{line}{end}")


def _show(text: str) -> None:
    """A watcher who has left is no reason to end an update."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
