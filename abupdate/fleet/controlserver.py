"""The daemon's end of the control socket: many askers, one descriptor to wait on, nothing that blocks.

An asker who never finishes its question, never takes its answer or leaves is dropped; there are at most 16 at once.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from abupdate.errors import AbupdateError, Busy, ConfigError, Failed
from abupdate.fleet.control import MAX_QUESTION_BYTES, Question, decode, encode_answer, failure

MAX_ASKERS = 16
# For a whole question to come in, and for an answer to be taken.
PATIENCE_S = 5.0
_PIECE_BYTES = 64 << 10
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that waits for its answer. asker: who asks, unique for the server's life."""

    asker: int
    question: Question


@dataclass(slots=True)
class _Asker:
    connection: socket.socket
    number: int
    deadline_s: float
    question: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class ControlServer:
    """Wait for `fileno()` to be readable, or for `wake_s`; then `handle`. An answer may be given at any later time."""

    def __init__(self, path: Path) -> None:
        """Listen at `path` (mode 0600; its folder is made, 0700). Raises Busy where another daemon answers there, ConfigError, Failed."""
        self._path = path
        self._listener = _listen(path)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._askers: dict[int, _Asker] = {}
        self._descriptors: dict[int, int] = {}
        self._last = 0

    def fileno(self) -> int:
        """Readable when something is to be handled."""
        return self._poll.fileno()

    @property
    def wake_s(self) -> float:
        """When `handle` is to be called at the latest, by the clock of its `now_s`; infinity: when something comes."""
        return min((asker.deadline_s for asker in self._askers.values()), default=math.inf)

    def handle(self, now_s: float) -> tuple[Asked, ...]:
        """Take what has come in; the questions that are complete now."""
        asked: list[Asked] = []
        for descriptor, events in self._poll.poll(0):
            if descriptor == self._listener.fileno():
                self._accept(now_s)
                continue
            asker = self._askers[self._descriptors[descriptor]]
            if events & select.EPOLLIN and asker.answer is None:
                found = self._read(asker, now_s)
                if found is not None:
                    asked.append(found)
            elif events & select.EPOLLOUT and not events & _GONE:
                self._write(asker)
            elif events & _GONE:
                self._drop(asker)
        for asker in [one for one in self._askers.values() if one.deadline_s <= now_s]:
            self._drop(asker)
        return tuple(one for one in asked if self.waits(one))

    def waits(self, asked: Asked) -> bool:
        """Whether the asker is still there."""
        return asked.asker in self._askers

    def answer(self, asked: Asked, document: Mapping[str, object], now_s: float) -> None:
        """Answer a question; nothing happens where the asker has left."""
        asker = self._askers.get(asked.asker)
        if asker is not None:
            self._say(asker, document, now_s)

    def close(self) -> None:
        """Drop everybody and take the socket's name away."""
        for asker in list(self._askers.values()):
            self._drop(asker)
        self._poll.close()
        self._listener.close()
        with suppress(OSError):
            self._path.unlink()

    def _accept(self, now_s: float) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            # It has left again, or there are no descriptors: the next round tries again.
            return
        if len(self._askers) >= MAX_ASKERS:
            connection.close()
            return
        connection.setblocking(False)
        self._last += 1
        self._askers[self._last] = _Asker(connection, self._last, now_s + PATIENCE_S)
        self._descriptors[connection.fileno()] = self._last
        self._poll.register(connection, select.EPOLLIN | select.EPOLLRDHUP)

    def _read(self, asker: _Asker, now_s: float) -> Asked | None:
        try:
            piece = asker.connection.recv(_PIECE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            piece = b""
        if not piece:
            self._drop(asker)
            return None
        asker.question += piece
        line, end, rest = bytes(asker.question).partition(b"\n")
        if len(line) > MAX_QUESTION_BYTES or rest:
            self._say(asker, failure(ConfigError("a question is one line", f"of at most {MAX_QUESTION_BYTES} bytes")), now_s)
            return None
        if not end:
            return None
        try:
            question = decode(line)
        except AbupdateError as error:
            self._say(asker, failure(error), now_s)
            return None
        # How long the answer takes is the daemon's business; an asker who leaves meanwhile is noticed.
        asker.deadline_s = math.inf
        self._poll.modify(asker.connection, select.EPOLLRDHUP)
        return Asked(asker.number, question)

    def _say(self, asker: _Asker, document: Mapping[str, object], now_s: float) -> None:
        asker.answer = memoryview(encode_answer(document))
        asker.deadline_s = now_s + PATIENCE_S
        self._poll.modify(asker.connection, select.EPOLLOUT | select.EPOLLRDHUP)
        self._write(asker)

    def _write(self, asker: _Asker) -> None:
        assert asker.answer is not None
        try:
            count = asker.connection.send(asker.answer)
        except BlockingIOError:
            return
        except OSError:
            self._drop(asker)
            return
        asker.answer = asker.answer[count:]
        if not asker.answer:
            self._drop(asker)

    def _drop(self, asker: _Asker) -> None:
        del self._askers[asker.number]
        del self._descriptors[asker.connection.fileno()]
        self._poll.unregister(asker.connection)
        asker.connection.close()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear(path)
        # Made with its final mode: what is chmodded later was open to others for a moment.
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(MAX_ASKERS)
    except OSError as error:
        listener.close()
        blame = Failed if error.errno in (errno.EIO, errno.ENOSPC) else ConfigError
        raise blame(f"{path}: {error.strerror or error}", "check fleet.control in the configuration") from error
    except AbupdateError:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    """Take away the socket of a daemon that has ended without doing so. Raises Busy, ConfigError, OSError."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is no socket", "check fleet.control in the configuration")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            # Its queue is full: somebody listens.
            pass
    raise Busy("another fleet daemon runs", "`systemctl status abupdate-fleet`")
