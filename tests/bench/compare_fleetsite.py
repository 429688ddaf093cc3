"""Lets simulated sites of real cores roll an update out, on a LAN and on a serial bus; prints time, bytes, processor time and memory.

All but the processor time is the same in every run. Seconds are simulated ones, of the medium and of nodes that take a while for what they
do (tests/fleet/quietsite.py); only the processor's are of this machine. HEARTBEAT and POLL (which is the token of who has nothing to say)
are there whether anything happens or not, and are counted apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence

from abupdate.formats.messages import Type
from tests.bench.fleetfigures import ALWAYS, Figures, bus_seconds, measure
from tests.fleet.authority import Shape
from tests.fleet.media import BAUD, TURNAROUND_S

# The numbers of the sites, and as many down at once as their budgets allow.
SHAPES = {
    4: (Shape(4, faults=0, min_up=3), 1),
    16: (Shape(16, faults=3, min_up=13), 3),
    64: (Shape(64, faults=3, min_up=61, voters=16), 3),
}
# Promises: a vote on the wire; from a PROPOSAL's first byte to the Q-th PRECOMMIT in a ring of 16 voters; a rollout of 64 nodes.
AIM_VOTE_BYTES = 127
AIM_DECISION_S = 0.5
AIM_ROLLOUT_S = 60.0
# Switched on together, every node has fresh status of every other one after this many heartbeats.
AIM_MET_BEATS = 8


def main(words: Sequence[str] | None = None) -> int:
    """Returns 0 where all aims that were looked at are met, 1 where not."""
    parser = argparse.ArgumentParser(prog="tests/bench/fleet site", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", choices=sorted(SHAPES), default=sorted(SHAPES), help="sizes of sites (all)")
    parser.add_argument("--media", nargs="*", choices=("lan", "serial"), default=("lan", "serial"), help="media (all)")
    options = parser.parse_args(words)
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    print(f"serial: {BAUD} baud, {TURNAROUND_S * 1000:g} ms turnaround; LAN: UDP payload alone\n")
    print("               everybody    a height: seconds, bytes    the whole rollout                             the core")
    print(
        f"{'nodes':>5} {'medium':8}{'met after':>11}{'middle':>10}{'most':>8}{'bytes':>8}"
        f"{'seconds':>11}{'heights':>9}{'bytes':>9}{'on a bus':>10}{'always':>10}{'us/frame':>11}{'CPU s':>8}{'KiB/node':>10}"
    )
    all_figures: list[Figures] = []
    for nodes in options.nodes:
        for name in options.media:
            shape, width = SHAPES[nodes]
            all_figures.append(measure(shape, name, width))
            print(_line(all_figures[-1]), flush=True)
    print("\n'on a bus': seconds that the rollout's bytes take there; 'always': bytes of HEARTBEAT and POLL, not among the others;")
    print("'us/frame': processor time of one node for a frame that it hears; 'CPU s': of all nodes in the rollout\n")
    _print_decided(all_figures[-1])
    _print_kinds(all_figures[-1])
    return 0 if _judge(all_figures) else 1


def _line(one: Figures) -> str:
    decision = f"{statistics.median(one.seconds):10.3f}{max(one.seconds):8.3f}{one.votes_bytes:8.0f}"
    rollout = f"{one.rollout_s:11.1f}{len(one.decided):9}{one.counted_bytes:9}{bus_seconds(one.counted_bytes):8.1f} s{one.always_bytes:10}"
    core = f"{one.received_us:11.0f}{one.core_s:8.1f}{one.node_bytes / 1024:10.0f}"
    return f"{one.nodes:5} {one.medium:8}{one.met_s:9.1f} s{decision}{rollout}{core}"


def _print_decided(one: Figures) -> None:
    print(f"what {one.nodes} nodes decided, {one.medium}: PROPOSAL's first byte to the Q-th PRECOMMIT, bytes of PROPOSALs and votes")
    for entry in sorted({decided.entry for decided in one.decided}):
        mine = [decided for decided in one.decided if decided.entry == entry]
        seconds = [decided.seconds for decided in mine if decided.seconds is not None]
        took = f"{statistics.median(seconds):8.3f} s, at most {max(seconds):.3f} s" if seconds else "not in the first round"
        late = f", {len(mine) - len(seconds)} not in the first round" if 0 < len(seconds) < len(mine) else ""
        print(f"{entry:12}{len(mine):5} times{took}{statistics.median(decided.votes_bytes for decided in mine):8.0f} bytes{late}")


def _print_kinds(one: Figures) -> None:
    print(f"\nwhat the rollout of {one.nodes} nodes said, {one.medium}:")
    for kind, (frames, size) in one.kinds.items():
        apart = "  (apart)" if kind in ALWAYS else ""
        print(f"{kind.name:12}{frames:8} frames{size:10} bytes{bus_seconds(size):9.2f} s of a bus{apart}")
    print()


def _judge(all_figures: list[Figures]) -> bool:
    """Print which promises are kept."""
    met = True
    for one in all_figures:
        title = f"{one.nodes} nodes, {one.medium}"
        aim_s = AIM_MET_BEATS * SHAPES[one.nodes][0].heartbeat_s
        met &= _say(one.met_s <= aim_s, f"{title}: everybody hears everybody {one.met_s:.1f} s after power on, aim {aim_s} s")
        if one.medium != "serial":
            continue
        vote_bytes = max(one.kinds[kind][1] / one.kinds[kind][0] for kind in (Type.PREVOTE, Type.PRECOMMIT))
        met &= _say(vote_bytes <= AIM_VOTE_BYTES, f"{title}: a vote is {vote_bytes:.0f} bytes on the wire, aim {AIM_VOTE_BYTES}")
        if one.nodes == 16:
            middle_s, most_s = statistics.median(one.seconds), max(one.seconds)
            words = f"{title}: PROPOSAL to Q-th PRECOMMIT {middle_s:.2f} s in the middle, {most_s:.2f} s at most"
            met &= _say(most_s <= AIM_DECISION_S, f"{words}, aim {AIM_DECISION_S} s")
        if one.nodes == 64:
            seconds = bus_seconds(one.counted_bytes)
            met &= _say(seconds <= AIM_ROLLOUT_S, f"{title}: a rollout takes {seconds:.1f} s of bus time, aim {AIM_ROLLOUT_S:.0f} s")
    return met


def _say(met: bool, words: str) -> bool:
    print(f"{'met   ' if met else 'MISSED'} {words}")
    return met


if __name__ == "__main__":
    raise SystemExit(main())
