"""Lets simulated sites of real cores roll an update out, on a LAN and on a serial bus; prints time, bytes, processor time and memory.

All but the processor time is the same in every run. Seconds are simulated ones, of the medium and of nodes that take a while for what they
do (fleetsite.py); only the processor's are of this machine. HEARTBEAT and POLL (with the token) are there whether anything happens or not,
and are counted apart.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import types
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from abupdate.fleet.site import Options
from abupdate.formats import frame
from abupdate.formats.messages import Proposal, Type, Vote
from tests.bench.fleetbus import Serial
from tests.bench.fleetmedia import Lan, Medium, Sent
from tests.bench.fleetsite import Site
from tests.fleet.authority import Shape

# The numbers of the sites: as many down at once as their budgets allow.
SHAPES = {
    4: (Shape(4, faults=0, min_up=3), 1),
    16: (Shape(16, faults=3, min_up=13), 3),
    64: (Shape(64, faults=3, min_up=61, voters=16), 3),
}
_ALWAYS = (Type.HEARTBEAT, Type.POLL)
_PATIENCE_S = 4 * 3600.0
BAUD = 115200
TURNAROUND_S = 0.003
# Promises: a vote on the wire; from a PROPOSAL's first byte to the Q-th PRECOMMIT in a ring of 16 voters; a rollout of 64 nodes.
AIM_VOTE_BYTES = 127
AIM_DECISION_S = 0.5
AIM_ROLLOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one site. decisions: seconds from a proposal's first byte to the Q-th PRECOMMIT, for heights decided in their first round.

    height_bytes: of PROPOSAL and votes of each height. kinds: frames and bytes by type, in the rollout. handle_us: of the core for a frame
    that it hears. node_bytes: of one node's objects, at the end.
    """

    nodes: int
    medium: str
    rollout_s: float
    decisions: list[float]
    height_bytes: list[int]
    kinds: dict[Type, tuple[int, int]]
    handle_us: float
    node_bytes: int

    @property
    def counted_bytes(self) -> int:
        """Without what is always there."""
        return sum(size for kind, (_, size) in self.kinds.items() if kind not in _ALWAYS)


def main() -> int:
    """Returns 0 where all aims that were looked at are met, 1 where not."""
    parser = argparse.ArgumentParser(prog="tests/bench/fleet site", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", choices=sorted(SHAPES), default=sorted(SHAPES), help="sizes of sites (all)")
    parser.add_argument("--media", nargs="*", choices=("lan", "serial"), default=("lan", "serial"), help="media (all)")
    options = parser.parse_args()
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    print(
        f"{'nodes':>5} {'medium':23}{'decision s':>11}{'(most)':>8}{'bytes':>7}{'rollout s':>10}{'heights':>8}{'bytes':>8}"
        f"{'bus s':>7}{'always':>9}{'us/frame':>9}{'KiB/node':>9}"
    )
    all_figures: list[Figures] = []
    for nodes in options.nodes:
        for name in options.media:
            figures = _measure(nodes, name)
            all_figures.append(figures)
            _print_line(figures)
    _print_kinds(all_figures[-1])
    return 0 if _judge(all_figures) else 1


def _measure(nodes: int, name: str) -> Figures:
    """One rollout. On the LAN with real keys, on the bus (whose simulation takes long enough) with keys that cost nothing."""
    shape, width = SHAPES[nodes]
    real_keys = name == "lan"
    medium: Medium
    if name == "lan":
        medium, options = Lan(), Options()
    else:
        tag = Site.tag(shape, real_keys=real_keys)
        medium, options = Serial(nodes, tag, BAUD, TURNAROUND_S), Options(base_s=4.0)
    site = Site(shape, medium, options, real_keys=real_keys, width=width)
    site.start()
    site.until(site.ready, _PATIENCE_S)
    begun_s = medium.now_s
    site.propose()
    site.until(site.updated, _PATIENCE_S)
    sent = [one for one in medium.sent() if one.start_s >= begun_s]
    decisions, height_bytes = _heights(sent, medium, site.membership.quorum)
    cpu_s, calls = site.cost.cpu_s["Received"], site.cost.calls["Received"]
    node = next(member.node for member in site.members.values() if member.node is not None)
    return Figures(
        nodes=nodes,
        medium=medium.name,
        rollout_s=medium.now_s - begun_s,
        decisions=decisions,
        height_bytes=height_bytes,
        kinds=_kinds(sent, medium),
        handle_us=cpu_s / calls * 1e6,
        node_bytes=reachable_bytes(node),
    )


def _heights(sent: Iterable[Sent], medium: Medium, quorum: int) -> tuple[list[float], list[int]]:
    """For each height decided in round 0: seconds from the proposal's first byte to the Q-th PRECOMMIT's last; for each height: bytes."""
    begun: dict[int, float] = {}
    voters: dict[int, set[int]] = {}
    decisions: list[float] = []
    sizes: Counter[int] = Counter()
    for one in sent:
        if one.data[1] not in (Type.PROPOSAL, Type.PREVOTE, Type.PRECOMMIT):
            continue
        said = frame.parse(one.data)
        message = said.message
        assert isinstance(message, (Proposal, Vote))
        sizes[message.height] += medium.wire_bytes(one.data)
        if message.round:
            continue
        if said.type is Type.PROPOSAL:
            begun.setdefault(message.height, one.start_s)
        elif said.type is Type.PRECOMMIT:
            agreed = voters.setdefault(message.height, set())
            if said.source not in agreed:
                agreed.add(said.source)
                if len(agreed) == quorum and message.height in begun:
                    decisions.append(one.end_s - begun[message.height])
    return decisions, list(sizes.values())


def _kinds(sent: Iterable[Sent], medium: Medium) -> dict[Type, tuple[int, int]]:
    frames: Counter[Type] = Counter()
    sizes: Counter[Type] = Counter()
    for one in sent:
        frames[Type(one.data[1])] += 1
        sizes[Type(one.data[1])] += medium.wire_bytes(one.data)
    return {kind: (frames[kind], sizes[kind]) for kind in sorted(frames)}


def reachable_bytes(root: object) -> int:
    """Of all objects that hang on this one, code apart."""
    seen: set[int] = set()
    waiting = [root]
    total = 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        waiting += gc.get_referents(one)
    return total


def _print_line(one: Figures) -> None:
    always = sum(size for kind, (_, size) in one.kinds.items() if kind in _ALWAYS)
    bus = f"{one.counted_bytes * 10 / BAUD:7.1f}" if "serial" in one.medium else f"{'':7}"
    middle_s, most_s = statistics.median(one.decisions), max(one.decisions)
    decision = f"{middle_s:11.3f}{most_s:8.3f}{statistics.median(one.height_bytes):7.0f}"
    rollout = f"{one.rollout_s:10.0f}{len(one.height_bytes):8}{one.counted_bytes:8}{bus}{always:9}"
    print(f"{one.nodes:5} {one.medium:23}{decision}{rollout}{one.handle_us:9.0f}{one.node_bytes / 1024:9.0f}", flush=True)


def _print_kinds(one: Figures) -> None:
    print(f"\nthe rollout of {one.nodes} nodes, {one.medium}:")
    for kind, (frames, size) in one.kinds.items():
        print(f"{kind.name:12}{frames:8} frames{size:10} bytes{size * 10 / BAUD:9.2f} s of a bus at {BAUD} baud")


def _judge(all_figures: list[Figures]) -> bool:
    """Print which promises are kept."""
    met = True
    for one in all_figures:
        if "serial" not in one.medium:
            continue
        votes = [one.kinds[kind][1] / one.kinds[kind][0] for kind in (Type.PREVOTE, Type.PRECOMMIT)]
        met &= _say(max(votes) <= AIM_VOTE_BYTES, f"{one.nodes} nodes: a vote is {max(votes):.0f} bytes on the wire, aim {AIM_VOTE_BYTES}")
        if one.nodes == 16:
            words = f"proposal to Q-th PRECOMMIT {statistics.median(one.decisions):.2f} s in the middle, {max(one.decisions):.2f} s at most"
            met &= _say(statistics.median(one.decisions) <= AIM_DECISION_S, f"16 voters: {words}, aim {AIM_DECISION_S} s")
        if one.nodes == 64:
            seconds = one.counted_bytes * 10 / BAUD
            met &= _say(seconds <= AIM_ROLLOUT_S, f"64 nodes: {seconds:.1f} s of bus time for a rollout, aim {AIM_ROLLOUT_S:.0f} s")
    return met


def _say(met: bool, words: str) -> bool:
    print(f"{'ok  ' if met else 'MISS'} {words}")
    return met


if __name__ == "__main__":
    raise SystemExit(main())
