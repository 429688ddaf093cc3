"""The table of mutants of the protocol: one bug each, and a kind of schedule in which the simulator must see it.

An entry names text that occurs exactly once in a file of abupdate/, what stands there instead, and what that breaks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug. kind: of the schedules that are run. schedules: at most so many, from seed 0 on."""

    name: str
    file: str
    old: str
    new: str
    breaks: str
    kind: str
    schedules: int = 300


_CONSENSUS, _VOTER, _LEDGER = "fleet/consensus.py", "fleet/voter.py", "fleet/ledger.py"
_LIFE, _OWN, _NODE = "fleet/life.py", "fleet/own.py", "fleet/node.py"

MUTANTS: tuple[Mutant, ...] = (
    # -- agreement
    Mutant(
        "Q too small",
        "formats/membership.py",
        "return (len(self.voters) + self.faults) // 2 + 1",
        "return (len(self.voters) + self.faults) // 2",
        "two sides of a partition decide differently",
        "parted",
    ),
    Mutant(
        "lock rule dropped",
        _CONSENSUS,
        "            fits = self.locked is None or self.locked[1] == value\n        elif",
        "            fits = True\n        elif",
        "who has helped to decide one value helps to decide another",
        "locked",
    ),
    Mutant(
        "a later proposal opens any lock",
        _CONSENSUS,
        "elif valid_round < self.round and self.tally(Type.PREVOTE, valid_round, value) >= self._quorum:\n            fits = self",
        "elif valid_round < self.round:\n            fits = True or self",
        "a proposer's word is enough to open a lock",
        "locked",
    ),
    Mutant(
        "lock not persisted",
        _VOTER,
        "            site.persist(RecordKind.LOCK, journal.lock(height, cast.round, self.nexts[cast.value].data))\n",
        "            pass\n",
        "a crash opens the lock",
        "locked",
    ),
    Mutant(
        "vote not persisted",
        _VOTER,
        "        self.site.persist(RecordKind.VOTE, data)\n",
        "",
        "after a crash the same step is voted again, for something else",
        "crashing",
    ),
    Mutant(
        "vote sent before it is persisted",
        _VOTER,
        "        self._record(cast.kind, height, cast.round, data)\n",
        "        site.send(cast.kind, data)\n        self._record(cast.kind, height, cast.round, data)\n",
        "a crash between the two forgets a vote that others have",
        "crashing",
    ),
    Mutant(
        "votes not read back",
        _VOTER,
        "            if message.height == self.site.state.height + 1 and one.epoch == self.site.state.epoch:\n                self.own",
        "            if False:\n                self.own",
        "after a restart the same step is voted again",
        "crashing",
    ),
    Mutant(
        "a liar alone vouches",
        _CONSENSUS,
        "votes.of(value) > self._faults for",
        "votes.of(value) > 0 for",
        "what nobody can check is believed to be valid because a liar voted for it",
        "proposing",
    ),
    Mutant(
        "certificates not checked",
        "fleet/catchup.py",
        "        if good < membership.quorum:\n",
        "        if good < 0:\n",
        "anybody decides for who is behind",
        "byzantine",
    ),
    Mutant(
        "no HELLO check after a restart",
        _VOTER,
        "        return len(seen) >= site.membership.quorum - 1\n",
        "        return len(seen) >= 0\n",
        "a node with an older copy of its log votes again",
        "restored",
    ),
    Mutant(
        "lost log votes",
        _NODE,
        "        if event.fault:\n            self._stop(event.fault)\n        elif",
        "        if",
        "a node that has lost its log votes under its old key",
        "restored",
    ),
    # -- leases
    Mutant(
        "TTL on leases",
        _LEDGER,
        "replace(lease, overdue=lease.overdue or lease.height == entry.lease) for node, lease in state.leases.items()}",
        "lease for node, lease in state.leases.items() if lease.height != entry.lease}",
        "a lease that takes too long is given to somebody else while its holder is down",
        "lost",
    ),
    Mutant(
        "release without the holder's word",
        _LEDGER,
        "            missing.append((Thing.FACT, release.fact))\n",
        "            continue\n",
        "a liar ends the leases of others",
        "proposing",
    ),
    Mutant(
        "GRANT without SLOT_REQ",
        _LEDGER,
        "asked = ((node, SlotRequest(entry.plan, attempt)) for node, attempt in entry.grants)",
        "asked = ((node, SlotRequest(entry.plan, attempt)) for node, attempt in ())",
        "a liar gives leases to nodes that never asked",
        "proposing",
        600,
    ),
    Mutant(
        "approvals not counted",
        _LEDGER,
        "    if len(entry.approvers) < wanted_approvals(membership, order):\n",
        "    if not entry.approvers:\n",
        "a liar's own approval makes a plan",
        "proposing",
    ),
    Mutant(
        "COMPLETE before confirm",
        _LIFE,
        "    if device.trial:\n        return Wait(Stage.TRIAL)\n",
        "    if device.trial:\n        return End(Type.COMPLETE, lease.height)\n",
        "a node that may still revert gives its lease back",
        "plain",
    ),
    Mutant(
        "budgets mixed up",
        "fleet/budget.py",
        "    if voters > membership.voter_budget:\n",
        "    if voters > len(membership.members) - membership.min_up:\n",
        "more voters are down than the log can spare",
        "plain",
    ),
    Mutant(
        "a RECONFIG may leave too many down",
        _LEDGER,
        "    return excess(fresh, set(state.leases) & remaining)\n",
        '    return ""\n',
        "the new epoch begins over its budget",
        "reconfigured",
        600,
    ),
    Mutant(
        "DEFER after going down",
        _LIFE,
        '    return End(Type.ROLLED_BACK, lease.height, device.reason or "the slot came back, nobody knows why")\n',
        '    return End(Type.DEFER, lease.height, device.reason or "the slot came back, nobody knows why")\n',
        "a node that was down says that it was not",
        "bad",
    ),
    Mutant(
        "the word not persisted",
        _OWN,
        "        site.persist(RecordKind.FACT, data)\n",
        "",
        "after a crash a node goes down under a lease that it has given back",
        "crashing",
        600,
    ),
    Mutant(
        "a single canary",
        _LEDGER,
        "    return membership.faults + 1\n",
        "    return 1\n",
        "a liar's COMPLETE lets a bad image onto several nodes at once",
        "wide",
    ),
    Mutant(
        "canaries side by side",
        _LEDGER,
        "    if not plan.wide and len(asked)",
        "    if plan.wide and len(asked)",
        "the first nodes go together",
        "wide",
    ),
    Mutant(
        "leases in a halted plan",
        _LEDGER,
        "    if plan.halted:\n        return f",
        "    if plan.halted and not plan.nodes:\n        return f",
        "an image that was found to be bad goes on to more nodes",
        "proposing",
        600,
    ),
    # -- people
    Mutant(
        "admin_seq not checked",
        _LEDGER,
        "    if order.admin_seq <= state.admin_seq:\n",
        "    if order.admin_seq < 0:\n",
        "a liar repeats an order of the past",
        "proposing",
        600,
    ),
    Mutant(
        "too few admins",
        _LEDGER,
        "    if count < needed:\n",
        "    if count < 1:\n",
        "one admin alone takes nodes back past the budget",
        "rolled_back",
    ),
    Mutant(
        "PAUSE waits for its commit",
        _VOTER,
        "        if not self.window_open or entry.plan in self.paused or bytes(32) in self.paused:\n",
        "        if not self.window_open:\n",
        "who has seen the PAUSE helps to grant",
        "commanded",
        600,
    ),
    # -- counters and accusations
    Mutant(
        "boot counter not raised",
        _NODE,
        "        site.wire.boot += 1\n",
        "",
        "peers take a restarted node's status for a replay",
        "crashing",
    ),
    Mutant(
        "evidence not checked",
        "fleet/intake.py",
        "            if not site.wire.seal.verify(member.key, one.signature, frame.signed(site.state.genesis, one)):\n",
        "            if False:\n",
        "a liar accuses honest nodes",
        "byzantine",
    ),
    Mutant(
        "signatures not checked",
        "fleet/wire.py",
        "        return one if self.seal.verify(member.key, signature, frame.signed_here(self.genesis, head, data)) else",
        "        return one if True else",
        "anybody speaks for everybody",
        "byzantine",
    ),
)
