"""Text in libconfig's syntax, as SWUpdate's sw-description and swupdate.cfg have it, and JSON of the same shape, as plain values.

    { name = value; }  ( value, value )  [ value, value ]  "text" "goes on"  12  0x1F  12L  1.5  true        # // /* comments */

Groups are dicts, lists and arrays lists. `@include` is refused, as SWUpdate does. Bounds: MAX_BYTES of text, MAX_DEPTH of nesting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from abupdate.errors import ConfigError

MAX_BYTES = 256 << 10
MAX_DEPTH = 32
Value = str | int | float | bool | list["Value"] | dict[str, "Value"]

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*|//[^\n]*|/\*.*?\*/)|(?P<text>"(?:[^"\\]|\\.)*")|(?P<mark>[{}()\[\]=:;,])"""
    r"""|(?P<word>[A-Za-z*][A-Za-z0-9_*-]*)|(?P<number>[-+]?(?:0[xX][0-9A-Fa-f]+|[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?\.?)L{0,2})""",
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.)", re.DOTALL)
_CLOSING = {"(": ")", "[": "]"}


def parse(data: bytes, where: str) -> dict[str, Value]:
    """The settings of a file. where: its name, for the message. Raises ConfigError."""
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{where} is larger than {MAX_BYTES} bytes", "is it the right file?")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 (byte {error.start})", "is it the right file?") from None
    return _Reader(text, where).file()


class _Reader:
    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._text = text
        self._tokens = self._split()
        self._at = 0

    def file(self) -> dict[str, Value]:
        if self._kind() == "{":
            self._at += 1
            found = self._group("}", 1)
            self._expect("}")
        else:
            found = self._group("", 0)
        if self._kind():
            raise self._odd()
        return found

    def _split(self) -> list[tuple[str, str, int]]:
        """(kind, text, offset); a mark is its own kind."""
        tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(self._text):
            match = _TOKEN.match(self._text, at)
            if match is None:
                raise self._error(at)
            kind, piece = str(match.lastgroup), match.group()
            if kind != "space":
                tokens.append((piece if kind == "mark" else kind, piece, at))
            at = match.end()
        return tokens

    def _group(self, end: str, depth: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        while self._kind() != end:
            kind, piece = self._kind(), self._piece()
            if kind not in ("word", "text"):
                raise self._odd()
            self._at += 1
            if self._kind() not in ("=", ":"):
                raise self._odd()
            self._at += 1
            found[_unquoted(piece) if kind == "text" else piece] = self._value(depth)
            if self._kind() in (";", ","):
                self._at += 1
        return found

    def _value(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise ConfigError(f"{self._where} is nested too deeply", "is it the right file?")
        kind, piece = self._kind(), self._piece()
        if kind == "{":
            self._at += 1
            group = self._group("}", depth + 1)
            self._expect("}")
            return group
        if kind in _CLOSING:
            self._at += 1
            values: list[Value] = []
            while self._kind() != _CLOSING[kind]:
                values.append(self._value(depth + 1))
                if self._kind() == ",":
                    self._at += 1
                elif self._kind() != _CLOSING[kind]:
                    raise self._odd()
            self._at += 1
            return values
        if kind == "text":
            pieces = []
            while self._kind() == "text":
                pieces.append(_unquoted(self._piece()))
                self._at += 1
            return "".join(pieces)
        if kind == "number":
            self._at += 1
            return _number(piece)
        if kind == "word" and piece.lower() in ("true", "false"):
            self._at += 1
            return piece.lower() == "true"
        raise self._odd()

    def _kind(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _piece(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _expect(self, kind: str) -> None:
        if self._kind() != kind:
            raise self._odd()
        self._at += 1

    def _odd(self) -> ConfigError:
        return self._error(self._tokens[self._at][2] if self._at < len(self._tokens) else len(self._text))

    def _error(self, at: int) -> ConfigError:
        line = self._text.count("\n", 0, at) + 1
        found = self._text[at : at + 20].split("\n", maxsplit=1)[0]
        return ConfigError(f"{self._where}, line {line}: {found!a} is not what libconfig's syntax has there", "is it the right file?")


def _unquoted(piece: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        code = match.group(1)
        return chr(int(code[1:], 16)) if code[0] == "x" and len(code) == 3 else _ESCAPES.get(code, code)

    return _ESCAPE.sub(replaced, piece[1:-1])


def _number(piece: str) -> int | float:
    digits = piece.rstrip("L")
    try:
        return int(digits, 16 if "x" in digits.lower() else 10)
    except ValueError:
        return float(digits) if len(digits) < 400 else 0.0


def group(value: Value | None) -> Mapping[str, Value]:
    """The value where it is a group, else an empty one."""
    return value if isinstance(value, dict) else {}


def groups(value: Value | None) -> list[dict[str, Value]]:
    """The groups of a list, none where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
