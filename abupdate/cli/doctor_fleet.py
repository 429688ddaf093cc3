"""What `doctor` looks at on a member of a site: is it enrolled, can it reach its peers, does its daemon run."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from abupdate.config import Settings, check_secret
from abupdate.errors import AbupdateError, Failed
from abupdate.fleet import enrolment, identity, store
from abupdate.fleet.control import AskMetrics, AskStatus, ask
from abupdate.fleetsettings import FleetSettings
from abupdate.formats import fleetlog
from abupdate.health.programs import find_programs
from abupdate.model import Finding, Grade
from abupdate.operations.doctor import Check

HOOKS = ("drain", "restore", "peer-leaving", "peer-returned")
_TOPIC = "fleet"


def checks(settings: Settings) -> list[tuple[str, Check]]:
    """What there is to look at; nothing where this device is no member of a site."""
    fleet = settings.fleet
    if fleet is None:
        return []
    found: list[Check] = [lambda: _enrolled(settings.fleet_dir), lambda: _reach(fleet), lambda: _hooks(fleet), lambda: _daemon(fleet)]
    return [(_TOPIC, check) for check in found]


def _enrolled(folder: Path) -> Iterable[Finding]:
    known = enrolment.load(folder)
    key = identity.load(folder)
    if key is None or not known:
        hint = "`abupdate fleet join` shows its key, and with the signed membership it enrols the device"
        yield Finding(Grade.FAIL, _TOPIC, "this device is not enrolled in a site", hint)
        return
    check_secret(folder / identity.KEY, "node key")
    me = enrolment.member(known[-1], key.public_key)
    kind = "votes" if me.voter else "learns"
    yield Finding(Grade.OK, _TOPIC, f"it is {me.name} of site {known[-1].site}, epoch {known[-1].epoch}, and {kind}")
    try:
        log = store.peek(folder)
    except OSError as error:
        raise Failed(f"{folder / store.LOG}: {error.strerror}", "is the medium of state_dir damaged? dmesg may tell") from error
    again = "it is up and updates, but votes no more; `abupdate fleet join --anew` enrols it under another key"
    if log is None:
        yield Finding(Grade.WARN, _TOPIC, f"{folder} holds no log of what it has said", again)
    elif log.damaged or log.head is None or log.head.fault is not fleetlog.Fault.NONE:
        yield Finding(Grade.WARN, _TOPIC, f"{folder / store.LOG} is damaged: what it has said before is not all known", again)
    elif log.head.owner != key.public_key:
        yield Finding(Grade.WARN, _TOPIC, f"{folder / store.LOG} is the log of another key", again)


def _reach(fleet: FleetSettings) -> Iterable[Finding]:
    if fleet.udp_interface:
        try:
            socket.if_nametoindex(fleet.udp_interface)
            yield Finding(Grade.OK, _TOPIC, f"peers are reached on {fleet.udp_interface}")
        except OSError:
            there = ", ".join(name for _, name in socket.if_nameindex())
            yield Finding(Grade.FAIL, _TOPIC, f"there is no network interface {fleet.udp_interface}", f"there is {there}")
    if fleet.serial_device:
        yield from _line(fleet)


def _line(fleet: FleetSettings) -> Iterable[Finding]:
    missing = [name for name in ("serial", "cobs") if importlib.util.find_spec(name) is None]
    if missing:
        hint = "pip install 'abupdate[fleet]' (Debian: python3-serial; it has no package of cobs)"
        yield Finding(Grade.FAIL, _TOPIC, f"a serial line needs {' and '.join(missing)}, which cannot be imported", hint)
        return
    from abupdate.fleet.usbserial import find

    path = find(fleet.serial_device)
    if path is None:
        yield Finding(Grade.FAIL, _TOPIC, f"the serial line {fleet.serial_device} is not there", "is the adapter plugged in?")
    elif not os.access(path, os.R_OK | os.W_OK):
        yield Finding(Grade.FAIL, _TOPIC, f"{path} cannot be read and written", "run as root")
    else:
        yield Finding(Grade.OK, _TOPIC, f"peers are reached on {path} at {fleet.serial_baud} baud")


def _hooks(fleet: FleetSettings) -> Iterable[Finding]:
    for kind in HOOKS:
        programs = find_programs(fleet.hooks / kind)
        if programs:
            yield Finding(Grade.OK, _TOPIC, f"{len(programs)} program{'s' if len(programs) > 1 else ''} in {fleet.hooks / kind}")


def _daemon(fleet: FleetSettings) -> Iterable[Finding]:
    try:
        status, metrics = ask(fleet.control, AskStatus()), ask(fleet.control, AskMetrics())
    except AbupdateError as error:
        yield Finding(Grade.WARN, _TOPIC, error.message, error.hint)
        return
    up = sum(member["up"] for member in status["members"])
    text = f"the daemon runs: height {status['height']}, {up} of {len(status['members'])} nodes are up"
    if status["stopped"]:
        hint = "`abupdate fleet join --anew` enrols it under another key"
        yield Finding(Grade.WARN, _TOPIC, f"{text}; this node does not vote: {status['stopped']}", hint)
    else:
        yield Finding(Grade.OK, _TOPIC, text)
    for alarm in status["alarms"]:
        yield Finding(Grade.WARN, _TOPIC, f"alarm: {alarm}", "`abupdate fleet status` and `abupdate fleet log` tell more")
    yield from _direction(fleet, metrics["media"].get("serial", {}))


def _direction(fleet: FleetSettings, line: Mapping[str, Any]) -> Iterable[Finding]:
    """Who switches a half-duplex line from listening to sending."""
    if not line.get("line"):
        return
    if fleet.serial_rs485 and not line.get("kernel switches"):
        hint = "an adapter that switches by itself works; one that waits for RTS does not: choose another driver or adapter"
        yield Finding(Grade.WARN, _TOPIC, f"the driver of {fleet.serial_device} does not switch the direction of RS-485", hint)
