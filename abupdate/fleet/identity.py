"""The node's own key: Ed25519, made on the device at its first start and never replaced (`state_dir/fleet/node.key`, PEM, PKCS#8).

The log (store.py) gets its name first, and the key after it: a key without a log means that the log was lost. A log with records and no
key means that the key was lost; then nothing is made anew, since a person has to know it: the members' list names the old key.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from abupdate.durable import LINUX, Files, make_folder, read_file, replace, sync_folder
from abupdate.errors import ConfigError, Failed, Refused
from abupdate.fleet.store import LOG, Entropy, create, hold, peek
from abupdate.formats import keyfile, signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = "node.key"
# More than a site has members, with those of the next epoch.
_LOADED_KEYS = 256
_ANEW = "restore it, or give the node a new key and log and enrol it anew"


class Identity:
    """`Seal` with the node's key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self._verifier = lru_cache(_LOADED_KEYS)(signature.Verifier)
        self.public_key = private.public_key().public_bytes_raw()

    def sign(self, content: bytes) -> bytes:
        """The signature (64 bytes)."""
        return self._private.sign(content)

    def verify(self, public_key: bytes, signature: bytes, content: bytes) -> bool:
        """Whether it is by that key (32 bytes), by the strict rules of formats/signature.py. Loaded keys are kept."""
        return self._verifier(public_key).verify(signature, content)


def load(folder: Path, files: Files = LINUX) -> Identity | None:
    """The node's key, None where there is none. Raises ConfigError where the file is not one, Failed where it cannot be read."""
    path = folder / KEY
    try:
        data = read_file(path, keyfile.MAX_BYTES + 1, files)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}", "the medium under state_dir is failing") from error
    private = _parse(data)
    if private is None:
        raise ConfigError(f"{path} is not an Ed25519 private key", _ANEW)
    return Identity(private)


def load_or_create(folder: Path, files: Files = LINUX, entropy: Entropy = os.urandom) -> Identity:
    """The node's key; at its first start a new one and an empty log, both durable on return.

    Raises ConfigError (not a key; lost, though there is a log), Busy (another process is making one), Failed.
    """
    found = load(folder, files)
    try:
        if found is None:
            make_folder(folder, files=files)
            with hold(folder, files):
                found = load(folder, files) or _create(folder, files, entropy)
        # Where the process that made it was killed before it flushed the folders, a cut could still take the key away.
        for above in (folder, folder.parent, folder.parent.parent):
            sync_folder(above, files)
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror}", "state_dir must be writable; is it full or read-only?") from error
    return found


def start_anew(folder: Path, files: Files = LINUX) -> None:
    """Put key and log aside (*.old), so that the next start makes new ones: for a node that lost its log and is enrolled anew.

    Raises Busy, Failed. The log goes first: after a cut between the two the key that is left counts as one that lost its log.
    """
    try:
        with hold(folder, files):
            for name in (LOG, KEY):
                with suppress(FileNotFoundError):
                    files.rename(folder / name, folder / f"{name}.old")
                sync_folder(folder, files)
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror}", "state_dir must be writable; is it full or read-only?") from error


def _create(folder: Path, files: Files, entropy: Entropy) -> Identity:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    contents = peek(folder, files)
    if contents is not None and (contents.records or contents.damaged):
        raise ConfigError(f"{folder / KEY} is missing, but this node has a log", _ANEW)
    private = Ed25519PrivateKey.from_private_bytes(entropy(signature.KEY_BYTES))
    made = Identity(private)
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    create(folder, made.public_key, files, entropy)
    replace(folder / KEY, pem, files=files)
    return made


def _parse(data: bytes) -> Ed25519PrivateKey | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    _, pem = keyfile.split(data)
    if len(data) > keyfile.MAX_BYTES or keyfile.is_public(pem) or keyfile.is_encrypted(pem):
        return None
    try:
        key = load_pem_private_key(pem, None)
        if not isinstance(key, Ed25519PrivateKey):
            return None
        signature.check_public_key(key.public_key().public_bytes_raw())
    except (ValueError, TypeError, UnsupportedAlgorithm, Refused):
        return None
    return key
