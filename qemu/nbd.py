"""An NBD server of our own: a guest's disk over a UNIX socket, with whatever a Python object makes of reads, writes and flushes.

Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, fixed newstyle, simple replies, one request at a time.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Protocol

_OPTION_MAGIC = b"IHAVEOPT"
_REPLY_MAGIC = 0x3E889045565A9
_GO, _ABORT = 7, 2
_ACK, _INFO, _UNSUPPORTED = 1, 3, 0x80000001
_HAS_FLAGS, _SEND_FLUSH, _SEND_FUA = 1, 4, 8
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_COMMAND_FUA = 1
_EINVAL = 22
_MAX_REQUEST_BYTES = 32 << 20


class PowerCut(Exception):
    """Raised by a disk that has no power any more: the connection is dropped without an answer."""


class Disk(Protocol):
    """What is served. Offsets and lengths are bytes. Calls come one at a time for each connection."""

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""

    def read(self, offset: int, length: int) -> bytes:
        """What the guest sees: the newest write. Raises PowerCut."""

    def write(self, offset: int, data: bytes, *, fua: bool) -> None:
        """Take a write; `fua`: it alone is on the medium before this returns. Raises PowerCut."""

    def flush(self) -> None:
        """Everything that was acknowledged is on the medium when this returns. Raises PowerCut."""


@contextlib.contextmanager
def served(path: Path, disk: Disk) -> Iterator[None]:
    """Serve a disk on a UNIX socket, whatever export's name is asked for, to any number of connections."""
    links: set[socket.socket] = set()

    class Connection(socketserver.StreamRequestHandler):
        wbufsize = -1

        def handle(self) -> None:
            links.add(self.connection)
            with contextlib.suppress(PowerCut, OSError, struct.error):
                if _negotiate(self.rfile, self.wfile, disk.size_bytes):
                    _serve(self.rfile, self.wfile, disk)

        def finish(self) -> None:
            links.discard(self.connection)
            with contextlib.suppress(OSError):
                super().finish()

    with socketserver.ThreadingUnixStreamServer(str(path), Connection) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="nbd")
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            for link in tuple(links):
                with contextlib.suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
            path.unlink()


def _negotiate(incoming: BufferedIOBase, outgoing: BufferedIOBase, size_bytes: int) -> bool:
    outgoing.write(b"NBDMAGIC" + _OPTION_MAGIC + struct.pack(">H", 3))
    outgoing.flush()
    incoming.read(4)
    while incoming.read(8) == _OPTION_MAGIC:
        option, length = struct.unpack(">II", incoming.read(8))
        if length > 4096:
            return False
        incoming.read(length)
        if option == _ABORT:
            return False
        if option == _GO:
            export = struct.pack(">HQH", 0, size_bytes, _HAS_FLAGS | _SEND_FLUSH | _SEND_FUA)
            outgoing.write(struct.pack(">QIII", _REPLY_MAGIC, option, _INFO, len(export)) + export)
            outgoing.write(struct.pack(">QIII", _REPLY_MAGIC, option, _ACK, 0))
            outgoing.flush()
            return True
        outgoing.write(struct.pack(">QIII", _REPLY_MAGIC, option, _UNSUPPORTED, 0))
        outgoing.flush()
    return False


def _serve(incoming: BufferedIOBase, outgoing: BufferedIOBase, disk: Disk) -> None:
    while len(request := incoming.read(28)) == 28:
        _, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", request)
        if kind == _DISCONNECT or length > _MAX_REQUEST_BYTES:
            return
        data, error = b"", 0
        if kind == _READ:
            data = disk.read(offset, length)
        elif kind == _WRITE:
            disk.write(offset, incoming.read(length), fua=bool(flags & _COMMAND_FUA))
        elif kind == _FLUSH:
            disk.flush()
        else:
            error = _EINVAL
        outgoing.write(struct.pack(">IIQ", 0x67446698, error, handle) + data)
        outgoing.flush()
