"""The serial console of a machine: everything it says is logged, and words are waited for, each with a limit."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

TAIL_LINES = 40
# As far back as something to take out may have begun when a piece of text ended.
_UNCLEAN_CHARS = 64


class ConsoleError(AssertionError):
    """The machine did not say what was expected in time; the message ends with the console's last lines."""


class Console:
    """Reads a serial line from a UNIX socket in a thread of its own.

    mirror: called with all that comes, as it comes, for a person who looks on. clean: takes out of the text what no test looks at.
    `wait` looks only at what came after the last match, so that words of an earlier boot cannot be taken for new ones.
    Line ends are plain newlines in all that is returned.
    """

    def __init__(self, log: Path) -> None:
        self._log = log.open("ab", buffering=0)
        self._text = ""
        self._mark = 0
        self.mirror: Callable[[bytes], None] | None = None
        self.clean: Callable[[str], str] | None = None
        self._changed = threading.Condition()
        self._link: socket.socket | None = None
        self._reader: threading.Thread | None = None

    def connect(self, path: Path) -> None:
        """Attach to the socket of a machine that was just started."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.connect(str(path))
        self._link = link
        self._reader = threading.Thread(target=self._read, args=(link,), name="console", daemon=True)
        self._reader.start()

    def disconnect(self) -> None:
        """Detach, with all read that the machine had said; the text stays."""
        if self._reader is not None:
            self._reader.join(timeout=5)
        if self._link is not None:
            self._link.close()
        self._link = self._reader = None

    def close(self) -> None:
        """Detach and close the log."""
        self.disconnect()
        self._log.close()

    def _read(self, link: socket.socket) -> None:
        while True:
            try:
                data = link.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            self._log.write(data)
            if self.mirror is not None:
                self.mirror(data)
            with self._changed:
                # A serial line's \r\n; the piece may end between the two.
                known = max(0, len(self._text) - _UNCLEAN_CHARS)
                more = (self._text[known:] + data.decode("utf-8", "replace")).replace("\r\n", "\n")
                self._text = self._text[:known] + (self.clean(more) if self.clean else more)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def send(self, line: str) -> None:
        """Type one line."""
        self.send_bytes(line.encode() + b"\n")

    def send_bytes(self, keys: bytes) -> None:
        """Type these bytes as they are."""
        if self._link is None:
            raise ConsoleError("the machine is not running")
        self._link.sendall(keys)

    @property
    def connected(self) -> bool:
        """Whether the machine is still at the other end."""
        return self._reader is not None and self._reader.is_alive()

    def skip(self) -> None:
        """Look only at what comes from now on."""
        with self._changed:
            self._mark = len(self._text)

    def wait(self, pattern: str, timeout_s: float, *, unless: str = "") -> re.Match[str]:
        """Wait for a regular expression (multi-line mode) after the last match; return the match and go on behind it.
        A pattern that takes a value to the end of a line must end with \\n: `$` also matches where the last piece ends so far.

        unless: a pattern that ends the waiting as a failure. Raises ConsoleError with the tail when time is up or the machine has ended.
        """
        wanted = re.compile(pattern, re.MULTILINE)
        unwanted = re.compile(unless, re.MULTILINE) if unless else None
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = wanted.search(self._text, self._mark)
                bad = unwanted.search(self._text, self._mark) if unwanted else None
                if found and not (bad and bad.start() < found.start()):
                    self._mark = found.end()
                    return found
                if bad:
                    raise ConsoleError(f"{bad[0]!r} came while waiting for {pattern!r}{self._last_lines()}")
                rest_s = deadline - time.monotonic()
                alive = self._reader is not None and self._reader.is_alive()
                if rest_s <= 0 or not alive:
                    why = f"did not come within {timeout_s:.0f} s" if alive else "did not come before the machine ended"
                    raise ConsoleError(f"{pattern!r} {why}{self._last_lines()}")
                self._changed.wait(min(rest_s, 1.0))

    def seen(self, pattern: str) -> bool:
        """Whether a pattern has come since the last match; moves nothing."""
        with self._changed:
            return re.compile(pattern, re.MULTILINE).search(self._text, self._mark) is not None

    @property
    def text(self) -> str:
        """All that was said so far."""
        with self._changed:
            return self._text

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines."""
        return "\n".join(self.text.splitlines()[-lines:])

    def _last_lines(self) -> str:
        rows = self._text.splitlines()[-TAIL_LINES:]
        return "\n  ---- console ----\n  " + "\n  ".join(rows)
