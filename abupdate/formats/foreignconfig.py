"""What another updater's configuration says of a board, as the text of ours: RAUC's system.conf, mender.conf, SWUpdate's sw-description.

A start, to be read by a person: what the other file does not say is marked in it. Pure.
"""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from abupdate.errors import ConfigError
from abupdate.formats import libconfig

MAX_BYTES = 256 << 10
_NUMBER = re.compile(r"[0-9]+$")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SLOT_NAME = re.compile(r"[A-Za-z0-9]{1,16}")
# Their update's own bookkeeping in sw-description's bootenv: never what chooses the copy.
_BOOKKEEPING = frozenset({"ustate", "upgrade_available", "bootcount", "bootlimit", "recovery_status"})
_RAUC_BOOTLOADERS = {"uboot": "uboot", "grub": "grub"}
_SKIPPED = ("ubivol", "ubifs", "nand", "nor", "boot-emmc", "boot-mbr-switch", "boot-gpt-switch", "boot-raw-fallback")


@dataclass(frozen=True)
class Board:
    """slots: name -> image -> device. bootloader: keys and values in TOML. trial: of [trial]. notes: what a person has to look at."""

    compatible: str
    slots: Mapping[str, Mapping[str, str]]
    bootloader: Mapping[str, str]
    trial: Mapping[str, int]
    notes: list[str] = field(default_factory=list)


def to_toml(kind: str, data: bytes, where: str) -> str:
    """Our configuration's text. kind: one of KINDS; where: the file's name. Raises ConfigError."""
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{where} is larger than {MAX_BYTES} bytes", "is it the right file?")
    return "".join(f"{line}\n" for line in _lines(kind, KINDS[kind](data, where), where))


def _lines(kind: str, board: Board, where: str) -> Iterator[str]:
    yield f"# From {kind}'s {_printable(where, where)}. Read it before you use it."
    for note in board.notes:
        yield f"# LOOK: {note}"
    yield f"compatible = {_text(board.compatible or 'CHANGE-ME', where)}"
    yield 'state_dir = "/var/lib/abupdate"  # on a partition that no update writes'
    for slot, images in board.slots.items():
        yield f"[slots.{slot}]"
        yield f"images = {{ {', '.join(f'{_key(image)} = {_text(device, where)}' for image, device in images.items())} }}"
    yield "[bootloader]"
    yield from (f"{key} = {value}" for key, value in board.bootloader.items())
    yield "[trust]"
    yield 'keyring = "/etc/abupdate/keyring.abk"'
    yield "[trial]"
    yield from (f"{key} = {number}" for key, number in board.trial.items())


def _rauc(data: bytes, where: str) -> Board:
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#",), delimiters=("=",), default_section="\0")
    try:
        parser.read_string(_decoded(data, where))
    except configparser.Error as error:
        raise ConfigError(f"{where} is no system.conf: {' '.join(str(error).split())[:120]}", "is it the right file?") from None
    system = dict(parser["system"]) if parser.has_section("system") else {}
    slots = {name.removeprefix("slot."): dict(parser[name]) for name in parser.sections() if name.startswith("slot.")}
    if not system or not slots:
        raise ConfigError(f"{where} has no [system] or no [slot...] section", "RAUC's is /etc/rauc/system.conf")
    theirs = system.get("bootloader", "")
    if theirs not in _RAUC_BOOTLOADERS:
        hint = (
            'abupdate has kinds of its own for EFI and systemd-boot; for others, kind = "custom" and programs (bootloader-hooks/README.md)'
        )
        raise ConfigError(f"{where}: bootloader={theirs[:40]!a} has no counterpart", hint)
    names = {slot: values["bootname"] for slot, values in slots.items() if values.get("bootname")}
    found: dict[str, dict[str, str]] = {name: {} for name in names.values()}
    notes: list[str] = []
    for slot, values in slots.items():
        name = names.get(slot) or names.get(values.get("parent", ""))
        if name is None or values.get("type", "raw") in _SKIPPED or "device" not in values:
            notes.append(
                f"slot {_printable(slot, where)} is left out: {'of no boot name' if name is None else 'no image of a block device'}"
            )
        else:
            found[name][slot.rpartition(".")[0] or slot] = values["device"]
    bootloader = {"kind": _text(_RAUC_BOOTLOADERS[theirs], where), "dialect": '"rauc"'}
    if theirs == "grub":
        bootloader["grubenv"] = _text(system.get("grubenv", "/boot/grub/grubenv"), where)
        return Board(system.get("compatible", ""), _two(found, where), bootloader, {"tries": 1, "confirmed_tries": 0}, notes)
    tries = {"tries": "boot-attempts-primary", "confirmed_tries": "boot-attempts"}
    trial = {key: min(max(_count(system.get(name), 3), 1), 9) for key, name in tries.items()}
    return Board(system.get("compatible", ""), _two(found, where), bootloader, trial, notes)


def _mender(data: bytes, where: str) -> Board:
    try:
        raw = json.loads(_decoded(data, where))
    except (ValueError, RecursionError):
        raise ConfigError(f"{where} is no JSON", "Mender's is /etc/mender/mender.conf, with RootfsPartA in it") from None
    devices = {slot: raw.get(f"RootfsPart{slot}") if isinstance(raw, dict) else None for slot in "AB"}
    if not all(isinstance(device, str) and device for device in devices.values()):
        raise ConfigError(f"{where} names no RootfsPartA and RootfsPartB", "they may stand in /var/lib/mender/mender.conf")
    slots = {slot: {"rootfs": str(device)} for slot, device in devices.items()}
    notes = ["compatible: as bundles say it; Mender keeps its own in /var/lib/mender/device_type"]
    partitions: dict[str, int] = {}
    for slot, device in devices.items():
        match = _NUMBER.search(str(device))
        partitions[slot] = int(match.group()[-3:]) if match else 0
    if not all(0 < number < 256 for number in partitions.values()) or len(set(partitions.values())) != 2:
        partitions = {"A": 2, "B": 3}
        notes.append("partitions: the devices' names do not tell; what fw_printenv mender_boot_part says on each")
    notes.append("tries: as many as fw_printenv bootlimit says; Mender's own default is 1")
    numbers = f"{{ A = {partitions['A']}, B = {partitions['B']} }}"
    bootloader = {"kind": '"uboot"', "dialect": '"mender"', "partitions": numbers}
    return Board("", _two(slots, where), bootloader, {"tries": 1, "confirmed_tries": 0}, notes)


def _swupdate(data: bytes, where: str) -> Board:
    software = libconfig.group(libconfig.parse(data, where).get("software"))
    copies = next(_copies(software, 0), None)
    if copies is None:
        hint = "sw-description of an update for two copies has them; swupdate.cfg alone does not say how the board boots"
        raise ConfigError(f"{where} describes no two copies with images and bootenv", hint)
    notes = ["compatible: as bundles say it"]
    environments = [{str(entry.get("name")): str(entry.get("value")) for entry in _bootenv(copy)} for copy in copies]
    one, other = environments
    choosing = [name for name in one if name not in _BOOKKEEPING and name in other and one[name] != other[name]]
    if not choosing:
        raise ConfigError(
            f"{where}: no variable of bootenv differs between the two copies", "name what chooses by hand: copy_var, copy_values"
        )
    if len(choosing) > 1:
        rest = ", ".join(_printable(name, where) for name in choosing[1:])
        notes.append(f"copy_var: {rest} differ too; abupdate changes one variable, the boot script has to derive the others from it")
    slots: dict[str, dict[str, str]] = {}
    for slot, copy in zip("AB", copies, strict=True):
        slots[slot] = {}
        for entry in libconfig.groups(copy.get("images")):
            device = entry.get("device")
            if not isinstance(device, str) or not device.startswith("/dev/"):
                notes.append(f"slot {slot}: an image without a block device is left out")
                continue
            stem = str(entry.get("name") or str(entry.get("filename", "")).partition(".")[0])
            name = re.sub("[^A-Za-z0-9_-]", "", stem).lstrip("_-")[:60] or "rootfs"
            slots[slot][name if name not in slots[slot] else f"{name}{len(slots[slot])}"] = device
    if slots["A"].keys() != slots["B"].keys() and len(slots["A"]) == len(slots["B"]) == 1:
        slots = {slot: {"rootfs": next(iter(images.values()))} for slot, images in slots.items()}
    values = ", ".join(f"{slot} = {_text(env[choosing[0]], where)}" for slot, env in zip("AB", environments, strict=True))
    bootloader = {"kind": '"uboot"', "dialect": '"swupdate"', "copy_var": _text(choosing[0], where), "copy_values": f"{{ {values} }}"}
    notes.append("tries: at most what fw_printenv bootlimit says")
    return Board("", _two(slots, where), bootloader, {"tries": 1, "confirmed_tries": 0}, notes)


def _copies(group: Mapping[str, libconfig.Value], depth: int) -> Iterator[list[dict[str, libconfig.Value]]]:
    """Groups that hold two whole copies, the outermost first."""
    inner = [value for value in group.values() if isinstance(value, dict)]
    whole = [
        value for value in inner if libconfig.groups(value.get("images")) and libconfig.groups(value.get("bootenv") or value.get("uboot"))
    ]
    if len(whole) == 2:
        yield whole
    if depth < libconfig.MAX_DEPTH:
        for value in inner:
            yield from _copies(value, depth + 1)


def _bootenv(copy: Mapping[str, libconfig.Value]) -> list[dict[str, libconfig.Value]]:
    """Under its name of today, or that of old files."""
    return libconfig.groups(copy.get("bootenv") or copy.get("uboot"))


KINDS: Mapping[str, Callable[[bytes, str], Board]] = {"rauc": _rauc, "mender": _mender, "swupdate": _swupdate}


def _two(slots: Mapping[str, Mapping[str, str]], where: str) -> Mapping[str, Mapping[str, str]]:
    if len(slots) != 2:
        raise ConfigError(f"{where} describes {len(slots)} bootable slots, two are needed", "abupdate updates boards with two")
    odd = next((name for name in slots if not _SLOT_NAME.fullmatch(name)), None)
    if odd is not None:
        raise ConfigError(
            f"{where}: {odd[:40]!a} cannot be the name of a slot", "1 to 16 letters and digits; the boot script has it as well"
        )
    one, other = slots.values()
    if not one or one.keys() != other.keys():
        raise ConfigError(f"{where}: the two slots do not have the same images", "images of one slot alone cannot be updated")
    odd = next((image for image in one if not _PLAIN.fullmatch(image)), None)
    if odd is not None:
        raise ConfigError(f"{where}: {odd[:40]!a} cannot be the name of an image", "rename it by hand")
    devices = [device for images in slots.values() for device in images.values()]
    odd = next((device for device in devices if not device.startswith("/") or devices.count(device) > 1), None)
    if odd is not None:
        raise ConfigError(f"{where}: {odd[:40]!a} is no device of one image alone", "every image needs a place of its own")
    return slots


def _count(raw: str | None, default: int) -> int:
    return int(raw) if raw is not None and raw.isascii() and raw.isdigit() and len(raw) < 10 else default


def _key(name: str) -> str:
    return name if "." not in name else f'"{name}"'


def _text(value: str, where: str) -> str:
    return json.dumps(_printable(value, where), ensure_ascii=False)


def _printable(value: str, where: str) -> str:
    if not value.isprintable() or len(value) > 256:
        raise ConfigError(f"{where}: {value[:40]!a} cannot stand in a configuration", "is it the right file?")
    return value


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 (byte {error.start})", "is it the right file?") from None
