"""Keys of those who can read a sealed bundle: X25519, in the same kinds of files as the keys that sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from abupdate.errors import ConfigError, Refused
from abupdate.formats import keyfile, sealing
from abupdate.host import keys
from abupdate.model import Sealing

if TYPE_CHECKING:
    from abupdate.formats.contentkey import ContentKey, Identity


@dataclass(frozen=True, slots=True)
class Seal:
    """What a bundle is sealed with: the key for its chunks, and what the manifest says of it."""

    sealing: Sealing
    key: ContentKey


def generate(name: Path, *, passphrase: bytes | None = None, test: bool = False) -> tuple[Path, Path, Identity]:
    """Make a key pair NAME.pem (0600) and NAME.pub (0644). Raises ConfigError when one of them exists or the folder is missing."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from abupdate.formats.contentkey import Identity

    key = X25519PrivateKey.generate()
    private_path, public_path = keys.write_pair(name, key, passphrase=passphrase, test=test)
    return private_path, public_path, Identity(key, test=test)


def load_public(path: Path) -> bytes:
    """The raw public key of a .pub file. Raises ConfigError when it is not an X25519 public key, or an unsafe one."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    _, pem = keys.split(path)
    if not keyfile.is_public(pem):
        raise ConfigError(f"{path} is not a public key", "give the .pub file that `abupdate keys generate --recipient` made")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a public key") from error
    if not isinstance(key, X25519PublicKey):
        raise ConfigError(f"{path} is not an X25519 key", "make one with `abupdate keys generate --recipient`")
    raw = key.public_bytes_raw()
    try:
        sealing.check_public_key(raw, "its key")
    except Refused as error:
        raise ConfigError(f"{path}: {error.message}", error.hint) from error
    return raw


def load_identity(path: Path, passphrase: bytes | None = None) -> Identity:
    """Read a .pem file.

    Raises ConfigError: not an X25519 private key, passphrase missing or wrong, or readable by others (test keys excepted).
    """
    from abupdate.formats.contentkey import parse_identity

    identity = parse_identity(keys.read(path), str(path), passphrase)
    if not identity.test:
        keys.check_private_mode(path)
    return identity


def seal_for(paths: Sequence[Path]) -> Seal | None:
    """Seal for the keys in .pub files; None where there are none. Raises ConfigError, also where a key comes twice or they are too many."""
    if not paths:
        return None
    from abupdate.formats import contentkey

    try:
        return Seal(*contentkey.seal_for([load_public(path) for path in paths]))
    except Refused as error:
        raise ConfigError(error.message, error.hint) from error
