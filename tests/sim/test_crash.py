"""A sample of the crash simulator: every operation with few subsets and one cut, every fault; `tests/run --sim` explores all of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate.durable import replace as replace_file
from tests.sim.__main__ import Explored, Task, report
from tests.sim.blocks import Block, Disk, Nature
from tests.sim.bootplace import BootPlace
from tests.sim.chips import NAND, NOR, PAGE_BYTES, ChipKind, Flash
from tests.sim.device import Device
from tests.sim.explore import Explorer, Limits, Tally, explore, survivors
from tests.sim.filesystem import Files
from tests.sim.judge import Scenario, Violation
from tests.sim.places import PLACES
from tests.sim.scenarios import applies, scenarios
from tests.sim.stores import RAW

NAMES = tuple(scenario.name for scenario in scenarios(Path("/nowhere")))
BY_NAME = {store.name: store for store in PLACES}
FEW = Limits(depth=1, most=16, samples=8)
# A slot has so many sectors that even the extremes are many.
FEWER = Limits(depth=1, most=8, samples=0)
# Slots of which nearly every sector differs; one such operation, "flash, both slots good", is enough for a sample.
WIDE = frozenset(
    {"flash --no-activate", "flash over a written slot", "flash, fresh board", "flash, medium loses a block", "flash that brings keyrings"}
)
FAULTS: tuple[tuple[BaseException, bool], ...] = (
    (OSError(errno.EIO, "Input/output error"), False),
    (KeyboardInterrupt(), False),
    (OSError(errno.EROFS, "Read-only file system"), True),
    (OSError(errno.ENOSPC, "No space left on device"), True),
)


def scenario(folder: Path, name: str) -> Scenario:
    return next(one for one in scenarios(folder) if one.name == name)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in WIDE else ()) for name in NAMES])
def test_every_operation(name: str, folder: Path, tell: Callable[[str, Tally], None]) -> None:
    tally = explore(scenario(folder, name), RAW, FEWER if name.startswith("flash") else replace(FEW, depth=2, again=200))
    tell(name, tally)
    assert len(tally.states) >= 2
    assert tally.steps >= 5
    assert not tally.lost


IN_EVERY_PLACE = ("activate", "confirm", "revert, on trial", "service, after a fallback")
# Where none of those can be explored.
INSTEAD = {"grub-rauc": ("flash, fresh board", "keyring update")}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (name, store.name)
        for store in PLACES
        for name in INSTEAD.get(store.name, IN_EVERY_PLACE)
        if store is not RAW and applies(name, store)
    ],
)
def test_the_boot_store_in_every_place(name: str, place: str, folder: Path, tell: Callable[[str, Tally], None]) -> None:
    store = BY_NAME[place]
    tally = explore(scenario(folder, name), store, FEW)
    tell(f"{name} [{place}]", tally)
    assert len(tally.states) >= 10
    assert bool(tally.lost) is store.single


def every_fault() -> Iterator[object]:
    """Every operation with every fault; in a sample, the first of them meets all but the wide ones, the others every third operation, each
    another third."""
    for number, (kind, (fault, lasting)) in enumerate(zip(("I/O error", "SIGINT", "data read-only", "data full"), FAULTS, strict=True)):
        for place, name in enumerate(NAMES):
            sampled = name not in WIDE if number == 0 else place % 3 == number % 3
            yield pytest.param(name, fault, lasting, id=f"{kind}-{name}", marks=() if sampled else pytest.mark.slow)


@pytest.mark.parametrize(("name", "fault", "lasting"), list(every_fault()))
def test_every_fault(name: str, fault: BaseException, lasting: bool, folder: Path) -> None:
    assert Explorer(scenario(folder, name), RAW, FEW).fail(fault, lasting=lasting) >= 4


def lie(part: str) -> Callable[[Scenario], Scenario]:
    """The scenario on a medium that acknowledges flushes and does nothing."""

    def spoiled(honest: Scenario) -> Scenario:
        def prepare(store: BootPlace) -> Device:
            device = honest.prepare(store)
            found = device.machine.part(part)
            if isinstance(found, Block):
                device.machine.put(part, Block.of(replace(found.nature, lies=True), found.content))
            else:
                assert isinstance(found, Files)
                device.machine.put(part, Files.with_files(found.seen, found.folders, lies=True))
            return device

        return replace(honest, prepare=prepare)

    return spoiled


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("flash, both slots good", "A.rootfs"),
        ("flash --no-activate", "B.boot"),
        ("flash, both slots good", "env"),
        ("confirm", "env"),
        ("revert, steady", "files"),
        ("activate", "files"),
    ],
)
def test_a_lying_medium_is_noticed(name: str, part: str, folder: Path) -> None:
    with pytest.raises(Violation):
        explore(lie(part)(scenario(folder, name)), RAW, FEW)


def test_a_table_of_too_few_states_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """What is not explored finds nothing: a whole run counts."""
    tasks = [Task(name, "disk", FEW, Path("/nowhere")) for name in ("one", "other")]
    done = [Explored(tasks[0], states=bytes(range(32))), Explored(tasks[1], states=bytes(range(16)))]
    for at_least, code in ((0, 0), (2, 0), (3, 1)):
        assert report(tasks, done, at_least) == code
        assert capsys.readouterr().out.splitlines()[-1] == f"total 2 {code}"
    assert report(tasks, [done[0], replace(done[1], violation="broken")], 2) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "total 2 1"


# ---- the models themselves


def left(part: Block | Files | Flash, most: int = 4096) -> set[object]:
    """What a cut may leave of a medium."""
    return {found[0] for found in survivors((part,), 0, most, 256)}


def contents(part: Block) -> set[bytes]:
    return {found.content for found in left(part) if isinstance(found, Block)}


def test_unflushed_sectors_are_lost_torn_or_whole_in_every_combination() -> None:
    disk = Block.of(Nature("d", 512), b"o" * 1536).thaw()
    disk.write(0, b"A" * 512)
    disk.write(1024, b"C" * 512)
    one = {b"o" * 512, b"A" * 512, b"A" * 64 + b"o" * 448, b"A" * 256 + b"o" * 256, b"o" * 256 + b"A" * 256, (b"o" * 64 + b"A" * 64) * 4}
    assert contents(disk.freeze()) == {first + b"o" * 512 + third.replace(b"A", b"C") for first in one for third in one}
    disk.flush()
    assert contents(disk.freeze()) == {b"A" * 512 + b"o" * 512 + b"C" * 512}


def test_a_sector_of_4096_bytes_tears_where_its_logical_sectors_end() -> None:
    disk = Block.of(Nature("d", 4096), b"o" * 4096).thaw()
    disk.write(0, b"n" * 4096)
    found = contents(disk.freeze())
    assert {b"o" * 4096, b"n" * 4096, b"n" * 512 + b"o" * 3584, b"n" * 2048 + b"o" * 2048, b"o" * 2048 + b"n" * 2048} < found
    assert all(len(set(data[at : at + 512])) == 1 for data in found for at in range(0, 4096, 512))


def test_the_newest_of_two_writes_may_be_the_one_that_is_lost() -> None:
    disk = Disk(Nature("d", 512), b"o" * 512)
    disk.write(0, b"1" * 512)
    disk.write(0, b"o" * 512)
    assert disk.read(0, 512) == b"o" * 512
    assert {b"o" * 512, b"1" * 512} <= contents(disk.freeze())


def test_many_unflushed_sectors_are_sampled_with_the_extremes() -> None:
    disk = Block.of(Nature("d", 512), b"o" * 4096).thaw()
    disk.write(0, b"n" * 4096)
    found = contents_of_many(disk.freeze())
    assert 100 <= len(found) <= 1000
    assert {b"n" * 512 * n + b"o" * 512 * (8 - n) for n in range(9)} <= found
    assert {b"o" * 512 * n + b"n" * 512 * (8 - n) for n in range(9)} <= found


def contents_of_many(part: Block) -> set[bytes]:
    return {found.content for found in left(part, most=1000) if isinstance(found, Block)}


@pytest.mark.parametrize("kind", [NOR, NAND])
def test_flash_is_cut_in_the_middle_of_an_erase_and_of_a_program(kind: int) -> None:
    chip = Flash.of(ChipKind("c", kind, 1024), bytes(2048)).thaw()
    during: list[Flash] = []
    chip.listen(lambda step, inside: during.append(chip.freeze()) if inside else None)
    chip.erase(0)
    chip.program(0, b"\x0f" * 1024)
    erased, programmed = (left(part) for part in during)
    assert {part.content[:1024] for part in erased if isinstance(part, Flash)} >= {bytes(1024), b"\xff" * 1024}
    torn = [part for part in programmed if isinstance(part, Flash)]
    assert all(part.content[1024:] == bytes(1024) for part in torn)
    if kind == NAND:
        with pytest.raises(OSError, match="Bad message"):
            next(part for part in torn if part.unreadable).thaw().read(0, PAGE_BYTES)
        chip.erase(0)
        assert not chip.freeze().unreadable
    else:
        assert b"\x0f" * 512 + b"\xff" * 512 in {part.content[:1024] for part in torn}
    with pytest.raises(AssertionError, match="without an erase"):
        chip.program(1024, b"\x01" * 512)


@pytest.mark.parametrize("leave_out", ["nothing", "fsync of the file", "fsync of the folder"])
def test_the_file_system_model_keeps_only_what_was_synced(leave_out: str) -> None:
    tree = Files.with_files({}, ("/", "/d")).thaw()
    replace_file(Path("/d/f"), b"first, a little longer than what is written at once", files=tree)
    fd = tree.open(Path("/d/f.new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    tree.write(fd, memoryview(b"second"))
    if leave_out != "fsync of the file":
        tree.fsync(fd)
    tree.close(fd)
    tree.rename(Path("/d/f.new"), Path("/d/f"))
    if leave_out != "fsync of the folder":
        folder = tree.open(Path("/d"), os.O_RDONLY, 0)
        tree.fsync(folder)
        tree.close(folder)
    found = {after.content.get("/d/f") for after in left(tree.freeze()) if isinstance(after, Files)}
    expected = {
        "nothing": {b"second"},
        "fsync of the file": {b"second", b"sec", bytes(6), b"\0\0\0ond", b""},
        "fsync of the folder": {b"second", b"first, a little longer than what is written at once"},
    }
    assert found == expected[leave_out]


def test_a_new_folder_goes_with_everything_in_it_until_its_parent_is_synced() -> None:
    tree = Files.with_files({}).thaw()
    tree.mkdir(Path("/d"), 0o700)
    replace_file(Path("/d/f"), b"data", files=tree)
    found = [after.content for after in left(tree.freeze()) if isinstance(after, Files)]
    assert {} in found
    assert {"/d/f": b"data"} in found
