"""Where the device stands and what the next durable steps are: pure, from facts alone, without clock, files or log.

The situation is the first row that matches (`-` matches anything):

| # | store      | trial slot is | attempt is of | trial's tries | booted slot in order | situation      |
|---|------------|---------------|---------------|---------------|----------------------|----------------|
| 1 | unreadable | -             | -             | -             | -                    | unreadable     |
| 2 | valid      | booted        | -             | -             | -                    | on-trial       |
| 3 | valid      | other         | this boot     | -             | -                    | armed          |
| 4 | valid      | other         | another boot  | -             | -                    | fell-back      |
| 5 | valid      | other         | nobody        | used up       | -                    | fell-back      |
| 6 | valid      | other         | nobody        | left          | -                    | unknown        |
| 7 | valid      | none          | -             | -             | first                | steady         |
| 8 | valid      | none          | -             | -             | absent               | reboot-pending |
| 9 | valid      | none          | this boot     | -             | behind               | reboot-pending |
| 10 | valid     | none          | -             | -             | behind               | fell-through   |

"attempt" is the record's attempt to update the trial slot (rows 2 to 6), or the last ordered switch (rows 7 to 10; every change of
the order after the service has settled this boot is one). Row 2 stands before the boot ids because the slot that runs is the
stronger fact. Row 8: the running slot was taken out, so it never boots again.
Where arming does not outlive a power cut (tryboot), an attempt that nothing shows to have been tried (tries left, no start in the record,
no reset, nothing that the firmware says of this boot) counts as of this boot: the reboot parameter was lost, the new slot was not.
`steady` covers a confirmed slot, a fresh board and an interrupted write alike: what to do with them does not differ.

The floor (lowest security counter that may be installed) is the highest of its copies: both files of the record, the boot store's
mirror, the stored manifest of the confirmed slot that runs, and a copy outside (a TPM) where there is one. It rises at confirm, in
this order: boot store (one commit with the confirmation itself, so that no copy is ever above what was confirmed), record, copy
outside. A cut between leaves later copies behind, never ahead; the service's next start raises every copy that is behind
(`lagging`), so that copies lost one after the other do not lower it either. The bootloader's own fallback does not ask for it.

The fleet's lease is named by whoever arms a slot, or goes back, under it. The attempt keeps it to its end, however that comes
(confirmed, reverted, cancelled, a confirmed slot that did not start), so that the node can say after any restart what became of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from abupdate.errors import Busy, ConfigError, NothingToDo, Refused, StoreUnreadable
from abupdate.model import (
    MAX_COUNTER,
    Attempt,
    BootState,
    CommitBoot,
    Facts,
    Phase,
    RaiseFloor,
    ReadBack,
    RebuildBoot,
    Record,
    SaveHead,
    SaveRecord,
    Situation,
    SlotRecord,
    SlotState,
    Step,
    TrialPolicy,
    WriteSlot,
)


class Row(NamedTuple):
    """One row of the table in the module's docstring; None matches anything."""

    store: str | None
    trial: str | None
    attempt: str | None
    tries: str | None
    order: str | None
    situation: Situation


TABLE: tuple[Row, ...] = (
    Row("unreadable", None, None, None, None, Situation.UNREADABLE),
    Row("valid", "booted", None, None, None, Situation.ON_TRIAL),
    Row("valid", "other", "this boot", None, None, Situation.ARMED),
    Row("valid", "other", "another boot", None, None, Situation.FELL_BACK),
    Row("valid", "other", "nobody", "used up", None, Situation.FELL_BACK),
    Row("valid", "other", "nobody", "left", None, Situation.UNKNOWN),
    Row("valid", "none", None, None, "first", Situation.STEADY),
    Row("valid", "none", None, None, "absent", Situation.REBOOT_PENDING),
    Row("valid", "none", "this boot", None, "behind", Situation.REBOOT_PENDING),
    Row("valid", "none", None, None, "behind", Situation.FELL_THROUGH),
)


@dataclass(frozen=True, slots=True)
class Write:
    """Request: bring a bundle onto a slot, verified, not yet armed. bundle: id in hex. verity: as in SlotRecord."""

    slot: str
    bundle: str
    version: str
    counter: int
    lease: int | None = None
    verity: str = ""


@dataclass(frozen=True, slots=True)
class Activate:
    """Request: arm a slot that holds a written bundle. verified: its content was read back in this very run. lease: as in Attempt.

    verity: the root hash of the bundle's manifest, in hex.
    """

    slot: str
    verified: bool = False
    lease: int | None = None
    verity: str = ""


@dataclass(frozen=True, slots=True)
class Confirm:
    """Request: keep the slot that runs on trial."""


@dataclass(frozen=True, slots=True)
class Revert:
    """Request: go back. reason: what the record shall say. on_trial_only: do nothing unless the booted slot is on trial (the service).

    lease: under which a confirmed slot is gone back to; a trial that is ended keeps its own.
    """

    reason: str
    on_trial_only: bool = False
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Request: the service has started on this boot."""


Request = Write | Activate | Confirm | Revert | Start


def effective(facts: Facts) -> BootState | None:
    """The store's state; where it tells nothing (a board that abupdate never wrote to, an order that names none of our slots and no
    trial), the booted slot is confirmed and the others hold nothing."""
    boot = facts.boot
    if boot is None or not (boot.fresh or (not boot.order and boot.trial is None)):
        return boot
    left = {slot: boot.left.get(slot, 0) if slot == facts.booted else 0 for slot in facts.slots}
    left[facts.booted] = left[facts.booted] or _full(facts)
    return replace(boot, order=(facts.booted,), left=left, trial=None, fresh=True)


def _full(facts: Facts) -> int:
    # A budget of 0 means "not counted"; the slot still needs one boot left to be called bootable.
    return max(facts.policy.budget, 1)


def observation(facts: Facts) -> tuple[str, str, str, str, str]:
    """The five columns of the table for these facts."""
    boot = effective(facts)
    if boot is None:
        return ("unreadable", "none", "nobody", "left", "absent")
    trial = "none" if boot.trial is None else "booted" if boot.trial == facts.booted else "other"
    attempt = facts.record.attempt if facts.record else None
    relevant = attempt is not None and (attempt.slot == boot.trial if boot.trial is not None else attempt.phase is Phase.REVERTED)
    whose = "nobody" if attempt is None or not relevant else "this boot" if attempt.boot_id == facts.boot_id else "another boot"
    tries = "left" if boot.trial is not None and boot.left.get(boot.trial, 0) > 0 else "used up"
    order = "absent" if facts.booted not in boot.order else "first" if boot.order[0] == facts.booted else "behind"
    if facts.forgetful and trial == "other" and tries == "left" and whose == "another boot" and _untried(facts, attempt):
        whose = "this boot"
    if boot.trial is None and facts.settled:
        # The service has put this boot's slot first already, so whoever changed that since (fw_setenv) meant it.
        whose = "this boot"
    return ("valid", trial, whose, tries, order)


def _untried(facts: Facts, attempt: Attempt | None) -> bool:
    """Armed where arming is forgotten at a power cut: a boot of the old slot is no fallback while nothing shows that the new one ran."""
    # Cancelled in the record and cut before the store: armed, as everywhere.
    if attempt is None or attempt.phase not in (Phase.WRITTEN, Phase.ARMED, Phase.CANCELLED):
        return False
    return not attempt.starts and not facts.reset and not facts.tried


def situation(facts: Facts) -> Situation:
    """The first row of TABLE that matches the facts."""
    seen = observation(facts)
    for row in TABLE:
        if all(want is None or want == have for want, have in zip(row[:5], seen, strict=True)):
            return row.situation
    raise AssertionError(f"no row for {seen}")  # the table is total: a test walks all combinations


def slot_states(facts: Facts) -> Mapping[str, SlotState]:
    """State of every slot as `status` reports it; raises StoreUnreadable where the store is."""
    boot = _readable(facts)
    record = base_record(facts)
    where = situation(facts)
    # Until the service has dealt with it, a slot that the boot side passed over still has its place and its boots.
    skipped = _passed_over(facts, boot) if where is Situation.FELL_THROUGH else ()
    states: dict[str, SlotState] = {}
    for slot in facts.slots:
        known = record.slots.get(slot)
        if slot == boot.trial:
            states[slot] = SlotState.BAD if where is Situation.FELL_BACK else SlotState.TRIAL
        elif slot == facts.booted:
            states[slot] = SlotState.CONFIRMED if slot in boot.order else SlotState.BAD
        elif slot in boot.order:
            good = boot.left.get(slot, 0) > 0 and slot not in skipped
            states[slot] = SlotState.CONFIRMED if good else SlotState.BAD
        elif known is None:
            states[slot] = SlotState.EMPTY
        elif known.state in (SlotState.CONFIRMED, SlotState.TRIAL):
            # The store took it out before the record could say why: not bootable is what counts.
            states[slot] = SlotState.BAD
        else:
            states[slot] = known.state
    return states


def next_boot(facts: Facts) -> str | None:
    """The slot that boots next, if its kernel starts: the first with boots left, or, in the last resort, the first not on trial."""
    boot = _readable(facts)
    counted = (slot for slot in boot.order if boot.left.get(slot, 0) > 0)
    return next(counted, next((slot for slot in boot.order if slot != boot.trial), None))


def base_record(facts: Facts) -> Record:
    """The record, or one rebuilt from facts where it is lost: slots in the boot order hold what their stored heads say."""
    if facts.record is not None:
        return facts.record
    boot = effective(facts)
    slots: dict[str, SlotRecord] = {}
    for slot in facts.slots:
        if boot is None or slot not in boot.order or slot not in facts.heads:
            continue
        state = SlotState.TRIAL if slot == boot.trial else SlotState.CONFIRMED
        slots[slot] = replace(facts.heads[slot], state=state)
    return Record(floor=floor(facts), slots=slots)


def floor(facts: Facts) -> int:
    """Highest security counter that any witness remembers: record, boot store, head of the confirmed slot that runs, copy outside."""
    boot = effective(facts)
    seen = [0, facts.witnessed, facts.record.floor if facts.record else 0, boot.floor or 0 if boot else 0, facts.outside or 0]
    if boot is not None and boot.trial != facts.booted and facts.booted in boot.order and facts.booted in facts.heads:
        seen.append(facts.heads[facts.booted].counter)
    return _highest(*seen)


def _highest(*counters: int) -> int:
    """What no bundle can reach is damage: it must not lock every update out, nor spread to the copies that are right."""
    return max((counter for counter in counters if counter <= MAX_COUNTER), default=0)


def decide(facts: Facts, request: Request) -> tuple[Step, ...]:
    """The durable steps that fulfil the request, in order, each to be on the medium before the next begins.

    The facts must be settled (`settle` returns nothing). Raises the errors of the CLI contract where the request must not or
    need not be carried out: StoreUnreadable, ConfigError, Refused, NothingToDo, Busy.
    """
    _readable(facts)
    match request:
        case Write():
            steps = _write(facts, request)
        case Activate():
            steps = _activate(facts, request)
        case Confirm():
            steps = _raising_outside(facts, _confirm(facts))
        case Revert():
            steps = _revert(facts, request)
        case Start():
            steps = _start(facts)
    return _remembering(facts, steps)


def _raising_outside(facts: Facts, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The confirmation's steps, the copy outside last: it must never know of a counter that the boot store does not show as confirmed."""
    risen = max(step.record.floor for step in steps if isinstance(step, SaveRecord))
    return steps if facts.outside is None else (*steps, RaiseFloor(risen))


def _remembering(facts: Facts, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps with every record at or above the floor: saving one goes over both files, also over the one that knew better."""
    known = floor(facts)
    return tuple(
        replace(step, record=replace(step.record, floor=known)) if isinstance(step, SaveRecord) and step.record.floor < known else step
        for step in steps
    )


def _readable(facts: Facts) -> BootState:
    boot = effective(facts)
    if boot is None:
        raise StoreUnreadable(
            f"boot store {facts.store} holds no valid state", "see `abupdate doctor`; `abupdate doctor --fix` rebuilds it"
        )
    return boot


def _without(boot: BootState, slot: str, keep: str, policy: TrialPolicy) -> BootState:
    """The state in which `slot` cannot boot and `keep` is first and good. policy: what is configured."""
    left = {**boot.left, slot: 0}
    left[keep] = left.get(keep, 0) or max(policy.budget, 1)
    rest = tuple(s for s in boot.order if s not in (slot, keep))
    verity = {s: root for s, root in boot.verity.items() if s != slot}
    return replace(boot, order=(keep, *rest), left=left, trial=None, policy=_agreed(boot, policy), fresh=False, verity=verity)


def _agreed(boot: BootState, policy: TrialPolicy) -> TrialPolicy | None:
    """The numbers that the store is to hold: its own, unless the boot side would count by another budget than is configured."""
    return boot.policy if (boot.policy or TrialPolicy()).budget == policy.budget else policy


def _note(record: Record, slot: str, state: SlotState, **changes: object) -> Record:
    known = record.slots.get(slot, SlotRecord(state))
    return replace(record, slots={**record.slots, slot: replace(known, state=state, **changes)})  # type: ignore[arg-type]


def emptied(facts: Facts) -> bool:
    """The store is valid and says nothing, though a flash has written to one: made anew by grub-editenv, or set to what its
    factory or firmware puts there. The boot side goes by its defaults then, whatever the slots hold."""
    boot, record = facts.boot, facts.record
    return boot is not None and boot.fresh and record is not None and record.attempt is not None


def rebuild(facts: Facts) -> tuple[Step, ...]:
    """Steps of the service where the store is unreadable or emptied; none where it is neither.

    Raises StoreUnreadable unless this very location was seen valid before, and held nothing that only the bootloader knew.
    """
    record = facts.record
    if facts.boot is not None:
        leave = emptied(facts) and record is not None and record.store == facts.store
        return (refill(facts),) if leave else ()
    if record is None or not facts.store or record.store != facts.store:
        raise StoreUnreadable(
            f"boot store {facts.store} holds no valid state, and the record gives no leave to rebuild it",
            "see `abupdate doctor`; `abupdate doctor --fix` writes a new one after showing it",
        )
    return (RebuildBoot(rebuilt(facts), "the store was valid before and is not now"),)


def refill(facts: Facts) -> CommitBoot:
    """What fills an emptied store."""
    return CommitBoot(rebuilt(facts), "it was emptied, and the record knows what it held")


def rebuilt(facts: Facts) -> BootState:
    """What an unreadable or emptied store is rebuilt to, with the root hash of every slot that may boot."""
    state = _rebuilt(facts)
    known = {slot: (facts.record.slots.get(slot) if facts.record else None) or facts.heads.get(slot) for slot in state.order}
    # Of no other slot: a store may have no place for it, and the next arming brings it anyway.
    return replace(state, verity={slot: found.verity for slot, found in known.items() if found is not None and found.verity})


def _rebuilt(facts: Facts) -> BootState:
    """The booted slot confirmed and the other out, unless the record knows better.

    A trial of the booted slot goes on. A slot that was being written, or found bad, runs only because the bootloader's default took it
    when the store was gone: the confirmed one goes first, and waits for a reboot.
    """
    record = facts.record or Record()
    attempt = record.attempt
    others = tuple(s for s in facts.slots if s != facts.booted)
    left = {facts.booted: _full(facts), **dict.fromkeys(others, 0)}
    state = BootState(order=(facts.booted,), left=left, policy=facts.policy, floor=floor(facts) or None)
    states = {slot: known.state for slot, known in record.slots.items()}
    # A cut may have come between the store, armed or not yet cancelled, and the record. Cancelled is also an ordered switch that a cut
    # has kept from happening: its slot is recorded as confirmed.
    begun = attempt is not None and attempt.slot == facts.booted and attempt.phase in (Phase.WRITTEN, Phase.ARMED, Phase.CANCELLED)
    whole = states.get(facts.booted) in (SlotState.WRITTEN, SlotState.TRIAL)
    if begun and whole and attempt is not None and attempt.previous in others:
        # Calling it confirmed would be a lie; its remaining tries are lost with the store, one is enough to finish this trial.
        left = {**left, facts.booted: 1, attempt.previous: _full(facts)}
        return replace(state, order=(facts.booted, attempt.previous), left=left, trial=facts.booted)
    good = tuple(s for s in others if states.get(s) is SlotState.CONFIRMED)
    if good and states.get(facts.booted) in (SlotState.WRITING, SlotState.WRITTEN, SlotState.BAD):
        return replace(state, order=good, left={**left, facts.booted: 0, **dict.fromkeys(good, _full(facts))})
    return state


def lagging(facts: Facts) -> tuple[Step, ...]:
    """Steps that raise the floor's copies that were lost or are behind; none while anything but the steady state is being dealt with."""
    boot, known = effective(facts), floor(facts)
    if boot is None or boot.fresh or situation(facts) is not Situation.STEADY:
        return ()
    steps: list[Step] = []
    if (boot.floor or 0) < known:
        steps.append(CommitBoot(replace(boot, floor=known), f"the floor is {known}"))
    if facts.record is not None and facts.record.floor < known:
        steps.append(SaveRecord(replace(facts.record, floor=known), f"the floor is {known}"))
    if facts.outside is not None and facts.outside < known:
        steps.append(RaiseFloor(known))
    return tuple(steps)


def settle(facts: Facts) -> tuple[Step, ...]:
    """Steps that bring record and store in line with an outcome that nobody has dealt with yet; every mutating verb does them first."""
    return _remembering(facts, _settle(facts))


def _settle(facts: Facts) -> tuple[Step, ...]:
    boot = _readable(facts)
    where = situation(facts)
    if where is Situation.FELL_BACK:
        return _clean_up_fallback(facts, boot)
    if where is Situation.FELL_THROUGH:
        return _clean_up_fall_through(facts, boot)
    attempt = facts.record.attempt if facts.record else None
    if facts.record is None or attempt is None:
        return ()
    if where is Situation.ARMED and attempt.phase is Phase.WRITTEN:
        record = replace(_note(facts.record, attempt.slot, SlotState.TRIAL), attempt=replace(attempt, phase=Phase.ARMED))
        return (SaveRecord(record, "armed before the cut"),)
    if boot.trial is not None:
        return ()
    if attempt.phase in (Phase.ARMED, Phase.WRITTEN) and attempt.slot in boot.order:
        if attempt.slot != facts.booted and attempt.counter > (boot.floor or 0):
            # Somebody else (fw_setenv) has put it there; it was never confirmed, and the floor must not rise before it has run.
            return ()
        # Confirmed in the store, cut before the record said so.
        done = replace(attempt, phase=Phase.CONFIRMED, reason="")
        record = _note(facts.record, attempt.slot, SlotState.CONFIRMED)
        return (SaveRecord(replace(record, attempt=done, floor=_highest(floor(facts), attempt.counter)), "confirmed before the cut"),)
    if attempt.phase is Phase.ARMED:
        done = replace(attempt, phase=Phase.REVERTED, reason=attempt.reason or _unseen_reason(facts, attempt))
        return (SaveRecord(replace(_note(facts.record, attempt.slot, SlotState.BAD), attempt=done), "reverted before the cut"),)
    if attempt.phase is Phase.REVERTED and where is Situation.STEADY and attempt.slot == facts.booted:
        done = replace(attempt, phase=Phase.CANCELLED, reason="cut before the other slot was made first")
        return (SaveRecord(replace(facts.record, attempt=done), "the switch did not happen"),)
    return ()


def fallback_reason(facts: Facts) -> str:
    """Why the trial slot does not run, as far as the facts tell."""
    boot = _readable(facts)
    attempt = facts.record.attempt if facts.record else None
    if attempt is not None and attempt.slot == boot.trial and attempt.phase is Phase.REVERTED and attempt.reason:
        return attempt.reason
    if boot.trial is None:
        return "unknown"
    used_up = boot.left.get(boot.trial, 0) == 0
    if facts.reset:
        return f"{facts.reset}, {'tries exhausted' if used_up else 'tries left'}"
    if facts.tried:
        return "load failed"
    if not used_up and facts.unsaved:
        return "its boot could not be counted"
    return "tries exhausted" if used_up else "load failed"


def _unseen_reason(facts: Facts, attempt: Attempt) -> str:
    """Why an attempt ended of which the store shows no trace any more: bootloaders that clean up by themselves leave nothing else."""
    if attempt.boot_id == facts.boot_id or facts.booted == attempt.slot:
        return "unknown: cut before the reason was recorded"
    return (
        f"{facts.reset}: the bootloader went back" if facts.reset else "unknown: the bootloader went back, or a cut came before the reason"
    )


def _clean_up_fallback(facts: Facts, boot: BootState) -> tuple[Step, ...]:
    assert boot.trial is not None
    slot = boot.trial
    record = base_record(facts)
    attempt = record.attempt if record.attempt and record.attempt.slot == slot else Attempt(slot, Phase.ARMED, "", previous=facts.booted)
    known = record.slots.get(slot)
    done = replace(
        attempt,
        phase=Phase.REVERTED,
        reason=fallback_reason(facts),
        bundle=attempt.bundle or (known.bundle if known else ""),
        version=attempt.version or (known.version if known else ""),
    )
    after = replace(_note(record, slot, SlotState.BAD), attempt=done)
    steps: list[Step] = []
    if after != facts.record:
        # The record first: the store still shows the fallback if the power goes now, the reason would be gone.
        steps.append(SaveRecord(after, f"slot {slot} fell back: {done.reason}"))
    steps.append(CommitBoot(_without(boot, slot, facts.booted, facts.policy), f"take slot {slot} out after its fallback"))
    return tuple(steps)


def _passed_over(facts: Facts, boot: BootState) -> tuple[str, ...]:
    """Slots before the one that runs."""
    return boot.order[: boot.order.index(facts.booted)] if facts.booted in boot.order else boot.order


def _lease_towards(attempt: Attempt | None, slots: tuple[str, ...]) -> int | None:
    """The lease under which one of these slots was brought up, by an update or by going back to it."""
    if attempt is None:
        return None
    went_back = attempt.phase is Phase.REVERTED and attempt.previous in slots
    return attempt.lease if attempt.slot in slots or went_back else None


def _clean_up_fall_through(facts: Facts, boot: BootState) -> tuple[Step, ...]:
    """A confirmed slot should have booted and did not: the one that runs goes first, the failed one stays behind it without boots."""
    failed = _passed_over(facts, boot)
    record = base_record(facts)
    used_up = all(boot.left.get(s, 0) == 0 for s in failed)
    cause = "boots used up" if used_up else "load failed"
    why = f"{facts.reset}, {cause}" if facts.reset else cause
    for slot in failed:
        record = _note(record, slot, SlotState.BAD)
    if failed:
        known = record.slots[failed[0]]
        lost = Attempt(failed[0], Phase.REVERTED, "", known.bundle, known.version, known.counter, previous=failed[0])
        reason = f"confirmed slot did not start: {why}; running on slot {facts.booted}"
        lost = replace(lost, lease=_lease_towards(record.attempt, failed), reason=reason)
        record = replace(record, attempt=lost)
    left = {**boot.left, **dict.fromkeys(failed, 0)}
    left[facts.booted] = left.get(facts.booted, 0) or _full(facts)
    rest = tuple(s for s in boot.order if s != facts.booted)
    state = replace(boot, order=(facts.booted, *rest), left=left, fresh=False)
    steps: list[Step] = []
    if record != facts.record:
        steps.append(SaveRecord(record, f"slot {', '.join(failed) or '?'} did not start: {why}"))
    steps.append(CommitBoot(state, f"slot {facts.booted} runs: it goes first"))
    return tuple(steps)


def _refuse_pending(facts: Facts, slot: str) -> None:
    where = situation(facts)
    boot = _readable(facts)
    if slot not in facts.slots:
        raise ConfigError(f"there is no slot {slot}", f"the configured slots are {', '.join(facts.slots)}")
    if where is Situation.ON_TRIAL:
        raise Busy(f"slot {boot.trial} is on trial", "wait for its end, or end it with `abupdate confirm` or `abupdate revert`")
    if where is Situation.ARMED:
        raise Busy(f"slot {boot.trial} is armed and waits for a reboot", "reboot, or cancel with `abupdate revert`")
    if where is Situation.UNKNOWN:
        raise Busy(
            f"slot {boot.trial} is marked on trial and the record is lost", "see `abupdate doctor`; `abupdate revert` takes the slot out"
        )
    if where is Situation.REBOOT_PENDING:
        raise Busy(f"slot {boot.order[0]} was made first and waits for a reboot", "reboot first")
    if slot == facts.booted:
        raise ConfigError(f"slot {slot} is the one that runs", "only the other slot can be written")


def precheck_write(facts: Facts, slot: str) -> None:
    """Refuse a write that must not begin: Busy while anything is pending, ConfigError for the booted or an unknown slot."""
    _readable(facts)
    _refuse_pending(facts, slot)


def _write(facts: Facts, request: Write) -> tuple[Step, ...]:
    _refuse_pending(facts, request.slot)
    boot, record, slot = _readable(facts), base_record(facts), request.slot
    content = {"version": request.version, "bundle": request.bundle, "counter": request.counter, "verity": request.verity}
    attempt = Attempt(
        slot, Phase.WRITING, facts.boot_id, request.bundle, request.version, request.counter, previous=facts.booted, lease=request.lease
    )
    writing = replace(_note(record, slot, SlotState.WRITING, **content), attempt=attempt)
    written = replace(_note(record, slot, SlotState.WRITTEN, **content), attempt=replace(attempt, phase=Phase.WRITTEN))
    return (
        # Also where the store shows it already: what an earlier commit has left may be in a cache alone.
        CommitBoot(_without(boot, slot, facts.booted, facts.policy), f"slot {slot} must not boot while it is written"),
        SaveHead(slot),
        SaveRecord(writing, f"writing slot {slot}"),
        WriteSlot(slot),
        ReadBack(slot),
        SaveRecord(written, f"slot {slot} is written and verified"),
    )


def armed_state(facts: Facts, slot: str, verity: str = "") -> BootState:
    """The state in which the slot boots next, on trial. verity: its root hash in hex, empty: none."""
    boot = _readable(facts)
    left = {**boot.left, slot: facts.policy.tries}
    left[facts.booted] = left.get(facts.booted, 0) or _full(facts)
    rest = tuple(s for s in boot.order if s not in (slot, facts.booted))
    roots = {**{s: root for s, root in boot.verity.items() if s != slot}, **({slot: verity} if verity else {})}
    return BootState((slot, facts.booted, *rest), left, trial=slot, policy=facts.policy, floor=boot.floor, verity=roots)


def _arm(facts: Facts, written: Record, slot: str, verity: str) -> tuple[Step, ...]:
    assert written.attempt is not None
    armed = replace(_note(written, slot, SlotState.TRIAL), attempt=replace(written.attempt, phase=Phase.ARMED))
    return (CommitBoot(armed_state(facts, slot, verity), f"slot {slot} boots next, on trial"), SaveRecord(armed, f"slot {slot} is armed"))


def activatable(facts: Facts, slot: str) -> SlotRecord:
    """What `activate` would arm; raises NothingToDo where the slot holds nothing written, and the errors of a pending trial."""
    _readable(facts)
    _refuse_pending(facts, slot)
    known = base_record(facts).slots.get(slot)
    if known is None or known.state is not SlotState.WRITTEN or not known.bundle:
        raise NothingToDo(
            f"slot {slot} holds nothing that waits to be activated", "write a bundle with `abupdate flash --no-activate` first"
        )
    return known


def _activate(facts: Facts, request: Activate) -> tuple[Step, ...]:
    slot = request.slot
    known = activatable(facts, slot)
    record = base_record(facts)
    last = record.attempt
    attempt = Attempt(slot, Phase.WRITTEN, facts.boot_id, known.bundle, known.version, known.counter, previous=facts.booted)
    attempt = replace(attempt, lease=request.lease)
    if last is not None and (last.slot, last.bundle, last.phase) == (slot, known.bundle, Phase.WRITTEN):
        # A lease that an earlier activation named, and a cut kept from being used, is not this one's.
        attempt = replace(last, boot_id=facts.boot_id, previous=facts.booted, lease=request.lease, starts=0, started_in="")
    written = replace(record, attempt=attempt)
    steps: list[Step] = [] if request.verified else [ReadBack(slot)]
    if written != facts.record:
        # This boot's id must be in the record before the store is armed, or a cut between would look like a fallback.
        steps.append(SaveRecord(written, f"slot {slot} is about to be armed"))
    return (*steps, *_arm(facts, written, slot, request.verity))


def _confirm(facts: Facts) -> tuple[Step, ...]:
    boot, where = _readable(facts), situation(facts)
    record = base_record(facts)
    booted = facts.booted
    attempt = record.attempt
    if where is not Situation.ON_TRIAL:
        if boot.trial is not None:
            raise Refused(f"slot {booted} is not the one on trial: slot {boot.trial} is", "confirm runs on the slot that it confirms")
        raise NothingToDo("nothing is on trial")
    head = facts.heads.get(booted)
    known = record.slots.get(booted) or head or SlotRecord(SlotState.TRIAL)
    # Record and stored manifest each tell what runs; either may have been put back to an older state.
    counter = _highest(known.counter, attempt.counter if attempt and attempt.slot == booted else 0, head.counter if head else 0)
    risen = max(floor(facts), counter)
    left = {**boot.left, booted: _full(facts)}
    order = (booted, *(s for s in boot.order if s != booted))
    state = BootState(order, left, trial=None, policy=facts.policy, floor=risen, verity=boot.verity)
    done = (
        attempt if attempt and attempt.slot == booted else Attempt(booted, Phase.ARMED, facts.boot_id, known.bundle, known.version, counter)
    )
    record = replace(
        record,
        floor=risen,
        slots={**record.slots, booted: replace(known, state=SlotState.CONFIRMED)},
        attempt=replace(done, phase=Phase.CONFIRMED, reason=""),
    )
    return (CommitBoot(state, f"slot {booted} is confirmed"), SaveRecord(record, f"slot {booted} is confirmed"))


def _revert(facts: Facts, request: Revert) -> tuple[Step, ...]:
    boot, where, record = _readable(facts), situation(facts), base_record(facts)
    booted = facts.booted
    attempt = record.attempt
    if request.on_trial_only and where is not Situation.ON_TRIAL:
        raise NothingToDo("nothing is on trial")
    if where in (Situation.ARMED, Situation.UNKNOWN):
        assert boot.trial is not None
        slot = boot.trial
        known = record.slots.get(slot)
        whole = known is not None and bool(known.bundle) and known.state in (SlotState.TRIAL, SlotState.WRITTEN)
        state = SlotState.WRITTEN if whole else SlotState.BAD
        done = attempt if attempt and attempt.slot == slot else Attempt(slot, Phase.ARMED, "", previous=booted)
        after = replace(
            _note(record, slot, state), attempt=replace(done, phase=Phase.CANCELLED, boot_id=facts.boot_id, reason=request.reason)
        )
        # The record first here: cancelled and still armed is seen as armed, and `revert` can be repeated.
        return (
            *((SaveRecord(after, f"trial of slot {slot} is cancelled"),) if after != facts.record else ()),
            CommitBoot(_without(boot, slot, booted, facts.policy), f"trial of slot {slot} is cancelled"),
        )
    good = tuple(s for s in boot.order if s not in (booted, boot.trial) and boot.left.get(s, 0) > 0)
    if where is Situation.REBOOT_PENDING:
        raise NothingToDo(f"slot {boot.order[0]} is already first and waits for a reboot", "reboot")
    if not good:
        raise NothingToDo("there is no other good slot to go back to", "flash one first")
    other = attempt.previous if attempt and where is Situation.ON_TRIAL and attempt.previous in good else good[0]
    if where is Situation.ON_TRIAL:
        done = attempt if attempt and attempt.slot == booted else Attempt(booted, Phase.ARMED, "", previous=other)
        done = replace(done, phase=Phase.REVERTED, boot_id=facts.boot_id, reason=request.reason)
        after = replace(_note(record, booted, SlotState.BAD), attempt=done)
        return (
            # By the numbers that the store has: this slot's are not the other one's.
            CommitBoot(_without(boot, booted, other, boot.policy or TrialPolicy()), f"slot {booted} is reverted: {request.reason}"),
            SaveRecord(after, f"slot {booted} is reverted: {request.reason}"),
        )
    # Record and stored manifest each tell what lies there; either may have been put back to an older state.
    counter = min((known.counter for known in (record.slots.get(other), facts.heads.get(other)) if known and known.bundle), default=None)
    lowest = floor(facts)
    if counter is not None and counter < lowest:
        raise Refused(f"slot {other} has security counter {counter}, below the floor {lowest}", "flash a bundle at or above the floor")
    known = record.slots.get(booted, SlotRecord(SlotState.CONFIRMED))
    done = Attempt(booted, Phase.REVERTED, facts.boot_id, known.bundle, known.version, known.counter, other, request.lease, request.reason)
    order = (other, *(s for s in boot.order if s != other))
    return (
        # The record first: with the store switched and no record of it, this boot would look as if the other slot had failed.
        SaveRecord(replace(record, attempt=done), f"going back to slot {other}"),
        CommitBoot(replace(boot, order=order, fresh=False), f"slot {other} boots next"),
    )


def _counted_down(facts: Facts) -> bool:
    """The running slot has fewer boots left than it should, or the boot side counts by another budget than is configured here: the other
    slot's configuration has set it, or somebody has changed this one. On a fresh board only what was really counted is looked at."""
    boot = facts.boot
    if boot is None:
        return False
    budget = (boot.policy or TrialPolicy()).budget
    left = boot.left.get(facts.booted, 0)
    return left < budget if boot.fresh else left < _refilled(facts, boot) or budget != facts.policy.budget


def _refilled(facts: Facts, boot: BootState) -> int:
    """Boots of a slot that is alive: as many as it is counted by, here or by the boot side as it stands, and never fewer than it has."""
    return max(boot.left.get(facts.booted, 0), _full(facts), (boot.policy or TrialPolicy()).budget)


def _start(facts: Facts) -> tuple[Step, ...]:
    boot, where, record = _readable(facts), situation(facts), base_record(facts)
    steps: list[Step] = []
    if where is not Situation.ON_TRIAL and facts.booted in boot.order and _counted_down(facts):
        refilled = {**boot.left, facts.booted: _refilled(facts, boot)}
        state = replace(boot, left=refilled, policy=_agreed(boot, facts.policy), fresh=False)
        steps.append(CommitBoot(state, f"slot {facts.booted} is alive: its boots are refilled"))
    attempt = record.attempt
    if where is Situation.ON_TRIAL and attempt and attempt.slot == facts.booted and attempt.phase is Phase.WRITTEN:
        attempt = replace(attempt, phase=Phase.ARMED)
        record = replace(_note(record, facts.booted, SlotState.TRIAL), attempt=attempt)
    if where is Situation.ON_TRIAL and attempt and attempt.slot == facts.booted and attempt.started_in != facts.boot_id:
        record = replace(record, attempt=replace(attempt, starts=attempt.starts + 1, started_in=facts.boot_id))
    # The name of the store in the record is the service's leave to rebuild it, some day, without asking.
    leave = facts.store if facts.replaceable else ""
    if record.store != leave:
        record = replace(record, store=leave)
    if record != facts.record:
        steps.append(SaveRecord(record, "this start"))
    return tuple(steps)


def tried_out(facts: Facts) -> bool:
    """On trial, and the service has started on it more often than it may boot: the store did not count (a write-protected ESP)."""
    attempt = facts.record.attempt if facts.record else None
    if attempt is None or facts.boot is None or attempt.slot != facts.booted or situation(facts) is not Situation.ON_TRIAL:
        return False
    return attempt.starts > (facts.boot.policy or facts.policy).tries


def failed(facts: Facts, slot: str, reason: str) -> SaveRecord | None:
    """The record after a write that failed: the slot stays out, the attempt says why; None where no write had begun."""
    record = facts.record
    if record is None or record.attempt is None or record.attempt.slot != slot or record.attempt.phase is not Phase.WRITING:
        return None
    lost = replace(record, floor=floor(facts), attempt=replace(record.attempt, phase=Phase.FAILED, reason=reason))
    return SaveRecord(lost, f"writing slot {slot} failed")
