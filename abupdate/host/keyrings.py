"""Builds signed keyrings from public key files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from abupdate.errors import ConfigError, Refused
from abupdate.formats import keyring, signature
from abupdate.host import keys
from abupdate.host.atomic import output, pwrite_all
from abupdate.host.signing import Signer, sign_all
from abupdate.model import Keyring, Role, RoleName


@dataclass(frozen=True, slots=True)
class RoleRequest:
    """The public key files of a role and its threshold (None: not said, which is 1)."""

    keys: Sequence[Path]
    threshold: int | None


def create(path: Path, version: int, requests: Mapping[RoleName, RoleRequest], signers: Sequence[Signer]) -> Keyring:
    """Write a keyring, signed by its root keys, durably. Returns what a device will read.

    Raises ConfigError: a rule is broken (a threshold that cannot be met, a key twice in a role), or too few root keys sign.
    """
    if not 1 <= version < 2**32:
        raise ConfigError(f"the version {version} is not between 1 and {2**32 - 1}")
    roles: dict[RoleName, Role] = {}
    for name, request in requests.items():
        if not request.keys:
            if request.threshold is not None:
                raise ConfigError(f"--{name.value}-threshold is given without --{name.value}")
            continue
        threshold = 1 if request.threshold is None else request.threshold
        if not 1 <= threshold <= len(request.keys):
            raise ConfigError(f"the {name.value} threshold {threshold} is not between 1 and the number of keys ({len(request.keys)})")
        roles[name] = Role(name, threshold, tuple(keys.load_public(key) for key in request.keys))
    try:
        body = keyring.encode_body(version, roles)
        data = keyring.build(body, sign_all(signers, signature.message(signature.Domain.KEYRING, body)))
        built = keyring.parse(data)
        keyring.check_self_signed(built)
    except Refused as error:
        # The same rules that a device refuses by; here they are about what the caller asked for.
        raise ConfigError(error.message, error.hint) from error
    except ValueError as error:
        raise ConfigError(f"the keyring does not fit its format: {error}") from error
    with output(path) as fd:
        pwrite_all(fd, data, 0)
    return built
