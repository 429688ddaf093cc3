"""The keyrings of the simulated device: a factory keyring and two rotations, and the production rules over them, each judged once."""

from __future__ import annotations

from functools import cache, lru_cache

from abupdate.formats import keyring, rotation, signature
from abupdate.formats.bundle import Envelope, Open, Signed
from abupdate.host.signing import sign_all
from abupdate.model import Keyring, RecalledKeyrings, Role, RoleName, SaveKeyring
from abupdate.operations import keyring as operation
from abupdate.operations.keyring import Trust
from abupdate.ports import StateStore
from abupdate.transfer.admission import admit
from tests.sim.contents import IDENTITY, V2, pair, resigned
from tests.sim.journal import Machine
from tests.sim.parts import Part
from tests.sim.state import State


def _ring(version: int, root: str, release: str, *signers: str) -> bytes:
    roles = {
        RoleName.ROOT: Role(RoleName.ROOT, 1, (pair(root).public,)),
        RoleName.RELEASE: Role(RoleName.RELEASE, 1, (pair(release).public,)),
    }
    body = keyring.encode_body(version, roles)
    return keyring.build(body, sign_all([pair(name) for name in signers], signature.message(signature.Domain.KEYRING, body)))


# Version 2 has another root key, version 3 another release key.
RINGS = (
    _ring(1, "root", "release", "root"),
    _ring(2, "root-2", "release", "root", "root-2"),
    _ring(3, "root-2", "release-3", "root-2"),
)
CHAIN = b"".join(RINGS)
KEPT = (b"".join(RINGS[:2]), CHAIN)
# Signed by a key that version 3 alone knows.
V2_OF_RING_3 = resigned(V2, "release-3", CHAIN)


FACTORY = keyring.parse(RINGS[0])


@lru_cache(maxsize=64)
def _recall(kept: bytes) -> RecalledKeyrings:
    return rotation.recall(FACTORY, kept)


_WALKED: dict[tuple[bytes, bytes, bytes], tuple[SaveKeyring, ...]] = {}


def _advance(current: Keyring, kept: bytes, chain: bytes) -> tuple[SaveKeyring, ...]:
    key = (current.body, kept, chain)
    if key not in _WALKED:
        _WALKED[key] = rotation.advance(FACTORY, current, kept, chain, allow_test_keys=False)
    return _WALKED[key]


# As wiring.trust.
TRUST = Trust(factory=FACTORY, recall=_recall, usable=lambda ring: keyring.check_test_keys(ring, False), advance=_advance)

_ADMITTED: dict[tuple[bytes, bytes, bytes], Signed] = {}


def admission(state: StateStore) -> Open:
    """As wiring.admission: the keyring walks the bundle's chain, durably, before it judges the bundle."""
    operation.observe(state, TRUST)

    def judge(envelope: Envelope) -> Signed:
        ring = operation.advance(state, TRUST, envelope.chain).ring
        key = (envelope.raw, ring.body, bytes([envelope.is_stream]))
        if key not in _ADMITTED:
            _ADMITTED[key] = admit(envelope, ring, IDENTITY)
        return _ADMITTED[key]

    return judge


def version(state: StateStore) -> int:
    """Version of the keyring that counts. Raises AssertionError where what is stored is none of ours."""
    stored = state.load_keyring()
    assert stored is None or stored in KEPT, "keyrings that nobody signed"
    return operation.observe(state, TRUST).ring.version


@cache
def version_on(files: Part) -> int:
    """Version of the keyring that counts on a data partition."""
    return version(State(Machine(("files",), (files,))))
