"""One height of the agreement on the modelled bus: a proposal, everybody's PREVOTE, and a PRECOMMIT after Q of them. How long it takes.

`python -m tests.fleet.busvotes` prints the figures; the benchmark uses `decide`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

from abupdate.formats.messages import Fragment, Frame, Proposal, Type
from tests.fleet.bus import Bus, Station, make, vote

ENTRY = bytes(range(100))
WARM_S = 2.0
VERIFY_S = 0.001
PERSIST_S = 0.010


@dataclass(slots=True)
class Tally:
    """What one voter has heard and said."""

    prevotes: set[int] = field(default_factory=set)
    said: set[Type] = field(default_factory=set)


@dataclass(slots=True)
class Voters:
    """The program of every station: verifying a frame takes VERIFY_S, persisting what is said PERSIST_S."""

    voters: frozenset[int]
    quorum: int
    tallies: dict[int, Tally] = field(default_factory=dict)

    def hear(self, station: Station, one: Frame, now_s: float) -> float:
        """See bus.Program."""
        if station.number not in self.voters:
            return VERIFY_S
        tally = self.tallies.setdefault(station.number, Tally())
        before = len(tally.said)
        if one.type is Type.PROPOSAL:
            self.say(station, Type.PREVOTE, now_s)
        elif one.type is Type.PREVOTE:
            tally.prevotes.add(one.source)
        if len(tally.prevotes) >= self.quorum:
            self.say(station, Type.PRECOMMIT, now_s)
        return VERIFY_S + (PERSIST_S if len(tally.said) > before else 0.0)

    def say(self, station: Station, kind: Type, now_s: float) -> None:
        """Vote, once."""
        tally = self.tallies.setdefault(station.number, Tally())
        if kind not in tally.said:
            tally.said.add(kind)
            if kind is Type.PREVOTE:
                tally.prevotes.add(station.number)
            station.put(vote(kind, station.number), now_s, urgent=True)


@dataclass(frozen=True, slots=True)
class Decision:
    """wait_s: from when the proposer had its proposal until its first bit was on the line. quorum_s: from there to the last bit of the
    Q-th PRECOMMIT. precommits: all that were sent. usage: frames, bytes and seconds by type.
    """

    wait_s: float
    quorum_s: float | None
    precommits: int
    usage: dict[Type, tuple[int, int, float]]


def decide(bus: Bus, voters: Collection[int], quorum: int, proposer: int, backlog: int = 0, patience_s: float = 5.0) -> Decision:
    """Let a site agree once. backlog: fragments that every station has waiting when the proposal comes up."""
    program = Voters(frozenset(voters), quorum)
    for number in bus.members:
        bus.join(number, program.hear)
    bus.run(WARM_S)
    for number in bus.members:
        for index in range(backlog):
            fragment = Fragment(bytes([number]) * 32, index, backlog, bytes(126))
            bus.stations[number].put(make(Type.FRAG, number, fragment), bus.now_s)
    begun = len(bus.bursts)
    station = bus.stations[proposer]
    proposal = Proposal(1, 0, -1, hashlib.sha256(ENTRY).digest(), ENTRY)
    station.put(make(Type.PROPOSAL, proposer, proposal), bus.now_s, urgent=True)
    program.say(station, Type.PREVOTE, bus.now_s)
    bus.poke(station)
    bus.run(WARM_S + patience_s)
    bursts = bus.bursts[begun:]
    proposed_s = next(one.start_s for one in bursts if any(data[1] == Type.PROPOSAL for data in one.frames))
    ends = [one.end_s for one in bursts for data in one.frames if data[1] == Type.PRECOMMIT]
    return Decision(proposed_s - WARM_S, ends[quorum - 1] - proposed_s if len(ends) >= quorum else None, len(ends), bus.usage())


def main() -> None:
    """Print the figures."""
    print("members voters   Q  baud    backlog  wait for token  proposal to Q-th PRECOMMIT")
    for members, voters, quorum in ((3, 3, 2), (4, 4, 3), (7, 7, 5), (10, 10, 7), (16, 16, 10), (64, 16, 10)):
        for baud in (57600, 115200, 1_000_000):
            for backlog in (0, 8):
                found = [decide(Bus(members, baud), range(voters), quorum, proposer, backlog) for proposer in range(0, voters, 3)]
                worst_s = max(one.quorum_s or float("inf") for one in found)
                wait_s = max(one.wait_s for one in found)
                print(f"{members:7} {voters:6} {quorum:3}  {baud:7} {backlog:7} {wait_s * 1000:12.0f} ms {worst_s * 1000:20.0f} ms")
    usage = decide(Bus(16), range(16), 10, 0).usage
    for kind, (frames, size, seconds) in usage.items():
        print(f"{kind.name:10} {frames:5} frames {size:7} bytes {seconds * 1000:8.1f} ms")


if __name__ == "__main__":
    main()
