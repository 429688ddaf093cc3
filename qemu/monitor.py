"""QMP of a machine through the library qemu.qmp, for callers that are not asynchronous; events are collected as they come."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ConnectError, QMPClient

Result = TypeVar("Result")
CALL_TIMEOUT_S = 20.0


class Monitor:
    """One QMP connection, with an event loop in a thread of its own. Raises ConnectionError where nobody listens (yet)."""

    def __init__(self, path: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client: Any = None
        try:
            self._call(self._open(path))
        except ConnectError as error:
            # The library's own is no OSError, which is what whoever waits for a machine to start looks for.
            self._end_loop()
            raise ConnectionError(f"{path}: {error}") from error

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    async def _open(self, path: Path) -> None:
        self._client = QMPClient("device")
        await self._client.connect(str(path))
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        async for event in self._client.events:
            with self._changed:
                self.events.append(dict(event))
                self._changed.notify_all()

    async def _close(self) -> None:
        self._watcher.cancel()
        with contextlib.suppress(Exception):
            await self._client.disconnect()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command; dashes in names are written as underscores by the caller."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self._call(self._client.execute(command, named or None))

    def count(self, name: str) -> int:
        """How many events of this name have come."""
        with self._changed:
            return sum(1 for event in self.events if event["event"] == name)

    def wait(self, name: str, count: int, timeout_s: float) -> bool:
        """Wait until `count` events of this name have come in all; False when time is up first."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while sum(1 for event in self.events if event["event"] == name) < count:
                rest_s = deadline - time.monotonic()
                if rest_s <= 0:
                    return False
                self._changed.wait(rest_s)
        return True

    def close(self) -> None:
        """Disconnect and end the thread."""
        with contextlib.suppress(Exception):
            self._call(self._close())
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()
