"""Keyrings for tests, made from keys that are derived from their names: the same bytes in every run."""

from __future__ import annotations

import hashlib
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from abupdate.formats import keyring, signature
from abupdate.formats.signature import Domain
from abupdate.host.keys import KeyPair
from abupdate.host.signing import sign_all
from abupdate.model import Keyring, PublicKey, Role, RoleName


@cache
def pair(name: str) -> KeyPair:
    """The key pair of a name."""
    private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
    return KeyPair(private, PublicKey(private.public_key().public_bytes_raw()))


def body_of(version: int, root: tuple[str, ...], threshold: int = 1, *, release: str = "release-1", test: str = "") -> bytes:
    """The body of a keyring with these root keys and one release key. test: the key that is marked as a test key."""

    def role(name: RoleName, number: int, names: tuple[str, ...]) -> Role:
        return Role(name, number, tuple(PublicKey(pair(key).public.raw, key == test) for key in names))

    roles = {RoleName.ROOT: role(RoleName.ROOT, threshold, root), RoleName.RELEASE: role(RoleName.RELEASE, 1, (release,))}
    return keyring.encode_body(version, roles)


def signed(body: bytes, *names: str) -> bytes:
    """The file of a body that these keys signed."""
    return keyring.build(body, sign_all([pair(name) for name in names], signature.message(Domain.KEYRING, body)))


def one(version: int, *names: str, root: tuple[str, ...] = ("root",), release: str = "release-1") -> bytes:
    """A keyring of the simplest sort, signed by its root keys or by these."""
    return signed(body_of(version, root, release=release), *(names or root))


def trusted(data: bytes) -> Keyring:
    """What a device does with a keyring that it has kept."""
    ring = keyring.parse(data)
    keyring.check_self_signed(ring)
    return ring
