"""The crew: errors surface, interrupts end it, no thread stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest

from abupdate.errors import Failed
from abupdate.transfer.crew import Crew, crew_size


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("abupdate")]


def test_all_of_it_is_done_and_reported() -> None:
    crew, seen = Crew(), list[int]()
    work = iter(range(100))
    lock = threading.Lock()

    def job() -> None:
        while True:
            with lock:
                if next(work, None) is None:
                    return
            crew.advance(10)

    crew.run(job, seen.append)
    assert seen[-1] == 1000
    assert seen == sorted(seen)
    assert names() == []


def test_progress_comes_in_the_calling_thread_while_work_goes_on() -> None:
    crew = Crew()
    reported = threading.Event()

    def job() -> None:
        crew.advance(1)
        assert reported.wait(20)

    def progress(done: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        reported.set()

    crew.run(job, progress)


def test_first_error_is_raised_and_the_others_stop() -> None:
    crew = Crew()
    first = threading.Lock()

    def job() -> None:
        if first.acquire(blocking=False):
            raise Failed("the medium is gone")
        assert crew.stop.wait(20)

    with pytest.raises(Failed, match="gone"):
        crew.run(job, lambda done: None)
    assert names() == []


def test_error_of_the_progress_report_ends_it_too() -> None:
    crew = Crew()

    def job() -> None:
        crew.advance(1)
        assert crew.stop.wait(20)

    def progress(done: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        crew.run(job, progress)
    assert names() == []


def test_control_c_cancels_what_waits() -> None:
    crew = Crew()
    waiting = threading.Barrier(crew_size() + 1)
    freed = threading.Event()

    def job() -> None:
        waiting.wait(20)
        assert freed.wait(20)

    def interrupt() -> None:
        waiting.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    killer = threading.Thread(target=interrupt)
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        crew.run(job, lambda done: None, freed.set)
    killer.join()
    assert crew.stopping
    assert names() == []


_INTERRUPTED_WHILE_STARTING = """
import os, signal, sys
from abupdate.errors import Interrupted
from abupdate.transfer.crew import Crew, crew_size

def interrupt(number, frame):
    raise Interrupted("interrupted")

started = 0

def watch(frame, event, called):
    global started
    if event == "c_return" and getattr(called, "__name__", "") == "start_new_thread":
        started += 1
        if started == 2:
            os.kill(os.getpid(), signal.SIGTERM)

crew = Crew()
signal.signal(signal.SIGTERM, interrupt)
sys.setprofile(watch)
try:
    crew.run(lambda: crew.stop.wait(5), lambda done: None)
except Interrupted:
    assert started == crew_size(), started
    assert crew.stopping
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    print("interrupted, once all threads ran")
"""


def test_a_signal_while_threads_start_waits_until_they_run() -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED_WHILE_STARTING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("interrupted, once all threads ran\n", "")


def test_fewer_threads_than_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that could be started do all of the work; without any it is an error that may pass."""
    start = threading.Thread.start
    for room in (1, 0):
        left = [room]

        def limited(thread: threading.Thread, left: list[int] = left) -> None:
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)
        crew, done = Crew(), bytearray()
        if room:
            crew.run(partial(done.append, 1), lambda _: None)
            assert done == b"\1"
        else:
            with pytest.raises(Failed, match="thread"):
                crew.run(partial(done.append, 1), lambda _: None)
