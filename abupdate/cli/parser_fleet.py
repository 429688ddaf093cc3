"""Arguments of the verbs of a site's fleet. Imports nothing that costs time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from abupdate.cli.arguments import Parser, add_group, add_verb
from abupdate.cli.parser_host import add_signing

if TYPE_CHECKING:
    from abupdate.cli.arguments import Verbs

_ORDERS = "abupdate.cli.fleet_orders"


def add(verbs: Verbs) -> None:
    """Declare `fleet`; each verb sets `handler` to `module:function`."""
    add_group(verbs, "fleet", "the devices of this site, which agree on what to install and who may be down", _fleet)


def _fleet(verbs: Verbs) -> None:
    add_verb(verbs, "init", "abupdate.cli.fleet_host:init", "make a site's membership from a SITE.toml, or the next one", _init)
    add_verb(verbs, "sign", "abupdate.cli.fleet_host:sign", "show a membership or an order, and sign it with --key", _sign)
    add_verb(verbs, "join", "abupdate.cli.fleet_join:join", "show this device's key, or take the membership that names it", _join)
    add_verb(verbs, "recover", "abupdate.cli.fleet_join:recover", "start this device anew from a recovered site's membership", _recover)
    add_verb(verbs, "status", "abupdate.cli.fleet:status", "members, leases, the plan, and why nothing moves", _status)
    add_verb(verbs, "log", "abupdate.cli.fleet:log", "what was decided, and who signed it", _log)
    add_verb(verbs, "propose", f"{_ORDERS}:propose", "order an update, or hand in a signed order or membership", _propose)
    add_verb(verbs, "approve", "abupdate.cli.fleet:approve", "this device takes part in an order", _judge)
    add_verb(verbs, "reject", "abupdate.cli.fleet:reject", "this device does not take part in an order", _judge)
    add_verb(verbs, "pause", f"{_ORDERS}:pause", "nobody else goes down; who is down finishes", _pause)
    add_verb(verbs, "resume", f"{_ORDERS}:resume", "end a pause or a halt", _resume)
    add_verb(verbs, "cancel", f"{_ORDERS}:cancel", "end an order for good", _cancel)
    add_verb(verbs, "rollback", f"{_ORDERS}:rollback", "back to an earlier version, through slots or at once", _rollback)
    add_verb(verbs, "lost", f"{_ORDERS}:lost", "a device does not come back: its lease counts as lost", _one_node)
    add_verb(verbs, "evict", f"{_ORDERS}:evict", "bar a device from plans", _one_node)
    add_verb(verbs, "daemon", "abupdate.cli.fleet_daemon:daemon", "the service that speaks for this device (abupdate-fleet.service)")
    add_group(verbs, "act", "", _act)


def _act(verbs: Verbs) -> None:
    """What the daemon calls itself."""
    add_verb(verbs, "leave", "abupdate.cli.fleet_act:leave", "", _leave)
    add_verb(verbs, "back", "abupdate.cli.fleet_act:back", "", _bundle)
    add_verb(verbs, "disarm", "abupdate.cli.fleet_act:disarm", "", _lease)
    add_verb(verbs, "reboot", "abupdate.cli.fleet_act:reboot", "")
    add_verb(verbs, "hooks", "abupdate.cli.fleet_act:hooks", "", _kind)


def _leave(leave: Parser) -> None:
    _lease(leave)
    _bundle(leave)


def _lease(verb: Parser) -> None:
    verb.add_argument("--lease", type=whole, required=True, metavar="N")


def _bundle(verb: Parser) -> None:
    verb.add_argument("--bundle", required=True, metavar="ID")


def _kind(hooks: Parser) -> None:
    hooks.add_argument("kind", choices=("peer-leaving", "peer-returned", "restore"))


def _init(init: Parser) -> None:
    init.add_argument("site", type=Path, metavar="SITE.toml")
    init.add_argument("-o", "--output", type=Path, required=True, metavar="SITE.abm")
    init.add_argument("--previous", type=Path, metavar="OLD.abm", help="the membership before, whose next epoch this is")
    init.add_argument("--recover", type=Path, metavar="OLD.abm", help="a new beginning for a site whose voters lost their logs")
    init.add_argument("--height", type=whole, metavar="N", help="with --recover: last height that any node still knows")
    text = "with --recover: a lease that is still held; may be repeated"
    init.add_argument("--lease", dest="leases", action="append", default=[], metavar="NODE=LEASE", help=text)
    add_signing(init, "--key", required=False)


def _sign(sign: Parser) -> None:
    sign.add_argument("file", type=Path, metavar="FILE", help="a membership (.abm) or an order (.abo)")
    sign.add_argument("-o", "--output", type=Path, metavar="OUT", help="instead of FILE itself")
    text = "the membership whose admins sign this order, or before whose next epoch this membership stands"
    sign.add_argument("--membership", "--previous", dest="membership", type=Path, metavar="SITE.abm", help=text)
    add_signing(sign, "--key", required=False)


def _join(join: Parser) -> None:
    join.add_argument("membership", type=Path, nargs="?", metavar="SITE.abm", help="the signed membership; without it: show the key")
    join.add_argument("--anew", action="store_true", help="leave the site: a new key and an empty log, for a device that lost its log")


def _recover(recover: Parser) -> None:
    recover.add_argument("membership", type=Path, metavar="SITE.abm", help="made by `fleet init --recover`")


def _status(status: Parser) -> None:
    status.add_argument("--watch", action="store_true", help="show it again whenever it changes, until Ctrl-C; with --json as lines")


def _log(log: Parser) -> None:
    log.add_argument("--from", dest="first", type=whole, default=0, metavar="HEIGHT", help="from there on instead of the newest")
    log.add_argument("-n", dest="count", type=whole, default=20, metavar="N", help="so many entries (20, at most 256)")


def _judge(judge: Parser) -> None:
    judge.add_argument("order", metavar="ORDER", help="its id, or enough of its first digits")
    judge.add_argument("--reason", default="", metavar="TEXT")


def _propose(propose: Parser) -> None:
    text = "a bundle, or its URL; or a signed order or membership, which is handed in as it is"
    propose.add_argument("file", metavar="FILE", help=text)
    text = "URL or absolute path where the devices find the bundle (FILE, where that is a URL); may be repeated"
    propose.add_argument("--source", dest="sources", action="append", default=[], metavar="URL", help=text)
    propose.add_argument("--share", type=whole, default=100, metavar="PERCENT", help="of the nodes must approve (100)")
    _add_rollout(propose)
    propose.add_argument("--on-halt", choices=("hold", "rollback"), default="hold", help="what becomes of those who are done (hold)")
    propose.add_argument("--rollback-to", metavar="BUNDLE", help="a bundle file, or the id of one that this device's slots hold")
    _add_order(propose)


def _pause(pause: Parser) -> None:
    pause.add_argument("order", nargs="?", metavar="ORDER", help="its id or enough of it; none: the whole site")
    _add_reason(pause)
    _add_order(pause)


def _resume(resume: Parser) -> None:
    resume.add_argument("order", nargs="?", metavar="ORDER", help="its id or enough of it; none: the whole site")
    resume.add_argument("--halt-at", type=whole, default=0, metavar="N", help="so many failed nodes halt it from now on")
    _add_reason(resume)
    _add_order(resume)


def _cancel(cancel: Parser) -> None:
    cancel.add_argument("order", metavar="ORDER", help="its id or enough of it")
    _add_reason(cancel)
    _add_order(cancel)


def _rollback(rollback: Parser) -> None:
    text = "a bundle file, or the version or id of one that this device's slots hold"
    rollback.add_argument("--to", required=True, metavar="BUNDLE", help=text)
    rollback.add_argument("--nodes", nargs="+", default=[], metavar="NODE", help="these alone (all)")
    rollback.add_argument("--now", action="store_true", help="all at once, past every budget: needs more admins")
    _add_rollout(rollback)
    _add_order(rollback)


def _one_node(verb: Parser) -> None:
    verb.add_argument("node", metavar="NODE", help="its name or number")
    _add_reason(verb)
    _add_order(verb)


def _add_rollout(verb: Parser) -> None:
    verb.add_argument("--width", type=whole, default=1, metavar="N", help="nodes down at once (1)")
    verb.add_argument("--halt-at", type=whole, default=1, metavar="N", help="so many failed nodes halt it (1)")
    verb.add_argument("--overdue", type=whole, default=1800, metavar="S", help="seconds after which a lease is overdue (1800)")


def _add_reason(verb: Parser) -> None:
    verb.add_argument("--reason", default="", metavar="TEXT", help="at most 96 bytes, for whoever asks why")


def _add_order(verb: Parser) -> None:
    verb.add_argument("-o", "--output", type=Path, metavar="FILE.abo", help="write the order instead of handing it in")
    verb.add_argument("--membership", type=Path, metavar="SITE.abm", help="the site's newest, where no daemon runs here to ask")
    verb.add_argument("--seq", type=whole, metavar="N", help="number of the order (one more than the newest)")
    add_signing(verb, "--key", required=False)


def whole(text: str) -> int:
    """A number without a sign; bounds are told where it is used."""
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
