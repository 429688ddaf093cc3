"""etcd's side of the lock benchmark: Debian's etcd-server, alone, with its log on the disk, and clients of its HTTP/JSON gateway.

A client takes the lock by creating the key (a transaction that fails where it is there), keeps it for a while, and deletes it. Who does not
get it watches the key from the revision at which it was there, and tries again when it is deleted.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tests.ports import free_ports

_KEY = base64.b64encode(b"lock").decode()
_READY_S = 20.0
_PATIENCE_S = 60.0


def find_etcd(folder: Path) -> Path:
    """etcd, from the system or unpacked from Debian's package into the folder (nothing is installed, nothing is started at boot).

    Raises LookupError, in words for people, where neither is to be had.
    """
    found = shutil.which("etcd")
    if found:
        return Path(found)
    unpacked = folder / "etcd-server"
    program = unpacked / "usr" / "bin" / "etcd"
    if not program.exists():
        try:
            subprocess.run(["apt-get", "download", "-q", "etcd-server"], check=True, capture_output=True, cwd=folder)
            package = next(folder.glob("etcd-server_*.deb"))
            subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True, capture_output=True)
            package.unlink()
        except (OSError, StopIteration, subprocess.CalledProcessError):
            raise LookupError("etcd is missing and Debian's package cannot be fetched: apt-get install etcd-server") from None
    return program


def version(etcd: Path) -> str:
    """Its version line."""
    return subprocess.run([etcd, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]


@contextmanager
def server(etcd: Path, folder: Path) -> Iterator[int]:
    """One that runs, on the loopback alone; its client port."""
    client, peer = free_ports(2, socket.SOCK_STREAM)
    data = folder / "etcd-data"
    shutil.rmtree(data, ignore_errors=True)
    urls = [f"http://127.0.0.1:{port}" for port in (client, peer)]
    words = ["--data-dir", str(data), "--listen-client-urls", urls[0], "--advertise-client-urls", urls[0], "--listen-peer-urls", urls[1]]
    words += ["--initial-advertise-peer-urls", urls[1], "--initial-cluster", f"default={urls[1]}"]
    with (folder / "etcd.log").open("wb") as log, subprocess.Popen([etcd, *words], stdout=log, stderr=log) as process:
        try:
            _wait(client)
            yield client
        finally:
            process.terminate()


@dataclass
class Client:
    """Takes the lock once. moved_bytes: that went over its connections, both ways, without TCP's and IP's headers."""

    port: int
    hold_s: float
    moved_bytes: int = 0
    requests: int = 0
    waited: int = 0
    fault: str = ""
    ended_s: float = 0.0

    def run(self) -> None:
        """Take it, keep it, release it."""
        try:
            with closing(socket.create_connection(("127.0.0.1", self.port), _PATIENCE_S)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._take(connection)
                time.sleep(self.hold_s)
                self._ask(connection, "/v3/kv/deleterange", {"key": _KEY})
                self.ended_s = time.monotonic()
        except (OSError, ValueError, KeyError) as error:
            self.fault = repr(error)

    def _take(self, connection: socket.socket) -> None:
        value = base64.b64encode(threading.current_thread().name.encode()).decode()
        transaction = {
            "compare": [{"target": "CREATE", "key": _KEY, "result": "EQUAL", "create_revision": "0"}],
            "success": [{"requestPut": {"key": _KEY, "value": value}}],
        }
        while True:
            answer = self._ask(connection, "/v3/kv/txn", transaction)
            if answer.get("succeeded"):
                return
            self.waited += 1
            self._watch(int(answer["header"]["revision"]))

    def _watch(self, revision: int) -> None:
        """Until the key is deleted after that revision."""
        body = {"create_request": {"key": _KEY, "start_revision": str(revision + 1), "filters": ["NOPUT"]}}
        with closing(socket.create_connection(("127.0.0.1", self.port), _PATIENCE_S)) as connection:
            self._send(connection, "/v3/watch", body)
            stream = connection.makefile("rb")
            _header(self._lines(stream))
            for line in self._lines(stream):
                if b'"events"' in line:
                    return
        raise ValueError("the watch has ended")

    def _lines(self, stream: BinaryIO) -> Iterator[bytes]:
        for line in stream:
            self.moved_bytes += len(line)
            yield line

    def _ask(self, connection: socket.socket, path: str, body: object) -> dict[str, Any]:
        self._send(connection, path, body)
        stream = connection.makefile("rb")
        length = _header(self._lines(stream))
        data = stream.read(length)
        self.moved_bytes += len(data)
        answer: dict[str, Any] = json.loads(data)
        return answer

    def _send(self, connection: socket.socket, path: str, body: object) -> None:
        data = json.dumps(body).encode()
        request = f"POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        connection.sendall(request)
        self.moved_bytes += len(request)
        self.requests += 1


def roll(port: int, count: int, hold_s: float) -> tuple[float, list[Client]]:
    """That many clients want the lock at once and get it one after the other; how long until the last one has released it."""
    clients = [Client(port, hold_s) for _ in range(count)]
    threads = [threading.Thread(target=client.run) for client in clients]
    start_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    faults = [client.fault for client in clients if client.fault]
    if faults:
        raise RuntimeError(f"etcd: {faults[0]}")
    return max(client.ended_s for client in clients) - start_s, clients


def _header(lines: Iterator[bytes]) -> int:
    """Read an answer's header; the length of what follows, 0 where it says none."""
    status = next(lines, b"")
    if b" 200 " not in status:
        raise ValueError(f"etcd says {status!r}")
    length = 0
    for line in lines:
        if line == b"\r\n":
            break
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return length


def _wait(port: int) -> None:
    end_s = time.monotonic() + _READY_S
    while time.monotonic() < end_s:
        try:
            client = Client(port, 0.0)
            with closing(socket.create_connection(("127.0.0.1", port), 1.0)) as connection:
                client._ask(connection, "/v3/kv/range", {"key": _KEY})
                return
        except (OSError, ValueError):
            time.sleep(0.05)
    raise RuntimeError("etcd did not come up")
