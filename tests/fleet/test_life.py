"""What a node does about its own update: every situation of device and log, and the one answer to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from abupdate.fleet import life
from abupdate.fleet.events import Device
from abupdate.fleet.life import Again, Agree, Ask, End, Get, GoDown, Outlook, TakeBack, Wait
from abupdate.fleet.site import first_state
from abupdate.fleet.state import Lease, Plan, Standing, State
from abupdate.formats.entries import Ending
from abupdate.formats.messages import NOTHING, Stage, Type
from abupdate.formats.order import OnHalt, OrderKind
from abupdate.model import Phase
from tests.fleet.sitekit import NEW, OLD, order, site

SITE = site(4)
UPDATE = order(SITE, OrderKind.UPDATE, on_halt=OnHalt.ROLLBACK, rollback_to=OLD, rollback_version="1")
READY = Device(booted=OLD, other=OLD, written=NEW, trial=False, armed=False, lease=None, phase=Phase.WRITTEN)
LEASE = Lease(1, 9, UPDATE.id, 1)


def state(*, lease: Lease | None = None, standing: Standing | None = None, **changes: object) -> State:
    plan = Plan(UPDATE.id, {1: standing or Standing(grants=int(lease is not None))}, 1)
    leases = {1: lease} if lease is not None else {}
    return replace(first_state(SITE), plan=plan, leases=leases, **changes)  # type: ignore[arg-type]


def look(now: State, device: Device = READY, **changes: Any) -> Outlook:
    return replace(Outlook(1, now, device, UPDATE), **changes)


def replanned(now: State, **changes: Any) -> State:
    assert now.plan is not None
    return replace(now, plan=replace(now.plan, **changes))


HELD = state(lease=LEASE)


def attempted(phase: Phase, **changes: object) -> Device:
    device = Device(booted=OLD, other=OLD, written=NOTHING, trial=False, armed=False, lease=9, phase=phase, target=NEW)
    return replace(device, **changes)  # type: ignore[arg-type]


def test_with_a_lease_it_goes_down() -> None:
    assert life.move(look(HELD)) == GoDown(LEASE, NEW)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"window_open": False}, "window"),
        ({"paused": True}, "paused"),
        ({"lacking": "2 other voters are seen"}, "2 other"),
        ({"device": replace(READY, written=OLD)}, "not on this node"),
        ({"device": replace(READY, armed=True)}, "another update"),
        ({"device": replace(READY, trial=True)}, "another update"),
        ({"refused": "not on my watch"}, "not on my watch"),
        ({"state": replace(HELD, plan=None)}, "over"),
        ({"state": replanned(HELD, halted="because")}, "halted"),
        ({"state": replanned(HELD, back=True)}, "turned round"),
        ({"state": replace(HELD, paused=frozenset({NOTHING}))}, "paused"),
    ],
)
def test_with_a_lease_that_it_cannot_use_it_defers(changes: dict[str, Any], reason: str) -> None:
    move = life.move(look(HELD, **changes))
    assert isinstance(move, End)
    assert (move.kind, move.lease) == (Type.DEFER, 9)
    assert reason in move.reason


def test_the_pre_flight_is_given_time() -> None:
    assert isinstance(life.move(look(HELD, lacking="too few", patient=True)), Wait)


def test_its_word_is_given_once() -> None:
    assert isinstance(life.move(look(HELD, given=True)), Wait)
    assert isinstance(life.move(look(HELD, attempted(Phase.CONFIRMED, booted=NEW), given=True)), Wait)


def test_what_the_shell_does_is_not_ordered_twice() -> None:
    assert life.move(look(HELD, busy=True)) == Wait(Stage.LEAVING)


@pytest.mark.parametrize(
    ("device", "answer"),
    [
        (attempted(Phase.ARMED, armed=True), Again(9)),
        (attempted(Phase.ARMED, booted=NEW, trial=True), Wait(Stage.TRIAL)),
        (attempted(Phase.ARMED, booted=NEW), Wait(Stage.TRIAL, "waits for the service to record how the trial ended")),
        (attempted(Phase.ARMED), Wait(Stage.TRIAL, "waits for the service to record how the trial ended")),
        (attempted(Phase.CONFIRMED, booted=NEW), End(Type.COMPLETE, 9)),
        (attempted(Phase.REVERTED, reason="watchdog"), End(Type.ROLLED_BACK, 9, "watchdog")),
        (attempted(Phase.REVERTED), End(Type.ROLLED_BACK, 9, "the slot came back, nobody knows why")),
        (attempted(Phase.FAILED, reason="the disk is full"), End(Type.DEFER, 9, "the disk is full")),
        (attempted(Phase.CANCELLED), End(Type.DEFER, 9, "the update was not started")),
        (attempted(Phase.CONFIRMED), End(Type.ROLLED_BACK, 9, "another slot runs than the one that was confirmed")),
    ],
)
def test_after_a_restart_the_devices_record_decides(device: Device, answer: life.Move) -> None:
    assert life.move(look(HELD, device)) == answer


def test_armed_and_stopped_it_takes_it_back() -> None:
    halted = replanned(HELD, halted="because")
    assert life.move(look(halted, attempted(Phase.ARMED, armed=True))) == TakeBack(9)


def test_a_slot_on_trial_is_never_taken_back_by_a_halt() -> None:
    halted = replanned(HELD, halted="because")
    assert life.move(look(halted, attempted(Phase.ARMED, booted=NEW, trial=True))) == Wait(Stage.TRIAL)


def test_complete_is_said_of_a_confirmed_slot_alone() -> None:
    for phase in Phase:
        move = life.move(look(HELD, attempted(phase, booted=NEW, trial=True)))
        assert not (isinstance(move, End) and move.kind is Type.COMPLETE), phase


def test_a_node_that_has_the_bundle_already_says_so() -> None:
    assert life.move(look(HELD, replace(READY, booted=NEW))) == End(Type.COMPLETE, 9)


def test_going_down_with_its_record_lost_is_a_rollback_not_a_deferral() -> None:
    lost = replace(READY, phase=None, written=NOTHING)
    move = life.move(look(HELD, lost, began=True))
    assert isinstance(move, End)
    assert move.kind is Type.ROLLED_BACK


def test_a_lease_whose_order_is_not_here_waits() -> None:
    assert isinstance(life.move(look(HELD, order=None)), Wait)


def test_without_a_lease_it_asks_for_the_next_attempt() -> None:
    assert life.move(look(state(standing=Standing(grants=1, deferrals=1)))) == Ask(UPDATE.id, 2)


@pytest.mark.parametrize(
    ("now", "changes", "stage"),
    [
        (state(standing=Standing(1, 0, Ending.COMPLETE)), {}, Stage.DONE),
        (state(standing=Standing(1, 0, Ending.ROLLED_BACK)), {}, Stage.REVERTED),
        (state(standing=Standing(3, 3, Ending.DEFER)), {}, Stage.DEFERRED),
        (state(evicted=frozenset({1})), {}, Stage.IDLE),
        (state(), {"order": None}, Stage.IDLE),
        (state(), {"paused": True}, Stage.READY),
        (state(), {"window_open": False}, Stage.READY),
        (state(), {"refused": "not today"}, Stage.MANUAL),
        (state(), {"device": replace(READY, armed=True)}, Stage.WAITING),
        (state(), {"device": replace(READY, written=OLD), "unfit": "no such file"}, Stage.FAILED),
        (state(), {"device": replace(READY, written=OLD), "busy": True}, Stage.FETCHING),
        (first_state(SITE), {}, Stage.IDLE),
    ],
)
def test_without_a_lease_it_waits(now: State, changes: dict[str, Any], stage: Stage) -> None:
    move = life.move(look(now, **changes))
    assert isinstance(move, Wait)
    assert move.stage is stage


def test_a_straggler_still_gets_the_bundle() -> None:
    assert life.move(look(state(), replace(READY, written=OLD))) == Get(UPDATE.id)


def test_going_back_needs_the_bundle_to_go_back_to() -> None:
    back = replanned(state(), back=True)
    done = attempted(Phase.CONFIRMED, booted=NEW, other=OLD)
    assert life.move(look(back, done)) == Ask(UPDATE.id, 1)
    assert life.move(look(back, replace(done, other=NOTHING))) == Wait(Stage.FAILED, "the bundle to go back to is not on this node")


PENDING = replace(first_state(SITE), pending=UPDATE.id)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, Agree(UPDATE.id)),
        ({"agreed": True}, Wait(Stage.READY)),
        ({"consent": False}, Wait(Stage.MANUAL, "waits for `abupdate fleet approve`")),
        ({"refused": "no"}, Wait(Stage.MANUAL, "no")),
        ({"device": replace(READY, written=OLD)}, Get(UPDATE.id)),
        ({"device": replace(READY, written=OLD, booted=NEW)}, Agree(UPDATE.id)),
        ({"device": replace(READY, written=OLD), "unfit": "refused"}, Wait(Stage.FAILED, "refused")),
        ({"device": replace(READY, written=OLD, trial=True)}, Wait(Stage.WAITING, "another update is under way on this node")),
        ({"order": None}, Wait(Stage.IDLE)),
    ],
)
def test_a_pending_order_is_fetched_and_approved(changes: dict[str, Any], answer: life.Move) -> None:
    assert life.move(look(PENDING, **changes)) == answer


@pytest.mark.parametrize("phase", [Phase.CONFIRMED, Phase.REVERTED, Phase.FAILED])
def test_a_record_of_another_sites_lease_with_the_same_number_is_not_taken_for_this_one(phase: Phase) -> None:
    stale = replace(READY, lease=9, phase=phase, target=bytes([0xC3]) * 32, reason="an old story")
    assert life.move(look(HELD, stale)) == GoDown(LEASE, NEW)


def test_a_lease_that_was_given_to_another_key_is_given_back_and_never_used() -> None:
    move = life.move(look(HELD, inherited=True))
    assert isinstance(move, End)
    assert (move.kind, move.lease) == (Type.DEFER, 9)


def test_while_the_other_slot_is_being_written_what_was_in_it_counts_for_nothing() -> None:
    """Another order's bundle may be on its way over the one that was seen there: neither approved nor asked for a lease with."""
    pending = replace(state(), plan=None, pending=UPDATE.id)
    assert life.move(look(pending)) == Agree(UPDATE.id)
    assert life.move(look(pending, busy=True)) == Wait(Stage.FETCHING)
    assert life.move(look(state())) == Ask(UPDATE.id, 1)
    assert life.move(look(state(), busy=True)) == Wait(Stage.FETCHING)
