"""Raw flash under U-Boot's environment, against a model of the chip at the ioctl boundary.

No emulated machine here has a flash chip that Debian's kernel drives.

The chip is a file and a model: erasing sets a sector to ones, programming may only clear bits, and locked sectors refuse both.
"""

from __future__ import annotations

import errno
import os
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from abupdate.bootloaders.envarea import open_area
from abupdate.bootloaders.envcalls import LinuxCalls
from abupdate.bootloaders.envflash import FlashArea, flash_area
from abupdate.bootloaders.uboot import UBootStore
from abupdate.errors import ConfigError, Failed, StoreUnreadable
from abupdate.formats.fwenvconfig import EnvLocation
from abupdate.formats.ubootenv import Environment, Scheme, encode
from abupdate.model import BootState, TrialPolicy

NOR, NAND, RAM = 3, 4, 1
MEMGETINFO, MEMERASE, MEMLOCK, MEMUNLOCK, MEMGETBADBLOCK = 0x80204D01, 0x40084D02, 0x40084D05, 0x40084D06, 0x40084D0B
SECTOR, ENV = 0x1000, 0x2000
SLOTS = ("A", "B")
STATE = BootState(("B", "A"), {"A": 10, "B": 3}, "B", TrialPolicy(), 5)


class Chip:
    """The model. states: what the chip held after each erase and each programmed sector."""

    def __init__(self, folder: Path, kind: int = NOR, sectors: int = 12, erase_bytes: int = SECTOR) -> None:
        self.path = folder / "mtd"
        self.path.write_bytes(b"\xff" * SECTOR * sectors)
        self.kind, self.erase_bytes = kind, erase_bytes
        self.bad: set[int] = set()
        self.has_locks = True
        self.unlocked: set[int] = set()
        self.states = [self.content]
        self.erased: list[int] = []

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()

    def ioctl(self, fd: int, request: int, buffer: bytearray) -> int:
        assert os.fstat(fd).st_ino == self.path.stat().st_ino
        self._programmed()
        if request == MEMGETINFO:
            buffer[:] = struct.pack("@BIIIIIQ", self.kind, 0, len(self.content), self.erase_bytes, 1 if self.kind == NOR else 512, 0, 0)
            return 0
        if request == MEMGETBADBLOCK:
            return int(struct.unpack("@q", buffer)[0] in self.bad)
        start, length = struct.unpack("@II", buffer)
        assert start % SECTOR == 0
        assert length == SECTOR
        if request in (MEMLOCK, MEMUNLOCK):
            if not self.has_locks:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            (self.unlocked.add if request == MEMUNLOCK else self.unlocked.discard)(start)
            return 0
        assert request == MEMERASE
        assert start not in self.bad
        if self.has_locks and start not in self.unlocked:
            raise OSError(errno.EROFS, "Read-only file system")
        self.erased.append(start)
        self.path.write_bytes(self.content[:start] + b"\xff" * length + self.content[start + length :])
        self.states.append(self.content)
        return 0

    def _programmed(self) -> None:
        """What was written since the last request must have cleared bits only."""
        before, after = self.states[-1], self.content
        if before != after:
            assert all(new & ~old == 0 for old, new in zip(before, after, strict=True)), "programmed without an erase"
            self.states.append(after)

    def area(self, offset: int = 0, size: int = ENV, sector: int = 0, sectors: int = 0, lock: bool = True) -> FlashArea:
        return flash_area(EnvLocation(str(self.path), offset, size, sector, sectors, lock), self.ioctl)

    def store(self, folder: Path, *lines: str) -> UBootStore:
        config = folder / "fw_env.config"
        config.write_text("".join(f"{self.path} {line}\n" for line in lines))
        return UBootStore(config, SLOTS, default_environment=Path("/none"), find_area=lambda place: flash_area(place, self.ioctl))


def cuts(before: bytes, after: bytes) -> list[bytes]:
    """What a chip may hold when the power goes between two states: every prefix of the change, in steps of 64 bytes."""
    changed = [index for index, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    first, last = changed[0], changed[-1] + 1
    return [after[:place] + before[place:] for place in [*range(first, last, 64), last]]


@pytest.mark.parametrize(("kind", "scheme"), [(NOR, Scheme.BOOLEAN), (NAND, Scheme.INCREMENTAL)])
def test_every_cut_on_flash_leaves_the_old_or_the_new_state(tmp_path: Path, kind: int, scheme: Scheme) -> None:
    chip = Chip(tmp_path, kind)
    store = chip.store(tmp_path, "0x1000 0x2000", "0x4000 0x2000")
    store.rebuild(BootState(SLOTS, {"A": 10, "B": 0}))
    assert chip.area(0x1000).scheme is scheme
    for number in range(3):  # both directions: copy 0 -> 1 and 1 -> 0
        old_state = store.read()
        new_state = BootState(("B", "A"), {"A": number, "B": 3}, "B")
        chip.states = [chip.content]
        store.commit(new_state)
        chip._programmed()
        history = list(chip.states)
        assert len(history) >= (6 if kind == NOR else 5)
        seen = []
        for before, after in pairwise(history):
            for torn in cuts(before, after):
                chip.path.write_bytes(torn)
                chip.states = [torn]
                seen.append(store.read())
                assert seen[-1] in (old_state, new_state)
        assert {state == new_state for state in seen} == {True, False}
        assert seen[-1] == new_state
        chip.path.write_bytes(history[-1])
        chip.states = [history[-1]]


def test_a_cut_before_the_old_copy_is_marked_is_healed_by_the_next_commit(tmp_path: Path) -> None:
    chip = Chip(tmp_path)
    store = chip.store(tmp_path, "0x0 0x2000", "0x2000 0x2000")
    store.rebuild(BootState(SLOTS, {"A": 10, "B": 0}))
    store.commit(STATE)
    both_active = chip.content[:4] + b"\x01" + chip.content[5:]
    chip.path.write_bytes(both_active)
    chip.states = [both_active]
    store.commit(STATE)
    assert store.read() == STATE


def test_nor_marks_the_old_copy_with_one_byte(tmp_path: Path) -> None:
    chip = Chip(tmp_path)
    store = chip.store(tmp_path, "0x0 0x2000", "0x2000 0x2000")
    store.rebuild(STATE)
    assert (chip.content[4], chip.content[0x2004]) == (1, 0)
    store.commit(BootState(SLOTS, {"A": 1, "B": 1}))
    assert (chip.content[4], chip.content[0x2004]) == (0, 1)
    assert chip.unlocked == set(), "what was unlocked is locked again"


def test_bad_blocks_are_stepped_over(tmp_path: Path) -> None:
    chip = Chip(tmp_path, NAND)
    chip.bad = {0x1000, 0x2000}
    area = chip.area(0x0, sectors=4)
    data = encode(Environment((b"a=1",)), ENV, Scheme.INCREMENTAL, 3)
    area.write(data)
    assert area.read() == data
    assert chip.erased == [0x0, 0x3000]
    assert chip.content[0x1000:0x3000] == b"\xff" * 0x2000


def test_too_many_bad_blocks_cost_one_copy_not_the_store(tmp_path: Path) -> None:
    chip = Chip(tmp_path, NAND)
    store = chip.store(tmp_path, "0x0 0x2000 0x1000 3", "0x4000 0x2000 0x1000 3")
    store.rebuild(STATE)
    chip.bad = {0x0, 0x1000}
    assert store.read() == STATE
    assert store.invalid_copies() == (0,)
    before = list(chip.erased)
    with pytest.raises(Failed, match="bad blocks"):
        store.commit(BootState(SLOTS, {"A": 1, "B": 1}))
    assert chip.erased == before, "nothing is erased for a write that cannot be finished"
    chip.bad |= {0x4000, 0x5000}
    with pytest.raises(ConfigError, match="bad blocks") as caught:
        store.read()
    assert not isinstance(caught.value, StoreUnreadable)


def test_flash_without_locks(tmp_path: Path) -> None:
    chip = Chip(tmp_path)
    chip.has_locks = False
    data = encode(Environment((b"a=1",)), ENV, Scheme.BOOLEAN, 1)
    chip.area().write(data)
    assert chip.area().read() == data


def test_locks_that_are_not_to_be_touched(tmp_path: Path) -> None:
    chip = Chip(tmp_path)
    with pytest.raises(Failed, match="Read-only"):
        chip.area(lock=False).write(encode(Environment(), ENV, Scheme.BOOLEAN, 1))


def test_what_lies_behind_a_short_environment_is_not_erased(tmp_path: Path) -> None:
    chip = Chip(tmp_path)
    chip.area(size=0x1800).write(encode(Environment(), 0x1800, Scheme.BOOLEAN, 1))
    chip.path.write_bytes(chip.content[:0x1F00] + b"serial number" + chip.content[0x1F0D:])
    chip.states = [chip.content]
    with pytest.raises(ConfigError, match="something else lies behind"):
        chip.area(size=0x1800).write(encode(Environment(), 0x1800, Scheme.BOOLEAN, 1))
    assert b"serial number" in chip.content


class CutErase(LinuxCalls):
    """NAND after an erase that was cut off: pages of that sector cannot be read until it is erased again."""

    def __init__(self, chip: Chip, pages: range) -> None:
        self.chip, self.pages = chip, pages

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        if not self.chip.erased and offset < self.pages.stop and self.pages.start < offset + count:
            raise OSError(errno.EBADMSG, "Bad message")
        return super().pread(fd, count, offset)


def test_a_cut_erase_behind_a_short_environment_is_done_again(tmp_path: Path) -> None:
    chip = Chip(tmp_path, NAND)
    data = encode(Environment((b"a=1",)), 0x800, Scheme.INCREMENTAL, 1)
    area = flash_area(EnvLocation(str(chip.path), 0, 0x800, 0, 0, True), chip.ioctl, CutErase(chip, range(0x800, SECTOR)))
    area.write(data)
    assert area.read() == data


def test_a_chip_that_does_not_hold_what_is_written(tmp_path: Path) -> None:
    chip = Chip(tmp_path)

    def worn(fd: int, request: int, buffer: bytearray) -> int:
        result = chip.ioctl(fd, request, buffer)
        if request == MEMLOCK:
            content = bytearray(chip.content)
            content[0x20] = 0
            chip.path.write_bytes(content)
        return result

    area = flash_area(EnvLocation(str(chip.path), 0, ENV), worn)
    with pytest.raises(Failed, match="reads back differently"):
        area.write(encode(Environment((b"a=" + b"x" * 100,)), ENV, Scheme.BOOLEAN, 1))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"offset": 0x800}, "not a multiple"),
        ({"offset": -0x2000}, "not a multiple"),
        ({"offset": 0xB000}, "too short"),
        ({"sector": 0x800}, "erases"),
        ({"sectors": 1}, "do not hold"),
    ],
)
def test_places_on_flash_that_cannot_be(tmp_path: Path, arguments: dict[str, int], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Chip(tmp_path).area(**arguments)  # type: ignore[arg-type]


def test_kinds_of_flash_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="type 1"):
        Chip(tmp_path, RAM).area()
    with pytest.raises(ConfigError, match="whole pages"):
        Chip(tmp_path, NAND).area(size=0x1100)


def test_two_copies_in_one_sector_overlap(tmp_path: Path) -> None:
    chip = Chip(tmp_path)
    with pytest.raises(ConfigError, match="overlap"):
        chip.store(tmp_path, "0x0 0x1000 0x2000 1", "0x0 0x1000").read()
    store = chip.store(tmp_path, "0x0 0x1000 0x1000 3", "0x1000 0x1000")
    with pytest.raises(ConfigError, match="overlap"):
        store.read()


def test_a_character_device_that_is_no_flash_is_refused_by_the_kernel() -> None:
    for device in ("/dev/null", "/dev/zero"):
        with pytest.raises(ConfigError, match="no flash"):
            open_area(EnvLocation(device, 0, ENV))
