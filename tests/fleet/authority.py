"""The people of a simulated site: who signs memberships and orders, with real keys and the real formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from abupdate.formats import membership as membership_format
from abupdate.formats import order as order_format
from abupdate.formats import signature
from abupdate.formats.membership import Member, Membership, Recovery
from abupdate.formats.order import OnHalt, Order, OrderKind
from abupdate.formats.signature import Domain
from abupdate.host.signing import sign_all
from tests.fleet.images import Image
from tests.rings import pair

ROOTS = ("fleet-root-1", "fleet-root-2")
ADMINS = ("fleet-admin-1", "fleet-admin-2")
NOTHING = bytes(32)


@dataclass(frozen=True, slots=True)
class Shape:
    """A site's numbers. groups: nodes of each group, of which all but one stay up. voters: None: all."""

    nodes: int = 4
    faults: int = 0
    min_up: int = 0
    approvals: int = 0
    stall_ok: bool = False
    heartbeat_s: int = 10
    groups: tuple[tuple[int, ...], ...] = ()
    voters: int | None = None


@dataclass
class Authority:
    """Makes and remembers every membership and order of a site. orders: by id. files: the membership files, by digest."""

    site: str
    orders: dict[bytes, Order] = field(default_factory=dict)
    memberships: dict[bytes, Membership] = field(default_factory=dict)
    files: dict[bytes, bytes] = field(default_factory=dict)
    order_files: dict[bytes, bytes] = field(default_factory=dict)
    signed_by: dict[bytes, int] = field(default_factory=dict)

    def found(self, shape: Shape, keys: Mapping[int, bytes]) -> Membership:
        """The first epoch. keys: node -> public key."""
        nodes = sorted(keys)
        voters = nodes if shape.voters is None else nodes[: shape.voters]
        named = {f"group{number}": frozenset(group) for number, group in enumerate(shape.groups)}
        members = tuple(
            Member(index, keys[index], f"node{index}", index in voters, frozenset(name for name, group in named.items() if index in group))
            for index in nodes
        )
        return self.enact(
            Membership(
                site=self.site,
                epoch=1,
                genesis=NOTHING,
                digest=NOTHING,
                body=b"",
                members=members,
                faults=shape.faults,
                min_up=shape.min_up or max(1, len(nodes) // 2),
                groups={name: len(group) - 1 for name, group in named.items()},
                approvals=shape.approvals or shape.faults + 1,
                stall_ok=shape.stall_ok,
                heartbeat_s=shape.heartbeat_s,
                roots=tuple(sorted(pair(name).public.raw for name in ROOTS[:1])),
                root_threshold=1,
                admins=tuple(sorted(pair(name).public.raw for name in ADMINS)),
                admin_threshold=1,
                now_threshold=2,
            )
        )

    def enact(self, wanted: Membership) -> Membership:
        """Sign a membership and remember it."""
        body = membership_format.body(wanted)
        data = membership_format.build(body, sign_all([pair(name) for name in ROOTS[:1]], signature.message(Domain.MEMBERSHIP, body)))
        made = membership_format.parse(data)
        self.memberships[made.digest] = made
        self.files[made.digest] = data
        return made

    def next(self, old: Membership, members: Iterable[Member], **changes: Any) -> Membership:
        """The membership after `old`, with these members."""
        ordered = tuple(sorted(members, key=lambda member: member.index))
        return self.enact(replace(old, epoch=old.epoch + 1, members=ordered, recovery=None, signatures=(), **changes))

    def recover(self, old: Membership, members: Iterable[Member], height: int, leases: Mapping[int, int]) -> Membership:
        """A new genesis for a site that has lost its log. leases: node -> lease, of those that are held."""
        ordered = tuple(sorted(members, key=lambda member: member.index))
        recovery = Recovery(old.genesis, height, leases)
        return self.enact(replace(old, epoch=1, genesis=NOTHING, members=ordered, recovery=recovery, signatures=()))

    def order(self, membership: Membership, kind: OrderKind, admin_seq: int, signers: int = 1, **fields: Any) -> Order:
        """Sign an order and remember it. signers: how many of the admins sign."""
        wanted = Order(NOTHING, kind, membership.genesis, membership.epoch, admin_seq, b"", **fields)
        body = order_format.body(wanted)
        data = order_format.build(body, sign_all([pair(name) for name in ADMINS[:signers]], signature.message(Domain.ORDER, body)))
        made = order_format.parse(data)
        self.orders[made.id] = made
        self.order_files[made.id] = data
        self.signed_by[made.id] = signers
        return made

    def update(self, membership: Membership, admin_seq: int, image: Image, *, back: Image | None = None, **fields: Any) -> Order:
        """An UPDATE to an image. back: the image to go back to when the plan halts."""
        return self.order(
            membership,
            OrderKind.UPDATE,
            admin_seq,
            bundle=image.bundle,
            version=f"1.{image.name}",
            counter=image.counter,
            compatible="acme-gateway",
            sources=("/media/bundle.abu",),
            on_halt=OnHalt.HOLD if back is None else OnHalt.ROLLBACK,
            rollback_to=NOTHING if back is None else back.bundle,
            rollback_version="" if back is None else f"1.{back.name}",
            **fields,
        )

    def genuine(self, order: Order) -> bool:
        """Enough admins signed it."""
        return self.signed_by.get(order.id, 0) >= (2 if order.now else 1)
