"""A library of lies. A byzantine node runs an honest core and bends what comes out of it, and says more of its own accord.

It knows the whole state of the simulation and has only its own key. `two-faced` is not here: the world then runs two cores under one key,
each of which hears and is heard by another half of the site (Bano et al., Twins: BFT systems made robust, 2020).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random

from abupdate.fleet.wire import Seal
from abupdate.formats import certificate, entries, evidence, frame
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import Ending, Entry, GrantEntry, HaltEntry, OrderEntry, PlanEntry, ReconfigEntry, Release, ReleaseEntry
from abupdate.formats.evidence import Evidence
from abupdate.formats.messages import (
    EVERYBODY,
    NOTHING,
    Announce,
    Approve,
    CertRequest,
    Echo,
    Fragment,
    Frame,
    Heartbeat,
    Hello,
    HelloAck,
    Message,
    Nack,
    Outcome,
    Overdue,
    Proposal,
    Shutdown,
    SlotRequest,
    Stage,
    Thing,
    Type,
    Vote,
)
from tests.fleet.network import Trap
from tests.fleet.oracle import Oracle

Words = Iterable[tuple[frozenset[int] | None, bytes]]
"""What goes out: to which nodes (None: all), which bytes."""

TWO_FACED = "two-faced"


@dataclass
class Liar:
    """What a byzantine node has and knows. past: frames that it has heard lately. boot, seq: beyond its core's, so that they are fresh.

    value: of an entry's bytes, what a vote for it names.
    """

    index: int
    seal: Seal
    genesis: bytes
    random: Random
    oracle: Oracle
    past: list[bytes]
    others: Callable[[], tuple[int, ...]]
    bundles: Callable[[], tuple[bytes, ...]]
    value: Callable[[bytes], bytes]
    trap: Callable[[], Trap | None]
    seq: int = 1 << 20
    boot: int = 1

    def make(self, kind: Type, message: Message, *, source: int | None = None, epoch: int | None = None, to: int = EVERYBODY) -> bytes:
        """A frame signed by this liar, whoever it says it is from."""
        self.seq += 1
        author = self.index if source is None else source
        when = self.oracle.membership.epoch if epoch is None else epoch
        content = frame.content(self.genesis, kind, author, to, when, frame.payload(message), self.boot, self.seq)
        return frame.pack(Frame(kind, author, to, self.genesis[:4], when, self.boot, self.seq, message, self.seal.sign(content)))

    @property
    def height(self) -> int:
        """The height that is being decided."""
        return self.oracle.height + 1

    @property
    def plan(self) -> bytes:
        """The open plan, or the pending order."""
        return self.oracle.plan.order.id if self.oracle.plan is not None else self.oracle.pending

    @property
    def lease(self) -> int:
        """Its own lease, 0: none."""
        held = self.oracle.held.get(self.index)
        return held.lease if held else 0

    def half(self) -> frozenset[int]:
        """Some of the others."""
        return frozenset(node for node in self.others() if self.random.random() < 0.5)


class Behaviour:
    """Says what its core says, and nothing more."""

    def outgoing(self, liar: Liar, data: bytes) -> Words:
        """What becomes of a frame that the core sends."""
        return ((None, data),)

    def pulse(self, liar: Liar) -> Words:
        """What it says of its own accord, every now and then."""
        return ()


class Silent(Behaviour):
    """Says nothing at all."""

    def outgoing(self, liar: Liar, data: bytes) -> Words:
        return ()


class Mute(Behaviour):
    """Takes part in everything but the votes."""

    def outgoing(self, liar: Liar, data: bytes) -> Words:
        head = frame.peek(data)
        return () if head is not None and head.type in (Type.PREVOTE, Type.PRECOMMIT) else ((None, data),)


class Choosy(Behaviour):
    """Says each thing to some only."""

    def outgoing(self, liar: Liar, data: bytes) -> Words:
        return ((liar.half(), data),)


class Withholding(Behaviour):
    """Never hands out an object or a certificate."""

    def outgoing(self, liar: Liar, data: bytes) -> Words:
        head = frame.peek(data)
        return () if head is not None and head.type in (Type.FRAG, Type.CERT, Type.ORDER) else ((None, data),)


class Equivocating(Behaviour):
    """Votes for one thing to some, for another to the rest; proposes two things."""

    def outgoing(self, liar: Liar, data: bytes) -> Words:
        one = frame.parse(data)
        if one.source != liar.index:
            return ((None, data),)
        some = liar.half()
        rest = frozenset(liar.others()) - some
        match one.message:
            case Vote() as vote:
                other = replace(vote, value=self._another(liar, vote))
                return ((some, data), (rest, liar.make(one.type, other, epoch=one.epoch)))
            case Proposal() as proposal:
                entry = next(iter(_inventions(liar)), None)
                if entry is None:
                    return ((some, data),)
                packed = entries.pack(entry)
                other_proposal = Proposal(proposal.height, proposal.round, proposal.valid_round, entries.digest(packed), packed)
                return ((some, data), (rest, liar.make(one.type, other_proposal, epoch=one.epoch)))
            case _:
                return ((None, data),)

    def _another(self, liar: Liar, vote: Vote) -> bytes:
        for data in reversed(liar.past[-60:]):
            head = frame.peek(data)
            if head is not None and head.type in (Type.PREVOTE, Type.PRECOMMIT):
                heard = frame.parse(data).message
                if isinstance(heard, Vote) and heard.value != vote.value and heard.height == vote.height:
                    return heard.value
        return NOTHING if vote.value != NOTHING else hashlib.sha256(vote.value).digest()


class Turncoat(Behaviour):
    """While there is a trap (network.py): helps the favourite to decide, and the others to leave the round without knowing of it."""

    def outgoing(self, liar: Liar, data: bytes) -> Words:
        trap = liar.trap()
        one = frame.parse(data)
        if trap is None or one.source != liar.index or not isinstance(one.message, Vote) or one.message.value != trap.value:
            return ((None, data),)
        nil = liar.make(one.type, replace(one.message, value=NOTHING), epoch=one.epoch)
        others = frozenset(liar.others())
        told = frozenset({trap.favourite}) if one.type is Type.PRECOMMIT else others - {trap.blind}
        return ((told, data), (others - told, nil))


class Eager(Behaviour):
    """Votes at once and in all rounds for whatever it hears of, prevote and precommit."""

    def pulse(self, liar: Liar) -> Words:
        seen: set[bytes] = set()
        for data in liar.past[-40:]:
            head = frame.peek(data)
            if head is None or head.type not in (Type.PREVOTE, Type.PRECOMMIT):
                continue
            heard = frame.parse(data).message
            if isinstance(heard, Vote) and heard.height >= liar.height and heard.value not in seen and len(seen) < 4:
                seen.add(heard.value)
                for kind in (Type.PREVOTE, Type.PRECOMMIT):
                    yield liar.half(), liar.make(kind, heard)


class FalseComplete(Behaviour):
    """Says COMPLETE as soon as it has a lease, and before."""

    def pulse(self, liar: Liar) -> Words:
        for bundle in liar.bundles()[:2]:
            yield None, liar.make(Type.COMPLETE, Outcome(liar.lease or liar.height, bundle))


class FalseRollback(Behaviour):
    """Says ROLLED_BACK, DEFER and COMPLETE for one lease, to different nodes."""

    def pulse(self, liar: Liar) -> Words:
        lease, bundle = liar.lease or liar.height, liar.bundles()[0]
        yield liar.half(), liar.make(Type.ROLLED_BACK, Outcome(lease, bundle, "it smells"))
        yield liar.half(), liar.make(Type.DEFER, Outcome(lease, bundle, "not today"))
        yield liar.half(), liar.make(Type.COMPLETE, Outcome(lease, bundle))


class Forging(Behaviour):
    """Speaks for others: their words with its own signature, and their signatures under other words."""

    def pulse(self, liar: Liar) -> Words:
        victims = [node for node in liar.others() if node != liar.index]
        if not victims:
            return
        victim = liar.random.choice(victims)
        held = liar.oracle.held.get(victim)
        lease, bundle = (held.lease if held else liar.height), liar.bundles()[0]
        yield None, liar.make(Type.COMPLETE, Outcome(lease, bundle), source=victim)
        yield None, liar.make(Type.DEFER, Outcome(lease, bundle, "said another"), source=victim)
        yield None, liar.make(Type.SLOT_REQ, SlotRequest(liar.plan, 1), source=victim)
        yield None, liar.make(Type.APPROVE, Approve(liar.plan), source=victim)
        yield None, liar.make(Type.PREVOTE, Vote(liar.height, 0, hashlib.sha256(b"forged").digest()), source=victim)
        for data in liar.random.sample(liar.past, min(3, len(liar.past))):
            one = frame.parse(data)
            if one.type is Type.POLL:
                continue
            match one.message:
                case Vote() as vote:
                    yield None, frame.pack(replace(one, message=replace(vote, height=vote.height + 1)))
                case Outcome() as outcome:
                    yield None, frame.pack(replace(one, message=replace(outcome, lease=liar.lease or outcome.lease + 1)))
                case SlotRequest() as request:
                    yield None, frame.pack(replace(one, message=replace(request, attempt=request.attempt % 200 + 1)))
                case _:
                    yield None, frame.pack(replace(one, epoch=one.epoch + 1))


class Replaying(Behaviour):
    """Says again what others said, as it was and with newer counters in the header."""

    def pulse(self, liar: Liar) -> Words:
        for data in liar.random.sample(liar.past, min(4, len(liar.past))):
            yield None, data
            one = frame.parse(data)
            yield liar.half(), frame.pack(replace(one, boot=one.boot + 1, seq=one.seq + 1000))


class Spamming(Behaviour):
    """A flood of well signed frames that mean nothing."""

    def pulse(self, liar: Liar) -> Words:
        for _ in range(4):
            yield None, liar.make(*self._nonsense(liar, liar.random.randbytes(32)))

    def _nonsense(self, liar: Liar, digest: bytes) -> tuple[Type, Message]:
        random, height = liar.random, liar.height
        return random.choice(
            (
                (Type.SLOT_REQ, SlotRequest(digest, 1)),
                (Type.APPROVE, Approve(digest)),
                (Type.NACK, Nack(Thing.ORDER, digest)),
                (Type.ORDER, Announce(Thing.ORDER, digest, 400)),
                (Type.EVIDENCE, Announce(Thing.EVIDENCE, digest, 300)),
                (Type.PREVOTE, Vote(height + random.randrange(4), random.randrange(200), digest)),
                (Type.PRECOMMIT, Vote(height, random.randrange(30000), digest)),
                (Type.CERT_REQ, CertRequest(random.randrange(1, height + 3))),
                (Type.HELLO, Hello(random.getrandbits(32))),
                (Type.SHUTDOWN, Shutdown(liar.lease or height, 60)),
                (Type.FRAG, Fragment(digest, random.randrange(8), 9, random.randbytes(126))),
            )
        )


class Fragmenting(Behaviour):
    """Begins many objects and finishes none."""

    def pulse(self, liar: Liar) -> Words:
        for _ in range(2):
            digest = liar.random.randbytes(32)
            yield None, liar.make(Type.ORDER, Announce(Thing.ORDER, digest, 1200))
            yield None, liar.make(Type.FRAG, Fragment(digest, liar.random.randrange(9), 10, liar.random.randbytes(126)))


class BadProposals(Behaviour):
    """Proposes what must not be decided whenever it is its turn, and what others have proposed with a false valid round; votes for both."""

    def outgoing(self, liar: Liar, data: bytes) -> Words:
        head = frame.peek(data)
        if head is None or head.type is not Type.PROPOSAL or head.source != liar.index:
            return ((None, data),)
        mine = frame.parse(data).message
        return self._propose(liar, mine.height, mine.round) if isinstance(mine, Proposal) else ()

    def pulse(self, liar: Liar) -> Words:
        for round_ in range(3):
            yield from self._propose(liar, liar.height, round_)

    def _propose(self, liar: Liar, height: int, round_: int) -> Words:
        packed = self._entry(liar)
        if not packed:
            return
        inline = packed if len(packed) <= 120 else b""
        valid_round = liar.random.choice((-1, 0, round_ - 1))
        yield None, liar.make(Type.PROPOSAL, Proposal(height, round_, min(valid_round, round_ - 1), entries.digest(packed), inline))
        value = liar.value(packed)
        if value != NOTHING:
            for kind in (Type.PREVOTE, Type.PRECOMMIT):
                yield None, liar.make(kind, Vote(height, round_, value))

    def _entry(self, liar: Liar) -> bytes:
        random, oracle = liar.random, liar.oracle
        fresh = [order.id for order in oracle.orders.values() if order.admin_seq > oracle.admin_seq]
        if fresh and random.random() < 0.4:
            return entries.pack(OrderEntry(random.choice(fresh)))
        if random.random() < 0.3:
            for data in reversed(liar.past[-80:]):
                head = frame.peek(data)
                if head is not None and head.type is Type.PROPOSAL:
                    heard = frame.parse(data).message
                    if isinstance(heard, Proposal) and heard.entry and random.random() < 0.5:
                        return heard.entry
        inventions = list(_inventions(liar))
        return entries.pack(random.choice(inventions)) if inventions else b""


class FalseEchoes(Behaviour):
    """Tells nodes that start that they have voted in the far future, or that it never heard of them."""

    def outgoing(self, liar: Liar, data: bytes) -> Words:
        one = frame.parse(data)
        if not isinstance(one.message, HelloAck) or one.source != liar.index:
            return ((None, data),)
        echoes = tuple(
            replace(echo, height=liar.height + 50, round=3, step=Type.PRECOMMIT)
            if liar.random.random() < 0.5
            else Echo(echo.node, echo.nonce, echo.boot + 7, 0, 0, Type.PREVOTE)
            for echo in one.message.echoes
        )
        return ((None, liar.make(Type.HELLO_ACK, HelloAck(echoes), to=one.to)),)


class FalseBeats(Behaviour):
    """Heartbeats from the far future that doubt everybody."""

    def pulse(self, liar: Liar) -> Words:
        doubts = frozenset(liar.others())
        beat = Heartbeat(liar.height + 1000, 7, Stage.TRIAL, True, True, False, liar.bundles()[0][:8], doubts)
        yield None, liar.make(Type.HEARTBEAT, beat)


class CallsOverdue(Behaviour):
    """Calls every lease overdue at once."""

    def pulse(self, liar: Liar) -> Words:
        for held in list(liar.oracle.held.values()):
            yield None, liar.make(Type.OVERDUE, Overdue(held.lease))


class FalseEvidence(Behaviour):
    """Accuses others of having voted twice, by votes that they never signed."""

    def pulse(self, liar: Liar) -> Words:
        victim = liar.random.choice(liar.others())
        votes = [Vote(liar.height, 0, liar.random.randbytes(32)) for _ in range(2)]
        packed = evidence.pack(Evidence(*sorted(liar.make(Type.PREVOTE, vote, source=victim) for vote in votes)))
        yield from _hand_out(liar, Thing.EVIDENCE, packed, 0)


class FalseCertificates(Behaviour):
    """Hands out certificates that nobody or too few signed."""

    def pulse(self, liar: Liar) -> Words:
        entry = next(iter(_inventions(liar)), None)
        if entry is None:
            return
        mine = liar.seal.sign(b"anything")
        signatures = tuple((voter, mine) for voter in liar.oracle.membership.voters[: liar.oracle.membership.quorum])
        packed = certificate.pack(Certificate(liar.height, 0, entries.pack(entry), liar.random.randbytes(32), signatures))
        yield from _hand_out(liar, Thing.CERTIFICATE, packed, liar.height)


def _hand_out(liar: Liar, thing: Thing, packed: bytes, height: int) -> Words:
    digest = hashlib.sha256(packed).digest()
    yield None, liar.make(Type.CERT if thing is Thing.CERTIFICATE else Type.EVIDENCE, Announce(thing, digest, len(packed), height))
    pieces = [packed[at : at + frame.FRAGMENT_BYTES] for at in range(0, len(packed), frame.FRAGMENT_BYTES)]
    for number, piece in enumerate(pieces):
        yield None, liar.make(Type.FRAG, Fragment(digest, number, len(pieces), piece))


def _attempt(liar: Liar, node: int) -> int:
    """The number that the node's next request would have."""
    plan = liar.oracle.plan
    return plan.grants.get(node, 0) + 1 if plan is not None else 1


def _inventions(liar: Liar) -> Iterator[Entry]:
    """Entries that no honest node may accept now: over budget, without approvals, without a holder's word."""
    oracle, random = liar.oracle, liar.random
    members = [member.index for member in oracle.membership.members]
    found: list[Entry] = [
        OrderEntry(random.randbytes(32)),
        ReconfigEntry(random.randbytes(32)),
        PlanEntry(liar.plan, frozenset(members)),
        PlanEntry(liar.plan, frozenset({liar.index})),
        GrantEntry(liar.plan, tuple((node, 1) for node in members[: random.randint(1, len(members))])),
        *(GrantEntry(liar.plan, ((node, _attempt(liar, node)),)) for node in members if node not in oracle.held),
        *(OrderEntry(order) for order in oracle.orders),
    ]
    for node, held in oracle.held.items():
        found += [ReleaseEntry((Release(held.lease, node, ending, random.randbytes(32)),)) for ending in Ending]
        found.append(HaltEntry(held.plan, held.lease, frozenset(members[:1])))
    random.shuffle(found)
    return iter(found)


BEHAVIOURS: dict[str, Callable[[], Behaviour]] = {
    "honest-looking": Behaviour,
    "silent": Silent,
    "mute": Mute,
    "choosy": Choosy,
    "withholding": Withholding,
    "equivocating": Equivocating,
    "turncoat": Turncoat,
    "eager": Eager,
    "false-complete": FalseComplete,
    "false-rollback": FalseRollback,
    "forging": Forging,
    "replaying": Replaying,
    "spamming": Spamming,
    "fragmenting": Fragmenting,
    "bad-proposals": BadProposals,
    "false-echoes": FalseEchoes,
    "false-beats": FalseBeats,
    "calls-overdue": CallsOverdue,
    "false-certificates": FalseCertificates,
    "false-evidence": FalseEvidence,
    TWO_FACED: Behaviour,
}


def bent(behaviours: Iterable[Behaviour], liar: Liar, data: bytes) -> list[tuple[frozenset[int] | None, bytes]]:
    """What comes out when all of them bend a frame, one after the other."""
    words: list[tuple[frozenset[int] | None, bytes]] = [(None, data)]
    for behaviour in behaviours:
        following: list[tuple[frozenset[int] | None, bytes]] = []
        for targets, one in words:
            for fewer, other in behaviour.outgoing(liar, one):
                both = targets if fewer is None else fewer if targets is None else targets & fewer
                following.append((both, other))
        words = following
    return words
