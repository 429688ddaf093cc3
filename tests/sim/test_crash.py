"""Every power cut, kill and I/O error of every operation, and that the simulator notices when something is wrong."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from abupdate.devices.durable import replace
from tests.sim.device import Device
from tests.sim.explore import Explorer, Scenario, Tally, Violation, explore
from tests.sim.medium import Disk, Media, Tree, torn
from tests.sim.scenarios import scenarios

NAMES = tuple(scenario.name for scenario in scenarios(Path("/nowhere")))
# A first state_dir and a slot of which every block differs: many ways to lose something, the second cut is for `python -m tests.sim`.
WIDE = frozenset({"flash, fresh board", "flash --no-activate", "flash, medium loses a block"})
FAULTS: tuple[tuple[BaseException, bool], ...] = (
    (OSError(errno.EIO, "Input/output error"), False),
    (KeyboardInterrupt(), False),
    (OSError(errno.EROFS, "Read-only file system"), True),
    (OSError(errno.ENOSPC, "No space left on device"), True),
)


def scenario(folder: Path, name: str) -> Scenario:
    return next(one for one in scenarios(folder) if one.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_every_cut(name: str, folder: Path, tell: Callable[[str, Tally], None]) -> None:
    tally = explore(scenario(folder, name), depth=1 if name in WIDE else 2)
    tell(name, tally)
    assert tally.states >= 4
    assert tally.steps >= 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("fault", "lasting"), FAULTS, ids=["I/O error", "SIGINT", "data read-only", "data full"])
def test_every_fault(name: str, fault: BaseException, lasting: bool, folder: Path) -> None:
    assert Explorer(scenario(folder, name)).fail(fault, lasting=lasting) >= 5


def lie(what: Callable[[Media], Disk | Tree]) -> Callable[[Scenario], Scenario]:
    """The scenario on a part that acknowledges flushes and does nothing."""

    def spoiled(honest: Scenario) -> Scenario:
        def prepare() -> Device:
            device = honest.prepare()
            what(device.media).lies = True
            return device

        return Scenario(**{**{name: getattr(honest, name) for name in honest.__dataclass_fields__}, "prepare": prepare})

    return spoiled


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("flash, both slots good", lambda media: media.slots["A"]),
        ("flash --no-activate", lambda media: media.slots["B"]),
        ("flash, both slots good", lambda media: media.env),
        ("confirm", lambda media: media.env),
        ("revert, steady", lambda media: media.files),
        ("activate", lambda media: media.files),
    ],
)
def test_a_lying_medium_is_noticed(name: str, part: Callable[[Media], Disk | Tree], folder: Path) -> None:
    with pytest.raises(Violation):
        explore(lie(part)(scenario(folder, name)), depth=1)


def media_with(env: Disk | None = None, files: Tree | None = None) -> Media:
    return Media(env or Disk("env", [b"0"] * 4), {}, files or Tree())


def test_unflushed_sectors_are_lost_torn_or_whole_in_every_combination() -> None:
    disk = Disk("env", [b"old!"] * 3)
    disk.write(0, b"newA")
    disk.write(2, b"newC")
    left = {tuple(after.env.sectors) for after in media_with(disk).survivors()}
    first, third = (b"old!", b"ned!", b"newA"), (b"old!", b"ned!", b"newC")
    assert left == {(one, b"old!", other) for one, other in itertools.product(first, third)}
    assert torn(b"newA", b"old!") == b"ned!"
    disk.flush()
    assert {tuple(after.env.sectors) for after in media_with(disk).survivors()} == {(b"newA", b"old!", b"newC")}


def test_many_unflushed_sectors_are_sampled_with_the_extremes() -> None:
    disk = Disk("env", [b"old!"] * 8)
    for number in range(8):
        disk.write(number, b"new!")
    left = {tuple(after.env.sectors) for after in media_with(disk).survivors()}
    assert 60 <= len(left) <= 3**8
    assert (b"old!",) * 8 in left
    assert (b"new!",) * 8 in left
    assert {(b"new!",) * n + (b"old!",) * (8 - n) for n in range(9)} <= left


@pytest.mark.parametrize("leave_out", ["nothing", "fsync of the file", "fsync of the folder"])
def test_the_file_system_model_keeps_only_what_was_synced(leave_out: str) -> None:
    tree = Tree(names={"/": -1, "/d": -1}, kept={"/": -1, "/d": -1})
    replace(Path("/d/f"), b"first, a little longer than what is written at once", files=tree)
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
    left = {after.files.content().get("/d/f") for after in media_with(files=tree).survivors()}
    expected = {
        "nothing": {b"second"},
        "fsync of the file": {b"second", b"sec", bytes(6), b""},
        "fsync of the folder": {b"second", b"first, a little longer than what is written at once"},
    }
    assert left == expected[leave_out]


def test_a_new_folder_goes_with_everything_in_it_until_its_parent_is_synced() -> None:
    tree = Tree()
    tree.mkdir(Path("/d"), 0o700)
    replace(Path("/d/f"), b"data", files=tree)
    left = [after.files.content() for after in media_with(files=tree).survivors()]
    assert {} in left
    assert {"/d/f": b"data"} in left
