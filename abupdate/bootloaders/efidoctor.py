"""What `doctor` says of a machine whose firmware chooses the slot: entries, their order, what gets in the way. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from abupdate.bootloaders.efistate import Firmware, description, ordered, trial_slot
from abupdate.errors import AbupdateError
from abupdate.formats import efiboot
from abupdate.formats.efiboot import LoadOption
from abupdate.model import Finding, Grade

_TOPIC = "boot entries"
_FIX = "abupdate doctor --fix writes it"


def no_variables(problem: tuple[str, str]) -> Finding:
    """Nothing can be said but this."""
    return Finding(Grade.FAIL, "EFI variables", *problem)


def findings(
    seen: Firmware,
    wanted: Mapping[str, LoadOption | AbupdateError],
    missing: Mapping[str, Sequence[Path]],
    *,
    secure: bool,
    unified: bool,
    said: str,
) -> Iterable[Finding]:
    """wanted: what each slot's entry must be while it is not on trial, or why nobody can tell. missing: files that a slot lacks.

    secure: Secure Boot is on. unified: slots are unified kernel images. said: the running kernel's arguments.
    """
    slots = tuple(wanted)
    trial = trial_slot(seen, slots)
    named = ordered(seen, slots)
    for slot, option in wanted.items():
        yield from _of_slot(seen, slot, option, on_trial=slot == trial)
        if missing[slot] and (slot in named or slot == trial):
            yield Finding(Grade.FAIL, _TOPIC, f"slot {slot} may boot and has no {missing[slot][0]}", "flash it anew from the other slot")
    if named:
        yield Finding(Grade.OK, _TOPIC, f"BootOrder has slots {', '.join(named)}")
    else:
        yield Finding(Grade.FAIL, _TOPIC, "BootOrder names no slot of ours", "abupdate doctor --fix puts the running one first")
    yield from _of_order(seen, slots, named)
    yield from _of_this_boot(seen, slots, said)
    if secure and unified:
        text = "Secure Boot is on: a unified kernel image ignores the boot entry's arguments then, so no slot can be on trial"
        yield Finding(Grade.FAIL, _TOPIC, text, "use a signed EFI-stub kernel (image `kernel`), or systemd-boot with Type #1 entries")


def _of_slot(seen: Firmware, slot: str, wanted: LoadOption | AbupdateError, *, on_trial: bool) -> Iterable[Finding]:
    name = description(slot)
    found = seen.entry(slot)
    if isinstance(wanted, AbupdateError):
        yield Finding(Grade.FAIL, _TOPIC, wanted.message, wanted.hint)
    elif found is None:
        yield Finding(Grade.FAIL, _TOPIC, f"there is no entry {name!r}", _FIX)
    elif found != wanted and not on_trial:
        yield Finding(Grade.WARN, _TOPIC, f"entry {name!r} is not what the configuration says: {_difference(found, wanted)}", _FIX)
    if len(seen.numbers(slot)) > 1:
        numbers = ", ".join(map(efiboot.option_name, seen.numbers(slot)))
        yield Finding(Grade.WARN, _TOPIC, f"{numbers} are all called {name!r}", "efibootmgr -B -b NUMBER deletes one; the first is used")


def _difference(found: LoadOption, wanted: LoadOption) -> str:
    if not found.active:
        return "it is not active, so firmware passes it over"
    if found.path != wanted.path:
        have, want = efiboot.place_of(found.path), efiboot.place_of(wanted.path)
        return f"it loads {_place(have)} instead of {_place(want)}"
    return f"its arguments are {efiboot.decode_cmdline(found.data)!r}"


def _place(place: tuple[efiboot.Partition, str] | None) -> str:
    return f"{place[1]} of {place[0]}" if place is not None else "something that is no file on a partition"


def _of_order(seen: Firmware, slots: tuple[str, ...], named: tuple[str, ...]) -> Iterable[Finding]:
    for number in seen.order:
        option = seen.options.get(number)
        if seen.slot_of(number, slots) is not None:
            break
        if option is not None and option.in_turn and named:
            text = f"{efiboot.option_name(number)} ({option.description[:60]}) stands before the slots in BootOrder"
            yield Finding(Grade.WARN, _TOPIC, text, "where it starts, no slot does: efibootmgr -o puts it behind them")
    good = seen.marker.good if seen.marker is not None else slots
    for slot in named[1:]:
        if slot not in good:
            text = f"slot {slot} is in BootOrder, and nothing says that it is good"
            hint = "does this firmware put entries back? the next change of the boot state takes it out again"
            yield Finding(Grade.WARN, _TOPIC, text, hint)


def _of_this_boot(seen: Firmware, slots: tuple[str, ...], said: str) -> Iterable[Finding]:
    if seen.running is None:
        yield Finding(Grade.WARN, _TOPIC, "the firmware does not say which entry it started (BootCurrent)", "is there a newer one?")
        return
    slot = seen.slot_of(seen.running, slots)
    if slot is None:
        other = seen.options.get(seen.running)
        text = (
            f"this boot was started by {efiboot.option_name(seen.running)} ({other.description[:60] if other else 'gone'}), no slot's entry"
        )
        yield Finding(Grade.WARN, _TOPIC, text, "reboot through a slot's entry before the first update: efibootmgr -n NUMBER")
    elif f"abupdate.slot={slot}" not in said.split():
        text = f"the kernel was not told what {efiboot.option_name(seen.running)} says: abupdate.slot={slot} is not in /proc/cmdline"
        hint = "this firmware drops the entry's data, or the kernel has arguments built in that override them: use a bootloader"
        yield Finding(Grade.FAIL, _TOPIC, text, hint)
