"""Finds and reads the keyring that a bundle is held against: named on the command line, or the device's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from abupdate import config
from abupdate.errors import ConfigError
from abupdate.formats import keyring, rotation, signature
from abupdate.model import Keyring, PublicKey


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
    ring = keyring.parse(read_chain(path))
    keyring.check_self_signed(ring)
    return ring


def read_chain(path: Path) -> bytes:
    """The bytes of a keyring or a chain, one more than allowed where it is longer. Raises ConfigError (no such file)."""
    try:
        with path.open("rb") as file:
            return file.read(rotation.MAX_CHAIN_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def describe_roles(ring: Keyring) -> dict[str, dict[str, object]]:
    """The roles of a keyring for a JSON document."""
    return {
        role.name.value: {"threshold": role.threshold, "keys": [signature.key_id(key.raw) for key in role.keys]}
        for role in ring.roles.values()
    }


def role_lines(ring: Keyring) -> list[str]:
    """The roles of a keyring for a person."""
    return [f"  {role.name.value}: {role.threshold} of {', '.join(map(_describe, role.keys))}" for role in ring.roles.values()]


def _describe(key: PublicKey) -> str:
    return f"{signature.key_id(key.raw)} (test key)" if key.test else signature.key_id(key.raw)
