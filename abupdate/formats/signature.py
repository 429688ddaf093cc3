"""Ed25519 signatures, checked more strictly than the library does, and the block of signatures that files carry.

What is signed is `domain ‖ SHA-256(object)`: a domain string for each kind of object, so that a signature of one kind is
never one of another, and so that an external signer gets one short message. A signature block is a sequence of TLV records
(see tlv.py), tag 1, value `public key (32) ‖ signature (64)`, in strictly ascending order of the values, each public key once.
Keys are compared whole; the key id (first 8 bytes of the key's SHA-256) only names a key to people.

OpenSSL accepts keys and points of small order (with the identity as key and R and with S = 0 ANY message verifies) and keys
that are not canonical. So before the library sees anything: the key's and R's y is below p and not that of one of the 8
points of small order, S is below the group's order L (RFC 8032, 5.1.7), and the signature is not all zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING

from abupdate.errors import Refused
from abupdate.formats import tlv
from abupdate.model import Signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_BLOCK_BYTES = 16 * 1024
KEY_ID_BYTES = 8

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_SIGN_BIT = 1 << 255
# y of the points of order 1, 2, 4 and 8; each but the first two stands for two points (x and -x). Tests derive them from the curve.
_ORDER_8 = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
SMALL_ORDER_Y = frozenset({1, _P - 1, 0, _ORDER_8, _P - _ORDER_8})
_TAG_ED25519 = 0x0001


class Domain(Enum):
    """The kinds of signed objects; the value is what the signed message starts with."""

    BUNDLE = b"abupdate bundle 1\x00"
    KEYRING = b"abupdate keyring 1\x00"
    MEMBERSHIP = b"abupdate membership 1\x00"
    ORDER = b"abupdate order 1\x00"


def message(domain: Domain, data: bytes) -> bytes:
    """The bytes that a signer of `data` (the object's exact encoding) signs."""
    return domain.value + hashlib.sha256(data).digest()


def key_id(public_key: bytes) -> str:
    """The name of a raw public key: 16 hex digits."""
    return hashlib.sha256(public_key).hexdigest()[: 2 * KEY_ID_BYTES]


def _is_safe_point(encoded: bytes) -> bool:
    y = int.from_bytes(encoded, "little") & ~_SIGN_BIT
    return y < _P and y not in SMALL_ORDER_Y


def check_public_key(public_key: bytes) -> None:
    """Refuse a raw public key that no honest signer has: wrong length, not canonical, or of small order."""
    if len(public_key) != KEY_BYTES:
        raise Refused(f"a public key has {len(public_key)} bytes instead of {KEY_BYTES}")
    if not _is_safe_point(public_key):
        raise Refused(f"public key {key_id(public_key)} is not a safe Ed25519 key", "anything may pass under it; make a new one")


class Verifier:
    """A public key (32 bytes, raw) that is checked and loaded once; under one that no honest signer has, nothing verifies."""

    def __init__(self, public_key: bytes) -> None:
        self._raw = public_key if len(public_key) == KEY_BYTES and _is_safe_point(public_key) else b""
        self._loaded: Ed25519PublicKey | None = None

    def verify(self, signature: bytes, signed: bytes) -> bool:
        """True when `signature` (64 bytes) over the message `signed` is by this key, by the strict rules."""
        if not self._raw or len(signature) != SIGNATURE_BYTES or not any(signature):
            return False
        if not _is_safe_point(signature[:32]) or int.from_bytes(signature[32:], "little") >= _L:
            return False
        # Late: the library costs 30 ms, and most verbs verify nothing.
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            if self._loaded is None:
                self._loaded = Ed25519PublicKey.from_public_bytes(self._raw)
            self._loaded.verify(signature, signed)
        except (InvalidSignature, ValueError):
            return False
        return True


def verify(public_key: bytes, signature: bytes, signed: bytes) -> bool:
    """True when `signature` (64 bytes) over the message `signed` is by `public_key` (32 bytes, raw), by the strict rules."""
    return Verifier(public_key).verify(signature, signed)


def signers(signatures: Iterable[Signature], keys: Iterable[bytes], signed: bytes) -> frozenset[bytes]:
    """The distinct public keys out of `keys` that signed the message.

    A signature by a key outside `keys` is passed over; one by a key of `keys` that does not verify is Refused, since
    then the file is not what that signer saw.
    """
    trusted = frozenset(keys)
    good: set[bytes] = set()
    for signature in signatures:
        if signature.public_key not in trusted:
            continue
        if not verify(signature.public_key, signature.value, signed):
            raise Refused(f"the signature by key {key_id(signature.public_key)} is wrong", "the file was changed after it was signed")
        good.add(signature.public_key)
    return frozenset(good)


def pack_block(signatures: Iterable[Signature]) -> bytes:
    """Encode a signature block; the order of the argument does not matter. Raises ValueError when a key comes twice or it is too long."""
    values = sorted(signature.public_key + signature.value for signature in signatures)
    if len({value[:KEY_BYTES] for value in values}) != len(values):
        raise ValueError("two signatures by one key")
    block = tlv.pack((_TAG_ED25519, value) for value in values)
    if len(block) > MAX_BLOCK_BYTES:
        raise ValueError(f"{len(values)} signatures are too many")
    return block


def unpack_block(block: bytes) -> tuple[Signature, ...]:
    """Decode a signature block (bounded by MAX_BLOCK_BYTES). Says nothing about whether they verify. Raises Refused."""
    if len(block) > MAX_BLOCK_BYTES:
        raise Refused(f"the signatures take {len(block)} bytes, more than {MAX_BLOCK_BYTES}")
    values = tlv.unpack(block, {_TAG_ED25519: True}, "the signature block")[_TAG_ED25519]
    for value in values:
        if len(value) != KEY_BYTES + SIGNATURE_BYTES:
            raise Refused(f"a signature has {max(0, len(value) - KEY_BYTES)} bytes instead of {SIGNATURE_BYTES}")
    tlv.ascending([value[:KEY_BYTES] for value in values], "the signatures' keys")
    return tuple(Signature(value[:KEY_BYTES], value[KEY_BYTES:]) for value in values)
