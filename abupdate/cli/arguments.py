"""argparse as the verbs use it: errors are the project's, and a verb's arguments are declared only when it is the one asked for.

To declare them all takes longer than most verbs have to do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from abupdate.errors import ConfigError

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction["Parser"]

Declare = Callable[["Parser"], None]


class Parser(argparse.ArgumentParser):
    """declare: adds the arguments; called before the first parsing."""

    declare: Declare | None = None

    # The base class has overloads for namespaces of other types.
    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """As argparse's."""
        declare, self.declare = self.declare, None
        if declare is not None:
            self.add_argument("-h", "--help", action="help", default=argparse.SUPPRESS, help="show this help message and exit")
            declare(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError (exit 2)."""
        raise ConfigError(message, f"see `{self.prog} --help`")


def add_verb(verbs: Verbs, name: str, handler: str, text: str, declare: Declare | None = None, *, description: str | None = None) -> None:
    """A verb that `handler`, a `module:function`, carries out. text: for the list of verbs, empty: it is not in the list.

    declare: adds its own arguments.
    """

    def whole(parser: Parser) -> None:
        parser.set_defaults(handler=handler)
        if declare is not None:
            declare(parser)
        # Accepted after the verb too, where people write it.
        parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    _add(verbs, name, text, description).declare = whole


def add_group(verbs: Verbs, name: str, text: str, declare: Callable[[Verbs], None]) -> None:
    """A word that is followed by a verb. text: as in `add_verb`. declare: adds these verbs."""

    def whole(parser: Parser) -> None:
        declare(parser.add_subparsers(title="verbs", dest=f"{name}_verb", required=True, metavar="VERB"))

    _add(verbs, name, text).declare = whole


def _add(verbs: Verbs, name: str, text: str, description: str | None = None) -> Parser:
    # argparse lists whatever has a help text, even an empty one.
    if not text:
        return verbs.add_parser(name, description=description, add_help=False)
    return verbs.add_parser(name, help=text, description=description, add_help=False)
