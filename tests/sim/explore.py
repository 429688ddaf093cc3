"""Cuts the power at every durable step of an operation and between, keeps any part of what was not flushed, and judges what is left.

A run of an operation is recorded once: before each write, flush, fsync, rename the media are copied, with their caches. Every copy
yields what a cut there may leave (`Media.survivors`). Each is judged, started by the hook, brought on by the same command again, and
that run is cut in turn. States are counted after removing duplicates (same environment, record, heads and slots).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache

from abupdate import machine
from abupdate.errors import AbupdateError
from abupdate.formats.record import RecordDamaged, RecordUnknown, decode
from abupdate.model import Facts, Phase, Record, Situation, SlotState
from tests.sim.device import (
    KNOWN,
    POLICY,
    SLOTS,
    STATE,
    Content,
    Device,
    copies_of,
    counting,
    exit_code,
    power_up,
    reboot,
    run_hook,
    slot_content,
)
from tests.sim.medium import Media

# More boots than tries and both budgets together.
_MANY_BOOTS = 30


class Violation(AssertionError):
    """The device broke a promise; the message says which, after what."""


@dataclass(frozen=True)
class Scenario:
    """An operation to be cut.

    prepare: the device just before it. command: what is run, again after every cut. goal: judges device and exit code after a
    run; None where the command need not be run on this boot. confirmed: what may boot outside a trial, as (slot, version);
    confirms: what the operation itself may add to that. reverts: slots that may be recorded as reverted. starts: the service's start
    is the operation (the command does nothing). blind: the store may be unreadable.
    """

    name: str
    prepare: Callable[[], Device]
    command: Callable[[Device], None]
    goal: Callable[[Device, int, Device], str]
    confirmed: frozenset[tuple[str, str]]
    confirms: frozenset[tuple[str, str]] = frozenset()
    reverts: frozenset[str] = frozenset()
    needed: Callable[[Device], bool] = lambda device: True
    starts: bool = False
    blind: bool = False


@dataclass(frozen=True)
class Snapshot:
    """The media just before `step`; `running` is the process' machine for the case that only the process dies."""

    step: str
    running: Device


@dataclass
class Tally:
    """What an exploration saw. states: distinct media after a cut; runs: of the command; steps: durable steps of the uncut run."""

    states: int = 0
    runs: int = 0
    steps: int = 0
    codes: Counter[int] = field(default_factory=Counter)


def explore(scenario: Scenario, *, depth: int = 2, max_states: int = 1_000_000) -> Tally:
    """Enumerate; raises Violation at the first broken promise. depth: how many cuts one after the other."""
    return Explorer(scenario, depth, max_states).run()


class _Fault:
    """Raises at the n-th step; lasting: then at every one of the data partition."""

    def __init__(self, fault: BaseException, number: int, lasting: bool) -> None:
        self.fault, self.number, self.lasting = fault, number, lasting
        self.count = 0

    def into(self, media: Media) -> None:
        """Listen to all media."""
        media.listen(self._step)
        if self.lasting:
            media.files.on_event = self._data_step

    def _step(self, step: str) -> None:
        self.count += 1
        if self.count == self.number + 1 and not self.lasting:
            raise self.fault

    def _data_step(self, step: str) -> None:
        self.count += 1
        if self.count > self.number:
            raise self.fault


class Explorer:
    """The exploration of one scenario."""

    def __init__(self, scenario: Scenario, depth: int = 1, max_states: int = 1_000_000) -> None:
        self.scenario = scenario
        self.depth = depth
        self.max_states = max_states
        self.tally = Tally()
        self.seen: set[object] = set()
        self.moments: set[object] = set()
        self.queue: deque[tuple[Media, int, str]] = deque()
        self.start = scenario.prepare()
        self.floor = _floor(self.start)
        self.uncut = self.start.clone()

    def run(self) -> Tally:
        """Uncut run first, then breadth first over what its cuts leave."""
        shots = self._attempt(self.uncut, service=self.scenario.starts, story="uncut")
        self.tally.steps = len(shots) - 1
        self._cut(shots, 1, "")
        for shot in shots:
            # Only the process dies: same boot, nothing lost. Not inside a write of the environment, which is one call (O_DSYNC).
            if shot.running.media.env.cache:
                continue
            killed = shot.running.clone()
            self._check(killed, f"killed before {shot.step}")
            story = f"killed before {shot.step}, again: "
            self._cut(self._attempt(killed, service=self.scenario.starts, story=story), 1, story)
        while self.queue and len(self.seen) < self.max_states:
            media, depth, story = self.queue.popleft()
            self._continue(media, depth, story)
        self.tally.states = len(self.seen)
        return self.tally

    def fail(self, fault: BaseException, *, lasting: bool = False) -> int:
        """Let every step of the uncut run fail in turn; then, after a reboot without the fault, the command must do its work.

        lasting: it is the data partition that fails, from that step on; what happened meanwhile may stay unexplained then.
        Returns the number of runs.
        """
        steps: list[str] = []
        self.uncut.media.listen(steps.append)
        self._once(self.uncut)
        self.uncut.media.listen(lambda step: None)
        for number in range(len(steps)):
            device = self.start.clone()
            _Fault(fault, number, lasting).into(device.media)
            with suppress(KeyboardInterrupt):
                self._once(device)
            device.media.listen(lambda step: None)
            story = f"{fault!r} at {steps[number]}"
            self._check(device, story)
            after = reboot(device)
            self._judge(after.media, story)
            self._check(after, f"{story}, started")
            # The service goes on without a record that cannot be written; what it would have said is lost then.
            explained = not lasting and not (self.scenario.starts and isinstance(fault, OSError))
            self._attempt(after, service=True, story=f"{story}, again", record=False, judge=explained)
        return len(steps)

    def _once(self, device: Device) -> int:
        if self.scenario.starts:
            device.service()
        return exit_code(lambda: self.scenario.command(device))

    def _attempt(self, device: Device, *, service: bool, story: str, record: bool = True, judge: bool = True) -> list[Snapshot]:
        """Run the service's start (if wanted) and the command; judge the end; return the media before every step and at the end."""
        shots: list[Snapshot] = []
        if record:
            device.media.listen(lambda step: shots.append(Snapshot(step, device.clone())))
        code = 0
        if service:
            device.service()
        if self.scenario.needed(device):
            code = exit_code(lambda: self.scenario.command(device))
        device.media.listen(lambda step: None)
        self.tally.runs += 1
        self.tally.codes[code] += 1
        problem = self.scenario.goal(device, code, self.uncut) if judge else ""
        if problem:
            raise Violation(f"{self.scenario.name}: {story}: exit {code}: {problem}")
        self._check(device, f"{story}, at its end")
        shots.append(Snapshot("its end", device.clone()))
        left = {_key(media) for media in device.media.survivors()}
        if len(left) > 1:
            raise Violation(f"{self.scenario.name}: {story}: exit {code}, and a power cut afterwards undoes it")
        return shots

    def _cut(self, shots: list[Snapshot], depth: int, before: str) -> None:
        for shot in shots:
            moment = _moment(shot.running.media)
            if moment in self.moments:
                continue
            self.moments.add(moment)
            for media in shot.running.media.survivors():
                self._add(media, depth, f"{before}cut before {shot.step}")

    def _add(self, media: Media, depth: int, story: str) -> None:
        key = _key(media)
        if key in self.seen:
            return
        self.seen.add(key)
        self.queue.append((media, depth, story))

    def _continue(self, media: Media, depth: int, story: str) -> None:
        self._judge(media, story)
        booted, torn = run_hook(media.clone(), self.start.loads)
        for left in torn if depth <= self.depth else ():
            self._add(left, depth + 1, f"{story}, cut in the hook")
        assert booted.slot is not None
        for service in (True, False):
            if not service and (self.scenario.starts or depth > 1):
                continue
            device = power_up(media.clone(), self.start.folder, self.start.loads)
            self._check(device, f"{story}, started")
            record = depth < self.depth
            shots = self._attempt(device, service=service, story=f"{story}, again", record=record)
            if record:
                self._cut(shots, depth + 1, f"{story}, ")

    def _judge(self, media: Media, story: str) -> None:
        """What boots from here on if nobody ever confirms: always a whole slot, and outside a trial a confirmed one."""
        if counting(copies_of(media.env)) is None and not self.scenario.blind:
            raise Violation(f"{self.scenario.name}: {story}: the boot store is lost")
        media = media.clone()
        allowed = self.scenario.confirmed | self._newly(media)
        trials = 0
        for _ in range(_MANY_BOOTS):
            booted, _ = run_hook(media, self.start.loads)
            content = slot_content(media, booted.slot) if booted.slot else None
            if booted.slot is None or content is None:
                raise Violation(f"{self.scenario.name}: {story}: slot {booted.slot} boots and is not whole")
            trials += booted.trial
            if not booted.trial and (booted.slot, content.version) not in allowed:
                raise Violation(f"{self.scenario.name}: {story}: slot {booted.slot} boots for good and was never confirmed")
            if trials > POLICY.tries:
                raise Violation(f"{self.scenario.name}: {story}: more than {POLICY.tries} tries")
            if booted.failed and booted.slot in booted.failed:
                raise Violation(f"{self.scenario.name}: {story}: dark")

    def _newly(self, media: Media) -> frozenset[tuple[str, str]]:
        """What the operation has confirmed in the store by now."""
        copies = copies_of(media.env)
        index = counting(copies)
        copy = None if index is None else copies[index]
        if copy is None or copy.environment.get("BOOT_TRIAL"):
            return frozenset()
        order = (copy.environment.get("BOOT_ORDER") or b"").decode().split()
        return frozenset(pair for pair in self.scenario.confirms if pair[0] in order)

    def _check(self, device: Device, story: str) -> None:
        """Nothing is reported that is not so; the floor is where it should be."""
        try:
            problem = "" if self.scenario.blind and _unreadable(device) else "".join(self._lies(device))
        except AbupdateError as error:
            problem = f"cannot be observed: {error.message}"
        if problem:
            raise Violation(f"{self.scenario.name}: {story}: {problem}")

    def _lies(self, device: Device) -> Iterator[str]:
        facts = device.facts()
        assert facts.boot is not None
        record = machine.base_record(facts)
        content = {slot: _seen(device, slot) for slot in SLOTS}
        for slot, state in machine.slot_states(facts).items():
            known = record.slots.get(slot)
            found = content[slot]
            if state in (SlotState.CONFIRMED, SlotState.TRIAL, SlotState.WRITTEN):
                if found is None:
                    yield f"slot {slot} is called {state.value} and is not whole; "
                elif known is not None and known.bundle and known.bundle != found.bundle:
                    yield f"slot {slot} is called {known.version} and holds {found.version}; "
            elif slot in self.start.loads and slot in facts.boot.order and facts.boot.left.get(slot, 0) > 0 and not facts.boot.fresh:
                # On a fresh board the hook's default order names every slot, and the first commit takes the others out.
                yield f"slot {slot} is called {state.value} and can boot; "
            if state is SlotState.CONFIRMED and found is not None:
                pair = (slot, found.version)
                if pair not in self.scenario.confirmed | self.scenario.confirms:
                    yield f"slot {slot} is called confirmed and never was; "
        yield from self._tall_stories(facts, record, content)
        lowest = machine.floor(facts)
        trial = facts.boot.trial
        risen = [
            c.counter for s, c in content.items() if c and (s, c.version) in self.scenario.confirms and s in facts.boot.order and s != trial
        ]
        if lowest != max([self.floor, *risen]):
            yield f"the floor is {lowest}, it should be {max([self.floor, *risen])}; "

    def _tall_stories(self, facts: Facts, record: Record, content: dict[str, Content | None]) -> Iterator[str]:
        attempt = record.attempt
        if attempt is None:
            return
        found = content[attempt.slot]
        # A slot that was destroyed since was confirmed all the same.
        whole = attempt.slot not in self.start.loads or (found is not None and attempt.bundle in ("", found.bundle))
        if attempt.phase in (Phase.WRITTEN, Phase.ARMED, Phase.CONFIRMED) and not whole:
            yield f"the attempt on slot {attempt.slot} is {attempt.phase.value} and the slot does not hold it; "
        if attempt.phase is Phase.REVERTED and attempt.slot not in self.scenario.reverts:
            yield f"slot {attempt.slot} is recorded as reverted ({attempt.reason}) and was not; "
        assert facts.boot is not None
        if attempt.phase is Phase.CONFIRMED and (facts.boot.trial == attempt.slot):
            yield f"slot {attempt.slot} is recorded as confirmed and is on trial; "
        where = machine.situation(facts)
        used_up = facts.boot.trial is not None and facts.boot.left.get(facts.boot.trial, 0) == 0
        if where is Situation.FELL_BACK and not (facts.boot.trial in self.scenario.reverts and used_up):
            yield f"slot {facts.boot.trial} is said to have fallen back and did not; "
        if where is Situation.UNKNOWN:
            yield "an armed trial is unknown; "


def _unreadable(device: Device) -> bool:
    return counting(copies_of(device.media.env)) is None


def _seen(device: Device, slot: str) -> Content | None:
    """The slot as the running system sees it, through the cache."""
    disk = device.media.slots[slot]
    return KNOWN.get(tuple(disk.read(number) for number in range(len(disk.sectors))))


def _floor(device: Device) -> int:
    try:
        return machine.floor(device.facts())
    except AbupdateError:
        return device.board().state.load()[1]


def summary(device: Device, *, counters: bool = True, reasons: bool = True) -> object:
    """What must be the same after an uncut run and after one that was cut and run again."""
    facts = device.facts()
    assert facts.boot is not None
    record = machine.base_record(facts)
    last = record.attempt
    attempt = replace(last, boot_id="", reason=last.reason if reasons else "") if last else None
    left = tuple(sorted(facts.boot.left.items())) if counters else ()
    content = tuple(slot_content(device.media, slot) for slot in SLOTS)
    return (
        facts.booted,
        facts.boot.order,
        left,
        facts.boot.trial,
        facts.boot.policy,
        tuple(machine.slot_states(facts).items()),
        attempt,
        machine.floor(facts),
        content,
        machine.situation(facts),
    )


def _key(media: Media) -> object:
    """Two media with the same key go on alike: boot ids and sequence numbers are left out, their order is kept."""
    copies = copies_of(media.env)
    env = tuple(copy.environment.entries if copy else None for copy in copies), counting(copies)
    slots = tuple(tuple(media.slots[slot].sectors) for slot in SLOTS)
    return env, _files_key(media.files.content()), slots, str(STATE) in media.files.kept


def _moment(media: Media) -> object:
    """As `_key`, with what the caches hold: two moments with the same key leave the same after a cut."""
    files = media.files
    names = tuple((folder, tuple(change)) for folder, change in files.pending)
    # What is not flushed at one time belongs to one file; its bytes are in the live view.
    dirty = tuple(str(_shown(files.live[inode])[1]) for inode in files.dirty())
    caches = tuple(tuple(disk.cache) for disk in (media.env, *media.slots.values()))
    return _key(media), _files_key(files.seen()), names, dirty, caches


def _files_key(content: dict[str, bytes]) -> object:
    names: list[tuple[str, object]] = []
    sequences: list[int] = []
    for name, data in sorted(content.items()):
        # What a replacement left half done is truncated by the next one.
        if name == f"{STATE}/lock" or name.endswith(".new"):
            continue
        if name.startswith(f"{STATE}/record"):
            sequence, shown = _shown(data)
            sequences.append(sequence)
            names.append((name, shown))
        else:
            names.append((name, data))
    return tuple(names), sequences.index(max(sequences)) if sequences else -1


@lru_cache(maxsize=4096)
def _shown(data: bytes) -> tuple[int, str]:
    try:
        sequence, record = decode(data)
    except (RecordDamaged, RecordUnknown):
        return -1, f"damaged, {len(data)} bytes"
    return sequence, repr(replace(record, attempt=replace(record.attempt, boot_id="") if record.attempt else None))
