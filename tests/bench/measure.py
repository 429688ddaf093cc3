"""Runs commands and measures them: wall clock, processor time and peak memory of the process and of what it waited for."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.005


@dataclass(frozen=True)
class Sample:
    """One run. cpu_s: user and system time. peak_bytes: largest resident set of the process itself."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Ended:
    """What a process used when it was waited for."""

    code: int
    cpu_s: float
    peak_bytes: int


class Watch:
    """Notes a running process's largest resident set.

    getrusage(2) cannot tell: ru_maxrss of a child starts with what its parent had when it was forked. VmHWM belongs to the
    program alone; it is read every few milliseconds, since it is gone when the process is.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def wait(self) -> Ended:
        """Wait for the process."""
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._over.set()
        self._thread.join()
        return Ended(self._process.returncode, usage.ru_utime + usage.ru_stime, self._peak_bytes)

    def _sample(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status")
        while not self._over.wait(_SAMPLE_S):
            try:
                lines = status.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                if line.startswith("VmHWM:"):
                    self._peak_bytes = int(line.split()[1]) * 1024


def timed(command: Sequence[str | Path], env: dict[str, str] | None = None, expect: int = 0) -> Sample:
    """Run a command that must end with the expected code. Raises RuntimeError with its output where it does not."""
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"abupdate-bench-{os.getpid()}.log"
    with log.open("wb") as out:
        start = time.perf_counter()
        with subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, env=env) as process:
            ended = Watch(process).wait()
        wall_s = time.perf_counter() - start
    output = log.read_text("utf-8", "replace")
    log.unlink()
    if ended.code != expect:
        raise RuntimeError(f"{command[0]} ended with {ended.code} instead of {expect}:\n{output}")
    return Sample(wall_s, ended.cpu_s, ended.peak_bytes)


def cold() -> None:
    """Write everything out and empty the page cache, so that every run starts alike."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def median(samples: Sequence[Sample]) -> Sample:
    """The median of each figure."""
    return Sample(
        statistics.median(sample.wall_s for sample in samples),
        statistics.median(sample.cpu_s for sample in samples),
        int(statistics.median(sample.peak_bytes for sample in samples)),
    )


def spread(samples: Sequence[Sample]) -> str:
    """Fastest and slowest wall clock."""
    walls = [sample.wall_s for sample in samples]
    return f"{min(walls):.2f}-{max(walls):.2f}"
