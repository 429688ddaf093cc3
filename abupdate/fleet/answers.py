"""Answers of the daemon to the command line. Most are given at once; who waits for an update slot is answered when it comes, or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from abupdate.errors import AbupdateError, Deferred, Failed, NothingToDo, Refused
from abupdate.fleet import history, status
from abupdate.fleet.control import AskLog, AskMetrics, AskStatus, AskUpdate, Judge, Submit, failure
from abupdate.fleet.controlserver import Asked, ControlServer
from abupdate.fleet.events import Event, Opinion, Submitted
from abupdate.fleet.ports import Core
from abupdate.fleet.view import View

_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Somebody waits for this node's lease."""

    asked: Asked
    question: AskUpdate
    until_s: float


class Answers:
    """`take` a question; `go_on` now and then, at `wake_s` at the latest."""

    def __init__(
        self, control: ControlServer, core: Core, hand_in: Callable[[Event], None], counters: Callable[[], Mapping[str, object]]
    ) -> None:
        """hand_in: gives the core an event and carries out what follows; raises Refused."""
        self._control = control
        self._core = core
        self._hand_in = hand_in
        self._counters = counters
        self._waiting: list[_Waiting] = []
        self._next_s = math.inf

    @property
    def wake_s(self) -> float:
        """When `go_on` is to be called."""
        return self._next_s if self._waiting else math.inf

    def take(self, asked: Asked, now_s: float) -> None:
        """Answer a question, now or later. Raises Failed where the log cannot be written."""
        try:
            document = self._answer(asked, now_s)
        except Failed:
            # The core goes by a record that is not kept now. It must end before it sends anything that rests on that.
            raise
        except AbupdateError as error:
            document = failure(error)
        if document is not None:
            self._control.answer(asked, document, now_s)

    def _answer(self, asked: Asked, now_s: float) -> Mapping[str, object] | None:
        match asked.question:
            case AskStatus():
                return status.document(self._core.view())
            case AskMetrics():
                return self._counters()
            case AskLog(first, count):
                decided = self._core.decided_entries(first, count)
                entries = [history.document(one.membership, one.height, one.round, one.entry, one.signers, one.order) for one in decided]
                return {"height": self._core.view().height, "entries": entries}
            case Submit(data):
                self._hand_in(Submitted(data))
                return {}
            case Judge(order, approve, reason):
                if order not in _known(self._core.view()):
                    raise Refused("this node does not know that order", "`abupdate fleet status` lists those that it knows")
                self._hand_in(Opinion(order, approve, reason))
                return {}
            case AskUpdate() as question:
                self._waiting.append(_Waiting(asked, question, now_s + question.wait_s))
                self._next_s = now_s
                return None

    def go_on(self, now_s: float) -> None:
        """Look whether those who wait have what they wait for."""
        if not self._waiting or now_s < self._next_s:
            return
        self._next_s = now_s + _AGAIN_S
        view = self._core.view()
        still: list[_Waiting] = []
        for one in self._waiting:
            if not self._control.waits(one.asked):
                continue
            try:
                lease = slot(view, one.question.bundle, waited=now_s >= one.until_s)
            except AbupdateError as error:
                self._control.answer(one.asked, failure(error), now_s)
                continue
            if lease is None:
                still.append(one)
            else:
                self._control.answer(one.asked, {"lease": lease}, now_s)
        self._waiting = still


def slot(view: View, bundle: bytes, *, waited: bool) -> int | None:
    """The lease under which this node brings the bundle up, None while it may still come. waited: for long enough.

    Raises Deferred where it does not come, NothingToDo where the node is done with it.
    """
    plan = view.plan
    wanted = None if plan is None else plan.order.rollback_to if plan.back else plan.order.bundle
    if any(order.order.bundle == bundle for order in view.orders):
        raise Deferred(status.blocked(view) or "the order of this bundle is no plan yet", "`abupdate fleet status` says what it waits for")
    if plan is None or wanted != bundle or view.me not in plan.nodes:
        raise Deferred("no open plan of the site brings this bundle to this node", "`abupdate fleet propose` proposes it")
    # One of a plan before this one is not for this bundle.
    mine = (lease for lease in view.leases if lease.node == view.me and lease.plan == plan.order.id and not lease.lost)
    held = next((lease.lease for lease in mine), None)
    if held is not None:
        return held
    if view.me in plan.done:
        raise NothingToDo("this node has done its part of the plan")
    if view.me in plan.reverted | plan.barred:
        raise Deferred("this node has failed in this plan, or is barred from plans", "`abupdate fleet status` says why")
    if plan.halted:
        raise Deferred(f"the plan is halted: {plan.halted}", "`abupdate fleet resume` goes on")
    if waited:
        raise Deferred(status.blocked(view) or "no update slot yet", "--wait S waits for one")
    return None


def _known(view: View) -> frozenset[bytes]:
    return frozenset([*(one.order.id for one in view.orders), *([view.plan.order.id] if view.plan else [])])
