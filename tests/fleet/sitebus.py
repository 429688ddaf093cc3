"""A site of real nodes (the whole core) on the modelled bus: what an update costs there in time and in bytes.

`python -m tests.fleet.sitebus` prints the figures. Devices do what they are told: a bundle is there at once, a reboot takes REBOOT_S, and
the new slot is confirmed WINDOW_S after it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from functools import partial

from abupdate.fleet.events import (
    Alarm,
    Compact,
    Conditions,
    Decided,
    Device,
    Event,
    Leave,
    Observed,
    Persist,
    Prepare,
    Prepared,
    Received,
    RecordKind,
    Send,
    Start,
    Submitted,
    Tick,
)
from abupdate.fleet.node import Node
from abupdate.fleet.site import Options
from abupdate.formats import entries, frame
from abupdate.formats import membership as membership_format
from abupdate.formats.messages import NOTHING, Frame
from abupdate.formats.order import OrderKind
from abupdate.model import Phase
from tests.fleet import sitekit
from tests.fleet.bus import Bus, Noise, Station
from tests.fleet.vault import SimSeal, Vault

VERIFY_S = 0.001
FLUSH_S = 0.010
FETCH_S = 0.5
DRAIN_S = 0.5
REBOOT_S = 8.0
WINDOW_S = 3.0


@dataclass(slots=True)
class BusNode:
    """A node, its device and its log. wake_s: of the Tick that is under way."""

    number: int
    core: Node
    device: Device
    records: list[tuple[RecordKind, bytes]] = field(default_factory=list)
    wake_s: float = float("inf")
    downs: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that the first node saw decided."""

    when_s: float
    height: int
    kind: str
    size_bytes: int


class BusSite:
    """`run` lets time pass; what the first node has seen decided is in `decisions`."""

    def __init__(self, count: int, faults: int, *, baud: int = 115200, seed: int = 0, noise: Noise | None = None) -> None:
        vault = Vault(b"bus")
        self.seals = [SimSeal(vault, vault.make_key(f"node {number}")) for number in range(count)]
        plain = sitekit.site(count, faults)
        members = tuple(replace(one, key=seal.public) for one, seal in zip(plain.members, self.seals, strict=True))
        self.membership = membership_format.parse(sitekit.membership_file(replace(plain, members=members)))
        self.file = sitekit.membership_file(self.membership)
        self.bus = Bus(count, baud, seed=seed, noise=noise, tag=self.membership.genesis[:4])
        self.decisions: list[Decision] = []
        self.alarms: list[str] = []
        self.nodes: dict[int, BusNode] = {}
        for number in range(count):
            device = Device(sitekit.OLD, NOTHING, NOTHING, trial=False, armed=False, lease=None, phase=None)
            self._start(number, device, [], 0.01 * number)

    def run(self, until_s: float) -> None:
        """See Bus.run."""
        self.bus.run(until_s)

    def until(self, what: str, patience_s: float) -> float:
        """When the first node sees the next entry of this kind decided."""
        begun, end_s = len(self.decisions), self.bus.now_s + patience_s
        while not any(one.kind == what for one in self.decisions[begun:]):
            assert self.bus.now_s < end_s, f"no {what} in {patience_s:g} s: {self.decisions[-5:]} {self.alarms}"
            self.run(self.bus.now_s + 0.05)
        return next(one.when_s for one in self.decisions[begun:] if one.kind == what)

    def propose(self, **fields: object) -> None:
        """An admin hands an order to the first node."""
        data = sitekit.order_file(self.membership, OrderKind.UPDATE, 1, **fields)
        self._hand_in(self.nodes[0], Submitted(data))
        self.bus.poke(self.bus.stations[0])

    # -- the nodes

    def _start(self, number: int, device: Device, records: list[tuple[RecordKind, bytes]], at_s: float) -> None:
        core = Node(number, (self.file,), records, self.seals[number], Options(base_s=4.0))
        node = self.nodes[number] = BusNode(number, core, device, records)

        def begin() -> None:
            self.bus.join(number, self._program).keep = False
            for event in (Conditions(), Start(number * 1000 + node.downs), Observed(device)):
                self._hand_in(node, event)

        self.bus.at(at_s, begin)

    def _program(self, station: Station, one: Frame, now_s: float) -> float:
        node = self.nodes[station.number]
        flushes = self._hand_in(node, Received(frame.pack(one)))
        return VERIFY_S + flushes * FLUSH_S

    def _hand_in(self, node: BusNode, event: Event) -> int:
        """An event and its effects; how often the log was flushed."""
        now_s = self.bus.now_s
        station = self.bus.stations[node.number]
        flushes, dirty = 0, False
        for effect in node.core.handle(event, now_s):
            if isinstance(effect, Persist):
                node.records.append((effect.kind, effect.data))
                flushes, dirty = flushes + (not dirty), True
                continue
            dirty = False
            match effect:
                case Send(data, urgent):
                    station.put(data, now_s, urgent=urgent)
                case Compact(records):
                    node.records[:] = records
                case Prepare(order):
                    node.device = replace(node.device, written=order.bundle)
                    self.bus.at(now_s + FETCH_S, partial(self._later, node, Prepared(order.id), Observed(node.device)))
                case Leave(lease, _, bundle):
                    self.bus.at(now_s + DRAIN_S, partial(self._down, node, lease, bundle))
                case Alarm(text):
                    self.alarms.append(text)
                case Decided(height, entry) if node.number == 0:
                    self.decisions.append(Decision(now_s, height, type(entry).__name__, len(entries.pack(entry))))
        self._schedule(node)
        return flushes

    def _later(self, node: BusNode, *events: Event) -> None:
        if self.nodes[node.number] is node and node.number in self.bus.stations:
            for event in events:
                self._hand_in(node, event)
            self.bus.poke(self.bus.stations[node.number])

    def _schedule(self, node: BusNode) -> None:
        due_s = max(node.core.wake_s, self.bus.now_s)
        if due_s < node.wake_s or node.wake_s <= self.bus.now_s:
            node.wake_s = due_s
            self.bus.at(due_s, lambda: self._later(node, Tick()) if node.wake_s <= self.bus.now_s else None)

    def _down(self, node: BusNode, lease: int, bundle: bytes) -> None:
        """The device reboots into the new slot, on trial, and confirms it."""
        if node.device.lease == lease:
            return
        now_s = self.bus.now_s
        trial = Device(bundle, node.device.booted, NOTHING, trial=True, armed=False, lease=lease, phase=Phase.ARMED, target=bundle)
        node.device = trial
        self.bus.leave(node.number)

        def up() -> None:
            self._start(node.number, trial, node.records, self.bus.now_s)
            fresh = self.nodes[node.number]
            fresh.downs = node.downs + 1
            self.bus.at(self.bus.now_s + WINDOW_S, lambda: confirm(fresh))

        def confirm(fresh: BusNode) -> None:
            fresh.device = replace(trial, trial=False, phase=Phase.CONFIRMED)
            self._later(fresh, Observed(fresh.device))

        self.bus.at(now_s + REBOOT_S, up)


def main() -> None:
    """Print what an update costs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--faults", type=int, default=3)
    parser.add_argument("--baud", type=int, default=115200)
    parser.add_argument("--settle", type=float, default=20.0, metavar="S", help="from power on to the order")
    parser.add_argument("--seconds", type=float, default=120.0, metavar="S", help="from the order on")
    options = parser.parse_args()
    site = BusSite(options.nodes, options.faults, baud=options.baud)
    site.run(options.settle)
    seen = [sum(one.age_s is not None for one in node.core.view().members.values()) for node in site.nodes.values()]
    print(f"{options.settle:g} s after power on everybody sees {min(seen)} or more of {options.nodes}")
    site.propose(width=3)
    site.run(options.settle + options.seconds)
    for one in site.decisions:
        print(f"{one.when_s - options.settle:8.2f} s  height {one.height:3}  {one.kind:14} {one.size_bytes:5} bytes")
    for kind, (frames, size, seconds) in site.bus.usage().items():
        print(f"{kind.name:12} {frames:6} frames {size:8} bytes {100 * seconds / site.bus.now_s:6.2f} % of the time")
    print(f"collisions {site.bus.collisions}")


if __name__ == "__main__":
    main()
