"""Settings to the fleet's daemon: as wiring.py, for what only a member of a site has."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from abupdate import wiring
from abupdate.config import Settings, check_secret
from abupdate.devices.notify import Notifier
from abupdate.devices.tpm import BOOTS, TpmFloor
from abupdate.durable import make_folder
from abupdate.errors import ConfigError, Failed
from abupdate.fleet import enrolment, identity, status
from abupdate.fleet.carrier import Carrier, Commands
from abupdate.fleet.controlserver import ControlServer
from abupdate.fleet.daemon import Daemon, World
from abupdate.fleet.events import Device, Start
from abupdate.fleet.node import Node
from abupdate.fleet.ports import Medium
from abupdate.fleet.site import Options
from abupdate.fleet.store import Store
from abupdate.fleet.udp import Udp
from abupdate.fleetsettings import FleetSettings
from abupdate.formats import membership as memberships
from abupdate.formats import peerhealth
from abupdate.formats.membership import Membership
from abupdate.formats.peerhealth import PeerHealth
from abupdate.log import log
from abupdate.operations.standing import standing

ACTING = "acting"
_ACTING_AGAIN_S = 1.0
# Patience with a round of the agreement. On a bus of 115200 baud a vote and what lies between two of them take 14 ms; on a slower one
# all that a round needs takes as much longer.
_LAN_S, _SERIAL_S = 1.0, 4.0
_VOTE_BITS, _VOTE_S = 1270, 0.014
_HOOK_PROGRAMS = 8


def abupdate(settings: Settings) -> tuple[str, ...]:
    """How this very program is called again."""
    return (sys.executable, "-m", "abupdate", "-c", str(settings.path), "--json")


def daemon(settings: Settings, fleet: FleetSettings, program: tuple[str, ...]) -> tuple[Daemon, Start]:
    """The daemon and its first event. program: `abupdate` with the words before the verb. Raises ConfigError, Refused, Busy, Failed."""
    wiring.state_store(settings)
    folder = settings.fleet_dir
    known = enrolment.load(folder)
    if not known:
        raise ConfigError("this device is not enrolled in a site", "`abupdate fleet join SITE.abm` enrols it")
    if (folder / identity.KEY).exists():
        check_secret(folder / identity.KEY, "node key")
    key = identity.load_or_create(folder)
    me = enrolment.member(known[-1], key.public_key)
    control = ControlServer(fleet.control)
    store = Store(folder, key.public_key)
    loaded = store.load()
    if loaded.torn_bytes:
        log.info("a power cut left %d bytes at the end of the log", loaded.torn_bytes)
    files = tuple(memberships.build(one.body, one.signatures) for one in known)
    node = Node(me.index, files, loaded.records, key, _options(fleet))
    carrier = Carrier(
        commands(settings, fleet, program),
        device(settings),
        lambda index: status.name(node.view().membership, index),
        kept=acting(folder),
        drain_s=_HOOK_PROGRAMS * fleet.drain_timeout_s,
        hook_s=_HOOK_PROGRAMS * fleet.hook_timeout_s,
    )
    outside = starts(settings, fleet, key.public_key)
    seen = _seen_starts(outside) if outside else None
    world = World(time.monotonic, _boottime_s, lambda: _window_open(fleet), tell_health, lambda boot: _note_start(outside, boot))
    made = Daemon(node, store, media(fleet, me.index, lambda: node.view().membership), carrier, control, Notifier(), world)
    return made, Start(int.from_bytes(os.urandom(4)), loaded.fault, None if seen is None else seen + 1)


def starts(settings: Settings, fleet: FleetSettings, key: bytes) -> TpmFloor | None:
    """What keeps the number of this node's starts outside of the log, where one is configured. key: the node's; another has its own."""
    return TpmFloor(fleet.tpm_nv, settings.floor.tpm_tcti, domain=BOOTS + key) if fleet.tpm_nv else None


def _seen_starts(outside: TpmFloor) -> int | None:
    try:
        return outside.value()
    except Failed as error:
        log.warning("whether the log is the newest one is for the peers alone to tell: %s", error.line)
        return None


def _note_start(outside: TpmFloor | None, boot: int) -> None:
    if outside is not None:
        try:
            outside.raise_to(boot)
        except Failed as error:
            log.warning("%s", error.line)


def _options(fleet: FleetSettings) -> Options:
    return Options(base_s=patience_s(fleet), approve=fleet.approve == "auto")


def patience_s(fleet: FleetSettings) -> float:
    """How long this node waits for the first round of an agreement before it tries another one."""
    if not fleet.serial_device:
        return _LAN_S
    vote_s = _VOTE_BITS / fleet.serial_baud + fleet.serial_turnaround_ms / 1000
    return _SERIAL_S * max(1.0, vote_s / _VOTE_S)


def _boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _window_open(fleet: FleetSettings) -> bool:
    now = time.localtime()
    return fleet.window_open(60 * now.tm_hour + now.tm_min)


def device(settings: Settings) -> Callable[[], Device]:
    """Looks at the device. Raises what looking raises."""
    board = wiring.board(settings, tolerant=True, devices=False, petting=True)

    def look() -> Device:
        now = standing(board)
        return Device(now.booted, now.other, now.written, now.trial, now.armed, now.lease, now.phase, now.reason, now.target)

    return look


def commands(settings: Settings, fleet: FleetSettings, program: tuple[str, ...]) -> Commands:
    """What the daemon has done by processes of their own."""
    quiet = ("--progress", "none")
    return Commands(
        fetch=lambda source, bundle: (*program, "flash", "--no-activate", *quiet, "--bundle", bundle.hex(), "--", source),
        act=lambda verb, *words: (*program, "fleet", "act", verb, *words),
        hooks=lambda kind: (*program, "fleet", "act", "hooks", kind),
        has_hooks=lambda kind: _any_file(fleet.hooks / kind),
    )


def _any_file(folder: Path) -> bool:
    try:
        return any(True for _ in folder.iterdir())
    except OSError:
        return False


def media(fleet: FleetSettings, me: int, current: Callable[[], Membership]) -> tuple[Medium, ...]:
    """What the configuration names, both at once where it names both. me: this node's number. current: the membership now.

    Raises ConfigError.
    """
    found: list[Medium] = []
    if fleet.udp_interface:
        found.append(Udp(fleet.udp_interface, fleet.udp_group, fleet.udp_port, fleet.peers))
    if fleet.serial_device:
        # Late: what it needs is installed where there is such a line only.
        from abupdate.fleet.serialline import SerialLine

        def members() -> tuple[int, tuple[int, ...]]:
            now = current()
            return now.epoch, tuple(now.by_index)

        found.append(
            SerialLine(
                fleet.serial_device,
                fleet.serial_baud,
                fleet.serial_turnaround_ms / 1000,
                rs485=fleet.serial_rs485,
                me=me,
                tag=current().genesis[:4],
                members=members,
                now_s=time.monotonic(),
            )
        )
    return tuple(found)


def acting(folder: Path) -> int:
    """A descriptor whose lock lasts as long as anybody has it: who goes down for a daemon that has ended must be gone before the next
    one speaks for this device. Waits for that. Raises Failed.
    """
    try:
        make_folder(folder)
        descriptor = os.open(folder / ACTING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Failed(f"{folder / ACTING}: {error.strerror}", "state_dir must be writable; is it full or read-only?") from error
    said = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if not said:
                log.warning("what the daemon before this one has begun is still at work: waiting for its end")
                said = True
            time.sleep(_ACTING_AGAIN_S)


def tell_health(health: PeerHealth) -> None:
    """Put the word where the trial's health check looks for it. One that cannot be written is one that is missing there."""
    path = wiring.fleet_health()
    fresh = path.with_name(path.name + ".new")
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.write_bytes(peerhealth.encode(health))
        fresh.replace(path)
