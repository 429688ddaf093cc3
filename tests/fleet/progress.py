"""Invariant 11: after the network heals, with Q honest voters up, a valid GRANT commits (or, where no budget is free, any order does)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from abupdate.formats.messages import NOTHING
from abupdate.formats.order import OrderKind
from tests.fleet.device import Why
from tests.fleet.images import Image
from tests.fleet.oracle import over_budget

if TYPE_CHECKING:
    from tests.fleet.world import World

# Rounds have grown to a minute while nothing could be decided; a few of them may be led by liars.
PATIENCE_S = 900.0
REST_S = 5.0


class Progress:
    """Asks the site for an update and waits."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _able(self) -> list[int]:
        """Honest voters that may vote and run."""
        world = self._world
        voters = world.oracle.membership.voters
        return [
            host.index
            for host in world.hosts.values()
            if host.honest and host.index in voters and world.witness.subjects[host.index].intact and host.device.powered
        ]

    def ask(self) -> tuple[bool | None, str]:
        """Whether the site made progress, None where it need not; and why not."""
        world = self._world
        world.run_until(world.now_s + REST_S)
        quorum = world.oracle.membership.quorum
        if len(self._able()) < quorum:
            return None, "too few honest voters are left"
        if not self._settled():
            return False, f"orders do not commit: height {world.oracle.height}"
        if not self._grantable():
            return True, "no budget is free for a grant"
        return self._update()

    def _settled(self) -> bool:
        """What is open or paused is cancelled and resumed; each is an order that must commit."""
        world, oracle = self._world, self._world.oracle
        deadline_s = world.now_s + PATIENCE_S
        submitted = 0
        while world.now_s < deadline_s:
            if NOTHING in oracle.paused:
                kind, target = OrderKind.RESUME, NOTHING
            elif oracle.pending != NOTHING:
                kind, target = OrderKind.CANCEL, oracle.pending
            elif oracle.plan is not None:
                kind, target = OrderKind.CANCEL, oracle.plan.order.id
            elif submitted == 0:
                # Nothing is open: a PAUSE of the site is an order that can always commit; it is lifted in the next turn.
                kind, target = OrderKind.PAUSE, NOTHING
            else:
                return True
            height = oracle.height
            submitted += 1
            world.submit(
                lambda rules, seq, kind=kind, target=target: world.authority.order(rules, kind, seq, target=target, reason="asked"), tries=8
            )
            if not world.run_until(min(deadline_s, world.now_s + PATIENCE_S / 2), lambda before=height: oracle.height > before):
                return False
            # A rival may have been decided instead; look again after a while.
            world.run_until(world.now_s + 2.0)
        return False

    def _grantable(self) -> bool:
        """Some honest node can get a lease without breaking a budget, once those that are on their way have ended theirs."""
        world, oracle = self._world, self._world.oracle
        stuck = {
            node
            for node in oracle.held
            if node not in world.hosts or not world.hosts[node].honest or not world.witness.subjects[node].intact
        }
        rules = oracle.membership
        if len(world.up()) < max(rules.approvals, rules.min_up + 1):
            return False
        return any(
            not over_budget(rules, stuck | {index}) and len(stuck) + 1 <= len(world.hosts) for index in self._fit() if index not in stuck
        )

    def _fit(self) -> list[int]:
        world = self._world
        return [host.index for host in world.hosts.values() if host.honest and host.index not in world.oracle.evicted and host.index not in world.scenario.manual]

    def _update(self) -> tuple[bool, str]:
        world, oracle = self._world, self._world.oracle
        image = Image("the last one", 9)
        world.images[image.bundle] = image
        grants = oracle.counts.get("grant", 0)
        width = len(world.hosts)
        world.submit(lambda rules, seq: world.authority.update(rules, seq, image, share=1, width=width, halt_at=width, overdue_s=600), tries=20)
        if world.run_until(world.now_s + PATIENCE_S, lambda: oracle.counts.get("grant", 0) > grants):
            return True, ""
        down = [host.index for host in world.hosts.values() if host.device.down_for and host.device.down_for[0] is Why.LEASE]
        return False, f"no grant: height {oracle.height}, pending {oracle.pending.hex()[:8]}, plan {oracle.plan}, held {oracle.held}, down {down}"
