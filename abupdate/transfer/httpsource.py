"""A bundle from an http(s) URL, read once and in order; a broken transfer goes on where it stopped. Implements ports.WaitingSource.

Nothing that a server says is believed: what is read is verified against what was signed, as from any other source.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, urljoin, urlsplit

from abupdate import __version__
from abupdate.errors import ConfigError, Failed
from abupdate.log import log

# Between two bytes, not for the whole transfer: a bundle takes as long as the network needs.
TIMEOUT_S = 30.0
# In a row without a byte more than before; together they wait for about a minute.
_TRIES = 6
_LONGEST_WAIT_S = 30.0
_REDIRECTS = 5
_SKIP_BYTES = 1 << 16


class _Broken(Exception):
    """The transfer broke off and may be tried again."""


class HttpSource:
    """One URL. Redirects are followed, from https to https only."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, first_wait_s: float = 1.0) -> None:
        """Ask for it. first_wait_s: before the first further try, doubled each time. Raises ConfigError, Failed."""
        self._url = url
        self._timeout_s = timeout_s
        self._first_wait_s = first_wait_s
        self._position = 0
        self._size_bytes: int | None = None
        self._validator = ""
        self._cancelled = threading.Event()
        self._socket: socket.socket | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        _check(urlsplit(url), url)
        self._retrying(self._connect)

    @property
    def size_bytes(self) -> int | None:
        """As the server says it, None where it does not."""
        return self._size_bytes

    @property
    def seekable(self) -> bool:
        """Never."""
        return False

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._position

    def read_into(self, buffer: memoryview) -> int:
        """See ports.Source. Raises Failed where the server stays away, and where `cancel` was called."""
        done = 0
        while done < len(buffer):
            count = self._retrying(lambda at=done: self._read(buffer[at:]))  # type: ignore[misc]
            if count == 0:
                break
            done += count
        return done

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end: how the bundle's head is read."""
        buffer = bytearray(count)
        with memoryview(buffer) as view:
            got = self.read_into(view)
        return bytes(buffer[:got])

    def skip(self, count: int) -> int:
        """See ports.Source: the bytes are read and dropped."""
        scratch = memoryview(bytearray(min(count, _SKIP_BYTES)))
        done = 0
        while done < count and (got := self.read_into(scratch[: min(len(scratch), count - done)])):
            done += got
        return done

    def silent(self, wait_s: float) -> bool:
        """See ports.WaitingSource: nothing comes after the length that the server has told."""
        return self._size_bytes is not None and self._position >= self._size_bytes

    def cancel(self) -> None:
        """End a `read_into` that waits in another thread, now or later."""
        self._cancelled.set()
        waiting = self._socket
        if waiting is not None:
            with suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        if self._response is not None:
            self._response.close()
        if self._connection is not None:
            self._connection.close()
        self._connection = self._response = self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _retrying(self, call: Callable[[], int]) -> int:
        wait_s = self._first_wait_s
        for left in reversed(range(_TRIES)):
            if self._cancelled.is_set():
                raise Failed(f"reading {self._url} was interrupted")
            try:
                return call()
            except _Broken as error:
                self.close()
                if not left:
                    raise Failed(f"{self._url}: {error}", "is the server up, and the network?") from error
                log.info("%s: %s; trying again in %g s", self._url, error, wait_s)
                self._cancelled.wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        raise AssertionError("the last try returns or raises")

    def _read(self, view: memoryview) -> int:
        if self._response is None:
            self._connect()
        assert self._response is not None
        try:
            count = self._response.readinto(view)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(_words(error)) from error
        if count == 0 and self._size_bytes is not None and self._position < self._size_bytes:
            raise _Broken(f"ended after {self._position} of {self._size_bytes} bytes")
        self._position += count
        return count

    def _connect(self) -> int:
        """Ask for what is still missing. Raises _Broken, Failed."""
        url = self._url
        for _ in range(_REDIRECTS + 1):
            response = self._ask(url)
            if response.status not in (301, 302, 303, 307, 308):
                self._begin(response)
                return 0
            there = urljoin(url, response.getheader("Location", ""))
            self.close()
            if url.startswith("https:") and not there.startswith("https:"):
                raise Failed(f"{self._url} leads to {there}, which is not encrypted", "ask whoever runs the server")
            _check(urlsplit(there), there)
            url = there
        raise Failed(f"{self._url} redirects more than {_REDIRECTS} times", "ask whoever runs the server")

    def _ask(self, url: str) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        headers = {"User-Agent": f"abupdate/{__version__}", "Accept-Encoding": "identity", "Connection": "close"}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
            if self._validator:
                headers["If-Range"] = self._validator
        try:
            connection = self._connection = self._open(parts)
            connection.connect()
            self._socket = connection.sock
            if self._cancelled.is_set():
                raise Failed(f"reading {self._url} was interrupted")
            path = parts.path or "/"
            connection.request("GET", f"{path}?{parts.query}" if parts.query else path, headers=headers)
            self._response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(_words(error)) from error
        return self._response

    def _open(self, parts: SplitResult) -> http.client.HTTPConnection:
        assert parts.hostname is not None
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=self._timeout_s)
        import ssl

        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=self._timeout_s, context=ssl.create_default_context())

    def _begin(self, response: http.client.HTTPResponse) -> None:
        status = response.status
        if status == 206 and self._position and response.getheader("Content-Range", "").startswith(f"bytes {self._position}-"):
            return
        if status == 200:
            length = response.length
            if self._position and length != self._size_bytes:
                raise Failed(f"{self._url} has changed during the transfer", "start it again")
            self._size_bytes = length
            tag = response.getheader("ETag", "")
            self._validator = tag if tag.startswith('"') else response.getheader("Last-Modified", "")
            self._skip_again(response)
            return
        reason = f"the server says {status} {response.reason}".rstrip()
        if status >= 500 or status in (408, 429):
            raise _Broken(reason)
        raise Failed(f"{self._url}: {reason}", "is it the right address?")

    def _skip_again(self, response: http.client.HTTPResponse) -> None:
        """The server starts from the beginning: what is here already is read once more."""
        left = self._position
        try:
            while left:
                got = len(response.read(min(left, _SKIP_BYTES)))
                if got == 0:
                    raise _Broken("ended early")
                left -= got
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(_words(error)) from error


def _check(parts: SplitResult, url: str) -> None:
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not url.isascii() or any(character.isspace() for character in url):
        raise ConfigError(f"{url} is no http(s) URL", "as in https://updates.example/gateway.abu")
    if parts.username is not None:
        raise ConfigError(f"the URL of {parts.hostname} holds a user name", "fetch it with a program that keeps secrets, and pipe it in")


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__
