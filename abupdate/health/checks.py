"""Runs health programs one after the other without ever blocking: the service's loop pets the watchdog meanwhile.

A program gets a session of its own, four variables (PATH, LANG, HOME and what the caller adds), / as its folder, umask 022, no open
files but /dev/null (or what the caller says) to read and a pipe to write on, of which the last line is kept; limits on the memory and
CPU time of each of its processes, a time limit for it as a whole (SIGTERM, then SIGKILL to the whole group), and a place at the front
when memory runs out. Exit 0 is ok, 1 degraded, 2 critical; any other end is critical.

What a program leaves running is killed: its group at once, and what has left the group (daemons) as soon as it is orphaned, because
orphans become children of this process while a program runs. How many processes there may be, and their memory together, only a
control group can bound: the systemd units set TasksMax= and MemoryMax=.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from abupdate.health.programs import distrust
from abupdate.health.results import CheckResult, Health, Round, last_line

DEFAULT_TIMEOUT_S = 10.0
_TERM_GRACE_S = 1.0
_KILL_GRACE_S = 2.0
_KEPT_BYTES = 4096
_READ_BYTES = 65536
_READS_PER_POLL = 16
_PIPE_BYTES = 1 << 20
_ORPHANS_S = 0.25
_PR_SET_CHILD_SUBREAPER = 36
DEFAULT_MEMORY_BYTES = 512 << 20
# Before the service (-900 under systemd) and before what the device is there for.
_OOM_SCORE = b"500"
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
_POLL_S = 0.02
_ORPHAN_POLL_S = 0.002


@dataclass(slots=True)
class _Running:
    """A program between its start and its result."""

    path: Path
    process: subprocess.Popen[bytes]
    output: int
    started_s: float
    siblings: frozenset[int]
    tail: bytes = b""
    at_end: bool = False
    termed_s: float | None = None
    killed_s: float | None = None


class CheckRun:
    """Rounds over a fixed list of programs: `start`, then `poll` until it returns the round."""

    def __init__(
        self,
        programs: Sequence[Path],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        environ: Mapping[str, str] | None = None,
        stop_at_critical: bool = False,
        said: bytes = b"",
    ) -> None:
        """timeout_s: of each program. memory_bytes: of each of its processes, what is private and writable.

        environ: added to the bounded one. stop_at_critical: end the round at the first such word. said: for the standard input of each
        program, at most 4096 bytes.
        """
        self._programs = tuple(programs)
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._environ = {**_ENVIRONMENT, **(environ or {})}
        self._stop_at_critical = stop_at_critical
        self._said = said
        self._pending: deque[Path] = deque()
        self._results: list[CheckResult] = []
        self._running: _Running | None = None
        self._active = False
        self._unreaped: set[int] = set()

    @property
    def active(self) -> bool:
        """True between `start` and the round's end."""
        return self._active

    def start(self, now_s: float) -> None:
        """Begin a round; one that is active is given up first."""
        self.cancel()
        self._pending.extend(self._programs)
        self._active = True
        self._next(now_s)

    def poll(self, now_s: float) -> Round | None:
        """Look after the running program without waiting; the round once it has ended, None before (and when none is active)."""
        if not self._active:
            return None
        if self._running is not None:
            result = self._look_after(self._running, now_s)
            if result is None:
                return None
            self._ended(result, now_s)
        if self._running is not None or self._pending:
            return None
        self._active = False
        return Round(tuple(self._results))

    def cancel(self) -> None:
        """Kill what runs and forget the round."""
        if self._running is not None:
            running, self._running = self._running, None
            _signal_group(running, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(0.2)
            self._close(running)
        self._pending.clear()
        self._results = []
        self._active = False

    def _ended(self, result: CheckResult, now_s: float) -> None:
        self._results.append(result)
        self._running = None
        if self._stop_at_critical and result.health is Health.CRITICAL:
            self._pending.clear()
        self._next(now_s)

    def _next(self, now_s: float) -> None:
        while self._pending and self._running is None:
            path = self._pending.popleft()
            problem = distrust(path)
            if not problem:
                try:
                    self._running = self._spawn(path, now_s)
                except OSError as error:
                    problem = f"cannot be run: {error.strerror}"
                except subprocess.SubprocessError as error:
                    problem = f"cannot be run: {error}"
            if problem:
                self._results.append(CheckResult(path.name, Health.CRITICAL, problem, 0.0))
                if self._stop_at_critical:
                    self._pending.clear()

    def _spawn(self, path: Path, now_s: float) -> _Running:
        cpu_s = max(1, round(self._timeout_s) + 1)
        # RLIMIT_DATA counts what is private and writable. RLIMIT_AS would also count address space that Go, Java and node merely reserve.
        wanted = {resource.RLIMIT_DATA: self._memory_bytes, resource.RLIMIT_CPU: cpu_s, resource.RLIMIT_CORE: 0}
        bounds = {kind: _bounded(kind, value) for kind, value in wanted.items()}
        ignored = [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]

        def limits() -> None:
            for kind, pair in bounds.items():
                resource.setrlimit(kind, pair)
            # Whoever started this process in the background may have had signals ignored.
            for number in ignored:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            with contextlib.suppress(OSError):
                score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
                os.write(score, _OOM_SCORE)
                os.close(score)

        siblings = frozenset(_children())
        _adopt_orphans(adopt=True)
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):
            # Room for what a talkative program prints between two polls.
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        told = subprocess.DEVNULL
        try:
            os.set_blocking(write_end, True)
            if self._said:
                told = _filled(self._said)
            process = subprocess.Popen(
                [path],
                stdin=told,
                stdout=write_end,
                stderr=write_end,
                cwd="/",
                env=self._environ,
                start_new_session=True,
                umask=0o022,
                # The service has one thread, so that code between fork and exec is safe; nothing else limits before the program runs.
                preexec_fn=limits,
            )
        except BaseException:
            os.close(read_end)
            _adopt_orphans(adopt=False)
            raise
        finally:
            os.close(write_end)
            if told != subprocess.DEVNULL:
                os.close(told)
        return _Running(path, process, read_end, now_s, siblings)

    def _look_after(self, running: _Running, now_s: float) -> CheckResult | None:
        _drain(running)
        pid = running.process.pid
        # Looked at but not reaped: until then the group's number cannot be given to anybody else.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            _signal_group(running, signal.SIGKILL)
            code = running.process.wait()
            _drain(running)
            self._close(running)
            return self._result(running, code, now_s)
        if now_s - running.started_s > self._timeout_s and running.termed_s is None:
            running.termed_s = now_s
            _signal_group(running, signal.SIGTERM)
        elif running.termed_s is not None and running.killed_s is None and now_s - running.termed_s > _TERM_GRACE_S:
            running.killed_s = now_s
            _signal_group(running, signal.SIGKILL)
        elif running.killed_s is not None and now_s - running.killed_s > _KILL_GRACE_S:
            # In an uninterruptible sleep: it is left to the kernel, which says enough about this slot.
            self._close(running)
            return CheckResult(running.path.name, Health.CRITICAL, "does not even end on SIGKILL", now_s - running.started_s)
        return None

    def _result(self, running: _Running, code: int, now_s: float) -> CheckResult:
        duration_s = max(0.0, now_s - running.started_s)
        said = last_line(running.tail)
        if running.termed_s is not None:
            reason = f"no answer within {self._timeout_s:g} s" + (f", last said: {said}" if said else "")
            return CheckResult(running.path.name, Health.CRITICAL, reason, duration_s)
        if code in (Health.OK, Health.DEGRADED, Health.CRITICAL):
            return CheckResult(running.path.name, Health(code), said, duration_s)
        end = f"ended by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        return CheckResult(running.path.name, Health.CRITICAL, f"{end}: {said}" if said else end, duration_s)

    def _close(self, running: _Running) -> None:
        """End what is left of the program, wherever it went; waits a moment for that."""
        self._unreaped = {pid for pid in self._unreaped if not _reaped(pid)}
        end_s = time.monotonic() + _ORPHANS_S
        # The children of an orphan are ours only when it is dead: again until none is left. (A daemon may have none for a while.)
        while strays := _children() - running.siblings - self._unreaped - {running.process.pid}:
            for pid in strays:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            left = {pid for pid in strays if not _reaped(pid)}
            if left and time.monotonic() > end_s:
                # In an uninterruptible sleep: their end is collected some later time.
                self._unreaped |= left
                break
            if left:
                time.sleep(_ORPHAN_POLL_S)
        _adopt_orphans(adopt=False)
        os.close(running.output)


def run_once(run: CheckRun, clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)) -> Round:
    """One round, waited for: the core of `abupdate health`. At most (timeout + 3 s) a program."""
    run.start(clock())
    try:
        while (done := run.poll(clock())) is None:
            time.sleep(_POLL_S)
    finally:
        run.cancel()
    return done


def _bounded(kind: int, value: int) -> tuple[int, int]:
    """Both limits at `value`, or lower where whoever started us has less to give."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    return value, value


def _filled(data: bytes) -> int:
    """The end to read of a pipe that holds the data and has ended."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        # A pipe takes this much in one go.
        os.write(writer, data[: select.PIPE_BUF])
    finally:
        os.close(writer)
    return reader


def _drain(running: _Running) -> None:
    """Keep the end of what was printed; at most 1 MiB a call, so that a flood does not hold the caller."""
    for _ in range(_READS_PER_POLL):
        try:
            data = os.read(running.output, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            running.at_end = True
            return
        running.tail = (running.tail + data)[-_KEPT_BYTES:]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _signal_group(running: _Running, number: signal.Signals) -> None:
    # start_new_session made the program's number its group's; the group may be empty or, before exec, not yet there.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(running.process.pid, number)


def _adopt_orphans(*, adopt: bool) -> None:
    """Whether orphaned descendants become children of this process instead of init's."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _children() -> set[int]:
    """Numbers of this process's children, zombies among them."""
    try:
        tasks = Path("/proc/self/task").iterdir()
        return {int(word) for task in tasks for word in (task / "children").read_text().split()}
    except OSError:
        # A kernel without CONFIG_PROC_CHILDREN.
        return {int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _parent(folder) == os.getpid()}


def _parent(folder: Path) -> int:
    try:
        # The name in parentheses may hold anything.
        return int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _reaped(pid: int) -> bool:
    """True once a child is dead and its end collected."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
