"""The keyring that this device holds bundles against: which one counts, and how it moves on, one durable version at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from abupdate.errors import NothingToDo, Refused
from abupdate.log import log
from abupdate.model import EffectiveKeyring, Keyring, KeyringSource, RecalledKeyrings, SaveKeyring
from abupdate.operations.board import LOCK_WAIT_S
from abupdate.ports import StateStore


@dataclass(frozen=True, slots=True)
class Trust:
    """The keyring of the running slot, and the rules of the format.

    recall: what is stored -> what of it counts; raises Refused where nothing does. usable: raises Refused for a keyring that this
    device must not use (test keys). advance: the keyring that counts, what was used of what is stored (empty: nothing), a chain -> the
    newer versions in order, verified; raises Refused. All are pure.
    """

    factory: Keyring
    recall: Callable[[bytes], RecalledKeyrings]
    usable: Callable[[Keyring], None]
    advance: Callable[[Keyring, bytes, bytes], tuple[SaveKeyring, ...]]


def observe(state: StateStore, trust: Trust) -> EffectiveKeyring:
    """The keyring that counts: the newest stored version that follows from the slot's own, or that one.

    What is stored and damaged, of an unknown format, or does not follow from the slot's own keyring counts as lost, with all behind it:
    the note says why, and the keyring walks forward again with the next chain. Raises Refused for a keyring with test keys, Failed where
    it cannot be told what is stored.
    """
    return _observe(state, trust)[0]


def _observe(state: StateStore, trust: Trust) -> tuple[EffectiveKeyring, bytes]:
    """Also what was used of what is stored."""
    found, note = RecalledKeyrings((), b""), ""
    data = state.load_keyring()
    try:
        if data is not None:
            found = trust.recall(data)
    except Refused as error:
        note = f"the stored keyring is not used: {error.message}"
    if found.fault:
        note = f"the stored keyring is used up to version {found.rings[-1].version} only: {found.fault}"
    if found.rings:
        effective = EffectiveKeyring(found.rings[-1], KeyringSource.STATE_DIR, note)
    else:
        effective = EffectiveKeyring(trust.factory, KeyringSource.FACTORY, note)
    trust.usable(effective.ring)
    return effective, found.used


def advance(state: StateStore, trust: Trust, chain: bytes) -> EffectiveKeyring:
    """Walk a chain from this device's version; each newer version is durable before the next one, and before it is used.

    The caller holds the lock. An empty chain, or one with nothing newer, changes nothing. Raises Refused (then nothing of the chain
    was taken), Failed where a version cannot be kept.
    """
    current, kept = _observe(state, trust)
    for step in trust.advance(current.ring, kept, chain):
        log.info("keyring: version %d follows version %d", step.ring.version, current.ring.version)
        state.save_keyring(step.data)
        current = EffectiveKeyring(step.ring, KeyringSource.STATE_DIR)
    return current


def update(state: StateStore, trust: Trust, chain: bytes) -> tuple[EffectiveKeyring, EffectiveKeyring]:
    """`advance` under the lock; returns the keyring before and after. Raises NothingToDo where the chain holds nothing newer, Busy."""
    with state.lock(LOCK_WAIT_S):
        before = observe(state, trust)
        if before.note:
            log.warning("%s", before.note)
        after = advance(state, trust, chain)
    if after.ring.version == before.ring.version:
        raise NothingToDo(f"this device has version {before.ring.version} of the keyring already", "the file holds nothing newer")
    return before, after
