"""Keys that are the same in every run, a keyring, and a small bundle of two images with two signers, made by the real builder."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from abupdate.formats import contentkey, keyring, signature
from abupdate.formats.contentkey import Identity
from abupdate.host.create import create
from abupdate.host.keys import KeyPair
from abupdate.host.recipients import Seal
from abupdate.host.signing import sign_all
from abupdate.host.spec import load
from abupdate.model import Keyring, PublicKey, Role, RoleName

NAMES = ("root", "release-1", "release-2", "security", "admin", "stranger")


@pytest.fixture(scope="session")
def pairs() -> dict[str, KeyPair]:
    """Key pairs by name, derived from the name."""
    made: dict[str, KeyPair] = {}
    for name in NAMES:
        private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        made[name] = KeyPair(private, PublicKey(private.public_key().public_bytes_raw()))
    return made


@pytest.fixture(scope="session")
def ring_bytes(pairs: dict[str, KeyPair]) -> bytes:
    """A keyring: 1 of root, 2 of two release keys, 1 of security, 1 of admin."""
    roles = {
        RoleName.ROOT: Role(RoleName.ROOT, 1, (pairs["root"].public,)),
        RoleName.RELEASE: Role(RoleName.RELEASE, 2, (pairs["release-1"].public, pairs["release-2"].public)),
        RoleName.SECURITY: Role(RoleName.SECURITY, 1, (pairs["security"].public,)),
        RoleName.ADMIN: Role(RoleName.ADMIN, 1, (pairs["admin"].public,)),
    }
    body = keyring.encode_body(1, roles)
    return keyring.build(body, sign_all([pairs["root"]], signature.message(signature.Domain.KEYRING, body)))


@pytest.fixture(scope="session")
def ring(ring_bytes: bytes) -> Keyring:
    """The same, decoded."""
    return keyring.parse(ring_bytes)


@pytest.fixture(scope="session")
def small_images() -> dict[str, bytes]:
    """Images whose 4096-byte chunks are of every sort: random (raw), text (zstd), zeros, a short end."""
    source = random.Random(1)
    text = b"".join(b"line %d\n" % number for number in range(1000))
    return {"rootfs": source.randbytes(4096) + bytes(4096) + text[:8192] + bytes(100), "boot": text[:5000]}


@pytest.fixture(scope="session")
def small_bundle(pairs: dict[str, KeyPair], small_images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole bundle of these images."""
    return build(tmp_path_factory.mktemp("small"), pairs, small_images)


@pytest.fixture(scope="session")
def identities() -> dict[str, Identity]:
    """Recipients by name, derived from the name."""
    names = ("device", "product", "other")
    return {name: Identity(X25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())) for name in names}


@pytest.fixture(scope="session")
def sealed_bundle(
    pairs: dict[str, KeyPair],
    small_images: dict[str, bytes],
    identities: dict[str, Identity],
    tmp_path_factory: pytest.TempPathFactory,
) -> bytes:
    """The same bundle, sealed for `device` and `product`."""
    seal = Seal(*contentkey.seal_for([identities["device"].public_key, identities["product"].public_key]))
    return build(tmp_path_factory.mktemp("sealed"), pairs, small_images, seal)


def build(folder: Path, pairs: dict[str, KeyPair], small_images: dict[str, bytes], seal: Seal | None = None) -> bytes:
    """A bundle of the images, made in the folder."""
    for name, data in small_images.items():
        (folder / name).write_bytes(data)
    spec = folder / "spec.toml"
    spec.write_text(
        'compatible = "acme-gateway"\nversion = "1.2.0"\nsecurity_counter = 7\nhardware_revisions = ["r4", "r3"]\n'
        'description = "two\\nlines"\nmin_updater = "0.1"\nchunk_bytes = 4096\n'
        '[images.rootfs]\nfile = "rootfs"\n[images.boot]\nfile = "boot"\ncodec = "none"\n'
    )
    create(load(spec), folder / "out.abu", [pairs["release-1"], pairs["release-2"]], seal=seal)
    return Path(folder / "out.abu").read_bytes()
