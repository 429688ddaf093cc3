"""Rotation of the keyring: chains of keyring files, and the walk from one version to the next.

A chain is keyring files (keyring.py) one after the other, nothing between or behind them, at most 256 KiB; each one's version
is one more than that of the file before. Version N+1 counts when enough root keys of N AND enough root keys of N+1 signed it,
so that neither the old holders nor the new ones can make it alone, and revoking a key is leaving it out.
"""

from __future__ import annotations

from itertools import pairwise

from abupdate.errors import Refused
from abupdate.formats import keyring
from abupdate.formats.keyring import Frame
from abupdate.model import Keyring, RoleName, SaveKeyring

MAX_CHAIN_BYTES = 256 * 1024


def split(chain: bytes) -> tuple[Frame, ...]:
    """The keyring files of a chain, not decoded, in order; an empty chain has none. Raises Refused."""
    if len(chain) > MAX_CHAIN_BYTES:
        raise Refused(f"the chain of keyrings has {len(chain)} bytes, more than {MAX_CHAIN_BYTES}")
    frames: list[Frame] = []
    position = 0
    while position < len(chain):
        frames.append(keyring.read_frame(chain[position : position + keyring.MAX_FILE_BYTES]))
        position += len(frames[-1].data)
    for before, after in pairwise(frames):
        if after.version <= before.version:
            raise Refused(f"the chain of keyrings has version {after.version} after version {before.version}", "put them in order")
        if after.version > before.version + 1:
            raise _gap(before.version, after.version)
    return tuple(frames)


def follow(current: Keyring, frame: Frame) -> Keyring:
    """Verify and decode the keyring that comes after `current`. Nothing of its body is decoded before enough of the current root
    keys have signed it. Raises Refused.
    """
    if frame.version != current.version + 1:
        raise _gap(current.version, frame.version)
    what = f"version {frame.version} of the keyring"
    needed = current.roles[RoleName.ROOT].threshold
    try:
        count = len(keyring.root_signers(current, frame.body, frame.signatures))
        if count < needed:
            hint = "both versions' root keys must sign it: `abupdate keys sign`"
            raise Refused(f"it is signed by {count} of version {current.version}'s root keys and needs {needed}", hint)
        ring = keyring.decode(frame)
        keyring.check_self_signed(ring)
    except Refused as error:
        raise Refused(f"{what}: {error.message}", error.hint) from error
    return ring


def walk(current: Keyring, chain: bytes, *, allow_test_keys: bool) -> tuple[SaveKeyring, ...]:
    """The versions of a chain that are newer than `current`, each verified by the one before it, as steps to be done in order.

    Versions up to the current one are passed over; the current one's must be the very same. Nothing newer: no steps. All of the
    chain is good, or nothing of it counts. Raises Refused.
    """
    steps: list[SaveKeyring] = []
    ring = current
    for frame in split(chain):
        if frame.version == current.version and frame.body != current.body:
            raise Refused(
                f"version {current.version} of the keyring is not the one that this device has",
                "the chain is another product's, or somebody made two keyrings of one version",
            )
        if frame.version <= current.version:
            continue
        ring = follow(ring, frame)
        keyring.check_test_keys(ring, allow_test_keys)
        steps.append(SaveKeyring(ring, frame.data))
    return tuple(steps)


def _gap(before: int, after: int) -> Refused:
    missing = f"version {before + 1}" if after == before + 2 else f"versions {before + 1} to {after - 1}"
    return Refused(
        f"the keyrings go from version {before} to version {after}",
        f"{missing} must come between: give a chain of all versions, one file after the other",
    )
