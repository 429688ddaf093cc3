"""Arguments of every verb; a handler is a `module:function` string and is imported only when it is the one asked for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn, cast

from abupdate import __version__
from abupdate.cli import parser_host
from abupdate.config import DEFAULT_CONFIG
from abupdate.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse that reports through the project's errors."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError (exit 2)."""
        raise ConfigError(message, f"see `{self.prog} --help`")


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

    def verb(name: str, handler: str, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(handler=handler)
        # Accepted after the verb too, where people write it.
        made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return made

    verb("status", "abupdate.cli.device:status", "what runs, what boots next, what each slot holds")
    flash = verb("flash", "abupdate.cli.device:flash", "write a bundle to the slot that does not run, and let it boot on trial")
    flash.add_argument("source", metavar="SOURCE", help="a path, or - for standard input")
    flash.add_argument("--no-activate", action="store_true", help="write and verify only")
    flash.add_argument("--reboot", action="store_true", help="reboot when it is done")
    flash.add_argument("--max-rate", type=rate, metavar="RATE", help="bytes a second read from SOURCE, with k, M or G")
    _progress(flash)
    activate = verb("activate", "abupdate.cli.device:activate", "let a slot boot on trial that `flash --no-activate` has written")
    activate.add_argument("slot", nargs="?", metavar="SLOT")
    _progress(activate)
    verb("confirm", "abupdate.cli.device:confirm", "keep the slot that runs on trial")
    revert = verb("revert", "abupdate.cli.device:revert", "cancel or end a trial, or go back to the other good slot")
    revert.add_argument("--reboot", action="store_true", help="reboot when it is done")
    verify = verb("verify", "abupdate.cli.device:verify", "compare slots with the bundles that were written to them")
    verify.add_argument("slot", nargs="?", metavar="SLOT")
    _progress(verify)
    keyring = verbs.add_parser("keyring", help="the keys that this device trusts").add_subparsers(
        title="verbs", dest="keyring_verb", required=True, metavar="VERB"
    )
    show = keyring.add_parser("show", help="the keyring that bundles are held against")
    show.set_defaults(handler="abupdate.cli.keyring:show")
    update = keyring.add_parser("update", help="take the newer versions of the keyring that a file holds")
    update.add_argument("file", type=Path, metavar="FILE", help="a keyring, or a chain: keyrings one after the other")
    update.set_defaults(handler="abupdate.cli.keyring:update")
    for made in (show, update):
        made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    verb("health", "abupdate.cli.health:health", "run all health programs once")
    doctor = verb("doctor", "abupdate.cli.doctor:doctor", "look for what is wrong or missing")
    doctor.add_argument("--fix", action="store_true", help="repair what can be repaired, after showing it")
    service = verb("service", "abupdate.cli.service:service", "the boot-time service: watchdog, trial window, health")
    service.add_argument("--trial", action="store_true", help="end when the trial is confirmed (abupdate-trial.service)")
    parser_host.add(cast(Any, verbs))
    return parser


def _progress(verb: Any) -> None:
    verb.add_argument(
        "--progress", choices=("auto", "bar", "json", "none"), default="auto", help="on standard error (auto: a bar on a terminal)"
    )
