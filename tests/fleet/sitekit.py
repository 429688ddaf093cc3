"""Memberships, orders and facts of a made-up site, by the real codecs and real keys, for tests of the core's parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from abupdate.fleet.facts import Facts
from abupdate.fleet.site import first_state
from abupdate.fleet.state import State
from abupdate.formats import frame, signature
from abupdate.formats import membership as membership_format
from abupdate.formats import order as order_format
from abupdate.formats.membership import Member, Membership
from abupdate.formats.messages import EVERYBODY, Frame, Message, Type
from abupdate.formats.order import Order, OrderKind
from abupdate.formats.signature import Domain
from abupdate.model import Signature

OLD, NEW = bytes([0xA1]) * 32, bytes([0xB2]) * 32


@dataclass(frozen=True, slots=True)
class Key:
    """A key pair made from a word, the same in every run."""

    word: str

    @property
    def private(self) -> Ed25519PrivateKey:
        """For signing."""
        return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(self.word.encode()).digest())

    @property
    def public(self) -> bytes:
        """32 bytes."""
        return self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, domain: Domain, body: bytes) -> Signature:
        """A signature over an object."""
        return Signature(self.public, self.private.sign(signature.message(domain, body)))


ROOT, ADMIN, ADMIN_TWO = Key("root"), Key("admin"), Key("admin two")


def node_key(index: int) -> Key:
    """The key of a node."""
    return Key(f"node {index}")


def membership_file(one: Membership, *signers: Key) -> bytes:
    """The signed file of a membership."""
    body = membership_format.body(one)
    return membership_format.build(body, [key.sign(Domain.MEMBERSHIP, body) for key in signers or (ROOT,)])


def site(count: int = 4, faults: int = 0, **changes: object) -> Membership:
    """Epoch 1 of a site of `count` nodes."""
    members = tuple(Member(index, node_key(index).public, f"n{index}", index < 16) for index in range(count))
    plain = Membership(
        site="plant",
        epoch=1,
        genesis=bytes(32),
        digest=bytes(32),
        body=b"",
        members=members,
        faults=faults,
        min_up=count - 1 if count < 8 else count - 3,
        groups={},
        approvals=faults + 1,
        stall_ok=False,
        heartbeat_s=5,
        roots=(ROOT.public,),
        root_threshold=1,
        admins=tuple(sorted((ADMIN.public, ADMIN_TWO.public))),
        admin_threshold=1,
        now_threshold=2,
    )
    return membership_format.parse(membership_file(replace(plain, **changes)))  # type: ignore[arg-type]


def next_epoch(old: Membership, *signers: Key, **changes: object) -> Membership:
    """The membership after this one."""
    return membership_format.parse(membership_file(replace(old, epoch=old.epoch + 1, recovery=None, **changes), *signers))  # type: ignore[arg-type]


def order(membership: Membership, kind: OrderKind, seq: int = 1, *signers: Key, **fields: object) -> Order:
    """A signed order of this epoch. UPDATE and ROLLBACK have what they need unless it is given."""
    return order_format.parse(order_file(membership, kind, seq, *signers, **fields))


def order_file(membership: Membership, kind: OrderKind, seq: int = 1, *signers: Key, **fields: object) -> bytes:
    """The file of a signed order."""
    given: dict[str, object] = {}
    if kind is OrderKind.UPDATE:
        given = {"bundle": NEW, "version": "2", "counter": 2, "compatible": "acme", "sources": ("/bundle.abu",)}
    elif kind is OrderKind.ROLLBACK:
        given = {"bundle": OLD, "version": "1"}
    plain = Order(bytes(32), kind, membership.genesis, membership.epoch, seq, b"", **{**given, **fields})  # type: ignore[arg-type]
    body = order_format.body(plain)
    return order_format.build(body, [key.sign(Domain.ORDER, body) for key in signers or (ADMIN,)])


@dataclass
class Shelf:
    """A `ledger.Library` that holds what a test puts into it."""

    membership_now: Membership
    orders: dict[bytes, Order] = field(default_factory=dict)
    memberships: dict[bytes, Membership] = field(default_factory=dict)
    facts: dict[bytes, Frame] = field(default_factory=dict)

    def order(self, digest: bytes) -> Order | None:
        """See ledger.Library."""
        return self.orders.get(digest)

    def membership(self, digest: bytes) -> Membership | None:
        """See ledger.Library."""
        return self.memberships.get(digest)

    def fact(self, digest: bytes) -> Frame | None:
        """See ledger.Library."""
        return self.facts.get(digest)

    def put(self, one: Order) -> Order:
        """Hold an order."""
        self.orders[one.id] = one
        return one

    def say(self, kind: Type, node: int, message: Message, epoch: int = 0) -> bytes:
        """Hold a node's fact; returns its digest."""
        one = make_frame(self.membership_now, kind, node, message, epoch)
        digest = frame.fact_digest(kind, node, one.epoch, frame.payload(message))
        self.facts[digest] = one
        return digest


def make_frame(membership: Membership, kind: Type, node: int, message: Message, epoch: int = 0, boot: int = 1, seq: int = 1) -> Frame:
    """A frame with its author's real signature."""
    epoch = epoch or membership.epoch
    content = frame.content(membership.genesis, kind, node, EVERYBODY, epoch, frame.payload(message), boot, seq)
    return Frame(kind, node, EVERYBODY, membership.genesis[:4], epoch, boot, seq, message, node_key(node).private.sign(content))


def start(membership: Membership) -> tuple[State, Shelf, Facts]:
    """A site before its first height."""
    return first_state(membership), Shelf(membership), Facts()
