"""`python -m tests.mutants`: bugs made on purpose, one at a time, and which test of the quick part finds each.

Ends with 1 where one survives, with 2 where an entry of the table does not fit the code any more. Words after the options choose mutants
by a part of their name or file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tests.mutants.runner import StaleError, Verdict, baseline, judge, stale
from tests.mutants.table import MUTANTS, Mutant


def chosen(words: Sequence[str]) -> list[Mutant]:
    """Those of the table whose name or file holds one of the words."""
    return [one for one in MUTANTS if not words or any(word in one.name or word in one.file for word in words)]


def main() -> int:
    """Print the table as it grows."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("-j", type=int, default=2, dest="jobs", help="how many at a time (2)")
    parser.add_argument("word", nargs="*")
    options = parser.parse_args()
    mutants = chosen(options.word)
    problems = [f"{one.name} ({one.file}): {problem}" for one in mutants if (problem := stale(one))]
    if problems or not mutants:
        print("\n".join(problems) or "no mutant has such a name", file=sys.stderr)
        return 2
    start_s = time.monotonic()
    try:
        baseline(mutants, whole=False)
        verdicts = _judged(mutants, options.jobs)
        if any(one.whole for one in verdicts):
            baseline(mutants, whole=True)
    except StaleError as error:
        print(error, file=sys.stderr)
        return 2
    survivors = [one.mutant for one in verdicts if not one.killed_by]
    for mutant in survivors:
        print(f"survived: {mutant.name} ({mutant.file}): {mutant.breaks}")
    print(f"mutants: {len(verdicts)}, survivors: {len(survivors)}, {time.monotonic() - start_s:.0f} s")
    return 1 if survivors else 0


def _judged(mutants: Sequence[Mutant], jobs: int) -> list[Verdict]:
    verdicts: list[Verdict] = []
    print(f"{'mutant':44} {'seconds':>7}  killed by", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(judge, mutant) for mutant in mutants]
        try:
            for done in as_completed(waiting):
                verdict = done.result()
                verdicts.append(verdict)
                by = verdict.killed_by or "NOTHING"
                print(f"{verdict.mutant.name:44} {verdict.seconds:7.1f}  {by}{' (not named)' if verdict.whole else ''}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
