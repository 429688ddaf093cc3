"""The verbs `keys generate` and `keys keyring`."""

from __future__ import annotations

import argparse

from abupdate.cli.output import say
from abupdate.cli.trust import describe_roles, role_lines
from abupdate.formats import signature
from abupdate.host import keyrings, keys, recipients
from abupdate.host.signing import load_signers
from abupdate.model import RoleName


def generate(args: argparse.Namespace) -> int:
    """Make a key pair."""
    passphrase = keys.read_passphrase(args.passphrase_file) if args.passphrase_file else None
    if args.recipient:
        private, public, identity = recipients.generate(args.name, passphrase=passphrase, test=args.test)
        kind, name = "recipient", identity.key_id.hex()
    else:
        private, public, key = keys.generate(args.name, passphrase=passphrase, test=args.test)
        kind, name = "signer", signature.key_id(key.raw)
    document = {"private": str(private), "public": str(public), "kind": kind, "key_id": name, "test": args.test}
    words = " ".join(["test" if args.test else "", "recipient" if args.recipient else "", "key"]).strip().replace("  ", " ")
    say(args, document, f"{private} and {public}: {words} {name}")
    return 0


def keyring(args: argparse.Namespace) -> int:
    """Make a signed keyring."""
    requests = {role: keyrings.RoleRequest(getattr(args, role.value), getattr(args, f"{role.value}_threshold")) for role in RoleName}
    signers = load_signers(args.keys, passphrase_file=args.passphrase_file, sign_with=args.sign_with)
    built = keyrings.create(args.output, args.keyring_version, requests, signers)
    signed_by = [signature.key_id(item.public_key) for item in built.signatures]
    document = {"file": str(args.output), "version": built.version, "roles": describe_roles(built), "signed_by": signed_by}
    say(args, document, "\n".join([f"{args.output}: keyring version {built.version}", *role_lines(built)]))
    return 0
