"""The ring on a modelled bus: turns, votes in time, and what becomes of the token when things go wrong. All in simulated time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from random import Random

import pytest

from abupdate.errors import Refused
from abupdate.fleet.framing import burst
from abupdate.fleet.outbox import FRAMES, Outbox
from abupdate.fleet.ring import Ring, Timing, Turn, with_token
from abupdate.formats import frame
from abupdate.formats.messages import EVERYBODY, CertRequest, Fragment, Frame, Hello, Nack, Poll, Thing, Type, Vote
from tests.fleet.bus import TAG, Bus, Noise, Station, heartbeat, make, vote
from tests.fleet.busvotes import decide

SIZES = (3, 16)
ALL_SIZES = (3, 16, 64)
NOISES = {"flip": Noise(flip=5e-4), "cut": Noise(cut=3e-4), "more": Noise(more=3e-4), "local": Noise(local=1e-3)}


def full(members: int, **options: object) -> Bus:
    """A bus with every member on it."""
    bus = Bus(members, **options)  # type: ignore[arg-type]
    for number in bus.members:
        bus.join(number)
    return bus


def turns(bus: Bus, since_s: float = 0.0, until_s: float = float("inf")) -> Counter[int]:
    """Bursts by member."""
    return Counter(one.source for one in bus.bursts if since_s <= one.start_s < until_s)


def count(bus: Bus, name: str) -> int:
    """A counter, over all members."""
    return sum(station.ring.counts[name] for station in bus.stations.values())


def fill(station: Station, frames: int, now_s: float) -> None:
    """A backlog of fragments."""
    for index in range(frames):
        station.put(make(Type.FRAG, station.number, Fragment(bytes(32), index, frames, bytes(126))), now_s)


def token(source: int, to: int) -> bytes:
    """A burst of a POLL that passes a token."""
    return burst([frame.pack(Frame(Type.POLL, source, to, TAG, 1, 0, 0, Poll(), b"", token=True))])


def holders(bus: Bus) -> list[int]:
    """Members that take themselves to have the token."""
    return [number for number, station in bus.stations.items() if station.ring.turn is Turn.MINE]


# -- turns


@pytest.mark.parametrize("members", ALL_SIZES)
def test_everybody_has_turns_in_the_order_of_the_numbers(members: int) -> None:
    bus = full(members)
    bus.run(2.5)
    order = [one.source for one in bus.bursts]
    assert order == [number % members for number in range(len(order))]
    assert len(order) > members
    assert (bus.collisions, count(bus, "tokens made")) == (0, 1)


@pytest.mark.parametrize("members", SIZES)
def test_an_idle_holder_keeps_the_token_for_20_to_40_ms(members: int) -> None:
    bus = full(members)
    bus.run(6.0)
    late = [one for one in bus.bursts if one.start_s > 3.0]
    pauses = [after.start_s - before.end_s for before, after in pairwise(late)]
    assert all(0.019 < pause < 0.045 for pause in pauses)


def test_a_turn_keeps_the_turnaround() -> None:
    bus = full(4, turnaround_s=0.003)
    for station in bus.stations.values():
        fill(station, 30, 0.0)
    bus.run(2.0)
    for before, after in pairwise(bus.bursts):
        assert 0.003 <= after.start_s - before.end_s < 0.006 or not before.frames[-1][1]


def test_a_holder_sends_at_once_what_comes_up_while_it_is_idle() -> None:
    bus = full(3)
    bus.run(1.0)
    while holders(bus):
        bus.run(bus.now_s + 0.001)
    while not holders(bus):
        bus.run(bus.now_s + 0.001)
    station = bus.stations[holders(bus)[0]]
    bus.run(bus.now_s + 0.005)
    asked_s, before = bus.now_s, len(bus.bursts)
    station.put(heartbeat(station.number), asked_s)
    bus.poke(station)
    bus.run(asked_s + 0.1)
    assert bus.bursts[before].source == station.number
    assert bus.bursts[before].start_s - asked_s < 0.001


@pytest.mark.parametrize("members", SIZES)
def test_who_has_much_to_say_has_no_more_turns_than_others(members: int) -> None:
    bus = full(members)
    for number, station in bus.stations.items():
        fill(station, 60 if number % 2 else 3, 0.0)
    bus.run(3.0)
    shares = turns(bus, 0.5)
    assert len(shares) == members
    assert max(shares.values()) - min(shares.values()) <= 1
    assert bus.collisions == 0


def test_all_that_waits_is_said_and_heard_once() -> None:
    bus = full(5)
    for station in bus.stations.values():
        fill(station, 20, 0.0)
    bus.run(6.0)
    for station in bus.stations.values():
        heard = Counter((one.source, one.message.index) for _, one in station.heard if isinstance(one.message, Fragment))
        assert heard == {(number, index): 1 for number in range(5) if number != station.number for index in range(20)}


@pytest.mark.parametrize("members", ALL_SIZES)
def test_a_round_of_the_token_is_bounded_whatever_waits(members: int) -> None:
    bus = full(members)
    for station in bus.stations.values():
        fill(station, 100, 0.0)
    bus.run(6.0)
    mine = [one.start_s for one in bus.bursts if one.source == 1 and one.start_s > 1.0]
    longest_s = max(after - before for before, after in pairwise(mine))
    assert longest_s < max(0.7, members * (bus.timing.longest_frame_s + 0.008))


# -- votes


@pytest.mark.parametrize("backlog", [0, 8])
@pytest.mark.parametrize("proposer", [0, 7, 15])
def test_sixteen_voters_precommit_within_half_a_second(proposer: int, backlog: int) -> None:
    decision = decide(Bus(16, turnaround_s=0.003), range(16), 10, proposer, backlog)
    assert decision.quorum_s is not None
    print(f"proposal's first byte to the 10th PRECOMMIT: {decision.quorum_s * 1000:.0f} ms")
    assert decision.quorum_s <= 0.5
    assert decision.precommits == 16


def test_sixteen_voters_among_64_members_agree_within_a_second() -> None:
    decision = decide(Bus(64), range(0, 64, 4), 10, 8)
    assert decision.quorum_s is not None
    assert decision.quorum_s <= 1.0


def test_votes_do_not_starve_what_else_there_is_to_say() -> None:
    bus = full(4)
    for step in range(1, 2000):
        for station in bus.stations.values():
            data = vote(Type.PREVOTE, station.number, step)
            bus.at(step * 0.01, partial(station.put, data, step * 0.01, urgent=True))
    bus.run(1.0)
    for station in bus.stations.values():
        fill(station, 6, 1.0)
    bus.run(9.0)
    said = Counter(one.source for one in bus.bursts for data in one.frames if data[1] == Type.FRAG)
    assert said == dict.fromkeys(range(4), 6)
    first = next(one for one in bus.bursts if any(data[1] == Type.FRAG for data in one.frames))
    assert first.frames[0][1] == Type.PREVOTE


# -- absent members


@pytest.mark.parametrize(("members", "there"), [(16, (2, 3, 9)), (64, tuple(range(0, 64, 5))), (3, (1, 2))])
def test_absent_members_cost_little(members: int, there: tuple[int, ...]) -> None:
    bus = Bus(members)
    for number in there:
        bus.join(number)
    bus.run(9.0)
    begun = count(bus, "passed in vain")
    bus.run(15.0)
    # One try a second, of 0.1 s at most.
    assert count(bus, "passed in vain") - begun <= 6
    shares = turns(bus, 9.0)
    assert set(shares) == set(there)
    assert max(shares.values()) - min(shares.values()) <= 12
    assert (bus.collisions, count(bus, "tokens made")) == (0, 1)
    assert all(station.ring.present == there for station in bus.stations.values())


def test_a_member_that_leaves_is_left_out_and_let_in_again() -> None:
    bus = full(16)
    bus.run(2.0)
    for number in (5, 6):
        bus.leave(number)
    bus.run(4.0)
    assert len(turns(bus, 3.0)) == 14
    assert all(not {5, 6} & set(station.ring.present) for station in bus.stations.values())
    made = count(bus, "tokens made")
    for number in (5, 6):
        bus.join(number, at_s=4.0)
    bus.run(8.0)
    assert set(turns(bus, 6.5)) == set(range(16))
    assert count(bus, "tokens made") == made


def test_the_holder_of_the_token_may_leave_with_it() -> None:
    bus = full(4)
    bus.run(1.0)
    while not holders(bus):
        bus.run(bus.now_s + 0.001)
    gone = holders(bus)[0]
    bus.leave(gone)
    left_s = bus.now_s
    bus.run(left_s + 1.0)
    assert set(turns(bus, left_s)) == set(range(4)) - {gone}
    assert min(one.start_s for one in bus.bursts if one.start_s > left_s) - left_s < 0.2


def test_who_is_alone_is_found_by_the_next_one_that_comes() -> None:
    bus = Bus(16)
    bus.join(9)
    bus.run(20.0)
    # Three tries a second at most once all have been tried.
    assert 10 < turns(bus, 10.0)[9] < 30
    bus.join(3, at_s=20.0)
    bus.run(22.5)
    shares = turns(bus, 21.5)
    assert set(shares) == {3, 9}
    assert min(shares.values()) > 3


def test_all_start_at_once_after_a_power_cut() -> None:
    bus = Bus(64)
    for number in bus.members:
        bus.join(number, at_s=0.001 * (number % 7))
    bus.run(3.0)
    assert len(turns(bus)) == 64


# -- tokens lost and doubled


@pytest.mark.parametrize("members", SIZES)
def test_a_token_that_nobody_heard_is_passed_again(members: int) -> None:
    bus = full(members)
    bus.run(1.0)
    for _ in range(8):
        while not holders(bus):
            bus.run(bus.now_s + 0.001)
        lost = len(bus.bursts)
        bus.noise.flip = 0.5
        while len(bus.bursts) == lost:
            bus.run(bus.now_s + 0.001)
        bus.run(bus.bursts[-1].end_s + 0.0005)
        bus.noise.flip = 0.0
        sent_s = bus.now_s
        bus.run(sent_s + 0.3)
        again = next(one for one in bus.bursts if one.start_s > sent_s)
        # Or the one before it passes it again, who has not heard either that its token was used.
        assert (again.source, again.frames[-1]) in [(one.source, one.frames[-1]) for one in bus.bursts[lost - 1 : lost + 1]]
        assert again.start_s - sent_s < 0.11
    assert (bus.collisions, count(bus, "tokens made")) == (0, 1)


@pytest.mark.parametrize("members", ALL_SIZES)
def test_two_tokens_do_not_stay_two_for_long(members: int) -> None:
    for seed in range(10 if members < 64 else 2):
        bus = full(members, seed=seed)
        bus.run(1.0 + 0.017 * seed)
        # Somebody outside passes one to a member that has none.
        bus.shout(200, token(members - 1 - seed % 2, seed % (members - 1)))
        bus.run(bus.now_s + 0.5)
        before = bus.collisions
        since_s = bus.now_s
        bus.run(since_s + 1.5)
        assert bus.collisions == before, seed
        late = [one for one in bus.bursts if one.start_s >= since_s]
        assert all(frame.parse(before.frames[-1]).to == after.source for before, after in pairwise(late)), seed


def test_two_halves_that_are_joined_become_one_ring() -> None:
    """Two rings have run apart; their members hear each other from one moment on."""
    for seed in range(10):
        bus = Bus(8, seed=seed)
        for number in bus.members:
            bus.join(number)
        for number in range(4, 8):
            bus.stations[number].deaf = True
        bus.run(3.0 + seed * 0.037)
        for number in range(4, 8):
            bus.stations[number].deaf = False
        bus.run(bus.now_s + 3.0)
        before, since_s = bus.collisions, bus.now_s
        bus.run(since_s + 2.0)
        assert bus.collisions == before, seed
        assert set(turns(bus, since_s)) == set(range(8)), seed


# -- noise and nuisances


@pytest.mark.parametrize("members", SIZES)
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_noise_costs_turns_but_nobodys_all(members: int, noise: Noise) -> None:
    bus = full(members, noise=noise, seed=members)
    until_s = 8.0
    for step in range(int(until_s)):
        for station in bus.stations.values():
            station.put(heartbeat(station.number, step), bus.now_s)
        bus.run(step + 1.0)
    shares = turns(bus, 1.0)
    assert len(shares) == members
    quiet = full(members)
    quiet.run(until_s)
    assert min(shares.values()) >= min(turns(quiet, 1.0).values()) / 4


def test_a_storm_of_garbage_ends_and_the_ring_goes_on() -> None:
    for seed in range(5):
        bus = full(16, seed=seed)
        bus.run(1.0)
        bus.shout(200, Random(seed).randbytes(int(1.0 / bus.byte_s)))
        bus.run(2.5)
        assert len(turns(bus, 2.0, 2.5)) > 3
        bus.run(5.0)
        before = bus.collisions
        bus.run(6.0)
        assert bus.collisions == before
        assert len(turns(bus, 4.5)) == 16


@pytest.mark.parametrize("what", ["garbage", "frames"])
def test_a_babbling_station_does_not_stop_the_others(what: str) -> None:
    bus = full(8)
    bus.run(1.0)
    for step in range(120):
        said = Random(step).randbytes(60) if what == "garbage" else burst([heartbeat(7, step)])
        bus.at(1.0 + 0.1 * step, partial(bus.shout, 200, said))
    bus.run(13.0)
    shares = turns(bus, 1.0)
    assert len(shares) == 8
    assert min(shares.values()) >= 12


def test_a_station_that_hears_nothing_costs_the_others_half_at_most() -> None:
    bus = full(8)
    bus.stations[0].deaf = True
    for station in bus.stations.values():
        station.put(heartbeat(station.number), 0.0)
    bus.run(4.0)
    bus.run(12.0)
    quiet = full(8)
    quiet.run(12.0)
    expected = turns(quiet, 4.0)
    shares = turns(bus, 4.0)
    assert all(shares[number] >= expected[number] / 2 for number in range(1, 8))


@pytest.mark.parametrize("members", SIZES)
def test_echoes_are_no_answers(members: int) -> None:
    bus = full(members)
    for station in bus.stations.values():
        station.echo = True
        station.put(heartbeat(station.number), 0.0)
    bus.leave(1)
    bus.run(5.0)
    assert len(turns(bus, 2.0)) == members - 1
    assert all(one.source != station.number for station in bus.stations.values() for _, one in station.heard)
    assert (bus.collisions, count(bus, "tokens made")) == (0, 1)
    assert count(bus, "in: echo") > members


def test_adapters_that_hand_over_late_work() -> None:
    """16 ms is what a common USB adapter takes."""
    bus = full(16)
    for station in bus.stations.values():
        station.latency_s = 0.016
    bus.run(8.0)
    assert (bus.collisions, count(bus, "tokens made"), count(bus, "passed in vain")) == (0, 1, 0)


def test_a_node_that_is_busy_for_long_loses_its_turn_and_no_more() -> None:
    bus = Bus(4)
    for number in bus.members:
        bus.join(number, lambda station, one, now_s: 0.3 if station.number == 2 and one.message == Hello(7) else 0.0)
    bus.run(1.0)
    for step in range(4):
        bus.stations[0].put(make(Type.HELLO, 0, Hello(7), seq=step), bus.now_s)
        bus.run(bus.now_s + 2.0)
    assert bus.collisions <= 2
    before, since_s = bus.collisions, bus.now_s
    bus.run(since_s + 2.0)
    assert bus.collisions == before
    assert len(turns(bus, since_s)) == 4


@pytest.mark.parametrize("seed", range(12))
def test_after_anything_at_all_there_is_one_ring_of_all(seed: int) -> None:
    chance = Random(seed)
    members = chance.choice((3, 5, 9, 16))
    bus = full(members, seed=seed, noise=Noise())
    for station in bus.stations.values():
        station.latency_s = chance.choice((0.0002, 0.001, 0.008))
        station.echo = chance.random() < 0.3
    while bus.now_s < 8.0:
        number = chance.randrange(members)
        match chance.randrange(7):
            case 0:
                bus.shout(200, chance.randbytes(chance.randrange(1, 600)))
            case 1:
                bus.shout(200, token(chance.randrange(members), number))
            case 2 if number in bus.stations:
                bus.leave(number)
            case 3 if number not in bus.stations:
                bus.join(number, at_s=bus.now_s)
            case 4 if number in bus.stations:
                bus.stations[number].deaf = not bus.stations[number].deaf
            case 5:
                bus.noise = Noise(flip=chance.choice((0.0, 1e-3, 1e-2)), local=chance.choice((0.0, 1e-2)))
            case _ if number in bus.stations:
                fill(bus.stations[number], 5, bus.now_s)
        bus.run(bus.now_s + chance.random() * 0.4)
    bus.noise = Noise()
    for number in bus.members:
        if number not in bus.stations:
            bus.join(number, at_s=bus.now_s)
        bus.stations[number].deaf = False
    bus.run(bus.now_s + 4.0 + members)
    before, since_s = bus.collisions, bus.now_s
    bus.run(since_s + 3.0)
    assert bus.collisions == before
    assert set(turns(bus, since_s)) == set(range(members))
    late = [one for one in bus.bursts if one.start_s >= since_s]
    assert all(frame.parse(one.frames[-1]).to == after.source for one, after in pairwise(late))


# -- what carries the token


def ring(me: int = 1, members: Iterable[int] = (0, 1, 2)) -> Ring:
    """A ring whose turn it is."""
    made = Ring(me, TAG, Timing(0.0001, 0.003), 0.0)
    made.follow(7, tuple(members))
    made.hear(frame.pack(Frame(Type.POLL, 0, me, TAG, 1, 0, 0, Poll(), b"", token=True)), 1.0)
    return made


def spoken(one: Ring) -> list[Frame]:
    return [frame.parse(data) for data in one.act(2.0)]


def test_the_signature_holds_for_a_frame_that_carries_the_token() -> None:
    genesis = TAG.ljust(32, b"\0")
    for data in (heartbeat(1), vote(Type.PREVOTE, 1)):
        carrying = frame.parse(with_token(data, 2))
        assert (carrying.token, carrying.to) == (True, 2)
        assert frame.signed(genesis, carrying) == frame.signed(genesis, frame.parse(data))


def test_the_last_frame_of_a_turn_carries_the_token() -> None:
    one = ring()
    one.put(heartbeat(1), 1.0, urgent=False)
    one.put(vote(Type.PREVOTE, 1), 1.0, urgent=True)
    said = spoken(one)
    # Votes are about: the heartbeat waits.
    assert [(frame_.type, frame_.token, frame_.to) for frame_ in said] == [(Type.PREVOTE, False, EVERYBODY), (Type.HEARTBEAT, True, 2)]


def test_status_for_one_node_leaves_the_token_to_a_poll() -> None:
    one = ring()
    one.put(make(Type.NACK, 1, Nack(Thing.ORDER, bytes(32)), to=0), 1.0, urgent=False)
    assert [(frame_.type, frame_.token, frame_.to) for frame_ in spoken(one)] == [(Type.NACK, False, 0), (Type.POLL, True, 2)]


def test_what_another_node_has_signed_leaves_the_token_to_a_poll() -> None:
    one = ring()
    one.put(vote(Type.PREVOTE, 0), 1.0, urgent=True)
    assert [(frame_.type, frame_.token) for frame_ in spoken(one)] == [(Type.PREVOTE, False), (Type.POLL, True)]


def test_a_fact_for_one_node_may_carry_the_token_for_it_is_signed_for_all() -> None:
    one = ring()
    one.put(make(Type.FRAG, 1, Fragment(bytes(32), 0, 1, b"x"), to=0), 1.0, urgent=False)
    assert [(frame_.type, frame_.token, frame_.to) for frame_ in spoken(one)] == [(Type.FRAG, True, 2)]


def test_a_frame_of_another_site_is_not_for_this_one() -> None:
    one = ring()
    other = frame.pack(Frame(Type.POLL, 0, 2, b"else", 1, 0, 0, Poll(), b"", token=True))
    assert not one.hear(other, 1.0)
    assert one.turn is Turn.MINE
    assert one.counts["in: other site"] == 1


def test_who_is_no_member_is_silent() -> None:
    one = ring(me=5)
    one.put(heartbeat(5), 1.0, urgent=False)
    assert one.act(100.0) == []
    one.follow(8, (0, 1, 2, 5))
    assert one.act(100.0) != []


def test_a_member_that_is_replaced_keeps_no_token_waiting() -> None:
    bus = full(4)
    bus.run(1.0)
    bus.leave(3)
    for station in bus.stations.values():
        station.ring.follow(2, (0, 1, 2))
    bus.run(3.0)
    assert set(turns(bus, 1.5)) == {0, 1, 2}
    assert count(bus, "passed in vain") <= 2


# -- the frames that wait


def test_a_newer_heartbeat_takes_the_place_of_an_older_one() -> None:
    box = Outbox()
    box.put(heartbeat(1, 1), 0.0, urgent=False)
    box.put(make(Type.HELLO, 1, Hello(1)), 0.0, urgent=False)
    box.put(heartbeat(1, 2), 0.0, urgent=False)
    assert box.take(1000, urgent=False) == [heartbeat(1, 2), make(Type.HELLO, 1, Hello(1))]


def test_a_vote_that_is_said_again_waits_once() -> None:
    box = Outbox()
    box.put(vote(Type.PREVOTE, 1), 0.0, urgent=True)
    box.put(make(Type.PREVOTE, 1, Vote(1, 0, bytes([7]) * 32), seq=9), 0.0, urgent=True)
    box.put(vote(Type.PRECOMMIT, 1), 0.0, urgent=True)
    assert [frame.parse(data).type for data in box.take(1000, urgent=True)] == [Type.PREVOTE, Type.PRECOMMIT]


def test_memory_for_what_waits_is_bounded_and_the_newest_is_kept() -> None:
    box = Outbox()
    for number in range(5000):
        box.put(make(Type.CERT_REQ, 1, CertRequest(number + 1)), 0.0, urgent=False)
    assert len(box) == FRAMES
    assert box.dropped["out: too many"] == 5000 - FRAMES
    assert frame.parse(box.take(1, urgent=False)[0]).message == CertRequest(5000 - FRAMES + 1)


def test_what_waits_for_too_long_is_dropped() -> None:
    box = Outbox()
    box.put(heartbeat(1), 0.0, urgent=False)
    box.put(vote(Type.PREVOTE, 1), 10.0, urgent=True)
    box.expire(20.0)
    assert len(box) == 1
    assert box.dropped["out: stale"] == 1


def test_a_vote_that_another_node_has_relayed_meanwhile_is_not_relayed_again() -> None:
    box = Outbox()
    one = vote(Type.PREVOTE, 1)
    for heard in (one, with_token(one, 3)):
        box.put(one, 0.0, urgent=True)
        box.heard(heard)
        assert not box
    assert box.dropped["out: sent by another"] == 2


def test_a_forged_vote_of_mine_keeps_nobody_from_hearing_mine() -> None:
    box = Outbox()
    mine = vote(Type.PREVOTE, 1)
    forged = bytearray(mine)
    forged[-30] ^= 1
    box.put(mine, 0.0, urgent=True)
    box.heard(bytes(forged))
    assert box.take(1000, urgent=True) == [mine]


def test_a_damaged_token_is_no_token() -> None:
    data = bytearray(with_token(heartbeat(0), 1))
    data[20] ^= 1
    one = ring(me=2)
    assert not one.hear(bytes(data), 1.0)
    assert one.counts["in: damaged"] == 1
    with pytest.raises(Refused):
        frame.parse(bytes(data))
