"""A daemon that answers the command line from a table: the real control socket, nothing behind it."""

from __future__ import annotations

import select
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from abupdate.errors import AbupdateError
from abupdate.fleet.control import Question, failure
from abupdate.fleet.controlserver import ControlServer

_POLL_S = 0.02


class FakeDaemon:
    """Serves while it is entered. answers: by the kind of question, a document or the error to answer with; asked: all questions."""

    def __init__(self, path: Path, answers: Mapping[type, Mapping[str, object] | AbupdateError]) -> None:
        self.answers = dict(answers)
        self.asked: list[Question] = []
        self._server = ControlServer(path)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(10)
        self._server.close()

    def _serve(self) -> None:
        while not self._ended.is_set():
            select.select([self._server], [], [], _POLL_S)
            for asked in self._server.handle(0.0):
                self.asked.append(asked.question)
                answer = self.answers[type(asked.question)]
                self._server.answer(asked, failure(answer) if isinstance(answer, AbupdateError) else answer, 0.0)
