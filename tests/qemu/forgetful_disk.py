"""A disk that acknowledges every write and keeps none, as worn SD cards do: an NBD server for QEMU over a UNIX socket.

Protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, fixed newstyle, simple replies.
"""

from __future__ import annotations

import contextlib
import socketserver
import struct
import threading
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

_OPTION_MAGIC = b"IHAVEOPT"
_REPLY_MAGIC = 0x3E889045565A9
_GO, _ABORT = 7, 2
_ACK, _INFO, _UNSUPPORTED = 1, 3, 0x80000001
_HAS_FLAGS, _SEND_FLUSH = 1, 4
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_EINVAL = 22
_MAX_REQUEST_BYTES = 32 << 20


@contextlib.contextmanager
def forgetful_disk(socket: Path, content: bytes) -> Iterator[list[tuple[int, int]]]:
    """Serve `content` on the socket. Yields the list of writes that were acknowledged and dropped, as offset, length."""
    dropped: list[tuple[int, int]] = []

    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if _negotiate(self.rfile, self.wfile, len(content)):
                _serve(self.rfile, self.wfile, content, dropped)

    with socketserver.ThreadingUnixStreamServer(str(socket), Connection) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield dropped
        finally:
            server.shutdown()
            thread.join()
            socket.unlink()


def _negotiate(incoming: BufferedIOBase, outgoing: BufferedIOBase, size_bytes: int) -> bool:
    outgoing.write(b"NBDMAGIC" + _OPTION_MAGIC + struct.pack(">H", 3))
    incoming.read(4)
    while incoming.read(8) == _OPTION_MAGIC:
        option, length = struct.unpack(">II", incoming.read(8))
        if length > 4096:
            return False
        incoming.read(length)
        if option == _ABORT:
            return False
        if option == _GO:
            export = struct.pack(">HQH", 0, size_bytes, _HAS_FLAGS | _SEND_FLUSH)
            outgoing.write(struct.pack(">QIII", _REPLY_MAGIC, option, _INFO, len(export)) + export)
            outgoing.write(struct.pack(">QIII", _REPLY_MAGIC, option, _ACK, 0))
            return True
        outgoing.write(struct.pack(">QIII", _REPLY_MAGIC, option, _UNSUPPORTED, 0))
    return False


def _serve(incoming: BufferedIOBase, outgoing: BufferedIOBase, content: bytes, dropped: list[tuple[int, int]]) -> None:
    while len(request := incoming.read(28)) == 28:
        _, _, kind, handle, offset, length = struct.unpack(">IHHQQI", request)
        if kind == _DISCONNECT or length > _MAX_REQUEST_BYTES:
            return
        data = b""
        if kind == _READ:
            data = content[offset : offset + length]
        elif kind == _WRITE:
            incoming.read(length)
            dropped.append((offset, length))
        error = 0 if kind in (_READ, _WRITE, _FLUSH) else _EINVAL
        outgoing.write(struct.pack(">IIQ", 0x67446698, error, handle) + data)
