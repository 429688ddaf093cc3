"""What the slots of the simulated device hold: real signed bundles of two images, and the production code that installs and verifies them.

Keys, images and build time are the same in every run and process, so that equal states have equal bytes.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from abupdate import __version__
from abupdate.formats import bundle, signature
from abupdate.host.create import create
from abupdate.host.keys import KeyPair
from abupdate.host.signing import sign_all
from abupdate.host.spec import load
from abupdate.model import Manifest, PublicKey
from abupdate.transfer.admission import Identity
from tests.sim.blocks import Block, Nature
from tests.sim.parts import digest

IMAGES = ("boot", "rootfs")
# Room on a slot's devices, more than the images take: what lies behind them is nobody's business.
PLACES = {"boot": 16384, "rootfs": 45056}
IDENTITY = Identity("sim", "", __version__)


@dataclass(frozen=True)
class Content:
    """One release: its bundle's bytes, what `state_dir` keeps of them (head), and what its images look like on a slot."""

    version: str
    counter: int
    bundle: str
    head: bytes
    data: bytes
    manifest: Manifest
    images: tuple[bytes, ...]
    chain: bytes = b""


def pair(name: str) -> KeyPair:
    """A key pair derived from its name."""
    private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
    return KeyPair(private, PublicKey(private.public_key().public_bytes_raw()))


def _images(number: int) -> dict[str, bytes]:
    """Chunks of every sort: the same in all versions, of this version alone, zeros, text that compresses, a short end."""
    same, own = random.Random("same"), random.Random(number)
    text = b"".join(b"line %d of version %d\n" % (line, number) for line in range(900))
    hole = bytes(8192) if number % 2 == 0 else own.randbytes(8192)
    return {
        "boot": own.randbytes(4096) + same.randbytes(8192),
        "rootfs": own.randbytes(8192) + same.randbytes(8192) + hole + text[:8192] + own.randbytes(100),
    }


@contextmanager
def _frozen_time() -> Iterator[None]:
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    try:
        yield
    finally:
        os.environ.pop("SOURCE_DATE_EPOCH")
        if before is not None:
            os.environ["SOURCE_DATE_EPOCH"] = before


@cache
def release(number: int) -> Content:
    """Version `number`.0 with that security counter, built and signed by the build host's own code."""
    images = _images(number)
    with TemporaryDirectory() as name, _frozen_time():
        folder = Path(name)
        lines = ['compatible = "sim"', f'version = "{number}.0"', f"security_counter = {number}", "chunk_bytes = 8192", "level = 3"]
        for image, data in images.items():
            (folder / image).write_bytes(data)
            lines += [f"[images.{image}]", f'file = "{image}"']
        (folder / "spec.toml").write_text("\n".join(lines))
        create(load(folder / "spec.toml"), folder / "out.abu", [pair("release")])
        data = (folder / "out.abu").read_bytes()
    return _content(data, tuple(images[image] for image in IMAGES))


def resigned(content: Content, key: str, chain: bytes) -> Content:
    """The same release, signed by another key and with a chain of keyrings."""
    old = bundle.parse_stored_head(content.head)
    manifest_bytes = old.signed.manifest_bytes
    block = signature.pack_block(sign_all([pair(key)], signature.message(signature.Domain.BUNDLE, manifest_bytes)))
    payload = content.data[len(content.data) - old.signed.header.payload_bytes :]
    head = bundle.build_head(manifest_bytes, block, len(old.tables.raw), len(payload), chain)
    return _content(head + old.tables.raw + payload, content.images)


def _content(data: bytes, images: tuple[bytes, ...]) -> Content:
    payload_bytes = bundle.HEADER.unpack_from(data)[7]
    head = bundle.parse_stored_head(data[: len(data) - payload_bytes])
    manifest, chain = head.signed.manifest, head.signed.chain
    return Content(manifest.version, manifest.security_counter, manifest.bundle_id.hex(), head.kept, data, manifest, images, chain)


V1, V2, V3 = (release(number) for number in (1, 2, 3))
KNOWN = (V1, V2, V3)


def nature(slot: str, image: str) -> Nature:
    """The device of a slot's image."""
    return Nature(f"{slot}.{image}")


def filled(slot: str, content: Content | None) -> dict[str, Block]:
    """The devices of a slot that holds a release, or rubbish; name of the part -> part."""
    found: dict[str, Block] = {}
    for number, image in enumerate(IMAGES):
        data = content.images[number] if content else b""
        rubbish = random.Random(f"rubbish {image}").randbytes(PLACES[image])
        found[f"{slot}.{image}"] = Block.of(nature(slot, image), data + rubbish[len(data) :])
    return found


@cache
def identify(boot: Block, rootfs: Block) -> Content | None:
    """Which whole release lies on a slot's devices as a program sees it, None: a mix or rubbish."""
    seen = [part.thaw().read(0, len(part.content)) for part in (boot, rootfs)]
    for content in KNOWN:
        if all(data.startswith(image) for data, image in zip(seen, content.images, strict=True)):
            return content
    return None


@cache
def block_key(part: Block) -> bytes:
    """Two disks with the same key hold the same."""
    return digest(part.content)
