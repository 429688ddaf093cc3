"""The text of fw_env.config: where U-Boot's environment lies, one line a copy.

    DEVICE  OFFSET  ENV-SIZE  [SECTOR-SIZE  [NUMBER-OF-SECTORS  [DISABLE-LOCK]]]

As libubootenv reads it: OFFSET like C's strtoll with base 0 (`0x` hexadecimal, leading `0` octal, else decimal; negative counts
from the end of a block device), sizes and sectors hexadecimal with or without `0x`, `#` begins a comment. What libubootenv skips
in silence (a line that it cannot read, a third copy) is refused here: an updater that guesses where the boot state lies is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from abupdate.errors import ConfigError
from abupdate.formats.ubootenv import MAX_ENV_BYTES

MAX_CONFIG_BYTES = 64 << 10
_MAX_DEVICE_BYTES = 255
_MIN_ENV_BYTES = 64
_HEX = re.compile(r"(0[xX])?[0-9a-fA-F]{1,15}", re.ASCII)
_OFFSET = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]{1,15}|0[0-7]{0,20}|[1-9][0-9]{0,17})", re.ASCII)
_FORM = "a line is: /dev/NAME OFFSET ENV-SIZE [SECTOR-SIZE [SECTORS]], sizes in hexadecimal"


@dataclass(frozen=True, slots=True)
class EnvLocation:
    """One copy's place. offset: bytes, negative from the end of a block device. sector_bytes, sectors: 0 where not given.

    lock: the flash's own sectors are unlocked before and locked after a write (field 6 turns it off).
    """

    device: str
    offset: int
    size_bytes: int
    sector_bytes: int = 0
    sectors: int = 0
    lock: bool = True

    def __str__(self) -> str:
        sign = "-" if self.offset < 0 else ""
        return f"{self.device}@{sign}{abs(self.offset):#x}+{self.size_bytes:#x}"


def parse(text: bytes, name: str = "fw_env.config") -> tuple[EnvLocation, ...]:
    """One location for a single environment, two for a redundant one. Raises ConfigError; `name` is the file's name in messages."""
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{name}: larger than {MAX_CONFIG_BYTES} bytes", "is this the right file?")
    try:
        lines = text.decode().split("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not a text file", _FORM) from None
    locations: list[EnvLocation] = []
    for number, line in enumerate(lines, start=1):
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        if len(locations) == 2:
            raise ConfigError(f"{name}: line {number} names a third copy", "an environment has one copy or two")
        locations.append(_location(fields, f"{name}: line {number}"))
    if not locations:
        raise ConfigError(f"{name}: names no environment", _FORM)
    if len(locations) == 2:
        _check_pair(locations[0], locations[1], name)
    return tuple(locations)


def _location(fields: list[str], where: str) -> EnvLocation:
    if not 3 <= len(fields) <= 6:
        raise ConfigError(f"{where}: {len(fields)} fields", _FORM)
    device = fields[0]
    if not device.startswith("/") or "\0" in device or len(device.encode()) > _MAX_DEVICE_BYTES:
        raise ConfigError(f"{where}: {device[:60]!r} is not an absolute path of at most {_MAX_DEVICE_BYTES} bytes", _FORM)
    offset = _offset(fields[1], where)
    size_bytes, sector_bytes, sectors = (_hexadecimal(field, where) for field in (*fields[2:5], "0", "0")[:3])
    if not _MIN_ENV_BYTES <= size_bytes <= MAX_ENV_BYTES:
        raise ConfigError(f"{where}: an environment of {size_bytes} bytes", f"{_MIN_ENV_BYTES} to {MAX_ENV_BYTES} are possible; {_FORM}")
    if -size_bytes < offset < 0:
        raise ConfigError(f"{where}: from {offset:#x} to the end there is no room for {size_bytes:#x} bytes", _FORM)
    if len(fields) == 6 and fields[5] not in ("0", "1"):
        raise ConfigError(f"{where}: the sixth field turns the flash's lock off with 1, {fields[5][:20]!r} says nothing", _FORM)
    return EnvLocation(device, offset, size_bytes, sector_bytes, sectors, lock=fields[5:] != ["1"])


def _offset(field: str, where: str) -> int:
    match = _OFFSET.fullmatch(field)
    if match is None:
        raise ConfigError(f"{where}: the offset {field[:40]!r} is not a number", "hexadecimal needs 0x in front, here alone")
    sign, digits = match.groups()
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") else 10
    return int(digits, base) * (-1 if sign == "-" else 1)


def _hexadecimal(field: str, where: str) -> int:
    if _HEX.fullmatch(field) is None:
        raise ConfigError(f"{where}: {field[:40]!r} is not a hexadecimal number", _FORM)
    return int(field, 16)


def _check_pair(first: EnvLocation, second: EnvLocation, name: str) -> None:
    if first.size_bytes != second.size_bytes:
        raise ConfigError(f"{name}: the two copies differ in size", "give both lines the same ENV-SIZE, as U-Boot was built with")
    same_end = (first.offset < 0) == (second.offset < 0)
    if first.device == second.device and same_end and abs(first.offset - second.offset) < first.size_bytes:
        raise ConfigError(f"{name}: the two copies overlap", "a redundant environment needs two areas of their own")
