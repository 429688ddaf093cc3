"""Builds signed keyrings from public key files, and the files of a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from abupdate.errors import ConfigError, Refused
from abupdate.formats import keyring, rotation, signature
from abupdate.host import keys
from abupdate.host.atomic import output, pwrite_all
from abupdate.host.signing import Signer, sign_all
from abupdate.model import Keyring, Role, RoleName


@dataclass(frozen=True, slots=True)
class RoleRequest:
    """The public key files of a role and its threshold (None: not said, which is 1)."""

    keys: Sequence[Path]
    threshold: int | None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many distinct root keys of a version have signed a keyring, and how many of them it needs."""

    version: int
    have: int
    need: int

    @property
    def lacks(self) -> int:
        """Signatures that are still missing."""
        return max(0, self.need - self.have)


def create(
    path: Path, version: int, requests: Mapping[RoleName, RoleRequest], signers: Sequence[Signer], *, partial: bool = False
) -> Keyring:
    """Write a keyring, signed by its root keys, durably. Returns what a device will read. partial: too few of them may sign now.

    Raises ConfigError: a rule is broken (a threshold that cannot be met, a key twice in a role), too few root keys sign, or the file is
    there already: two keyrings of one version are one too many for every device that has the other.
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
        if not partial:
            keyring.check_self_signed(built)
    except Refused as error:
        # The same rules that a device refuses by; here they are about what the caller asked for.
        raise ConfigError(error.message, error.hint) from error
    except ValueError as error:
        raise ConfigError(f"the keyring does not fit its format: {error}") from error
    with output(path, replace=False) as fd:
        pwrite_all(fd, data, 0)
    return built


def load(path: Path) -> Keyring:
    """A keyring file; its signatures are not looked at. Raises ConfigError (cannot be read), Refused (damaged)."""
    return keyring.parse(read(path))


def load_signed(path: Path) -> Keyring:
    """A keyring that enough of its own root keys signed, or the last one of a chain. Raises ConfigError, Refused."""
    frames = rotation.split(read(path))
    if not frames:
        raise ConfigError(f"{path} is empty")
    ring = keyring.decode(frames[-1])
    keyring.check_self_signed(ring)
    return ring


def load_chain(paths: Sequence[Path]) -> bytes:
    """The chain of the versions in these files, keyrings or chains, oldest first. Every link is verified. Raises ConfigError."""
    chain = b"".join(read(path) for path in paths)
    try:
        frames = rotation.split(chain)
        for frame in frames[:1]:
            keyring.check_self_signed(keyring.decode(frame))
        for before, after in pairwise(frames):
            rotation.follow(keyring.decode(before), after)
    except Refused as error:
        raise ConfigError(f"chain: {error.message}", error.hint) from error
    return chain


def tallies(ring: Keyring, previous: Keyring | None) -> tuple[Tally, ...]:
    """What a keyring has and needs of the root keys of the version before (where that is known) and of its own.

    Raises Refused for a wrong signature by a key of either.
    """
    judges = (ring,) if previous is None else (previous, ring)
    return tuple(
        Tally(judge.version, len(keyring.root_signers(judge, ring.body, ring.signatures)), judge.roles[RoleName.ROOT].threshold)
        for judge in judges
    )


def read(path: Path) -> bytes:
    """The bytes of a keyring or a chain, one more than allowed where it is longer. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            return file.read(rotation.MAX_CHAIN_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
