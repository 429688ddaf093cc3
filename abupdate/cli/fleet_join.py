"""The verbs `fleet join` and `fleet recover`: this device's key, and the membership that names it."""

from __future__ import annotations

import socket
from argparse import Namespace
from pathlib import Path

from abupdate import wiring
from abupdate.cli.output import say
from abupdate.config import Settings, load
from abupdate.errors import ConfigError
from abupdate.fleet import enrolment, identity
from abupdate.formats.membership import Member
from abupdate.log import log
from abupdate.model import Role, RoleName
from abupdate.operations import keyring as operation

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def join(options: Namespace) -> int:
    """`abupdate fleet join [SITE.abm]`."""
    settings = _settings(options)
    if options.anew:
        if options.membership is not None:
            raise ConfigError("--anew makes a new key, which no membership names yet", "sign one with the new key first")
        # Without the folder there is nothing to leave: a device whose data partition was made anew.
        if settings.fleet_dir.is_dir():
            enrolment.leave(settings.fleet_dir)
    key = identity.load_or_create(settings.fleet_dir).public_key
    if options.membership is None:
        return _show(options, settings, key)
    data = _read(options.membership)
    me = enrolment.take(settings.fleet_dir, data, key, _roots(settings))
    return _report(options, settings, me)


def recover(options: Namespace) -> int:
    """`abupdate fleet recover SITE.abm`."""
    settings = _settings(options)
    me = enrolment.recover(settings.fleet_dir, _read(options.membership), _roots(settings))
    return _report(options, settings, me)


def _settings(options: Namespace) -> Settings:
    settings = load(options.config)
    # Key and log are no business of whoever may write the folder above them.
    wiring.state_store(settings)
    wiring.check_devices(settings, present=False)
    return settings


def _show(options: Namespace, settings: Settings, key: bytes) -> int:
    """What goes into SITE.toml, as it goes there."""
    name = socket.gethostname()
    lines = [f"[nodes.{name if name and not set(name) - _BARE else _quoted(name)}]", f'key = "{key.hex()}"']
    kept = enrolment.load(settings.fleet_dir)
    document: dict[str, object] = {"name": name, "key": key.hex(), "site": None, "epoch": None, "node": None}
    if kept:
        membership = kept[-1]
        me = next((member.name for member in membership.members if member.key == key), None)
        document |= {"site": membership.site, "epoch": membership.epoch, "node": me}
        what = f"is {me} of" if me else "is not named by the membership of"
        lines.insert(0, f"# this device {what} site {membership.site}, epoch {membership.epoch}")
    say(options, document, "\n".join(lines))
    return 0


def _quoted(name: str) -> str:
    return '"' + "".join(char for char in name if char.isprintable() and char not in '"\\') + '"'


def _report(options: Namespace, settings: Settings, me: Member) -> int:
    membership = enrolment.load(settings.fleet_dir)[-1]
    document = {"site": membership.site, "epoch": membership.epoch, "node": me.name, "index": me.index, "voter": me.voter}
    if settings.fleet is None:
        log.warning("the configuration has no section [fleet]: the daemon needs it to reach the others")
    word = "votes" if me.voter else "learns"
    text = f"this device is {me.name} of site {membership.site} (epoch {membership.epoch}) and {word}: restart abupdate-fleet"
    say(options, document, text)
    return 0


def _roots(settings: Settings) -> Role:
    """The root role of the keyring that counts on this device."""
    return operation.observe(wiring.state_store(settings), wiring.trust(settings)).ring.roles[RoleName.ROOT]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(enrolment.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
