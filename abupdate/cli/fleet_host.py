"""The verbs `fleet init` and `fleet sign`, which need no device."""

from __future__ import annotations

import argparse
from dataclasses import replace

from abupdate.cli.fleet_describe import describe
from abupdate.cli.output import say
from abupdate.errors import ConfigError, Refused
from abupdate.formats import membership as memberships
from abupdate.formats import signature
from abupdate.formats.membership import Membership, Recovery
from abupdate.formats.messages import NOTHING
from abupdate.host import fleetsign, site
from abupdate.host.atomic import check_spares
from abupdate.host.fleetsign import Signed
from abupdate.host.signing import load_signers


def init(args: argparse.Namespace) -> int:
    """Make a membership: of epoch 1, of the next epoch, or of a site that begins anew."""
    if args.previous and args.recover:
        raise ConfigError("--previous and --recover exclude each other", "a new beginning is epoch 1 of a new genesis")
    if (args.height is not None or args.leases) and not args.recover:
        raise ConfigError("--height and --lease go with --recover")
    signers = load_signers(args.keys, passphrase_file=args.passphrase_file, sign_with=args.sign_with)
    check_spares(args.output, [args.site, *args.keys, *filter(None, [args.passphrase_file, args.previous, args.recover])])
    previous = fleetsign.load_membership(args.previous) if args.previous else None
    old = fleetsign.load_membership(args.recover) if args.recover else None
    # A node keeps its number over a new beginning too: leases name it.
    described = site.load(args.site, previous or old)
    if old is not None:
        described = replace(described, epoch=1, genesis=NOTHING, recovery=_recovery(args, old, described))
    try:
        thing = memberships.parse(memberships.build(memberships.body(described), ()))
    except (Refused, ValueError) as error:
        raise ConfigError(f"{args.site}: {error}", getattr(error, "hint", "")) from error
    done = fleetsign.sign(thing, signers, previous)
    fleetsign.write(args.output, done.data)
    return _report(args, str(args.output), done)


def _recovery(args: argparse.Namespace, old: Membership, new: Membership) -> Recovery:
    if args.height is None:
        raise ConfigError("--recover needs --height", "the highest one that `abupdate fleet status` shows on any node")
    names = {member.name: member.index for member in new.members}
    leases: dict[int, int] = {}
    for text in args.leases:
        name, equals, lease = text.partition("=")
        if not equals or name not in names or not lease.isascii() or not lease.isdigit():
            raise ConfigError(f"--lease {text[:80]!r} is not NODE=LEASE", "as in --lease gw2=17")
        if not 1 <= int(lease[:12]) <= args.height:
            raise ConfigError(f"--lease {text[:80]!r} is not between 1 and the height {args.height}", "a lease is the height of its grant")
        if names[name] in leases:
            raise ConfigError(f"--lease names {name} twice", "a node holds at most one lease")
        leases[names[name]] = int(lease)
    return Recovery(old.genesis, args.height, leases)


def sign(args: argparse.Namespace) -> int:
    """Show a membership or an order, and add signatures where keys are given."""
    signers = load_signers(args.keys, passphrase_file=args.passphrase_file, sign_with=args.sign_with)
    judge = fleetsign.load_membership(args.membership) if args.membership else None
    data = fleetsign.read(args.file)
    if not signers:
        if args.output is not None:
            raise ConfigError("nobody signs", "give --key KEY.pem")
        return _report(args, str(args.file), fleetsign.examine(data, judge))
    output = args.output or args.file
    spared = [*args.keys, *filter(None, [args.passphrase_file, args.membership])]
    check_spares(output, spared)
    done = fleetsign.sign(fleetsign.parse(data), signers, judge)
    fleetsign.write(output, done.data, replace=True)
    return _report(args, str(output), done)


def _report(args: argparse.Namespace, name: str, done: Signed) -> int:
    thing = done.thing
    document, lines = describe(thing)
    document |= {
        "file": name,
        "signed_by": [signature.key_id(item.public_key) for item in thing.signatures],
        "signatures": [{"of": tally.who, "have": tally.have, "need": tally.need} for tally in done.tallies],
        "complete": done.complete,
    }
    for tally in done.tallies:
        lacks = max(0, tally.need - tally.have)
        lines.append(f"  signed by {tally.have} of the {tally.who}, {tally.need} needed" + (f", {lacks} still missing" if lacks else ""))
    if not done.tallies:
        lines.append(f"  signed by {len(thing.signatures)} keys: name the site with --membership to see whether that is enough")
    say(args, document, "\n".join([f"{name}:", *lines]))
    return 0
