"""The judge of the coverage figures, from a run of the real tool over two small functions."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.coverage_bounds import enough, read, table

CODE = """\
def half(number):
    if number % 2:
        return None
    return number // 2


half(4)
"""


def test_lines_and_branches_are_counted_apart_and_each_has_its_bound(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    for command in (("run", "--branch", "--data-file=data", "code.py"), ("json", "-q", "--data-file=data", "-o", "report.json")):
        subprocess.run([sys.executable, "-m", "coverage", *command], cwd=tmp_path, env=env, check=True, capture_output=True)
    total, files = read((tmp_path / "report.json").read_text())
    assert files == {"code.py": total}
    assert (total.lines, total.lines_reached, total.branches, total.branches_reached) == (5, 4, 2, 1)
    assert "80.0 % of 5 lines" in table(total, files)
    assert "50.0 % of 2 branches" in table(total, files)
    assert not enough(total)
    whole = replace(total, lines=100, lines_reached=95, branches=10, branches_reached=9)
    assert enough(whole)
    assert not enough(replace(whole, lines_reached=94))
    assert not enough(replace(whole, branches_reached=8))
    assert not enough(replace(whole, lines=0, lines_reached=0)), "nothing was measured"
