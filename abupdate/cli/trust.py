"""Reads a keyring file that the command line names."""

from __future__ import annotations

from pathlib import Path

from abupdate.errors import ConfigError
from abupdate.formats import keyring
from abupdate.model import Keyring


def load_keyring(path: Path) -> Keyring:
    """A keyring that its own root keys signed. Raises ConfigError (no such file), Refused (damaged, not signed)."""
    try:
        with path.open("rb") as file:
            data = file.read(keyring.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    ring = keyring.parse(data)
    keyring.check_self_signed(ring)
    return ring
