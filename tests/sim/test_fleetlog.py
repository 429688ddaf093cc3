"""A sample of the crash simulator for the fleet's log and the node's key, every fault, and the model of an end that is being written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sim.explore import Limits, Tally, survivors
from tests.sim.filesystem import Files
from tests.sim.fleetlog import SCENARIOS, Explorer, Scenario
from tests.sim.judge import Violation

FEW = Limits(depth=2, most=32, samples=16, again=200)
ONCE = Limits(depth=1, most=32, samples=16)
BY_NAME = {one.name: one for one in SCENARIOS}
each = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@each
def test_every_cut(scenario: Scenario, tell: Callable[[str, Tally], None]) -> None:
    tally = Explorer(scenario, FEW).run()
    tell(scenario.name, tally)
    assert len(tally.states) >= 60
    assert tally.steps >= 8


@pytest.mark.parametrize(
    ("fault", "lasting"),
    [
        (OSError(errno.EIO, "Input/output error"), False),
        (KeyboardInterrupt(), False),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
    ],
    ids=["I/O error", "SIGINT", "read-only", "full", "full for a moment"],
)
@each
def test_every_fault(scenario: Scenario, fault: BaseException, lasting: bool) -> None:
    assert Explorer(scenario, ONCE).fail(fault, lasting=lasting) >= 8


@pytest.mark.parametrize(
    "name", ["fleet key, shown", "fleet log, append", "fleet log, replace", "fleet log, lost", "fleet log, enrolled anew"]
)
def test_a_lying_medium_is_noticed(name: str) -> None:
    with pytest.raises(Violation):
        Explorer(BY_NAME[name], ONCE, lies=True).run()


# ---- the model of an end that is being written


def left(files: Files) -> set[bytes]:
    """What a cut may leave of /f."""
    found = (one[0] for one in survivors((files,), 0, 4096, 256))
    return {one.content["/f"] for one in found if isinstance(one, Files)}


def test_what_is_durable_stays_whatever_becomes_of_the_end() -> None:
    tree = Files.with_files({"/f": b"durable "}).thaw()
    descriptor = tree.open(Path("/f"), os.O_RDWR | os.O_APPEND, 0)
    tree.write(descriptor, memoryview(b"ABCD"))
    found = left(tree.freeze())
    ends = {b"", b"A", b"\0", b"AB", b"\0B", b"A\0", b"ABCD", b"\0\0\0\0", b"\0BC\0", b"AB\0\0", b"\0\0\0D"}
    assert {b"durable " + end for end in ends} <= found
    assert all(one.startswith(b"durable ") for one in found)
    tree.fdatasync(descriptor)
    assert left(tree.freeze()) == {b"durable ABCD"}


def test_an_end_that_was_cut_off_is_back_until_that_is_flushed() -> None:
    tree = Files.with_files({"/f": b"durable old!"}).thaw()
    descriptor = tree.open(Path("/f"), os.O_RDWR | os.O_APPEND, 0)
    tree.ftruncate(descriptor, 8)
    # Zeros, too: a kernel clears what it cuts off in a block that stays, before the file is shorter.
    assert {b"durable old!", b"durable ", b"durable \0ld!"} <= left(tree.freeze())
    tree.write(descriptor, memoryview(b"NEW!"))
    assert {b"durable old!", b"durable NEW!", b"durable Nld!", b"durable olW!"} <= left(tree.freeze())
    tree.fdatasync(descriptor)
    assert left(tree.freeze()) == {b"durable NEW!"}


def test_a_file_that_is_written_anew_keeps_nothing_for_sure() -> None:
    tree = Files.with_files({"/f": b"same beginning"}).thaw()
    descriptor = tree.open(Path("/f"), os.O_RDWR | os.O_TRUNC, 0)
    tree.write(descriptor, memoryview(b"same beginning, and more"))
    assert bytes(24) in left(tree.freeze())
