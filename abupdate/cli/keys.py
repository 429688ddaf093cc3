"""The verbs `keys generate`, `keys keyring`, `keys rotate`, `keys sign` and `keys show`."""

from __future__ import annotations

import argparse

from abupdate.cli.output import say
from abupdate.cli.trust import describe_roles, role_lines
from abupdate.errors import ConfigError
from abupdate.formats import keyring as keyring_format
from abupdate.formats import rotation, signature
from abupdate.host import keyrings, keys, recipients, rotate
from abupdate.host.atomic import check_spares
from abupdate.host.keyrings import Tally
from abupdate.host.signing import load_signers
from abupdate.model import Keyring, RoleName


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
    check_spares(args.output, [*args.keys, *(path for request in requests.values() for path in request.keys)])
    built = keyrings.create(args.output, args.keyring_version, requests, signers, partial=args.partial)
    counted = keyrings.tallies(built, None)
    say(args, {"file": str(args.output)} | _document(built, counted), "\n".join([f"{args.output}:", *_lines(built, counted)]))
    return 0


def rotate_keyring(args: argparse.Namespace) -> int:
    """Make the next version of a keyring."""
    changes = {
        role: rotate.RoleChange(getattr(args, role.value), getattr(args, f"add_{role.value}"), getattr(args, f"{role.value}_threshold"))
        for role in RoleName
    }
    signers = load_signers(args.keys, passphrase_file=args.passphrase_file, sign_with=args.sign_with)
    # The version before too: devices need every version.
    spared = [args.old, *args.keys, *(path for change in changes.values() for path in (*change.keys, *change.add))]
    check_spares(args.output, spared)
    done = rotate.rotate(args.old, args.output, changes, args.revoke, signers)
    return _report(args, str(args.output), done)


def sign(args: argparse.Namespace) -> int:
    """Add signatures to a keyring."""
    signers = load_signers(args.keys, passphrase_file=args.passphrase_file, sign_with=args.sign_with)
    done = rotate.add_signatures(args.keyring, args.previous, signers)
    return _report(args, str(args.keyring), done)


def show(args: argparse.Namespace) -> int:
    """Show keyrings before they are signed or trusted; nothing is verified but what has signed them."""
    frames = rotation.split(b"".join(keyrings.read(path) for path in args.files))
    if not frames:
        raise ConfigError("there is no keyring in the files")
    documents: list[dict[str, object]] = []
    lines: list[str] = []
    before: Keyring | None = None
    for frame in frames:
        ring = keyring_format.decode(frame)
        counted = keyrings.tallies(ring, before)
        documents.append(_document(ring, counted))
        lines += _lines(ring, counted, "name its file in front of this one")
        before = ring
    say(args, {"keyrings": documents}, "\n".join(lines))
    return 0


def _report(args: argparse.Namespace, name: str, done: rotate.Signing) -> int:
    say(args, {"file": name} | _document(done.ring, done.tallies), "\n".join([f"{name}:", *_lines(done.ring, done.tallies)]))
    return 0


def _document(ring: Keyring, counted: tuple[Tally, ...]) -> dict[str, object]:
    return {
        "version": ring.version,
        "roles": describe_roles(ring),
        "signed_by": [signature.key_id(item.public_key) for item in ring.signatures],
        "root_signatures": [{"version": tally.version, "have": tally.have, "need": tally.need} for tally in counted],
        # None: what the version before says is not known.
        "complete": False if any(tally.lacks for tally in counted) else True if _all_counted(ring, counted) else None,
    }


def _lines(ring: Keyring, counted: tuple[Tally, ...], hint: str = "name it with --previous") -> list[str]:
    lines = [f"keyring version {ring.version}", *role_lines(ring)]
    for tally in counted:
        after = f", {tally.lacks} still missing" if tally.lacks else ""
        lines.append(f"  signed by {tally.have} of version {tally.version}'s root keys, {tally.need} needed{after}")
    if not _all_counted(ring, counted):
        lines.append(f"  version {ring.version - 1}'s signatures are not counted: {hint}")
    return lines


def _all_counted(ring: Keyring, counted: tuple[Tally, ...]) -> bool:
    return ring.version == 1 or len(counted) == 2
