"""A byzantine member of a real site: `tests/agent.py`'s daemon, whose frames are bent by the simulator's library of lies.

It has the whole core and its own key, and real UDP. It votes and proposes differently towards different peers, says COMPLETE for leases of
others (under their name and its own) and for its own without ever having gone down. Called like tests/agent.py.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from abupdate import fleetwiring
from abupdate.__main__ import main
from abupdate.fleet import ledger
from abupdate.fleet.carrier import Commands
from abupdate.fleet.events import RecordKind
from abupdate.fleet.node import Node
from abupdate.fleet.ports import Medium
from abupdate.fleet.site import Options
from abupdate.fleet.udp import Udp
from abupdate.fleet.wire import Seal
from abupdate.fleetsettings import FleetSettings
from abupdate.formats import frame
from abupdate.formats.membership import Membership
from abupdate.formats.messages import NOTHING, Outcome, Type
from abupdate.log import log
from tests import agent
from tests.fleet.byzantine import Behaviour, Equivocating, FalseComplete, Forging, Liar, Words, bent
from tests.fleet.oracle import Held, Open, Oracle

PULSE_S = 1.0
_PAST = 200
_SEED = 1


class Claiming(Behaviour):
    """Says COMPLETE under its own name for the leases that others hold."""

    def pulse(self, liar: Liar) -> Words:
        for node, held in liar.oracle.held.items():
            if node != liar.index:
                yield None, liar.make(Type.COMPLETE, Outcome(held.lease, liar.bundles()[0]))


LIES: tuple[Behaviour, ...] = (Equivocating(), FalseComplete(), Forging(), Claiming())


def known(node: Node) -> Oracle:
    """What the node knows of the site, as the lies ask for it; nobody judges by it."""
    view, state = node.view(), node.state
    oracle = Oracle(
        view.membership,
        orders={one.order.id: one.order for one in view.orders},
        memberships={},
        genuine=lambda order: True,
        spoke=lambda release, held: "",
        asked=lambda node, plan, attempt: True,
        approved=lambda node, order: True,
        height=state.height,
        admin_seq=state.admin_seq,
        held={one.node: Held(one.height, one.plan, one.back, one.lost, one.overdue) for one in state.leases.values()},
        pending=state.pending,
    )
    if view.plan is not None and state.plan is not None:
        grants = {node: standing.grants for node, standing in state.plan.nodes.items()}
        canaries = ledger.canaries(view.membership)
        oracle.plan = Open(view.plan.order, set(state.plan.nodes), state.plan.halt_at, state.plan.back, canaries, grants)
    return oracle


class LyingUdp(Udp):
    """UDP that says one thing to some peers and another to the rest. It learns where they are from their heartbeats."""

    def __init__(self, fleet: FleetSettings, node: Node, seal: Seal, me: int) -> None:
        super().__init__(fleet.udp_interface, fleet.udp_group, fleet.udp_port, fleet.peers)
        self._node = node
        self._where: dict[int, tuple[str, int]] = {}
        self._past: deque[bytes] = deque(maxlen=_PAST)
        self._pulse_s = 0.0
        self._told: set[str] = set()
        self._liar = Liar(
            me,
            seal,
            node.view().membership.genesis,
            Random(_SEED),
            known(node),
            [],
            others=lambda: tuple(index for index in self._node.view().membership.by_index if index != me),
            bundles=self._bundles,
            value=lambda entry: NOTHING,
            trap=lambda: None,
        )

    @property
    def wake_s(self) -> float:
        return min(super().wake_s, self._pulse_s)

    def receive(self, now_s: float, limit: int) -> Iterable[tuple[bytes, str]]:
        found = list(super().receive(now_s, limit))
        for data, address in found:
            try:
                one = frame.parse(data)
            except frame.Malformed:
                continue
            self._past.append(data)
            if one.type is Type.HEARTBEAT:
                host, _, port = address.rpartition(":")
                self._where[one.source] = (host, int(port))
        if now_s >= self._pulse_s:
            self._pulse_s = now_s + PULSE_S
            self._learn()
            for lie in LIES:
                for targets, data in lie.pulse(self._liar):
                    self._tell(type(lie).__name__, data)
                    self._say(targets, data, urgent=False)
        return found

    def send(self, data: bytes, *, urgent: bool) -> None:
        self._learn()
        words = bent(LIES, self._liar, data)
        if len(words) > 1:
            self._tell(Equivocating.__name__, data)
        # Whoever hears but one side of it cannot know: now and then somebody is told both.
        both = frozenset(self._liar.random.sample(sorted(self._where), min(1, len(self._where)))) if len(words) > 1 else frozenset()
        for targets, said in words:
            self._say(None if targets is None else targets | both, said, urgent=urgent)

    def _say(self, targets: frozenset[int] | None, data: bytes, *, urgent: bool) -> None:
        if targets is None:
            super().send(data, urgent=urgent)
            return
        for node in sorted(targets & self._where.keys()):
            self._send_to(data, *self._where[node])

    def _learn(self) -> None:
        self._liar.oracle = known(self._node)
        self._liar.past = list(self._past)

    def _bundles(self) -> tuple[bytes, ...]:
        plan = self._node.view().plan
        return (plan.order.bundle if plan is not None else NOTHING,)

    def _tell(self, lie: str, data: bytes) -> None:
        """The test must see that lies were told, each once."""
        one = frame.parse(data)
        about = f" for lease {one.message.lease}" if isinstance(one.message, Outcome) else ""
        said = f"lie: {lie}: {one.type.name}{about} in the name of {one.source}"
        if said not in self._told:
            self._told.add(said)
            log.warning("%s", said)


def prepare() -> None:
    """From now on the daemon of this process lies, and does not go down for its lease."""
    made: list[tuple[Node, Seal]] = []
    honest = fleetwiring.commands

    def node(me: int, memberships: Sequence[bytes], records: Sequence[tuple[RecordKind, bytes]], seal: Seal, options: Options) -> Node:
        made.append((Node(me, memberships, records, seal, options), seal))
        return made[-1][0]

    def media(fleet: FleetSettings, me: int, current: Callable[[], Membership]) -> tuple[Medium, ...]:
        return (LyingUdp(fleet, *made[-1], me),)

    def commands(*words: object) -> Commands:
        real = honest(*words)  # type: ignore[arg-type]
        return replace(real, act=lambda verb, *more: (sys.executable, "-c", "") if verb == "leave" else real.act(verb, *more))

    for name, bent_one in (("Node", node), ("media", media), ("commands", commands)):
        setattr(fleetwiring, name, bent_one)


if __name__ == "__main__":
    agent.prepare()
    prepare()
    sys.exit(main(sys.argv[1:]))
