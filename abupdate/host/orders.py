"""Makes the orders of a site's admins, not signed yet (fleetsign.py adds signatures)."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from abupdate.errors import ConfigError, Refused
from abupdate.formats import bundle as bundles
from abupdate.formats import order as orders
from abupdate.formats.membership import Membership
from abupdate.formats.messages import NOTHING
from abupdate.formats.order import OnHalt, Order, OrderKind

MAX_SOURCES = 8
_URLS = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an order belongs: site, rules, and its number among the orders. members: name -> index.

    judge: the membership, None where it is not at hand.
    """

    genesis: bytes
    epoch: int
    admin_seq: int
    members: Mapping[str, int]
    judge: Membership | None = None

    def node(self, text: str) -> int:
        """A member's index from its name or its number. Raises ConfigError."""
        if text in self.members:
            return self.members[text]
        if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) in self.members.values():
            return int(text)
        raise ConfigError(f"{text[:80]!r} is no member of the site", f"its members are {', '.join(sorted(self.members))}")


@dataclass(frozen=True, slots=True)
class Target:
    """A bundle to go to, or back to. counter: its security counter, None where it is not known."""

    bundle: bytes
    version: str
    counter: int
    compatible: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """How an order moves through the site. width: nodes down at once. halt_at: failed nodes that halt it."""

    width: int = 1
    halt_at: int = 1
    overdue_s: int = 1800


def place_of(membership: Membership, admin_seq: int) -> Place:
    """The place of an order by the membership alone."""
    return Place(membership.genesis, membership.epoch, admin_seq, {member.name: member.index for member in membership.members}, membership)


def target_of(path: Path) -> Target:
    """What a bundle file is; its signatures are the devices' to check. Raises ConfigError, Refused."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head = bundles.read_head(file.read, status.st_size if stat.S_ISREG(status.st_mode) else None)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    return target_in(head)


def target_in(head: bundles.Head) -> Target:
    """The bundle that a head is of."""
    manifest = head.signed.manifest
    return Target(manifest.bundle_id, manifest.version, manifest.security_counter, manifest.compatible)


def update(
    place: Place,
    target: Target,
    sources: tuple[str, ...],
    share: int,
    rollout: Rollout,
    on_halt: OnHalt = OnHalt.HOLD,
    back: Target | None = None,
) -> Order:
    """Install a bundle on every node. share: percent of the nodes that must approve. back: where on_halt = rollback leads.

    Raises ConfigError.
    """
    if not 1 <= len(sources) <= MAX_SOURCES:
        raise ConfigError(f"{len(sources)} sources are given", f"name 1 to {MAX_SOURCES} with --source URL")
    for source in sources:
        if not source.startswith((*_URLS, "/")):
            raise ConfigError(f"source {source[:80]!r} is neither a URL nor an absolute path", "the devices must find the bundle there")
    if not 1 <= share <= 100:
        raise ConfigError(f"--share {share} is not between 1 and 100 percent")
    if on_halt is OnHalt.ROLLBACK and back is None:
        raise ConfigError("--on-halt rollback has nowhere to go back to", "name a bundle with --rollback-to")
    if back is not None:
        _check_back(target, back)
    order = Order(
        NOTHING,
        OrderKind.UPDATE,
        place.genesis,
        place.epoch,
        place.admin_seq,
        b"",
        bundle=target.bundle,
        version=target.version,
        counter=target.counter,
        compatible=target.compatible,
        sources=sources,
        share=share,
        width=rollout.width,
        halt_at=rollout.halt_at,
        on_halt=on_halt,
        rollback_to=back.bundle if back else NOTHING,
        rollback_version=back.version if back else "",
        overdue_s=rollout.overdue_s,
    )
    return _finished(order)


def _check_back(target: Target, back: Target) -> None:
    if back.bundle == target.bundle:
        raise ConfigError("the plan would go back to the bundle that it installs", "name the one before with --rollback-to")
    if back.compatible != target.compatible:
        raise ConfigError(f"--rollback-to is for {back.compatible}, the bundle for {target.compatible}")
    if back.counter < target.counter:
        raise ConfigError(
            f"no way back to version {back.version}: its security counter is {back.counter}, and the floor rises to {target.counter} "
            "where the new one is confirmed",
            "use --on-halt hold, or build the old version anew with the new counter",
        )


def about_order(place: Place, kind: OrderKind, target: bytes, reason: str, halt_at: int = 0) -> Order:
    """CANCEL, PAUSE or RESUME of an order (NOTHING: the whole site). halt_at: of RESUME, 0: as it was. Raises ConfigError."""
    order = Order(NOTHING, kind, place.genesis, place.epoch, place.admin_seq, b"", target=target, reason=reason)
    return _finished(replace(order, halt_at=halt_at) if kind is OrderKind.RESUME else order)


def about_node(place: Place, kind: OrderKind, node: int, reason: str) -> Order:
    """EVICT or LOST. Raises ConfigError."""
    return _finished(Order(NOTHING, kind, place.genesis, place.epoch, place.admin_seq, b"", nodes=frozenset({node}), reason=reason))


def rollback(place: Place, target: Target, nodes: frozenset[int], rollout: Rollout, *, now: bool) -> Order:
    """Back to a bundle that the nodes (none: all) still hold. now: past the budgets. Raises ConfigError."""
    order = Order(
        NOTHING,
        OrderKind.ROLLBACK,
        place.genesis,
        place.epoch,
        place.admin_seq,
        b"",
        bundle=target.bundle,
        version=target.version,
        width=rollout.width,
        halt_at=rollout.halt_at,
        overdue_s=rollout.overdue_s,
        nodes=nodes,
        now=now,
    )
    return _finished(order)


def _finished(order: Order) -> Order:
    """With its body and id, as whoever reads the file will have it."""
    try:
        return orders.parse(orders.build(orders.body(order), ()))
    except (Refused, ValueError) as error:
        raise ConfigError(f"the order breaks a rule: {error}") from error
