"""What must hold after every cut: what boots is whole, nothing is reported that is not so, the floor is where it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from abupdate import machine
from abupdate.errors import AbupdateError
from abupdate.model import Facts, Phase, Record, Situation, SlotState
from tests.sim.bootplace import SLOTS, BootPlace
from tests.sim.bootrom import fate
from tests.sim.contents import Content
from tests.sim.device import Device, content_of
from tests.sim.filesystem import Files
from tests.sim.parts import Part
from tests.sim.rings import RINGS, V2_OF_RING_3, version_on
from tests.sim.tpm import Index


class Violation(AssertionError):
    """The device broke a promise; the message says which, after what."""


@dataclass(frozen=True)
class Scenario:
    """An operation to be cut.

    prepare: the device just before it, with its environment in that place. command: what is run, again after every cut. goal: judges
    device and exit code after a run. confirmed: what may boot outside a trial, as (slot, version); confirms: what the operation itself
    may add to that. reverts: slots that may be recorded as reverted. arms: slots that are put on trial: where they have one try, a cut may
    use it up, and that is recorded too. needed: false where the command need not be run on this boot. starts: the service's start is the
    operation (the command does nothing). blind: the store may be unreadable or say nothing. keeps: bytes that some file of state_dir must
    hold whatever happens. stays: slots that can boot for good whatever happens.
    """

    name: str
    prepare: Callable[[BootPlace], Device]
    command: Callable[[Device], None]
    goal: Callable[[Device, int, Device], str]
    confirmed: frozenset[tuple[str, str]]
    confirms: frozenset[tuple[str, str]] = frozenset()
    reverts: frozenset[str] = frozenset()
    arms: frozenset[str] = frozenset()
    needed: Callable[[Device], bool] = lambda device: True
    starts: bool = False
    blind: bool = False
    keeps: bytes = b""
    stays: frozenset[str] = frozenset("A")


class Judge:
    """Holds a scenario's devices to its promises; every method returns the complaint, empty where there is none."""

    def __init__(self, scenario: Scenario, start: Device) -> None:
        self.scenario = scenario
        self.start = start
        self.floor = _floor(start)
        self._reverts = scenario.reverts | (scenario.arms if start.store.policy.tries == 1 else frozenset())
        # By the identity of what was looked at (Device.facts gives one object for the same facts), which is kept so that it stays its own.
        self._judged: dict[tuple[int, ...], tuple[str, Facts]] = {}

    def media(self, parts: tuple[Part, ...]) -> str:
        """What boots from here on if nobody ever confirms: always a whole slot, and outside a trial a confirmed one."""
        store, loads = self.start.store, self.start.loads
        state = store.state(parts[0])
        if state is not None and state.trial and content_of(parts, state.trial) is None:
            return f"slot {state.trial} is on trial and not whole"
        files = parts[1]
        assert isinstance(files, Files)
        if self.scenario.keeps and self.scenario.keeps not in files.content.values():
            return "a record of a newer version is gone"
        # Persisted before use: nothing that needs a newer keyring is on the device before that keyring is.
        if V2_OF_RING_3.head in files.content.values() and version_on(files) < len(RINGS):
            return "a bundle was used with a keyring that is not kept"
        if Index.of(parts[-1]) > self._floor_shown(parts):
            return "the TPM's floor is above what was ever confirmed"
        for good in sorted(self.scenario.stays):
            if state is None or state.fresh:
                break
            if good not in state.order or (state.left[good] == 0 and not store.gives_back):
                return f"slot {good} was good and is lost"
        found = fate(self.start.rom, parts[0], loads)
        allowed = self.scenario.confirmed | self._newly(parts)
        for slot, on_trial in found.boots:
            content = content_of(parts, slot) if slot else None
            if slot is None or content is None:
                return f"slot {slot} boots and is not whole"
            if not on_trial and (slot, content.version) not in allowed:
                return f"slot {slot} boots for good and was never confirmed"
        # Boots that the boot side gives back are the trial's too, until somebody cleans up: on the good slot, which came in between.
        if (found.row if store.gives_back else found.trials) > store.policy.tries:
            return f"more than {store.policy.tries} tries"
        return "dark" if found.dark else ""

    def _floor_shown(self, parts: tuple[Part, ...]) -> int:
        """The floor in the boot store; a device that has no TPM is not held to it."""
        state = self.start.store.state(parts[0])
        return (state.floor or 0) if state is not None else 0

    def _newly(self, parts: tuple[Part, ...]) -> frozenset[tuple[str, str]]:
        """What the operation has confirmed in the store by now."""
        state = self.start.store.state(parts[0])
        if not self.scenario.confirms or state is None or state.fresh or state.trial:
            return frozenset()
        return frozenset(pair for pair in self.scenario.confirms if pair[0] in state.order)

    def device(self, device: Device) -> str:
        """Nothing is reported that is not so; the floor is where it should be."""
        try:
            return "" if self.scenario.blind and self._says_nothing(device) else self._lie(device)
        except AbupdateError as error:
            return f"cannot be observed: {error.message}"

    def _says_nothing(self, device: Device) -> bool:
        """Unreadable, or still what the scenario began with. Nothing else may ever leave a store without a word."""
        part = device.machine.parts[0]
        return lost(device.store, part) or part == self.start.machine.parts[0]

    def _lie(self, device: Device) -> str:
        facts = device.facts()
        said = facts.booted if machine.situation(facts) is Situation.FELL_BACK else machine.next_boot(facts)
        part = device.machine.parts[0]
        if facts.forgetful and machine.situation(facts) is Situation.ARMED:
            # An ordered reboot is meant, after the start of the service, which asks for the try again where a cut lost that.
            part = device.store.warm(part, part.after(iter([count - 1 for count in part.choices])))
            said = facts.booted if self.start.rom.power_up(part, device.loads).slot == facts.booted else said
        started = self.start.rom.power_up(part, device.loads)
        # What comes first once the boot side has given boots back is its own business, a trial too.
        given = device.store.gives_back and facts.boot is not None and not any(facts.boot.left.values())
        if said != started.slot and said not in started.failed and not given:
            return f"slot {said} is said to boot next, slot {started.slot} does"
        content = {slot: device.content(slot) for slot in SLOTS}
        key = (id(facts), *map(id, content.values()))
        found = self._judged.get(key)
        if found is None:
            found = self._judged[key] = ("".join(self._lies(facts, content)), facts)
        return found[0]

    def _lies(self, facts: Facts, content: dict[str, Content | None]) -> Iterator[str]:
        assert facts.boot is not None
        record = machine.base_record(facts)
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
        if attempt.phase is Phase.REVERTED and attempt.slot not in self._reverts:
            yield f"slot {attempt.slot} is recorded as reverted ({attempt.reason}) and was not; "
        assert facts.boot is not None
        if attempt.phase is Phase.CONFIRMED and (facts.boot.trial == attempt.slot):
            yield f"slot {attempt.slot} is recorded as confirmed and is on trial; "
        where = machine.situation(facts)
        used_up = facts.boot.trial is not None and facts.boot.left.get(facts.boot.trial, 0) == 0
        if where is Situation.FELL_BACK and not (facts.boot.trial in self._reverts and used_up):
            yield f"slot {facts.boot.trial} is said to have fallen back and did not; "
        if where is Situation.UNKNOWN:
            yield "an armed trial is unknown; "


def lost(store: BootPlace, part: Part) -> bool:
    """Nothing on the medium is valid."""
    return store.state(part) is None


def _floor(device: Device) -> int:
    try:
        return machine.floor(device.facts())
    except AbupdateError:
        return device.board().state.load()[1]


def summary(device: Device, *, counters: bool = True, reasons: bool = True) -> object:
    """What must be the same after an uncut run and after one that was cut and run again."""
    facts = device.facts()
    key = (id(facts), counters, reasons)
    if key not in _SUMMARIES:
        _SUMMARIES[key] = (_summary(facts, counters, reasons), facts)
    return _SUMMARIES[key][0], tuple(content.version if content else None for content in map(device.content, SLOTS))


# The facts are kept, so that their identity stays their own.
_SUMMARIES: dict[tuple[object, ...], tuple[object, Facts]] = {}


def _summary(facts: Facts, counters: bool, reasons: bool) -> object:
    assert facts.boot is not None
    record = machine.base_record(facts)
    last = record.attempt
    attempt = replace(last, boot_id="", started_in="", starts=0, reason=last.reason if reasons else "") if last else None
    left = tuple(sorted(facts.boot.left.items())) if counters else ()
    return (
        facts.booted,
        facts.boot.order,
        left,
        facts.boot.trial,
        facts.boot.policy,
        tuple(machine.slot_states(facts).items()),
        attempt,
        machine.floor(facts),
        machine.situation(facts),
    )


def forget() -> None:
    """Drop what was remembered."""
    _SUMMARIES.clear()
