"""TOML fragments to validated Settings: unknown keys, wrong types and unsafe files are errors with a hint."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from abupdate.errors import ConfigError
from abupdate.fleetsettings import SPEC as _FLEET
from abupdate.fleetsettings import FleetSettings, checked

DEFAULT_CONFIG = Path("/etc/abupdate/config.toml")
BOOTLOADERS = ("uboot", "grub", "systemd-boot", "efi", "tryboot", "custom")


@dataclass(frozen=True, slots=True)
class SlotSettings:
    """Where each image of a slot lies: image name -> block device or regular file."""

    images: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class BootloaderSettings:
    """kind: adapter. allow_single_env: accept a store that can tear. dialect: whose boot script runs, empty: ours.

    fw_env_config: libubootenv's description of the areas. grubenv: GRUB's environment block. esp: where the EFI system partition is
    mounted. cmdline: kernel arguments of each slot, without ours, where no script of the bootloader has them. partitions: number of
    each slot's partition as the bootloader names it. copy_var, copy_values: SWUpdate's variable that says which copy boots, and its
    value for each slot. autoboot: the Raspberry Pi's autoboot.txt. programs: folder of `get-state` and `set-state`.
    """

    kind: str
    allow_single_env: bool = False
    dialect: str = ""
    fw_env_config: Path = Path("/etc/fw_env.config")
    grubenv: Path = Path("/boot/grub/grubenv")
    esp: Path = Path("/efi")
    cmdline: Mapping[str, str] = field(default_factory=dict)
    partitions: Mapping[str, int] = field(default_factory=dict)
    copy_var: str = ""
    copy_values: Mapping[str, str] = field(default_factory=dict)
    autoboot: Path = Path("/boot/firmware/autoboot.txt")
    programs: Path = Path("/usr/lib/abupdate/boot")


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """The trial's numbers; window_s counts from boot."""

    window_s: int = 300
    tries: int = 3
    confirmed_tries: int = 10
    boot_timeout_s: int = 120
    auto_confirm: bool = True


@dataclass(frozen=True, slots=True)
class WatchdogSettings:
    """device: the hardware's node. after_confirm: "pet" or "disarm". always: armed on every boot, not only on trial."""

    device: Path = Path("/dev/watchdog0")
    timeout_s: int = 30
    after_confirm: str = "pet"
    always: bool = False


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """dir: health programs. interval_s: between samples. memory_mib: of each of their processes.

    degraded_*: how much degraded time a trial survives.
    """

    dir: Path = Path("/etc/abupdate/health.d")
    interval_s: int = 10
    degraded_row_s: int = 60
    degraded_total_s: int = 120
    memory_mib: int = 512


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """keyring: the factory keyring. allow_test_keys: accept a keyring with keys that are marked as test keys."""

    keyring: Path
    allow_test_keys: bool = False


@dataclass(frozen=True, slots=True)
class EncryptionSettings:
    """keys: private key files that open sealed bundles; none: this device opens none."""

    keys: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class FloorSettings:
    """tpm_nv: handle of the TPM's NV index that keeps a copy of the floor, 0: none. tpm_tcti: how tpm2-tools reach the TPM."""

    tpm_nv: int = 0
    tpm_tcti: str = "device:/dev/tpmrm0"


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """booted: the running slot, or "auto"."""

    booted: str = "auto"


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration, validated; paths are absolute. fleet: None where the device is no member of a site."""

    path: Path
    compatible: str
    slots: Mapping[str, SlotSettings]
    bootloader: BootloaderSettings
    trust: TrustSettings
    hardware_revision: str = ""
    state_dir: Path = Path("/var/lib/abupdate")
    trial: TrialSettings = field(default_factory=TrialSettings)
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    device: DeviceSettings = field(default_factory=DeviceSettings)
    encryption: EncryptionSettings = field(default_factory=EncryptionSettings)
    floor: FloorSettings = field(default_factory=FloorSettings)
    fleet: FleetSettings | None = None

    @property
    def fleet_dir(self) -> Path:
        """Where a member of a site keeps its node key, the memberships and its log."""
        return self.state_dir / "fleet"


# type and bounds of every key; int bounds are inclusive
_Spec = Mapping[str, tuple[type, object]]
_TOP: _Spec = {"compatible": (str, (1, 256)), "hardware_revision": (str, (0, 256)), "state_dir": (Path, None)}
_SECTIONS: Mapping[str, _Spec] = {
    "bootloader": {
        "kind": (str, BOOTLOADERS),
        "allow_single_env": (bool, None),
        "dialect": (str, ("", "rauc", "mender", "swupdate")),
        "fw_env_config": (Path, None),
        "grubenv": (Path, None),
        "esp": (Path, None),
        "cmdline": (dict, (str, (1, 2048))),
        "partitions": (dict, (int, (1, 255))),
        "copy_var": (str, (1, 64)),
        "copy_values": (dict, (str, (1, 64))),
        "autoboot": (Path, None),
        "programs": (Path, None),
    },
    "trial": {
        "window_s": (int, (1, 86400)),
        "tries": (int, (1, 99)),
        "confirmed_tries": (int, (0, 99)),
        "boot_timeout_s": (int, (1, 3600)),
        "auto_confirm": (bool, None),
    },
    "watchdog": {"device": (Path, None), "timeout_s": (int, (1, 30)), "after_confirm": (str, ("pet", "disarm")), "always": (bool, None)},
    "health": {
        "dir": (Path, None),
        "interval_s": (int, (1, 3600)),
        "degraded_row_s": (int, (0, 86400)),
        "degraded_total_s": (int, (0, 86400)),
        "memory_mib": (int, (16, 65536)),
    },
    "trust": {"keyring": (Path, None), "allow_test_keys": (bool, None)},
    "device": {"booted": (str, (1, 64))},
    "encryption": {"keys": (list, (0, 8))},
    # Handles from 0x1c00000 on are the TPM makers' (certificates).
    "floor": {"tpm_nv": (int, (0x1000000, 0x1BFFFFF)), "tpm_tcti": (str, (1, 256))},
    "fleet": _FLEET,
}
# Which kinds and dialects (None: any) look at a key of [bootloader]; the others, all do.
_USED_BY: Mapping[str, tuple[tuple[str, str | None], ...]] = {
    "allow_single_env": (("uboot", None),),
    "dialect": (("uboot", None), ("grub", None)),
    "fw_env_config": (("uboot", None),),
    "grubenv": (("grub", None),),
    "esp": (("systemd-boot", None), ("efi", None)),
    "cmdline": (("systemd-boot", None), ("efi", None)),
    "partitions": (("uboot", "mender"), ("tryboot", None)),
    "copy_var": (("uboot", "swupdate"),),
    "copy_values": (("uboot", "swupdate"),),
    "autoboot": (("tryboot", None),),
    "programs": (("custom", None),),
}
_KINDS: Mapping[type, tuple[str, str]] = {str: ("a string", '"text"'), int: ("a whole number", "10"), bool: ("true or false", "true")}
_REQUIRED_SECTIONS = ("slots", "bootloader", "trust")
_SLOT_NAME = re.compile(r"[A-Za-z0-9]{1,16}")
_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_FILE_BYTES = 64 << 10
MAX_LINE_BYTES = 4096
_MAX_DEPTH = 8
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


def check_private(path: Path, what: str) -> None:
    """Refuse a file or folder that group or others can write, or that belongs to neither root nor the caller. Raises ConfigError."""
    try:
        info = path.stat()
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}", "check the path in the configuration") from error
    # One that nobody writes to would keep us waiting for ever. What a shell hands over (`<(...)`) has no name but in /proc.
    if stat.S_ISFIFO(info.st_mode) and not os.path.realpath(path).startswith("/proc/"):
        raise ConfigError(f"{what} {path} is a named pipe", "check the path in the configuration")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{what} {path} can be written by group or others (mode {stat.S_IMODE(info.st_mode):04o})", f"chmod go-w {path}")
    if info.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{what} {path} belongs to uid {info.st_uid}, neither root nor the caller", f"chown root {path}")


def check_secret(path: Path, what: str) -> None:
    """Like `check_private`, and others must not even be able to read it. Raises ConfigError."""
    check_private(path, what)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{what} {path} can be read by others (mode {mode:04o})", f"chmod 600 {path}")


def load(path: Path = DEFAULT_CONFIG) -> Settings:
    """Read the configuration and the fragments in config.d beside it (in name order, later ones win). Raises ConfigError."""
    fragments = path.parent / "config.d"
    extra: list[Path] = []
    try:
        there = fragments.is_dir()
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}", "name another one with -c, or run as root") from error
    if there:
        # Who can write the folder decides which fragments there are.
        check_private(fragments, "folder")
        extra = sorted(fragments.glob("*.toml"))
    return compose(((file, _read(file)) for file in (path, *extra)), path)


def _read(path: Path) -> bytes:
    check_private(path, "configuration")
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}", "name another one with -c") from error


def compose(fragments: Iterable[tuple[Path, bytes]], path: Path) -> Settings:
    """Settings from the files' bytes, later ones over earlier ones; relative paths start at the folder of `path`. Raises ConfigError."""
    merged: dict[str, object] = {}
    for file, data in fragments:
        _merge(merged, _parse(file, data), file)
    return validate(merged, path)


def _parse(path: Path, data: bytes) -> dict[str, object]:
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"configuration {path} is larger than {_MAX_FILE_BYTES} bytes", "is it the right file?")
    # A key `a.a.a...` costs the parser the square of its parts, and a key cannot go on in the next line.
    if len(longest := max(data.split(b"\n"), key=len)) > MAX_LINE_BYTES:
        raise ConfigError(f"configuration {path} has a line of {len(longest)} bytes, more than {MAX_LINE_BYTES}", "is it the right file?")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        # Mostly TOMLDecodeError; a number of thousands of digits is a plain ValueError.
        text = " ".join(str(error).split()) or "nested too deeply"
        raise ConfigError(f"configuration {path} is not TOML: {text[:200]}", "mend the line") from error


def _merge(into: dict[str, object], more: Mapping[str, object], file: Path, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"configuration {file} is nested too deeply", "no section has more than two others around it")
    for key, value in more.items():
        mine = into.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            _merge(mine, value, file, depth + 1)
        else:
            into[key] = value


def validate(raw: Mapping[str, object], path: Path) -> Settings:
    """Merged TOML values -> Settings; relative paths are relative to the folder of `path`. Raises ConfigError."""
    base = path.absolute().parent
    _known(raw, (*_TOP, *_SECTIONS, "slots"), "")
    top = _section({k: v for k, v in raw.items() if k in _TOP}, _TOP, "", base)
    if "compatible" not in top:
        raise ConfigError(f"{path} does not say what the device is", 'add compatible = "..."')
    for name in _REQUIRED_SECTIONS:
        if name not in raw:
            raise ConfigError(f"{path} has no section [{name}]", f"add [{name}]")
    parts = {name: _section(raw.get(name, {}), spec, name, base) for name, spec in _SECTIONS.items()}
    needed = (("bootloader", "kind", f'"...", one of {", ".join(BOOTLOADERS)}'), ("trust", "keyring", '"/etc/abupdate/keyring.abk"'))
    for section, key, example in needed:
        if key not in parts[section]:
            raise ConfigError(f"[{section}] has no {key}", f"add {key} = {example}")
    slots = _slots(raw["slots"], base)
    _check_used(parts["bootloader"])
    _check_by_slot(parts["bootloader"], slots)
    booted = parts["device"].get("booted", "auto")
    if booted != "auto" and booted not in slots:
        raise ConfigError(f'[device] booted = "{booted}" is not a slot', f"the slots are {', '.join(slots)}")
    return Settings(
        path=path,
        slots=slots,
        bootloader=BootloaderSettings(**parts["bootloader"]),  # type: ignore[arg-type]
        trust=TrustSettings(**parts["trust"]),  # type: ignore[arg-type]
        trial=TrialSettings(**parts["trial"]),  # type: ignore[arg-type]
        watchdog=WatchdogSettings(**parts["watchdog"]),  # type: ignore[arg-type]
        health=HealthSettings(**parts["health"]),  # type: ignore[arg-type]
        device=DeviceSettings(**parts["device"]),  # type: ignore[arg-type]
        encryption=EncryptionSettings(**parts["encryption"]),  # type: ignore[arg-type]
        floor=FloorSettings(**parts["floor"]),  # type: ignore[arg-type]
        fleet=checked(FleetSettings(**parts["fleet"])) if "fleet" in raw else None,  # type: ignore[arg-type]
        **top,  # type: ignore[arg-type]
    )


def _known(raw: Mapping[str, object], names: tuple[str, ...], where: str) -> None:
    for key in raw:
        if key not in names:
            near = get_close_matches(key, names, 1)
            place = f"in [{where}]" if where else "at the top level"
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(names)}"
            raise ConfigError(f"unknown key {key[:60]!r} {place}", hint)


def _section(raw: object, spec: _Spec, where: str, base: Path) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise ConfigError(f"[{where}] is not a section", f"write [{where}] and its keys below it")
    _known(raw, tuple(spec), where)
    return {key: _value(value, *spec[key], f"{where}.{key}" if where else key, base) for key, value in raw.items()}


def _value(value: object, kind: type, bounds: object, name: str, base: Path) -> object:
    if kind is Path:
        return _path(value, name, base)
    if kind is list:
        return _paths(value, bounds, name, base)
    if kind is tuple:
        return _texts(value, bounds, name)
    if kind is dict:
        return _by_slot(value, bounds, name)
    if type(value) is not kind:
        wanted, example = _KINDS[kind]
        raise ConfigError(f"{name} must be {wanted}", f"as in {name.rpartition('.')[2]} = {example}")
    if isinstance(value, str) and _CONTROLS.search(value):
        raise ConfigError(f"{name} holds a control character (a line break, a NUL)", "write it on one line")
    if kind is int and isinstance(bounds, tuple) and isinstance(value, int) and not bounds[0] <= value <= bounds[1]:
        raise ConfigError(f"{name} is out of range", f"{bounds[0]} to {bounds[1]}")
    if isinstance(value, str) and isinstance(bounds, tuple):
        if bounds and isinstance(bounds[0], str) and value not in bounds:
            known = ", ".join(word or '""' for word in bounds)
            raise ConfigError(f'{name} = "{value[:60]}" is not known', f"one of {known}")
        if bounds and isinstance(bounds[0], int) and not bounds[0] <= len(value) <= bounds[1]:
            raise ConfigError(f"{name} has {len(value)} characters", f"{bounds[0]} to {bounds[1]}")
    return value


def _path(value: object, name: str, base: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{name} must be a path", f'as in {name.rpartition(".")[2]} = "/dev/..."')
    return base / value


def _paths(value: object, bounds: object, name: str, base: Path) -> tuple[Path, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{name} must be a list of paths", f'as in {name.rpartition(".")[2]} = ["/etc/..."]')
    paths = tuple(_path(item, name, base) for item in value)
    if isinstance(bounds, tuple) and not bounds[0] <= len(paths) <= bounds[1]:
        raise ConfigError(f"{name} names {len(paths)} files", f"{bounds[0]} to {bounds[1]}")
    if len(set(paths)) != len(paths):
        raise ConfigError(f"{name} names a file twice", "name each once")
    return paths


def _by_slot(value: object, spec: object, name: str) -> dict[str, object]:
    """A value for each slot; that it is just the slots is looked at when they are known."""
    assert isinstance(spec, tuple)
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must give a value for each slot", f"as in {name.rpartition('.')[2]} = {{ A = ..., B = ... }}")
    kind, bounds = spec
    return {str(slot): _value(item, kind, bounds, f"{name}.{str(slot)[:16]}", Path()) for slot, item in value.items()}


def _check_by_slot(section: Mapping[str, object], slots: Mapping[str, SlotSettings]) -> None:
    """Values for each slot name just the slots, and differ. Raises ConfigError."""
    for key, value in section.items():
        if not isinstance(value, dict):
            continue
        if value.keys() != slots.keys():
            odd = sorted(value.keys() ^ slots.keys())[0]
            raise ConfigError(f"bootloader.{key} does not name just the slots ({odd[:60]!r})", f"the slots are {', '.join(slots)}")
        if len(set(value.values())) != len(value):
            raise ConfigError(f"bootloader.{key} is the same for two slots", "each slot has one of its own")


def _check_used(section: Mapping[str, object]) -> None:
    """A key that the configured kind does not look at is a mistake somewhere. Raises ConfigError."""
    kind, dialect = section.get("kind"), section.get("dialect", "")
    for key, places in _USED_BY.items():
        if key in section and (kind, None) not in places and (kind, dialect) not in places:
            said = f'kind = "{kind}"' + (f', dialect = "{dialect}"' if dialect else "")
            wanted = " or ".join(f'kind = "{name}"' + (f', dialect = "{one}"' if one else "") for name, one in places)
            raise ConfigError(f"bootloader.{key} means nothing with {said}", f"it is for {wanted}")


def _texts(value: object, bounds: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{name} must be a list of strings", f'as in {name.rpartition(".")[2]} = ["text"]')
    if isinstance(bounds, tuple) and not bounds[0] <= len(value) <= bounds[1]:
        raise ConfigError(f"{name} has {len(value)} entries", f"{bounds[0]} to {bounds[1]}")
    return tuple(str(_value(item, str, (1, 256), name, Path())) for item in value)


def _slots(raw: object, base: Path) -> dict[str, SlotSettings]:
    if not isinstance(raw, dict) or len(raw) != 2:
        count = len(raw) if isinstance(raw, dict) else 0
        raise ConfigError(f"[slots] names {count} slot{'s' if count != 1 else ''}, two are needed", "write [slots.A] and [slots.B]")
    slots: dict[str, SlotSettings] = {}
    seen: dict[Path, str] = {}
    for slot, body in raw.items():
        if not _SLOT_NAME.fullmatch(slot):
            raise ConfigError(f"slot name {slot[:60]!r} is not letters and digits", "as in [slots.A]")
        if not isinstance(body, dict):
            raise ConfigError(f"[slots.{slot}] is not a section", f"write [slots.{slot}] and images = {{ rootfs = ... }}")
        _known(body, ("images",), f"slots.{slot}")
        images = body.get("images")
        if not isinstance(images, dict) or not images:
            raise ConfigError(f"[slots.{slot}] has no images", 'add images = { rootfs = "/dev/..." }')
        places: dict[str, Path] = {}
        for image, place in images.items():
            if not _IMAGE_NAME.fullmatch(image):
                raise ConfigError(f"image name {image[:60]!r} in [slots.{slot}] is not letters, digits, dot, dash", "as in rootfs")
            device = _path(place, f"slots.{slot}.images.{image}", base)
            if device in seen:
                raise ConfigError(f"{device} is used twice: {seen[device]} and {slot}.{image}", "every image needs a place of its own")
            seen[device] = f"{slot}.{image}"
            places[image] = device
        slots[slot] = SlotSettings(places)
    first, second = slots.values()
    if first.images.keys() != second.images.keys():
        odd = sorted(first.images.keys() ^ second.images.keys())
        raise ConfigError(f"image {odd[0]} is in one slot only", "both slots hold the same images")
    return slots
