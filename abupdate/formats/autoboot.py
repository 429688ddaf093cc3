"""The Raspberry Pi's autoboot.txt: which partition the firmware boots from, and which one where the tryboot flag is set. Pure.

    [all]
    # abupdate order=A:1,B:1
    tryboot_a_b=1
    boot_partition=2
    [tryboot]
    # abupdate trial=B:1
    boot_partition=3

As the firmware reads it: at most 512 bytes; a line is a filter in brackets, NAME=VALUE, or a comment after `#`; filters of different
kinds add up until `[all]` ends them; the last value that applies wins. A filter that the firmware's documentation does not name for
this file applies to nothing here. What abupdate writes comes last, begins with `[all]` and so wins whatever stands before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from abupdate.errors import ConfigError, StoreUnreadable

SIZE_BYTES = 512
_PARTITION, _A_B = "boot_partition", "tryboot_a_b"
_OURS = (_PARTITION, _A_B)
_FILTER = re.compile(r"\[([^\]]*)\]")
_NUMBER = re.compile(r"\d{1,3}(?!\d)", re.ASCII)
_MARK = "# abupdate "
_PAIR = re.compile(r"(?P<key>[a-z]{1,16})=(?P<value>[A-Za-z0-9:,]{1,128})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Autoboot:
    """The lines that say something, in order; no blank ones. Characters stand for bytes (latin-1)."""

    lines: tuple[str, ...]

    def partition(self, *, tryboot: bool) -> int | None:
        """The partition that is booted with or without the tryboot flag; None where the file does not say one."""
        return _number(self._value(_PARTITION, tryboot=tryboot))

    def switches_partitions(self) -> bool:
        """True where the tryboot flag selects a partition instead of the file tryboot.txt."""
        return _number(self._value(_A_B, tryboot=True)) == 1

    @property
    def notes(self) -> Mapping[str, str]:
        """What abupdate noted down in comments of its own; the last of a key counts."""
        marked = (line for line in self.lines if line.startswith(_MARK))
        return {found["key"]: found["value"] for line in marked for found in _PAIR.finditer(line[len(_MARK) :])}

    def foreign(self) -> tuple[str, ...]:
        """The lines that are not abupdate's to write, filters before them included."""
        kept: list[str] = []
        for line in self.lines:
            header = _FILTER.match(line)
            if line.startswith(_MARK) or (header is None and _name(line) in _OURS):
                continue
            if header is not None and header[1] == "all":
                # A filter with nothing behind it; not one before another filter, which adds to it.
                while kept and _FILTER.match(kept[-1]):
                    kept.pop()
                if not kept:
                    continue
            kept.append(line)
        while kept and _FILTER.match(kept[-1]):
            kept.pop()
        return tuple(kept)

    def _value(self, name: str, *, tryboot: bool) -> str | None:
        values = [value for line_name, value, applies in self._settings(tryboot) if applies and line_name == name]
        return values[-1] if values else None

    def _settings(self, tryboot: bool) -> Iterator[tuple[str, str, bool]]:
        # Kinds of filters that do not apply since the last [all]: one of the same kind replaces, another kind adds.
        closed: set[str] = set()
        for line in self.lines:
            header = _FILTER.match(line)
            if header is None:
                if not line.startswith("#") and "=" in line:
                    yield _name(line), line.partition("=")[2], not closed
            elif header[1] == "all":
                closed.clear()
            elif header[1] == "tryboot":
                (closed.discard if tryboot else closed.add)("tryboot")
            else:
                closed.add("none")


def parse(data: bytes, name: str = "autoboot.txt") -> Autoboot:
    """Raises StoreUnreadable for what is no text, ConfigError for more than the firmware reads; `name` is for messages."""
    if len(data) > SIZE_BYTES:
        raise ConfigError(f"{name} has more than {SIZE_BYTES} bytes, the most that the firmware reads", "shorten it")
    # A power cut while the file grew may have left zeros at its end.
    text, _, rest = data.partition(b"\0")
    if rest.strip(b"\0\n"):
        raise StoreUnreadable(f"{name} is no text", "see `abupdate doctor`; `abupdate doctor --fix` shows and writes a new one")
    return Autoboot(tuple(line for piece in text.decode("latin-1").split("\n") if (line := piece.strip(" \t\r"))))


def changed(old: Autoboot, partition: int, trial: int | None, notes: Mapping[str, str]) -> Autoboot:
    """The same file with other partitions. trial: the one for the tryboot flag, None: none. notes: all of them, `trial` among them."""
    ours = ["[all]"]
    ours += [f"{_MARK}{key}={value}" for key, value in notes.items() if key != "trial"]
    ours += [f"{_A_B}=1", f"{_PARTITION}={partition}"]
    if trial is not None:
        ours += ["[tryboot]", *([f"{_MARK}trial={notes['trial']}"] if "trial" in notes else []), f"{_PARTITION}={trial}"]
    return Autoboot((*old.foreign(), *ours))


def encode(autoboot: Autoboot, name: str = "autoboot.txt") -> bytes:
    """Exactly 512 bytes, filled up with empty lines. Raises ConfigError where there is no room."""
    data = "".join(f"{line}\n" for line in autoboot.lines).encode("latin-1")
    if len(data) > SIZE_BYTES:
        raise ConfigError(
            f"{name} would have {len(data)} bytes, {SIZE_BYTES} are the limit", "remove comments and lines that are not needed"
        )
    return data.ljust(SIZE_BYTES, b"\n")


def _name(line: str) -> str:
    return "" if line.startswith("#") else line.partition("=")[0].strip(" \t")


def _number(value: str | None) -> int | None:
    found = _NUMBER.match(value.strip(" \t")) if value is not None else None
    return int(found[0]) if found else None
