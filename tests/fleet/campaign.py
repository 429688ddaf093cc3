"""Many schedules, in a few processes, and what they came to."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fleet.scenarios import scenario
from tests.fleet.shrinking import shrink
from tests.fleet.world import Result, World

_CHUNK = 10


@dataclass
class Tally:
    """Sums over schedules. live, stuck, moot: made progress after healing, did not, need not. failures: a line for each that is wrong."""

    schedules: int = 0
    steps: int = 0
    decisions: int = 0
    grants: int = 0
    crashes: int = 0
    live: int = 0
    stuck: int = 0
    moot: int = 0
    violations: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def add(self, result: Result, seconds: float) -> None:
        """One schedule more."""
        self.schedules += 1
        self.steps += result.steps
        self.decisions += result.decisions
        self.grants += result.grants
        self.crashes += result.crashes
        self.live += result.live is True
        self.stuck += result.live is False
        self.moot += result.live is None
        self.violations += bool(result.violation)
        self.seconds += seconds
        self.counts.update(result.counts)
        self.faults.update(result.faults)
        if result.violation or result.live is False:
            what = result.violation or f"11: {result.why_not_live}"
            command = f"python -m tests.fleet --kind {result.kind} --seed {result.seed} --shrink"
            self.failures.append(
                f"VIOLATION --kind {result.kind} --seed {result.seed}: {what}\n    shown again, as small as it gets: {command}"
            )


def one(seed: int, kind: str | None, *, shrunk: bool = False) -> tuple[Result, str]:
    """One schedule with its trace. shrunk: the smallest part of it that still fails."""
    chosen = scenario(seed, kind)
    if shrunk:
        chosen = shrink(chosen)
    world = World(chosen)
    result = world.run()
    return result, f"{world.told()}\n{chosen}"


def run(seed: int, kind: str | None) -> tuple[Result, float]:
    """One schedule, and the seconds that it took."""
    start_s = time.process_time()
    result = World(scenario(seed, kind)).run()
    return result, time.process_time() - start_s


def _chunk(task: tuple[int, int, str | None, bool]) -> dict[str, Tally]:
    first, count, kind, first_only = task
    # Given back afterwards: with one job this is the caller's own process.
    silent, collecting = logging.root.manager.disable, gc.isenabled()
    logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        tallies: dict[str, Tally] = {}
        for seed in range(first, first + count):
            result, seconds = run(seed, kind)
            tally = tallies.setdefault(result.kind, Tally())
            tally.add(result, seconds)
            if first_only and tally.failures:
                break
        gc.collect()
        return tallies
    finally:
        logging.disable(silent)
        if collecting:
            gc.enable()


def campaign(
    first: int,
    count: int,
    kind: str | None = None,
    jobs: int = 1,
    *,
    first_only: bool = False,
    heard: Callable[[dict[str, Tally]], None] | None = None,
) -> dict[str, Tally]:
    """The schedules of `count` seeds from `first` on, by kind. The numbers do not depend on `jobs`. first_only: up to the first failure.

    heard: is told what each few schedules came to, as soon as they are over.
    """
    tasks = [(start, min(_CHUNK, first + count - start), kind, first_only) for start in range(first, first + count, _CHUNK)]
    total: dict[str, Tally] = {}

    def collect(tallies: dict[str, Tally]) -> None:
        for name, tally in tallies.items():
            total[name] = total.get(name, Tally()) + tally
        if heard is not None:
            heard(tallies)

    if jobs <= 1:
        for task in tasks:
            collect(_chunk(task))
            if first_only and any(tally.failures for tally in total.values()):
                break
    else:
        with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=50) as pool:
            for tallies in pool.imap_unordered(_chunk, tasks):
                collect(tallies)
    return total
