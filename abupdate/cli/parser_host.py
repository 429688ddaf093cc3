"""Arguments of the verbs that make and look at bundles and keys. Imports nothing that costs time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from abupdate.cli.arguments import Parser, add_group, add_verb

if TYPE_CHECKING:
    from abupdate.cli.arguments import Verbs

ROLES = ("root", "release", "security", "admin")


def add(verbs: Verbs) -> None:
    """Declare `info`, `bundle` and `keys`; each sets `handler` to `module:function`."""
    add_verb(verbs, "info", "abupdate.cli.info:show", "show what a bundle holds and who signed it", _info)
    add_group(verbs, "bundle", "create, sign and unpack bundles", _bundle)
    add_group(verbs, "keys", "make keys and keyrings", _keys)


def _bundle(verbs: Verbs) -> None:
    add_verb(verbs, "create", "abupdate.cli.bundle:create", "build a bundle from a SPEC.toml", _create)
    add_verb(verbs, "sign", "abupdate.cli.bundle:sign", "add a signature to a bundle, or replace its keyring chain", _sign)
    add_verb(verbs, "extract", "abupdate.cli.bundle:extract", "write a bundle's images to files, verified", _extract)


def _keys(verbs: Verbs) -> None:
    add_verb(verbs, "generate", "abupdate.cli.keys:generate", "make a key pair NAME.pem and NAME.pub", _generate)
    add_verb(verbs, "keyring", "abupdate.cli.keys:keyring", "make a signed keyring from public keys", _keyring)
    text = "make the next version of a keyring; what is not given stays as it is"
    add_verb(verbs, "rotate", "abupdate.cli.keys:rotate_keyring", text, _rotate)
    add_verb(verbs, "sign", "abupdate.cli.keys:sign", "add root signatures to a keyring", _sign_keyring)
    add_verb(verbs, "show", "abupdate.cli.keys:show", "what keyrings hold, and which signatures are still missing", _show)


def _info(info: Parser) -> None:
    info.add_argument("bundle", metavar="BUNDLE", help="a path, or - for standard input")
    info.add_argument("--keyring", type=Path, metavar="FILE", help="say whether this keyring accepts it (exit 3 when not)")


def _create(create: Parser) -> None:
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
    add_signing(create, "--key")


def _sign(sign: Parser) -> None:
    sign.add_argument("bundle", type=Path, metavar="BUNDLE")
    _add_chain(sign)
    add_signing(sign, "--key", required=False)


def _extract(extract: Parser) -> None:
    extract.add_argument("bundle", type=Path, metavar="BUNDLE")
    extract.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    extract.add_argument("--keyring", type=Path, metavar="FILE", help="refuse a bundle that this keyring does not accept")
    extract.add_argument("--identity", type=Path, metavar="KEY.pem", help="opens a bundle that is sealed for this key")
    extract.add_argument("--passphrase-file", type=Path, metavar="FILE", help="its first line opens the encrypted key of --identity")


def _generate(generate: Parser) -> None:
    generate.add_argument("name", type=Path, metavar="NAME", help="may be a path")
    generate.add_argument("--passphrase-file", type=Path, metavar="FILE", help="encrypt the private key with the file's first line")
    generate.add_argument("--recipient", action="store_true", help="an X25519 key that opens sealed bundles, not one that signs")
    generate.add_argument("--test", action="store_true", help="mark the key as a test key, which devices refuse")


def _keyring(keyring: Parser) -> None:
    keyring.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    keyring.add_argument("--version", type=int, required=True, metavar="N", dest="keyring_version")
    for role in ROLES:
        required = role in ("root", "release")
        keyring.add_argument(f"--{role}", type=Path, action="append", default=[], required=required, metavar="KEY.pub")
        keyring.add_argument(f"--{role}-threshold", type=int, metavar="N", help="how many distinct keys must sign (1)")
    keyring.add_argument("--partial", action="store_true", help="too few root keys sign it now: `keys sign` adds the others")
    add_signing(keyring, "--sign")


def _rotate(rotate: Parser) -> None:
    rotate.add_argument("old", type=Path, metavar="OLD.abk", help="a keyring, or a chain whose last version counts")
    rotate.add_argument("-o", "--output", type=Path, required=True, metavar="NEW.abk")
    for role in ROLES:
        rotate.add_argument(f"--{role}", type=Path, action="append", default=[], metavar="KEY.pub", help="instead of the role's keys")
        rotate.add_argument(f"--add-{role}", type=Path, action="append", default=[], metavar="KEY.pub", help="beside the role's keys")
        rotate.add_argument(f"--{role}-threshold", type=int, metavar="N", help="how many distinct keys must sign")
    rotate.add_argument("--revoke", action="append", default=[], metavar="KEY", help="a .pub file or a key id: out of every role")
    add_signing(rotate, "--sign", required=False)


def _sign_keyring(sign: Parser) -> None:
    sign.add_argument("keyring", type=Path, metavar="KEYRING.abk")
    sign.add_argument("--previous", type=Path, metavar="OLD.abk", help="the version before, whose root keys must sign too")
    add_signing(sign, "--key")


def _show(show: Parser) -> None:
    show.add_argument("files", type=Path, nargs="+", metavar="FILE.abk", help="keyrings or chains, oldest first")


def _add_chain(parser: Parser) -> None:
    text = "every version of the keyring, oldest first: keyrings or chains; may be repeated"
    parser.add_argument("--chain", type=Path, action="append", default=[], metavar="FILE.abk", help=text)


def add_signing(parser: Parser, option: str, *, required: bool = True) -> None:
    """Declare who signs: key files under this option, their passphrase, and a command that holds keys elsewhere."""
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
