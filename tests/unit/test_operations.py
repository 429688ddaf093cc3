"""The verbs over the simulated device: what is refused before anything is written, what a failure leaves, what success means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import machine
from abupdate.errors import AbupdateError, Busy, ConfigError, Failed, NothingToDo, Refused
from abupdate.model import BootState, BootTraits, CommitBoot, Grade, Phase, Record, SaveRecord, Situation, SlotState
from abupdate.operations import board as boards
from abupdate.operations import doctor, verdict
from abupdate.operations import flash as flashing
from abupdate.operations.board import Board
from abupdate.operations.status import status
from abupdate.operations.verify import Verified, verify
from abupdate.ports import Bootloader
from tests.sim.blocks import Block
from tests.sim.device import SLOTS, V1, V2, V3, Device, new_device, reboot
from tests.sim.filesystem import Files
from tests.sim.installer import Opened

IMAGES = {slot: {"rootfs": Path(f"/dev/{slot}")} for slot in SLOTS}


def silent(phase: str, done: int, total: int) -> None:
    return


@pytest.fixture
def device(tmp_path: Path) -> Device:
    made = new_device(tmp_path)
    made.service()
    return made


def updated(device: Device) -> Device:
    """V2 confirmed on B, V1 good on A."""
    device.flash(V2)
    device = reboot(device)
    device.service()
    device.confirm()
    return device


def document(device: Device) -> dict[str, object]:
    return status(device.board(), "acme", IMAGES, 300)


def states(device: Device) -> dict[str, SlotState]:
    return dict(machine.slot_states(device.facts()))


def untouched(device: Device, call: Callable[[], object], error: type[AbupdateError], match: str) -> None:
    """The call raises and no medium sees a write."""
    device.machine.journal.clear()
    with pytest.raises(error, match=match):
        call()
    assert [moment.step for moment in device.machine.journal if not moment.step.startswith("fsync")] == []


def without(device: Device, *names: str) -> None:
    """Files of state_dir are lost."""
    files = device.machine.part("files")
    assert isinstance(files, Files)
    gone = {f"/data/abupdate/{name}" for name in names}
    assert gone <= files.seen.keys()
    rest = {path: data for path, data in files.seen.items() if path not in gone}
    device.machine.put("files", Files.with_files(rest, files.folders))


def rot(device: Device, name: str, offset: int) -> None:
    """A byte of a slot's image changes."""
    part = device.machine.part(name)
    assert isinstance(part, Block)
    changed = bytes([part.content[offset] ^ 1])
    device.machine.put(name, Block.of(part.nature, part.content[:offset] + changed + part.content[offset + 1 :]))


# -- flash and activate


def test_a_downgrade_and_the_bundle_that_runs_are_refused_before_anything_is_written(device: Device) -> None:
    device = updated(device)
    untouched(device, lambda: device.flash(V1), Refused, "security counter is 1, this device has confirmed 2")
    untouched(device, lambda: device.flash(V2), NothingToDo, "runs version 2.0 of this very bundle")
    device.flash(V3)
    assert machine.situation(device.facts()) is Situation.ARMED


def test_flash_opens_the_bundle_only_when_it_may_write(device: Device) -> None:
    device.flash(V2)
    opened: list[int] = []

    def bundle() -> Opened:
        opened.append(1)
        return device.opened(V3)

    untouched(device, lambda: flashing.flash(device.board(), device.slots, bundle, silent), Busy, "armed and waits for a reboot")
    assert not opened


def test_a_store_that_can_tear_is_not_flashed_over(device: Device) -> None:
    board = replace(device.board(), tears="a single environment can be lost")
    untouched(device, lambda: flashing.flash(board, device.slots, lambda: device.opened(V2), silent), ConfigError, "single environment")
    untouched(
        device, lambda: flashing.activate(board, device.slots, lambda head: V2.manifest, None, silent), ConfigError, "single environment"
    )


@pytest.mark.parametrize(
    ("error", "reason"), [(Refused("payload damaged"), "payload damaged"), (KeyboardInterrupt(), "interrupted (KeyboardInterrupt)")]
)
def test_a_write_that_fails_leaves_the_running_slot_and_says_why(device: Device, error: BaseException, reason: str) -> None:
    device = updated(device)

    def progress(phase: str, done: int, total: int) -> None:
        raise error

    with pytest.raises(type(error)):
        flashing.flash(device.board(), device.slots, lambda: device.opened(V3), progress)
    facts = device.facts()
    assert facts.boot is not None
    assert (facts.boot.order, facts.boot.left["A"], facts.boot.trial) == (("B",), 0, None)
    assert states(device) == {"A": SlotState.WRITING, "B": SlotState.CONFIRMED}
    assert facts.record is not None
    assert facts.record.attempt is not None
    assert (facts.record.attempt.phase, facts.record.attempt.reason) == (Phase.FAILED, reason)
    device.flash(V3)
    assert machine.situation(device.facts()) is Situation.ARMED


def test_activate_wants_the_head_of_what_is_written(device: Device) -> None:
    device.flash(V2, activate=False)
    untouched(
        device,
        lambda: flashing.activate(device.board(), device.slots, lambda head: V3.manifest, None, silent),
        NothingToDo,
        "not of the bundle on slot B",
    )
    files = device.machine.part("files")
    without(device, "head.B")
    untouched(device, device.activate, NothingToDo, "manifest of slot B is lost")
    device.machine.put("files", files)
    device.activate()
    assert machine.situation(device.facts()) is Situation.ARMED


def test_activate_reads_the_slot_again(device: Device) -> None:
    device.flash(V2, activate=False)
    rot(device, "B.boot", 0)
    with pytest.raises(Failed, match="image boot: it differs near byte 0"):
        device.activate()
    assert machine.situation(device.facts()) is Situation.STEADY


def test_activate_refuses_what_fell_below_the_floor_meanwhile(device: Device) -> None:
    device.flash(V2, activate=False)
    board = device.board()
    record, _ = board.state.load()
    assert record is not None
    for counter in (2, 9):
        # What was signed counts, not what the record says of it.
        slots = {**record.slots, "B": replace(record.slots["B"], counter=counter)}
        board.state.save(replace(record, floor=3, slots=slots))
        untouched(device, device.activate, Refused, "security counter is 2, this device has confirmed 3")


def test_one_verb_at_a_time(device: Device) -> None:
    with device.board().state.lock():
        verbs: tuple[Callable[[], None], ...] = (
            lambda: device.flash(V2),
            device.activate,
            lambda: print(verdict.confirm(device.board(), 0.0)),
            lambda: print(verdict.revert(device.board(), "why", 0.0)),
        )
        for verb in verbs:
            with pytest.raises(Busy, match="another abupdate is at work"):
                verb()


# -- what success means


class Deaf(Bootloader):
    """A store that takes every commit and keeps what it had."""

    def __init__(self, inner: Bootloader) -> None:
        self._inner = inner
        self.commits = 0

    @property
    def traits(self) -> BootTraits:
        return self._inner.traits

    @property
    def location(self) -> str:
        return self._inner.location

    @property
    def irreplaceable(self) -> str:
        return self._inner.irreplaceable

    def places(self) -> tuple[tuple[Path, int, int], ...]:
        return ()

    def read(self) -> BootState:
        return self._inner.read()

    def commit(self, state: BootState) -> None:
        self.commits += 1

    def check_room(self, state: BootState) -> None:
        self._inner.check_room(state)

    def rebuild(self, state: BootState) -> None:
        self.commits += 1


def on_trial(device: Device) -> Device:
    device.flash(V2)
    device = reboot(device)
    device.service()
    return device


@pytest.mark.parametrize("verb", [verdict.confirm, lambda board: verdict.revert(board, "why")])
def test_success_is_what_the_store_shows(device: Device, verb: Callable[[Board], object]) -> None:
    device = on_trial(device)
    store = Deaf(device.board().store)
    with pytest.raises(Failed, match="does not show what was written"):
        verb(replace(device.board(tolerant=True), store=store))
    assert store.commits == 1
    assert machine.situation(device.facts()) is Situation.ON_TRIAL
    record = device.facts().record
    assert record is not None
    assert record.attempt is not None
    assert record.attempt.phase is Phase.ARMED


class ReadOnly:
    """`StateStore` of a data partition that went read-only."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def save(self, record: Record) -> None:
        raise Failed("Read-only file system")


@pytest.mark.parametrize("tolerant", [True, False])
def test_confirm_and_revert_do_without_the_record_where_they_may(device: Device, tolerant: bool) -> None:
    device = on_trial(device)
    board = device.board(tolerant=tolerant)
    board = replace(board, state=ReadOnly(board.state))  # type: ignore[arg-type]
    if tolerant:
        assert verdict.confirm(board).slot == "B"
    else:
        with pytest.raises(Failed, match="Read-only"):
            verdict.confirm(board)
    assert machine.slot_states(device.facts())["B"] is SlotState.CONFIRMED


def test_a_switch_between_two_good_slots_waits_for_the_record_where_nothing_else_would_tell_of_it(device: Device) -> None:
    """The service's start would take the slot that was made first for one that failed, and take it out."""
    device = reboot(updated(device))
    board = device.board(tolerant=True)
    board = replace(board, state=ReadOnly(board.state))  # type: ignore[arg-type]
    with pytest.raises(Failed, match="Read-only"):
        verdict.revert(board, "operator")
    device.service()
    assert states(device) == {"A": SlotState.CONFIRMED, "B": SlotState.CONFIRMED}
    assert verdict.revert(board, "operator").slot == "A"
    device.service()
    assert machine.situation(device.facts()) is Situation.REBOOT_PENDING


def test_a_tolerant_board_settles_what_it_cannot_write_down(device: Device) -> None:
    device.flash(V2)
    for _ in range(4):
        device = reboot(device)
    board = device.board(tolerant=True)
    facts = boards.settle(replace(board, state=ReadOnly(board.state)))  # type: ignore[arg-type]
    assert facts.boot is not None
    assert facts.boot.trial is None


def test_a_store_that_never_settles_ends_with_an_error(device: Device) -> None:
    device.flash(V2)
    for _ in range(4):
        device = reboot(device)

    class Forgetful(Deaf):
        """Shows each commit once."""

        shown: BootState | None = None

        def commit(self, state: BootState) -> None:
            self.shown = state

        def read(self) -> BootState:
            shown, self.shown = self.shown, None
            return shown or super().read()

    with pytest.raises(Failed, match="do not settle"):
        boards.settle(replace(device.board(), store=Forgetful(device.board().store)))


def test_steps_are_performed_in_order_and_stop_at_the_first_that_fails(device: Device) -> None:
    facts = device.facts()
    assert facts.boot is not None
    store = Deaf(device.board().store)
    changed = replace(facts.boot, order=("B", "A"))
    with pytest.raises(Failed):
        boards.perform(replace(device.board(), store=store), [CommitBoot(changed, "x"), SaveRecord(Record(floor=9), "never")])
    assert device.board().state.load()[0] == facts.record


# -- status, verify, doctor


def test_status_through_an_update(device: Device) -> None:
    fresh = document(device)
    assert (fresh["booted"], fresh["primary"], fresh["trial"], fresh["situation"]) == ("A", "A", None, "steady")
    device.flash(V2)
    armed = document(device)
    assert armed["trial"] == {"slot": "B", "tries_left": 3, "deadline_s": None}
    assert (armed["primary"], armed["situation"]) == ("B", "armed")
    assert "reboot needed" in str(armed["note"])
    device = reboot(device)
    trial = document(device)
    assert trial["trial"] == {"slot": "B", "tries_left": 2, "deadline_s": 270.0}
    device.confirm()
    done = document(device)
    slots = done["slots"]
    assert isinstance(slots, dict)
    assert {name: slot["state"] for name, slot in slots.items()} == {"A": "confirmed", "B": "confirmed"}
    assert slots["B"]["version"] == "2.0"
    assert done["floor"] == 2


def test_status_tells_of_a_fallback_before_and_after_it_is_recorded(device: Device) -> None:
    device.flash(V2)
    for _ in range(4):
        device = reboot(device, reset="watchdog")
    before = document(device)
    device.service()
    after = document(device)
    for seen in (before, after):
        attempt = seen["attempt"]
        assert isinstance(attempt, dict)
        assert (attempt["phase"], attempt["slot"], attempt["reason"]) == ("reverted", "B", "watchdog, tries exhausted")
        assert (seen["primary"], seen["trial"]) == ("A", None)
    assert (before["situation"], after["situation"]) == ("fell-back", "steady")


def test_status_changes_nothing(device: Device) -> None:
    device.flash(V2)
    for _ in range(4):
        device = reboot(device)
    device.machine.journal.clear()
    document(device)
    assert device.machine.journal == []


def test_verify_names_the_difference_and_who_may_have_made_it(device: Device) -> None:
    device.flash(V2, activate=False)

    def check(slot: str | None, writable: bool) -> tuple[Verified, ...]:
        return verify(device.board(), device.slots, slot, lambda _: writable, silent)

    assert [done.slot for done in check(None, False)] == ["B"]
    with pytest.raises(NothingToDo, match="slot A"):
        check("A", False)
    with pytest.raises(ConfigError):
        check("C", False)
    rot(device, "B.rootfs", 8192)
    with pytest.raises(Failed, match="modified since flash"):
        check("B", True)
    with pytest.raises(Failed, match="image rootfs: it differs near byte 8192"):
        check("B", False)


def test_doctor_rebuilds_an_unreadable_store_and_takes_an_unknown_trial_out(device: Device) -> None:
    device.flash(V2)
    shown: list[str] = []
    without(device, "record.0", "record.1")
    assert machine.situation(device.facts()) is Situation.UNKNOWN
    assert doctor.fix(device.board(), shown.append) == len(shown) == 2
    assert machine.situation(device.facts()) is Situation.STEADY
    erased = device.store.erased()
    assert erased is not None
    device.machine.put("env", erased)
    (finding,) = doctor.check_state(device.board())
    assert finding.grade is Grade.FAIL
    shown.clear()
    assert doctor.fix(device.board(), shown.append) >= 1
    assert "write the boot store anew" in shown[0]
    assert machine.situation(device.facts()) is Situation.STEADY
    assert doctor.fix(device.board(), shown.append) == 0
