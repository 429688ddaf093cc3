"""Finds and reads the keyring that a bundle is held against: named on the command line, or the device's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from abupdate import config
from abupdate.errors import ConfigError
from abupdate.formats import keyring
from abupdate.model import Keyring


def find_keyring(args: argparse.Namespace) -> Keyring | None:
    """`--keyring`, else what the configuration names, else None (a build host without configuration).

    Raises ConfigError for a broken configuration or a missing file, Refused for a keyring that a device would not take.
    """
    if args.keyring is not None:
        return load_keyring(args.keyring)
    if args.config == config.DEFAULT_CONFIG and not args.config.exists():
        return None
    trust = config.load(args.config).trust
    ring = load_keyring(trust.keyring)
    keyring.check_test_keys(ring, trust.allow_test_keys)
    return ring


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
