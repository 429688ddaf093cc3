"""Drives a real boot store through a device's life as the verbs do: decisions of machine.py, the record kept in memory."""

from __future__ import annotations

from abupdate import machine
from abupdate.model import BootState, CommitBoot, Facts, Record, SaveRecord, Situation, SlotState, Step
from tests.contract.subject import SLOTS, Subject

ROOT_HASH = "5a" * 32


class Board:
    """A device whose record is kept and whose slots hold what is said of them."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.record: Record | None = None
        self.booted = "A"
        self._boots = 0

    def facts(self) -> Facts:
        """What any verb would see now."""
        store = self.subject.store()
        return Facts(
            SLOTS,
            self.booted,
            f"boot-{self._boots}",
            store.read(),
            store.location,
            self.record,
            self.subject.policy,
            forgetful=not store.traits.armed_in_store,
        )

    def do(self, request: machine.Request) -> list[BootState]:
        """Settle, decide and carry out, as operations/board.py does; every commit must be shown by a store that is opened anew."""
        committed: list[BootState] = []
        for _ in range(4):
            steps = machine.settle(self.facts())
            if not steps:
                break
            committed += self._perform(steps)
        return committed + self._perform(machine.decide(self.facts(), request))

    def _perform(self, steps: tuple[Step, ...]) -> list[BootState]:
        committed: list[BootState] = []
        for step in steps:
            if isinstance(step, CommitBoot):
                store = self.subject.store()
                store.check_room(step.state)
                store.commit(step.state)
                self.shows(step.state)
                committed.append(step.state)
            elif isinstance(step, SaveRecord):
                self.record = step.record
        return committed

    def shows(self, state: BootState) -> None:
        """A store that another process opens says just this."""
        seen = self.subject.store().read()
        left = {slot: state.left.get(slot, 0) for slot in SLOTS}
        assert (seen.order, dict(seen.left), seen.trial, dict(seen.verity)) == (state.order, left, state.trial, dict(state.verity))
        assert not seen.fresh

    def starts(self, slot: str, left: int) -> None:
        """The boot side starts a slot, and the service on it."""
        self.subject.tool_boots(slot, left)
        self.booted = slot
        self._boots += 1
        for _ in range(4):
            steps = machine.settle(self.facts())
            if not steps:
                break
            self._perform(steps)
        self._perform(machine.decide(self.facts(), machine.Start()))

    def flash(self, version: str, *, verity: str = "") -> None:
        """Steps 3 to 9 onto the slot that does not run."""
        slot = next(name for name in SLOTS if name != self.booted)
        self.do(machine.Write(slot, version * 8, version, int(version), verity=verity))
        assert machine.slot_states(self.facts())[slot] is SlotState.WRITTEN
        assert slot not in self.subject.store().read().order
        self.do(machine.Activate(slot, verified=True, verity=verity))
        assert machine.situation(self.facts()) is Situation.ARMED

    def states(self) -> dict[str, str]:
        """As `status` says them."""
        return {slot: state.value for slot, state in machine.slot_states(self.facts()).items()}

    def forget_record(self) -> None:
        """The data partition is gone."""
        self.record = None


def full(board: Board) -> int:
    """Boots of a confirmed slot."""
    return max(board.subject.policy.budget, 1)
