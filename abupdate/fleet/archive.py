"""Objects that this node holds and can hand out: orders, memberships, long entries, the last certificates. Implements `ledger.Library`."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

from abupdate.fleet.facts import Facts
from abupdate.fleet.state import State
from abupdate.formats import certificate, entries
from abupdate.formats import membership as membership_format
from abupdate.formats import order as order_format
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import LostEntry, OrderEntry, PlanEntry
from abupdate.formats.membership import Membership
from abupdate.formats.messages import Frame, Thing
from abupdate.formats.order import Order

CERTIFICATES_KEPT = 64
_LOOSE = 16


class Archive:
    """Orders and memberships by their id (SHA-256 of the body); what else is kept goes by the SHA-256 of its bytes."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._orders: dict[bytes, tuple[Order, bytes]] = {}
        self._at_once: tuple[Order, ...] = ()
        self._memberships: dict[bytes, tuple[Membership, bytes]] = {}
        self._loose: OrderedDict[bytes, bytes] = OrderedDict()
        self.certificates: OrderedDict[int, Certificate] = OrderedDict()
        self._named: dict[int, bytes] = {}

    def order(self, digest: bytes) -> Order | None:
        """See ledger.Library."""
        found = self._orders.get(digest)
        return found[0] if found else None

    def membership(self, digest: bytes) -> Membership | None:
        """See ledger.Library."""
        found = self._memberships.get(digest)
        return found[0] if found else None

    def fact(self, digest: bytes) -> Frame | None:
        """See ledger.Library."""
        found = self._facts.get(digest)
        return found.frame if found else None

    def orders(self) -> Iterable[Order]:
        """All orders that are here."""
        return (order for order, _ in self._orders.values())

    def at_once(self) -> tuple[Order, ...]:
        """Those of them that act on sight, past the budgets: hardly ever one."""
        return self._at_once

    def memberships(self) -> Iterable[Membership]:
        """All memberships that are here."""
        return (one for one, _ in self._memberships.values())

    def files(self, thing: Thing) -> Iterable[bytes]:
        """The files of all orders or memberships."""
        return (data for _, data in (self._orders if thing is Thing.ORDER else self._memberships).values())

    def add_order(self, data: bytes) -> Order:
        """Keep an order's file. The caller has verified it. Raises Refused where it is none."""
        order = order_format.parse(data)
        self._orders.setdefault(order.id, (order, data))
        self._sort_out()
        return order

    def _sort_out(self) -> None:
        self._at_once = tuple(order for order, _ in self._orders.values() if order.now)

    def add_membership(self, data: bytes) -> Membership:
        """Keep a membership's file. The caller has verified it. Raises Refused where it is none."""
        membership = membership_format.parse(data)
        self._memberships.setdefault(membership.digest, (membership, data))
        return membership

    def add_loose(self, data: bytes) -> bytes:
        """Keep an object for a while; returns its digest."""
        digest = hashlib.sha256(data).digest()
        self._loose[digest] = data
        self._loose.move_to_end(digest)
        while len(self._loose) > _LOOSE:
            self._loose.popitem(last=False)
        return digest

    def loose(self, digest: bytes) -> bytes | None:
        """An object that was kept for a while."""
        return self._loose.get(digest)

    def add_certificate(self, one: Certificate) -> None:
        """Keep the certificate of a height; the oldest give way."""
        self.certificates[one.height] = one
        entry = entries.parse(one.entry)
        if isinstance(entry, (OrderEntry, LostEntry, PlanEntry)):
            self._named[one.height] = entry.order
        while len(self.certificates) > CERTIFICATES_KEPT:
            height, _ = self.certificates.popitem(last=False)
            self._named.pop(height, None)

    def serve(self, thing: Thing, digest: bytes) -> bytes | None:
        """The bytes of what somebody asks for, None where it is not here. Orders and memberships are asked for by their id."""
        if thing is Thing.ORDER:
            found = self._orders.get(digest)
            return found[1] if found else None
        if thing is Thing.MEMBERSHIP:
            known = self._memberships.get(digest)
            return known[1] if known else None
        return self._loose.get(digest)

    def certificate_file(self, height: int) -> bytes | None:
        """The packed certificate of a height."""
        one = self.certificates.get(height)
        return certificate.pack(one) if one is not None else None

    def prune(self, state: State, floor_seq: int) -> None:
        """Drop orders whose number is used up and that neither the state needs, nor somebody who follows by the kept certificates."""
        needed = state.orders() | set(self._named.values())
        for digest, (order, _) in list(self._orders.items()):
            if digest not in needed and order.admin_seq <= floor_seq:
                del self._orders[digest]
        self._sort_out()
