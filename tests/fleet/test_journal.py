"""Records of the fleet's log at their bounds."""

from __future__ import annotations

from abupdate.fleet import journal
from abupdate.fleet.journal import Snapshot
from abupdate.fleet.state import Close, Closed, Lease, Plan, Standing, State
from abupdate.formats import entries
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import Ending, Release, ReleaseEntry
from abupdate.formats.messages import NOTHING
from abupdate.formats.payloads import MAX_OBJECT_BYTES

ID = b"\xff" * 32
MOST = (1 << 32) - 1
NODES = range(64)


def fullest() -> State:
    """A state in which everything that may grow has grown: a site of 64 whose nodes all hold a lease that is lost and overdue."""
    return State(
        genesis=ID,
        epoch=65535,
        membership=ID,
        height=MOST,
        last=ID,
        admin_seq=MOST,
        pending=ID,
        plan=Plan(ID, {node: Standing(255, 3, Ending.ROLLED_BACK) for node in NODES}, 64, True, "r" * 96, 64, True),
        paused=frozenset({ID, NOTHING, b"\xfe" * 32}),
        evicted=frozenset(NODES),
        leases={node: Lease(node, MOST - node, ID, 65535, True, True, True) for node in NODES},
        now=ID,
        closed=tuple(Closed(ID, Close.CANCELLED, 64, 64, MOST) for _ in range(8)),
    )


def test_the_fullest_state_is_a_snapshot_that_a_peer_can_fetch() -> None:
    entry = entries.pack(ReleaseEntry(tuple(Release(node + 1, node, Ending.COMPLETE, ID) for node in range(40))))
    proof = Certificate(MOST, 32767, entry, ID, tuple((voter, b"\xff" * 64) for voter in range(16)))
    one = Snapshot(65535, ID, proof, fullest())
    data = journal.snapshot(one)
    assert len(data) <= MAX_OBJECT_BYTES
    assert journal.read_snapshot(data) == one
