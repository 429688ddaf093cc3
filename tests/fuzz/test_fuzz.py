"""The fuzz targets in the suite: every kept input again, a short run of all targets under atheris, a longer one under --all.

The long run by hand is `python -m tests.fuzz all --seconds N`: see __main__.py.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import seeds, shapes
from tests.fuzz.targets import TARGETS, TIME_BOUND_S, Target, check

ROOT = Path(__file__).resolve().parents[2]
SHORT_RUNS = 1000
LONG_S = 20


def fuzz(*argv: str) -> dict[str, tuple[int, int]]:
    """Run the fuzzer; executions and accepted inputs by target. A finding fails."""
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-4000:]
    lines = [line.split() for line in done.stdout.splitlines() if not line.startswith("INFO")]
    return {name: (int(executions), int(accepted)) for name, executions, accepted in lines}


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input(name: str) -> None:
    """The seeds, most of which are accepted, and whatever was ever found; and a few changes of each."""
    inputs = seeds.kept(name)
    assert inputs
    accepted = [check(TARGETS[name], path.read_bytes()) for path in inputs]
    assert any(accepted)
    for number, path in enumerate(inputs):
        chance = Random(number)
        for _ in range(20):
            check(TARGETS[name], TARGETS[name].mutate(path.read_bytes(), chance, shapes.plain_change(chance)))


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_at_all(name: str) -> None:
    for data in (b"", b"\0", b"\xff" * 100):
        check(TARGETS[name], data)


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for name in TARGETS for path in seeds.kept(name)) < seeds.MAX_CORPUS_BYTES
    assert {path.name for path in seeds.CORPUS.iterdir()} == set(TARGETS)


def test_the_corpus_is_what_the_builders_make() -> None:
    """Formats that changed have new seeds: `python -m tests.fuzz --seeds`."""
    for name, inputs in seeds.seeds().items():
        assert [path.read_bytes() for path in sorted((seeds.CORPUS / name).iterdir())] == inputs, name


def _leaks(data: bytes) -> bool:
    raise KeyError(data)


def _hoards(data: bytes) -> bool:
    return len(bytearray(10_000_000)) < 0


def _ponders(data: bytes) -> bool:
    end = time.thread_time() + TIME_BOUND_S + 0.01
    while time.thread_time() < end:
        pass
    return True


@pytest.mark.parametrize(("run", "error"), [(_leaks, KeyError), (_hoards, AssertionError)])
def test_a_fault_is_a_finding(run: Callable[[bytes], bool], error: type[Exception]) -> None:
    with pytest.raises(error):
        check(Target(run, shapes.mutate_plain, 1000, 10), b"x")


@pytest.mark.slow
def test_a_hang_is_a_finding() -> None:
    with pytest.raises(AssertionError):
        check(Target(_ponders, shapes.mutate_plain, 10_000, 10), b"x")


def test_a_short_run() -> None:
    executions, accepted = fuzz("together", f"--runs={SHORT_RUNS}", "--seed=1")["together"]
    assert executions >= SHORT_RUNS
    assert accepted > SHORT_RUNS // 20


@pytest.mark.slow
@pytest.mark.timeout(len(TARGETS) * LONG_S * 5)
def test_a_longer_run() -> None:
    reached = fuzz("all", f"--seconds={LONG_S}")
    print("\n".join(f"{name}: {executions} executions, {accepted} accepted" for name, (executions, accepted) in reached.items()))
    assert reached.keys() == TARGETS.keys()
    assert all(executions > 100 for executions, _ in reached.values())
