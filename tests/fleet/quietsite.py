"""A site of real cores in simulated time on a medium, with devices that update themselves; what the core costs is counted as it runs.

Working on a frame takes a node VERIFY_S and a flush of its log PERSIST_S of simulated time, as on a small board with eMMC. Nothing goes
wrong here but on the medium: what the core does when things do is tested with world.py.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from abupdate.fleet.events import (
    Alarm,
    Compact,
    Decided,
    Effect,
    Event,
    Leave,
    LeaveEnded,
    Observed,
    Persist,
    Prepare,
    Prepared,
    Reboot,
    Received,
    RecordKind,
    Send,
    Start,
    Submitted,
    Tick,
)
from abupdate.fleet.identity import Identity
from abupdate.fleet.node import Node
from abupdate.fleet.site import Options
from abupdate.fleet.wire import Seal
from abupdate.formats.entries import Entry
from tests.fleet.authority import Authority, Shape
from tests.fleet.device import Device, Pace, Shell, Why
from tests.fleet.images import FACTORY, Image
from tests.fleet.media import Medium
from tests.fleet.vault import SimSeal, Vault

VERIFY_S = 0.001
PERSIST_S = 0.010
LOOK_S = 5.0
# Of a device that is quick: what a rollout costs the medium does not depend on it, and the ring costs the simulation most.
PACE = Pace(prepare=(5.0, 15.0), drain=(2.0, 3.0), boot=(4.0, 7.0), window=(10.0, 10.0))
TARGET = Image("target", 2)


class _Nobody:
    """A watcher that does not care."""

    def going_down(self, node: int, why: Why, lease: int | None) -> None:
        """See device.Watcher."""

    def booted(self, node: int, bundle: bytes, why: Why, lease: int | None) -> None:
        """See device.Watcher."""

    def settled(self, node: int, lease: int | None) -> None:
        """See device.Watcher."""


@dataclass(frozen=True, slots=True)
class Height:
    """A height that a node has decided."""

    node: int
    when_s: float
    height: int
    entry: Entry


@dataclass(slots=True)
class Cost:
    """What `handle` took of the processor for events of each class."""

    calls: Counter[str] = field(default_factory=Counter)
    cpu_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass(slots=True)
class _Member:
    number: int
    seal: Seal
    device: Device
    log: list[tuple[RecordKind, bytes]] = field(default_factory=list)
    node: Node | None = None
    wake_s: float = 0.0


class Site:
    """`start`, then `propose` and `until`. medium: makes one for frames with this site tag.

    decided: by all nodes, as it happened. alarms: of all nodes.
    """

    def __init__(self, shape: Shape, medium: Callable[[bytes], Medium], *, real_keys: bool, width: int = 1) -> None:
        self.width = width
        self.cost = Cost()
        self.decided: list[Height] = []
        self.alarms: list[str] = []
        self._random = Random(5)
        self._authority = Authority("bench")
        self._images = {image.bundle: image for image in (FACTORY, TARGET)}
        seals = _seals(shape.nodes, real_keys=real_keys)
        self.membership = self._authority.found(shape, {number: key for number, (key, _) in seals.items()})
        self.medium = medium(self.membership.genesis[:4])
        self.clock = self.medium.clock
        self._options = Options(base_s=self.medium.base_s)
        self.members = {number: self._member(number, seal) for number, (_, seal) in seals.items()}

    def _member(self, number: int, seal: Seal) -> _Member:
        shell = Shell(
            later=lambda delay_s, act: self.clock.at(self.clock.now_s + delay_s, act),
            observe=lambda: self._observe(member),
            prepared=lambda order, fault, final: self._prepared(member, Prepared(order, fault, final)),
            leave_ended=lambda lease, reason: self._left(member, LeaveEnded(lease, reason)),
            power_off=lambda: self._off(member),
            power_on=lambda: self._on(member),
            doubted=lambda: False,
        )
        member = _Member(number, seal, Device(number, Random(number), shell, _Nobody(), self._images, PACE))
        return member

    # -- what a bench does

    def start(self, late: Mapping[int, float] | None = None) -> None:
        """All devices are switched on within a second, or within the one after the time that `late` says."""
        for number, member in self.members.items():
            on_s = (late or {}).get(number, 0.0)
            self.clock.at(on_s + self._random.random(), partial(self._on, member))
            self.clock.at(on_s + LOOK_S + self._random.random(), partial(self._look, member))

    def propose(self) -> None:
        """An admin hands an UPDATE to the first node."""
        order = self._authority.update(self.membership, 1, TARGET, share=100, width=self.width, overdue_s=3600)
        self._feed(self.members[0], Submitted(self._authority.order_files[order.id]))

    def until(self, reached: Callable[[], bool], patience_s: float) -> None:
        """Let time pass until something holds. Raises RuntimeError where it does not within the patience."""
        end_s = self.clock.now_s + patience_s
        while not reached():
            if self.clock.now_s > end_s:
                raise RuntimeError(f"not reached within {patience_s:.0f} s: {self.told()}")
            self.clock.run(self.clock.now_s + 0.5)

    def updated(self) -> bool:
        """Every node has decided that the plan is done, and runs the target."""
        nodes = [member.node for member in self.members.values() if member.device.bundle == TARGET.bundle]
        return len(nodes) == len(self.members) and all(node is not None and node.state.closed for node in nodes)

    def ready(self) -> bool:
        """Every node has fresh status of all others."""
        return all(member.node is not None and _sees_all(member.node) for member in self.members.values())

    def told(self) -> str:
        """For people: who is where."""
        return ", ".join(
            f"{member.number}: {'off' if member.node is None else member.node.state.height}" for member in self.members.values()
        )

    # -- nodes

    def _on(self, member: _Member) -> None:
        member.node = Node(member.number, (self._authority.files[self.membership.digest],), tuple(member.log), member.seal, self._options)
        self.medium.join(member.number, partial(self._hear, member))
        self._feed(member, Start(self._random.getrandbits(32)))
        self._observe(member)

    def _off(self, member: _Member) -> None:
        if member.node is not None:
            member.node = None
            self.medium.leave(member.number)

    def _look(self, member: _Member) -> None:
        self._observe(member)
        self.clock.at(self.clock.now_s + LOOK_S, partial(self._look, member))

    def _observe(self, member: _Member) -> None:
        self._feed(member, Observed(member.device.seen()))

    def _prepared(self, member: _Member, event: Prepared) -> None:
        self._feed(member, event)
        self._observe(member)

    def _left(self, member: _Member, event: LeaveEnded) -> None:
        self._feed(member, event)

    def _hear(self, member: _Member, data: bytes) -> float:
        return VERIFY_S + self._feed(member, Received(data))

    def _tick(self, member: _Member, node: Node, due_s: float) -> None:
        if member.node is node and member.wake_s == due_s:
            self._feed(member, Tick())

    def _feed(self, member: _Member, event: Event) -> float:
        """Returns the seconds that the node's flushes take."""
        node = member.node
        if node is None:
            return 0.0
        name = type(event).__name__
        begun_s = time.process_time()
        effects = node.handle(event, self.clock.now_s)
        self.cost.cpu_s[name] += time.process_time() - begun_s
        self.cost.calls[name] += 1
        took_s = self._perform(member, node, effects)
        if member.node is node and member.wake_s != node.wake_s:
            member.wake_s = node.wake_s
            self.clock.at(node.wake_s, partial(self._tick, member, node, node.wake_s))
        return took_s

    def _perform(self, member: _Member, node: Node, effects: Iterable[Effect]) -> float:
        took_s, before = 0.0, None
        for effect in effects:
            match effect:
                case Send(data, urgent):
                    self.medium.send(member.number, data, urgent=urgent)
                case Persist(kind, data):
                    member.log.append((kind, data))
                    took_s += 0.0 if isinstance(before, Persist) else PERSIST_S
                case Compact(records):
                    member.log[:] = records
                    took_s += PERSIST_S
                case Alarm(text):
                    self.alarms.append(text)
                case Decided(height, entry):
                    self.decided.append(Height(member.number, self.clock.now_s, height, entry))
                case Prepare(order):
                    member.device.prepare(order)
                case Leave(lease, _, bundle, back):
                    member.device.leave(lease, bundle, back=back)
                case Reboot(lease):
                    member.device.reboot(lease)
                case _:
                    pass
            before = effect
        return took_s


def _sees_all(node: Node) -> bool:
    view = node.view()
    return all(one.age_s is not None for index, one in view.members.items() if index != view.me)


def _seals(count: int, *, real_keys: bool) -> dict[int, tuple[bytes, Seal]]:
    """Public key and seal of each node; the same in every run."""
    if not real_keys:
        vault = Vault(b"bench")
        return {number: (key, SimSeal(vault, key)) for number in range(count) for key in (vault.make_key(f"node {number}"),)}
    seals: dict[int, tuple[bytes, Seal]] = {}
    for number in range(count):
        one = Identity(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"bench %d" % number).digest()))
        seals[number] = one.public_key, one
    return seals
