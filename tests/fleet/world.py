"""A whole site in simulated time around the pure core: devices, processes that crash, a network that lies, people who order things.

Everything follows from the scenario: the same one gives the same run. What the world needs of chance comes from streams that are seeded
apart, so that leaving out one action changes little of the rest.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random

from abupdate.errors import Refused
from abupdate.fleet import journal
from abupdate.fleet.events import (
    Alarm,
    Compact,
    Conditions,
    Disarm,
    Effect,
    Event,
    Leave,
    LeaveEnded,
    Observed,
    Opinion,
    Persist,
    Prepare,
    Prepared,
    Reboot,
    Received,
    RecordKind,
    RollBackNow,
    Send,
    Start,
    Submitted,
    Tick,
)
from abupdate.fleet.node import Node
from abupdate.fleet.site import Options
from abupdate.formats import certificate as certificate_format
from abupdate.formats import entries
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import Entry, ReconfigEntry
from abupdate.formats.membership import Member, Membership
from abupdate.formats.messages import NOTHING
from abupdate.formats.order import Order, OrderKind
from tests.fleet import actions
from tests.fleet.actions import Scenario
from tests.fleet.authority import Authority
from tests.fleet.byzantine import BEHAVIOURS, TWO_FACED, Liar, bent
from tests.fleet.device import Device, Shell
from tests.fleet.host import YEAR_S, Clock, Host, Process
from tests.fleet.images import FACTORY, Image
from tests.fleet.invariants import Subject, Violation, Witness
from tests.fleet.network import Network, Trap
from tests.fleet.oracle import Oracle
from tests.fleet.vault import SimSeal, Vault

TRACED = 120
_MAX_STEPS = 200_000


@dataclass
class Result:
    """What a schedule came to. live: None where it could not be asked, else whether the site made progress after everything healed.

    counts: what was decided, and what came of it (oracle.py). faults: what went wrong, or was done to the site.
    """

    seed: int
    kind: str
    steps: int = 0
    decisions: int = 0
    grants: int = 0
    frames: int = 0
    crashes: int = 0
    live: bool | None = None
    violation: str = ""
    why_not_live: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)


class World:
    """Runs one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.now_s = 0.0
        self.steps = 0
        self.frames = 0
        self.crashes = 0
        self.faults: Counter[str] = Counter()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._healed = False
        self._random = self._stream("world")
        self._crash = self._stream("crash")
        self.network = Network(self._stream("network"), scenario.weather)
        self.trace: deque[tuple[float, str, object, object]] = deque(maxlen=TRACED)
        self.authority = Authority(f"site-{scenario.seed}")
        self.vault = Vault(b"vault %d" % scenario.seed)
        self.images: dict[bytes, Image] = {FACTORY.bundle: FACTORY}
        self.hosts: dict[int, Host] = {}
        self._recovered = False
        self._waiting: list[tuple[str, int, bytes]] = []
        self._remembers = any(isinstance(action.deed, actions.Restore) for action in scenario.actions)
        weather = scenario.weather
        troubles = (("frames get lost", weather.loss), ("frames come twice", weather.twice), ("frames come late", weather.late))
        self.faults.update(name for name, probability in troubles if probability)
        nodes = range(scenario.shape.nodes)
        keys = {node: self.vault.make_key(f"node {node}") for node in nodes}
        membership = self.authority.found(scenario.shape, keys)
        self.genesis = membership.genesis
        self.chain = [self.authority.files[membership.digest]]
        self.witness = self._new_witness(membership)
        liars = dict(scenario.byzantine)
        for node in nodes:
            self._add_host(node, keys[node], tuple(self.chain), liars.get(node, ()))

    def _stream(self, name: str) -> Random:
        return Random(f"{self.scenario.seed} {name}")

    def _new_witness(self, membership: Membership) -> Witness:
        return Witness(self._new_oracle(membership), {}, self.authority.orders)

    def _new_oracle(self, membership: Membership) -> Oracle:
        return Oracle(
            membership,
            self.authority.orders,
            self.authority.memberships,
            self.authority.genuine,
            lambda release, held: self.witness.spoke(release, held),
            lambda node, plan, attempt: self.witness.asked(node, plan, attempt),
            lambda node, order: self.witness.approved(node, order),
        )

    @property
    def oracle(self) -> Oracle:
        """The log as it is decided."""
        return self.witness.oracle

    # -- time

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do something after a while of true time."""
        self._count += 1
        heapq.heappush(self._heap, (self.now_s + delay_s, self._count, act))

    def run_until(self, end_s: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass. Returns whether `done` came true before the end."""
        heap = self._heap
        while heap and heap[0][0] <= end_s:
            self.now_s, _, act = heapq.heappop(heap)
            act()
            if done is not None and done():
                return True
            if self.steps > _MAX_STEPS:
                raise Violation(f"no end: {self.steps} steps in {self.now_s:.0f} s of simulated time")
        self.now_s = max(self.now_s, end_s)
        return False

    # -- hosts

    def _add_host(self, index: int, key: bytes, memberships: tuple[bytes, ...], behaviours: tuple[str, ...] = ()) -> Host:
        random = self._stream(f"device {index} {key.hex()[:8]}")
        shell = Shell(
            later=self.later,
            observe=lambda: self._observe(host),
            prepared=lambda order, fault, final: self._prepared(host, order, fault, final),
            leave_ended=lambda lease, reason: self._feed(host, host.main, LeaveEnded(lease, reason)),
            power_off=lambda: self._power_off(host),
            power_on=lambda: self._start(host),
            doubted=lambda: self._doubted(host),
        )
        device = Device(index, random, shell, self.witness, self.images, refuses_drain=self.scenario.refuses)
        host = Host(index, key, SimSeal(self.vault, key), device, [Process(0)], memberships)
        if self.scenario.tpm:
            host.tpm = 0
        if behaviours:
            host.behaviours = tuple(BEHAVIOURS[name]() for name in behaviours)
            self.faults.update(behaviours)
            host.liar = Liar(
                index,
                host.seal,
                self.genesis,
                self._stream(f"liar {index}"),
                self.oracle,
                [],
                lambda: tuple(node for node, other in self.hosts.items() if node != index and not other.gone),
                lambda: tuple(self.images),
                lambda data: self._value(host, data),
                lambda: self.network.trap,
            )
            if TWO_FACED in behaviours:
                host.processes.append(Process(1))
            self.later(1.0, lambda: self._pulse(host))
        self.hosts[index] = host
        self.witness.subjects[index] = Subject(index, key, device, honest=host.honest)
        return host

    def _start(self, host: Host) -> None:
        """The node's processes start, from what their logs hold."""
        if host.gone or not host.device.powered or all(process.node is not None for process in host.processes):
            # Two things may have ended it, and each starts it again; the clock of one that runs does not begin anew.
            return
        if host.tpm is not None:
            host.tpm += 1
        origin_s = self._random.uniform(0.0, 10.0)
        if self.scenario.wild_clocks and not self._healed:
            origin_s = self._random.choice((0.0, 3 * YEAR_S, 50 * YEAR_S))
            self.faults["a clock that is off by years"] += origin_s > 0.0
        host.clock.restart(self.now_s, origin_s)
        for process in host.processes:
            if process.node is not None:
                continue
            process.starts += 1
            options = Options(base_s=self.scenario.base_s, approve=host.index not in self.scenario.manual)
            process.node = Node(host.index, host.memberships, tuple(process.log), host.seal, options)
            if process.number == 0 and host.honest:
                self.witness.started(host.index)
                # What it heard lies in its memory.
                self.witness.known.pop(host.index, None)
            self._feed(host, process, Start(self._random.getrandbits(32), process.fault, host.tpm))
            if process.node is not None:
                self._feed(host, process, Observed(host.device.seen()))

    def _end(self, host: Host) -> None:
        """The node's processes end; the device goes on."""
        for process in host.processes:
            process.node, process.wake_at = None, None
        host.device.process_ended()

    def _power_off(self, host: Host) -> None:
        for process in host.processes:
            process.node, process.wake_at = None, None

    def _observe(self, host: Host) -> None:
        for process in host.processes:
            self._feed(host, process, Observed(host.device.seen()))

    def _value(self, host: Host, data: bytes) -> bytes:
        """What a vote for this entry names, as far as the liar's own core can tell; NOTHING where it cannot."""
        node = host.main.node
        try:
            return node._site.after(entries.parse(data), data).value if node is not None else NOTHING
        except (Refused, KeyError, ValueError):
            return NOTHING

    def _doubted(self, host: Host) -> bool:
        """More than f peers would hold back its confirm."""
        node = host.main.node
        return node is not None and len(node.view().doubters) > self.oracle.membership.faults

    def _prepared(self, host: Host, order: bytes, fault: str, final: bool) -> None:
        self._feed(host, host.main, Prepared(order, fault, final))
        self._observe(host)

    def _look_again(self, host: Host) -> None:
        if host.gone:
            return
        self._observe(host)
        self.later(15.0, lambda: self._look_again(host))

    # -- events and effects

    def _feed(self, host: Host, process: Process, event: Event) -> None:
        node = process.node
        if node is None:
            return
        self.steps += 1
        try:
            effects = node.handle(event, host.clock.read(self.now_s))
        except Refused as fault:
            self.trace.append((self.now_s, str(host.index), event, f"refused: {fault}"))
            raise
        self.trace.append((self.now_s, f"{host.index}{'b' if process.number else ''}", event, effects))
        self._perform(host, process, effects)
        if process.node is not None:
            self._set_alarm(host, process)

    def _set_alarm(self, host: Host, process: Process) -> None:
        node = process.node
        if node is None:
            return
        clock = host.clock
        wait_s = max(0.0, (node.wake_s - clock.read(self.now_s)) / clock.rate)
        due_s = self.now_s + wait_s
        # One that comes a little early does no harm, and most events do not change when the node wants to wake.
        if process.wake_at is not None and self.now_s <= process.wake_at <= due_s + 1e-9 and process.wake_at >= due_s - 1e-6:
            return
        process.wake_at = due_s

        def ring() -> None:
            if process.node is node and process.wake_at == due_s:
                process.wake_at = None
                self._feed(host, process, Tick())

        self.later(wait_s, ring)

    def _perform(self, host: Host, process: Process, effects: Iterable[Effect]) -> None:
        device, main = host.device, process.number == 0
        crash = self.scenario.crash if not self._healed and host.honest else 0.0
        for effect in effects:
            match effect:
                case Send():
                    self._send(host, process, effect.data)
                case Persist():
                    crashes = self._crashes(process, crash)
                    if not crashes or (process.crash_durable if process.crash_at == 0 else self._crash.random() < 0.5):
                        process.log.append((effect.kind, effect.data))
                        if effect.kind is RecordKind.DECIDED and host.honest:
                            # What the log holds is decided, also where the process ends before it can say so.
                            self._decided(host, certificate_format.parse(effect.data))
                    if crashes:
                        self._crashed(host, process)
                        return
                case Compact():
                    process.log[:] = effect.records
                    self._compacted(host, effect.records)
                    if crash and self._crash.random() < 10 * crash:
                        self._crashed(host, process)
                        return
                case Alarm() if host.honest:
                    self.witness.accused(host.index, process.node.view().liars if process.node is not None else frozenset())
                case Prepare() if main:
                    device.prepare(effect.order)
                case Leave() if main:
                    device.leave(effect.lease, effect.bundle, back=effect.back)
                case Reboot() if main:
                    device.reboot(effect.lease)
                case Disarm() if main:
                    device.disarm(effect.lease)
                case RollBackNow() if main:
                    device.roll_back_now(effect.order)
                case _:
                    pass
            if process.node is None:
                # The device went down under it.
                return

    def _crashes(self, process: Process, probability: float) -> bool:
        if process.crash_at is not None:
            process.crash_at -= 1
            if process.crash_at <= 0:
                process.crash_at = 0
                return True
        return probability > 0.0 and self._crash.random() < probability

    def _crashed(self, host: Host, process: Process) -> None:
        self.crashes += 1
        self.faults["crash at a log write"] += 1
        power = process.crash_power if process.crash_at == 0 else self._crash.random() < 0.3
        process.crash_at = None
        self.trace.append((self.now_s, str(host.index), "CRASH at a Persist", "power cut" if power else "process"))
        self._kill(host, power=power, back_s=self._crash.uniform(0.2, 6.0))

    def _kill(self, host: Host, *, power: bool, back_s: float | None) -> None:
        self.faults["power cut" if power else "process ends"] += 1
        if host.index in self.oracle.held:
            self.faults["goes down unasked under a lease"] += 1
        if power:
            host.device.power_cut()
            if back_s is not None:
                self.later(back_s, host.device.power_on)
            return
        self._end(host)
        if back_s is not None:
            self.later(back_s, lambda: self._start(host))

    def _send(self, host: Host, process: Process, data: bytes) -> None:
        if host.liar is None:
            self.witness.sent(host.index, data)
            self._transmit(host.index, None, data)
            return
        side = host.sides[process.number] if len(host.processes) > 1 and host.sides else None
        if host.liar is not None:
            for targets, bytes_ in bent(host.behaviours, host.liar, data):
                both = side if targets is None else targets if side is None else targets & side
                self._transmit(host.index, both, bytes_)

    def _transmit(self, source: int, targets: Iterable[int] | None, data: bytes) -> None:
        self.frames += 1
        network = self.network
        network.keep(data)
        for index in self.hosts if targets is None else targets:
            if index != source:
                for delay_s in network.arrivals(source, index, data):
                    self.later(delay_s, lambda index=index: self._arrive(source, index, data))  # type: ignore[misc]
        if network.weather.late and self._random.random() < network.weather.late:
            old, index = network.old_frame(), self._random.choice(tuple(self.hosts))
            if old is not None:
                self.later(0.01, lambda: self._arrive(source, index, old))

    def _arrive(self, source: int, index: int, data: bytes) -> None:
        host = self.hosts.get(index)
        if host is None or host.gone:
            return
        if host.liar is not None:
            host.liar.past.append(data)
            if len(host.liar.past) > 300:
                del host.liar.past[:150]
        if self._remembers and host.honest and host.main.node is not None:
            self.witness.heard(index, data)
        event = Received(data, f"10.0.0.{source}")
        for process in host.processes:
            if not host.sides or source in host.sides[process.number]:
                self._feed(host, process, event)

    def _pulse(self, host: Host) -> None:
        liar = host.liar
        if liar is None or host.gone:
            return
        if len(host.processes) > 1:
            half = liar.half()
            host.sides = [half, frozenset(liar.others()) - half]
        if host.main.node is not None:
            liar.boot = host.main.starts + 1
            for behaviour in host.behaviours:
                for targets, data in behaviour.pulse(liar):
                    self._transmit(host.index, targets, data)
        self.later(liar.random.uniform(2.0, 9.0), lambda: self._pulse(host))

    # -- the log

    def _decided(self, host: Host, one: Certificate) -> None:
        before, entry = self.oracle.height, entries.parse(one.entry)
        self.witness.decided(host.index, one.height, entry, one.state)
        if self.oracle.height > before and isinstance(entry, ReconfigEntry):
            self._reconfigured(entry)

    def _compacted(self, host: Host, records: Iterable[tuple[RecordKind, bytes]]) -> None:
        if host.honest:
            for kind, data in records:
                if kind is RecordKind.SNAPSHOT:
                    one = journal.read_snapshot(data)
                    self.witness.adopted(host.index, one.state.height, one.certificate.state)

    def _reconfigured(self, entry: Entry) -> None:
        """The world does by hand what belongs to a new membership."""
        membership = self.oracle.membership
        self.chain.append(self.authority.files[membership.digest])
        for change, index, key in self._waiting:
            member = membership.by_index.get(index)
            if change == "remove" and member is None and index in self.hosts:
                self._retire(index)
            elif change in ("add", "replace") and member is not None and member.key == key:
                if index in self.hosts:
                    self._retire(index)
                # All of them, or the last two: what was decided last may have been the new one, by the voters of the one before.
                given = self.chain if self._random.random() < 0.5 else self.chain[-2:]
                host = self._add_host(index, key, tuple(given))
                self.later(self._random.uniform(0.5, 3.0), lambda host=host: self._start(host))  # type: ignore[misc]
        self._waiting.clear()

    def _retire(self, index: int) -> None:
        host = self.hosts[index]
        host.gone = True
        self._end(host)
        host.device.power_cut()
        host.device.scrapped = True
        self.witness.former.setdefault(index, []).append(self.witness.subjects.pop(index))
        del self.hosts[index]

    # -- people

    def up(self) -> list[Host]:
        """Honest hosts whose process runs."""
        return [host for host in self.hosts.values() if host.honest and host.main.node is not None]

    def submit(self, make: Callable[[Membership, int], Order], *, everywhere: float = 0.0, tries: int = 6) -> None:
        """Sign an order and hand it to a node; again elsewhere where it is refused. everywhere: chance of each other node to get it too."""
        hosts = self.up()
        if not hosts:
            if tries:
                self.later(3.0, lambda: self.submit(make, everywhere=everywhere, tries=tries - 1))
            return
        order = make(self.oracle.membership, self.oracle.admin_seq + 1)
        self._random.shuffle(hosts)
        for number, host in enumerate(hosts):
            if number and self._random.random() >= everywhere:
                continue
            if not self._hand_in(host, order) and number == 0 and tries:
                self.later(3.0, lambda: self.submit(make, everywhere=everywhere, tries=tries - 1))

    def _hand_in(self, host: Host, order: Order) -> bool:
        process = host.main
        if order.kind is OrderKind.RESUME:
            self.witness.resumed_on_sight(order.target)
        try:
            self._feed(host, process, Submitted(self.authority.order_files[order.id]))
        except Refused:
            return False
        if order.kind is OrderKind.PAUSE and process.node is not None:
            self.witness.paused_on_sight(host.index, order)
        return True

    # -- actions

    def do(self, deed: actions.Deed) -> None:
        """Carry one out."""
        self.trace.append((self.now_s, "", deed, ""))
        self.faults[type(deed).__name__] += 1
        match deed:
            case actions.Propose():
                self._propose(deed)
            case actions.Command():
                self._command(deed)
            case actions.RollBack():
                self._roll_back(deed)
            case actions.Evict():
                barred = frozenset({deed.node})
                self.submit(lambda rules, seq: self.authority.order(rules, OrderKind.EVICT, seq, nodes=barred, reason="old"))
            case actions.Lose():
                self._lose(deed, 20)
            case actions.Strike():
                self._strike(deed.back_s, 40)
            case actions.Split():
                self.network.split(deed.groups)
            case actions.Deafen():
                self.network.deafen(deed.speakers, deed.hearers)
            case actions.Ambush():
                self.network.trap = Trap(deed.favourite, deed.blind, mild=self.scenario.shape.faults > 0)
                self.later(deed.seconds, self._end_ambush)
            case actions.Mend():
                self.network.cut.clear()
            case actions.Conditions():
                self._feed_if_there(deed.node, Conditions(deed.window_open, deed.healthy, deed.doubts))
            case actions.Opine():
                newest = max(self.authority.orders.values(), key=lambda order: order.admin_seq, default=None)
                if newest is not None:
                    self._feed_if_there(deed.node, Opinion(newest.id, deed.approve, "no"))
            case actions.Reconfigure():
                self._reconfigure(deed)
            case actions.Recover():
                self._recover()
            case _:
                self._harm(deed)

    def _end_ambush(self) -> None:
        self.network.trap = None

    def _harm(self, deed: actions.Deed) -> None:
        host = self.hosts.get(getattr(deed, "node", -1))
        if host is None or not host.honest:
            return
        match deed:
            case actions.Kill():
                self._kill(host, power=deed.power, back_s=deed.back_s)
            case actions.CrashAt():
                main = host.main
                main.crash_at, main.crash_durable, main.crash_power = deed.count, deed.durable, deed.power
            case actions.Keep():
                host.main.copy = list(host.main.log)
            case actions.Restore():
                self._restore(host)
            case actions.LoseLog():
                self._end(host)
                host.main.log.clear()
                host.main.fault = "the log is lost"
                subject = self.witness.subjects[host.index]
                subject.intact = subject.may_vote = False
                self.later(1.0, lambda: self._start(host))
            case actions.Skew():
                host.clock.change(self.now_s, deed.rate, deed.step_s)
                self._set_alarm(host, host.main)
            case actions.Noise():
                self._noise(host, deed.count)
            case _:
                raise AssertionError(deed)

    def _strike(self, back_s: float | None, tries: int) -> None:
        holders = [node for node in self.oracle.held if node in self.hosts and self.hosts[node].honest and self.hosts[node].device.powered]
        if holders and not self._healed:
            self._kill(self.hosts[self._random.choice(holders)], power=True, back_s=back_s)
        elif tries:
            self.later(1.0, lambda: self._strike(back_s, tries - 1))

    def _restore(self, host: Host) -> None:
        main = host.main
        if main.copy is None or main.copy == main.log:
            return
        self._end(host)
        kept = {data for kind, data in main.copy if kind is RecordKind.VOTE}
        self.witness.restored(host.index, {data[-68:-4] for kind, data in main.log if kind is RecordKind.VOTE and data not in kept})
        found_out = self.witness.subjects[host.index].found_out
        self.faults["an older log that others can tell" if found_out else "an older log"] += 1
        main.log[:] = main.copy
        host.restored = True
        self.later(1.0, lambda: self._start(host))

    def _noise(self, host: Host, count: int) -> None:
        for _ in range(count):
            old = self.network.old_frame()
            if old is None:
                return
            data = bytearray(old)
            for _ in range(self._random.randint(1, 4)):
                data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            self._feed(host, host.main, Received(bytes(data), "10.0.0.250"))
            self._feed(host, host.main, Received(self._random.randbytes(self._random.randint(0, 250)), "10.0.0.250"))

    def _feed_if_there(self, index: int, event: Event) -> None:
        host = self.hosts.get(index)
        if host is not None:
            self._feed(host, host.main, event)

    def _propose(self, deed: actions.Propose) -> None:
        self.images[deed.image.bundle] = deed.image
        if deed.back is not None:
            self.images[deed.back.bundle] = deed.back

        def make(rules: Membership, seq: int) -> Order:
            return self.authority.update(
                rules,
                seq,
                deed.image,
                back=deed.back,
                share=deed.share,
                width=deed.width,
                halt_at=deed.halt_at,
                overdue_s=deed.overdue_s,
            )

        self.submit(make)
        if deed.rival:
            rival = Image(deed.image.name + "-rival", deed.image.counter, deed.image.fates)
            self.images[rival.bundle] = rival
            self.submit(lambda rules, seq: self.authority.update(rules, seq, rival, share=deed.share, width=deed.width))

    def _target(self, aim: actions.Aim) -> bytes:
        if aim is actions.Aim.SITE:
            return NOTHING
        return self.oracle.plan.order.id if self.oracle.plan is not None else self.oracle.pending

    def _command(self, deed: actions.Command) -> None:
        target = self._target(deed.aim)
        if target == NOTHING and (deed.aim is actions.Aim.OPEN or deed.name == "CANCEL"):
            return
        kind = OrderKind[deed.name]
        everywhere = 0.7 if kind is OrderKind.PAUSE else 0.0
        extra = {"halt_at": deed.halt_at} if kind is OrderKind.RESUME else {}
        self.submit(
            lambda rules, seq: self.authority.order(rules, kind, seq, target=target, reason="so", **extra), everywhere=everywhere, tries=2
        )

    def _roll_back(self, deed: actions.RollBack) -> None:
        signers = 2 if deed.now and not deed.underhand else 1
        nodes = frozenset(deed.nodes & self.hosts.keys())

        def make(rules: Membership, seq: int) -> Order:
            return self.authority.order(
                rules,
                OrderKind.ROLLBACK,
                seq,
                signers,
                bundle=deed.image.bundle,
                version="0.9",
                nodes=nodes,
                now=deed.now,
                width=1,
                halt_at=2,
                overdue_s=60,
            )

        self.submit(make, tries=0 if deed.underhand else 3)

    def _lose(self, deed: actions.Lose, tries: int) -> None:
        index = deed.node
        if index is None:
            away = [node for node in self.oracle.held if node in self.hosts and self.hosts[node].main.node is None]
            if not away:
                if tries and not self._healed:
                    self.later(1.0, lambda: self._lose(deed, tries - 1))
                return
            index = min(away, key=lambda node: self.oracle.held[node].lease)
        lost = frozenset({index})
        self.submit(lambda rules, seq: self.authority.order(rules, OrderKind.LOST, seq, nodes=lost, reason="dead"), tries=2)

    def _reconfigure(self, deed: actions.Reconfigure) -> None:
        rules = self.oracle.membership
        members = dict(rules.by_index)
        index = deed.node
        key = self.vault.make_key(f"node {index} of epoch {rules.epoch + 1}")
        if deed.change == "add":
            index = max(members) + 1
            members[index] = Member(index, key, f"node{index}", True)
        elif deed.change == "remove" and index in members and len(members) > 3:
            del members[index]
        elif deed.change == "replace" and index in members and self.hosts[index].honest:
            old = members[index]
            members[index] = Member(index, key, old.name, old.voter, old.groups)
        else:
            return
        try:
            fresh = self.authority.next(rules, members.values())
        except (Refused, ValueError):
            # These numbers do not fit to so few nodes: an admin is told so by the tool.
            return
        self._waiting.append((deed.change, index, key))
        if deed.change == "replace":
            self._kill(self.hosts[index], power=True, back_s=None)
        self._carry(self.authority.files[fresh.digest], 6)

    def _recover(self) -> None:
        """A new genesis, and new keys, put on each node by hand."""
        old, oracle = self.oracle.membership, self.oracle
        if self._recovered or any(not host.honest for host in self.hosts.values()):
            return
        self._recovered = True
        self.faults["a recovery with held leases" if oracle.held else "a recovery"] += 1
        held = {node: held.lease for node, held in oracle.held.items()}
        keys = {node: self.vault.make_key(f"node {node} after the recovery") for node in old.by_index}
        fresh = self.authority.recover(old, [replace(one, key=keys[one.index]) for one in old.members], oracle.height, held)
        self.genesis = fresh.genesis
        self.chain = [self.authority.files[fresh.digest]]
        self._waiting.clear()
        self.witness.recovered(fresh, self._new_oracle(fresh), keys)
        for host in self.hosts.values():
            self._end(host)
            host.key, host.seal, host.memberships = keys[host.index], SimSeal(self.vault, keys[host.index]), tuple(self.chain)
            host.processes = [Process(0)]
            host.restored = False
            self.later(self._random.uniform(0.5, 15.0), lambda host=host: self._start(host))  # type: ignore[misc]

    def _carry(self, data: bytes, tries: int) -> None:
        for host in self._random.sample(self.up(), len(self.up())):
            try:
                self._feed(host, host.main, Submitted(data))
            except Refused:
                continue
            return
        if tries:
            self.later(3.0, lambda: self._carry(data, tries - 1))

    # -- the whole run

    def run(self) -> Result:
        """Play the scenario, heal everything, and ask for progress. Raises Violation with the trace."""
        scenario = self.scenario
        result = Result(scenario.seed, scenario.kind)
        try:
            for host in list(self.hosts.values()):
                if scenario.wild_clocks:
                    host.clock = Clock(rate=self._random.choice((0.25, 0.7, 1.0, 1.0, 1.5, 4.0)))
                self.later(self._random.uniform(0.0, 1.0), lambda host=host: self._start(host))  # type: ignore[misc]
                self.later(self._random.uniform(10.0, 20.0), lambda host=host: self._look_again(host))  # type: ignore[misc]
            for action in scenario.actions:
                self.later(action.at_s, lambda deed=action.deed: self.do(deed))  # type: ignore[misc]
            self.run_until(scenario.end_s)
            self.heal()
            from tests.fleet.progress import Progress

            if scenario.asked:
                result.live, result.why_not_live = Progress(self).ask()
        except Violation as broken:
            result.violation = str(broken)
        except Exception as error:
            import traceback

            result.violation = f"the core raises {error!r}\n{''.join(traceback.format_exception(error)[-6:])}"
        result.steps, result.frames, result.crashes = self.steps, self.frames, self.crashes
        result.counts, result.faults = dict(self.oracle.counts), dict(self.faults)
        result.decisions, result.grants = self.witness.decisions, self.oracle.counts.get("grant", 0)
        return result

    def heal(self) -> None:
        """The troubles end: nothing is lost, nobody crashes, clocks go right, who can start does."""
        self._healed = True
        self.trace.append((self.now_s, "", "HEALED", ""))
        self.network.heal()
        for host in list(self.hosts.values()):
            for process in host.processes:
                process.crash_at = None
            host.device.refuses_drain = 0.0
            host.clock.change(self.now_s, 1.0)
            if not host.honest:
                continue
            self._feed(host, host.main, Conditions())
            if not host.device.powered:
                # Most are on their way up by themselves.
                self.later(10.0, host.device.power_on)
            elif host.main.node is None:
                self._start(host)

    def told(self) -> str:
        """The last steps, for people."""
        from tests.fleet.telling import tell

        return "\n".join(tell(*step) for step in self.trace)
