"""fw_setenv's own lock, taken the way libubootenv takes it, so that neither undoes what the other writes.

libubootenv 0.3 holds flock(LOCK_EX) on /var/lock/fw_printenv.lock from before it reads until after it has written.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from abupdate.errors import Busy

LOCK_PATH = Path("/var/lock/fw_printenv.lock")
WRITE_WAIT_S = 10.0
_READ_WAIT_S = 2.0
# fw_setenv holds the lock for a millisecond or two; waiting longer between tries would starve beside a script of many.
_RETRY_S = 0.001
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def lock_problem(path: Path = LOCK_PATH) -> str:
    """Empty, or why the lock cannot be shared with fw_setenv here (one line, for `doctor`)."""
    try:
        os.close(_open(path))
    except OSError as error:
        return f"{path}: {error.strerror}: a fw_setenv that runs at the same time could be undone"
    return ""


@contextmanager
def environment_lock(path: Path, fallback: Path, *, writing: bool, wait_s: float = WRITE_WAIT_S) -> Iterator[None]:
    """Hold the lock; on `fallback` (fw_env.config itself) where `path` cannot be opened: abupdate is then safe from itself alone.

    Writing waits up to `wait_s` and raises Busy; reading waits up to 2 s and then goes on without it: a copy that is being written
    shows a wrong checksum and the other one counts.
    """
    with ExitStack() as stack:
        if not _taken(stack, path, fallback, wait_s if writing else min(wait_s, _READ_WAIT_S), exclusive=writing) and writing:
            raise Busy("another program holds the lock of the U-Boot environment", f"see who has {path} open: fuser {path}")
        yield


def _taken(stack: ExitStack, path: Path, fallback: Path, wait_s: float, *, exclusive: bool) -> bool:
    """Open and lock; the stack lets go. False where somebody else holds it; true as well where there is nothing to lock."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fd, is_lock = _open(path), True
        except OSError:
            try:
                fd, is_lock = os.open(fallback, _FLAGS), False
            except OSError:
                return True
        stack.callback(os.close, fd)
        if not _locked(fd, deadline, exclusive=exclusive):
            return False
        if not is_lock or _is(fd, path):
            return True
        # Somebody has put another one in its place meanwhile.
        stack.close()
        if time.monotonic() >= deadline:
            return False


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _open(path: Path) -> int:
    _keep_others_out(path)
    # First without O_CREAT: with fs.protected_regular even root may not "create" a file that another user made in /run/lock.
    # flock needs no write permission.
    try:
        return os.open(path, _FLAGS)
    except FileNotFoundError:
        return os.open(path, _FLAGS | os.O_CREAT, 0o600)


def _keep_others_out(path: Path) -> None:
    """Whoever can open the lock can hold it for ever, and a trial could then be neither confirmed nor ended.

    /run/lock is open to everybody, and fw_setenv makes its lock readable to all. Root takes that away; a lock that another user has
    made goes, also for fw_setenv, which cannot open such a one at all (fs.protected_regular).
    """
    if os.geteuid() != 0:
        return
    with suppress(OSError):
        found = path.lstat()
        if found.st_uid != 0:
            path.unlink()
        elif stat.S_ISREG(found.st_mode) and found.st_mode & 0o077:
            path.chmod(0o600)


def _locked(fd: int, deadline: float, *, exclusive: bool) -> bool:
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_RETRY_S)
        else:
            return True
