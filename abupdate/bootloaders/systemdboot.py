"""Boot state in systemd-boot's entries on the EFI system partition (ESP): one file for each slot, and one more for a slot on trial.

    slot-A.conf, slot-B.conf    not counted. Switched on: the slot is good. They stay for ever, switched off while the slot is not.
    slot-B+3.conf               of the slot on trial, with the trial's kernel arguments; systemd-boot counts down in its name.

What decides is always ONE sector, written in place and flushed, of a file that is whole and on the medium already:

    target out (step 3)   its entries are switched off, then the counted one is removed
    arm (step 8)          slot-B.conf is made, switched off, where it is not there (systemd-bless-boot would rename to it); slot-B+3.conf
                          is made, switched off; then switched on with a sort-key below the other slot's
    confirm               slot-B.conf is brought up to date, switched off; then switched on with a sort-key below the counted one's; then
                          that one is switched off and removed
    revert, cancel        the counted one is switched off, then removed
    steady switch         the sort-key in the other slot's entry goes below the running one's
    a good slot failed    slot-B+0.conf, without a trial's arguments: systemd-boot takes it when nothing else is there

The good entry of the other slot is never touched by any of it. A cut before the sector leaves the state before, a cut after it the state
after; a counted entry that is left beside a good one of the same slot means nothing, and the next commit removes it. An entry without
content or without a kernel is none, for systemd-boot and for us.

systemd-boot's own renaming is as atomic as the disk while the names lie in the first sector of their folder (`doctor` counts). If it is
torn all the same: with no name left the slot is out, as after a fallback. Of two names the one with fewer boots left counts here; but
systemd-boot, which cannot rename to a name that is there, does not count any more then: the service's own count ends such a trial.

The floor's mirror is a comment in the entries; where no entry is written anyway, in that of the slot that boots last, or not at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from abupdate.bootloaders.espfiles import LINUX, EspFiles
from abupdate.errors import ConfigError, Failed, StoreUnreadable
from abupdate.formats.bootentry import FIRST_KEY, MAX_BYTES, NO_KEY, SECTOR_BYTES, Entry, EntryName, decode, encode, is_whole, parse_name
from abupdate.model import BootState, BootTraits, Finding, Repair, TrialPolicy
from abupdate.ports import Bootloader

if TYPE_CHECKING:
    from abupdate.bootloaders.efivars import Variables

_TRAITS = BootTraits(max_tries=99, counts_confirmed=False, falls_through=True, armed_in_store=True, keeps_verity=True)
# As many as a slot on trial has entries: a small file takes a cluster of its own.
_PROBES = ("loader/abupdate.probe", "loader/abupdate.probe2")


@dataclass(frozen=True, slots=True)
class EntryFile:
    """A file of ours in loader/entries: its name, its bytes, what they say."""

    name: EntryName
    file: str
    data: bytes
    entry: Entry


class SystemdBootStore(Bootloader):
    """`ports.Bootloader` over loader/entries. Raises ConfigError at once where a slot's kernel does not lie on the ESP."""

    def __init__(
        self,
        esp: Path,
        slots: tuple[str, ...],
        images: Mapping[str, Mapping[str, Path]],
        cmdline: Mapping[str, str],
        *,
        tries: int = 3,
        files: EspFiles = LINUX,
        variables: Callable[[], Variables] | None = None,
    ) -> None:
        """esp: where it is mounted. images: of each slot, `kernel` with or without `initrd`, or `uki`. cmdline: each slot's arguments.

        tries: of a trial, as configured. variables: opens the firmware's, for `doctor` alone.
        """
        self._tries = tries
        self._variables = variables
        self._esp = esp
        self._slots = slots
        self._files = files
        self._entries = esp / "loader" / "entries"
        self._plain = {slot: _plain(slot, esp, images[slot], cmdline.get(slot, "")) for slot in slots}

    @property
    def traits(self) -> BootTraits:
        """See ports.Bootloader."""
        return _TRAITS

    @property
    def location(self) -> str:
        """The folder of the entries."""
        return f"systemd-boot:{self._entries}"

    @property
    def irreplaceable(self) -> str:
        """See ports.Bootloader: the entries hold nothing that the configuration does not."""
        return ""

    @property
    def esp(self) -> Path:
        """Where the ESP is mounted."""
        return self._esp

    def places(self) -> tuple[tuple[Path, int, int], ...]:
        """See ports.Bootloader."""
        return tuple((self._entries / one.file, 0, len(one.data)) for one in self.load())

    def read(self) -> BootState:
        """See ports.Bootloader. The policy's budget is 0: systemd-boot counts no boots of a confirmed slot."""
        files = self.load()
        active = {slot: found for slot in self._slots if (found := active_file(files, slot)) is not None}
        if not active:
            raise StoreUnreadable(
                f"{self._entries} holds no entry of slot {' or '.join(self._slots)} that boots",
                "`abupdate doctor --fix` shows and writes it",
            )
        tried = [slot for slot, found in active.items() if found.entry.trial_s is not None]
        trial = min(tried, key=lambda slot: active[slot].entry.key, default=None)
        left = {slot: _left(active.get(slot)) for slot in self._slots}
        # As systemd-boot sorts them: what is used up comes last.
        newest = sorted(active, key=_newness, reverse=True)
        order = sorted(newest, key=lambda slot: (left[slot] == 0, active[slot].entry.key))
        policy = TrialPolicy(budget=0)
        if trial is not None:
            name, timeout_s = active[trial].name, active[trial].entry.trial_s
            policy = TrialPolicy((name.left or 0) + name.done or policy.tries, 0, timeout_s or policy.boot_timeout_s)
        floors = [one.entry.floor for one in files if one.entry.floor is not None]
        return BootState(
            order=tuple(order),
            left=left,
            trial=trial,
            policy=policy,
            floor=max(floors, default=None),
            verity={slot: found.entry.verity for slot, found in active.items() if found.entry.verity},
        )

    def commit(self, state: BootState) -> None:
        """See ports.Bootloader, and the order at the top."""
        self._check(state)
        files = self.load()
        with self._writing():
            # What is seen may lie in the page cache alone.
            self._files.flush(self._entries)
            self._commit(files, state)

    def rebuild(self, state: BootState) -> None:
        """See ports.Bootloader."""
        self._check(state)
        with self._writing():
            self._files.flush(self._entries)
            self._commit(self.load(), state)

    def check_room(self, state: BootState) -> None:
        """See ports.Bootloader. Also writes, reads back, removes files: a trial on an ESP that cannot be written is never counted."""
        self._check(state)
        data = os.urandom(max(len(encode(self._wanted(state, slot, FIRST_KEY))) for slot in state.order))
        probes = [self._esp / name for name in _PROBES]
        try:
            for path in probes:
                with suppress(FileNotFoundError):
                    self._files.remove(path)
            for path in probes:
                self._files.create(path, data)
            same = all(self._files.read(path, len(data) + 1) == data for path in probes)
            for path in probes:
                self._files.remove(path)
        except OSError as error:
            # On an ESP without room a part of them may have got there.
            for path in probes:
                with suppress(OSError):
                    self._files.remove(path)
            raise ConfigError(
                f"the ESP at {self._esp} cannot be written: {error.strerror}", "mount it read-write; it needs some room for entries"
            ) from error
        if not same:
            raise ConfigError(f"the ESP at {self._esp} does not keep what is written", "is its medium write-protected?")

    def inspect(self) -> Iterator[Finding]:
        """See ports.Bootloader."""
        from abupdate.bootloaders.sdbootdoctor import firmware, inspect

        yield from inspect(self._esp, self._plain, self.load(), self._files)
        yield from firmware(self._firmware(), self._tries, unified=any(entry.unified for entry in self._plain.values()))

    def repairs(self) -> tuple[Repair, ...]:
        """See ports.Bootloader."""
        from abupdate.bootloaders.sdbootdoctor import firmware_repairs, repairs

        return (*repairs(self._esp, self._files), *firmware_repairs(self._firmware(), self._tries))

    def load(self) -> tuple[EntryFile, ...]:
        """The files of ours. Raises ConfigError where the folder is not there."""
        try:
            try:
                read = self._read()
            except FileNotFoundError:
                # systemd's blessing of a boot gives an entry another name, in between.
                read = self._read()
        except OSError as error:
            hint = f"is the ESP mounted there? [bootloader] esp names the place; bootctl install --esp-path={self._esp} makes the folder"
            raise ConfigError(f"{self._entries}: {error.strerror}", hint) from error
        return tuple(EntryFile(name, file, data, decode(name.slot, data)) for name, file, data in read)

    def _read(self) -> list[tuple[EntryName, str, bytes]]:
        """Raises OSError."""
        names = self._files.names(self._entries)
        found = [(name, file) for file in names if (name := parse_name(file, self._slots)) is not None]
        return [(name, file, self._files.read(self._entries / file, MAX_BYTES)) for name, file in found]

    def _commit(self, files: tuple[EntryFile, ...], state: BootState) -> None:
        for one in files:
            if one.name.slot not in state.order:
                self._put_away(one)
        keys = _keys(files, state)
        # The first one last: until then the device boots as it did.
        for slot in reversed(state.order):
            self._bring(files, state, slot, keys[slot])
        for one in files:
            # Two counted names of a slot that stays on trial may be one file, after a cut in systemd-boot's renaming: left alone.
            slot = one.name.slot
            if one.name.left is not None and slot in state.order and slot != state.trial and one.name.left != _counter(state, slot):
                self._put_away(one)
        self._mirror(state)

    def _bring(self, files: tuple[EntryFile, ...], state: BootState, slot: str, key: int) -> None:
        """One slot's entry as the state has it, by one sector in the end."""
        mine = {one.name.left: one for one in files if one.name.slot == slot}
        left = _counter(state, slot)
        current, active = mine.get(left), active_file(files, slot)
        wanted = self._wanted(state, slot, key)
        if current is not None and current == active and _same(current.entry, wanted):
            return
        others = [one for one in mine.values() if one is not current]
        if slot == state.trial:
            for one in others:
                self._switch_off(one)
            if None not in mine:
                # The name that systemd's blessing of a boot gives the counted entry is taken, and a confirmation needs no more room.
                self._files.create(self._entries / EntryName(slot).file, encode(replace(self._plain[slot], on=False)))
        file = current.file if current is not None else EntryName(slot, left).file
        # The floor rises with the sector that decides, not before.
        off = encode(replace(wanted, on=False, floor=current.entry.floor if current is not None else None))
        if current is None:
            self._files.create(self._entries / file, off)
        elif current == active and not is_whole(current.entry, current.data) and decode(slot, current.data[:SECTOR_BYTES]).on:
            # Somebody else's layout: its first sector stays, and so it stays as good as it is, while the rest becomes ours.
            self._files.rewrite(self._entries / file, current.data[:SECTOR_BYTES].ljust(SECTOR_BYTES, b"\n") + off[SECTOR_BYTES:])
        elif (
            not (current == active and is_whole(current.entry, current.data))
            and current.data[SECTOR_BYTES:] != encode(wanted)[SECTOR_BYTES:]
        ):
            self._files.rewrite(self._entries / file, off)
        self._files.patch(self._entries / file, encode(wanted)[:SECTOR_BYTES])
        if left is not None:
            # Until then the uncounted one counts, so that a cut leaves the state before.
            for one in others:
                self._switch_off(one)

    def _put_away(self, one: EntryFile) -> None:
        """Switched off, and gone where a counter is in its name."""
        self._switch_off(one)
        if one.name.left is not None:
            self._files.remove(self._entries / one.file)

    def _switch_off(self, one: EntryFile) -> None:
        if not one.entry.on:
            return
        off = replace(one.entry, on=False)
        if is_whole(one.entry, one.data):
            self._files.patch(self._entries / one.file, encode(off)[:SECTOR_BYTES])
        else:
            # Somebody else's layout: it cannot be switched on again, but nothing is lost, the configuration has it all.
            self._files.rewrite(self._entries / one.file, encode(replace(self._plain[one.name.slot], on=False)))

    def _mirror(self, state: BootState) -> None:
        """Keep a floor that no entry holds in one that is not the first to boot."""
        files = self.load()
        if state.floor is None or any((one.entry.floor or 0) >= state.floor for one in files):
            return
        spare = next((slot for slot in self._slots if slot not in state.order), state.order[-1])
        for one in files:
            if one.name == EntryName(spare) and is_whole(one.entry, one.data) and spare != state.order[0]:
                self._files.patch(self._entries / one.file, encode(replace(one.entry, floor=state.floor))[:SECTOR_BYTES])
                return
        if spare not in state.order and not any(one.name == EntryName(spare) for one in files):
            off = replace(self._plain[spare], on=False, floor=state.floor)
            self._files.create(self._entries / EntryName(spare).file, encode(off))

    def _firmware(self) -> Variables:
        if self._variables is not None:
            return self._variables()
        from abupdate.bootloaders.efivars import EfiVars

        return EfiVars()

    def _check(self, state: BootState) -> None:
        if not state.order:
            raise ConfigError("no slot is left to boot", "one slot stays first, whatever happens to the other")
        strangers = [slot for slot in (*state.order, *([state.trial] if state.trial else [])) if slot not in self._slots]
        if strangers:
            raise ConfigError(f"slot {strangers[0]!r} is not configured", f"configured are {', '.join(self._slots)}")

    def _wanted(self, state: BootState, slot: str, key: int) -> Entry:
        timeout_s = (state.policy or TrialPolicy()).boot_timeout_s if slot == state.trial else None
        return replace(self._plain[slot], key=key, trial_s=timeout_s, verity=state.verity.get(slot, ""), floor=state.floor)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Failed(
                f"the ESP at {self._esp}: {error.strerror}", "is it mounted read-write, and not full? see the kernel's log"
            ) from error


def active_file(files: Iterable[EntryFile], slot: str) -> EntryFile | None:
    """The file that says what the slot is good for: the uncounted one, else the one with the fewest boots left, but one that has any comes
    before one that has none, as systemd-boot has it; None: the slot is out.
    """
    on = [one for one in files if one.name.slot == slot and one.entry.on]
    return min(on, key=lambda one: (one.name.left is not None, one.name.left == 0, one.name.left or 0), default=None)


def _left(found: EntryFile | None) -> int:
    if found is None:
        return 0
    # A counter that somebody else gave to a good slot's entry is none of ours: whatever it says, the next commit writes an uncounted one.
    counted = found.name.left is not None and (found.entry.trial_s is not None or found.name.left == 0)
    return (found.name.left or 0) if counted else 1


def _counter(state: BootState, slot: str) -> int | None:
    """The counter in the name of a slot's entry. A slot that failed and stays behind the other one, as the last resort, has none left."""
    left = state.left.get(slot, 0)
    return left if slot == state.trial or left == 0 else None


def _same(entry: Entry, wanted: Entry) -> bool:
    """Nothing that the state decides differs; the configuration's part is brought up to date when an entry is written anyway."""
    on_trial = (entry.trial_s is None) == (wanted.trial_s is None)
    return entry.on and on_trial and entry.key == wanted.key and entry.verity == wanted.verity


def _newness(slot: str) -> list[tuple[bool, int, str]]:
    """Of entries with one sort-key, or without any, systemd-boot boots the one whose name is the newest, compared as versions are."""
    pieces = re.findall(r"[0-9]+|[a-z]+", slot.casefold())
    return [(True, int(piece), "") if piece.isdigit() else (False, 0, piece) for piece in pieces]


def _keys(files: tuple[EntryFile, ...], state: BootState) -> dict[str, int]:
    """A sort-key for each slot of the order. An entry that is good and stays in its place keeps its own."""
    keys: dict[str, int] = {}
    used = [one.entry.key for one in files if one.entry.on and one.entry.key < NO_KEY]
    bound, behind = NO_KEY, ""
    for number, slot in enumerate(reversed(state.order)):
        active = active_file(files, slot)
        stays = active is not None and (active.name.left is None) == (_counter(state, slot) is None)
        key = active.entry.key if active is not None and stays else None
        if slot != state.trial and _counter(state, slot) == 0 and number < len(state.order) - 1:
            # Behind all that have boots left, whatever its key.
            keys[slot] = key or FIRST_KEY
            continue
        if key is None or not (key < bound or (bound == key == NO_KEY and _newness(slot) > _newness(behind))):
            # Below all that are there, those that are about to go as well; of a slot that is behind, as far behind as there is.
            key = min([FIRST_KEY, *used, bound]) - 1 if number == len(state.order) - 1 else FIRST_KEY
        keys[slot] = bound = key
        behind = slot
    if bound < 1:
        return {slot: FIRST_KEY - number for number, slot in enumerate(reversed(state.order))}
    return keys


def _plain(slot: str, esp: Path, images: Mapping[str, Path], cmdline: str) -> Entry:
    """A slot's entry as the configuration has it."""
    kernel = images.get("uki") or images.get("kernel")
    if kernel is None:
        raise ConfigError(f"slot {slot} has no image kernel or uki", f'add kernel = "{esp}/abu/{slot}/vmlinuz" to [slots.{slot}] images')
    if not cmdline:
        raise ConfigError(f"[bootloader] cmdline has nothing for slot {slot}", f'as in cmdline = {{ {slot} = "root=PARTLABEL=rootfs ro" }}')
    initrd = None if "uki" in images else images.get("initrd")
    places = []
    for path in (kernel, initrd):
        if path is not None and not path.is_relative_to(esp):
            raise ConfigError(f"{path} does not lie on the ESP ({esp})", "systemd-boot loads from the ESP alone: [bootloader] esp names it")
        places.append("" if path is None else f"/{path.relative_to(esp)}")
    return Entry(slot, FIRST_KEY, on=True, kernel=places[0], initrd=places[1], unified="uki" in images, cmdline=cmdline)
