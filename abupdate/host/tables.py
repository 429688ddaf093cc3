"""TOML files that a person writes on the build host: read with bounds, and getters that name the place of a fault."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abupdate.errors import ConfigError

_MAX_BYTES = 256 * 1024
# A key `a.a.a...` costs the parser the square of its parts, and a key cannot go on in the next line.
_MAX_LINE_BYTES = 16 * 1024


def read(path: Path, what: str) -> dict[str, Any]:
    """The values of a TOML file. what: its name for people. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path} is too large for a {what}")
        if max(map(len, data.split(b"\n"))) > _MAX_LINE_BYTES:
            raise ConfigError(f"{path} has a line of more than {_MAX_LINE_BYTES} bytes", "a list may go over several lines")
        return tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        # Mostly TOMLDecodeError; a number of thousands of digits is a plain ValueError.
        raise ConfigError(f"{path} is not TOML: {' '.join(str(error).split())[:200]}") from error


class Table:
    """A TOML table whose keys are all known; its getters raise ConfigError with the place of the fault."""

    def __init__(self, values: Mapping[str, Any], place: str, known: tuple[str, ...]) -> None:
        """place: where it is, for errors. known: its keys."""
        self.values = values
        self.place = place
        for key in values:
            if key not in known:
                raise ConfigError(f"{place}: unknown key {key!r}", f"known are {', '.join(known)}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string; without a default it must be there."""
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(f"{self.place}: {key} is missing", f'add {key} = "..."')
        if not isinstance(value, str):
            raise ConfigError(f"{self.place}: {key} is not a string", f'write {key} = "..."')
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of different strings, empty where it is not there."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{self.place}: {key} is not a list of strings", f'write {key} = ["...", "..."]')
        if len(set(value)) != len(value):
            raise ConfigError(f"{self.place}: {key} holds a value twice")
        return tuple(value)

    def paths(self, key: str, folder: Path) -> tuple[Path, ...]:
        """A list of paths that start at the folder."""
        names = self.texts(key)
        if any("\0" in name for name in names):
            raise ConfigError(f"{self.place}: {key} holds a name with a NUL")
        return tuple(folder / name for name in names)

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number within bounds; without a default it must be there."""
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(f"{self.place}: {key} is missing", f"add {key} = NUMBER")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{self.place}: {key} is not a number from {low} to {high}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.place}: {key} is neither true nor false")
        return value

    def table(self, key: str) -> Mapping[str, Any]:
        """The values of a table in this one, empty where it is not there."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise ConfigError(f"{self.place}: {key} is not a table", f"write [{key}] and its keys below it")
        return value
