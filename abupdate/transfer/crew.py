"""A few threads that work off one job together while the calling thread reports progress and stays open to signals."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from abupdate.errors import Failed

Progress = Callable[[int], None]

_REPORT_EVERY_S = 0.1


class Crew:
    """Runs one function in several threads until all return, the first fails, or the caller is interrupted.

    The function looks at `stopping` between steps, and tells what it has done with `advance`.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._changed = threading.Condition()
        self._running = 0
        self._done_bytes = 0
        self._error: BaseException | None = None

    @property
    def stopping(self) -> bool:
        """True once the work is to be abandoned."""
        return self.stop.is_set()

    def advance(self, count: int) -> None:
        """Count bytes as done."""
        with self._changed:
            self._done_bytes += count

    def run(self, work: Callable[[], None], progress: Progress, cancel: Callable[[], None] | None = None) -> None:
        """Run `work` in `crew_size()` threads and return when all have ended; the first error of any of them is raised here.

        `progress` is called in this thread with the bytes done so far, at most ten times a second and once at the end.
        `cancel` must end whatever a thread may wait for; it is called when the work is abandoned, KeyboardInterrupt included.
        """
        threads = [threading.Thread(target=self._guard, args=(work,), name=f"abupdate-{n}", daemon=True) for n in range(crew_size())]
        self._running = len(threads)
        try:
            with _without_signals():
                self._start(threads)
            self._watch(progress)
        except BaseException:
            self.stop.set()
            raise
        finally:
            if self.stopping and cancel is not None:
                cancel()
            for thread in threads:
                with contextlib.suppress(RuntimeError):  # never started
                    thread.join()
        if self._error is not None:
            raise self._error
        progress(self._done_bytes)

    def _start(self, threads: list[threading.Thread]) -> None:
        """As many as there is memory for: one is enough."""
        for number, thread in enumerate(threads):
            try:
                thread.start()
            except RuntimeError as error:
                with self._changed:
                    self._running -= len(threads) - number
                if not number:
                    raise Failed("no thread can be started", "there is not enough memory, or a limit on processes") from error
                return

    def _watch(self, progress: Progress) -> None:
        shown = -1
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._running == 0 or self.stopping, _REPORT_EVERY_S)
                over, done = self._running == 0 or self.stopping, self._done_bytes
            if over:
                return
            if done != shown:
                progress(done)
                shown = done

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self._changed:
                if self._error is None:
                    self._error = error
                self.stop.set()
                self._changed.notify_all()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """Signals wait, and the threads that are started here leave them to this one for good.

    A handler that raises inside Thread.start() leaves the threading module's lists in a state that it cannot mend itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def crew_size() -> int:
    """Threads that keep the processors busy while others wait for the medium; each holds a few MiB of buffers."""
    return min(len(os.sched_getaffinity(0)), 4) + 2
