"""Boot state in the boot variables of EFI firmware itself: BootOrder, BootNext, Boot#### and a variable of ours. No bootloader.

Firmware writes one variable at a time, so a commit is several writes, each durable before the next. What each one changes is what
`read` shows from then on and what the firmware does at the next boot; after a cut anywhere the running, good slot stays where it is:

    a target taken out (before it is written)
        1 BootNext deleted, if it names one of ours    2 BootOrder without the target     from here on it does not boot
        3 our marker                                   4 the target's entry clean
    armed
        1 BootOrder as it must be (it is)              2 the target's entry with the trial's arguments, made anew if it is not what it
        must be: not named anywhere yet                3 BootNext                         from here on it boots once, on trial
        4 our marker: cut off before it, the trial is seen by its entry that BootNext or BootCurrent names. Only if it also fails
        does nothing tell that it was ever tried: the slot is then as it was before it was armed, and flash had not reported success.
    confirmed
        1 our marker, if a cut kept it from being written   2 the entry clean: its marker holds the trial until
        3 BootOrder with the slot first                from here on it is confirmed; a cut before leaves the previous slot, and a fallback
        4 our marker with the floor
    reverted on trial
        1 our marker without it                        2 its entry clean                  the running boot still counts as on trial until
        then, the next boot is the previous slot's in any case
    cancelled before the reboot
        1 our marker without it (entry and BootNext still hold it)   2 BootNext deleted   from here on it does not boot   3 its entry clean
    the other slot made first
        1 BootOrder
    a slot that did not start put behind the one that runs, without boots
        1 our marker          2 BootOrder without it

The firmware deletes BootNext before it loads the slot: one try, and a kernel that does not load ends on BootOrder's first in the same
boot. BootOrder is read again before each write of it, since firmware adds entries of its own; those of others keep their places.
Nothing that is right is written again. A firmware that tears a variable when the power goes is beyond this; the UEFI specification
wants none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from abupdate.bootloaders import efidoctor
from abupdate.bootloaders.efientries import SlotEntries, SlotFiles
from abupdate.bootloaders.efistate import Firmware, description, marker_of, on_trial, ordered, placed, state_of, trial_slot, verity_of
from abupdate.bootloaders.efivars import EfiVars, Variables
from abupdate.bootloaders.espdisk import find_partition
from abupdate.errors import AbupdateError, ConfigError, StoreUnreadable
from abupdate.formats import efiboot, efimarker
from abupdate.formats.efiboot import LoadOption, Partition
from abupdate.formats.efimarker import Marker
from abupdate.log import log
from abupdate.model import BootState, BootTraits, Finding, Repair
from abupdate.ports import Bootloader

_TRAITS = BootTraits(max_tries=1, counts_confirmed=False, falls_through=True, armed_in_store=True, keeps_verity=True)
# Ours alone, made for this purpose.
MARKER_GUID = "b5b76c24-7c39-4ac2-9d0c-4f1a6a7a2be1"
MARKER_NAME = "AbupdateState"


class EfiStore(Bootloader):
    """`ports.Bootloader` over the firmware's variables. Raises ConfigError at once for files that firmware could not load."""

    def __init__(
        self,
        slots: Mapping[str, SlotFiles],
        *,
        esp: Path,
        variables: Variables | None = None,
        partition: Callable[[], Partition] | None = None,
        proc_cmdline: Path = Path("/proc/cmdline"),
    ) -> None:
        self._slots = tuple(slots)
        self._entries = SlotEntries(slots, esp, partition or (lambda: find_partition(esp)))
        self._variables = variables or EfiVars()
        self._proc_cmdline = proc_cmdline

    @property
    def traits(self) -> BootTraits:
        """BootNext counts one boot, and nothing counts those of a confirmed slot."""
        return _TRAITS

    @property
    def location(self) -> str:
        """There is one store in a machine."""
        return "efi:BootOrder"

    @property
    def irreplaceable(self) -> str:
        """See ports.Bootloader: entries of others are kept, ours are made from the configuration."""
        return ""

    @property
    def tears(self) -> str:
        """See ports.Bootloader and the module."""
        return ""

    def places(self) -> tuple[tuple[Path, int, int], ...]:
        """The variables lie in the firmware's own flash, where no slot can be."""
        return ()

    def read(self) -> BootState:
        """See ports.Bootloader. Raises StoreUnreadable for a BootOrder that is no list, ConfigError where there are no variables."""
        return state_of(self._load(), self._slots)

    def commit(self, state: BootState) -> None:
        """See the module for the order of the writes, and ports.Bootloader. Raises ConfigError for a state that EFI cannot hold."""
        self._check(state)
        self._write(self._load(), state)

    def check_room(self, state: BootState) -> None:
        """See ports.Bootloader; firmware that does not tell its free room is believed to have it."""
        self._check(state)
        self._entries.check_mounted()
        seen = self._load()
        needed = len(efimarker.encode(marker_of(state, seen.marker, self._slots))) + _OVERHEAD_BYTES
        for slot in state.order:
            needed += len(efiboot.encode_option(self._entries.wanted(seen, slot, state))) + _OVERHEAD_BYTES
        free = self._variables.free_bytes()
        if free is not None and free < needed:
            hint = "efibootmgr -v shows entries that nobody needs"
            raise ConfigError(f"the firmware's variable store has {free} bytes left, a trial needs {needed}", hint)

    def rebuild(self, state: BootState) -> None:
        """See ports.Bootloader: a BootOrder that is no list is written anew with our entries first; its others cannot be known."""
        self._check(state)
        try:
            seen = self._load()
        except StoreUnreadable:
            self._variables.delete("BootOrder")
            seen = self._load()
        self._write(seen, state)

    def rearm(self) -> None:
        """See ports.Bootloader: BootNext outlives a power cut."""

    def inspect(self) -> Iterable[Finding]:
        """See ports.Bootloader."""
        problem = self._variables.problem()
        if problem is not None:
            yield efidoctor.no_variables(problem)
            return
        seen = self._load()
        wanted: dict[str, LoadOption | AbupdateError] = {}
        for slot in self._slots:
            try:
                wanted[slot] = self._entries.plain(seen, slot)
            except AbupdateError as error:
                wanted[slot] = error
        secure = self._variables.read("SecureBoot")
        yield from efidoctor.findings(
            seen,
            wanted,
            {slot: self._entries.missing(slot) for slot in self._slots},
            secure=secure is not None and secure.data[:1] == b"\1",
            unified=self._entries.unified,
            said=self._said(),
        )

    def repairs(self) -> tuple[Repair, ...]:
        """See ports.Bootloader: entries that are missing or are not what they must be. BootOrder is the boot state's business."""
        if self._variables.problem() is not None:
            return ()
        try:
            seen = self._load()
        except StoreUnreadable:
            # `rebuild` comes next, and writes the entries that it needs.
            return ()
        found = []
        for slot in self._slots:
            wanted = self._entries.plain(seen, slot)
            if seen.entry(slot) != wanted and trial_slot(seen, self._slots) != slot:
                where = efiboot.place_of(wanted.path)
                verb = "write boot entry" if seen.entry(slot) is None else "mend boot entry"
                text = f"{verb} {wanted.description!r}: {where[1] if where else '?'} with {efiboot.decode_cmdline(wanted.data)}"
                found.append(Repair(text, partial(self._repair, slot)))
        first, named = self._first_slot(seen), ordered(seen, self._slots)
        # Of a slot that is good and runs, whose entry was deleted, the place is known as well.
        lost = seen.marker is not None and f"abupdate.slot={first}" in self._said().split()
        if first is not None and first not in named and (lost or not named):
            run: Callable[[], None] = partial(self._write_order, (first, *named))
            if trial_slot(seen, self._slots) is None and not named:
                run = partial(self.commit, BootState((first,), {first: 1}, verity=state_of(seen, self._slots).verity))
            found.append(Repair(f"put {description(first)!r} first in BootOrder", run))
        return tuple(found)

    def _first_slot(self, seen: Firmware) -> str | None:
        """Of a BootOrder that is gone: a slot that the marker calls good, the running one before others; without a marker the slot that
        runs, as its kernel was told, or, on a board that is being set up, the first whose files are there. Never one on trial."""
        said = self._said().split()
        trial = trial_slot(seen, self._slots)
        good = self._slots if seen.marker is None else seen.marker.good
        able = [slot for slot in self._slots if slot in good and slot != trial]
        running = next((slot for slot in able if f"abupdate.slot={slot}" in said), None)
        return running or next((slot for slot in able if seen.marker is not None or not self._entries.missing(slot)), None)

    def _repair(self, slot: str) -> None:
        seen = self._load()
        self._write_entry(seen, slot, self._entries.plain(seen, slot))

    def _said(self) -> str:
        """What the running kernel was told, empty where that cannot be read."""
        try:
            return self._proc_cmdline.read_text(errors="replace")
        except OSError:
            return ""

    def _load(self) -> Firmware:
        """Raises StoreUnreadable, ConfigError, Failed."""
        variables = self._variables
        order = variables.read("BootOrder")
        numbers = efiboot.decode_order(order.data) if order is not None else ()
        if numbers is None:
            raise StoreUnreadable("the firmware's BootOrder is no list of boot entries", "see efibootmgr, and `abupdate doctor`")
        options: dict[int, LoadOption] = {}
        taken: set[int] = set()
        for name in variables.names():
            number = efiboot.option_number(name)
            found = variables.read(name) if number is not None else None
            if number is None or found is None:
                continue
            taken.add(number)
            option = efiboot.decode_option(found.data)
            if option is not None:
                options[number] = option
        marker = variables.read(MARKER_NAME, MARKER_GUID)
        return Firmware(
            numbers,
            self._one("BootNext"),
            self._one("BootCurrent"),
            options,
            frozenset(taken),
            efimarker.decode(marker.data) if marker is not None else None,
        )

    def _one(self, name: str) -> int | None:
        found = self._variables.read(name)
        numbers = efiboot.decode_order(found.data) if found is not None else None
        return numbers[0] if numbers else None

    def _check(self, state: BootState) -> None:
        strangers = [slot for slot in (*state.order, *state.left, state.trial or self._slots[0]) if slot not in self._slots]
        if strangers:
            raise ConfigError(f"slot {strangers[0]!r} is not configured", f"configured are {', '.join(self._slots)}")
        if not any(slot != state.trial for slot in state.order) and state.trial is None:
            raise ConfigError("a boot order without a slot would leave the device dark", "at least the running slot belongs into it")
        if any(count > 1 for count in state.left.values()):
            raise ConfigError("EFI firmware does not count boots: a slot has one or none", "set tries = 1 and confirmed_tries = 0")

    def _write(self, seen: Firmware, state: BootState) -> None:
        """Bring the firmware to the state, in the module's order. seen: as it is."""
        wanted = marker_of(state, seen.marker, self._slots)
        before = trial_slot(seen, self._slots)
        armed = state.trial is not None and state.left.get(state.trial, 0) > 0
        kept = [slot for slot in state.order if slot != state.trial and state.left.get(slot, 0) > 0]
        marked = seen.marker.trial if seen.marker is not None else None
        if before is not None and before in kept and marked != before:
            # Its entry alone shows the trial, and is made clean below: a cut between must not look as if it had been confirmed.
            self._write_marker(replace(marker_of(state_of(seen, self._slots), seen.marker, self._slots), trial=before))
        elif marked is not None and (before is None or (state.trial is None and marked not in kept)):
            # Left from a confirmation that was cut, reverted, or cancelled: it must mean nothing once BootOrder changes.
            self._write_marker(replace(wanted, trial=None))
        elif before is None and wanted.spent:
            # A slot that did not start: while it is first in BootOrder that is what counts, afterwards this.
            self._write_marker(wanted)
        for slot in kept:
            self._mend(seen, slot, state)
        following = seen.slot_of(seen.following, self._slots)
        if following is not None and not (armed and following == state.trial):
            self._variables.delete("BootNext")
        self._write_order(kept)
        if state.trial is not None:
            self._write_trial(seen, state, armed=armed)
        self._write_marker(wanted)
        for slot in self._slots:
            if slot not in kept and slot != state.trial:
                self._tidy(seen, slot, state)

    def _write_trial(self, seen: Firmware, state: BootState, *, armed: bool) -> None:
        """The entry of the slot on trial, and BootNext last."""
        slot = state.trial
        assert slot is not None
        option = self._entries.wanted(seen, slot, state)
        if armed or not on_trial(seen.entry(slot)) or verity_of(seen.entry(slot)) != state.verity.get(slot, ""):
            number = self._write_entry(seen, slot, option)
        else:
            # It runs, or has run: only the marker may have changed.
            number = seen.numbers(slot)[0]
        if armed:
            self._variables.write("BootNext", efiboot.encode_order([number]))

    def _mend(self, seen: Firmware, slot: str, state: BootState) -> None:
        """The entry of a slot that may boot, maybe the last good one: written only where it would boot otherwise than the state says."""
        old = seen.entry(slot)
        if old is None or not old.active or on_trial(old) or verity_of(old) != state.verity.get(slot, ""):
            self._write_entry(seen, slot, self._entries.wanted(seen, slot, state))

    def _tidy(self, seen: Firmware, slot: str, state: BootState) -> None:
        """The entry of a slot that does not boot: without trial and root hash, so that nobody takes them for the next content's."""
        old = seen.entry(slot)
        if not on_trial(old) and verity_of(old) == state.verity.get(slot, ""):
            return
        try:
            self._write_entry(seen, slot, self._entries.wanted(seen, slot, state))
        except AbupdateError as error:
            # To delete it needs no room in the firmware's store; it is made anew when the slot is armed.
            log.info("boot entry of slot %s is deleted: %s", slot, error.message)
            for number in seen.numbers(slot):
                self._variables.delete(efiboot.option_name(number))

    def _write_entry(self, seen: Firmware, slot: str, option: LoadOption) -> int:
        numbers = seen.numbers(slot)
        number = numbers[0] if numbers else seen.free_number()
        self._variables.write(efiboot.option_name(number), efiboot.encode_option(option))
        return number

    def _write_order(self, wanted: Sequence[str]) -> None:
        """BootOrder with these slots, from what it is now. Raises ConfigError where one of them has no entry."""
        now = self._load()
        ours = frozenset(number for slot in self._slots for number in now.numbers(slot))
        numbers = tuple(now.numbers(slot)[0] for slot in wanted)
        order = placed(now.order, ours, numbers)
        # One that is not active is no slot that may boot, until it is written anew: it must not stand there then.
        left_over = {number for number in now.order if number in ours and now.slot_of(number, self._slots) not in wanted}
        if tuple(wanted) != ordered(now, self._slots) or left_over:
            self._variables.write("BootOrder", efiboot.encode_order(order))

    def _write_marker(self, marker: Marker) -> None:
        self._variables.write(MARKER_NAME, efimarker.encode(marker), MARKER_GUID)


# Of the firmware's own for each variable: its head, its name in UTF-16, alignment, and the old copy until it is collected.
_OVERHEAD_BYTES = 256
