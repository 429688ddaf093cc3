"""The verbs `bundle create`, `bundle sign` and `bundle extract`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from abupdate.cli.output import say
from abupdate.cli.trust import load_keyring
from abupdate.errors import ConfigError
from abupdate.formats import rotation, signature
from abupdate.formats.bundle import decode
from abupdate.formats.sealing import names
from abupdate.formats.trusted import opener
from abupdate.host import create as host_create
from abupdate.host import extract as host_extract
from abupdate.host import keys, recipients, resign, spec
from abupdate.host.atomic import check_spares
from abupdate.host.keyrings import load_chain
from abupdate.host.signing import load_signers


def create(args: argparse.Namespace) -> int:
    """Build a bundle."""
    if args.level is not None and not 1 <= args.level <= 22:
        raise ConfigError(f"--level {args.level} is not between 1 and 22")
    signers = load_signers(args.keys, passphrase_file=args.passphrase_file, sign_with=args.sign_with)
    recipe = spec.load(args.spec, level=args.level)
    if args.chain:
        recipe = replace(recipe, chain=load_chain(args.chain))
    spared = [args.spec, *args.keys, *args.recipients, *recipe.recipients, *args.chain, *filter(None, [args.passphrase_file])]
    check_spares(args.output, spared)
    seal = recipients.seal_for((*recipe.recipients, *args.recipients))
    manifest = host_create.create(recipe, args.output, signers, _progress(args), seal=seal)
    size_bytes = args.output.stat().st_size
    sealed_for = [recipient.key_id for recipient in manifest.sealing.recipients] if manifest.sealing else None
    document = {
        "file": str(args.output),
        "bundle": manifest.bundle_id.hex(),
        "version": manifest.version,
        "size_bytes": size_bytes,
        "signed_by": sorted(signature.key_id(signer.public.raw) for signer in signers),
        "sealed_for": [key_id.hex() for key_id in sealed_for] if sealed_for else None,
    }
    text = f"{args.output}: {manifest.compatible} {manifest.version}, {size_bytes} bytes, bundle {manifest.bundle_id.hex()}"
    say(args, document, text + (f", sealed for {names(sealed_for)}" if sealed_for else ""))
    return 0


def sign(args: argparse.Namespace) -> int:
    """Add signatures."""
    if not args.keys and not args.chain:
        raise ConfigError("nothing to do: neither --key nor --chain is given", "see `abupdate bundle sign --help`")
    signers = load_signers(args.keys, passphrase_file=args.passphrase_file, sign_with=args.sign_with)
    signed = resign.add_signatures(args.bundle, signers, load_chain(args.chain) if args.chain else None)
    signed_by = [signature.key_id(item.public_key) for item in signed.signatures]
    document: dict[str, object] = {"file": str(args.bundle), "bundle": signed.manifest.bundle_id.hex(), "signed_by": signed_by}
    document["chain"] = [frame.version for frame in rotation.split(signed.chain)]
    say(args, document, f"{args.bundle}: signed by {', '.join(signed_by) or 'nobody'}")
    return 0


def extract(args: argparse.Namespace) -> int:
    """Unpack the images."""
    checked = args.keyring is not None
    open_ = opener(load_keyring(args.keyring)) if checked else decode
    identity = None
    if args.identity is not None:
        passphrase = keys.read_passphrase(args.passphrase_file) if args.passphrase_file else None
        identity = recipients.load_identity(args.identity, passphrase)
    written: dict[str, Path] = host_extract.extract(args.bundle, args.output, open_, identity=identity)
    if not checked and not args.quiet:
        print("the signatures were not checked; --keyring does that", file=sys.stderr)
    document = {"images": {name: str(path) for name, path in written.items()}, "signatures_checked": checked}
    say(args, document, "\n".join(f"{name}: {path}" for name, path in written.items()))
    return 0


def _progress(args: argparse.Namespace) -> Callable[[int, int], None] | None:
    """A percentage on standard error where a person looks on."""
    if args.quiet or not sys.stderr.isatty():
        return None
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // total if total else 100
        if percent != shown:
            shown = percent
            print(f"\r{percent:3d} %", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
