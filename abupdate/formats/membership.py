"""The membership of a site (`.abm`): who belongs to it and by which numbers its budgets are kept.

It is signed by root keys, and there is one file for each epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from abupdate.model import Signature


@dataclass(frozen=True, slots=True)
class Member:
    """One node. index: 0-254. key: raw Ed25519 public key (32 bytes). name: for people. groups: redundancy groups it belongs to."""

    index: int
    key: bytes
    name: str
    voter: bool
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a site goes on from after it lost its log: the old genesis, its last height, and the leases (node -> lease) that are held."""

    genesis: bytes
    height: int
    leases: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Membership:
    """One epoch's rules. genesis: SHA-256 of the body of epoch 1 (its own body there). digest: SHA-256 of `body`.

    members: ascending by index, 3-64. faults: f. groups: group -> nodes of it that stay up. approvals: A. stall_ok: one voter may go down
    although the log then waits for it. heartbeat_s: period. roots, admins: raw keys; now_threshold: admin signatures for a ROLLBACK now.
    """

    site: str
    epoch: int
    genesis: bytes
    digest: bytes
    body: bytes
    members: tuple[Member, ...]
    faults: int
    min_up: int
    groups: Mapping[str, int]
    approvals: int
    stall_ok: bool
    heartbeat_s: int
    roots: tuple[bytes, ...]
    root_threshold: int
    admins: tuple[bytes, ...]
    admin_threshold: int
    now_threshold: int
    wire_version: int = 1
    store_version: int = 1
    recovery: Recovery | None = None
    signatures: tuple[Signature, ...] = ()
    by_index: Mapping[int, Member] = field(default_factory=dict)

    @property
    def voters(self) -> tuple[int, ...]:
        """Indices of the voters, ascending."""
        return tuple(member.index for member in self.members if member.voter)

    @property
    def quorum(self) -> int:
        """Q: two sets of so many voters share more than f."""
        return (len(self.voters) + self.faults) // 2 + 1

    @property
    def live_budget(self) -> int:
        """k_live: voters that may be down for updates while the log still moves."""
        return len(self.voters) - self.faults - self.quorum

    @property
    def voter_budget(self) -> int:
        """V: voters in held and lost leases."""
        return max(self.live_budget, 1) if self.stall_ok else self.live_budget
