"""Children of the fleet's daemon: how they end, what they said, and that none outlives its limit. The processes are real."""

from __future__ import annotations

import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from abupdate.fleet.jobs import Ended, Job


@pytest.fixture
def jobs() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(jobs: ExitStack, source: str, *, limit_s: float = 30.0, said: bytes = b"") -> Job:
    job = Job((sys.executable, "-c", source), limit_s, time.monotonic(), said=said)
    jobs.callback(job.kill)
    return job


def ended(jobs: ExitStack, job: Job) -> Ended:
    """Wait as the daemon does: on its descriptor, and until it wants to be looked after."""
    while True:
        select.select([job.descriptor], [], [], max(0.0, min(job.wake_s - time.monotonic(), 1.0)))
        done = job.poll(time.monotonic())
        if done is not None:
            jobs.pop_all()
            return done


def test_success_brings_the_document(jobs: ExitStack) -> None:
    assert ended(jobs, start(jobs, 'print(\'{"slot": "B"}\')')) == Ended(0, "", {"slot": "B"})


@pytest.mark.parametrize(
    ("source", "code", "fault"),
    [
        ('print(\'{"error": "no such bundle", "hint": "x"}\'); raise SystemExit(3)', 3, "no such bundle"),
        ("raise SystemExit(5)", 5, "exit code 5"),
        ("print('[]'); raise SystemExit(1)", 1, "exit code 1"),
        ("import os; os.kill(os.getpid(), 9)", -9, "ended by signal 9"),
    ],
)
def test_failures_say_why(jobs: ExitStack, source: str, code: int, fault: str) -> None:
    done = ended(jobs, start(jobs, source))
    assert (done.code, done.fault) == (code, fault)


def test_what_it_is_told_comes_on_its_standard_input_and_ends(jobs: ExitStack) -> None:
    done = ended(jobs, start(jobs, "import json, sys; print(json.dumps({'got': sys.stdin.read()}))", said=b"hello\n"))
    assert done.document == {"got": "hello\n"}


def test_a_flood_on_its_output_is_bounded_and_does_not_stop_it(jobs: ExitStack) -> None:
    assert ended(jobs, start(jobs, "import sys; sys.stdout.write('x' * 3_000_000)")) == Ended(0, "", {})


def test_one_that_takes_too_long_is_ended(jobs: ExitStack) -> None:
    done = ended(jobs, start(jobs, "import time; time.sleep(60)", limit_s=0.2))
    assert (done.code, done.fault) == (-signal.SIGTERM, "took longer than 0.2 s")


def test_one_that_ignores_sigterm_is_killed_after_a_grace(jobs: ExitStack) -> None:
    job = start(jobs, "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)")
    select.select([job.descriptor], [], [], 20)
    now_s = time.monotonic()
    job.stop(now_s)
    assert job.poll(now_s) is None
    assert now_s < job.wake_s < now_s + 60
    # The grace is over, by the clock that is handed in.
    assert job.poll(job.wake_s) is None
    assert ended(jobs, job).code == -signal.SIGKILL


def test_its_own_children_end_with_it(jobs: ExitStack) -> None:
    source = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    job = start(jobs, source)
    select.select([job.descriptor], [], [], 20)
    job.poll(time.monotonic())
    job.stop(time.monotonic())
    assert ended(jobs, job).code == -signal.SIGTERM, "the end of its output is seen, so that nobody holds it open any more"
