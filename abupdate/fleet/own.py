"""This node's own update: what the device shows, what life.py answers to it, and the words and effects that follow. Pure.

A word that ends a lease is written to the log before it is sent, and is the only one that this node ever says about that lease.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from abupdate.fleet import journal, life
from abupdate.fleet.budget import lacking
from abupdate.fleet.events import Conditions, Device, Disarm, Leave, LeaveEnded, Opinion, Prepare, Prepared, Reboot, RecordKind, RollBackNow
from abupdate.fleet.replay import Past
from abupdate.fleet.site import Site
from abupdate.fleet.state import Lease
from abupdate.formats.entries import Release
from abupdate.formats.messages import NOTHING, Approve, Heartbeat, Outcome, Reject, Shutdown, SlotRequest, Stage, Type
from abupdate.formats.order import OrderKind

_PATIENT_BEATS = 3
_ACT_AGAIN_S = 20.0
_RESTING = frozenset({"disarm", "reboot"})


@dataclass(slots=True)
class OwnUpdate:
    """device: as it was last observed, None: look again first. busy: what the shell is carrying out. paused: orders on sight."""

    site: Site
    past: Past
    device: Device | None = None
    busy: str = ""
    conditions: Conditions = field(default_factory=Conditions)
    paused: frozenset[bytes] = frozenset()
    stage: Stage = Stage.IDLE
    why: str = ""
    since: dict[int, float] = field(default_factory=dict)
    _unfit: dict[bytes, str] = field(default_factory=dict)
    _stayed: dict[int, str] = field(default_factory=dict)
    _trouble: str = ""
    _acted: dict[bytes, float] = field(default_factory=dict)
    _news: int = 0
    _quiet: tuple[object, ...] = ()

    def observe(self, device: Device) -> None:
        """The device was looked at."""
        self._news += 1
        self.device = device
        if self.busy in _RESTING:
            self.busy = ""

    def prepared(self, event: Prepared) -> None:
        """A Prepare has ended."""
        self._news += 1
        self.busy, self.device = "", None
        self._trouble = event.fault
        if not event.fault:
            self._unfit.pop(event.order, None)
            return
        self._acted[event.order] = self.site.now_s
        if event.final:
            self._unfit[event.order] = event.fault
            self._reject(event.order, event.fault)

    def left(self, event: LeaveEnded) -> None:
        """A Leave has ended and the device did not go down."""
        self._news += 1
        self.busy, self.device = "", None
        self._stayed[event.lease] = event.reason or "the device stayed up"

    def opine(self, event: Opinion) -> None:
        """A person has spoken on this node."""
        self._news += 1
        self.past.opinions[event.order] = (event.approve, event.reason)
        self.site.persist(RecordKind.OPINION, journal.opinion(event.order, approve=event.approve, reason=event.reason))
        if not event.approve:
            self._reject(event.order, event.reason or "rejected on the node")

    def follow(self) -> None:
        """The log has grown."""
        self._news += 1
        site = self.site
        held = {lease.height for lease in site.state.leases.values()}
        self.since = {lease: self.since.get(lease, site.now_s) for lease in held}
        wanted = site.state.orders() | {order.id for order in site.archive.orders()}
        self.past.opinions = {order: said for order, said in self.past.opinions.items() if order in wanted}
        self._unfit = {order: why for order, why in self._unfit.items() if order in wanted}

    def released(self, release: Release) -> None:
        """This node's lease has ended."""
        self.past.began.discard(release.lease)
        self._stayed.pop(release.lease, None)
        self.past.words.pop(release.lease, None)

    def live(self) -> None:
        """Do what is next."""
        site = self.site
        self._roll_back_now()
        if self.device is None or site.adrift or site.me not in site.membership.by_index:
            return
        resting = (site.version, self._news, self.busy, self.paused, self.conditions)
        if resting == self._quiet:
            return
        for _ in range(4):
            move = life.move(self._outlook(self.device))
            if not self._do(move):
                # Without a lease nothing that it waits for comes by itself with time.
                self._quiet = resting if isinstance(move, life.Wait) and self.lease() is None else ()
                break
        self._roll_back_now()

    def _outlook(self, device: Device) -> life.Outlook:
        site, state = self.site, self.site.state
        lease = state.leases.get(site.me)
        if lease is not None:
            subject = lease.plan
        else:
            subject = state.plan.order if state.plan is not None and site.me in state.plan.nodes else state.pending
        approve, reason = self.past.opinions.get(subject, (None, ""))
        since = self.since.get(lease.height, site.now_s) if lease is not None else site.now_s
        return life.Outlook(
            me=site.me,
            state=state,
            device=device,
            order=site.archive.order(subject) if subject != NOTHING else None,
            given=lease is not None and lease.height in self.past.words,
            began=lease is not None and lease.height in self.past.began,
            stayed=self._stayed.get(lease.height, "") if lease is not None else "",
            busy=bool(self.busy),
            paused=subject in self.paused or NOTHING in self.paused,
            window_open=self.conditions.window_open,
            lacking="" if lease is None else lacking(site.membership, site.seen() - set(state.leases) - {site.me}),
            patient=site.now_s - since < _PATIENT_BEATS * site.membership.heartbeat_s,
            unfit=self._unfit.get(subject, ""),
            agreed=site.facts.find(Type.APPROVE, site.me, subject) is not None,
            consent=bool(approve) or (approve is None and site.options.approve),
            refused=(reason or "rejected on the node") if approve is False else "",
            inherited=lease is not None and site.inherited(lease.epoch),
        )

    def _do(self, move: life.Move) -> bool:
        """Carry a move out; True where another one may follow at once."""
        site = self.site
        self.stage, self.why = _stage(move)
        match move:
            case life.End():
                self._end(move)
            case life.Ask():
                if site.facts.find(Type.SLOT_REQ, site.me, move.plan) is None:
                    self._tell(Type.SLOT_REQ, SlotRequest(move.plan, move.attempt))
            case life.Agree():
                self._tell(Type.APPROVE, Approve(move.order))
                return True
            case life.Get():
                self.why = self._trouble
                self._get(move.order)
            case life.GoDown():
                self._go_down(move)
            case life.Again():
                if self._not_lately(b"again"):
                    self.busy = "reboot"
                    site.emit(Reboot(move.lease))
            case life.TakeBack():
                if self._not_lately(b"take back"):
                    self.busy = "disarm"
                    site.emit(Disarm(move.lease))
            case life.Wait():
                pass
        return False

    def _end(self, move: life.End) -> None:
        site = self.site
        bundle = self.device.booted if self.device is not None else NOTHING
        one, data = site.make(move.kind, Outcome(move.lease, bundle, "" if move.kind is Type.COMPLETE else clip(move.reason)))
        site.persist(RecordKind.FACT, data)
        self.past.words[move.lease] = data
        site.add_fact(one, data)
        site.send(move.kind, data)

    def _tell(self, kind: Type, message: SlotRequest | Approve | Reject) -> None:
        one, data = self.site.make(kind, message)
        if self.site.add_fact(one, data) is not None:
            self.site.send(kind, data)

    def _reject(self, order: bytes, reason: str) -> None:
        self._tell(Type.REJECT, Reject(order, clip(reason)))

    def _get(self, order_id: bytes) -> None:
        order = self.site.archive.order(order_id)
        last = self._acted.get(order_id)
        if order is None or (last is not None and self.site.now_s - last < _ACT_AGAIN_S):
            return
        self.busy = "prepare"
        self.site.emit(Prepare(order))

    def _go_down(self, move: life.GoDown) -> None:
        site, lease = self.site, move.lease
        order = site.archive.order(lease.plan)
        if order is None:
            return
        self.busy = "leave"
        self.past.began.add(lease.height)
        site.persist(RecordKind.LEAVING, journal.number(lease.height))
        site.say(Type.SHUTDOWN, Shutdown(lease.height, order.overdue_s))
        site.emit(Leave(lease.height, order, move.bundle, lease.back))

    def _roll_back_now(self) -> None:
        """An admin's ROLLBACK now acts on sight, and until the next plan on whoever was away."""
        site, device = self.site, self.device
        if device is None or self.busy or device.trial or not site.archive.at_once():
            return
        lease = self.lease()
        if lease is not None and device.lease == lease.height and not device.armed and lease.height not in self.past.words:
            # What became of the attempt is told first: the way back takes its place in the device's record.
            return
        for order in site.archive.at_once():
            standing = order.id == site.state.now or (order.admin_seq > site.state.admin_seq and order.epoch == site.state.epoch)
            if not (order.kind is OrderKind.ROLLBACK and standing) or (order.nodes and site.me not in order.nodes):
                continue
            if device.booted != order.bundle and self._not_lately(order.id):
                site.emit(RollBackNow(order))

    def _not_lately(self, what: bytes) -> bool:
        last = self._acted.get(what)
        if last is not None and self.site.now_s - last < _ACT_AGAIN_S:
            return False
        self._acted[what] = self.site.now_s
        return True

    def heartbeat(self, *, healthy: bool, stopped: bool) -> Heartbeat:
        """How this node is."""
        site, device = self.site, self.device
        lease = site.state.leases.get(site.me)
        return Heartbeat(
            height=site.state.height,
            lease=lease.height if lease is not None else 0,
            stage=self.stage,
            healthy=healthy and self.conditions.healthy,
            trial=device is not None and device.trial,
            stopped=stopped,
            bundle=(device.booted if device is not None else NOTHING)[:8],
            doubts=self.conditions.doubts & frozenset(site.membership.by_index),
        )

    def lease(self) -> Lease | None:
        """The lease that this node holds."""
        return self.site.state.leases.get(self.site.me)


def clip(reason: str) -> str:
    """A reason that fits into a frame: at most 96 bytes, no control characters."""
    plain = "".join(character if character.isprintable() else " " for character in reason)
    return plain.encode()[: life.MAX_REASON].decode(errors="ignore")


def _stage(move: life.Move) -> tuple[Stage, str]:
    match move:
        case life.Wait():
            return move.stage, move.why
        case life.GoDown() | life.Again() | life.TakeBack():
            return Stage.LEAVING, ""
        case life.Ask():
            return Stage.READY, "waits for a lease"
        case life.Get():
            return Stage.FETCHING, ""
        case life.Agree():
            return Stage.READY, ""
        case life.End():
            return Stage.WAITING, move.reason
