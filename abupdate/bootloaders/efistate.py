"""Boot state <-> the firmware's boot variables: what they say of the slots, and what a slot's entry must be. Pure.

A slot's entry is the Boot#### whose description is `abupdate <slot>`. What each variable says:

    BootOrder      slots that may boot, first one first, among everybody else's entries; never a slot on trial
    BootNext       one boot of the slot on trial; the firmware deletes it before it loads the slot
    BootCurrent    the entry that runs
    Boot####       kernel, and its arguments: `abupdate.trial=1` on trial, `abupdate.verity=` with a root hash
    our marker     slot on trial, slots that are good, slots without boots left (formats/efimarker.py)

A slot is on trial while the marker says so and it is not first in BootOrder with a clean entry (confirmed; the marker was cut off), or
while its entry has the trial's arguments and BootNext or BootCurrent names it (armed, before the marker was written). It has a boot
left while BootNext names it. Some firmware puts every entry that it finds back into BootOrder: one behind the first counts only when
the marker calls it good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from abupdate.formats.efiboot import LoadOption, decode_cmdline
from abupdate.formats.efimarker import Marker
from abupdate.model import BootState, TrialPolicy

TRIAL_WORD = "abupdate.trial=1"
_VERITY = "abupdate.verity="
# Boots are not counted, so the budget is 0; the time is in the arguments of the trial that it was written for.
_POLICY = TrialPolicy(tries=1, budget=0)


@dataclass(frozen=True, slots=True)
class Firmware:
    """The boot variables, read once. order: BootOrder. following, running: BootNext, BootCurrent. options: every Boot#### that reads.

    taken: numbers of all Boot####, readable or not. marker: None where there is none.
    """

    order: tuple[int, ...]
    following: int | None
    running: int | None
    options: Mapping[int, LoadOption]
    taken: frozenset[int]
    marker: Marker | None

    def numbers(self, slot: str) -> tuple[int, ...]:
        """The slot's entries: those in BootOrder first, then by number; more than one only where somebody has copied it."""
        found = [number for number, option in sorted(self.options.items()) if option.description == description(slot)]
        return tuple(sorted(found, key=lambda number: self.order.index(number) if number in self.order else len(self.order)))

    def entry(self, slot: str) -> LoadOption | None:
        """The slot's entry that counts."""
        numbers = self.numbers(slot)
        return self.options[numbers[0]] if numbers else None

    def slot_of(self, number: int | None, slots: tuple[str, ...]) -> str | None:
        """The slot whose entry this is."""
        option = self.options.get(number) if number is not None else None
        return next((slot for slot in slots if option is not None and option.description == description(slot)), None)

    def free_number(self) -> int:
        """For a new entry: in use neither by an entry nor by a word in BootOrder that names none."""
        used = self.taken | set(self.order)
        return next(number for number in range(1 << 16) if number not in used)


def description(slot: str) -> str:
    """What the firmware's menu calls a slot."""
    return f"abupdate {slot}"


def on_trial(option: LoadOption | None) -> bool:
    """The entry hands the kernel the trial's arguments."""
    return option is not None and TRIAL_WORD in decode_cmdline(option.data).split()


def verity_of(option: LoadOption | None) -> str:
    """The root hash that the entry hands over, in hex, empty: none."""
    words = decode_cmdline(option.data).split() if option is not None else []
    return next((word.removeprefix(_VERITY) for word in words if word.startswith(_VERITY)), "")


def cmdline(arguments: str, slot: str, initrd: str, verity: str, trial_s: int | None) -> str:
    """All kernel arguments of a slot. arguments: as configured. initrd: on the ESP, empty: none. trial_s: on trial, its boot timeout."""
    words = [arguments.strip()] if arguments.strip() else []
    if initrd:
        # The kernel's own loader reads it from where the kernel lies.
        words.append("initrd=\\" + initrd.strip("/").replace("/", "\\"))
    words += [f"abupdate.slot={slot}", "panic=10"]
    if verity:
        words.append(f"{_VERITY}{verity}")
    if trial_s is not None:
        words += [TRIAL_WORD, f"abupdate.boot_timeout={trial_s}", f"watchdog.open_timeout={trial_s}"]
    return " ".join(words)


def ordered(seen: Firmware, slots: tuple[str, ...]) -> tuple[str, ...]:
    """The slots that BootOrder names, first one first, whoever put them there."""
    named = (seen.slot_of(number, slots) for number in seen.order if number in seen.options and seen.options[number].active)
    return tuple(dict.fromkeys(slot for slot in named if slot is not None))


def trial_slot(seen: Firmware, slots: tuple[str, ...]) -> str | None:
    """The slot on trial, armed or running or fallen back; see the module."""
    first = next(iter(ordered(seen, slots)), None)
    marked = seen.marker.trial if seen.marker is not None else None
    if marked in slots and (marked != first or on_trial(seen.entry(marked))):
        return marked
    named = (seen.slot_of(seen.following, slots), seen.slot_of(seen.running, slots))
    return next((slot for slot in named if slot is not None and on_trial(seen.entry(slot))), None)


def state_of(seen: Firmware, slots: tuple[str, ...]) -> BootState:
    """What the variables say about the configured slots; never raises."""
    marker = seen.marker or Marker(good=slots)
    trial = trial_slot(seen, slots)
    named = ordered(seen, slots)
    order = [trial] if trial is not None else []
    order += [slot for slot in named if slot != trial and (slot in marker.good or slot == named[0])]
    if len(order) == 1 and trial is not None and seen.marker is not None:
        # Somebody deleted entries: the way back is still known, and made anew by the commit that goes it or keeps it.
        order += [slot for slot in seen.marker.good if slot in slots and slot != trial]
    left = {slot: int(slot in order and slot != trial) for slot in slots}
    if trial is not None:
        left[trial] = int(seen.slot_of(seen.following, slots) == trial or named[:1] == (trial,))
    order += [slot for slot in marker.spent if slot in slots and slot not in order]
    verity = {slot: verity_of(seen.entry(slot)) for slot in slots}
    return BootState(
        order=tuple(order),
        left=left,
        trial=trial,
        policy=_POLICY,
        floor=marker.floor,
        # Whoever put a slot into BootOrder, `doctor --fix` or an image's maker, has said what boots.
        fresh=seen.marker is None and not order,
        verity={slot: root for slot, root in verity.items() if root},
    )


def marker_of(state: BootState, old: Marker | None, slots: tuple[str, ...]) -> Marker:
    """The marker that goes with a state. A floor that is None stays as it was."""
    old = old or Marker()
    good = tuple(slot for slot in slots if slot in state.order and slot != state.trial and state.left.get(slot, 0) > 0)
    spent = tuple(slot for slot in state.order if slot not in good and slot != state.trial)
    floor = old.floor if state.floor is None else state.floor
    return replace(old, trial=state.trial, good=good, spent=spent, floor=floor)


def placed(order: tuple[int, ...], ours: frozenset[int], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """BootOrder with our entries as wanted and everybody else's in their places. ours: all entries of configured slots.

    Ours take the places that ours had; more of them follow behind the last of those, or go first where there was none.
    """
    places = [at for at, number in enumerate(order) if number in ours]
    kept = list(wanted)
    result: list[int] = [] if places else kept
    for at, number in enumerate(order):
        if number not in ours:
            result.append(number)
        elif at == places[-1]:
            result += kept
        elif kept:
            result.append(kept.pop(0))
    return tuple(result)
