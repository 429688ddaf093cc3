"""Cuts the power at every durable step of an operation and between, keeps any part of what was not flushed, and judges what is left.

An operation is run once uncut. Its journal has the media before each write, flush, fsync, rename and erase; each moment yields what a cut
there may leave. Each such state is judged, started by the hook (whose own writes are cut too), brought to its end by the same command,
and that run is cut in turn, up to `depth` cuts. A state counts once: same environment, same files, same bytes on both slots.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache

from tests.sim.bootplace import BootPlace
from tests.sim.contents import block_key
from tests.sim.device import Device, again, exit_code, reboot
from tests.sim.journal import Machine, Moment
from tests.sim.judge import Judge, Scenario, Violation, lost
from tests.sim.parts import Part, digest, outcomes
from tests.sim.rings import version_on
from tests.sim.state import files_key


@dataclass(frozen=True)
class Limits:
    """How far an exploration goes.

    depth: cuts one after the other. most, samples: outcomes of a first cut, see parts.outcomes; again_most, again_samples: of the cuts
    after it. again: how many distinct states each cut after the first may add. seed: of all samples.
    """

    depth: int = 2
    most: int = 256
    samples: int = 128
    again_most: int = 16
    again_samples: int = 16
    again: int = 1_000_000
    seed: int = 0


@dataclass
class Tally:
    """What an exploration saw. states: keys of distinct media after a cut; runs: of the command; steps: durable steps of the uncut run.

    lost: states in which a single environment was gone, as documented.
    """

    states: set[bytes] = field(default_factory=set)
    runs: int = 0
    steps: int = 0
    lost: int = 0
    codes: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class _State:
    """ring: version of the keyring before the run that was cut."""

    parts: tuple[Part, ...]
    story: str
    ring: int


class Explorer:
    """The exploration of one scenario with its environment in one place."""

    def __init__(self, scenario: Scenario, store: BootPlace, limits: Limits = Limits()) -> None:
        self.scenario = scenario
        self.store = store
        self.limits = limits
        self.tally = Tally()
        self.moments: set[tuple[Part, ...]] = set()
        self.start = scenario.prepare(store)
        self.judge = Judge(scenario, self.start)
        self.uncut = self.start.clone()
        self.found: list[_State] = []
        self.most_states = sys.maxsize

    def run(self) -> Tally:
        """The uncut run first, then cut by cut what is left of it. Raises Violation at the first broken promise."""
        journal = self._attempt(self.uncut, service=self.scenario.starts, story="uncut")
        self.tally.steps = len(journal) - 1
        self._cut(journal, 1, "")
        for moment in journal:
            if not moment.inside:
                self._kill(moment)
        for depth in range(1, self.limits.depth + 1):
            frontier, self.found = self.found, []
            # Not in the order of the run, so that a bound on the number of states leaves no part of it out.
            random.Random(self.limits.seed).shuffle(frontier)
            self.most_states = len(self.tally.states) + self.limits.again
            for state in frontier:
                self._continue(state, depth)
        return self.tally

    def fail(self, fault: BaseException, *, lasting: bool = False) -> int:
        """Let every step of the uncut run fail in turn; then, after a reboot without the fault, the command must do its work.

        lasting: it is the data partition that fails, from that step on; what happened meanwhile may stay unexplained then.
        Returns the number of runs.
        """
        # A record of a newer version that cannot be put aside gives way all the same: saving goes on.
        self.judge = Judge(replace(self.scenario, keeps=b""), self.start)
        steps: list[str] = []
        self.uncut.machine.fault = lambda name, step: steps.append(f"{name}: {step}")
        self._once(self.uncut)
        self.uncut.machine.fault = None
        for number in range(len(steps)):
            device = self.start.clone()
            device.machine.fault = _Fault(fault, number, lasting)
            with suppress(KeyboardInterrupt):
                self._once(device)
            device.machine.fault = None
            story = f"{fault!r} at {steps[number]}"
            self._expect(self.judge.device(device), story)
            after = reboot(device)
            self._expect(self.judge.media(after.machine.parts), story)
            self._expect(self.judge.device(after), f"{story}, started")
            # The service goes on without a record that cannot be written; what it would have said is lost then.
            explained = not lasting and not (self.scenario.starts and isinstance(fault, OSError))
            self._attempt(after, service=True, story=f"{story}, again", judge=explained)
        return len(steps)

    def _expect(self, problem: str, story: str) -> None:
        if problem:
            raise Violation(f"{self.scenario.name} [{self.store.name}]: {story}: {problem}")

    def _once(self, device: Device) -> int:
        if self.scenario.starts:
            device.service()
        return exit_code(lambda: self.scenario.command(device))

    def _attempt(self, device: Device, *, service: bool, story: str, judge: bool = True) -> list[Moment]:
        """Run the service's start (if wanted) and the command; judge the end; return every moment of it and the end."""
        device.machine.journal.clear()
        code = 0
        if service:
            device.service()
        if self.scenario.needed(device):
            code = exit_code(lambda: self.scenario.command(device))
        journal = [*device.machine.journal, Moment("its end", False, device.machine.parts, device.boot.settled)]
        self.tally.runs += 1
        self.tally.codes[code] += 1
        problem = self.scenario.goal(device, code, self.uncut) if judge else ""
        self._expect(problem and f"exit {code}: {problem}", story)
        self._expect(self.judge.device(device), f"{story}, at its end")
        if any(part.choices for part in device.machine.parts):
            left = {key_of(self.store, parts, leftovers=False) for parts in survivors(device.machine.parts, self.limits.seed, 64, 64)}
            self._expect(f"exit {code}, and a power cut afterwards undoes it" if len(left) > 1 else "", story)
        return journal

    def _kill(self, moment: Moment) -> None:
        """Only the process dies: same boot, nothing lost; the command is run again, and that run is cut."""
        boot = replace(self.start.boot, settled=moment.settled)
        killed = Device(
            Machine(self.start.machine.names, moment.parts), boot, self.store, self.start.folder, self.start.loads, self.start.has_tpm
        )
        story = f"killed before {moment.step}"
        self._expect(self.judge.device(killed), story)
        self._cut(self._attempt(killed, service=self.scenario.starts, story=f"{story}, again"), 1, f"{story}, again: ")

    def _cut(self, journal: list[Moment], depth: int, before: str) -> None:
        limits = self.limits
        most, samples = (limits.most, limits.samples) if depth == 1 else (limits.again_most, limits.again_samples)
        for moment in journal:
            if len(self.tally.states) >= self.most_states:
                return
            if moment.parts in self.moments:
                continue
            self.moments.add(moment.parts)
            ring = version_on(journal[0].parts[1])
            for parts in survivors(moment.parts, limits.seed, most, samples):
                self._add(parts, f"{before}cut before {moment.step}", ring)

    def _add(self, parts: tuple[Part, ...], story: str, ring: int) -> None:
        key = key_of(self.store, parts)
        if key not in self.tally.states:
            self.tally.states.add(key)
            self.found.append(_State(parts, story, ring))

    def _continue(self, state: _State, depth: int) -> None:
        if lost(self.store, state.parts[0]) and not self.scenario.blind:
            self._lost(state)
            return
        self._expect("the keyring went back" if version_on(state.parts[1]) < state.ring else "", state.story)
        self._expect(self.judge.media(state.parts), state.story)
        more = depth < self.limits.depth and len(self.tally.states) < self.most_states
        started = self.start.rom.power_up(state.parts[0], self.start.loads)
        for during in started.during if more else ():
            for parts in survivors((during, *state.parts[1:]), self.limits.seed, 64, 32):
                self._add(parts, f"{state.story}, cut in the hook", state.ring)
        for service in (True, False):
            if not service and (self.scenario.starts or depth > 1):
                continue
            device = again(self.start, state.parts)
            self._expect(self.judge.device(device), f"{state.story}, started")
            journal = self._attempt(device, service=service, story=f"{state.story}, again")
            if more:
                self._cut(journal, depth + 1, f"{state.story}, ")

    def _lost(self, state: _State) -> None:
        """The environment is gone: for a single one that is the documented loss, and then nothing else may happen to the device."""
        self._expect("" if self.store.single else "the boot store is lost", state.story)
        self.tally.lost += 1
        device = again(self.start, state.parts)
        before = device.machine.parts
        code = exit_code(lambda: self.scenario.command(device)) if not self.scenario.starts else 2
        changed = [name for name, old, new in zip(device.machine.names, before, device.machine.parts, strict=True) if old is not new]
        self._expect("" if code == 2 else f"exit {code} without a boot store", state.story)
        self._expect("" if not set(changed) - {"files"} else f"changed {changed} without a boot store", state.story)
        # The service may rebuild it for the slot that runs, where the record gives it leave and does not know that slot to be none.
        device.service()
        if not lost(self.store, device.machine.parts[0]):
            after = reboot(device)
            content = after.content(after.boot.slot)
            self._expect("" if content is not None else "rebuilt for a slot that is not whole", state.story)
            good = content is not None and (after.boot.slot, content.version) in self.scenario.confirmed
            self._expect("" if good or after.boot.slot == device.boot.slot else "rebuilt for a slot that was never good", state.story)


class _Fault:
    """Raises at the n-th step; lasting: then at every one of the data partition."""

    def __init__(self, fault: BaseException, number: int, lasting: bool) -> None:
        self.fault, self.number, self.lasting = fault, number, lasting
        self.count = 0

    def __call__(self, name: str, step: str) -> None:
        self.count += 1
        if self.count <= self.number:
            return
        if (self.lasting and name == "files") or (not self.lasting and self.count == self.number + 1):
            raise self.fault


def survivors(parts: tuple[Part, ...], seed: int, most: int, samples: int) -> Iterator[tuple[Part, ...]]:
    """What a cut now may leave."""
    dirty = tuple(index for index, part in enumerate(parts) if part.choices)
    if not dirty:
        yield parts
        return
    for left in _left(tuple(parts[index] for index in dirty), seed, most, samples):
        whole = list(parts)
        for index, part in zip(dirty, left, strict=True):
            whole[index] = part
        yield tuple(whole)


@cache
def _left(dirty: tuple[Part, ...], seed: int, most: int, samples: int) -> tuple[tuple[Part, ...], ...]:
    choices = [count for part in dirty for count in part.choices]
    found: dict[tuple[Part, ...], None] = {}
    for picks in outcomes(choices, seed, most, samples):
        rest = iter(picks)
        found[tuple(part.after(rest) for part in dirty)] = None
    return tuple(found)


def key_of(store: BootPlace, parts: tuple[Part, ...], *, leftovers: bool = True) -> bytes:
    """Two states with the same key go on alike."""
    env, files, *slots = parts
    return digest(store.key(env) if leftovers else store.meaning(env), files_key(files, leftovers), *map(block_key, slots))


def explore(scenario: Scenario, store: BootPlace, limits: Limits = Limits()) -> Tally:
    """Enumerate; raises Violation at the first broken promise."""
    return Explorer(scenario, store, limits).run()
