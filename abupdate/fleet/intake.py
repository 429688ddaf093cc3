"""Orders and memberships as they come in, from people and from peers, and the other objects that a node asks for. Pure.

What comes from a peer is what its digest says, and nothing more: whether enough of the right keys have signed it is checked here.
"""

from __future__ import annotations

from dataclasses import dataclass

from abupdate.errors import Refused
from abupdate.fleet import ledger
from abupdate.fleet.events import RecordKind
from abupdate.fleet.site import Site
from abupdate.fleet.talk import Talk, order_type
from abupdate.formats import evidence, frame
from abupdate.formats import membership as membership_format
from abupdate.formats import order as order_format
from abupdate.formats.frame import MAX_OBJECT_BYTES
from abupdate.formats.messages import Announce, Frame, Thing, Type
from abupdate.formats.order import Order, OrderKind


@dataclass(slots=True)
class Intake:
    """talk: says again what came in here."""

    site: Site
    talk: Talk

    def submit(self, data: bytes) -> None:
        """An order's or membership's file from this node's control socket. Raises Refused where it cannot be valid now."""
        site = self.site
        try:
            order = order_format.parse(data)
        except Refused as fault:
            self._submit_membership(data, fault)
            return
        known = site.archive.order(order.id) is not None
        # One that is decided may be said again for who missed it; whoever knows another one may not know that it has become void.
        open_ = not known or order.admin_seq > site.state.admin_seq
        if open_ and (why := ledger.check_order(site.state, site.membership, order) or self._rival(order)):
            raise Refused(why)
        if not known:
            self.take_order(data, order)
        self.talk.announce(order.id)
        site.announce(order_type(order), Thing.ORDER, order.id, data)

    def _rival(self, order: Order) -> str:
        """Empty, or which order of the same number is on its way already: one of the two would be void."""
        site = self.site
        for other in site.archive.orders():
            same = (other.epoch, other.admin_seq) == (order.epoch, order.admin_seq) and other.id != order.id
            if same and not ledger.check_order(site.state, site.membership, other):
                return f"the order {other.id.hex()[:12]} with the number {order.admin_seq} is on its way already"
        return ""

    def _submit_membership(self, data: bytes, fault: Refused) -> None:
        site = self.site
        try:
            fresh = membership_format.parse(data)
        except Refused:
            raise fault from None
        if site.archive.membership(fresh.digest) is None:
            if why := ledger.check_reconfig(site.state, site.membership, fresh):
                raise Refused(why)
            self._take_membership(data)
        self.talk.announce(fresh.digest)
        site.announce(Type.ORDER, Thing.MEMBERSHIP, fresh.digest, data)

    def take_order(self, data: bytes, order: Order) -> None:
        """Keep a verified order, durably: one that is only on its way (PAUSE) must hold over a restart."""
        site = self.site
        if site.archive.order(order.id) is None:
            site.persist(RecordKind.OBJECT, bytes([Thing.ORDER]) + data)
            site.archive.add_order(data)
            site.objects.forget(order.id)
            site.version += 1

    def _take_membership(self, data: bytes) -> None:
        site = self.site
        site.persist(RecordKind.OBJECT, bytes([Thing.MEMBERSHIP]) + data)
        fresh = site.archive.add_membership(data)
        site.objects.forget(fresh.digest)
        site.version += 1

    def announced(self, one: Frame, message: Announce) -> bool:
        """A peer has an object; True where it is wanted here."""
        site, thing, digest = self.site, message.thing, message.digest
        if message.size_bytes > MAX_OBJECT_BYTES:
            return False
        if thing is Thing.ORDER:
            wanted = site.archive.order(digest) is None
        elif thing is Thing.MEMBERSHIP:
            wanted = site.archive.membership(digest) is None
        elif thing is Thing.CERTIFICATE:
            wanted = message.height == site.state.height + 1
        elif thing is Thing.SNAPSHOT:
            wanted = message.height > site.state.height
        else:
            wanted = thing is Thing.EVIDENCE and site.archive.loose(digest) is None
        if wanted:
            site.objects.want(thing, digest, one.source, site.now_s, pinned=False, soon=True)
        return wanted

    def order(self, data: bytes, *, pinned: bool, certified: bool) -> None:
        """An order from a peer. Raises Refused.

        pinned: an entry names it; then one whose number is used up is taken too. certified: Q voters have signed a state that names it, and
        what they found it to be is enough: its own epoch's membership may not be here.
        """
        site = self.site
        order = order_format.parse(data)
        if certified or not ledger.check_order(site.state, site.membership, order) or (pinned and self._signed(order)):
            self.take_order(data, order)

    def _signed(self, order: Order) -> bool:
        """Enough admins of the order's own epoch have signed it."""
        site = self.site
        membership = site.known.get(order.epoch)
        if membership is None or order.genesis != site.state.genesis:
            return False
        needed = membership.admin_threshold
        if order.kind is OrderKind.ROLLBACK and order.now:
            needed = max(needed, membership.now_threshold)
        return len(order_format.signers(order, membership.admins)) >= needed

    def membership(self, data: bytes) -> None:
        """A membership from a peer: it counts where it follows on this one. Raises Refused."""
        site = self.site
        fresh = membership_format.parse(data)
        membership_format.check_signed(fresh)
        if fresh.genesis == site.state.genesis and fresh.epoch == site.state.epoch + 1:
            membership_format.follows(site.membership, fresh)
            self._take_membership(data)

    def evidence(self, data: bytes) -> int | None:
        """Who is shown to have voted twice, None where that is nobody of the site. Raises Refused."""
        site = self.site
        proof = evidence.parse(data)
        first, second = frame.parse(proof.first), frame.parse(proof.second)
        membership = site.known.get(first.epoch)
        member = membership.by_index.get(first.source) if membership is not None else None
        if member is None:
            return None
        for one in (first, second):
            if not site.wire.seal.verify(member.key, one.signature, frame.signed(site.state.genesis, one)):
                raise Refused("the evidence is not signed by whom it accuses")
        site.archive.add_loose(data)
        return first.source
