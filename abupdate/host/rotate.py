"""Makes the next version of a keyring, and lets the holders of root keys sign it one after the other."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from abupdate.errors import ConfigError, NothingToDo, Refused
from abupdate.formats import keyring, signature
from abupdate.host import keys
from abupdate.host.atomic import output, pwrite_all
from abupdate.host.keyrings import Tally, load, load_signed, tallies
from abupdate.host.signing import Signer, sign_all
from abupdate.model import Keyring, PublicKey, Role, RoleName


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What is to be another than in the version before. keys: instead of the old ones (none: those stay). threshold None: the old one."""

    keys: Sequence[Path] = ()
    add: Sequence[Path] = ()
    threshold: int | None = None


@dataclass(frozen=True, slots=True)
class Signing:
    """A keyring on its way through the hands of its signers. tallies: of the version before, where that is known, and of its own."""

    ring: Keyring
    tallies: tuple[Tally, ...]


def rotate(old: Path, path: Path, changes: Mapping[RoleName, RoleChange], revoked: Sequence[str], signers: Sequence[Signer]) -> Signing:
    """Write version N+1 of the keyring `old`, durably, signed by as many root keys of N and N+1 as are at hand.

    revoked: key ids or .pub files, which go out of every role; a role of `security` or `admin` whose last key goes is gone.
    Raises ConfigError: a rule is broken, a signer is a root key of neither, a revoked key is in no role, `path` is there already (devices
    that have its version would refuse another one). Refused: `old` is not good.
    """
    before = load_signed(old)
    if before.version >= 2**32 - 1:
        raise ConfigError(f"{old} has the highest version that there is")
    roles = {name: _changed(name, before.roles.get(name), changes.get(name, RoleChange())) for name in RoleName}
    for name_or_path in revoked:
        _revoke(roles, name_or_path)
    try:
        body = keyring.encode_body(before.version + 1, {name: role for name, role in roles.items() if role is not None and role.keys})
        ring = keyring.parse(keyring.build(body, ()))
        return _sign(path, ring, before, signers, fresh=True)
    except Refused as error:
        raise ConfigError(error.message, error.hint) from error
    except ValueError as error:
        raise ConfigError(f"the keyring does not fit its format: {error}") from error


def add_signatures(path: Path, previous: Path | None, signers: Sequence[Signer]) -> Signing:
    """Sign a keyring with root keys, of itself or of the version before, that have not signed it yet; the file is replaced.

    Raises ConfigError (a key that has no say in it, `previous` is not the version before), Refused (the keyring, or a signature in it,
    is damaged), NothingToDo (all of the keys have signed).
    """
    # A link stays one: what it points to is signed.
    path = Path(os.path.realpath(path))
    ring = load(path)
    before = load_signed(previous) if previous is not None else None
    if before is not None and before.version + 1 != ring.version:
        raise ConfigError(
            f"{previous} is version {before.version}, {path} is version {ring.version}", "name the version before with --previous"
        )
    message = signature.message(signature.Domain.KEYRING, ring.body)
    present = signature.signers(ring.signatures, (item.public_key for item in ring.signatures), message)
    missing = [signer for signer in signers if signer.public.raw not in present]
    if not missing:
        raise NothingToDo(f"{path} is signed by that key already")
    return _sign(path, ring, before, missing, mode=stat.S_IMODE(path.stat().st_mode))


def _sign(
    path: Path, ring: Keyring, before: Keyring | None, signers: Sequence[Signer], *, mode: int = 0o644, fresh: bool = False
) -> Signing:
    judges = (ring,) if before is None else (before, ring)
    roots = {key.raw for judge in judges for key in judge.roles[RoleName.ROOT].keys}
    for signer in signers:
        if signer.public.raw not in roots:
            what = "this keyring" if before is None else f"version {before.version} or {ring.version}"
            hint = "a root key of the version before may sign too: name that one with --previous" if before is None else ""
            raise ConfigError(f"key {signature.key_id(signer.public.raw)} is no root key of {what}", hint)
    message = signature.message(signature.Domain.KEYRING, ring.body)
    try:
        data = keyring.build(ring.body, (*ring.signatures, *sign_all(signers, message)))
    except ValueError as error:
        raise ConfigError(f"cannot add the signature: {error}") from error
    signed = keyring.parse(data)
    done = Signing(signed, tallies(signed, before))
    with output(path, mode=mode, replace=not fresh) as fd:
        pwrite_all(fd, data, 0)
    return done


def _changed(name: RoleName, old: Role | None, change: RoleChange) -> Role | None:
    given = [keys.load_public(path) for path in change.keys] or list(old.keys if old else ())
    given += [keys.load_public(path) for path in change.add]
    if not given:
        if change.threshold is not None:
            raise ConfigError(f"--{name.value}-threshold is given and there are no {name.value} keys", f"give --{name.value}")
        return None
    if len({key.raw for key in given}) != len(given):
        raise ConfigError(f"the {name.value} role would hold a key twice")
    threshold = change.threshold if change.threshold is not None else old.threshold if old else 1
    return Role(name, threshold, tuple(given))


def _revoke(roles: dict[RoleName, Role | None], name_or_path: str) -> None:
    """Take a key out of every role. Raises ConfigError."""

    def is_meant(key: PublicKey) -> bool:
        return signature.key_id(key.raw) == name_or_path.lower() if raw is None else key.raw == raw

    is_id = len(name_or_path) == 2 * signature.KEY_ID_BYTES and not set(name_or_path.lower()) - set("0123456789abcdef")
    raw = None if is_id else keys.load_public(Path(name_or_path)).raw
    found = False
    for name, role in roles.items():
        if role is not None and any(map(is_meant, role.keys)):
            found = True
            roles[name] = Role(name, role.threshold, tuple(key for key in role.keys if not is_meant(key)))
    if not found:
        raise ConfigError(f"{name_or_path} is in no role", "`abupdate keys show` lists them")
