"""A board's own programs: the example in bootloader-hooks/custom over a file, with a reader and a boot side of its own layout here."""

from __future__ import annotations

import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from abupdate.bootloaders.custom import CustomStore
from abupdate.ports import Bootloader
from tests.contract.subject import SLOTS, Seen, Subject

EXAMPLE = Path(__file__).resolve().parents[2] / "bootloader-hooks/custom/bootstate"
OFFSETS = (0, 4096)
MEDIUM_BYTES = 8192


def sector(sequence: int, order: bytes, left: tuple[int, int], trial: int, ours: int = 1) -> bytes:
    """A valid copy, as the description in the example has it."""
    body = struct.pack("<4sI2s2BBBBBHQ", b"ABST", sequence, order, *left, trial, ours, 3, 10, 120, 2**64 - 1).ljust(508, b"\0")
    return body + struct.pack("<I", zlib.crc32(body))


def install(folder: Path, medium: bytes) -> Path:
    """The example's two names and the store in a folder; returns that of the programs."""
    programs = folder / "boot"
    programs.mkdir()
    for name in ("get-state", "set-state"):
        shutil.copy(EXAMPLE, programs / name)
        (programs / name).chmod(0o755)
    (folder / "medium").write_bytes(medium)
    (programs / "store").symlink_to(folder / "medium")
    return programs


def current(medium: bytes) -> tuple[int, bytes] | None:
    """The copy that counts: its number and its bytes."""
    copies = [(number, medium[at : at + 512]) for number, at in enumerate(OFFSETS)]
    valid = [
        (number, data) for number, data in copies if data[:4] == b"ABST" and zlib.crc32(data[:508]) == int.from_bytes(data[508:], "little")
    ]
    return max(valid, key=lambda copy: int.from_bytes(copy[1][4:8], "little"), default=None)


@dataclass(frozen=True)
class Boot:
    """What the boot code starts, as the example describes it: the slot, whether it is on trial, and its count, (offset, sector), if any."""

    slot: str
    trial: bool
    write: tuple[int, bytes] | None

    def after(self, medium: bytes) -> bytes:
        """The medium after the count."""
        if self.write is None:
            return medium
        at, data = self.write
        return medium[:at] + data + medium[at + len(data) :]


def boots(medium: bytes) -> Boot:
    """The next start."""
    found = current(medium)
    if found is None:
        return Boot("A", False, None)
    number, data = found
    order = [slot for slot in data[8:10] if slot < len(SLOTS)]
    trial, budget = data[12], data[15]
    slot = next((slot for slot in order if data[10 + slot]), None)
    if slot is None:
        return Boot(SLOTS[next(slot for slot in order if slot != trial)], False, None)
    if slot != trial and not (budget and data[13]):
        return Boot(SLOTS[slot], False, None)
    counted = bytearray(data)
    counted[10 + slot] -= 1
    counted[4:8] = (int.from_bytes(data[4:8], "little") + 1).to_bytes(4, "little")
    counted[508:] = zlib.crc32(counted[:508]).to_bytes(4, "little")
    return Boot(SLOTS[slot], slot == trial, (OFFSETS[1 - number], bytes(counted)))


class Custom(Subject):
    """See Subject. What is foreign lies behind the copies, where no program of ours looks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._medium = folder / "medium"
        factory = sector(7, b"\x00\xff", (10, 0), 255, ours=0)
        self._programs = install(folder, factory.ljust(MEDIUM_BYTES, b"\0"))

    def store(self) -> Bootloader:
        return CustomStore(self._programs, SLOTS)

    def tool_sees(self) -> Seen:
        medium = self._medium.read_bytes()
        found = current(medium)
        assert found is not None
        data = found[1]
        trial = SLOTS[data[12]] if data[12] < len(SLOTS) else None
        return Seen(boots(medium).slot, trial, data[10 + data[12]] if trial else None, {"behind": medium[6000:].hex()})

    def tool_boots(self, slot: str, left: int) -> None:
        medium = self._medium.read_bytes()
        started = boots(medium)
        assert started.slot == slot
        self._medium.write_bytes(started.after(medium))

    def tool_adds(self) -> None:
        medium = self._medium.read_bytes()
        self._medium.write_bytes(medium[:6000] + b"serial 0815".ljust(MEDIUM_BYTES - 6000))

    def spoil(self) -> bool:
        medium = bytearray(self._medium.read_bytes())
        for at in OFFSETS:
            medium[at + 100] ^= 1
        self._medium.write_bytes(medium)
        return True
