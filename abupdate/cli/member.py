"""What changes for the verbs where this device is a member of a site: nobody goes down without the others' leave, or says so."""

from __future__ import annotations

from argparse import Namespace

from abupdate.config import Settings
from abupdate.errors import ConfigError
from abupdate.log import log

_ANSWER_S = 20.0


def check(settings: Settings, options: Namespace, what: str) -> None:
    """Whether the verb may go on by itself. what: what it is about to do. Raises ConfigError."""
    if settings.fleet is None:
        if getattr(options, "fleet", False):
            raise ConfigError("this device is no member of a site", "without --fleet it is updated alone")
        return
    if options.alone:
        log.warning("%s without asking the other devices of the site (--alone)", what)
        return
    if not getattr(options, "fleet", False):
        hint = "--fleet waits for an update slot, --alone does it all the same"
        raise ConfigError(f"this device is a member of a site: {what} is for the fleet to decide", hint)


def check_wait(options: Namespace) -> None:
    """--wait belongs to --fleet. Raises ConfigError."""
    if options.wait is not None and not options.fleet:
        raise ConfigError("--wait is for an update slot of the fleet", "add --fleet")


def ask_for_slot(settings: Settings, bundle: str, wait_s: int) -> int:
    """The lease under which this device goes down now to run the bundle (id in hex). Raises Deferred where the fleet grants none in time,
    and Failed where the daemon does not answer.
    """
    from abupdate.fleet.control import AskUpdate, ask

    assert settings.fleet is not None
    answer = ask(settings.fleet.control, AskUpdate(bytes.fromhex(bundle), wait_s), wait_s + _ANSWER_S)
    return int(answer["lease"])
