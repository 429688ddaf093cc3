"""The control socket: what the command line asks, what the daemon answers, and askers who do not behave."""

from __future__ import annotations

import json
import math
import os
import select
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import AbupdateError, Busy, ConfigError, Deferred, Failed, NothingToDo, Refused
from abupdate.fleet.control import (
    MAX_ANSWER_BYTES,
    MAX_QUESTION_BYTES,
    AskLog,
    AskMetrics,
    AskStatus,
    AskUpdate,
    Judge,
    Question,
    Submit,
    ask,
    decode,
    encode,
    failure,
)
from abupdate.fleet.controlserver import MAX_ASKERS, PATIENCE_S, Asked, ControlServer

IDENTITY = bytes(range(32))
QUESTIONS: tuple[Question, ...] = (
    AskStatus(),
    AskMetrics(),
    AskLog(0, 20),
    AskLog(2**32 - 1, 256),
    Submit(b"\0\xff" * 9000),
    Judge(IDENTITY, approve=True),
    Judge(IDENTITY, approve=False, reason="nicht jetzt, Pumpe läuft"),
    AskUpdate(IDENTITY, 0),
    AskUpdate(IDENTITY, 86400),
)
BAD = {
    "no JSON": b"status",
    "no UTF-8": b'{"ask": "\xff"}',
    "no object": b'["status"]',
    "nested": b"[" * 90_000,
    "no kind": b"{}",
    "an unknown kind": b'{"ask": "reboot"}',
    "a kind that is no text": b'{"ask": ["status"]}',
    "a field too many": b'{"ask": "status", "now": 1}',
    "a field too few": b'{"ask": "log", "first": 1}',
    "a number as text": b'{"ask": "log", "first": "1", "count": 1}',
    "truth as a number": b'{"ask": "log", "first": true, "count": 1}',
    "a count of nothing": b'{"ask": "log", "first": 1, "count": 0}',
    "a count beyond": b'{"ask": "log", "first": 1, "count": 257}',
    "a wait of years": b'{"ask": "update", "bundle": "%s", "wait_s": 99999999}' % IDENTITY.hex().encode(),
    "a short id": b'{"ask": "approve", "order": "00", "reason": ""}',
    "an id with blanks": b'{"ask": "approve", "order": "%s", "reason": ""}' % IDENTITY.hex(" ").encode(),
    "an id in capitals": b'{"ask": "approve", "order": "%s", "reason": ""}' % IDENTITY.hex().upper().encode(),
    "a reason with a line feed": b'{"ask": "reject", "order": "%s", "reason": "a\\nb"}' % IDENTITY.hex().encode(),
    "a reason too long": b'{"ask": "reject", "order": "%s", "reason": "%s"}' % (IDENTITY.hex().encode(), b"a" * 97),
    "half a character": b'{"ask": "reject", "order": "%s", "reason": "\\ud800"}' % IDENTITY.hex().encode(),
    "no base64": b'{"ask": "submit", "data": "!"}',
    "nothing to submit": b'{"ask": "submit", "data": ""}',
    "too much to submit": b'{"ask": "submit", "data": "%s"}' % (b"AAAA" * 22_000),
}


@pytest.fixture
def path() -> Iterator[Path]:
    """Place of the socket; short, since the kernel takes 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ab-") as folder:
        yield Path(folder) / "run" / "fleet.sock"


@pytest.fixture
def server(path: Path) -> Iterator[ControlServer]:
    """A server; the test is its loop."""
    made = ControlServer(path)
    yield made
    made.close()


def wait_for(server: ControlServer, now_s: float = 0.0) -> tuple[Asked, ...]:
    """What the server has when its descriptor becomes readable."""
    ready, _, _ = select.select([server], [], [], 10)
    assert ready, "nothing came"
    return server.handle(now_s)


def next_question(server: ControlServer) -> Asked:
    while not (found := wait_for(server)):
        pass
    assert len(found) == 1
    return found[0]


def connect(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    made.connect(str(path))
    return made


class Asker(threading.Thread):
    """Asks in a thread of its own; `end` tells what came of it."""

    def __init__(self, path: Path, question: Question, timeout_s: float = 10.0) -> None:
        super().__init__(daemon=True)
        self._ask: Callable[[], dict[str, object]] = lambda: ask(path, question, timeout_s)
        self._found: dict[str, object] | AbupdateError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._found = self._ask()
        except AbupdateError as error:
            self._found = error

    def end(self) -> dict[str, object]:
        self.join(20)
        if isinstance(self._found, AbupdateError):
            raise self._found
        assert self._found is not None
        return self._found


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: type(question).__name__)
def test_a_question_comes_out_as_it_went_in(question: Question) -> None:
    line = encode(question)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line[:-1]) == question


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_question_is_refused(case: str) -> None:
    with pytest.raises(ConfigError):
        decode(BAD[case])


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_any_bytes_are_a_question_or_an_error(line: bytes) -> None:
    try:
        question = decode(line)
    except ConfigError:
        return
    assert decode(encode(question)[:-1]) == question


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: type(question).__name__)
def test_a_question_is_answered(path: Path, server: ControlServer, question: Question) -> None:
    asker = Asker(path, question)
    asked = next_question(server)
    assert asked.question == question
    server.answer(asked, {"height": 7, "text": "läuft\n"}, 0.0)
    assert asker.end() == {"height": 7, "text": "läuft\n"}
    assert not server.waits(asked)


@pytest.mark.parametrize("kind", [Failed, ConfigError, Refused, NothingToDo, Busy, Deferred])
def test_an_error_ends_the_asker_with_its_exit_code(path: Path, server: ControlServer, kind: type[AbupdateError]) -> None:
    asker = Asker(path, AskStatus())
    server.answer(next_question(server), failure(kind("the plan is halted", "see `fleet status`")), 0.0)
    with pytest.raises(kind) as caught:
        asker.end()
    assert (caught.value.message, caught.value.hint) == ("the plan is halted", "see `fleet status`")
    assert caught.value.exit_code == kind.exit_code


def test_a_large_answer_is_taken_in_pieces(path: Path, server: ControlServer) -> None:
    asker = Asker(path, AskLog(0, 256))
    asked = next_question(server)
    text = "x" * (MAX_ANSWER_BYTES // 2)
    server.answer(asked, {"text": text}, 0.0)
    while server.waits(asked):
        wait_for(server)
    assert asker.end() == {"text": text}


def test_an_answer_beyond_bounds_is_a_failure(path: Path, server: ControlServer) -> None:
    asker = Asker(path, AskStatus())
    asked = next_question(server)
    server.answer(asked, {"text": "x" * MAX_ANSWER_BYTES}, 0.0)
    while server.waits(asked):
        wait_for(server)
    with pytest.raises(Failed, match="more than"):
        asker.end()


def test_the_socket_is_for_its_owner_alone(path: Path) -> None:
    mask = os.umask(0)
    server = ControlServer(path)
    assert os.umask(mask) == 0, "the process's own mask is back"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
    server.close()


def test_the_name_goes_with_the_server(path: Path) -> None:
    ControlServer(path).close()
    assert not path.exists()
    with pytest.raises(Failed) as caught:
        ask(path, AskStatus())
    assert "systemctl start abupdate-fleet" in caught.value.hint


def test_a_socket_that_was_left_behind_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with pytest.raises(Failed):
        ask(path, AskStatus())
    server = ControlServer(path)
    asker = Asker(path, AskStatus())
    server.answer(next_question(server), {}, 0.0)
    assert asker.end() == {}
    server.close()


def test_a_second_daemon_is_refused_and_disturbs_nobody(path: Path, server: ControlServer) -> None:
    with pytest.raises(Busy):
        ControlServer(path)
    asker = Asker(path, AskMetrics())
    server.answer(next_question(server), {"frames": 1}, 0.0)
    assert asker.end() == {"frames": 1}


def test_a_file_that_is_no_socket_stays(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="no socket"):
        ControlServer(path)
    assert path.read_text() == "precious"


def test_a_name_that_the_kernel_does_not_take(path: Path) -> None:
    with pytest.raises(ConfigError):
        ControlServer(path.with_name("x" * 120))
    with pytest.raises(Failed):
        ask(path.with_name("x" * 120), AskStatus())


def test_who_never_finishes_a_question_is_dropped(path: Path, server: ControlServer) -> None:
    with connect(path) as slow:
        slow.sendall(b'{"ask":')
        assert wait_for(server, 100.0) == ()
        assert wait_for(server, 101.0) == ()
        assert server.wake_s == 100.0 + PATIENCE_S
        assert server.handle(server.wake_s) == ()
        assert slow.recv(1) == b""
    assert server.wake_s == math.inf


def test_who_never_takes_the_answer_is_dropped(path: Path, server: ControlServer) -> None:
    with connect(path) as lazy:
        lazy.sendall(encode(AskStatus()))
        asked = next_question(server)
        assert server.wake_s == math.inf, "the answer may take as long as it takes"
        server.answer(asked, {"text": "x" * (8 << 20)}, 50.0)
        assert server.waits(asked)
        server.handle(50.0 + PATIENCE_S)
        assert not server.waits(asked)


def test_who_leaves_while_waiting_is_noticed(path: Path, server: ControlServer) -> None:
    with connect(path) as leaver:
        leaver.sendall(encode(AskUpdate(IDENTITY, 3600)))
        asked = next_question(server)
    while server.waits(asked):
        wait_for(server)
    server.answer(asked, {"late": True}, 0.0)
    assert server.wake_s == math.inf


@pytest.mark.parametrize("words", [b"{}\n{}\n", b"x" * (MAX_QUESTION_BYTES + 1), b'{"ask": "reboot"}\n', b"\n"])
def test_what_is_no_question_is_answered_with_exit_2(path: Path, server: ControlServer, words: bytes) -> None:
    with connect(path) as rude:
        sender = threading.Thread(target=rude.sendall, args=(words,), daemon=True)
        sender.start()
        while server.wake_s == math.inf:
            assert wait_for(server) == ()
        while server.wake_s < math.inf:
            assert wait_for(server) == ()
        sender.join(10)
        assert json.loads(rude.makefile().readline())["exit_code"] == 2


def test_there_are_no_more_askers_than_allowed(path: Path, server: ControlServer) -> None:
    crowd = [connect(path) for _ in range(MAX_ASKERS)]
    for _ in crowd:
        wait_for(server)
    with connect(path) as late:
        wait_for(server)
        assert late.recv(1) == b""
    crowd[0].close()
    wait_for(server)
    asker = Asker(path, AskStatus())
    server.answer(next_question(server), {}, 0.0)
    assert asker.end() == {}
    for one in crowd:
        one.close()


def test_a_daemon_that_says_nothing_is_given_up(path: Path, server: ControlServer) -> None:
    start_s = time.monotonic()
    with pytest.raises(Failed, match="no answer within"):
        ask(path, AskStatus(), timeout_s=0.2)
    assert time.monotonic() - start_s < 5


def test_a_daemon_that_ends_before_it_answers(path: Path) -> None:
    server = ControlServer(path)
    asker = Asker(path, AskStatus())
    next_question(server)
    server.close()
    with pytest.raises(Failed, match="without an answer"):
        asker.end()


@pytest.mark.parametrize("answer", [b"[]\n", b"yes\n", b"\xff\n"])
def test_an_answer_that_is_none(path: Path, answer: bytes) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        asker = Asker(path, AskStatus())
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(answer)
            with pytest.raises(Failed, match="answer"):
                asker.end()
