"""Bugs of the protocol, put into a copy of the package: the simulator must see each one, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet.mutants import MUTANTS, Mutant
from tests.mutants import runner
from tests.mutants.table import Mutant as TextMutant

_LIMIT_S = 900


def _as_text(mutant: Mutant) -> TextMutant:
    return TextMutant(mutant.name, f"abupdate/{mutant.file}", mutant.old, mutant.new, mutant.breaks, ("tests/fleet/test_mutants.py",))


def test_every_entry_fits_the_code() -> None:
    problems = {mutant.name: runner.stale(_as_text(mutant)) for mutant in MUTANTS}
    assert not {name: problem for name, problem in problems.items() if problem}
    assert len(problems) == len(MUTANTS) >= 24


@pytest.mark.slow
@pytest.mark.timeout(_LIMIT_S)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_simulator_sees_the_mutant(mutant: Mutant, tmp_path: Path) -> None:
    tree = runner.copied(tmp_path, _as_text(mutant))
    command = [sys.executable, "-m", "tests.fleet", "--kind", mutant.kind, "--schedules", str(mutant.schedules), "--first", "-j", "1"]
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    assert f"# {tree}" in done.stdout, f"not the copy was run: {done.stdout[:200]} {done.stderr[-2000:]}"
    assert done.returncode == 1, f"survived {mutant.schedules} schedules of {mutant.kind}: {mutant.breaks}\n{done.stdout}"
    assert "VIOLATION" in done.stderr
    assert "the core raises" not in done.stderr, "the mutant breaks the code, not the protocol"
