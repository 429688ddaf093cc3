"""One height's rounds, driven by hand: when a node votes, for what, when it locks, and when it loses patience."""

from __future__ import annotations

from abupdate.fleet.consensus import MAX_ROUND, Action, Cast, Decide, Enter, Height, Offer, Step, Validity
from abupdate.formats.messages import NOTHING, Type

V, W = b"v" * 32, b"w" * 32
ALL = {V: Validity.VALID, W: Validity.VALID}


class Bench:
    """A height of four voters with Q = 3 and f = 1, seen by voter 0; voter `round` proposes."""

    def __init__(self, me: int | None = 0, faults: int = 1) -> None:
        self.height = Height(me, 3, faults, lambda round_: round_ % 4, 1.0)
        self.said: dict[bytes, Validity] = dict(ALL)
        self.now_s = 0.0

    def run(self, candidate: bytes | None = None, *, may_vote: bool = True) -> list[Action]:
        found: list[Action] = []
        for _ in range(20):
            action = self.height.advance(self.now_s, candidate, lambda value: self.said.get(value, Validity.MISSING), may_vote=may_vote)
            if action is None:
                return found
            found.append(action)
            if isinstance(action, Cast):
                self.height.hear_vote(action.kind, action.round, 0, action.value)
            elif isinstance(action, Offer):
                self.height.hear_proposal(action.round, action.value, action.valid_round)
            elif isinstance(action, Decide):
                return found
        raise AssertionError(found)

    def later(self, seconds: float, candidate: bytes | None = None) -> list[Action]:
        self.run(candidate)
        self.now_s += seconds
        return self.run(candidate)

    def votes(self, kind: Type, round_: int, value: bytes, *voters: int) -> None:
        for voter in voters:
            self.height.hear_vote(kind, round_, voter, value)


def prevote(round_: int, value: bytes) -> Cast:
    return Cast(Type.PREVOTE, round_, value)


def test_at_rest_nothing_is_said_and_no_timer_runs() -> None:
    bench = Bench()
    assert bench.run() == []
    assert bench.height.wake_s is None


def test_the_proposer_offers_its_candidate_and_votes_for_it() -> None:
    assert Bench().run(V) == [Offer(0, V, -1), prevote(0, V)]


def test_q_prevotes_lock_and_q_precommits_decide() -> None:
    bench = Bench()
    bench.run(V)
    bench.votes(Type.PREVOTE, 0, V, 1, 2)
    assert bench.run(V) == [Cast(Type.PRECOMMIT, 0, V, lock=True)]
    assert bench.height.locked == (0, V)
    bench.votes(Type.PRECOMMIT, 0, V, 1)
    assert bench.run(V) == []
    bench.votes(Type.PRECOMMIT, 0, V, 3)
    assert bench.run(V) == [Decide(0, V)]


def test_a_decision_is_said_again_where_its_entry_was_not_at_hand() -> None:
    bench = Bench(None)
    bench.votes(Type.PRECOMMIT, 0, W, 1, 2, 3)
    assert bench.run() == [Decide(0, W)]
    assert bench.run() == []
    bench.height.undecided(0)
    assert bench.run() == [Decide(0, W)]


def test_precommits_of_different_rounds_decide_nothing() -> None:
    bench = Bench()
    bench.votes(Type.PRECOMMIT, 0, V, 1, 2)
    bench.votes(Type.PRECOMMIT, 1, V, 3)
    assert not any(isinstance(action, Decide) for action in bench.run())


def test_q_nil_precommits_decide_nothing() -> None:
    bench = Bench()
    bench.votes(Type.PRECOMMIT, 0, NOTHING, 1, 2, 3)
    assert not any(isinstance(action, Decide) for action in bench.run())


def test_a_silent_proposer_costs_a_nil_vote_after_its_patience() -> None:
    bench = Bench()
    bench.height.round = 1
    assert bench.later(0.9, V) == []
    # Patience grows by half with each round.
    assert bench.later(0.7, V) == [prevote(1, NOTHING)]


def test_an_invalid_proposal_gets_nil_and_a_missing_one_is_waited_for() -> None:
    bench = Bench()
    bench.height.round = 1
    bench.said[V] = Validity.INVALID
    bench.height.hear_proposal(1, V, -1)
    assert bench.run(W) == [prevote(1, NOTHING)]
    waiting = Bench()
    waiting.height.round = 1
    waiting.height.hear_proposal(1, b"x" * 32, -1)
    assert waiting.run(W) == []


def test_an_invalid_proposal_wakes_nobody_at_rest() -> None:
    bench = Bench()
    bench.height.round = 1
    bench.said[V] = Validity.INVALID
    bench.height.hear_proposal(1, V, -1)
    assert bench.run() == []
    assert bench.height.wake_s is None


def test_votes_of_more_than_f_others_wake_a_node_that_sees_nothing_itself() -> None:
    bench = Bench()
    bench.votes(Type.PREVOTE, 0, V, 1)
    assert bench.run() == []
    assert bench.height.wake_s is None
    bench.votes(Type.PREVOTE, 0, V, 2)
    assert bench.run() == []
    assert bench.height.wake_s is not None


def test_a_held_value_gets_no_first_vote_and_is_precommitted_all_the_same() -> None:
    bench = Bench()
    bench.height.round = 1
    bench.said[V] = Validity.HELD
    bench.height.hear_proposal(1, V, -1)
    assert bench.run() == []
    bench.votes(Type.PREVOTE, 1, V, 1, 2, 3)
    assert bench.later(2.0) == [prevote(1, NOTHING), Cast(Type.PRECOMMIT, 1, V, lock=True)]


def locked_on_v() -> Bench:
    bench = Bench()
    bench.run(V)
    bench.votes(Type.PREVOTE, 0, V, 1, 2)
    bench.run(V)
    bench.votes(Type.PRECOMMIT, 0, NOTHING, 1, 2)
    assert bench.later(1.1, V) == [Enter(1)]
    return bench


def test_locked_it_gives_nil_to_another_value() -> None:
    bench = locked_on_v()
    bench.height.hear_proposal(1, W, -1)
    assert bench.run() == [prevote(1, NOTHING)]


def test_locked_it_votes_for_its_own_value_again() -> None:
    bench = locked_on_v()
    bench.height.hear_proposal(1, V, -1)
    assert bench.run() == [prevote(1, V)]


def test_a_later_quorum_of_prevotes_opens_the_lock() -> None:
    bench = locked_on_v()
    bench.votes(Type.PREVOTE, 1, W, 1, 2, 3)
    bench.votes(Type.PREVOTE, 2, W, 1, 2)
    assert Enter(2) in bench.run()
    bench.height.hear_proposal(2, W, 1)
    assert bench.run()[:1] == [prevote(2, W)]


def test_a_valid_round_without_its_quorum_opens_nothing() -> None:
    bench = locked_on_v()
    bench.votes(Type.PREVOTE, 2, W, 1, 2)
    bench.run()
    bench.height.hear_proposal(2, W, 1)
    assert prevote(2, W) not in bench.run()
    late = locked_on_v()
    late.height.hear_proposal(1, W, 1)
    assert late.run() == []


def test_its_own_lock_is_what_it_proposes_later() -> None:
    bench = locked_on_v()
    bench.votes(Type.PREVOTE, 4, NOTHING, 1, 2)
    assert bench.run(W) == [Enter(4), Offer(4, V, 0), prevote(4, V)]


def test_more_than_f_voters_of_a_later_round_take_it_there() -> None:
    bench = Bench()
    bench.votes(Type.PREVOTE, 3, NOTHING, 1)
    assert bench.run() == []
    bench.votes(Type.PRECOMMIT, 2, NOTHING, 2)
    assert bench.run() == [Enter(2)]


def test_one_voter_is_enough_where_nobody_lies() -> None:
    bench = Bench(faults=0)
    bench.votes(Type.PREVOTE, 3, NOTHING, 1)
    assert bench.run() == [Enter(3)]


def test_its_votes_of_the_log_are_not_cast_again() -> None:
    bench = Bench()
    bench.height.restore(Type.PREVOTE, 0, V)
    assert bench.run(W) == []
    assert bench.height.step is Step.PREVOTE
    bench.height.restore(Type.PRECOMMIT, 1, NOTHING)
    bench.height.restore_lock(1, V)
    assert (bench.height.round, bench.height.step, bench.height.locked) == (1, Step.PRECOMMIT, (1, V))
    assert not any(isinstance(action, Cast) for action in bench.run(W))


def test_a_proposal_of_the_log_is_the_only_one_of_its_round() -> None:
    bench = Bench()
    bench.height.restore_proposal(0)
    assert not any(isinstance(action, Offer) for action in bench.run(W))


def test_who_may_not_vote_says_nothing_and_follows() -> None:
    bench = Bench()
    bench.height.hear_proposal(0, V, -1)
    bench.votes(Type.PRECOMMIT, 0, NOTHING, 1, 2, 3)
    assert bench.run(may_vote=False) == []
    bench.now_s = 1.1
    assert bench.run(may_vote=False) == [Enter(1)]
    bench.votes(Type.PRECOMMIT, 1, V, 1, 2, 3)
    assert bench.run(may_vote=False) == [Decide(1, V)]


def test_a_voters_first_vote_of_a_step_counts() -> None:
    bench = Bench()
    bench.votes(Type.PREVOTE, 0, V, 1, 1)
    bench.votes(Type.PREVOTE, 0, W, 1)
    assert bench.height.tally(Type.PREVOTE, 0, V) == 1
    assert bench.height.tally(Type.PREVOTE, 0, W) == 0


def test_proposals_and_votes_far_ahead_are_not_kept() -> None:
    bench = Bench()
    bench.height.hear_proposal(9, V, -1)
    bench.votes(Type.PREVOTE, 1000, V, 1)
    assert not bench.height.proposals
    assert not bench.height.votes


def test_the_last_round_does_not_begin_again_and_is_years_away() -> None:
    """Begun again, it would be voted in a second time by who has voted in it."""
    bench = Bench()
    bench.votes(Type.PRECOMMIT, MAX_ROUND, NOTHING, 1, 2, 3)
    assert bench.run(V) == [Enter(MAX_ROUND)]
    assert bench.later(100_000.0, V) == [Cast(Type.PREVOTE, MAX_ROUND, NOTHING)]
    bench.votes(Type.PREVOTE, MAX_ROUND, NOTHING, 1, 2, 3)
    bench.votes(Type.PRECOMMIT, MAX_ROUND, NOTHING, 1, 2, 3)
    bench.height.hear_proposal(MAX_ROUND, V, -1)
    assert bench.later(100_000.0, V) == []
    assert bench.later(100_000.0, V) == []


def test_patience_goes_on_growing_so_that_the_rounds_last_for_years() -> None:
    bench = Bench()
    bench.votes(Type.PRECOMMIT, 5120, NOTHING, 1, 2)
    bench.run()
    bench.votes(Type.PRECOMMIT, 5120, NOTHING, 1, 2, 3)
    assert bench.run() == []
    assert bench.height.wake_s == 660.0


def test_a_decision_whose_entry_is_missing_wakes_nobody_until_something_comes_in() -> None:
    bench = Bench()
    bench.votes(Type.PREVOTE, 0, V, 1, 2, 3)
    bench.run()
    assert bench.height.wake_s is not None
    bench.votes(Type.PRECOMMIT, 0, V, 1, 2, 3)
    assert bench.run() == [Decide(0, V)]
    bench.height.undecided(0)
    assert bench.height.wake_s is None
    bench.now_s += 100.0
    assert bench.run() == [Decide(0, V)]
