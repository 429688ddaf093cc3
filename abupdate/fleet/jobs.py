"""Child processes of the daemon: whatever can take long or needs much memory runs beside it, and is looked after without waiting.

A job is a command of abupdate's own that ends with the CLI contract's exit code and one JSON document on its standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_KEPT_BYTES = 64 << 10
_READ_BYTES = 16 << 10
_TERM_GRACE_S = 10.0
_GIVE_UP_S = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """code: exit code, negative: the signal that ended it. fault: empty, or why it failed, in one line. document: what it printed."""

    code: int
    fault: str
    document: Mapping[str, object] = field(default_factory=dict)


class Job:
    """One running child. `descriptor` becomes readable when `poll` has something to do."""

    def __init__(self, command: Sequence[str], limit_s: float, now_s: float, *, said: bytes = b"", kept: tuple[int, ...] = ()) -> None:
        """Start it. limit_s: after that it is ended. said: for its standard input, at most 4 KiB. kept: descriptors that it inherits.

        Raises OSError.
        """
        self._limit_s = limit_s
        self._deadline_s = now_s + limit_s
        self._stage = 0
        self._output = bytearray()
        self._late = False
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            # A pipe takes this much in one go.
            os.write(writer, said[: select.PIPE_BUF])
        finally:
            os.close(writer)
        try:
            # Its own session: a Ctrl-C in the daemon's terminal is the daemon's to deal with.
            self._process = subprocess.Popen(
                command, stdin=reader, stdout=subprocess.PIPE, pass_fds=kept, start_new_session=True, bufsize=0
            )
        finally:
            os.close(reader)
        assert self._process.stdout is not None
        self.descriptor = self._process.stdout.fileno()
        os.set_blocking(self.descriptor, False)

    @property
    def wake_s(self) -> float:
        """When `poll` is to be called at the latest."""
        return self._deadline_s

    def poll(self, now_s: float) -> Ended | None:
        """Look after it without waiting; how it ended, None before. Not to be called again after that."""
        at_end = self._drain()
        code = self._process.poll()
        if code is None and at_end:
            # It has closed its output and is about to end.
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(0.05)
        if code is not None:
            self._drain()
            self._close()
            return self._ended(code)
        if now_s >= self._deadline_s:
            if self._stage == 2:
                # In an uninterruptible sleep: it is left to the kernel.
                self._close()
                return Ended(-signal.SIGKILL, "does not even end on SIGKILL")
            self._late = True
            self._end(now_s)
        return None

    def stop(self, now_s: float) -> None:
        """Ask it to end; `poll` tells when it has."""
        if self._stage == 0:
            self._end(now_s)

    def kill(self) -> None:
        """End it at once and forget it."""
        self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._close()

    def _end(self, now_s: float) -> None:
        self._signal(signal.SIGKILL if self._stage else signal.SIGTERM)
        self._deadline_s = now_s + (_GIVE_UP_S if self._stage else _TERM_GRACE_S)
        self._stage += 1

    def _signal(self, number: signal.Signals) -> None:
        # start_new_session made the child's number its group's; what it has started ends with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _drain(self) -> bool:
        """Keep what was printed; True at the end of it."""
        while True:
            try:
                data = os.read(self.descriptor, _READ_BYTES)
            except BlockingIOError:
                return False
            if not data:
                return True
            self._output = (self._output + data)[-_KEPT_BYTES:]

    def _close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ended(self, code: int) -> Ended:
        try:
            document = json.loads(self._output)
        except ValueError:
            document = {}
        if not isinstance(document, dict):
            document = {}
        if self._late:
            return Ended(code, f"took longer than {self._limit_s:g} s", document)
        if code == 0:
            return Ended(0, "", document)
        said = str(document.get("error", "")) or (f"ended by signal {-code}" if code < 0 else f"exit code {code}")
        return Ended(code, said, document)
