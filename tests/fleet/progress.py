"""Invariant 11: after the network heals, with Q honest voters up, a valid GRANT commits (or, where no budget is free, any order does)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from abupdate.formats.membership import Membership
from abupdate.formats.messages import NOTHING
from abupdate.formats.order import Order, OrderKind
from tests.fleet.images import Image
from tests.fleet.oracle import over_budget

if TYPE_CHECKING:
    from tests.fleet.world import World

# Rounds have grown to a minute while nothing could be decided; a few of them may be led by liars.
PATIENCE_S = 1200.0
REST_S = 12.0
AGAIN_S = 60.0

Maker = Callable[[Membership, int], Order]


class Progress:
    """Asks the site for an update and waits."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._image = Image("last", 9)

    def ask(self) -> tuple[bool | None, str]:
        """Whether the site made progress, None where it need not; and why not."""
        world, oracle = self._world, self._world.oracle
        world.run_until(world.now_s + REST_S)
        if len(self._able()) < oracle.membership.quorum:
            return None, "too few honest voters are left"
        height = oracle.height
        if not self._drive(self._settling, lambda: oracle.height > height and self._settling() is None):
            return False, f"orders do not commit: height {oracle.height}"
        if not self._grantable():
            return True, "no budget is free for a grant"
        world.images[self._image.bundle] = self._image
        grants = oracle.counts.get("grant", 0)
        if self._drive(self._updating, lambda: oracle.counts.get("grant", 0) > grants):
            return True, ""
        plan = oracle.plan.order.id.hex()[:8] if oracle.plan is not None else "none"
        return False, f"no grant: height {oracle.height}, pending {oracle.pending.hex()[:8]}, plan {plan}, held {oracle.held}"

    def _able(self) -> list[int]:
        """Honest voters that may vote and run."""
        world = self._world
        voters = world.oracle.membership.voters
        return [
            host.index
            for host in world.hosts.values()
            if host.honest and host.index in voters and world.witness.subjects[host.index].intact and host.device.powered
        ]

    def _drive(self, wanted: Callable[[], Maker | None], done: Callable[[], bool]) -> bool:
        """Order what is wanted until it is done; an order again where another one took its number, or after a while."""
        world, oracle = self._world, self._world.oracle
        end_s = world.now_s + PATIENCE_S
        while world.now_s < end_s:
            if done():
                return True
            make = wanted()
            seq = oracle.admin_seq
            if make is not None:
                world.submit(make, tries=0)
            if world.run_until(min(end_s, world.now_s + AGAIN_S), lambda seq=seq: done() or oracle.admin_seq > seq):  # type: ignore[misc]
                world.run_until(world.now_s + 1.0, done)
        return done()

    def _settling(self) -> Maker | None:
        """What is open is cancelled and what is paused resumed; where there is nothing of either, the site is paused (and then resumed)."""
        oracle, height = self._world.oracle, self._world.oracle.height
        if NOTHING in oracle.paused:
            return self._order(OrderKind.RESUME, NOTHING)
        if oracle.pending != NOTHING or oracle.plan is not None:
            return self._order(OrderKind.CANCEL, oracle.pending if oracle.plan is None else oracle.plan.order.id)
        if self._settled_at is None:
            self._settled_at = height
        return self._order(OrderKind.PAUSE, NOTHING) if height == self._settled_at else None

    _settled_at: int | None = None

    def _updating(self) -> Maker | None:
        oracle = self._world.oracle
        bundle = self._image.bundle
        if NOTHING in oracle.paused:
            return self._order(OrderKind.RESUME, NOTHING)
        if oracle.plan is not None:
            return None if oracle.plan.order.bundle == bundle else self._order(OrderKind.CANCEL, oracle.plan.order.id)
        if oracle.pending != NOTHING:
            mine = self._world.authority.orders[oracle.pending].bundle == bundle
            return None if mine else self._order(OrderKind.CANCEL, oracle.pending)
        width = len(self._world.hosts)
        return lambda rules, seq: self._world.authority.update(rules, seq, self._image, share=1, width=width, halt_at=width, overdue_s=600)

    def _order(self, kind: OrderKind, target: bytes) -> Maker:
        return lambda rules, seq: self._world.authority.order(rules, kind, seq, target=target, reason="asked")

    def _grantable(self) -> bool:
        """Some honest node can get a lease without breaking a budget, once those that are on their way have ended theirs."""
        world, oracle = self._world, self._world.oracle
        rules = oracle.membership
        willing = [host for host in world.up() if host.index not in world.scenario.manual and host.index not in oracle.evicted]
        if len(world.up()) < rules.min_up + 1 or len(willing) < rules.approvals:
            return False
        stuck = {node for node in oracle.held if not self._speaks(node)}
        fit = [host.index for host in world.hosts.values() if host.honest and host.index not in oracle.evicted]
        free = [node for node in fit if node not in stuck and node not in world.scenario.manual]
        return any(not over_budget(rules, stuck | {node}) for node in free)

    def _speaks(self, node: int) -> bool:
        """It will end its lease by its own word."""
        world = self._world
        return node in world.hosts and world.hosts[node].honest and world.witness.subjects[node].intact
