"""The content key of a sealed bundle: wrapped for its recipients, unwrapped by one of them, used to seal and open chunks.

The bytes are specified in bundle.py. Only who meets a sealed bundle imports this module, since the library costs 30 ms.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from abupdate.errors import ConfigError, Refused
from abupdate.formats import keyfile
from abupdate.formats.sealing import MAX_RECIPIENTS, NONCE_BYTES, SEAL_ID_BYTES, check_public_key, names
from abupdate.formats.signature import KEY_ID_BYTES
from abupdate.model import Chunk, Recipient, Sealing

_KEY_BYTES = 32
_WRAP = b"abupdate seal 1 wrap\x00"
_CHUNK = b"abupdate seal 1 chunk\x00"
# The wrap key is made for one message.
_NO_NONCE = bytes(NONCE_BYTES)


def key_id(public_key: bytes) -> bytes:
    """What a recipient is called by: 8 bytes."""
    return hashlib.sha256(public_key).digest()[:KEY_ID_BYTES]


class Identity:
    """A recipient: an X25519 private key. test: marked as made for tests."""

    def __init__(self, private: X25519PrivateKey, *, test: bool = False) -> None:
        self._private = private
        self.test = test
        self.public_key = private.public_key().public_bytes_raw()
        self.key_id = key_id(self.public_key)

    def unwrap(self, sealing: Sealing, wrapped_key: bytes) -> bytes:
        """The content key that was wrapped for this identity. Raises Refused."""
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(sealing.ephemeral))
            cipher = _cipher(_wrap_key(shared, sealing.seal_id, sealing.ephemeral, self.public_key))
            return cipher.decrypt(_NO_NONCE, wrapped_key, None)
        except (InvalidTag, ValueError) as error:
            # ValueError: the shared secret is zero. `decode` refuses such keys before; the library does again.
            message = f"the bundle's content key does not open with key {self.key_id.hex()}, which it names"
            raise Refused(message, "the bundle was built wrongly: get another one") from error


class ImageCipher:
    """Seals and opens the chunks of one image (codec.Opener). Several threads may use one object."""

    def __init__(self, key: bytes, seal_id: bytes, image: str) -> None:
        self._key = key
        name = image.encode()
        self._context = _CHUNK + seal_id + bytes([len(name)]) + name

    def seal(self, chunk: Chunk, stored: bytes) -> bytes:
        """What is stored for a chunk, made from what would be stored without sealing: 28 bytes longer, other bytes every time.

        Of the chunk only offset, size and sha256 are looked at.
        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher(chunk).encrypt(nonce, stored, None)

    def open(self, chunk: Chunk, sealed: memoryview) -> bytes:
        """What would be stored without sealing. Raises Refused where it was not sealed for this very place in this very bundle."""
        try:
            return self._cipher(chunk).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        except (InvalidTag, ValueError) as error:
            raise Refused(f"the chunk at byte {chunk.offset} was not sealed for its place", "the bundle was built wrongly") from error

    def _cipher(self, chunk: Chunk) -> ChaCha20Poly1305:
        place = struct.pack("<QI", chunk.offset, chunk.size) + chunk.sha256
        return _cipher(HKDFExpand(SHA256(), _KEY_BYTES, self._context + place).derive(self._key))


class ContentKey:
    """The key that all chunks of one bundle are sealed under."""

    def __init__(self, key: bytes, seal_id: bytes) -> None:
        self._key = key
        self._seal_id = seal_id

    def image(self, name: str) -> ImageCipher:
        """The cipher for an image's chunks."""
        return ImageCipher(self._key, self._seal_id, name)


def seal_for(public_keys: Sequence[bytes]) -> tuple[Sealing, ContentKey]:
    """A fresh content key, wrapped for raw X25519 public keys in whatever order.

    Raises Refused: no key or more than 512, an unsafe one, one that comes twice.
    """
    if not 1 <= len(public_keys) <= MAX_RECIPIENTS:
        raise Refused(f"{len(public_keys)} recipients are not between 1 and {MAX_RECIPIENTS}", "one key may be shared by many devices")
    if len({key_id(public_key) for public_key in public_keys}) != len(public_keys):
        raise Refused("a recipient is named twice")
    content, seal_id = os.urandom(_KEY_BYTES), os.urandom(SEAL_ID_BYTES)
    private = X25519PrivateKey.generate()
    ephemeral = private.public_key().public_bytes_raw()
    recipients = []
    for public_key in sorted(public_keys, key=key_id):
        check_public_key(public_key, f"recipient {key_id(public_key).hex()}")
        shared = private.exchange(X25519PublicKey.from_public_bytes(public_key))
        wrapped = _cipher(_wrap_key(shared, seal_id, ephemeral, public_key)).encrypt(_NO_NONCE, content, None)
        recipients.append(Recipient(key_id(public_key), wrapped))
    return Sealing(seal_id, ephemeral, tuple(recipients)), ContentKey(content, seal_id)


def unseal(sealing: Sealing, identities: Sequence[Identity]) -> ContentKey:
    """The content key, by the first of the identities that the bundle is sealed for. Raises Refused where it is for none of them."""
    wrapped = {recipient.key_id: recipient.wrapped_key for recipient in sealing.recipients}
    for identity in identities:
        if identity.key_id in wrapped:
            return ContentKey(identity.unwrap(sealing, wrapped[identity.key_id]), sealing.seal_id)
    mine = names(identity.key_id for identity in identities)
    raise Refused(
        f"the bundle is sealed for {names(wrapped)}; keys here: {mine}",
        "build it with --recipient for one of them; [encryption] keys names a device's",
    )


def parse_identity(data: bytes, where: str, passphrase: bytes | None = None) -> Identity:
    """Read a PEM file (PKCS#8). Raises ConfigError, which names `where`: no X25519 private key, passphrase missing or wrong."""
    test, pem = keyfile.split(data)
    if keyfile.is_public(pem):
        raise ConfigError(f"{where} is a public key", "the private half opens what is sealed for it")
    encrypted = keyfile.is_encrypted(pem)
    if encrypted and passphrase is None:
        raise ConfigError(f"{where} is encrypted", "a device's key must not be; elsewhere --passphrase-file opens it")
    try:
        private = load_pem_private_key(pem, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{where} is not a private key" + (", or the passphrase is wrong" if encrypted else "")) from error
    if not isinstance(private, X25519PrivateKey):
        raise ConfigError(f"{where} is not an X25519 key", "make one with `abupdate keys generate --recipient`")
    return Identity(private, test=test)


def _wrap_key(shared: bytes, seal_id: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    return HKDF(SHA256(), _KEY_BYTES, salt=seal_id, info=_WRAP + ephemeral + recipient).derive(shared)


def _cipher(key: bytes) -> ChaCha20Poly1305:
    try:
        return ChaCha20Poly1305(key)
    except UnsupportedAlgorithm as error:
        raise ConfigError("this machine's OpenSSL has no ChaCha20-Poly1305", "sealed bundles need it; is it in FIPS mode?") from error
