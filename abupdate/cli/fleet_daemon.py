"""Handler of `abupdate fleet daemon`."""

from __future__ import annotations

from argparse import Namespace

from abupdate import fleetwiring
from abupdate.cli.fleet import settings_of
from abupdate.config import load


def daemon(options: Namespace) -> int:
    """`abupdate fleet daemon`: speaks for this device among its peers until it is told to end."""
    settings = load(options.config)
    made, start = fleetwiring.daemon(settings, settings_of(options), fleetwiring.abupdate(settings))
    return made.run(start)
