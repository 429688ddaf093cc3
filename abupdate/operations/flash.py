"""`flash` and `activate`: bring a bundle onto the slot that does not run, verified, and let it boot on trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from abupdate import machine
from abupdate.errors import AbupdateError, ConfigError, Failed, Interrupted, NothingToDo, Refused, StoreUnreadable
from abupdate.log import log
from abupdate.model import Facts, Manifest, ReadBack, SaveHead, Situation, SlotState, Step, WriteSlot
from abupdate.operations.board import LOCK_WAIT_S, Board, carry_out, observe, perform, settle
from abupdate.operations.standing import UNKNOWN, describe
from abupdate.ports import OpenBundle, Progress, SlotContents


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a flash or activation reached: the slot, its version, the bundle's id in hex, whether it boots next."""

    slot: str
    version: str
    bundle: str
    armed: bool


def spare_slot(board: Board, facts: Facts) -> str:
    """The slot that does not run."""
    return next(slot for slot in board.slots if slot != facts.booted)


def flash(
    board: Board, contents: SlotContents, open_bundle: Callable[[], OpenBundle], progress: Progress, *, activate: bool = True
) -> Outcome:
    """Write a bundle to the spare slot in the order of the design, arm it unless told otherwise.

    open_bundle: reads and checks the manifest (raises Refused, Failed). Raises every error of the CLI contract; after a failure the
    running slot is first and good, and the target cannot boot where anything was written.
    """
    with board.state.lock(LOCK_WAIT_S):
        if board.tears:
            raise ConfigError(board.tears, "make it redundant, or accept the risk with [bootloader] allow_single_env = true")
        facts = settle(board)
        slot = spare_slot(board, facts)
        machine.precheck_write(facts, slot)
        with contents.claim(slot):
            bundle = open_bundle()
            manifest = bundle.manifest
            name = manifest.bundle_id.hex()
            _refuse_downgrade(facts, manifest.security_counter)
            _refuse_same(facts, name, manifest.version)
            contents.fits(slot, manifest)
            verity = _root_hash(board, manifest)
            # Not after everything is written: without room for a trial the slot could never be armed.
            board.store.check_room(machine.armed_state(facts, slot, verity))
            head = bundle.head()
            doers: dict[type, Callable[[Step], None]] = {
                SaveHead: lambda step: board.state.save_head(slot, head),
                WriteSlot: lambda step: contents.write(slot, bundle, progress),
                ReadBack: lambda step: contents.verify(slot, head, progress),
            }
            working = replace(board, doers=doers)
            request = machine.Write(slot, name, manifest.version, manifest.security_counter, verity=verity)
            try:
                carry_out(working, request)
            except BaseException as error:
                _note_failure(board, slot, error)
                raise
            if activate:
                _arm(working, machine.Activate(slot, verified=True, verity=verity))
        return Outcome(slot, manifest.version, name, activate)


def written(board: Board) -> Outcome:
    """What is there for the fleet to bring up: written and not armed, or armed under a lease and not rebooted.

    Raises NothingToDo where that is nothing, and the errors of a pending trial.
    """
    under_way = leaving(board)
    if under_way is not None:
        return under_way
    facts = observe(board)
    slot = spare_slot(board, facts)
    known = machine.activatable(facts, slot)
    return Outcome(slot, known.version, known.bundle, armed=False)


def leaving(board: Board) -> Outcome | None:
    """What is armed under a lease and boots next, None where that is nothing. Nobody is in the way then: the reboot comes."""
    facts = observe(board)
    now = describe(facts)
    if not now.armed or now.lease is None or now.target == UNKNOWN:
        return None
    slot = spare_slot(board, facts)
    known = machine.base_record(facts).slots.get(slot)
    return Outcome(slot, known.version if known is not None else "", now.target.hex(), armed=True)


def activate(
    board: Board,
    contents: SlotContents,
    check_head: Callable[[bytes], Manifest],
    slot: str | None,
    progress: Progress,
    *,
    lease: int | None = None,
) -> Outcome:
    """Arm a slot that `flash --no-activate` has written, after its signatures and its content were verified again.

    check_head: verifies a stored head's signatures and device, returns its manifest. slot: None is the spare one. lease: the fleet's
    update slot under which it boots.
    """
    with board.state.lock(LOCK_WAIT_S):
        if board.tears:
            raise ConfigError(board.tears, "make it redundant, or accept the risk with [bootloader] allow_single_env = true")
        facts = settle(board)
        target = slot or spare_slot(board, facts)
        known = machine.activatable(facts, target)
        with contents.claim(target):
            head = board.state.load_head(target)
            if head is None:
                raise NothingToDo(f"the manifest of slot {target} is lost", "flash the bundle again")
            manifest = _kept(check_head, target, head)
            if manifest.bundle_id.hex() != known.bundle:
                # A flash of another bundle was cut off before it touched the slot: what lies there can no longer be verified.
                raise NothingToDo(f"the stored manifest is not of the bundle on slot {target}", "flash the bundle again")
            # By what was signed; the record only explains. And the slots may be configured otherwise by now.
            _refuse_downgrade(facts, manifest.security_counter)
            contents.fits(target, manifest)
            doers: dict[type, Callable[[Step], None]] = {ReadBack: lambda step: contents.verify(target, head, progress)}
            _arm(replace(board, doers=doers), machine.Activate(target, lease=lease, verity=_root_hash(board, manifest)))
        return Outcome(target, known.version, known.bundle, armed=True)


def _kept(check_head: Callable[[bytes], Manifest], slot: str, head: bytes) -> Manifest:
    """The manifest of a stored head. Raises Refused in words about that one: there is no bundle in anybody's hands."""
    try:
        return check_head(head)
    except Refused as error:
        raise Refused(f"the stored manifest of slot {slot}: {error.message}", "flash a bundle that this device accepts") from error


def _arm(board: Board, request: machine.Activate) -> None:
    """Steps 8 and 9. Once the boot store shows the slot armed it boots next, whatever the record says: that is no failure any more."""
    *steps, recorded = machine.decide(settle(board), request)
    try:
        perform(board, steps)
        perform(replace(board, tolerant=True), [recorded])
    except (AbupdateError, Interrupted) as error:
        armed = _is_armed(board)
        if armed:
            error.hint = f"slot {request.slot} is armed all the same and boots next: reboot, or cancel with `abupdate revert`"
        elif armed is None and isinstance(error, ConfigError | StoreUnreadable):
            # Their exit code says that nothing was changed.
            raise Failed(
                error.message, f"slot {request.slot} may be armed: see `abupdate status` once the boot store can be read"
            ) from error
        raise


def _is_armed(board: Board) -> bool | None:
    """None: the boot store does not say."""
    try:
        return machine.situation(observe(board)) is Situation.ARMED
    except (AbupdateError, OSError):
        return None


def _root_hash(board: Board, manifest: Manifest) -> str:
    """The root hash that the boot side must hand to the kernel, in hex; empty where the bundle has none. Raises ConfigError, Refused."""
    roots = [image for image in manifest.images if image.verity_root is not None]
    if len(roots) > 1:
        raise Refused(
            f"images {', '.join(image.name for image in roots)} all have a dm-verity root hash", "one, of the root file system, can be used"
        )
    if not roots:
        return ""
    if not board.store.traits.keeps_verity:
        raise ConfigError(
            f"image {roots[0].name} is to be opened with dm-verity, and this bootloader cannot hand the kernel its root hash",
            "see bootloader-hooks/README.md",
        )
    assert roots[0].verity_root is not None
    return roots[0].verity_root.hex()


def _refuse_downgrade(facts: Facts, counter: int) -> None:
    floor = machine.floor(facts)
    if counter < floor:
        raise Refused(f"the bundle's security counter is {counter}, this device has confirmed {floor}", "a downgrade is not installed")


def _refuse_same(facts: Facts, bundle: str, version: str) -> None:
    running = machine.base_record(facts).slots.get(facts.booted)
    if running and running.bundle == bundle and machine.slot_states(facts)[facts.booted] is SlotState.CONFIRMED:
        raise NothingToDo(f"slot {facts.booted} runs version {version} of this very bundle already")


def _note_failure(board: Board, slot: str, error: BaseException) -> None:
    """Leave the reason in the record; the error that is on its way out matters more than a record that cannot be written."""
    reason = error.message if isinstance(error, AbupdateError | Interrupted) else f"interrupted ({type(error).__name__})"
    try:
        step = machine.failed(observe(board), slot, reason)
        if step is not None:
            perform(board, [step])
    except (AbupdateError, OSError) as second:
        log.warning("the reason is not in the record: %s", second)
