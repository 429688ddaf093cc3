"""The keyring that this device holds bundles against: which one counts, and how it moves on, one durable version at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from abupdate.errors import AbupdateError, NothingToDo
from abupdate.log import log
from abupdate.model import EffectiveKeyring, Keyring, KeyringSource, SaveKeyring
from abupdate.operations.board import LOCK_WAIT_S
from abupdate.ports import StateStore


def _nothing() -> None:
    """Where nothing but the content has to be looked at."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The keyring of the running slot, and the rules of the format.

    read: a stored keyring's bytes -> what they say, signed by its own root keys; raises Refused. usable: raises Refused for one that
    this device must not use (test keys). walk: current keyring, chain -> the newer versions in order, verified; pure; raises Refused.
    private: raises ConfigError where others may have written the stored keyring.
    """

    factory: Keyring
    read: Callable[[bytes], Keyring]
    usable: Callable[[Keyring], None]
    walk: Callable[[Keyring, bytes], tuple[SaveKeyring, ...]]
    private: Callable[[], None] = _nothing


def observe(state: StateStore, trust: Trust) -> EffectiveKeyring:
    """The keyring that counts: the higher version of the slot's own and the stored one; the slot's own where they are equal.

    A stored keyring that is damaged, of an unknown format, not signed or writable by others counts as lost: the note says why, and
    the factory keyring walks forward again with the next chain. Raises Refused for a keyring with test keys.
    """
    found, note = _stored(state, trust)
    if found is not None and found.version == trust.factory.version and found.body != trust.factory.body:
        note = f"the stored keyring is another version {found.version} than the factory keyring, which is used"
    if found is not None and found.version > trust.factory.version:
        effective = EffectiveKeyring(found, KeyringSource.STATE_DIR)
    else:
        effective = EffectiveKeyring(trust.factory, KeyringSource.FACTORY, note)
    trust.usable(effective.ring)
    return effective


def _stored(state: StateStore, trust: Trust) -> tuple[Keyring | None, str]:
    try:
        data = state.load_keyring()
        if data is None:
            return None, ""
        trust.private()
        return trust.read(data), ""
    except AbupdateError as error:
        return None, f"the stored keyring is not used: {error.message}"


def advance(state: StateStore, trust: Trust, chain: bytes) -> EffectiveKeyring:
    """Walk a chain from this device's version; each newer version is durable before the next one, and before it is used.

    The caller holds the lock. An empty chain, or one with nothing newer, changes nothing. Raises Refused (then nothing of the chain
    was taken), Failed where a version cannot be kept.
    """
    current = observe(state, trust)
    for step in trust.walk(current.ring, chain):
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
