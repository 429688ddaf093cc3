"""`python -m tests.sim`: a table of operation, steps, states after a cut, failures; the last line is `total STATES FAILURES`.

Ends with 1 where a promise is broken. Words after the options choose scenarios by a part of their name.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import abupdate
from tests.sim.explore import Violation, explore
from tests.sim.scenarios import scenarios


def main() -> int:
    """Run the chosen scenarios."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--depth", type=int, default=2, help="how many cuts one after the other")
    parser.add_argument("name", nargs="*")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    states = failures = 0
    print(f"# {abupdate.__file__}")
    print(f"{'operation':36} {'steps':>6} {'runs':>7} {'states':>8} failures")
    with tempfile.TemporaryDirectory() as folder:
        for scenario in scenarios(Path(folder)):
            if options.name and not any(part in scenario.name for part in options.name):
                continue
            try:
                tally = explore(scenario, depth=options.depth)
            except Violation as broken:
                failures += 1
                print(f"{scenario.name:36} VIOLATION {str(broken)[:600]}", flush=True)
                continue
            states += tally.states
            print(f"{scenario.name:36} {tally.steps:6} {tally.runs:7} {tally.states:8} 0", flush=True)
    print(f"total {states} {failures}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
