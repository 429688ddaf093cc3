"""Texts in signed files and frames: UTF-8 that cannot deceive whoever reads it on a terminal.

The rules are written out here instead of taken from the interpreter's Unicode tables, which change from version to version: what one
node takes, every node takes.
"""

from __future__ import annotations

import re

from abupdate.errors import Refused

# Names of images, sites, nodes and groups.
NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
# A bundle's version, as its manifest and the orders of a fleet have it.
VERSION = re.compile(rb"[A-Za-z0-9][A-Za-z0-9.+~:_-]{0,63}", re.ASCII)
# Controls, line and paragraph separators and what turns the direction of text.
_DECEIVING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(value: bytes, limit: int, what: str, *, least: int = 1, lines: bool = False) -> str:
    """Decode a text of `least` to `limit` bytes. lines: line feeds are allowed. Raises Refused."""
    if not least <= len(value) <= limit:
        raise Refused(f"{what} has {len(value)} bytes instead of {least} to {limit}")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(f"{what} is not UTF-8") from None
    if _DECEIVING.search(text.replace("\n", "") if lines else text):
        raise Refused(f"{what} holds control characters")
    return text


def matching(pattern: re.Pattern[bytes], value: bytes, what: str) -> str:
    """Decode an ASCII text of a pattern. Raises Refused."""
    if not pattern.fullmatch(value):
        raise Refused(f"{ascii(value[:80])[1:]} is no {what}")
    return value.decode("ascii")


def encoded(value: str, what: str) -> bytes:
    """Encode a text that may come from a command line, where bytes that are no UTF-8 become lone surrogates. Raises Refused."""
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise Refused(f"{what} is not UTF-8") from None
