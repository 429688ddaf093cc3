"""`verify`: compare what lies on a slot with the bundle that was written to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from abupdate import machine
from abupdate.errors import ConfigError, Failed, NothingToDo, Refused
from abupdate.operations.board import Board, observe
from abupdate.ports import Progress, SlotContents


@dataclass(frozen=True, slots=True)
class Verified:
    """A slot that holds what it should."""

    slot: str
    version: str
    bundle: str


def verify(
    board: Board, contents: SlotContents, slot: str | None, writable: Callable[[str], bool], progress: Progress
) -> tuple[Verified, ...]:
    """Read the slot (None: every slot that holds a known bundle) from the medium and compare.

    writable: whether a slot is mounted read-write, so that a difference is no surprise. Raises Failed at a difference,
    NothingToDo where nothing is known of the content, Refused for a damaged manifest, ConfigError for an unknown slot.
    """
    facts = observe(board)
    if slot is not None and slot not in board.slots:
        raise ConfigError(f"there is no slot {slot}", f"the configured slots are {', '.join(board.slots)}")
    record = machine.base_record(facts)
    wanted = [slot] if slot else [name for name in board.slots if name in record.slots and board.state.load_head(name)]
    if not wanted:
        raise NothingToDo("no slot holds a bundle that abupdate wrote", "what was put on a slot in the factory has no chunk table here")
    done: list[Verified] = []
    for name in wanted:
        head = board.state.load_head(name)
        known = record.slots.get(name)
        described = board.describe_head(head) if head else None
        if head is not None and described is None:
            raise Refused(f"the stored manifest of slot {name} is damaged", "flash the bundle again")
        if head is None or known is None or described is None or described.bundle != known.bundle:
            raise NothingToDo(f"nothing is known of what slot {name} should hold", "flash it first")
        try:
            contents.verify(name, head, progress)
        except Failed as error:
            if writable(name):
                raise Failed(
                    f"slot {name}: modified since flash ({error.message})", "it is mounted read-write; mount it read-only"
                ) from error
            raise Failed(f"slot {name}: {error.message}", "modified since flash, or the medium is failing") from error
        done.append(Verified(name, known.version, known.bundle))
    return tuple(done)
