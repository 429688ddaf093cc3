"""Memberships (`.abm`) and orders (`.abo`) on their way through the hands of those who sign them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from abupdate.errors import ConfigError, NothingToDo, Refused
from abupdate.formats import membership as memberships
from abupdate.formats import order as orders
from abupdate.formats import signature
from abupdate.formats.membership import Membership
from abupdate.formats.order import Order, OrderKind
from abupdate.formats.signature import Domain
from abupdate.host.atomic import output, pwrite_all
from abupdate.host.signing import Signer, sign_all
from abupdate.model import Signature

# Both kinds are objects of the fleet's wire; what is larger is neither.
MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Tally:
    """How many signatures there are of those who have a say, and how many are needed. who: "root keys of epoch 2"."""

    who: str
    have: int
    need: int


@dataclass(frozen=True, slots=True)
class Signed:
    """What a file holds. tallies: empty where it is not known who has a say (an order without its membership)."""

    thing: Membership | Order
    data: bytes
    tallies: tuple[Tally, ...]

    @property
    def complete(self) -> bool | None:
        """Whether nobody needs to sign any more; None: not known."""
        return all(tally.have >= tally.need for tally in self.tallies) if self.tallies else None


def read(path: Path) -> bytes:
    """The bytes of a file. Raises ConfigError where it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is too large for a membership or an order")
    return data


def load_membership(path: Path) -> Membership:
    """A membership that enough of its own root keys signed. Raises ConfigError, Refused."""
    found = memberships.parse(read(path))
    memberships.check_signed(found)
    return found


def parse(data: bytes) -> Membership | Order:
    """A membership or an order, by its first bytes. Raises Refused."""
    if data.startswith(memberships.MAGIC):
        return memberships.parse(data)
    if data.startswith(orders.MAGIC):
        return orders.parse(data)
    raise Refused("this is neither a membership nor an order", "`abupdate fleet init` and `abupdate fleet propose` make them")


def examine(data: bytes, judge: Membership | None = None) -> Signed:
    """What a file holds and who has signed. judge: the membership before (of a membership), or of an order's epoch.

    Raises Refused for a damaged file or a wrong signature, ConfigError for a judge that is not the right one.
    """
    thing = parse(data)
    return Signed(thing, data, _tallies(thing, judge))


def sign(thing: Membership | Order, signers: Sequence[Signer], judge: Membership | None) -> Signed:
    """Add the signatures of those who have not signed yet.

    Raises ConfigError for a key that has no say, NothingToDo where all of the keys have signed already, Refused as `examine` does.
    """
    # A judge that is not the right one is said before who has a say.
    _tallies(thing, judge)
    _check_say(thing, signers, judge)
    message = signature.message(Domain.MEMBERSHIP if isinstance(thing, Membership) else Domain.ORDER, thing.body)
    present = signature.signers(thing.signatures, (item.public_key for item in thing.signatures), message)
    missing = [signer for signer in signers if signer.public.raw not in present]
    if signers and not missing:
        raise NothingToDo("it is signed by that key already")
    return examine(_build(thing, (*thing.signatures, *sign_all(missing, message))), judge)


def write(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a file durably. Raises ConfigError where it is there already and not to be replaced."""
    with output(path, replace=replace) as fd:
        pwrite_all(fd, data, 0)


def _build(thing: Membership | Order, signatures: Sequence[Signature]) -> bytes:
    try:
        return memberships.build(thing.body, signatures) if isinstance(thing, Membership) else orders.build(thing.body, signatures)
    except ValueError as error:
        raise ConfigError(f"cannot add the signature: {error}") from error


def _check_say(thing: Membership | Order, signers: Sequence[Signer], judge: Membership | None) -> None:
    if isinstance(thing, Membership):
        voices = set(thing.roots) | (set(judge.roots) if judge else set())
        what, hint = "root key of this membership", "" if judge else "one of the membership before may sign too: name that with --previous"
    elif judge is not None:
        voices, what, hint = set(judge.admins), "admin key of this site", "`abupdate fleet sign SITE.abm` lists them"
    else:
        return
    for signer in signers:
        if signer.public.raw not in voices:
            raise ConfigError(f"key {signature.key_id(signer.public.raw)} is no {what}", hint)


def _tallies(thing: Membership | Order, judge: Membership | None) -> tuple[Tally, ...]:
    if isinstance(thing, Membership):
        return _membership_tallies(thing, judge)
    return _order_tallies(thing, judge) if judge else ()


def _membership_tallies(thing: Membership, before: Membership | None) -> tuple[Tally, ...]:
    if before is not None and (before.genesis, before.epoch + 1) != (thing.genesis, thing.epoch):
        raise ConfigError(f"this is epoch {thing.epoch}, and {before.epoch} of the named membership is not the one before it")
    message = signature.message(Domain.MEMBERSHIP, thing.body)
    return tuple(
        Tally(f"root keys of epoch {judge.epoch}", len(signature.signers(thing.signatures, judge.roots, message)), judge.root_threshold)
        for judge in ((before, thing) if before else (thing,))
    )


def _order_tallies(thing: Order, judge: Membership) -> tuple[Tally, ...]:
    if (judge.genesis, judge.epoch) != (thing.genesis, thing.epoch):
        raise ConfigError(f"this order is for another site or epoch than the named membership (its epoch is {thing.epoch})")
    need = judge.now_threshold if thing.kind is OrderKind.ROLLBACK and thing.now else judge.admin_threshold
    return (Tally(f"admin keys of epoch {judge.epoch}", len(orders.signers(thing, judge.admins)), need),)
