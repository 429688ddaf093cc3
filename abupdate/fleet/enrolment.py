"""Which site this device belongs to: the memberships that it was enrolled by (`state_dir/fleet/membership`), and a new beginning.

Later epochs come through the site's log; the file is where a node starts from. One of a later epoch stands behind the earlier ones, at most
8 files one after the other, for the log that the node has may begin in one of those. A node that starts anew in its old site keeps its
key only where the site itself begins anew (`recover`), for its votes are bound to the site's genesis.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from abupdate.durable import LINUX, Files, read_file, replace, sync_folder
from abupdate.errors import ConfigError, Failed, NothingToDo, Refused
from abupdate.fleet import identity
from abupdate.fleet.store import LOG, Entropy, create, hold
from abupdate.formats import membership as memberships
from abupdate.formats import signature
from abupdate.formats.membership import Member, Membership
from abupdate.formats.payloads import MAX_OBJECT_BYTES
from abupdate.formats.signature import Domain
from abupdate.model import Role

MEMBERSHIP = "membership"
RECOVERING = "recovering"
MAX_FILE_BYTES = MAX_OBJECT_BYTES
KEPT = 8
_MEDIUM = "the medium under state_dir is failing"
_HINT = "state_dir must be writable; is it full or read-only?"


def load(folder: Path, files: Files = LINUX) -> tuple[Membership, ...]:
    """The memberships that this device was enrolled by, the newest epoch last; none where it is not.

    Raises ConfigError where they are damaged or a new beginning was cut short (the log is not what belongs to it then), Failed.
    """
    if _is_marked(folder, files):
        raise ConfigError("`abupdate fleet recover` was cut short on this device", "call it again with the same file")
    return tuple(memberships.parse(data) for data in _load(folder, files))


def _load(folder: Path, files: Files) -> tuple[bytes, ...]:
    """The files, each verified."""
    path = folder / MEMBERSHIP
    try:
        data = read_file(path, KEPT * MAX_FILE_BYTES + 1, files)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}", _MEDIUM) from error
    try:
        found = _split(data)
        for one in map(memberships.parse, found):
            memberships.check_signed(one)
    except Refused as error:
        raise ConfigError(f"{path}: {error.message}", "`abupdate fleet join SITE.abm` puts it back") from error
    return found


def _split(data: bytes) -> tuple[bytes, ...]:
    """The files that stand one after the other. Raises Refused where a header is cut off, or the last one is."""
    found: list[bytes] = []
    while data:
        length = memberships.FORM.length(data)
        found.append(data[:length])
        data = data[length:]
    return tuple(found)


def member(membership: Membership, key: bytes) -> Member:
    """The member whose key this is. Raises Refused where there is none."""
    for one in membership.members:
        if one.key == key:
            return one
    raise Refused(
        f"the membership of {membership.site} (epoch {membership.epoch}) does not name this device's key",
        "`abupdate fleet join` shows it: put it into SITE.toml",
    )


def check(data: bytes, role: Role) -> Membership:
    """A membership that its own root keys and those that this device trusts have signed. Raises Refused.

    Both, since the site's root keys say who votes, and only the device's keyring says whom this device believes.
    """
    found = memberships.parse(data)
    memberships.check_signed(found)
    signed = signature.message(Domain.MEMBERSHIP, found.body)
    count = len(signature.signers(found.signatures, (key.raw for key in role.keys), signed))
    if count < role.threshold:
        raise Refused(
            f"the membership is signed by {count} of the root keys that this device trusts and needs {role.threshold}",
            "`abupdate keyring show` lists them; `abupdate fleet sign` adds a signature",
        )
    return found


def take(folder: Path, data: bytes, key: bytes, role: Role, files: Files = LINUX) -> Member:
    """Enrol this device, whose node key is `key`, durably. Returns what it is in the site.

    Raises Refused (not signed, key not in it, another site, an older epoch), NothingToDo where it is enrolled by it already, ConfigError,
    Failed.
    """
    found = check(data, role)
    me = member(found, key)
    kept = _before(folder, files)
    if kept:
        _check_follows(memberships.parse(kept[-1]), found)
    try:
        replace(folder / MEMBERSHIP, b"".join([*kept[1 - KEPT :], data]), files=files)
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror}", _HINT) from error
    return me


def _before(folder: Path, files: Files) -> tuple[bytes, ...]:
    try:
        return _load(folder, files)
    except ConfigError:
        # Damaged: what is whole, newer or not, is better; the log knows which epoch it is in.
        return ()


def _check_follows(before: Membership, found: Membership) -> None:
    if before.digest == found.digest:
        raise NothingToDo(f"this device is enrolled by this membership of {found.site} already")
    if before.genesis != found.genesis:
        if found.recovery is not None and found.recovery.genesis == before.genesis:
            raise Refused(f"{found.site} begins anew with this membership", "`abupdate fleet recover FILE` takes it")
        raise Refused(f"this device belongs to another site, {before.site}", "`abupdate fleet join --anew` takes it out of there")
    if found.epoch <= before.epoch:
        raise Refused(f"this is epoch {found.epoch} of {found.site}, and this device has epoch {before.epoch}")
    if found.epoch == before.epoch + 1:
        memberships.follows(before, found)


def recover(folder: Path, data: bytes, role: Role, files: Files = LINUX, entropy: Entropy = os.urandom) -> Member:
    """Begin anew in a site whose voters lost their logs: the membership names a new genesis, the log starts empty, the key stays.

    A mark is kept while it is done. Without it a second call for the same genesis is refused: the log may hold votes by then.
    Raises as `take`, Busy while the daemon runs.
    """
    found = check(data, role)
    if found.recovery is None:
        raise Refused("this membership is no new beginning of a site", "`abupdate fleet join FILE` takes it")
    key = identity.load(folder, files)
    if key is None:
        raise ConfigError("this device has no node key", "`abupdate fleet join` makes one; then it is enrolled as any new device")
    me = member(found, key.public_key)
    kept = _before(folder, files)
    before = memberships.parse(kept[-1]) if kept else None
    if before is not None and before.genesis not in (found.genesis, found.recovery.genesis):
        raise Refused(f"this device belongs to another site, {before.site}", "this is the new beginning of another one")
    try:
        with hold(folder, files):
            _recover(folder, data, found, before, key.public_key, files, entropy)
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror}", _HINT) from error
    return me


def _recover(folder: Path, data: bytes, found: Membership, before: Membership | None, owner: bytes, files: Files, entropy: Entropy) -> None:
    if before is not None and before.genesis == found.genesis and not _is_marked(folder, files):
        raise NothingToDo(f"this device has begun anew with {found.site} already", "its log is not thrown away twice")
    # With the mark there no daemon starts, so that no log is put aside that holds a vote for the new genesis.
    replace(folder / RECOVERING, found.digest, files=files)
    with suppress(FileNotFoundError):
        files.rename(folder / LOG, folder / f"{LOG}.old")
        sync_folder(folder, files)
    replace(folder / MEMBERSHIP, data, files=files)
    create(folder, owner, files, entropy)
    files.unlink(folder / RECOVERING)
    sync_folder(folder, files)


def leave(folder: Path, files: Files = LINUX) -> None:
    """Take this device out of its site: log, key and membership are put aside (*.old), and a recovery that was cut short is forgotten.

    Cut anywhere, the same call finishes it. Raises Busy while the daemon runs, Failed.
    """
    # Log, key, membership, each durable before the next: a key without its log never votes again, and a membership without the key that
    # it names gives no vote. With the membership first, a join that comes next would take the old key and its votes into another site.
    identity.start_anew(folder, files)
    try:
        with suppress(FileNotFoundError):
            files.rename(folder / MEMBERSHIP, folder / f"{MEMBERSHIP}.old")
            sync_folder(folder, files)
        # Last, since no daemon starts beside it. No membership names the key that is made next, so that `recover` could not end it.
        with suppress(FileNotFoundError):
            files.unlink(folder / RECOVERING)
            sync_folder(folder, files)
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror}", _HINT) from error


def _is_marked(folder: Path, files: Files) -> bool:
    try:
        read_file(folder / RECOVERING, 1, files)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Failed(f"{folder / RECOVERING}: {error.strerror}", _MEDIUM) from error
    return True
