"""Handler of `abupdate doctor`: gathers what to look at; the judgement of the boot state is in operations/doctor.py."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from abupdate import bootwiring, wiring
from abupdate.cli.output import say
from abupdate.config import Settings, check_private, load
from abupdate.devices import discovery, usage, watchdog_sysfs
from abupdate.devices.statedir import StateDir
from abupdate.devices.thisboot import kernel_argument
from abupdate.errors import AbupdateError, ConfigError
from abupdate.health.programs import find_programs
from abupdate.model import Finding, Grade
from abupdate.operations.board import Board, observe
from abupdate.operations.doctor import Check, check_floor, check_state, fix, run_checks
from abupdate.operations.keyring import observe as observe_keyring


def doctor(options: Namespace) -> int:
    """`abupdate doctor`: exit 0 when nothing fails, 1 when something does, 2 where the boot store is unreadable."""
    if options.importing is not None:
        return _import(options, *options.importing)
    settings = load(options.config)
    board = wiring.tolerant(settings)
    if options.fix:
        # A store on a slot is a slip in the configuration, and what would be written over may be the system that runs.
        wiring.check_apart(settings, board.store, present=False)
        count = fix(board, lambda line: print(f"fix: {line}", file=sys.stderr))
        if not count:
            print("fix: nothing to repair", file=sys.stderr)
    found = run_checks(
        [
            ("slots", lambda: _slots(settings)),
            ("slots", lambda: _apart(settings)),
            ("state_dir", lambda: _state_dir(settings)),
            ("boot store", lambda: _store(settings)),
            ("boot store", lambda: check_state(board)),
            ("floor", lambda: check_floor(board)),
            ("boot", lambda: _boot(board, settings)),
            ("trust", lambda: _trust(settings)),
            ("encryption", lambda: _encryption(settings)),
            ("watchdog", lambda: _watchdog(settings)),
            ("health", lambda: _health(settings)),
            *_site(settings),
            ("devices", _devices),
        ]
    )
    rows = [{"grade": one.grade.value, "topic": one.topic, "text": one.text, "hint": one.hint} for one in found]
    lines = [f"{row['grade']:<5} {row['topic']}: {row['text']}" + (f" -> {row['hint']}" if row["hint"] else "") for row in rows]
    say(options, {"findings": rows}, "\n".join(lines))
    if observe(board, readable=False).boot is None:
        return 2
    return 1 if any(one.grade is Grade.FAIL for one in found) else 0


def _import(options: Namespace, kind: str, file: str) -> int:
    """Another updater's configuration as the text of ours, on standard output."""
    from abupdate.formats import foreignconfig

    if kind not in foreignconfig.KINDS:
        raise ConfigError(f"--import {kind[:40]!a} is not known", f"there are {', '.join(foreignconfig.KINDS)}")
    try:
        with Path(file).open("rb") as opened:
            data = opened.read(foreignconfig.MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}", "name the other updater's configuration") from None
    text = foreignconfig.to_toml(kind, data, Path(file).name)
    say(options, {"config": text}, text.removesuffix("\n"))
    return 0


def _slots(settings: Settings) -> Iterable[Finding]:
    wiring.check_devices(settings)
    for slot, part in settings.slots.items():
        for image, path in part.images.items():
            where = f"{slot}.{image} {path}"
            if usage.is_to_be_made(path):
                yield Finding(Grade.OK, "slots", f"{where} is not there yet, a flash of slot {slot} makes it")
                continue
            yield Finding(Grade.OK, "slots", f"{where} has {_size(path)} MiB")
            if usage.is_mounted_rw(path):
                hint = "mount it read-only: `verify` and chunk reuse would find other bytes than were flashed"
                yield Finding(Grade.WARN, "slots", f"{where} is mounted read-write", hint)


def _apart(settings: Settings) -> Iterable[Finding]:
    if all(path.exists() or usage.is_to_be_made(path) for part in settings.slots.values() for path in part.images.values()):
        wiring.check_apart(settings, bootwiring.bootloader(settings)[0])
    return ()


def _size(path: os.PathLike[str]) -> int:
    from abupdate.devices.block import size_of

    return size_of(os.fspath(path)) >> 20


def _state_dir(settings: Settings) -> Iterable[Finding]:
    if not settings.state_dir.exists():
        yield Finding(
            Grade.WARN, "state_dir", f"{settings.state_dir} is not there yet", "the first flash makes it; is its partition mounted?"
        )
        return
    check_private(settings.state_dir, "state_dir")
    if not os.access(settings.state_dir, os.W_OK):
        yield Finding(Grade.FAIL, "state_dir", f"{settings.state_dir} cannot be written", "mount its partition read-write")
    for name, condition in StateDir(settings.state_dir).copies():
        if condition != "whole":
            yield Finding(Grade.WARN, "record", f"{name}: {condition}", "the next operation writes it anew")


def _store(settings: Settings) -> Iterable[Finding]:
    store, tears = bootwiring.bootloader(settings)
    if tears:
        yield Finding(Grade.FAIL, "boot store", tears, "make it redundant, or accept the risk with [bootloader] allow_single_env = true")
    yield from store.inspect()


def _boot(board: Board, settings: Settings) -> Iterable[Finding]:
    yield Finding(Grade.OK, "boot", f"slot {board.boot.booted()} runs")
    if settings.device.booted != "auto":
        yield Finding(Grade.WARN, "boot", f'[device] booted = "{settings.device.booted}" is believed', 'set "auto" on a device')
        return
    if kernel_argument("abupdate.slot") is None and kernel_argument("rauc.slot") is None:
        hint = "the boot scripts in bootloader-hooks/ pass it"
        yield Finding(Grade.WARN, "boot", "the kernel was started without abupdate.slot=: the root device decides", hint)
    if kernel_argument("panic") in (None, "0"):
        yield Finding(Grade.FAIL, "boot", "the kernel hangs for ever after a panic", "pass panic=10 on every boot")
    facts = observe(board, readable=False)
    if facts.boot is not None and facts.boot.policy is not None and facts.boot.policy != facts.policy:
        yield Finding(Grade.OK, "boot", "the boot store holds other numbers than [trial]; the next flash or confirm writes them")


def _trust(settings: Settings) -> Iterable[Finding]:
    found = observe_keyring(wiring.state_store(settings), wiring.trust(settings))
    yield Finding(Grade.OK, "trust", f"{settings.trust.keyring} is whole and signed by its root keys")
    if found.note:
        yield Finding(Grade.WARN, "trust", found.note, "the next bundle's chain or `abupdate keyring update` brings it forward again")
    yield Finding(Grade.OK, "trust", f"version {found.ring.version} of the keyring counts ({found.source.value})")
    if settings.trust.allow_test_keys:
        yield Finding(Grade.WARN, "trust", "test keys are accepted", "remove trust.allow_test_keys on devices that leave the house")


def _encryption(settings: Settings) -> Iterable[Finding]:
    if settings.encryption.keys:
        found = ", ".join(identity.key_id.hex() for identity in wiring.identities(settings))
        yield Finding(Grade.OK, "encryption", f"this device opens what is sealed for {found}")


def _watchdog(settings: Settings) -> Iterable[Finding]:
    device = settings.watchdog.device
    known = watchdog_sysfs.facts(device)
    if not device.exists():
        others = ", ".join(watchdog_sysfs.devices())
        text = f"{device} is not there" + (f" (there is {others})" if others else "")
        yield Finding(Grade.FAIL, "watchdog", text, watchdog_sysfs.softdog_advice())
        return
    if known.name not in (listed := watchdog_sysfs.devices()):
        # A driver older than the kernel's list may still be behind a device; nothing is behind a file.
        grade = Grade.WARN if device.is_char_device() else Grade.FAIL
        text = f"{device} is no watchdog that the kernel lists"
        yield Finding(grade, "watchdog", text, f"there is {', '.join(listed)}" if listed else watchdog_sysfs.softdog_advice())
        return
    init = dict(watchdog_sysfs.holders(device, watchdog_sysfs.KERNEL_PATHS)).get(1)
    if init is not None:
        # It pets for as long as it lives itself, whatever becomes of the slot on trial.
        hint = "RuntimeWatchdogSec=off in systemd's system.conf, or WatchdogDevice= with another watchdog, as /dev/watchdog1 of softdog"
        yield Finding(Grade.FAIL, "watchdog", f"{device} is held by process 1 ({init}): no trial can be guarded by it", hint)
        return
    from abupdate.devices.watchdog import probe

    try:
        known = probe(device)
    except AbupdateError as error:
        yield Finding(Grade.WARN, "watchdog", error.message, error.hint)
    name = f"{device} ({known.identity or 'unknown driver'})"
    if known.stops_on_close:
        hint = "load the driver with nowayout=1: the initramfs and the service could not hand it over"
        yield Finding(Grade.FAIL, "watchdog", f"{name} stops whenever it is closed", hint)
    elif known.max_s and known.max_s < settings.trial.boot_timeout_s:
        text = f"{name} takes at most {known.max_s} s, boot_timeout_s is {settings.trial.boot_timeout_s}"
        yield Finding(Grade.OK, "watchdog", text, "the initramfs pets it for that long")
    else:
        yield Finding(Grade.OK, "watchdog", f"{name}, state {known.state or 'unknown'}")


def _health(settings: Settings) -> Iterable[Finding]:
    programs = find_programs(settings.health.dir)
    if programs:
        yield Finding(Grade.OK, "health", f"{len(programs)} program{'s' if len(programs) > 1 else ''} in {settings.health.dir}")
    else:
        hint = "an update that boots and does nothing would be confirmed"
        yield Finding(Grade.WARN, "health", f"no health programs in {settings.health.dir}", hint)


def _site(settings: Settings) -> list[tuple[str, Check]]:
    if settings.fleet is None:
        return []
    # Late: most devices are no member of a site.
    from abupdate.cli import doctor_fleet

    return doctor_fleet.checks(settings)


def _devices() -> Iterable[Finding]:
    found = discovery.discover()
    if found.note:
        yield Finding(Grade.OK, "devices", found.note)
    for device in found.devices:
        if device.kind == "partition" or device.mounted_at:
            what = device.label or device.filesystem_label or device.filesystem or "no label"
            mounted = f", mounted at {' '.join(device.mounted_at)}" if device.mounted_at else ""
            yield Finding(Grade.OK, "devices", f"{device.node} {what}, {device.size_bytes >> 20} MiB{mounted}")
