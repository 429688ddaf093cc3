"""sd_notify: the service's word to systemd (or whoever set NOTIFY_SOCKET) that it is up, alive, or stopping."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

from abupdate.log import plain

_MAX_STATUS_BYTES = 512


class Notifier:
    """Sends datagrams to NOTIFY_SOCKET; does nothing where there is none. Never raises and never blocks: the service outlives systemd."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """environ: NOTIFY_SOCKET (a path, or `@name` in the abstract namespace), WATCHDOG_USEC and WATCHDOG_PID are read once."""
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environ)

    @property
    def active(self) -> bool:
        """True when somebody listens."""
        return self._address is not None

    def ready(self, status: str = "") -> bool:
        """READY=1: the service is up."""
        return self._send("READY=1", status)

    def alive(self) -> bool:
        """WATCHDOG=1: to be sent more often than every `watchdog_s`."""
        return self._send("WATCHDOG=1")

    def status(self, status: str) -> bool:
        """One line for `systemctl status`."""
        return self._send("", status)

    def stopping(self, status: str = "") -> bool:
        """STOPPING=1: the service ends on purpose."""
        return self._send("STOPPING=1", status)

    def _send(self, word: str, status: str = "") -> bool:
        """True when the datagram was taken."""
        if self._address is None:
            return False
        line = plain(" ".join(status.split())).encode(errors="replace")[:_MAX_STATUS_BYTES]
        message = b"\n".join(part for part in (word.encode(), b"STATUS=" + line if status else b"") if part)
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto(message, self._address)
            return True
        return False


def _address(name: str) -> bytes | None:
    """The socket's address; None where there is none, or one that is no UNIX socket (vsock)."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return os.fsencode(name) if name.startswith("/") else None


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Seconds within which systemd wants `alive`, None where it does not wait for this process."""
    try:
        usec = int(environ.get("WATCHDOG_USEC", ""))
        pid = int(environ.get("WATCHDOG_PID", "0"))
    except ValueError:
        return None
    return usec / 1e6 if usec > 0 and pid in (0, os.getpid()) else None
