"""`doctor`: what is wrong with this device's set-up or state, in words, and what `--fix` would do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from abupdate import machine
from abupdate.errors import AbupdateError
from abupdate.model import BootState, CommitBoot, Facts, Finding, Grade, RaiseFloor, RebuildBoot, SaveRecord, Situation, Step
from abupdate.operations.board import LOCK_WAIT_S, Board, observe, perform

Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """All findings in order; a check that raises one of our errors becomes a finding itself."""
    found: list[Finding] = []
    for topic, check in checks:
        try:
            found += check()
        except AbupdateError as error:
            found.append(Finding(Grade.FAIL, topic, error.message, error.hint))
    return found


def check_state(board: Board) -> Iterable[Finding]:
    """Where the device stands, as far as something is to be done about it."""
    facts = observe(board, readable=False)
    if facts.boot is None:
        yield Finding(Grade.FAIL, "boot store", f"{board.store.location} holds no valid state", "abupdate doctor --fix writes it anew")
        return
    yield Finding(Grade.OK, "boot store", f"{board.store.location} is readable")
    where = machine.situation(facts)
    grade, hint = _GRADES.get(where, (Grade.OK, ""))
    yield Finding(grade, "situation", f"{where.value}, slot {facts.booted} runs", hint)
    if facts.record is None:
        yield Finding(Grade.WARN, "record", "there is none (or none that this version reads)", "the next operation rebuilds it from facts")
    if machine.emptied(facts):
        text = "holds none of our variables, though slots were flashed here: the boot side goes by its defaults, whatever they hold"
        yield Finding(Grade.WARN, "boot store", text, "abupdate doctor --fix writes what the record knows")
    elif facts.boot.fresh:
        yield Finding(Grade.OK, "boot store", "holds none of our variables yet: the first flash writes them")


def check_floor(board: Board) -> Iterable[Finding]:
    """The copies of the floor: one that is lost or behind, one that says more than all others, one that does not answer."""
    facts = observe(board, readable=False)
    known = machine.floor(facts)
    outside = board.outside
    copies = {"record": max(facts.witnessed, facts.record.floor if facts.record else 0)}
    if facts.boot is not None and not facts.boot.fresh:
        copies["boot store"] = facts.boot.floor or 0
    if outside is not None and outside.problem is None:
        copies[outside.name] = facts.outside or 0
    confirmed = facts.boot is not None and facts.boot.trial != facts.booted
    witnesses = [*copies.values(), *([facts.heads[facts.booted].counter] if confirmed and facts.booted in facts.heads else [])]
    for name, counter in copies.items():
        if counter == known and known and len(witnesses) > 1 and sorted(witnesses)[-2] < known:
            text = f"only the {name} says {known}, every other copy at most {sorted(witnesses)[-2]}"
            yield Finding(Grade.WARN, "floor", text, "bundles below it are refused; was such a bundle ever confirmed here?")
        elif counter < known:
            hint = "the service's next start raises it, or abupdate doctor --fix now"
            if name == "boot store" and _is_uboot(board.store.location):
                hint += ", where the environment has room (fw_printenv shows what fills it)"
            yield Finding(Grade.WARN, "floor", f"the {name} says {counter}, the floor is {known}", hint)
        else:
            yield Finding(Grade.OK, "floor", f"the {name} says {counter}")
    if outside is not None and outside.problem is not None:
        yield Finding(Grade.WARN, "floor", f"{outside.problem.message}: the other copies decide", outside.problem.hint)


_GRADES = {
    Situation.UNKNOWN: (Grade.WARN, "abupdate doctor --fix takes the slot on trial out"),
    Situation.FELL_BACK: (Grade.WARN, "the service records it at its next start, or abupdate doctor --fix now"),
    Situation.FELL_THROUGH: (Grade.WARN, "the service records it at its next start, or abupdate doctor --fix now"),
    Situation.REBOOT_PENDING: (Grade.WARN, "reboot"),
    Situation.ARMED: (Grade.OK, "reboot"),
}


def repairs(facts: Facts) -> tuple[Step, ...]:
    """What `--fix` does: rebuild an unreadable store, fill one that was emptied, settle an outcome, take out a trial slot that nobody
    knows about, raise copies of the floor that are behind."""
    if facts.boot is None:
        return (RebuildBoot(machine.rebuilt(facts), "no copy of the boot state is valid"),)
    if machine.emptied(facts):
        return (machine.refill(facts),)
    settled = machine.settle(facts)
    if settled:
        return settled
    if machine.situation(facts) is Situation.UNKNOWN:
        return machine.decide(facts, machine.Revert("taken out by doctor: the record was lost"))
    return machine.lagging(facts)


def describe(step: Step, location: str) -> str:
    """One line about a repair, for the person who is asked to trust it. location: of the boot store."""
    match step:
        case RebuildBoot():
            lost = "what others kept in it is lost"
            if _is_uboot(location):
                lost += ", a bootcmd of U-Boot's own too unless /etc/u-boot-initial-env has it"
            return f"write the boot store anew: {_shown(step.state)}; {lost}"
        case CommitBoot():
            return f"boot store: {step.why}: {_shown(step.state)}"
        case SaveRecord():
            return f"record: {step.why}"
        case RaiseFloor():
            return f"the floor's copy outside is raised to {step.counter}"
        case _:
            return type(step).__name__


def _is_uboot(location: str) -> bool:
    return location.startswith("uboot:")


def _shown(state: BootState) -> str:
    left = ", ".join(f"{slot} has {count} boots" for slot, count in sorted(state.left.items()))
    return f"order {' '.join(state.order)}; {left}; on trial: {state.trial or 'none'}"


def fix(board: Board, show: Callable[[str], None]) -> int:
    """Show and perform the repairs; returns how many steps were done. Raises Busy, Failed."""
    done = 0
    with board.state.lock(LOCK_WAIT_S):
        # First what the store needs to be one: entries that are missing, for example.
        for repair in board.store.repairs():
            show(repair.text)
            repair.run()
            done += 1
        before: tuple[Step, ...] = ()
        for _ in range(4):
            steps = repairs(observe(board, readable=False))
            if not steps or steps == before:
                # A mirror of the floor that the store has no room for stays behind.
                break
            before = steps
            for step in steps:
                show(describe(step, board.store.location))
            perform(board, steps)
            done += len(steps)
    return done
