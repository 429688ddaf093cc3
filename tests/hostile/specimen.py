"""The bundle that hostile tests take to pieces: three images, chunks of every sort, two signers who are both needed, under 3 KiB."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from abupdate.formats import contentkey, keyring, signature
from abupdate.formats.contentkey import Identity
from abupdate.host.create import create
from abupdate.host.keys import KeyPair
from abupdate.host.recipients import Seal
from abupdate.host.signing import sign_all
from abupdate.host.spec import load
from abupdate.model import PublicKey, Role, RoleName

BLOCK_BYTES = 4096
COMPATIBLE, REVISION = "acme", "r3"


def pair(name: str) -> KeyPair:
    """A key pair that comes from its name."""
    private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
    return KeyPair(private, PublicKey(private.public_key().public_bytes_raw()))


def ring(version: int = 1, roots: tuple[str, ...] = ("root",), signers: tuple[str, ...] = ("root",)) -> bytes:
    """A keyring file: one root key of those given is enough, both release keys are needed."""
    roles = {
        RoleName.ROOT: Role(RoleName.ROOT, 1, tuple(pair(name).public for name in roots)),
        RoleName.RELEASE: Role(RoleName.RELEASE, 2, (pair("release-1").public, pair("release-2").public)),
        RoleName.SECURITY: Role(RoleName.SECURITY, 1, (pair("security").public,)),
    }
    body = keyring.encode_body(version, roles)
    return keyring.build(body, sign_all([pair(name) for name in signers], signature.message(signature.Domain.KEYRING, body)))


@dataclass(frozen=True, slots=True)
class Specimen:
    """A bundle and what it brings onto a slot."""

    data: bytes
    images: dict[str, bytes]


def images(seed: int) -> dict[str, bytes]:
    """rootfs: text (zstd), zeros, random bytes (raw). boot: codec none, text, zeros, a short end. modem: one short chunk."""
    source = random.Random(seed)
    text = b"".join(b"line %d of %d\n" % (number % 10, seed) for number in range(400))
    rootfs = text[:BLOCK_BYTES] + bytes(BLOCK_BYTES) + source.randbytes(300)
    return {"rootfs": rootfs, "boot": bytes(BLOCK_BYTES) + source.randbytes(200), "modem": source.randbytes(100)}


def build(
    folder: Path,
    *,
    seed: int = 1,
    counter: int = 7,
    signers: tuple[str, ...] = ("release-1", "release-2"),
    chain: bytes = b"",
    seal: Seal | None = None,
    contents: dict[str, bytes] | None = None,
) -> Specimen:
    """Make the bundle with the real builder. contents: other images than those of the seed."""
    contents = contents or images(seed)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "chain.abk").write_bytes(chain)
    spec = folder / "spec.toml"
    spec.write_text(
        f'compatible = "{COMPATIBLE}"\nversion = "{seed}.2.0"\nsecurity_counter = {counter}\nhardware_revisions = ["r3", "r4"]\n'
        f"chunk_bytes = {BLOCK_BYTES}\nlevel = 19\n"
        + ('chain = ["chain.abk"]\n' if chain else "")
        + '[images.rootfs]\nfile = "rootfs"\n[images.boot]\nfile = "boot"\ncodec = "none"\n[images.modem]\nfile = "modem"\n'
    )
    path = folder / "specimen.abu"
    create(load(spec), path, [pair(name) for name in signers], seal=seal)
    return Specimen(path.read_bytes(), contents)


def device_key() -> X25519PrivateKey:
    """The key of the device that can read the sealed variant."""
    return X25519PrivateKey.from_private_bytes(hashlib.sha256(b"device").digest())


def variant(kind: str, folder: Path, *, seed: int = 1) -> Specimen:
    """`plain`, `chain` (with versions 1 and 2 of the keyring) or `sealed`."""
    chain = ring() + ring(2, ("root", "root-2"), ("root", "root-2")) if kind == "chain" else b""
    seal = Seal(*contentkey.seal_for([Identity(device_key()).public_key])) if kind == "sealed" else None
    return build(folder, seed=seed, chain=chain, seal=seal)
