"""`python -m tests.coverage_bounds`: what the runs under coverage reached of abupdate/ together, and whether that is enough.

Combines the data files of all measured processes (.cache/coverage/), prints the files with most that no test reached and the totals of
lines and branches, and ends with 1 where one of them is below its bound.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[1]
MIN_LINES_PERCENT = 95.0
MIN_BRANCHES_PERCENT = 90.0
_WORST = 10


@dataclass(frozen=True, slots=True)
class Reached:
    """Lines and branches (ways out of a decision) of a file or of all: how many there are, how many some test reached."""

    lines: int
    lines_reached: int
    branches: int
    branches_reached: int
    excluded: int

    @property
    def missed(self) -> int:
        """Lines and branches that nothing reached."""
        return self.lines - self.lines_reached + self.branches - self.branches_reached

    @property
    def lines_percent(self) -> float:
        """Of 100."""
        return 100.0 * self.lines_reached / self.lines if self.lines else 100.0

    @property
    def branches_percent(self) -> float:
        """Of 100."""
        return 100.0 * self.branches_reached / self.branches if self.branches else 100.0


def read(report: str) -> tuple[Reached, dict[str, Reached]]:
    """coverage's JSON report -> the total and each file. Raises KeyError where branches were not measured."""
    document = json.loads(report)
    return _reached(document["totals"]), {name: _reached(file["summary"]) for name, file in document["files"].items()}


def _reached(summary: dict[str, int]) -> Reached:
    return Reached(
        lines=summary["num_statements"],
        lines_reached=summary["covered_lines"],
        branches=summary["num_branches"],
        branches_reached=summary["covered_branches"],
        excluded=summary["excluded_lines"],
    )


def table(total: Reached, files: dict[str, Reached]) -> str:
    """The report for people; its last line has both totals."""
    rows = sorted(files.items(), key=lambda item: (-item[1].missed, item[0]))[:_WORST]
    lines = [f"coverage: most is missing in {'lines':>14} {'branches':>16}"]
    lines += [
        f"  {name:36} {found.lines_reached:4} of {found.lines:4} {found.branches_reached:6} of {found.branches:4}"
        for name, found in rows
        if found.missed
    ]
    lines.append(
        f"coverage of abupdate/: {total.lines_percent:.1f} % of {total.lines} lines (at least {MIN_LINES_PERCENT:g}), "
        f"{total.branches_percent:.1f} % of {total.branches} branches (at least {MIN_BRANCHES_PERCENT:g}), "
        f"{total.excluded} lines left out"
    )
    return "\n".join(lines)


def enough(total: Reached) -> bool:
    """Whether both bounds are met."""
    return bool(total.lines) and total.lines_percent >= MIN_LINES_PERCENT and total.branches_percent >= MIN_BRANCHES_PERCENT


def main() -> int:
    """Combine, report, judge."""
    measured = coverage.Coverage()
    with contextlib.redirect_stdout(io.StringIO()):
        measured.combine(strict=True, keep=True)
        measured.save()
        with tempfile.TemporaryDirectory() as folder:
            # Tests that run a changed copy of the package leave data of their own.
            measured.json_report(outfile=str(Path(folder) / "report.json"), include=[f"{ROOT}/abupdate/*"])
            total, files = read((Path(folder) / "report.json").read_text())
    print(table(total, files))
    if not enough(total):
        print("coverage: below its bound; `.cache/venv/bin/python -m coverage report -m` says where", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
