"""What a node makes of keys and words over a change of the membership, and of an order to go back at once: driven by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abupdate.errors import Refused
from abupdate.fleet.events import Device, Effect, Leave, Observed, Received, RollBackNow, Start, Submitted
from abupdate.fleet.identity import Identity
from abupdate.fleet.node import Node
from abupdate.fleet.site import Options
from abupdate.fleet.state import Lease, Plan, Standing
from abupdate.formats import frame
from abupdate.formats.membership import Member, Membership
from abupdate.formats.messages import EVERYBODY, Approve, Echo, Frame, Heartbeat, HelloAck, Message, Stage, Type
from abupdate.formats.order import OrderKind
from abupdate.model import Phase
from tests.fleet.sitekit import ADMIN, ADMIN_TWO, NEW, OLD, Key, membership_file, next_epoch, node_key, order_file, site

NONCE = 77
NEW_KEYS = {0: Key("node 0 anew"), 1: Key("node 1 anew")}


def _renewed(members: tuple[Member, ...]) -> tuple[Member, ...]:
    return tuple(replace(one, key=NEW_KEYS[one.index].public) if one.index in NEW_KEYS else one for one in members)


FIRST = site(4)
SECOND = next_epoch(FIRST, members=_renewed(FIRST.members))


def signed(kind: Type, source: int, message: Message, epoch: int, key: Key, seq: int = 1) -> bytes:
    content = frame.content(FIRST.genesis, kind, source, EVERYBODY, epoch, frame.payload(message), 1, seq)
    return frame.pack(Frame(kind, source, EVERYBODY, FIRST.genesis[:4], epoch, 1, seq, message, key.private.sign(content)))


def started(memberships: tuple[Membership, ...], key: Key) -> Node:
    node = Node(0, [membership_file(one) for one in memberships], (), Identity(key.private), Options())
    node.handle(Start(NONCE), 1.0)
    return node


@pytest.mark.parametrize(("epoch", "key", "counts"), [(2, NEW_KEYS[1], True), (1, node_key(1), False)])
def test_status_by_the_key_that_a_place_had_before_counts_for_nothing(epoch: int, key: Key, counts: bool) -> None:
    node = started((FIRST, SECOND), NEW_KEYS[0])
    assert node.state.epoch == 2
    beat = Heartbeat(0, 0, Stage.IDLE, True, False, False, bytes(8))
    answer = HelloAck((Echo(0, NONCE, 0, 0, 0, Type.PREVOTE),))
    node.handle(Received(signed(Type.HELLO_ACK, 1, answer, epoch, key, 1)), 2.0)
    node.handle(Received(signed(Type.HEARTBEAT, 1, beat, epoch, key, 2)), 2.0)
    assert (node.view().members[1].age_s is not None) is counts


def test_a_word_of_an_epoch_to_come_is_not_kept_until_its_keys_are_known() -> None:
    node = started((FIRST,), node_key(0))
    site_ = node._site
    order = site_.archive.add_order(order_file(SECOND, OrderKind.UPDATE))
    early = signed(Type.APPROVE, 1, Approve(order.id), 2, node_key(1))
    node.handle(Received(early), 2.0)
    site_.known[2] = SECOND
    site_.state = replace(site_.state, epoch=2, membership=SECOND.digest, pending=order.id)
    site_.facts.follow(site_.state)
    assert site_.facts.find(Type.APPROVE, 1, order.id) is None
    node.handle(Received(early), 3.0)
    assert site_.facts.find(Type.APPROVE, 1, order.id) is None
    node.handle(Received(signed(Type.APPROVE, 1, Approve(order.id), 2, NEW_KEYS[1])), 4.0)
    assert site_.facts.find(Type.APPROVE, 1, order.id) is not None


def test_an_order_to_go_back_at_once_stops_who_is_about_to_go_forward() -> None:
    node = started((FIRST,), node_key(0))
    site_ = node._site
    update = site_.archive.add_order(order_file(FIRST, OrderKind.UPDATE, 1))
    plan = Plan(update.id, {0: Standing(grants=1)}, 1)
    site_.state = replace(site_.state, admin_seq=1, plan=plan, leases={0: Lease(0, 3, update.id, 1)})
    site_.peers.follow(frozenset(site_.membership.by_index))
    for peer in site_.peers.others.values():
        peer.fresh, peer.heard_s = True, 2.0
    effects: tuple[Effect, ...] = node.handle(Submitted(order_file(FIRST, OrderKind.ROLLBACK, 2, ADMIN, ADMIN_TWO, now=True)), 2.0)
    device = Device(booted=bytes([0xC3]) * 32, other=OLD, written=NEW, trial=False, armed=False, lease=None, phase=Phase.WRITTEN)
    effects += node.handle(Observed(device), 2.0)
    assert [type(effect) for effect in effects if isinstance(effect, Leave | RollBackNow)] == [RollBackNow]
    assert "at once" in node.view().paused


def test_two_orders_of_one_number_are_not_both_taken() -> None:
    """One of the two would be void, and whoever gave it would have been told that it was handed in."""
    node = started((FIRST,), node_key(0))
    first = order_file(FIRST, OrderKind.PAUSE, 1, reason="first")
    node.handle(Submitted(first), 2.0)
    node.handle(Submitted(first), 3.0)
    with pytest.raises(Refused, match="number 1 is on its way already"):
        node.handle(Submitted(order_file(FIRST, OrderKind.EVICT, 1, nodes=frozenset({2}))), 4.0)
    view = node.view()
    assert (view.last_seq, view.newest_seq) == (0, 1)
    assert view.waiting[0].endswith("(number 1)")
    node.handle(Submitted(order_file(FIRST, OrderKind.EVICT, 2, nodes=frozenset({2}))), 5.0)


def test_an_order_that_is_here_and_void_is_refused_when_it_is_handed_in_again() -> None:
    node = started((FIRST,), node_key(0))
    pause = order_file(FIRST, OrderKind.PAUSE, 1)
    node.handle(Submitted(pause), 2.0)
    node._site.known[2] = SECOND
    node._site.state = replace(node._site.state, epoch=2, membership=SECOND.digest)
    with pytest.raises(Refused, match="epoch"):
        node.handle(Submitted(pause), 3.0)


def test_a_pause_is_told_in_the_words_of_the_newest_one() -> None:
    node = started((FIRST,), node_key(0))
    site_ = node._site
    for seq, reason in ((1, "first"), (2, "second")):
        site_.archive.add_order(order_file(FIRST, OrderKind.PAUSE, seq, reason=reason))
    site_.state = replace(site_.state, admin_seq=2, paused=frozenset({bytes(32)}))
    assert node.view().paused == "second"


def test_a_lease_of_the_device_that_had_the_place_before_is_not_used() -> None:
    node = started((FIRST, SECOND), NEW_KEYS[0])
    assert node._site.inherited(1)
    assert not node._site.inherited(2)
    assert not started((FIRST,), node_key(0))._site.inherited(1)
