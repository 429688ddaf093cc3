"""What the command line asks of the fleet's daemon, through a UNIX socket of mode 0600.

One connection carries one question: a JSON object in one line, answered by a JSON object in one line, then the daemon closes. Questions:

    {"ask": "status"}  {"ask": "metrics"}
    {"ask": "log", "first": HEIGHT, "count": N}             first 0: the newest N
    {"ask": "submit", "data": BASE64}                       an order, or a membership
    {"ask": "approve" | "reject", "order": HEX, "reason": TEXT}
    {"ask": "update", "bundle": HEX, "wait_s": SECONDS}     wait for this node's slot

An answer that holds "error" also holds "hint" and "exit_code", those of the CLI contract.
"""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abupdate.errors import AbupdateError, Busy, ConfigError, Deferred, Failed, NothingToDo, Refused
from abupdate.formats import text

MAX_QUESTION_BYTES = 96 << 10
MAX_ANSWER_BYTES = 4 << 20
MAX_DATA_BYTES = 64 << 10
MAX_ENTRIES = 256
MAX_REASON_BYTES = 96
MAX_WAIT_S = 30 * 86400
ANSWER_TIMEOUT_S = 20.0
HINT = "is it running? `systemctl start abupdate-fleet`"
_PIECE_BYTES = 64 << 10
_ID_BYTES = 32
_ERRORS: Mapping[int, type[AbupdateError]] = {2: ConfigError, 3: Refused, 4: NothingToDo, 5: Busy, 6: Deferred}


@dataclass(frozen=True, slots=True)
class AskStatus:
    """The status document (fleet/status.py)."""


@dataclass(frozen=True, slots=True)
class AskMetrics:
    """Counters of the daemon."""


@dataclass(frozen=True, slots=True)
class AskLog:
    """Decided entries from a height on, at most `count` (1-256). first 0: the newest ones."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Submit:
    """Bytes of an admin's order or of a membership file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Judge:
    """A person's word on this node about an order (id, 32 bytes). reason: at most 96 bytes of UTF-8."""

    order: bytes
    approve: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AskUpdate:
    """Update this node to the bundle (id, 32 bytes) through the fleet. wait_s: how long the caller waits for a slot, 0: not at all."""

    bundle: bytes
    wait_s: int


Question = AskStatus | AskMetrics | AskLog | Submit | Judge | AskUpdate


def encode(question: Question) -> bytes:
    """The line that asks a question."""
    return _line(_document(question))


def _document(question: Question) -> dict[str, object]:
    match question:
        case AskStatus():
            return {"ask": "status"}
        case AskMetrics():
            return {"ask": "metrics"}
        case AskLog(first, count):
            return {"ask": "log", "first": first, "count": count}
        case Submit(data):
            return {"ask": "submit", "data": base64.b64encode(data).decode()}
        case Judge(order, approve, reason):
            return {"ask": "approve" if approve else "reject", "order": order.hex(), "reason": reason}
        case AskUpdate(bundle, wait_s):
            return {"ask": "update", "bundle": bundle.hex(), "wait_s": wait_s}


def decode(line: bytes) -> Question:
    """The question in a line (without its line feed). Raises ConfigError for anything that `encode` does not make."""
    fields = _object(line, "the question")
    kind = fields.pop("ask", None)
    question: Question
    if kind == "status":
        question = AskStatus()
    elif kind == "metrics":
        question = AskMetrics()
    elif kind == "log":
        question = AskLog(_number(fields, "first", 0, 2**32 - 1), _number(fields, "count", 1, MAX_ENTRIES))
    elif kind == "submit":
        question = Submit(_data(fields, "data"))
    elif kind in ("approve", "reject"):
        question = Judge(_identity(fields, "order"), kind == "approve", _reason(fields, "reason"))
    elif kind == "update":
        question = AskUpdate(_identity(fields, "bundle"), _number(fields, "wait_s", 0, MAX_WAIT_S))
    else:
        raise ConfigError("the fleet daemon does not know this question", "daemon and command line are of different versions?")
    if fields:
        raise ConfigError(f"the question holds the unknown field {next(iter(fields))[:40]!r}")
    return question


def encode_answer(document: Mapping[str, object]) -> bytes:
    """The line that answers."""
    return _line(document)


def failure(error: AbupdateError) -> dict[str, object]:
    """The answer that makes the asker end with this error."""
    return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}


def ask(path: Path, question: Question, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
    """Put a question to the daemon; its answer. Raises what the daemon says went wrong, Failed where it does not answer in time."""
    end_s = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        _connect(connection, path, timeout_s)
        try:
            connection.sendall(encode(question))
            answer = _read(connection, end_s)
        except TimeoutError as error:
            raise Failed(f"the fleet daemon gave no answer within {timeout_s:.0f} s", "see its journal") from error
        except OSError as error:
            raise Failed(f"the fleet daemon has left: {error.strerror}", HINT) from error
    try:
        document = _object(answer, "the fleet daemon's answer")
    except ConfigError as error:
        raise Failed(error.message, "see the daemon's journal") from error
    if "error" in document:
        kind = _ERRORS.get(document.get("exit_code", 1), Failed)
        raise kind(str(document["error"]), str(document.get("hint", "")))
    return document


def _connect(connection: socket.socket, path: Path, timeout_s: float) -> None:
    connection.settimeout(timeout_s)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise Failed("the fleet daemon does not answer", HINT) from error
    except PermissionError as error:
        raise Failed(f"{path}: {error.strerror}", "run as root") from error
    except OSError as error:
        raise Failed(f"{path}: {error.strerror or error}", "check fleet.control in the configuration") from error


def _read(connection: socket.socket, end_s: float) -> bytes:
    """One line without its line feed. Raises Failed where it ends early or is too long, OSError."""
    answer = bytearray()
    while not answer.endswith(b"\n"):
        connection.settimeout(max(0.001, end_s - time.monotonic()))
        piece = connection.recv(_PIECE_BYTES)
        if not piece:
            raise Failed("the fleet daemon closed the connection without an answer", "it is busy or ending: try again")
        answer += piece
        if len(answer) > MAX_ANSWER_BYTES:
            raise Failed(f"the fleet daemon's answer has more than {MAX_ANSWER_BYTES} bytes")
    return bytes(answer[:-1])


def _line(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is not JSON") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{what} is not a JSON object")
    return found


def _take(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.pop(name, None)
    if type(value) is not kind:
        raise ConfigError(f"the question's {name} is missing or no {kind.__name__}")
    return value


def _number(fields: dict[str, Any], name: str, low: int, high: int) -> int:
    value: int = _take(fields, name, int)
    if not low <= value <= high:
        raise ConfigError(f"the question's {name} is not between {low} and {high}")
    return value


def _identity(fields: dict[str, Any], name: str) -> bytes:
    digits: str = _take(fields, name, str)
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        value = b""
    if len(value) != _ID_BYTES or value.hex() != digits:
        raise ConfigError(f"the question's {name} is not {_ID_BYTES} bytes in hex")
    return value


def _reason(fields: dict[str, Any], name: str) -> str:
    value: str = _take(fields, name, str)
    try:
        return check_reason(value)
    except Refused as error:
        raise ConfigError(error.message) from error


def check_reason(value: str) -> str:
    """The reason, where a frame can carry it. Raises Refused."""
    # What is no text (half a surrogate, bytes that were no UTF-8 on the command line) is not UTF-8 again.
    return text.plain(value.encode(errors="surrogatepass"), MAX_REASON_BYTES, "the reason", least=0)


def _data(fields: dict[str, Any], name: str) -> bytes:
    encoded: str = _take(fields, name, str)
    try:
        value = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ConfigError(f"the question's {name} is not base64") from error
    if not 0 < len(value) <= MAX_DATA_BYTES:
        raise ConfigError(f"the question's {name} has {len(value)} bytes, at most {MAX_DATA_BYTES} are taken")
    return value
