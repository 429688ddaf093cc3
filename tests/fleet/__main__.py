"""`python -m tests.fleet --schedules N --seed S [--kind K] [-j 2]`: many schedules; a line for each kind, each violation with its seed.

`--trace` prints the last steps of the first one, `--shrink` those of the smallest part of it that still fails. Ends with 1 where an
invariant is broken, or where something never occurred in a long run that it must show (occurring.py).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import abupdate
from tests.fleet.campaign import Tally, campaign, one
from tests.fleet.occurring import ENOUGH, missing
from tests.fleet.scenarios import KINDS

_TOLD_EVERY = 1000


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet")
    parser.add_argument("--schedules", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first one; the others follow (0)")
    parser.add_argument("--kind", choices=sorted(KINDS), help="all of one kind")
    parser.add_argument("-j", type=int, default=2, dest="jobs", help="processes (2)")
    parser.add_argument("--trace", action="store_true", help="one schedule, with its last steps")
    parser.add_argument("--shrink", action="store_true", help="one schedule: leave out actions while it still fails")
    parser.add_argument("--first", action="store_true", help="stop at the first failure")
    options = parser.parse_args()
    print(f"# {Path(abupdate.__file__).parents[1]}, seeds from {options.seed} on", flush=True)
    if options.trace or options.shrink:
        result, told = one(options.seed, options.kind, shrunk=options.shrink)
        print(told)
        print(result)
        return 1 if result.violation or result.live is False else 0
    start_s = time.monotonic()
    so_far = Tally()

    def heard(tallies: dict[str, Tally]) -> None:
        nonlocal so_far
        before, so_far = so_far, sum(tallies.values(), so_far)
        print("".join(f"{failure}\n" for failure in so_far.failures[len(before.failures) :]), end="", file=sys.stderr, flush=True)
        if so_far.schedules // _TOLD_EVERY > before.schedules // _TOLD_EVERY:
            print(f"# {so_far.schedules} schedules, {time.monotonic() - start_s:.0f} s, {len(so_far.failures)} failures", flush=True)

    tallies = campaign(options.seed, options.schedules, options.kind, options.jobs, first_only=options.first, heard=heard)
    report(tallies)
    total = sum(tallies.values(), Tally())
    print(f"{total.schedules} schedules, {time.monotonic() - start_s:.0f} s")
    never = missing(total.counts, total.faults) if total.schedules >= ENOUGH and options.kind is None else []
    if never:
        print(f"never occurred: {', '.join(never)}", file=sys.stderr)
    return 1 if total.failures or never else 0


def report(tallies: dict[str, Tally]) -> None:
    """One line for each kind."""
    names = "".join(f"{name:>10}" for name in ("schedules", "steps", "decisions"))
    print(f"{'kind':14}{names}{'grants':>8}{'crashes':>8}{'live':>7}{'stuck':>6}{'moot':>6}{'violations':>11}{'ms each':>9}")
    for kind, tally in sorted(tallies.items()):
        each_ms = 1000 * tally.seconds / max(1, tally.schedules)
        print(
            f"{kind:14}{tally.schedules:10}{tally.steps:10}{tally.decisions:10}{tally.grants:8}{tally.crashes:8}{tally.live:7}{tally.stuck:6}"
            f"{tally.moot:6}{tally.violations:11}{each_ms:9.0f}"
        )
    whole = sum(tallies.values(), Tally())
    for what, counts in (("decided", whole.counts), ("faults", whole.faults)):
        print(f"{what}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))


if __name__ == "__main__":
    sys.exit(main())
