"""The site's state as the log makes it: leases, the open plan, pauses; frozen values and their one encoding.

The encoding is JSON with sorted keys and without spaces, and the state's digest is its SHA-256: what a certificate's votes cover, so that
a node that joins late can take the state from anybody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from abupdate.errors import Refused
from abupdate.formats.entries import Ending
from abupdate.formats.messages import NOTHING

MAX_DEFERRALS = 3
_HEX = 64


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of a node to be down. height: of its GRANT, the lease's id. plan: id of the order. epoch: in which it was granted.

    back: it was given to go back. lost: an admin said so. overdue: f+1 voters said so.
    """

    node: int
    height: int
    plan: bytes
    epoch: int
    back: bool = False
    lost: bool = False
    overdue: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """A member of a plan. grants: leases so far. deferrals: those that ended in DEFER. ending: None while it may still get one."""

    grants: int = 0
    deferrals: int = 0
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The open plan; its id is the order's.

    back: it goes towards the order's rollback (or the order is a ROLLBACK). halted: empty, or why nobody gets a lease any more.
    excused: troubles that a RESUME has accepted. wide: the canaries are through, or there are none.
    """

    order: bytes
    nodes: Mapping[int, Standing]
    halt_at: int
    back: bool = False
    halted: str = ""
    excused: int = 0
    wide: bool = False

    @property
    def completed(self) -> int:
        """Members whose last lease ended in COMPLETE."""
        return sum(standing.ending is Ending.COMPLETE for standing in self.nodes.values())


class Close(Enum):
    """How a plan ended."""

    DONE = "done"
    CANCELLED = "cancelled"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Closed:
    """A plan that is over."""

    order: bytes
    how: Close
    completed: int
    reverted: int
    height: int


@dataclass(frozen=True, slots=True)
class State:
    """What every honest node agrees on after a height.

    last: the voted hash of the last decided height. membership: digest of the epoch's one. admin_seq: of the last committed order.
    pending: newest committed UPDATE that has no plan yet, NOTHING: none. paused: ids of paused orders, NOTHING for the whole site.
    leases: by node. now: the ROLLBACK now that stands, NOTHING: none. closed: the last plans, newest last.
    """

    genesis: bytes
    epoch: int
    membership: bytes
    height: int = 0
    last: bytes = NOTHING
    admin_seq: int = 0
    pending: bytes = NOTHING
    plan: Plan | None = None
    paused: frozenset[bytes] = frozenset()
    evicted: frozenset[int] = frozenset()
    leases: Mapping[int, Lease] = field(default_factory=dict)
    now: bytes = NOTHING
    closed: tuple[Closed, ...] = ()

    def is_paused(self, order: bytes) -> bool:
        """The order's plan, or the whole site, is paused."""
        return order in self.paused or NOTHING in self.paused

    def orders(self) -> frozenset[bytes]:
        """Ids of the orders that somebody who has this state needs."""
        ids = {self.pending, self.now, *(lease.plan for lease in self.leases.values())}
        if self.plan is not None:
            ids.add(self.plan.order)
        return frozenset(ids - {NOTHING})


def troubles(state: State, plan: Plan) -> int:
    """What counts towards `halt_at`: members that reverted, and leases of the plan that are lost or overdue."""
    reverted = sum(standing.ending is Ending.ROLLED_BACK for standing in plan.nodes.values())
    mine = (lease for lease in state.leases.values() if lease.plan == plan.order and lease.back == plan.back)
    return reverted + sum(lease.lost or lease.overdue for lease in mine)


def encode(state: State) -> bytes:
    """The state's one encoding."""
    plan = state.plan
    document = {
        "genesis": state.genesis.hex(),
        "epoch": state.epoch,
        "membership": state.membership.hex(),
        "height": state.height,
        "last": state.last.hex(),
        "admin_seq": state.admin_seq,
        "pending": state.pending.hex(),
        "plan": None if plan is None else _plan_out(plan),
        "paused": sorted(order.hex() for order in state.paused),
        "evicted": sorted(state.evicted),
        "leases": [
            [lease.node, lease.height, lease.plan.hex(), lease.epoch, int(lease.back), int(lease.lost), int(lease.overdue)]
            for _, lease in sorted(state.leases.items())
        ],
        "now": state.now.hex(),
        "closed": [[one.order.hex(), one.how.value, one.completed, one.reverted, one.height] for one in state.closed],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def digest(state: State) -> bytes:
    """SHA-256 of the encoding, without the hash of the last height: that one covers this digest."""
    return hashlib.sha256(encode(replace(state, last=NOTHING))).digest()


def decode(data: bytes) -> State:
    """The state from its encoding. Raises Refused for anything that `encode` would not have written."""
    try:
        state = _state_in(json.loads(data))
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, AttributeError) as error:
        raise Refused("this is not a state of a site") from error
    if encode(state) != data:
        raise Refused("the state is not in its one encoding")
    return state


def _plan_out(plan: Plan) -> dict[str, object]:
    return {
        "order": plan.order.hex(),
        "nodes": [
            [node, standing.grants, standing.deferrals, 0 if standing.ending is None else standing.ending.value]
            for node, standing in sorted(plan.nodes.items())
        ],
        "halt_at": plan.halt_at,
        "back": plan.back,
        "halted": plan.halted,
        "excused": plan.excused,
        "wide": plan.wide,
    }


def _hash(text: object) -> bytes:
    if not isinstance(text, str) or len(text) != _HEX:
        raise ValueError("hash")
    return bytes.fromhex(text)


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError("number")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError("flag")
    return value


def _plan_in(body: object) -> Plan | None:
    if body is None:
        return None
    if not isinstance(body, dict) or not isinstance(body["halted"], str):
        raise ValueError("plan")
    nodes = {}
    for node, grants, deferrals, ending in body["nodes"]:
        nodes[_number(node)] = Standing(_number(grants), _number(deferrals), Ending(ending) if ending else None)
    return Plan(
        _hash(body["order"]),
        nodes,
        _number(body["halt_at"]),
        _flag(body["back"]),
        body["halted"],
        _number(body["excused"]),
        _flag(body["wide"]),
    )


def _state_in(body: object) -> State:
    if not isinstance(body, dict):
        raise ValueError("state")
    leases = {}
    for node, height, plan, epoch, back, lost, overdue in body["leases"]:
        leases[_number(node)] = Lease(_number(node), _number(height), _hash(plan), _number(epoch), bool(back), bool(lost), bool(overdue))
    return State(
        genesis=_hash(body["genesis"]),
        epoch=_number(body["epoch"]),
        membership=_hash(body["membership"]),
        height=_number(body["height"]),
        last=_hash(body["last"]),
        admin_seq=_number(body["admin_seq"]),
        pending=_hash(body["pending"]),
        plan=_plan_in(body["plan"]),
        paused=frozenset(_hash(order) for order in body["paused"]),
        evicted=frozenset(_number(node) for node in body["evicted"]),
        leases=leases,
        now=_hash(body["now"]),
        closed=tuple(
            Closed(_hash(order), Close(how), _number(done), _number(reverted), _number(height))
            for order, how, done, reverted, height in body["closed"]
        ),
    )
