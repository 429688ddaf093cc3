"""What `doctor` says about systemd-boot: the loader and its configuration, the slots' entries, what else could decide what boots."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from abupdate.bootloaders.espfiles import EspFiles
from abupdate.errors import ConfigError
from abupdate.formats import efiboot
from abupdate.formats.bootentry import MAX_BYTES, SECTOR_BYTES, Entry, EntryName, encode, is_whole, setting, with_setting
from abupdate.model import Finding, Grade, Repair

if TYPE_CHECKING:
    from abupdate.bootloaders.efivars import Variable, Variables
    from abupdate.bootloaders.systemdboot import EntryFile

TOPIC = "boot store"
_FIRMWARE = "EFI variables"
_FIX = "`abupdate doctor --fix` puts it there"
# Of the variables that boot loaders and systemd share.
LOADER_GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_ABOVE = ("LoaderEntryDefault", "LoaderEntryOneShot", "LoaderEntrySysFail")
PATTERN = "slot-*"
# Of a folder, in 512 bytes.
_SECTOR_ENTRIES = 16
# Where a second folder of entries may be (XBOOTLDR): systemd-boot reads both.
_OTHER_BOOT = Path("/boot")
# Where systemd-boot itself lies: by its own name, or as what firmware starts when nothing else is said.
_LOADERS = ("EFI/systemd", "EFI/BOOT")


def inspect(
    esp: Path, plain: Mapping[str, Entry], files: tuple[EntryFile, ...], access: EspFiles, other_boot: Path = _OTHER_BOOT
) -> Iterator[Finding]:
    """The findings. plain: each slot's entry as the configuration has it. files: the entries that are there."""
    if not esp.is_mount():
        yield Finding(
            Grade.WARN, TOPIC, f"{esp} is no mount point", "systemd-boot reads the ESP: mount it there, or name it in [bootloader] esp"
        )
    if read_only(esp):
        text = f"{esp} is mounted read-only: nothing can be armed, confirmed or reverted"
        yield Finding(Grade.FAIL, TOPIC, text, f"mount -o remount,rw {esp}; the kernel's log says whether it found damage")
    if not any(path.name.lower().endswith(".efi") for folder in _LOADERS for path in _in(esp / folder)):
        yield Finding(Grade.FAIL, TOPIC, f"no boot loader in {esp}/EFI", f"bootctl install --esp-path={esp}")
    if problem := default_problem(_conf(esp, access)):
        yield Finding(Grade.FAIL, TOPIC, f"{esp}/loader/loader.conf {problem}", f"write `default {PATTERN}`, or `abupdate doctor --fix`")
    for slot, entry in plain.items():
        mine = [one for one in files if one.name.slot == slot]
        if not any(one.entry.on for one in mine):
            yield Finding(Grade.OK, TOPIC, f"slot {slot} has no entry that boots", "")
        if sum(one.name.left is not None for one in mine) > 1:
            yield Finding(
                Grade.WARN, TOPIC, f"slot {slot} has two counted entries: a power cut came in between", "the end of its trial removes them"
            )
        for one in mine:
            yield from _entry(esp, entry, one)
    yield from _strangers(esp, tuple(plain), other_boot)
    used = sector_entries(path.name for path in _in(esp / "loader" / "entries"))
    if used > _SECTOR_ENTRIES:
        text = f"the names in {esp}/loader/entries take {used} entries of the folder, more than the {_SECTOR_ENTRIES} of its first sector"
        hint = "take entries away that nobody boots: a power cut while systemd-boot counts could leave a trial two names"
        yield Finding(Grade.WARN, TOPIC, text, hint)


def read_only(esp: Path) -> bool:
    """The file system is mounted so that nobody can write it."""
    with suppress(OSError):
        return bool(os.statvfs(esp).f_flag & os.ST_RDONLY)
    return False


def sector_entries(names: Iterable[str]) -> int:
    """Entries (32 bytes) of a FAT folder that these names take with `.`, `..` and the longest name that a counter may need beside them.

    A long name takes one for each 13 characters, and one for the short name.
    """
    names = tuple(names)
    longest = max((len(name) for name in names if "+" in name), default=len("slot-B+3.conf")) + 2
    return 2 + sum(-(-len(name) // 13) + 1 for name in names) + -(-longest // 13) + 1


def repairs(esp: Path, access: EspFiles) -> tuple[Repair, ...]:
    """loader.conf with our default, where it has another one."""
    path = esp / "loader" / "loader.conf"
    conf = _conf(esp, access)
    if not default_problem(conf):
        return ()
    write = access.rewrite if path.exists() else access.create

    def mend() -> None:
        try:
            write(path, with_setting(conf, "default", PATTERN))
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}", "mount the ESP read-write") from error

    return (Repair(f"{path}: default {PATTERN}", mend),)


def firmware(variables: Variables, tries: int, *, unified: bool) -> Iterator[Finding]:
    """What the firmware's variables say: who started this boot, whose word is above loader.conf, what comes after a damaged kernel."""
    problem = variables.problem()
    if problem is not None:
        yield Finding(Grade.WARN, _FIRMWARE, *problem)
        return
    secure = variables.read("SecureBoot")
    if unified and secure is not None and secure.data[:1] == b"\x01":
        text = "Secure Boot is on: a unified kernel image ignores the entry's arguments then, so no slot can be on trial"
        yield Finding(Grade.FAIL, _FIRMWARE, text, "use a signed EFI-stub kernel (image `kernel`)")
    for name in _ABOVE:
        if variables.read(name, LOADER_GUID) is not None:
            hint = "bootctl set-default '' takes it away" if name == "LoaderEntryDefault" else "bootctl unsets it, or the next boot does"
            yield Finding(Grade.FAIL, _FIRMWARE, f"{name} is set: what it names boots, whatever its tries", hint)
    if not _text(variables.read("LoaderInfo", LOADER_GUID)).startswith("systemd-boot"):
        yield Finding(Grade.WARN, _FIRMWARE, "this boot was not started by systemd-boot", "efibootmgr shows what the firmware starts first")
        return
    number, order = _loader(variables)
    if number is None:
        yield Finding(Grade.WARN, _FIRMWARE, "the firmware does not say which entry started systemd-boot", "is there a newer one?")
        return
    name = efiboot.option_name(number)
    if order[:1] != (number,):
        yield Finding(Grade.WARN, _FIRMWARE, f"{name} started systemd-boot and is not first in BootOrder", _FIX)
    elif order[: tries + 1] != (number,) * (tries + 1):
        text = f"after a kernel that is damaged systemd-boot returns to the firmware, and BootOrder has it {_leading(order)} times in a row"
        yield Finding(Grade.WARN, _FIRMWARE, f"{text} instead of {tries + 1}", f"a watchdog ends that too, or: {_FIX}")
    else:
        yield Finding(Grade.OK, _FIRMWARE, f"BootOrder has systemd-boot ({name}) {_leading(order)} times in a row")


def firmware_repairs(variables: Variables, tries: int) -> tuple[Repair, ...]:
    """BootOrder with systemd-boot tries + 1 times at its front: once for each try of a damaged kernel, once for the other slot."""
    if variables.problem() is not None or not _text(variables.read("LoaderInfo", LOADER_GUID)).startswith("systemd-boot"):
        return ()
    number, order = _loader(variables)
    if number is None or order[: tries + 1] == (number,) * (tries + 1):
        return ()
    wanted = (*((number,) * (tries + 1)), *(other for other in order if other != number))
    text = f"BootOrder: {','.join(f'{other:04X}' for other in wanted)}"
    return (Repair(text, partial(variables.write, "BootOrder", efiboot.encode_order(wanted))),)


def _loader(variables: Variables) -> tuple[int | None, tuple[int, ...]]:
    """Number of the entry that started this boot, and BootOrder."""
    current, order = variables.read("BootCurrent"), variables.read("BootOrder")
    found = efiboot.decode_order(current.data) if current is not None else None
    return (found[0] if found else None), (efiboot.decode_order(order.data) or () if order is not None else ())


def _leading(order: tuple[int, ...]) -> int:
    return next((at for at, number in enumerate(order) if number != order[0]), len(order))


def _text(variable: Variable | None) -> str:
    return "" if variable is None else variable.data.decode("utf-16-le", "replace").partition("\0")[0]


def default_problem(conf: bytes) -> str:
    """Empty, or what is wrong with loader.conf's default."""
    default = setting(conf, "default")
    if not default:
        return "has no default: the menu's first entry boots, whatever it is"
    names = (EntryName("A").file, EntryName("B", 3).file, EntryName("B", 2, 1).file)
    if not all(fnmatchcase(name.lower(), default.lower()) for name in names):
        return f"has `default {default[:80]}`: an entry that is named boots even when its tries are used up"
    return ""


def _entry(esp: Path, plain: Entry, one: EntryFile) -> Iterator[Finding]:
    entry, where = one.entry, f"{esp}/loader/entries/{one.file}"
    anew = f"an update of slot {one.name.slot} writes it anew"
    if not entry.kernel:
        yield Finding(Grade.WARN, TOPIC, f"{where} is empty or damaged", anew)
        return
    if not entry.on:
        return
    if not (esp / entry.kernel.lstrip("/")).is_file():
        yield Finding(Grade.FAIL, TOPIC, f"{where} names {entry.kernel}, which is not there", f"flash slot {one.name.slot} again")
    if entry.initrd and not (esp / entry.initrd.lstrip("/")).is_file():
        yield Finding(Grade.FAIL, TOPIC, f"{where} names {entry.initrd}, which is not there", f"flash slot {one.name.slot} again")
    if not is_whole(entry, one.data):
        yield Finding(Grade.WARN, TOPIC, f"{where} was not written by abupdate, or edited by hand", anew)
    elif (entry.kernel, entry.initrd, entry.unified) != (plain.kernel, plain.initrd, plain.unified):
        yield Finding(Grade.WARN, TOPIC, f"{where} names other files than [slots.{one.name.slot}] images", anew)
    elif one.data[SECTOR_BYTES:] != encode(plain)[SECTOR_BYTES:]:
        yield Finding(Grade.WARN, TOPIC, f"{where} has other kernel arguments than [bootloader] cmdline", anew)
    else:
        yield Finding(Grade.OK, TOPIC, f"{where} boots slot {one.name.slot}" + (" on trial" if entry.trial_s is not None else ""))


def _strangers(esp: Path, slots: tuple[str, ...], other_boot: Path) -> Iterator[Finding]:
    from abupdate.formats.bootentry import parse_name

    here = esp / "loader" / "entries"
    for path in _in(here):
        if fnmatchcase(path.name.lower(), PATTERN + ".conf") and parse_name(path.name, slots) is None:
            yield Finding(
                Grade.WARN, TOPIC, f"{path} is of no slot that is configured, and may boot", "give it another name, or take it away"
            )
    there = other_boot / "loader" / "entries"
    if os.path.realpath(there) == os.path.realpath(here):
        return
    for path in _in(there):
        if fnmatchcase(path.name.lower(), PATTERN + ".conf"):
            hint = "systemd-boot reads an XBOOTLDR partition too: take the entry away"
            yield Finding(Grade.FAIL, TOPIC, f"{path} is a second entry, which abupdate does not know", hint)


def _conf(esp: Path, access: EspFiles) -> bytes:
    try:
        return access.read(esp / "loader" / "loader.conf", MAX_BYTES)
    except OSError:
        return b""


def _in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
