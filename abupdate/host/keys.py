"""Key files on the build host: PEM, PKCS#8 for the private half, SubjectPublicKeyInfo for the public one. The keys that sign: Ed25519.

A test key carries a mark in both its files (formats/keyfile.py). The mark goes with the public key into keyrings, and devices
refuse it there unless they are told otherwise.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from abupdate.errors import ConfigError, Failed, Refused
from abupdate.formats import keyfile, signature
from abupdate.host.atomic import output, pwrite_all
from abupdate.model import PublicKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey


# What the library takes.
MAX_PASSPHRASE_BYTES = 1023


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key that is ready to sign, and its public half."""

    private: Ed25519PrivateKey
    public: PublicKey

    def sign(self, message: bytes) -> bytes:
        """The signature (64 bytes) over a message made by `signature.message`."""
        return self.private.sign(message)


def generate(name: Path, *, passphrase: bytes | None = None, test: bool = False) -> tuple[Path, Path, PublicKey]:
    """Make a key pair NAME.pem (0600) and NAME.pub (0644); returns the two paths and the public key.

    Raises ConfigError when one of them exists or the folder is missing.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private_path, public_path = write_pair(name, key, passphrase=passphrase, test=test)
    return private_path, public_path, PublicKey(key.public_key().public_bytes_raw(), test)


def write_pair(name: Path, key: Ed25519PrivateKey | X25519PrivateKey, *, passphrase: bytes | None, test: bool) -> tuple[Path, Path]:
    """Write a key pair NAME.pem (0600) and NAME.pub (0644); returns the two paths. Raises ConfigError as `generate` does."""
    from cryptography.hazmat.primitives import serialization

    if name.name in ("", ".."):
        raise ConfigError(f"{name} is a folder", "name the key, as in keys/release")
    private_path, public_path = (name.with_name(name.name + suffix) for suffix in (".pem", ".pub"))
    for path in (private_path, public_path):
        if os.path.lexists(path):
            raise ConfigError(f"{path} exists", "choose another name; a key that is overwritten is lost")
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    mark = keyfile.TEST_MARK + b"\n" if test else b""
    with output(private_path, mode=0o600, replace=False) as fd:
        pwrite_all(fd, mark + private, 0)
    try:
        with output(public_path, replace=False) as fd:
            pwrite_all(fd, mark + public, 0)
    except BaseException:
        # Half a pair would only stand in the way of the next try.
        private_path.unlink()
        raise
    return private_path, public_path


def is_public(path: Path) -> bool:
    """True where a key file holds a public key."""
    return keyfile.is_public(keyfile.split(read(path))[1])


def load_public(path: Path) -> PublicKey:
    """Read a .pub file. Raises ConfigError when it is not an Ed25519 public key, or an unsafe one."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    test, pem = split(path)
    if not keyfile.is_public(pem):
        raise ConfigError(f"{path} is not a public key", "give the .pub file that `abupdate keys generate` made")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is not an Ed25519 key", "make one with `abupdate keys generate`")
    raw = key.public_bytes_raw()
    try:
        signature.check_public_key(raw)
    except Refused as error:
        raise ConfigError(f"{path}: {error.message}", error.hint) from error
    return PublicKey(raw, test)


def load_private(path: Path, passphrase: bytes | None = None) -> KeyPair:
    """Read a .pem file; `passphrase` is used only where the file is encrypted.

    Raises ConfigError: not an Ed25519 private key, passphrase missing or wrong, or readable by others (test keys excepted).
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    test, pem = split(path)
    if keyfile.is_public(pem):
        raise ConfigError(f"{path} is a public key", "give the .pem file, or --sign-with for a key that is held elsewhere")
    if not test:
        check_private_mode(path)
    encrypted = keyfile.is_encrypted(pem)
    if encrypted and passphrase is None:
        raise ConfigError(f"{path} is encrypted", "give its passphrase with --passphrase-file")
    try:
        key = load_pem_private_key(pem, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a private key" + (", or the passphrase is wrong" if encrypted else "")) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key", "make one with `abupdate keys generate`")
    return KeyPair(key, PublicKey(key.public_key().public_bytes_raw(), test))


def read_passphrase(path: Path) -> bytes:
    """The first line of a passphrase file. Raises ConfigError where it is empty or too long, or readable by others."""
    data = read(path)
    check_private_mode(path)
    line = data.split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        raise ConfigError(f"{path} holds no passphrase", "put it into the first line")
    if len(line) > MAX_PASSPHRASE_BYTES:
        raise ConfigError(f"the first line of {path} has more than {MAX_PASSPHRASE_BYTES} bytes", "is it the right file?")
    return line


def check_private_mode(path: Path) -> None:
    """Raise ConfigError where group or others may read a secret."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path} can be read by others", f"chmod 600 {path}")


def split(path: Path) -> tuple[bool, bytes]:
    """Read a key file: whether it carries the mark of test keys, and its PEM part. Raises ConfigError where there is none."""
    test, pem = keyfile.split(read(path))
    if not pem:
        raise ConfigError(f"{path} is not a key", "keys are PEM files; `abupdate keys generate` makes them")
    return test, pem


def read(path: Path) -> bytes:
    """The bytes of a key file. Raises ConfigError where it cannot be read or is too large for one, Failed for I/O errors."""
    try:
        with path.open("rb") as file:
            data = file.read(keyfile.MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except OSError as error:
        blame = Failed if error.errno == errno.EIO else ConfigError
        raise blame(f"cannot read {path}: {error.strerror}") from error
    if len(data) > keyfile.MAX_BYTES:
        raise ConfigError(f"{path} is too large for a key")
    return data
