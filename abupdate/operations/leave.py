"""Going down on purpose: programs that drain the device, then the slot that is to run next is armed (or gone back to), then the reboot.

The fleet's daemon has these done by processes of their own, under the lease that its site has granted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from abupdate.errors import Deferred, NothingToDo
from abupdate.operations import verdict
from abupdate.operations.board import Board
from abupdate.operations.standing import Standing, standing


@dataclass(frozen=True, slots=True)
class Ways:
    """drain: empty, or why the device must not go down now. activate: arm the written slot under a lease. reboot: order one."""

    drain: Callable[[], str]
    activate: Callable[[int | None], object]
    reboot: Callable[[], None]


def leave(board: Board, bundle: bytes, lease: int, ways: Ways) -> None:
    """Bring the bundle up under the lease. Raises Deferred where the device stays up, and whatever arming the slot raises.

    What was armed and not rebooted, since this process ended between the two, is rebooted.
    """
    now = standing(board)
    if now.armed and now.lease == lease and now.target == bundle:
        ways.reboot()
        return
    if now.armed or now.trial:
        raise Deferred("another update is under way on this device", "it ends with a reboot")
    if bundle not in (now.written, now.other):
        raise Deferred("the bundle is on neither slot", "it is fetched again for the next lease")
    problem = ways.drain()
    if problem:
        raise Deferred(f"drain: {problem}", "the programs in drain/ decide")
    _switch(board, now, bundle, lease, "the fleet goes back to it", ways)
    ways.reboot()


def disarm(board: Board, lease: int) -> None:
    """Cancel what is armed under the lease. Raises NothingToDo where that is not the case."""
    now = standing(board)
    if not now.armed or now.lease != lease:
        raise NothingToDo(f"nothing is armed under lease {lease}")
    verdict.revert(board, "the plan has stopped")


def back(board: Board, bundle: bytes, ways: Ways) -> None:
    """An admin's order to run this bundle at once, whatever the others do: what the programs of drain/ say does not stop it.

    Raises NothingToDo where it runs already, Deferred where it is on neither slot.
    """
    now = standing(board)
    if now.armed and now.target != bundle:
        verdict.revert(board, "an admin has ordered another bundle")
        now = standing(board)
    if not now.armed:
        if now.booted == bundle:
            raise NothingToDo("this device runs the bundle that it is ordered back to")
        if bundle not in (now.written, now.other):
            raise Deferred("the bundle to go back to is on neither slot", "`abupdate flash --alone` brings it")
        ways.drain()
        _switch(board, now, bundle, None, "an admin has ordered it back at once", ways)
    ways.reboot()


def _switch(board: Board, now: Standing, bundle: bytes, lease: int | None, why: str, ways: Ways) -> None:
    if bundle == now.other:
        verdict.revert(board, why, lease=lease)
    else:
        ways.activate(lease)
