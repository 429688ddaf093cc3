"""What the fleet's daemon has done by processes of their own (`abupdate fleet act`): going down, taking back, running hooks.

Nobody types these; they end with the exit codes and the JSON document of every verb.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from argparse import Namespace

from abupdate import wiring
from abupdate.cli.output import say
from abupdate.cli.reboot import go_down
from abupdate.config import Settings, load
from abupdate.errors import ConfigError, Failed
from abupdate.fleetsettings import FleetSettings
from abupdate.health.results import CheckResult, Health
from abupdate.log import log
from abupdate.model import Manifest
from abupdate.operations import leave as operation
from abupdate.operations.leave import Ways

_ID_BYTES = 32


def leave(options: Namespace) -> int:
    """`abupdate fleet act leave --lease N --bundle ID`: drain, bring the bundle up, reboot."""
    settings = _settings(options)
    board = wiring.board(settings, outside=True)
    operation.leave(board, _bundle(options.bundle), options.lease, _ways(settings, heed=True))
    say(options, {"reboot_ordered": True}, "the reboot is ordered")
    return 0


def back(options: Namespace) -> int:
    """`abupdate fleet act back --bundle ID`: an admin's order to go back at once."""
    settings = _settings(options)
    operation.back(wiring.board(settings, outside=True), _bundle(options.bundle), _ways(settings, heed=False))
    say(options, {"reboot_ordered": True}, "the reboot is ordered")
    return 0


def disarm(options: Namespace) -> int:
    """`abupdate fleet act disarm --lease N`: cancel what is armed under the lease."""
    operation.disarm(wiring.board(_settings(options)), options.lease)
    say(options, {"disarmed": True}, "what was armed is cancelled")
    return 0


def reboot(options: Namespace) -> int:
    """`abupdate fleet act reboot`."""
    go_down(_settings(options))
    say(options, {"reboot_ordered": True}, "the reboot is ordered")
    return 0


def hooks(options: Namespace) -> int:
    """`abupdate fleet act hooks KIND`: all programs of a kind, in the order of their names, whatever one of them says."""
    settings = _settings(options)
    fleet = _fleet(settings)
    said = _said()
    failed = [result for result in wiring.hook_results(fleet, options.kind, fleet.hook_timeout_s, said) if result.health is not Health.OK]
    if failed:
        raise Failed("; ".join(f"{options.kind}/{_words(result)}" for result in failed), "its author knows why")
    say(options, {"kind": options.kind}, "all programs ended well")
    return 0


def _settings(options: Namespace) -> Settings:
    """The configuration, as a process that must not outlive the daemon reads it."""
    parent = os.getppid()
    _die_with_parent()
    if os.getppid() != parent or parent == 1:
        raise Failed("the daemon that wanted this has ended", "it is done again when it has started")
    return load(options.config)


def _die_with_parent() -> None:
    """SIGTERM comes when the daemon ends, so that nothing goes down behind the back of the next one."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)


def _fleet(settings: Settings) -> FleetSettings:
    if settings.fleet is None:
        raise ConfigError("this device is no member of a site", "add [fleet] to the configuration")
    return settings.fleet


def _ways(settings: Settings, *, heed: bool) -> Ways:
    """heed: what the programs of drain/ say counts."""
    fleet, said = _fleet(settings), _said()

    def drain() -> str:
        for result in wiring.hook_results(fleet, "drain", fleet.drain_timeout_s, said):
            if result.health is not Health.OK:
                log.warning("drain/%s", _words(result))
                if heed:
                    return _words(result)
        return ""

    def activate(lease: int | None) -> None:
        from abupdate.formats.bundle import parse_stored_head
        from abupdate.operations import flash

        admit = wiring.admission(settings)

        def check_head(head: bytes) -> Manifest:
            return parse_stored_head(head, admit).signed.manifest

        board = wiring.board(settings, outside=True)
        contents = wiring.contents(settings, open_head=admit)
        flash.activate(board, contents, check_head, None, lambda phase, done, total: None, lease=lease)

    return Ways(drain, activate, lambda: go_down(settings))


def _words(result: CheckResult) -> str:
    return f"{result.name}: {result.reason}" if result.reason else f"{result.name} said no"


def _said() -> bytes:
    """What the daemon says to the programs."""
    return sys.stdin.buffer.read(select.PIPE_BUF)


def _bundle(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != _ID_BYTES:
        raise ConfigError(f"{text[:80]!r} is not the id of a bundle")
    return found
