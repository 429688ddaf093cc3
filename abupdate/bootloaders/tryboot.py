"""Boot state of a Raspberry Pi: the firmware's autoboot.txt, and the reboot parameter without which an armed trial does not start.

`[all] boot_partition` is the confirmed slot. While a trial is armed or runs there is a section `[tryboot]`, marked as ours, with the
trial's partition; the firmware looks at it in the one boot that follows a reboot with the parameter `0 tryboot`. That parameter does
not outlive anything but an ordered reboot, so it is repeated at each start of the service while a trial waits (`rearm`). The order of
the slots, which of them have a boot left, and the floor are in comments of ours. A commit is one write of one sector (onesector.py).

A trial has one boot. On the way down to it the shutdown notes that in the file (`depart`: no boots left), so that the old slot, when it
runs again, knows whether it was tried or a power cut came first. The parameter is written after an arming commit and removed before a
disarming one: whatever cuts in between, the confirmed slot boots, and the parameter alone selects nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from abupdate.bootloaders.envcalls import LINUX, Calls
from abupdate.bootloaders.onesector import OneSector
from abupdate.bootloaders.piplatform import PARAMETER, LinuxPi, Platform
from abupdate.errors import AbupdateError, ConfigError, StoreUnreadable
from abupdate.formats import autoboot
from abupdate.formats.autoboot import Autoboot
from abupdate.model import MAX_COUNTER, BootState, BootTraits, Finding, Grade, Repair, TrialPolicy
from abupdate.ports import Bootloader

_TRAITS = BootTraits(max_tries=1, counts_confirmed=False, falls_through=False, armed_in_store=False)
_TOPIC = "boot store"
_MAX_COUNT = 99


class TrybootStore(Bootloader):
    """`ports.Bootloader` over autoboot.txt. partitions: number of each slot's FAT boot partition.

    Raises ConfigError at once where the numbers are missing.
    """

    def __init__(
        self,
        path: Path,
        slots: tuple[str, ...],
        partitions: Mapping[str, int],
        *,
        platform: Platform | None = None,
        calls: Calls = LINUX,
    ) -> None:
        if set(partitions) != set(slots):
            example = ", ".join(f"{slot} = {number}" for number, slot in enumerate(slots, 2))
            raise ConfigError("[bootloader] does not say which partitions the slots boot from", f"add partitions = {{ {example} }}")
        self._path = path
        self._slots = slots
        self._partitions = {slot: partitions[slot] for slot in slots}
        self._platform = platform or LinuxPi()
        hint = "[bootloader] autoboot names it; bootloader-hooks/tryboot/autoboot.txt is one to begin with"
        self._file = OneSector(path, autoboot.SIZE_BYTES, "autoboot.txt", hint, calls)

    @property
    def traits(self) -> BootTraits:
        """One boot a trial, and confirmed slots are not counted."""
        return _TRAITS

    @property
    def location(self) -> str:
        """The file."""
        return f"tryboot:{self._path}"

    @property
    def irreplaceable(self) -> str:
        """Everything that the firmware needs from the file is in the configuration too."""
        return ""

    def places(self) -> tuple[tuple[Path, int, int], ...]:
        """See ports.Bootloader."""
        return ((self._path, 0, autoboot.SIZE_BYTES),)

    def read(self) -> BootState:
        """See ports.Bootloader. Raises ConfigError where the file boots from a partition that is no slot's."""
        return self._state(self._load())

    def commit(self, state: BootState) -> None:
        """See ports.Bootloader."""
        self._put(self._load(), state)

    def check_room(self, state: BootState) -> None:
        """See ports.Bootloader."""
        autoboot.encode(self._wanted(self._load(), state), str(self._path))

    def rebuild(self, state: BootState) -> None:
        """See ports.Bootloader. What others wrote into the file is lost where it is no text."""
        try:
            found = self._parsed()
        except StoreUnreadable:
            found = Autoboot(())
        self._put(found, state)

    def rearm(self) -> None:
        """Ask for the trial at the next ordered reboot, where one is armed and this boot is not it."""
        state = self.read()
        if self._waits(state):
            self._platform.ask()

    def depart(self) -> None:
        """Note that the device goes down for the trial: called when an ordered reboot has begun that carries the parameter."""
        state = self.read()
        if state.trial is not None and self._waits(state) and self._platform.asked():
            state = replace(state, left={**state.left, state.trial: 0})
            self._file.write(autoboot.encode(self._wanted(self._load(), state), str(self._path)))

    def tried(self) -> bool | None:
        """The firmware's word on this boot: it was the try that the parameter asked for. None where it says nothing."""
        flag = self._platform.chosen("tryboot")
        return None if flag is None else flag == 1

    def running(self) -> str | None:
        """The slot from whose partition the firmware says that it booted; None where it does not say, or names no slot's."""
        return self._slot(self._platform.chosen("partition"))

    def inspect(self) -> Iterator[Finding]:
        """See ports.Bootloader."""
        try:
            self._file.check_writable()
            size, found = len(self._file.read()), self._parsed()
        except AbupdateError as error:
            yield Finding(Grade.FAIL, _TOPIC, error.message, error.hint)
            return
        if size < autoboot.SIZE_BYTES:
            yield Finding(Grade.OK, _TOPIC, f"{self._path} has {size} bytes: the next write fills it up to {autoboot.SIZE_BYTES}")
        if not found.switches_partitions():
            text = (
                f"{self._path}: without tryboot_a_b the firmware looks for tryboot.txt on the confirmed slot instead of booting the trial"
            )
            yield Finding(Grade.WARN, _TOPIC, text, "the next flash writes it; or put tryboot_a_b=1 below [all]")
        if "trial" not in found.notes and found.partition(tryboot=True) != found.partition(tryboot=False):
            text = f"{self._path} boots partition {found.partition(tryboot=True)} after reboot '{PARAMETER}', and nothing is armed"
            yield Finding(Grade.WARN, _TOPIC, text, "the next flash removes that section")
        yield from self._inspect_boot(found)

    def repairs(self) -> tuple[Repair, ...]:
        """See ports.Bootloader: an autoboot.txt where there is none, for the slot that the firmware says it booted."""
        running = self.running()
        if running is None or not self._path.parent.is_dir() or os.path.lexists(self._path):
            return ()
        text = f"write {self._path}: slot {running} from partition {self._partitions[running]}"
        empty = autoboot.encode(autoboot.changed(Autoboot(()), self._partitions[running], None, {}))
        return (Repair(text, lambda: self._file.create(empty)),)

    def _inspect_boot(self, found: Autoboot) -> Iterator[Finding]:
        if self.tried() is None:
            text = "the firmware does not say whether this boot was a try (/proc/device-tree/chosen/bootloader/tryboot)"
            yield Finding(
                Grade.FAIL, _TOPIC, text, "update the bootloader (rpi-eeprom-update) and the firmware: tryboot_a_b needs 2022-11 or later"
            )
        elif self.running() is None:
            names = ", ".join(f"{number} for {slot}" for slot, number in self._partitions.items())
            text = f"the firmware booted partition {self._platform.chosen('partition')}, which is no slot's"
            yield Finding(Grade.WARN, _TOPIC, text, f"[bootloader] partitions says {names}; firmware that says 0 is too old")
        elif self.running() != self._slot(found.partition(tryboot=bool(self.tried()))):
            text = (
                f"the firmware booted slot {self.running()}, which {self._path.name} does not name: the other one's partition does not boot"
            )
            yield Finding(Grade.WARN, _TOPIC, text, "see that partition's start4.elf or config.txt")
        named, running = self._platform.slot_argument(), self.running()
        if named is not None and running is not None and named != running:
            text = f"the kernel was started with abupdate.slot={named} from the partition of slot {running}"
            hint = f"config.txt: [boot_partition={self._partitions[running]}] and its cmdline=, which firmware before 2025-03 does not know"
            yield Finding(Grade.FAIL, _TOPIC, text, hint)
        for text, hint in self._platform.shortcomings():
            yield Finding(Grade.WARN, _TOPIC, text, hint)
        hint = f"reboot with `systemctl reboot` or `reboot '{PARAMETER}'`: `reboot` without an argument removes the parameter"
        if found.notes.get("trial", "").endswith(":1") and self.running() != self._slot(found.partition(tryboot=True)):
            armed = self._platform.asked()
            text = "the next reboot starts the trial" if armed else "a trial is armed, but the next reboot would not start it"
            yield Finding(Grade.OK if armed else Grade.WARN, _TOPIC, text, hint)
        else:
            yield Finding(Grade.OK, _TOPIC, "an armed trial starts at an ordered reboot", hint)

    def _put(self, found: Autoboot, state: BootState) -> None:
        data = autoboot.encode(self._wanted(found, state), str(self._path))
        if state.trial is None:
            self._platform.forget()
        self._file.write(data)
        self.rearm()

    def _waits(self, state: BootState) -> bool:
        """A trial is armed and this boot is not it."""
        if state.trial is None or not state.left.get(state.trial):
            return False
        running = self.running()
        return running != state.trial and not (running is None and self.tried())

    def _parsed(self) -> Autoboot:
        return autoboot.parse(self._file.read(), str(self._path))

    def _load(self) -> Autoboot:
        found = self._parsed()
        partition = found.partition(tryboot=False)
        if partition is None:
            raise StoreUnreadable(f"{self._path} names no boot_partition", "`abupdate doctor --fix` shows and writes one")
        if self._slot(partition) is None:
            names = ", ".join(f"{number} for slot {slot}" for slot, number in self._partitions.items())
            raise ConfigError(f"{self._path} boots from partition {partition}, which is no slot's", f"boot_partition is {names}")
        return found

    def _state(self, found: Autoboot) -> BootState:
        first = self._slot(found.partition(tryboot=False))
        assert first is not None
        notes = found.notes
        # What the firmware does counts; where somebody has edited it, the noted order gives way.
        noted = {slot: left for slot, left in _pairs(notes.get("order", "")) if slot in self._slots}
        fresh = "order" not in notes
        left = {slot: noted.get(slot, 0) for slot in self._slots}
        confirmed = (first, *(slot for slot in noted if slot != first))
        left[first] = noted.get(first) or 1
        trial = self._slot(found.partition(tryboot=True)) if "trial" in notes and found.switches_partitions() else None
        order = confirmed
        if trial is not None and trial != first:
            order = (trial, *(slot for slot in confirmed if slot != trial))
            left[trial] = dict(_pairs(notes["trial"])).get(trial, 1)
        else:
            trial = None
        policy = TrialPolicy(tries=1, budget=0, boot_timeout_s=_count(notes.get("timeout"), 3600) or TrialPolicy().boot_timeout_s)
        return BootState(order, left, trial, policy, _count(notes.get("floor"), MAX_COUNTER), fresh)

    def _wanted(self, found: Autoboot, state: BootState) -> Autoboot:
        """Raises ConfigError for a state that this store cannot hold."""
        strangers = [slot for slot in (*state.order, *state.left, state.trial or self._slots[0]) if slot not in self._slots]
        if strangers:
            raise ConfigError(f"slot {strangers[0]!r} is not configured", f"configured are {', '.join(self._slots)}")
        confirmed = [slot for slot in dict.fromkeys(state.order) if slot != state.trial]
        if not confirmed:
            raise ConfigError(
                "a boot order without a confirmed slot would leave the device dark", "at least the running slot belongs into it"
            )
        if state.verity:
            raise ConfigError(
                "autoboot.txt cannot hold a dm-verity root hash", "put abupdate.verity= into the cmdline.txt of the slot's image"
            )
        if not all(0 <= count <= _MAX_COUNT for count in state.left.values()):
            raise ConfigError(f"autoboot.txt counts to {_MAX_COUNT} boots", "see [trial]")
        notes = {"order": ",".join(f"{slot}:{state.left.get(slot, 0)}" for slot in confirmed)}
        kept = found.notes
        floor = str(state.floor) if state.floor is not None else kept.get("floor")
        timeout = str(state.policy.boot_timeout_s) if state.policy is not None else kept.get("timeout")
        notes.update({key: text for key, text in (("timeout", timeout), ("floor", floor)) if text is not None})
        trial = None
        if state.trial is not None:
            trial = self._partitions[state.trial]
            notes["trial"] = f"{state.trial}:{state.left.get(state.trial, 0)}"
        return autoboot.changed(found, self._partitions[confirmed[0]], trial, notes)

    def _slot(self, partition: int | None) -> str | None:
        return next((slot for slot, number in self._partitions.items() if number == partition), None)


def _pairs(text: str) -> list[tuple[str, int]]:
    """`A:1,B:0`; what is no pair is passed over."""
    parts = (piece.partition(":") for piece in text.split(","))
    return [(slot, count) for slot, _, number in parts if (count := _count(number, _MAX_COUNT)) is not None]


def _count(text: str | None, most: int) -> int | None:
    """A decimal number from 0 to `most`, None for anything else."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= most else None
