"""`python -m tests.sim`: every operation with its environment in every place, cut everywhere; a table, then `total STATES FAILURES`.

The log of the fleet and the node's key are explored beside them; they lie in state_dir alone, so they have one place.

A state counts once in a row however often it is met there, and once in the total in however many rows. Ends with 1 where a promise is
broken, or where a whole run met fewer states than there must be. Words after the options choose operations by their name or, where none
is called so, by a part of it. The exploration is shared out among processes, by operation and place, each of which is explored alone: the
numbers do not depend on how many there are.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import abupdate
from tests.sim import fleetlog, journal, judge
from tests.sim.explore import Limits, Tally, explore
from tests.sim.judge import Violation
from tests.sim.places import PLACES
from tests.sim.scenarios import applies, scenarios

# The first place is explored with every subset that is feasible, the others with fewer samples.
WHOLE = Limits(depth=3, most=128, samples=64, again=1500)
OTHERS = Limits(depth=3, most=16, samples=8, again=700)
FEW = Limits(depth=1, most=8, samples=0)
# Distinct states of a whole run. Far fewer would mean that something is not explored any more, and nobody would see it.
AT_LEAST = 400_000
_FLEET = {one.name: one for one in fleetlog.SCENARIOS}


@dataclass(frozen=True)
class Task:
    """One operation with its environment in one place."""

    operation: str
    place: str
    limits: Limits
    folder: Path


@dataclass(frozen=True)
class Explored:
    """What came out. states: keys of all distinct states, one after the other. violation: empty, or the broken promise.

    cpu_s: seconds of processor that it took."""

    task: Task
    steps: int = 0
    runs: int = 0
    lost: int = 0
    states: bytes = b""
    violation: str = ""
    cpu_s: float = 0.0

    def each(self) -> Iterator[bytes]:
        """The states' keys."""
        return (self.states[at : at + 16] for at in range(0, len(self.states), 16))


def work(task: Task) -> Explored:
    """Explore, in a process of its own."""
    logging.disable(logging.CRITICAL)
    # Nothing here makes cycles that matter, and there is much to walk through.
    gc.disable()
    journal.forget()
    judge.forget()
    begun_s = time.process_time()
    try:
        if task.operation in _FLEET:
            return _explored(task, fleetlog.Explorer(_FLEET[task.operation], task.limits).run(), begun_s)
        store = next(one for one in PLACES if one.name == task.place)
        # A folder of its own: what one process makes there is not for another to find half made.
        with tempfile.TemporaryDirectory(dir=task.folder) as folder:
            scenario = next(one for one in scenarios(Path(folder)) if one.name == task.operation)
            tally = explore(scenario, store, task.limits)
    except Violation as broken:
        return Explored(task, violation=str(broken))
    except Exception as error:
        # Also on the way to the operation: what the code raises there is not for a power cut to find.
        return Explored(task, violation=f"{task.operation} [{task.place}]: {error!r}")
    return _explored(task, tally, begun_s)


def _explored(task: Task, tally: Tally, begun_s: float) -> Explored:
    return Explored(task, tally.steps, tally.runs, tally.lost, b"".join(sorted(tally.states)), cpu_s=time.process_time() - begun_s)


def tasks(folder: Path, options: argparse.Namespace) -> list[Task]:
    """All of them, the largest first."""
    names = [*(one.name for one in scenarios(folder)), *_FLEET]
    words = options.name or [""]
    chosen = [name for name in names if any(word == name if word in names else word in name for word in words)]
    found: list[Task] = []
    for place in PLACES:
        if options.place and place.name not in options.place:
            continue
        limits = replace(FEW if options.few else WHOLE if place is PLACES[0] else OTHERS, seed=options.seed, depth=options.depth)
        found += [
            Task(name, place.name, limits, folder) for name in chosen if place is PLACES[0] or (name not in _FLEET and applies(name, place))
        ]
    return sorted(found, key=lambda task: not task.operation.startswith("flash"))


def main() -> int:
    """Run the chosen scenarios."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--depth", type=int, default=3, help="how many cuts one after the other")
    parser.add_argument("--seed", type=int, default=0, help="of the samples where there are too many subsets")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--place", action="append", help=f"where the environment lies: {', '.join(store.name for store in PLACES)}")
    parser.add_argument("--few", action="store_true", help="few subsets of what was not flushed")
    parser.add_argument("name", nargs="*")
    options = parser.parse_args()
    print(f"# {abupdate.__file__}")
    print(f"# seed {options.seed}, up to {options.depth} cuts one after the other")
    with tempfile.TemporaryDirectory() as name:
        chosen = tasks(Path(name), options)
        if not chosen:
            parser.error("no such operation or place")
        if options.jobs > 1:
            with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=6) as pool:
                done = [_tell(one) for one in pool.imap_unordered(work, chosen)]
        else:
            done = [_tell(work(task)) for task in chosen]
    whole = not (options.name or options.place or options.few) and options.depth >= WHOLE.depth
    return report(chosen, done, AT_LEAST if whole else 0)


def _tell(one: Explored) -> Explored:
    """One line of progress."""
    found = one.violation[:200] or f"{len(one.states) // 16} states, {one.cpu_s:.1f} s"
    name = f"{one.task.operation} [{one.task.place}]: "
    print(name + found.removeprefix(name), file=sys.stderr, flush=True)
    return one


def report(chosen: list[Task], done: list[Explored], at_least: int = 0) -> int:
    """Print the table; 1 where something failed, or where there are fewer distinct states than `at_least`."""
    places = list(dict.fromkeys(task.place for task in chosen))
    widths = {place: max(9, len(place) + 1) for place in places}
    print(f"{'operation':36}" + "".join(f"{place:>{widths[place]}}" for place in places) + f"{'runs':>9}{'states':>9} failures")
    everything: set[bytes] = set()
    failures = lost = 0
    for operation in sorted(dict.fromkeys(task.operation for task in chosen)):
        row = {one.task.place: one for one in done if one.task.operation == operation}
        states = {key for one in row.values() for key in one.each()}
        broken = [one.violation for one in row.values() if one.violation]
        everything |= states
        failures += len(broken)
        lost += sum(one.lost for one in row.values())
        counts = {place: str(len(row[place].states) // 16) if place in row else "-" for place in places}
        numbers = "".join(f"{counts[place]:>{widths[place]}}" for place in places)
        print(f"{operation:36}{numbers}{sum(one.runs for one in row.values()):9}{len(states):9} {len(broken)}")
        for violation in broken:
            print(f"VIOLATION {violation[:600]}")
    if lost:
        print(f"# in {lost} of them a single environment was lost, as [bootloader] allow_single_env accepts")
    if not failures and len(everything) < at_least:
        print(f"VIOLATION of the simulator itself: {len(everything)} states, there were more than {at_least}")
        failures = 1
    print(f"total {len(everything)} {failures}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
