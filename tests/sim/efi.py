"""EFI firmware of the simulated device: its variables, each written whole or not at all, and the boot manager that reads them.

The boot manager does what the UEFI specification says and OVMF was seen to do (tests/qemu/test_efi.py): it deletes BootNext, then starts
the entry that it named, then those of BootOrder in turn, and tells the kernel in BootCurrent. At its first start it puts an entry of its
own behind the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from abupdate.bootloaders.efi import EfiStore
from abupdate.bootloaders.efientries import SlotFiles
from abupdate.bootloaders.efistate import description, on_trial
from abupdate.bootloaders.efivars import GLOBAL_GUID, KEPT, Variable
from abupdate.errors import StoreUnreadable
from abupdate.formats import efiboot
from abupdate.formats.efiboot import ACTIVE, LoadOption, Partition
from abupdate.model import BootState, BootTraits, TrialPolicy
from tests.sim.bootplace import SLOTS, BootPlace, BootRom, Started
from tests.sim.parts import OnEvent, Part, Running, digest, quiet

PARTITION = Partition(1, 2048, 524288, bytes(range(16)))
ESP = Path("/efi")
FILES = {
    slot: SlotFiles(ESP / f"abu/{slot}/vmlinuz", ESP / f"abu/{slot}/initrd.img", f"root=PARTLABEL=rootfs_{slot.lower()}") for slot in SLOTS
}
# A menu, which is never started in its turn, before the slots; an entry of the vendor's behind them; what the firmware adds.
MENU, VENDOR, ADDED = 0x0000, 0x0007, 0x0009
Names = Mapping[tuple[str, str], Variable]

_INTERNED: dict[object, Nvram] = {}


@dataclass(eq=False, frozen=True)
class Nvram:
    """`parts.Part`: the variables, by name and vendor. torn: a cut in a write of any but BootOrder loses that variable."""

    variables: tuple[tuple[tuple[str, str], Variable], ...]
    torn: bool = False

    @staticmethod
    def of(variables: Names, *, torn: bool) -> Nvram:
        """The one object for these values."""
        key = (tuple(sorted(variables.items(), key=lambda item: item[0])), torn)
        found = _INTERNED.get(key)
        if found is None:
            found = _INTERNED[key] = Nvram(*key)
        return found

    @property
    def choices(self) -> tuple[int, ...]:
        """See Part: each write is durable when it returns."""
        return ()

    def after(self, picks: Iterator[int]) -> Nvram:
        """See Part."""
        return self

    def thaw(self, on_event: OnEvent = quiet) -> Flash:
        """See Part."""
        return Flash(dict(self.variables), self.torn, on_event)


@dataclass
class Flash:
    """`parts.Running`, and `efivars.Variables`."""

    variables: dict[tuple[str, str], Variable]
    torn: bool
    on_event: OnEvent = field(default=quiet)

    def listen(self, on_event: OnEvent) -> None:
        """See Running."""
        self.on_event = on_event

    def freeze(self) -> Nvram:
        """See Running."""
        return Nvram.of(self.variables, torn=self.torn)

    def read(self, name: str, guid: str = GLOBAL_GUID) -> Variable | None:
        """See Variables."""
        return self.variables.get((name, guid))

    def write(self, name: str, data: bytes, guid: str = GLOBAL_GUID, attributes: int = KEPT) -> None:
        """See Variables."""
        wanted = Variable(attributes, data)
        if self.read(name, guid) == wanted:
            return
        self.on_event(f"write {name}", False)
        if self.torn and name != "BootOrder":
            self.variables.pop((name, guid), None)
            self.on_event(f"write {name} is torn", True)
        self.variables[name, guid] = wanted

    def delete(self, name: str, guid: str = GLOBAL_GUID) -> None:
        """See Variables."""
        if (name, guid) in self.variables:
            self.on_event(f"delete {name}", False)
            del self.variables[name, guid]

    def names(self, guid: str = GLOBAL_GUID) -> tuple[str, ...]:
        """See Variables."""
        return tuple(sorted(name for name, vendor in self.variables if vendor == guid))

    def free_bytes(self) -> int | None:
        """See Variables."""
        return None

    def problem(self) -> tuple[str, str] | None:
        """See Variables."""
        return None


def store_over(variables: Flash) -> EfiStore:
    """The production store."""
    return EfiStore(FILES, esp=ESP, variables=variables, partition=lambda: PARTITION, proc_cmdline=Path("/nowhere"))


@dataclass(frozen=True)
class EfiPlace(BootPlace):
    """`BootPlace`: EFI's boot variables after `doctor --fix`. torn: see Nvram. stubborn: see EfiRom."""

    torn: bool = False
    stubborn: bool = False
    traits = BootTraits(max_tries=1, counts_confirmed=False, falls_through=True, armed_in_store=True, keeps_verity=True)

    @property
    def policy(self) -> TrialPolicy:
        """See BootPlace."""
        return TrialPolicy(1, 0, 120)

    @property
    def rom(self) -> BootRom:
        """See BootPlace."""
        return EfiRom(self.stubborn)

    def blank(self) -> Part:
        """See BootPlace: entries for both slots, A in BootOrder between a menu and the vendor's own entry."""
        flash = Flash({}, self.torn)
        menu = LoadOption(ACTIVE | 0x100, "Setup", b"\x7f\xff\x04\x00")
        for number, option in ((MENU, menu), (VENDOR, LoadOption(ACTIVE, "Vendor recovery", b"\x7f\xff\x04\x00"))):
            flash.write(efiboot.option_name(number), efiboot.encode_option(option))
        flash.write("BootOrder", efiboot.encode_order([MENU, VENDOR]))
        for repair in store_over(flash).repairs():
            repair.run()
        seen = efiboot.decode_order(flash.variables["BootOrder", GLOBAL_GUID].data)
        assert seen == (MENU, VENDOR)
        if self.stubborn:
            # `doctor --fix` on the device: without the marker, what the firmware adds would look good.
            store_over(flash).commit(BootState(("A",), {"A": 1, "B": 0}))
        number = next(number for number, option in _options(flash) if option.description == description("A"))
        flash.write("BootOrder", efiboot.encode_order([MENU, number, VENDOR]))
        return flash.freeze()

    def bootloader(self, running: Running, folder: Path) -> EfiStore:
        """See BootPlace."""
        assert isinstance(running, Flash)
        return store_over(running)

    def state(self, part: Part) -> BootState | None:
        """See BootPlace. What ran before a cut does not run after it."""
        assert isinstance(part, Nvram)
        return _state(part)

    def key(self, part: Part) -> bytes:
        """See BootPlace."""
        assert isinstance(part, Nvram)
        kept = [(name, found) for name, found in part.variables if name[0] != "BootCurrent"]
        return digest(repr(kept).encode())


@cache
def _state(part: Nvram) -> BootState | None:
    flash = part.thaw()
    flash.variables.pop(("BootCurrent", GLOBAL_GUID), None)
    try:
        return store_over(flash).read()
    except StoreUnreadable:
        return None


@dataclass(frozen=True)
class EfiRom:
    """`BootRom`: the firmware's boot manager. stubborn: it puts every entry that it finds back into BootOrder, as some do."""

    stubborn: bool = False

    def power_up(self, store: Part, loads: frozenset[str]) -> Started:
        """See BootRom."""
        assert isinstance(store, Nvram)
        return _power_up(store, loads, self.stubborn)


@cache
def _power_up(part: Nvram, loads: frozenset[str], stubborn: bool) -> Started:
    flash = part.thaw()
    flash.variables.pop(("BootCurrent", GLOBAL_GUID), None)
    during: list[Part] = []
    flash.listen(lambda step, inside: during.append(flash.freeze()))
    options = dict(_options(flash))
    following = _numbers(flash, "BootNext")
    flash.delete("BootNext")
    order = _numbers(flash, "BootOrder")
    assert [number for number in order if number in (MENU, VENDOR, ADDED)] in ([MENU, VENDOR], [MENU, VENDOR, ADDED]), (
        "others' entries moved"
    )
    if ADDED not in order:
        flash.write(efiboot.option_name(ADDED), efiboot.encode_option(LoadOption(ACTIVE, "UEFI disk", b"\x7f\xff\x04\x00", bytes(16))))
        order = (*order, ADDED)
        flash.write("BootOrder", efiboot.encode_order(order))
    if stubborn and set(options) - set(order):
        order = (*order, *sorted(set(options) - set(order)))
        flash.write("BootOrder", efiboot.encode_order(order))
    during.append(flash.freeze())
    failed: list[str] = []
    for number in (*following, *(number for number in order if number in options and options[number].in_turn)):
        option = options.get(number)
        slot = next((slot for slot in SLOTS if option is not None and option.description == description(slot)), None)
        if option is None or slot is None or efiboot.place_of(option.path) != (PARTITION, f"/abu/{slot}/vmlinuz"):
            continue
        if slot in loads:
            # Not by `write`: it lies in memory alone.
            flash.variables["BootCurrent", GLOBAL_GUID] = Variable(6, efiboot.encode_order([number]))
            return Started(slot, on_trial(option), tuple(failed), flash.freeze(), tuple(during))
        failed.append(slot)
    return Started(None, False, tuple(failed), flash.freeze(), tuple(during))


def _options(flash: Flash) -> Iterator[tuple[int, LoadOption]]:
    for name in flash.names():
        number, found = efiboot.option_number(name), flash.read(name)
        option = efiboot.decode_option(found.data) if found is not None and number is not None else None
        if number is not None and option is not None:
            yield number, option


def _numbers(flash: Flash, name: str) -> tuple[int, ...]:
    found = flash.read(name)
    return (efiboot.decode_order(found.data) or ()) if found is not None else ()


PLACES = (EfiPlace("efi"), EfiPlace("efi-torn", torn=True), EfiPlace("efi-stubborn", stubborn=True))
