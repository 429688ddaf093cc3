"""What the golden files of the fleet were made from: one site, one order, and a frame of every type about them.

`python -m tests.formats.fleetgolden` writes the golden files that are missing, and the page frames.md from those that are there. Files that
are there are never made anew: a change of the code that needs that is a new wire version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from abupdate.formats import certificate, entries, evidence, frame
from abupdate.formats import membership as memberships
from abupdate.formats import order as orders
from abupdate.formats.certificate import Certificate
from abupdate.formats.entries import (
    Ending,
    Entry,
    GrantEntry,
    HaltEntry,
    LostEntry,
    OrderEntry,
    PlanEntry,
    ReconfigEntry,
    Release,
    ReleaseEntry,
    ReturnEntry,
)
from abupdate.formats.evidence import Evidence
from abupdate.formats.membership import Membership
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
    Poll,
    Proposal,
    Reject,
    Shutdown,
    SlotRequest,
    Stage,
    Thing,
    Type,
    Vote,
)
from abupdate.formats.order import OnHalt, Order, OrderKind
from tests.formats.sitefiles import BUNDLE, OLDER, membership_file, order_file, plain_order, site
from tests.rings import pair

FOLDER = Path(__file__).parent / "golden" / "fleet"
NODE = 3
VALUE = hashlib.sha256(b"a voted hash").digest()
FACT = hashlib.sha256(b"a fact").digest()
STATE = hashlib.sha256(b"a state").digest()


@dataclass(frozen=True, slots=True)
class Sample:
    """A frame of node 3. says: what it says, in a sentence."""

    type: Type
    message: Message
    says: str
    to: int = EVERYBODY
    token: bool = False


def membership_data() -> bytes:
    """Epoch 1 of the site."""
    return membership_file(site(faults=1, approvals=2, groups={"pumps": 1}), "root", "root-2")


@cache
def membership() -> Membership:
    """The same, decoded."""
    return memberships.parse(membership_data())


def order_data() -> bytes:
    """An order to update the site."""
    wanted = plain_order(
        OrderKind.UPDATE,
        genesis=membership().genesis,
        sources=("https://updates.example/new.abu", "/media/new.abu"),
        share=75,
        halt_at=2,
        on_halt=OnHalt.ROLLBACK,
        rollback_to=OLDER,
        rollback_version="1.0",
    )
    return order_file(wanted, "admin", "admin-2")


@cache
def order() -> Order:
    """The same, decoded."""
    return orders.parse(order_data())


def log_entries() -> dict[str, Entry]:
    """An entry of every kind."""
    plan = order().id
    return {
        "order": OrderEntry(plan),
        "plan": PlanEntry(plan, frozenset({0, 1, 3})),
        "grant": GrantEntry(plan, ((1, 1), (3, 2))),
        "release": ReleaseEntry((Release(3, 1, Ending.COMPLETE, FACT), Release(3, 3, Ending.DEFER, FACT))),
        "lost": LostEntry(plan),
        "return": ReturnEntry((Release(3, 1, Ending.ROLLED_BACK, FACT),)),
        "halt": HaltEntry(plan, 3, frozenset({0, 2})),
        "reconfig": ReconfigEntry(membership().digest),
    }


def packed(kind: Type, message: Message, author: int = NODE, to: int = EVERYBODY, *, token: bool = False) -> bytes:
    """A frame signed by its author's real key."""
    boot, seq = 5, 77
    genesis = membership().genesis
    content = frame.content(genesis, kind, author, EVERYBODY if token else to, 1, frame.payload(message), boot, seq)
    signature = b"" if kind is Type.POLL else pair(f"node-{author}").sign(content)
    return frame.pack(Frame(kind, author, to, genesis[:4], 1, boot, seq, message, signature, token))


def certificate_data() -> bytes:
    """Three precommits for the order's entry."""
    votes = []
    for voter in (0, 1, 3):
        signed = frame.content(membership().genesis, Type.PRECOMMIT, voter, EVERYBODY, 1, frame.payload(Vote(1, 2, VALUE)))
        votes.append((voter, pair(f"node-{voter}").sign(signed)))
    return certificate.pack(Certificate(1, 2, entries.pack(log_entries()["order"]), STATE, tuple(votes)))


def evidence_data() -> bytes:
    """Node 2 votes for two values in one step."""
    both = [packed(Type.PREVOTE, Vote(1, 0, value), 2) for value in (VALUE, STATE)]
    return evidence.pack(Evidence(*sorted(both)))


def samples() -> Mapping[str, Sample]:
    """A frame of every type, and the forms that a type may have."""
    plan, file = order().id, order_data()
    count = -(-len(file) // frame.FRAGMENT_BYTES)
    last = (count - 1) * frame.FRAGMENT_BYTES
    digest, entry = hashlib.sha256(file).digest(), entries.pack(log_entries()["order"])
    made, proof = certificate_data(), evidence_data()
    echo = Echo(2, 0xA1B2C3D4, 9, 1, 2, Type.PRECOMMIT)
    return {
        "poll": Sample(Type.POLL, Poll(), "Nothing to say; the token goes to node 1.", 1, token=True),
        "hello": Sample(Type.HELLO, Hello(0xA1B2C3D4), "I have restarted: who hears me?"),
        "hello-ack": Sample(
            Type.HELLO_ACK,
            HelloAck((echo, Echo(1, 7, 4, 0, 0, Type.PREVOTE))),
            "I have heard node 2, whose newest vote that I know is a precommit of height 1, round 2; and node 1, of which I know no vote.",
        ),
        "heartbeat": Sample(
            Type.HEARTBEAT,
            Heartbeat(4, 3, Stage.TRIAL, True, True, False, BUNDLE[:8], frozenset({1, 9})),
            "I am on trial under lease 3, and have doubts about nodes 1 and 9.",
        ),
        "heartbeat-token": Sample(
            Type.HEARTBEAT,
            Heartbeat(4, 0, Stage.IDLE, False, False, True, OLDER[:8]),
            "I do not vote. The frame carries the token to node 0; it was signed for everybody.",
            0,
            token=True,
        ),
        "nack": Sample(Type.NACK, Nack(Thing.ORDER, digest, frozenset({0, 3})), "Node 1, send me fragments 0 and 3 of this order.", 1),
        "nack-fact": Sample(Type.NACK, Nack(Thing.FACT, FACT), "Node 1, send me this fact.", 1),
        "cert-req": Sample(Type.CERT_REQ, CertRequest(5), "Node 1, what was decided at height 5?", 1),
        "frag-first": Sample(Type.FRAG, Fragment(digest, 0, count, file[: frame.FRAGMENT_BYTES]), "The first piece of golden.abo."),
        "frag-last": Sample(Type.FRAG, Fragment(digest, count - 1, count, file[last:]), "The last piece of golden.abo."),
        "proposal": Sample(Type.PROPOSAL, Proposal(1, 0, -1, entries.digest(entry), entry), "I propose this entry, for the first time."),
        "proposal-apart": Sample(
            Type.PROPOSAL,
            Proposal(1, 3, 2, entries.digest(entry)),
            "I propose the entry with this digest, which had its prevotes in round 2.",
        ),
        "prevote": Sample(Type.PREVOTE, Vote(1, 2, VALUE), "I prevote for this value."),
        "prevote-nil": Sample(Type.PREVOTE, Vote(1, 2, NOTHING), "I prevote for nothing."),
        "precommit": Sample(Type.PRECOMMIT, Vote(1, 2, VALUE), "I precommit this value."),
        "cert": Sample(
            Type.CERT, Announce(Thing.CERTIFICATE, hashlib.sha256(made).digest(), len(made), 1), "I have golden.certificate, of height 1."
        ),
        "cert-snapshot": Sample(Type.CERT, Announce(Thing.SNAPSHOT, STATE, 2000, 64), "I have a snapshot of height 64."),
        "order": Sample(Type.ORDER, Announce(Thing.ORDER, plan, len(file)), "I have golden.abo."),
        "order-membership": Sample(
            Type.ORDER, Announce(Thing.MEMBERSHIP, membership().digest, len(membership_data())), "I have golden.abm."
        ),
        "approve": Sample(Type.APPROVE, Approve(plan), "I hold this order's bundle, verified and written."),
        "reject": Sample(Type.REJECT, Reject(plan, "no space on B: 12 °C"), "I do not take part in this order."),
        "slot-req": Sample(Type.SLOT_REQ, SlotRequest(plan, 2), "I ask for my second slot of this plan."),
        "shutdown": Sample(Type.SHUTDOWN, Shutdown(3, 600), "I go down under lease 3, for about ten minutes."),
        "complete": Sample(Type.COMPLETE, Outcome(3, BUNDLE), "Under lease 3 I have confirmed this bundle."),
        "rolled-back": Sample(Type.ROLLED_BACK, Outcome(3, OLDER, "health"), "Under lease 3 I went back to this bundle."),
        "defer": Sample(Type.DEFER, Outcome(3, OLDER, ""), "I did not go down under lease 3 and never will."),
        "overdue": Sample(Type.OVERDUE, Overdue(3), "By my clock lease 3 is held for too long."),
        "lost": Sample(Type.LOST, Announce(Thing.ORDER, FACT, 243), "I have an order that says a node is lost."),
        "evidence": Sample(Type.EVIDENCE, Announce(Thing.EVIDENCE, hashlib.sha256(proof).digest(), len(proof)), "I have golden.evidence."),
    }


def files() -> dict[str, bytes]:
    """Every golden file, built now."""
    return {
        "golden.abm": membership_data(),
        "golden.abo": order_data(),
        "golden.certificate": certificate_data(),
        "golden.evidence": evidence_data(),
        **{f"{name}.entry": entries.pack(entry) for name, entry in log_entries().items()},
        **{f"{name}.frame": packed(one.type, one.message, to=one.to, token=one.token) for name, one in samples().items()},
    }


def main() -> None:
    """Write what is missing, and the page."""
    from tests.formats.framepage import PAGE, page

    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in files().items():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(data)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
