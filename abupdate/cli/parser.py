"""Arguments of every verb; a handler is a `module:function` string and is imported only when it is the one asked for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from abupdate import __version__
from abupdate.cli import parser_fleet, parser_host
from abupdate.cli.arguments import Declare, Parser, add_group, add_verb
from abupdate.config import DEFAULT_CONFIG

if TYPE_CHECKING:
    from abupdate.cli.arguments import Verbs


def rate(text: str) -> int:
    """Bytes a second: a whole number with an optional k, M or G (powers of 1024)."""
    factor = {"k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isascii() or not digits.isdigit() or not 0 < int(digits) < 1 << 40:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate such as 500k or 2M")
    return int(digits) * factor


def build() -> Parser:
    """The whole command line."""
    parser = Parser(prog="abupdate", description="A/B updates that a device can always come back from.")
    parser.add_argument("--version", action="version", version=f"abupdate {__version__}")
    parser.add_argument("-c", dest="config", metavar="CONFIG", type=Path, default=DEFAULT_CONFIG, help=f"configuration ({DEFAULT_CONFIG})")
    parser.add_argument("-v", dest="verbose", action="count", default=0, help="say more; twice: with tracebacks")
    parser.add_argument("-q", dest="quiet", action="store_true", help="errors only")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, handler: str, text: str, declare: Declare | None = None) -> None:
        add_verb(verbs, name, handler, text, declare, description=text)

    verb("status", "abupdate.cli.device:status", "what runs, what boots next, what each slot holds")
    verb("flash", "abupdate.cli.device:flash", "write a bundle to the slot that does not run, and let it boot on trial", _flash)
    verb("activate", "abupdate.cli.device:activate", "let a slot boot on trial that `flash --no-activate` has written", _activate)
    verb("confirm", "abupdate.cli.device:confirm", "keep the slot that runs on trial")
    verb("revert", "abupdate.cli.device:revert", "cancel or end a trial, or go back to the other good slot", _revert)
    verb("verify", "abupdate.cli.device:verify", "compare slots with the bundles that were written to them", _slot)
    add_group(verbs, "keyring", "the keys that this device trusts", _keyring)
    verb("health", "abupdate.cli.health:health", "run all health programs once")
    verb("doctor", "abupdate.cli.doctor:doctor", "look for what is wrong or missing", _doctor)
    verb("service", "abupdate.cli.service:service", "the boot-time service: watchdog, trial window, health", _service)
    parser_fleet.add(verbs)
    parser_host.add(verbs)
    return parser


def _flash(flash: Parser) -> None:
    flash.add_argument("source", metavar="SOURCE", help="a path, an http(s) URL, or - for standard input")
    flash.add_argument("--no-activate", action="store_true", help="write and verify only")
    _reboot(flash)
    # The fleet's daemon says which bundle an order names: a source that gives another one is refused before anything is written.
    flash.add_argument("--bundle", metavar="ID", help=argparse.SUPPRESS)
    flash.add_argument("--max-rate", type=rate, metavar="RATE", help="bytes a second read from SOURCE, with k, M or G")
    _member(flash)
    _progress(flash)


def _activate(activate: Parser) -> None:
    _member(activate)
    _slot(activate)


def _revert(revert: Parser) -> None:
    _reboot(revert)
    _alone(revert)


def _member(verb: Parser) -> None:
    verb.add_argument("--fleet", action="store_true", help="on a member of a site: go down when the fleet has a slot for it")
    verb.add_argument("--wait", type=parser_fleet.whole, metavar="S", help="with --fleet: so many seconds for the slot (none)")
    _alone(verb)


def _alone(verb: Parser) -> None:
    verb.add_argument("--alone", action="store_true", help="on a member of a site: without asking the others")


def _slot(verb: Parser) -> None:
    verb.add_argument("slot", nargs="?", metavar="SLOT")
    _progress(verb)


def _reboot(verb: Parser) -> None:
    verb.add_argument("--reboot", action="store_true", help="reboot when it is done")


def _keyring(verbs: Verbs) -> None:
    add_verb(verbs, "show", "abupdate.cli.keyring:show", "the keyring that bundles are held against")
    add_verb(verbs, "update", "abupdate.cli.keyring:update", "take the newer versions of the keyring that a file holds", _keyring_update)


def _keyring_update(update: Parser) -> None:
    update.add_argument("file", type=Path, metavar="FILE", help="a keyring, or a chain: keyrings one after the other")


def _doctor(doctor: Parser) -> None:
    what = doctor.add_mutually_exclusive_group()
    what.add_argument("--fix", action="store_true", help="repair what can be repaired, after showing it")
    what.add_argument(
        "--import",
        dest="importing",
        nargs=2,
        metavar=("KIND", "FILE"),
        help="write a configuration from that of rauc (system.conf), mender (mender.conf) or swupdate (sw-description)",
    )


def _service(service: Parser) -> None:
    service.add_argument("--trial", action="store_true", help="end when the trial is confirmed (abupdate-trial.service)")
    # Of abupdate-confirmed.service; it serves nobody.
    service.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)


def _progress(verb: Parser) -> None:
    verb.add_argument(
        "--progress", choices=("auto", "bar", "json", "none"), default="auto", help="on standard error (auto: a bar on a terminal)"
    )
