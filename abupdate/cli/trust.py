"""Finds and reads the keyring that a bundle is held against: named on the command line, or the device's own."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from abupdate import config
from abupdate.errors import ConfigError, Refused
from abupdate.formats import keyring, rotation, signature
from abupdate.formats.trusted import at_end_of_chain
from abupdate.log import log
from abupdate.model import Keyring, PublicKey


@dataclass(frozen=True, slots=True)
class Held:
    """A keyring to hold bundles against, and whether their chains may lead to test keys."""

    ring: Keyring
    allow_test_keys: bool = True

    def after(self, chain: bytes) -> Keyring:
        """The keyring at the end of a bundle's chain; nothing is kept. Raises Refused."""
        return at_end_of_chain(self.ring, chain, allow_test_keys=self.allow_test_keys)


def find_keyring(args: argparse.Namespace) -> Held | None:
    """`--keyring`, else the device's own by the configuration, else None (a build host without configuration).

    Raises ConfigError for a broken configuration or a missing file, Refused for a keyring that a device would not take.
    """
    if args.keyring is not None:
        return Held(load_keyring(args.keyring))
    if args.config == config.DEFAULT_CONFIG and not args.config.exists():
        return None
    # Not needed on a build host.
    from abupdate import wiring
    from abupdate.operations import keyring as operation

    settings = config.load(args.config)
    try:
        found = operation.observe(wiring.state_store(settings), wiring.trust(settings))
    except ConfigError as error:
        # A factory keyring that is damaged: what is asked about is the bundle.
        raise error.__cause__ if isinstance(error.__cause__, Refused) else error from None
    if found.note:
        log.warning("%s", found.note)
    return Held(found.ring, settings.trust.allow_test_keys)


def load_keyring(path: Path) -> Keyring:
    """A keyring that its own root keys signed; of a chain (a device's `state_dir/keyring`) the last one, verified from the first on.

    Raises ConfigError (no such file), Refused (damaged, not signed).
    """
    data = read_chain(path)
    first = keyring.read_frame(data)
    ring = keyring.decode(first)
    keyring.check_self_signed(ring)
    return at_end_of_chain(ring, data[len(first.data) :])


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
