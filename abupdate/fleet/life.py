"""What this node does about its own update next, from the site's state and the device's facts. Pure: one answer at a time.

The device's record and boot store are the truth about what happened; the log is the truth about what was allowed. Down on purpose only
under a lease; a lease ends by this node's own word, and the word is given once.
"""

from __future__ import annotations

from dataclasses import dataclass

from abupdate.fleet import ledger
from abupdate.fleet.events import Device
from abupdate.fleet.state import Lease, State
from abupdate.formats.messages import NOTHING, Stage, Type
from abupdate.formats.order import Order, OrderKind
from abupdate.model import Phase

MAX_REASON = 96


@dataclass(frozen=True, slots=True)
class End:
    """Give the word that ends the lease. kind: COMPLETE, ROLLED_BACK or DEFER."""

    kind: Type
    lease: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GoDown:
    """Announce it and leave."""

    lease: Lease
    bundle: bytes


@dataclass(frozen=True, slots=True)
class Again:
    """Armed under the lease and not booted: reboot."""

    lease: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Armed under the lease, and nobody may go down now: cancel."""

    lease: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for a lease."""

    plan: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Get:
    """Bring the bundle to the inactive slot."""

    order: bytes


@dataclass(frozen=True, slots=True)
class Agree:
    """The bundle is here: approve the order."""

    order: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing now. stage and why: for people."""

    stage: Stage
    why: str = ""


Move = End | GoDown | Again | TakeBack | Ask | Get | Agree | Wait


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the answer depends on.

    order: of the node's lease, or of the open plan, or the pending one; None where it is not here. given: the lease has its word.
    began: it was about to go down under this lease before. stayed: why it did not go down after all when it tried. busy: the shell is
    carrying something out. paused: an order on sight says so. lacking: why the others cannot spare it (pre-flight). patient: the
    pre-flight may still change its mind. unfit: why the order cannot be prepared here. agreed: approved already. consent: approve by
    itself or by a person's word. refused: a person said no. inherited: the lease was given before this device's key had the place.
    """

    me: int
    state: State
    device: Device
    order: Order | None
    given: bool = False
    began: bool = False
    stayed: str = ""
    busy: bool = False
    paused: bool = False
    window_open: bool = True
    lacking: str = ""
    patient: bool = False
    unfit: str = ""
    agreed: bool = False
    consent: bool = True
    refused: str = ""
    inherited: bool = False


def move(look: Outlook) -> Move:
    """The next thing that this node does."""
    lease = look.state.leases.get(look.me)
    if lease is not None:
        return Wait(Stage.WAITING, "waits for its lease to be released") if look.given else _under(look, lease)
    return _without(look)


def _under(look: Outlook, lease: Lease) -> Move:
    device, order = look.device, look.order
    if look.busy:
        return Wait(Stage.LEAVING)
    if device.lease == lease.height and not _of_another_site(look, lease):
        return _attempted(look, lease)
    if device.armed or device.trial:
        # Somebody armed or booted something on this device by hand; the lease is not for that.
        return End(Type.DEFER, lease.height, "another update is under way on this node")
    if lease.plan == NOTHING:
        # A recovery has carried it over, without its plan; by the device's record nothing was begun under it.
        return End(Type.DEFER, lease.height, "the site was recovered")
    if look.inherited and not look.began:
        # Words of that device may still be about. One that came late would free the slot while this one is down under it.
        return End(Type.DEFER, lease.height, "the lease was given to the device that had this place before")
    if order is None:
        return Wait(Stage.WAITING, "the order is not here yet")
    bundle = ledger.goal(order, back=lease.back)
    if device.booted == bundle:
        return End(Type.COMPLETE, lease.height)
    if look.began and device.phase is None:
        return End(Type.ROLLED_BACK, lease.height, "the device's record of the update is lost")
    if look.stayed:
        return End(Type.DEFER, lease.height, look.stayed)
    if (stopped := _stopped(look, lease)) or not look.window_open:
        return End(Type.DEFER, lease.height, stopped or "outside the maintenance window")
    if look.refused and not lease.back:
        return End(Type.DEFER, lease.height, look.refused)
    if bundle not in (device.written, device.other):
        return End(Type.DEFER, lease.height, "the bundle is not on this node")
    if look.lacking:
        if look.patient:
            return Wait(Stage.WAITING, look.lacking)
        return End(Type.DEFER, lease.height, look.lacking)
    return GoDown(lease, bundle)


def _attempted(look: Outlook, lease: Lease) -> Move:
    """The device's last attempt is under this lease."""
    device = look.device
    if device.trial:
        return Wait(Stage.TRIAL)
    if device.armed:
        return TakeBack(lease.height) if _stopped(look, lease) else Again(lease.height)
    if device.phase is Phase.ARMED:
        # The trial has ended in the boot store and not yet in the record: the service is about to say how.
        return Wait(Stage.TRIAL, "waits for the service to record how the trial ended")
    if device.phase is Phase.CONFIRMED:
        if device.booted == device.target:
            return End(Type.COMPLETE, lease.height)
        return End(Type.ROLLED_BACK, lease.height, "another slot runs than the one that was confirmed")
    if device.phase in (Phase.WRITING, Phase.WRITTEN, Phase.FAILED, Phase.CANCELLED):
        # It never came to a reboot under this lease.
        return End(Type.DEFER, lease.height, device.reason or "the update was not started")
    return End(Type.ROLLED_BACK, lease.height, device.reason or "the slot came back, nobody knows why")


def _of_another_site(look: Outlook, lease: Lease) -> bool:
    """The record's lease has this one's number and was for another bundle: a site that was founded anew counts from 1 again."""
    device, order = look.device, look.order
    return order is not None and device.target not in (NOTHING, ledger.goal(order, back=lease.back))


def _stopped(look: Outlook, lease: Lease) -> str:
    plan = look.state.plan
    if plan is None or plan.order != lease.plan:
        return "the plan is over"
    if lease.back is not plan.back:
        return "the plan has turned round"
    if plan.halted:
        return "the plan is halted"
    if look.paused or look.state.is_paused(plan.order):
        return "the plan is paused"
    return ""


def _without(look: Outlook) -> Move:
    state, order = look.state, look.order
    plan = state.plan
    if plan is None or look.me not in plan.nodes:
        return _pending(look)
    standing = plan.nodes[look.me]
    if standing.ending is not None:
        stage = {Type.COMPLETE.name: Stage.DONE, Type.ROLLED_BACK.name: Stage.REVERTED}.get(standing.ending.name, Stage.DEFERRED)
        return Wait(stage)
    if look.me in state.evicted:
        return Wait(Stage.IDLE, "evicted")
    if order is None:
        return Wait(Stage.IDLE, "the order is not here yet")
    if look.busy:
        # What was last seen in the other slot may be gone.
        return Wait(Stage.FETCHING)
    bundle = ledger.goal(order, back=plan.back)
    if bundle not in (look.device.written, look.device.booted, look.device.other) or bundle == NOTHING:
        if plan.back:
            return Wait(Stage.FAILED, "the bundle to go back to is not on this node")
        return _prepare(look, order)
    if look.device.armed or look.device.trial:
        return Wait(Stage.WAITING, "another update is under way on this node")
    if look.refused:
        return Wait(Stage.MANUAL, look.refused)
    if plan.halted or look.paused or state.is_paused(plan.order):
        return Wait(Stage.READY, plan.halted or "paused")
    if not look.window_open:
        return Wait(Stage.READY, "outside the maintenance window")
    return Ask(plan.order, standing.grants + 1)


def _pending(look: Outlook) -> Move:
    order = look.order
    if order is None or order.id != look.state.pending or order.kind is not OrderKind.UPDATE:
        return Wait(Stage.IDLE)
    if look.refused:
        return Wait(Stage.MANUAL, look.refused)
    if look.agreed:
        return Wait(Stage.READY)
    if look.busy:
        # Something is being written over what was last seen in the other slot, perhaps for an order before this one.
        return Wait(Stage.FETCHING)
    if order.bundle not in (look.device.written, look.device.booted):
        return _prepare(look, order)
    if not look.consent:
        return Wait(Stage.MANUAL, "waits for `abupdate fleet approve`")
    return Agree(order.id)


def _prepare(look: Outlook, order: Order) -> Move:
    if look.unfit:
        return Wait(Stage.FAILED, look.unfit)
    if look.device.armed or look.device.trial:
        return Wait(Stage.WAITING, "another update is under way on this node")
    return Wait(Stage.FETCHING) if look.busy else Get(order.id)
