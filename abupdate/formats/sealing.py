"""The part of a manifest that says for whom the payload is encrypted. The bytes are specified in bundle.py; contentkey.py uses them.

Nothing here needs a key or the cryptographic library.
"""

from __future__ import annotations

from collections.abc import Iterable

from abupdate.errors import Refused
from abupdate.formats import tlv
from abupdate.formats.signature import KEY_ID_BYTES
from abupdate.model import Recipient, Sealing

SUITE = 1
SEAL_ID_BYTES = 32
PUBLIC_KEY_BYTES = 32
WRAPPED_BYTES = 32 + 16
# With all else at its limit a manifest of 64 KiB has room for some 800 of 60 bytes; the rest is left for later tags.
MAX_RECIPIENTS = 512
NONCE_BYTES = 12
# What sealing adds to a chunk's stored bytes: the nonce before them, the authenticator behind them.
OVERHEAD_BYTES = NONCE_BYTES + 16

_SUITE, _SEAL_ID, _EPHEMERAL, _RECIPIENT = range(0x0001, 0x0005)
_TAGS = {_SUITE: False, _SEAL_ID: False, _EPHEMERAL: False, _RECIPIENT: True}
_P = 2**255 - 19
# u of the points whose order divides 8, on the curve and on its twist: whatever the private key, the shared secret is zero.
_ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
SMALL_ORDER_U = frozenset({0, 1, _P - 1, *_ORDER_8})


def check_public_key(public_key: bytes, what: str) -> None:
    """Refuse a raw X25519 public key with which everybody would know the shared secret, or that is not canonical."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise Refused(f"{what} has {len(public_key)} bytes instead of {PUBLIC_KEY_BYTES}")
    u = int.from_bytes(public_key, "little")
    if u >= _P or u in SMALL_ORDER_U:
        raise Refused(f"{what} is not a safe X25519 key", "what is sealed for it is open to everybody; make a new one")


def encode(sealing: Sealing) -> bytes:
    """The value of the manifest's tag 0030."""
    records = [
        (_SUITE, bytes([SUITE])),
        (_SEAL_ID, sealing.seal_id),
        (_EPHEMERAL, sealing.ephemeral),
        *((_RECIPIENT, recipient.key_id + recipient.wrapped_key) for recipient in sealing.recipients),
    ]
    return tlv.pack(records)


def decode(value: bytes) -> Sealing:
    """Decode the value of the manifest's tag 0030. Raises Refused."""
    what = "the manifest's sealing"
    found = tlv.unpack(value, _TAGS, what)
    suite = tlv.unsigned(tlv.one(found, _SUITE, what), 1, 255, f"{what}'s suite")
    if suite != SUITE:
        raise tlv.newer(f"{what} (suite {suite})")
    seal_id = tlv.one(found, _SEAL_ID, what)
    if len(seal_id) != SEAL_ID_BYTES:
        raise Refused(f"the seal id has {len(seal_id)} bytes instead of {SEAL_ID_BYTES}")
    ephemeral = tlv.one(found, _EPHEMERAL, what)
    check_public_key(ephemeral, f"{what}'s ephemeral key")
    values = found[_RECIPIENT]
    if not 1 <= len(values) <= MAX_RECIPIENTS:
        raise Refused(f"the payload is sealed for {len(values)} recipients instead of 1 to {MAX_RECIPIENTS}")
    for recipient in values:
        if len(recipient) != KEY_ID_BYTES + WRAPPED_BYTES:
            raise Refused(f"a recipient has {len(recipient)} bytes instead of {KEY_ID_BYTES + WRAPPED_BYTES}")
    tlv.ascending([recipient[:KEY_ID_BYTES] for recipient in values], "the recipients")
    return Sealing(seal_id, ephemeral, tuple(Recipient(item[:KEY_ID_BYTES], item[KEY_ID_BYTES:]) for item in values))


def names(ids: Iterable[bytes], most: int = 4) -> str:
    """Key ids for a message: the first few in hex, and how many more there are; "none" where there are none."""
    listed = [key_id.hex() for key_id in ids]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more if listed else "none"
