"""Arguments of the verbs that make and look at bundles and keys. Imports nothing that costs time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

ROLES = ("root", "release", "security", "admin")


def add(subparsers: Subparsers) -> None:
    """Declare `info`, `bundle` and `keys`; each sets `handler` to `module:function`."""
    _add_info(subparsers)
    _add_bundle(subparsers)
    _add_keys(subparsers)


def _add_info(subparsers: Subparsers) -> None:
    info = subparsers.add_parser("info", help="show what a bundle holds and who signed it")
    info.add_argument("bundle", metavar="BUNDLE", help="a path, or - for standard input")
    info.add_argument("--keyring", type=Path, metavar="FILE", help="say whether this keyring accepts it (exit 3 when not)")
    info.set_defaults(handler="abupdate.cli.info:show")
    _add_json(info)


def _add_bundle(subparsers: Subparsers) -> None:
    verbs = subparsers.add_parser("bundle", help="create, sign and unpack bundles").add_subparsers(
        title="verbs", dest="bundle_verb", required=True, metavar="VERB"
    )
    create = verbs.add_parser("create", help="build a bundle from a SPEC.toml")
    create.add_argument("spec", type=Path, metavar="SPEC.toml")
    create.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    create.add_argument("--level", type=int, metavar="N", help="zstd level, 1 to 22, instead of the SPEC's (which is 15 by default)")
    create.add_argument(
        "--recipient",
        dest="recipients",
        type=Path,
        action="append",
        default=[],
        metavar="KEY.pub",
        help="encrypt the payload for this X25519 key; may be repeated",
    )
    _add_chain(create)
    _add_signing(create, "--key")
    create.set_defaults(handler="abupdate.cli.bundle:create")
    _add_json(create)
    sign = verbs.add_parser("sign", help="add a signature to a bundle, or replace its keyring chain")
    sign.add_argument("bundle", type=Path, metavar="BUNDLE")
    _add_chain(sign)
    _add_signing(sign, "--key", required=False)
    sign.set_defaults(handler="abupdate.cli.bundle:sign")
    _add_json(sign)
    extract = verbs.add_parser("extract", help="write a bundle's images to files, verified")
    extract.add_argument("bundle", type=Path, metavar="BUNDLE")
    extract.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    extract.add_argument("--keyring", type=Path, metavar="FILE", help="refuse a bundle that this keyring does not accept")
    extract.add_argument("--identity", type=Path, metavar="KEY.pem", help="opens a bundle that is sealed for this key")
    extract.add_argument("--passphrase-file", type=Path, metavar="FILE", help="its first line opens the encrypted key of --identity")
    extract.set_defaults(handler="abupdate.cli.bundle:extract")
    _add_json(extract)


def _add_keys(subparsers: Subparsers) -> None:
    verbs = subparsers.add_parser("keys", help="make keys and keyrings").add_subparsers(
        title="verbs", dest="keys_verb", required=True, metavar="VERB"
    )
    generate = verbs.add_parser("generate", help="make a key pair NAME.pem and NAME.pub")
    generate.add_argument("name", type=Path, metavar="NAME", help="may be a path")
    generate.add_argument("--passphrase-file", type=Path, metavar="FILE", help="encrypt the private key with the file's first line")
    generate.add_argument("--recipient", action="store_true", help="an X25519 key that opens sealed bundles, not one that signs")
    generate.add_argument("--test", action="store_true", help="mark the key as a test key, which devices refuse")
    generate.set_defaults(handler="abupdate.cli.keys:generate")
    _add_json(generate)
    keyring = verbs.add_parser("keyring", help="make a signed keyring from public keys")
    keyring.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    keyring.add_argument("--version", type=int, required=True, metavar="N", dest="keyring_version")
    for role in ROLES:
        required = role in ("root", "release")
        keyring.add_argument(f"--{role}", type=Path, action="append", default=[], required=required, metavar="KEY.pub")
        keyring.add_argument(f"--{role}-threshold", type=int, metavar="N", help="how many distinct keys must sign (1)")
    keyring.add_argument("--partial", action="store_true", help="too few root keys sign it now: `keys sign` adds the others")
    _add_signing(keyring, "--sign")
    keyring.set_defaults(handler="abupdate.cli.keys:keyring")
    _add_json(keyring)
    rotate = verbs.add_parser("rotate", help="make the next version of a keyring; what is not given stays as it is")
    rotate.add_argument("old", type=Path, metavar="OLD.abk", help="a keyring, or a chain whose last version counts")
    rotate.add_argument("-o", "--output", type=Path, required=True, metavar="NEW.abk")
    for role in ROLES:
        rotate.add_argument(f"--{role}", type=Path, action="append", default=[], metavar="KEY.pub", help="instead of the role's keys")
        rotate.add_argument(f"--add-{role}", type=Path, action="append", default=[], metavar="KEY.pub", help="beside the role's keys")
        rotate.add_argument(f"--{role}-threshold", type=int, metavar="N", help="how many distinct keys must sign")
    rotate.add_argument("--revoke", action="append", default=[], metavar="KEY", help="a .pub file or a key id: out of every role")
    _add_signing(rotate, "--sign", required=False)
    rotate.set_defaults(handler="abupdate.cli.keys:rotate_keyring")
    _add_json(rotate)
    sign = verbs.add_parser("sign", help="add root signatures to a keyring")
    sign.add_argument("keyring", type=Path, metavar="KEYRING.abk")
    sign.add_argument("--previous", type=Path, metavar="OLD.abk", help="the version before, whose root keys must sign too")
    _add_signing(sign, "--key")
    sign.set_defaults(handler="abupdate.cli.keys:sign")
    _add_json(sign)
    show = verbs.add_parser("show", help="what keyrings hold, and which signatures are still missing")
    show.add_argument("files", type=Path, nargs="+", metavar="FILE.abk", help="keyrings or chains, oldest first")
    show.set_defaults(handler="abupdate.cli.keys:show")
    _add_json(show)


def _add_json(parser: argparse.ArgumentParser) -> None:
    """Accepted after the verb too, where people write it."""
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_chain(parser: argparse.ArgumentParser) -> None:
    text = "every version of the keyring, oldest first: keyrings or chains; may be repeated"
    parser.add_argument("--chain", type=Path, action="append", default=[], metavar="FILE.abk", help=text)


def _add_signing(parser: argparse.ArgumentParser, option: str, *, required: bool = True) -> None:
    parser.add_argument(
        option,
        dest="keys",
        type=Path,
        action="append",
        default=[],
        required=required,
        metavar="KEY.pem",
        help="sign with it; may be repeated",
    )
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="its first line opens the encrypted ones of the keys")
    parser.add_argument(
        "--sign-with", metavar="CMD", help="a command signs for the keys that are given as .pub: message on stdin, raw signature on stdout"
    )
