"""Opens a bundle's envelope with a keyring: signatures over the raw bytes first, and only then is the manifest decoded."""

from __future__ import annotations

from collections.abc import Callable

from abupdate.errors import Refused
from abupdate.formats import bundle, keyring, rotation, signature
from abupdate.formats.bundle import Envelope, Signed
from abupdate.model import Keyring


def open_with(envelope: Envelope, ring: Keyring) -> Signed:
    """The envelope's manifest, after enough keys of the keyring have signed it. Its chain is not looked at. Raises Refused."""
    met = keyring.approvals(envelope.manifest_bytes, envelope.signatures, ring)
    signed = bundle.decode(envelope)
    keyring.approve(signed.manifest, met)
    return signed


def at_end_of_chain(ring: Keyring, chain: bytes, *, allow_test_keys: bool = True) -> Keyring:
    """The keyring that a device with `ring` has after it has walked a bundle's chain; nothing is kept. Raises Refused."""
    steps = rotation.walk(ring, chain, allow_test_keys=allow_test_keys)
    return steps[-1].ring if steps else ring


def opener(ring: Keyring) -> Callable[[Envelope], Signed]:
    """`open_with` for one who holds this keyring in memory: the bundle's chain is walked from there."""
    return lambda envelope: open_with(envelope, at_end_of_chain(ring, envelope.chain))


def by_anyone(envelope: Envelope) -> None:
    """Refuse an envelope that is not signed, or where a signature, by whatever key, is not over this manifest."""
    signed = signature.message(signature.Domain.BUNDLE, envelope.manifest_bytes)
    if not signature.signers(envelope.signatures, (item.public_key for item in envelope.signatures), signed):
        raise Refused("the bundle is not signed", "sign it with `abupdate bundle sign`")
