"""Runs a verb in a child process that does something to itself at its k-th system call that can be felt: no sleeps, all of them countable.

A call is felt where it changes or reads a medium or takes the lock. The interpreter tells of each (sys.setprofile, in every thread),
before it is made; a signal that the process sends to itself there is dealt with before the call.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from abupdate.__main__ import main

_CALLS: dict[object, str] = {
    fcntl.flock: "flock",
    os.mkdir: "mkdir",
    os.rename: "rename",
    os.unlink: "unlink",
    os.fsync: "fsync",
    os.fdatasync: "fdatasync",
    os.write: "write",
    os.pwrite: "pwrite",
    os.pwritev: "pwritev",
    os.pread: "pread",
    os.preadv: "preadv",
}
# Where a call belongs: the innermost of these functions that is being executed, as (file, function).
_PHASES: dict[tuple[str, str], str] = {
    ("operations/board.py", "observe"): "observe",
    ("operations/board.py", "_check_store"): "check store",
    ("bootloaders/uboot.py", "commit"): "boot store",
    ("devices/statedir.py", "lock"): "lock",
    ("devices/statedir.py", "save"): "record",
    ("devices/statedir.py", "save_head"): "manifest",
    ("operations/keyring.py", "advance"): "keyring",
    ("transfer/install.py", "work"): "chunks",
    ("devices/block.py", "flush"): "flush",
    ("transfer/verify.py", "work"): "read back",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One call: its number from 1, its name, the phase of the verb it belongs to."""

    number: int
    call: str
    phase: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How the child ended (negative: by that signal), what it wrote, and the points that it reached."""

    code: int
    out: str
    err: str
    points: tuple[Point, ...]


Act = Callable[[Point], None]


def quiet(point: Point) -> None:
    """Do nothing."""


def at(number: int, sign: signal.Signals) -> Act:
    """Send the signal to this process at the point of this number."""

    def act(point: Point) -> None:
        if point.number == number:
            os.kill(os.getpid(), sign)

    return act


def run_with(act: Act, *argv: str | Path, before: Callable[[], None] = lambda: None) -> Ending:
    """Run the command line in a child of this process; `act` is called in it at every point, `before` once at its start."""
    out, err, said = (os.memfd_create(name) for name in ("out", "err", "said"))
    child = os.fork()
    if child == 0:
        _child(act, [str(part) for part in argv], before, (out, err, said))
    _, status = os.waitpid(child, 0)
    texts = [_drained(descriptor) for descriptor in (out, err, said)]
    points = tuple(_point(line) for line in texts[2].splitlines())
    return Ending(os.waitstatus_to_exitcode(status), texts[0], texts[1], points)


def _child(act: Act, argv: list[str], before: Callable[[], None], descriptors: tuple[int, int, int]) -> None:
    code = 70
    try:
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[1], 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        logging.getLogger().handlers.clear()
        # As a shell starts it: a runner in the background ignores Control-C, and its children would.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        hook = _hook(act, descriptors[2])
        threading.setprofile(hook)
        sys.setprofile(hook)
        try:
            code = main(argv)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _hook(act: Act, said: int) -> Callable[[FrameType, str, object], None]:
    numbers = iter(range(1, 1 << 30))

    def hook(frame: FrameType, event: str, argument: object) -> None:
        if event != "c_call":
            return
        try:
            call = _CALLS.get(argument)
        except TypeError:  # a bound method of something that cannot be hashed
            return
        if call is None:
            return
        point = Point(next(numbers), call, _phase(frame))
        os.write(said, f"{point.number}\t{point.call}\t{point.phase}\n".encode())
        act(point)

    return hook


def _phase(frame: FrameType | None) -> str:
    while frame is not None:
        code = frame.f_code
        found = _PHASES.get(("/".join(code.co_filename.split("/")[-2:]), code.co_name))
        if found:
            return found
        frame = frame.f_back
    return "other"


def _point(line: str) -> Point:
    number, call, phase = line.split("\t")
    return Point(int(number), call, phase)


def _drained(descriptor: int) -> str:
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read().decode(errors="replace")
