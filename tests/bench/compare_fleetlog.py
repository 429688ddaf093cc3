"""Times a durable append to the fleet's log and SQLite's durable insert of the same bytes, in turn on one disk; then a start with that log.

Both hold a vote (180 bytes) a time, as the daemon writes before it sends one; both flush once each and return when that is done.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from abupdate.fleet.events import RecordKind
from abupdate.fleet.identity import load_or_create
from abupdate.fleet.store import Store

VOTE_BYTES = 180
# An append must not cost more than SQLite takes, and a start with this many votes not keep a node from its peers.
AIM_RATIO = 1.0
STARTED_VOTES = 20_000
AIM_START_S = 1.0


def main() -> int:
    """Returns 0 where both aims are met, 1 where not."""
    parser = argparse.ArgumentParser(prog="tests/bench/fleet log", description=__doc__)
    parser.add_argument("--runs", type=int, default=500, help="appends of each (500)")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="a folder on the disk to measure (the current one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix=".abupdate-bench-") as name:
        folder = Path(name)
        ours, theirs = _appends(folder, options.runs)
        start_s, start_bytes = _start(folder)
    ratio = statistics.median(ours) / statistics.median(theirs)
    versions = f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}"
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}, {versions}")
    print(f"{options.runs} durable appends of {VOTE_BYTES} bytes each, in turn, in {options.folder}")
    print(f"{'':16}{'median ms':>10}{'p99 ms':>8}{'most ms':>9}")
    for title, samples in (("fleet log", ours), ("SQLite", theirs)):
        p99 = statistics.quantiles(samples, n=100)[-1]
        print(f"{title:16}{statistics.median(samples) * 1e3:10.3f}{p99 * 1e3:8.2f}{max(samples) * 1e3:9.2f}")
    print(f"{'ok  ' if ratio <= AIM_RATIO else 'MISS'} append: {ratio:.2f} of SQLite's time, aim {AIM_RATIO:.2f}")
    start = f"{start_s * 1e3:.0f} ms with {STARTED_VOTES} votes ({start_bytes / 2**20:.1f} MiB), aim {AIM_START_S * 1e3:.0f} ms"
    print(f"{'ok  ' if start_s <= AIM_START_S else 'MISS'} start: {start}")
    return 0 if ratio <= AIM_RATIO and start_s <= AIM_START_S else 1


def _appends(folder: Path, runs: int) -> tuple[list[float], list[float]]:
    """Seconds of each append to the log and of each insert."""
    log = _opened(folder / "state" / "fleet")
    database = sqlite3.connect(folder / "votes.db", isolation_level=None)
    try:
        mode = database.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        database.execute("PRAGMA synchronous = FULL")
        if mode != "wal" or database.execute("PRAGMA synchronous").fetchone()[0] != 2:
            raise RuntimeError("SQLite does not flush each insert here")
        database.execute("CREATE TABLE votes (sequence INTEGER PRIMARY KEY, kind INTEGER, data BLOB)")
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(runs):
            vote = os.urandom(VOTE_BYTES)
            ours.append(_timed(partial(log.append, [(RecordKind.VOTE, vote)])))
            theirs.append(_timed(partial(database.execute, "INSERT INTO votes (kind, data) VALUES (2, ?)", (vote,))))
        if database.execute("SELECT count(*) FROM votes").fetchone()[0] != runs:
            raise RuntimeError("SQLite lost votes")
    finally:
        database.close()
        log.close()
    log = _opened(folder / "state" / "fleet", records=runs)
    log.close()
    return ours, theirs


def _start(folder: Path) -> tuple[float, int]:
    """Seconds that a start takes to read a long log that was appended to vote by vote, and its length."""
    log = _opened(folder / "long" / "fleet")
    # One call for each hundred: that their flushes take time is not the question here.
    for _ in range(STARTED_VOTES // 100):
        log.append([(RecordKind.VOTE, os.urandom(VOTE_BYTES))] * 100)
    size = log.size_bytes
    log.close()
    took_s = _timed(lambda: _opened(folder / "long" / "fleet", records=STARTED_VOTES).close())
    return took_s, size


def _opened(folder: Path, records: int = 0) -> Store:
    store = Store(folder, load_or_create(folder).public_key)
    loaded = store.load()
    if loaded.fault or len(loaded.records) != records:
        raise RuntimeError(f"{len(loaded.records)} records instead of {records} {loaded.fault}")
    return store


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
