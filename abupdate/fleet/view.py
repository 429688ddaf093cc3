"""What a node knows of its site, for people and metrics: `Node.view(now_s)` fills it, status.py makes the document of `fleet status` of it.

Ages are seconds by this node's own monotonic clock, since it learned of the thing. Bundle ids, order ids and digests are 32 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from abupdate.fleet.state import Closed
from abupdate.formats.membership import Membership
from abupdate.formats.messages import Stage
from abupdate.formats.order import Order


@dataclass(frozen=True, slots=True)
class Seen:
    """One member, from its newest fresh heartbeat (for the node itself: from itself). age_s: since then, None: never heard.

    reason: of its newest REJECT, ROLLED_BACK or DEFER. bundle: first 8 bytes of what it booted, empty where never heard.
    doubts: members whose confirm it would hold back.
    """

    age_s: float | None
    height: int = 0
    stage: Stage = Stage.IDLE
    reason: str = ""
    healthy: bool = False
    trial: bool = False
    stopped: bool = False
    bundle: bytes = b""
    doubts: frozenset[int] = frozenset()
    address: str = ""


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease that is held, or lost (an admin said so). overdue: voters that say it takes too long."""

    lease: int
    node: int
    plan: bytes
    age_s: float
    lost: bool = False
    overdue: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class PlanView:
    """The open plan. wave: 0 while fewer than f+1 nodes have completed, else 1. halted: why, empty: not. back: it rolls back.

    done, reverted, deferred, barred: members by how their part ended (deferred: last attempt; barred: evicted).
    requests: members with a SLOT_REQ that waits for a GRANT. troubles: what counts towards halt_at. nodes: all members of the plan.
    """

    order: Order
    wave: int
    halt_at: int
    halted: str = ""
    back: bool = False
    done: frozenset[int] = frozenset()
    reverted: frozenset[int] = frozenset()
    deferred: frozenset[int] = frozenset()
    barred: frozenset[int] = frozenset()
    requests: frozenset[int] = frozenset()
    troubles: int = 0
    nodes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class PendingOrder:
    """An UPDATE that is no plan yet. committed: it is in the log. needed: approvals that make it a plan. rejects: member -> reason.

    here: what this node waits for before it says its own word ("`fleet approve`", "the bundle"), empty: it has said it.
    """

    order: Order
    committed: bool
    approvals: frozenset[int]
    needed: int
    rejects: Mapping[int, str]
    here: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """Everything. me: this node's index. paused: why the whole site or the plan is paused.

    last_seq: newest admin_seq that is committed. newest_seq: with those of orders that are on their way. waiting: those of them that
    `orders` does not show, in words.
    stopped: why this node does not vote, empty: it does. answered: voters whose HELLO_ACK this start has (with itself); fewer than Q: it
    may not vote yet. adrift: it waits for the site's state. doubters: who doubts this one. liars: members that voted twice in a step.
    evicted: members that no plan names any more. closed: the last plans, newest last.
    counters: frames heard, sent and dropped by type or reason, decisions and rounds. window_open: this node's maintenance window.
    undecided: an entry is pending since so long, None: none is.
    """

    membership: Membership
    me: int
    height: int
    round: int
    members: Mapping[int, Seen]
    leases: tuple[HeldLease, ...] = ()
    plan: PlanView | None = None
    orders: tuple[PendingOrder, ...] = ()
    last_seq: int = 0
    newest_seq: int = 0
    waiting: tuple[str, ...] = ()
    paused: str = ""
    stopped: str = ""
    answered: int = 0
    window_open: bool = True
    undecided_s: float | None = None
    alarms: tuple[str, ...] = ()
    adrift: bool = False
    sees_quorum: bool = False
    doubters: frozenset[int] = frozenset()
    liars: frozenset[int] = frozenset()
    evicted: frozenset[int] = frozenset()
    closed: tuple[Closed, ...] = ()
    counters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
