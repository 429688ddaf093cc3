"""The verbs of `fleet` that ask this device's daemon: `status`, `log`, `approve` and `reject`."""

from __future__ import annotations

import json
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from abupdate.cli import fleet_text
from abupdate.cli.output import say
from abupdate.config import load
from abupdate.errors import ConfigError, Failed, Interrupted, Refused
from abupdate.fleet import control
from abupdate.fleet.control import MAX_ENTRIES, AskLog, AskStatus, Judge, Question, ask, failure
from abupdate.fleetsettings import FleetSettings
from abupdate.log import plain

_WATCH_S = 1.0
_HOME_AND_CLEAR = "\x1b[H\x1b[J"
_ID_DIGITS = 64
# Fewer digits of an id than these are a typing error rather than a name.
_MIN_DIGITS = 4


def settings_of(options: Namespace) -> FleetSettings:
    """The section [fleet]. Raises ConfigError where this device is no member of a site."""
    fleet = load(options.config).fleet
    if fleet is None:
        raise ConfigError("this device is no member of a site", "add [fleet] to the configuration")
    return fleet


def ask_daemon(options: Namespace, question: Question) -> dict[str, Any]:
    """The daemon's answer. Raises ConfigError, and what `control.ask` does."""
    return ask(settings_of(options).control, question)


def status(options: Namespace) -> int:
    """`abupdate fleet status [--watch]`."""
    if options.watch:
        return _watch(options)
    document = ask_daemon(options, AskStatus())
    say(options, document, fleet_text.status(document))
    return 0


def _watch(options: Namespace) -> int:
    """Until the person has seen enough; with --json a document on each line. A daemon that is away (its device reboots) is waited for."""
    path = settings_of(options).control
    live = sys.stdout.isatty() and not options.json
    shown = ""
    try:
        while True:
            try:
                document = ask(path, AskStatus())
                text = json.dumps(document) if options.json else fleet_text.status(document)
            except Failed as error:
                text = json.dumps(failure(error)) if options.json else error.line
            if text != shown:
                shown = text
                _show(text, live=live, end="\n" if options.json else "\n\n")
            time.sleep(_WATCH_S)
    except Interrupted:
        return 0


def _show(text: str, *, live: bool, end: str) -> None:
    lines = plain(text).splitlines()
    if live:
        # What does not fit would scroll away the top with the next picture.
        lines = lines[: max(1, shutil.get_terminal_size().lines - 1)]
        sys.stdout.write(_HOME_AND_CLEAR + "\n".join(lines) + "\n")
    else:
        sys.stdout.write("\n".join(lines) + end)
    sys.stdout.flush()


def log(options: Namespace) -> int:
    """`abupdate fleet log`."""
    if not 1 <= options.count <= MAX_ENTRIES:
        raise ConfigError(f"-n {options.count} is not between 1 and {MAX_ENTRIES}", "use --from to see more")
    if options.first >= 1 << 32:
        raise ConfigError(f"--from {options.first} is no height")
    document = ask_daemon(options, AskLog(options.first, options.count))
    say(options, document, fleet_text.log(document))
    return 0


def approve(options: Namespace) -> int:
    """`abupdate fleet approve ORDER`."""
    return _judge(options, approved=True)


def reject(options: Namespace) -> int:
    """`abupdate fleet reject ORDER`."""
    return _judge(options, approved=False)


def _judge(options: Namespace, *, approved: bool) -> int:
    check_reason(options.reason)
    order = find_order(ask_daemon(options, AskStatus()), options.order)
    ask_daemon(options, Judge(order, approved, options.reason))
    word = "approved" if approved else "rejected"
    after = ": it says so to the others when it holds the bundle" if approved else ""
    say(options, {"order": order.hex(), "approved": approved, "reason": options.reason}, f"order {order.hex()} is {word} here{after}")
    return 0


def check_reason(text: str) -> None:
    """Raise ConfigError where a frame cannot carry the reason."""
    try:
        control.check_reason(text)
    except Refused as error:
        raise ConfigError(error.message, "say it in one short line") from error


def find_order(status_document: Mapping[str, Any] | None, text: str) -> bytes:
    """An order's id from all of its digits, or from enough of its first ones where the daemon's status knows it. Raises ConfigError."""
    digits = text.lower()
    if set(digits) - set("0123456789abcdef") or not _MIN_DIGITS <= len(digits) <= _ID_DIGITS:
        raise ConfigError(f"{text[:80]!r} is not the id of an order", f"{_ID_DIGITS} hex digits, or at least the first {_MIN_DIGITS}")
    if len(digits) == _ID_DIGITS:
        if not digits.strip("0"):
            # It stands for the whole site where no order is named.
            raise ConfigError("an id of zeros is no order's")
        return bytes.fromhex(digits)
    if status_document is None:
        raise ConfigError(f"{text} is not a whole id", "offline, name all of its digits")
    known = {str(order["order"]) for order in status_document["orders"]}
    if status_document["plan"]:
        known.add(str(status_document["plan"]["order"]))
    found = sorted(one for one in known if one.startswith(digits))
    if len(found) != 1:
        raise ConfigError(
            f"{len(found) or 'no'} open order{'s' * (len(found) > 1)} of this site start{'s' * (len(found) < 2)} with {text}",
            "`abupdate fleet status` lists them",
        )
    return bytes.fromhex(found[0])
