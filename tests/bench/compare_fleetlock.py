"""Lets a site of nodes and as many clients of one etcd do the same job, in turn: each has the update slot once, one at a time.

One etcd on one machine is what a site has that lets a server decide; it is down when that machine is. Both keep a log on the same disk and
talk over the loopback. The time that the slot is held is left out of the figures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench import with_etcd, with_peers

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """0, since there is no aim: a site costs more than a server; 1 where etcd is missing."""
    parser = argparse.ArgumentParser(prog="tests/bench/fleet lock", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each (5)")
    parser.add_argument("--nodes", type=int, default=4, help="nodes, and clients of etcd (4)")
    parser.add_argument("--hold", type=float, default=0.2, metavar="S", help="how long a slot is held (0.2)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "bench", help="a folder on the disk to measure")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        etcd = with_etcd.find_etcd(options.folder)
    except LookupError as error:
        print(f"tests/bench/fleet lock: {error}", file=sys.stderr)
        return 1
    held_s = options.nodes * options.hold
    ours: list[tuple[float, int]] = []
    theirs: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        with with_etcd.server(etcd, folder) as port:
            for number in range(options.runs):
                took_s, clients = with_etcd.roll(port, options.nodes, options.hold)
                theirs.append((took_s - held_s, sum(client.moved_bytes for client in clients)))
                site = folder / f"site{number}"
                site.mkdir()
                rolled = with_peers.roll(site, options.nodes, options.hold)
                ours.append((rolled.seconds - held_s, rolled.sent_bytes))
                print(f"run {number + 1}: etcd {theirs[-1][0]:.3f} s, site {ours[-1][0]:.3f} s", file=sys.stderr, flush=True)
    machine = f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"
    print(f"{machine}; {with_etcd.version(etcd)}; {options.nodes} nodes, median of {options.runs}")
    print(f"{'':26}{'seconds':>9}{'(range)':>16}{'bytes':>9}{'seconds a slot':>16}")
    for title, samples in (("one etcd and its clients", theirs), ("a site of nodes", ours)):
        times, sizes = zip(*samples, strict=True)
        middle_s = statistics.median(times)
        spread = f"{min(times):.3f}-{max(times):.3f}"
        print(f"{title:26}{middle_s:9.3f}{spread:>16}{statistics.median(sizes):9.0f}{middle_s / options.nodes:16.3f}")
    time_ratio = statistics.median(one[0] for one in ours) / statistics.median(one[0] for one in theirs)
    byte_ratio = statistics.median(one[1] for one in ours) / statistics.median(one[1] for one in theirs)
    print(f"the site takes {time_ratio:.1f} of etcd's time and {byte_ratio:.1f} of its bytes, beside the time that slots are held")
    print("(the site's figures hold the order, everybody's approval and the plan; nobody has to be trusted, and any one node may be down)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
