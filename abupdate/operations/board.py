"""Observe, settle, carry out: what every verb does with the device's ports around the pure decisions of machine.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from abupdate import machine
from abupdate.errors import AbupdateError, Failed, StoreUnreadable
from abupdate.log import log
from abupdate.model import BootState, CommitBoot, Facts, RaiseFloor, RebuildBoot, SaveRecord, SlotRecord, Step, TrialPolicy
from abupdate.operations.outside import OutsideFloor
from abupdate.ports import Bootloader, StateStore, ThisBoot

# How long a verb waits for the lock: the service holds it for a moment at its start, which is when people type.
LOCK_WAIT_S = 5.0
_MAX_SETTLING = 8


@dataclass(frozen=True, slots=True)
class Board:
    """The device as the verbs see it.

    slots: configured names. describe_head: stored head's bytes -> what the slot's record would say (None: unreadable head).
    tears: empty, or why the boot store can be lost by a power cut. tolerant: go on where the record cannot be written
    (the boot store alone decides; the service, confirm and revert). outside: the floor's copy that verbs ask to which it matters.
    all_heads: also read what is stored of slots that do not run, which is large (to go back to one). breathe: called before each
    call of the boot store, which may take a while (a board's own programs): the service pets meanwhile.
    """

    slots: tuple[str, ...]
    policy: TrialPolicy
    store: Bootloader
    state: StateStore
    boot: ThisBoot
    describe_head: Callable[[bytes], SlotRecord | None]
    tears: str = ""
    tolerant: bool = False
    doers: Mapping[type, Callable[[Step], None]] = field(default_factory=dict)
    outside: OutsideFloor | None = None
    all_heads: bool = False
    breathe: Callable[[], None] = lambda: None


def observe(board: Board, *, readable: bool = True, heads: bool = True) -> Facts:
    """Sample all facts once. Raises StoreUnreadable where the boot store is, unless `readable` is False (then boot is None).

    heads: False: where there is a record, the stored heads, which are large, are not read; the floor has a witness less then.
    """
    record, witnessed = board.state.load()
    booted = board.boot.booted()
    board.breathe()
    try:
        boot: BootState | None = board.store.read()
    except StoreUnreadable:
        if readable:
            raise
        boot = None
    described_heads: dict[str, SlotRecord] = {}
    # The running slot's head is a witness of the floor; the others only matter where the record is lost, or not believed alone.
    for slot in board.slots if record is None or board.all_heads else (booted,) if heads else ():
        stored = board.state.load_head(slot)
        described = board.describe_head(stored) if stored else None
        if described is not None:
            described_heads[slot] = described
    return Facts(
        slots=board.slots,
        booted=booted,
        boot_id=board.boot.boot_id,
        boot=boot,
        store=board.store.location,
        record=record,
        policy=board.policy,
        heads=described_heads,
        settled=board.boot.settled,
        reset=board.boot.reset_reason(),
        unsaved=board.boot.unsaved(),
        witnessed=witnessed,
        replaceable=not board.store.irreplaceable,
        outside=board.outside.value() if board.outside else None,
        forgetful=not board.store.traits.armed_in_store,
        tried=bool(board.store.tried()),
    )


def settle(board: Board) -> Facts:
    """Deal with an outcome that nobody has dealt with yet (a fallback, a cut between store and record); return the facts after it."""
    for _ in range(_MAX_SETTLING):
        facts = observe(board)
        steps = machine.settle(facts)
        if not steps:
            return facts
        perform(board, steps)
        if board.tolerant and all(isinstance(step, SaveRecord) for step in steps):
            return observe(board)
    raise Failed("boot store and record do not settle", "report this with the output of `abupdate -vv status`")


def carry_out(board: Board, request: machine.Request) -> Facts:
    """Settle, decide, perform every step in order; return the facts after the last one."""
    perform(board, machine.decide(settle(board), request))
    return observe(board)


def perform(board: Board, steps: Iterable[Step]) -> None:
    """Perform steps in order, each durable before the next. Raises what the step's port raises.

    On a tolerant board a record that cannot be written is tried again, at last after all steps: one I/O error must not cost the reason.
    """
    unsaved: SaveRecord | None = None
    for step in steps:
        board.breathe()
        match step:
            case CommitBoot():
                log.info("boot store: %s", step.why)
                board.store.commit(step.state)
                _check_store(board, step.state)
            case RebuildBoot():
                board.store.rebuild(step.state)
                _check_store(board, step.state)
                log.warning("boot store rebuilt: %s", step.why)
            case SaveRecord():
                log.info("record: %s", step.why)
                unsaved = _unsaved(board, step) and _unsaved(board, step)
            case RaiseFloor():
                if board.outside is not None:
                    board.outside.raise_to(step.counter)
            case _:
                board.doers[type(step)](step)
    if unsaved is not None and _unsaved(board, unsaved):
        log.warning("the record is not written: %s", unsaved.why)


def _unsaved(board: Board, step: SaveRecord) -> SaveRecord | None:
    """Write the record; None, or the step where a tolerant board's record could not be written."""
    try:
        board.state.save(step.record)
    except AbupdateError as error:
        if not board.tolerant:
            raise
        log.info("the record is not written: %s", error.message)
        return step
    return None


def _check_store(board: Board, wanted: BootState) -> None:
    """Success is what the store shows, not what was asked of it."""
    board.breathe()
    seen = board.store.read()
    left = {slot: wanted.left.get(slot, 0) for slot in board.slots}
    if (seen.order, dict(seen.left), seen.trial, dict(seen.verity)) != (wanted.order, left, wanted.trial, dict(wanted.verity)):
        raise Failed("the boot store does not show what was written to it", "is something else writing it? see `abupdate doctor`")
