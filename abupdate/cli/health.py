"""Handler of `abupdate health`."""

from __future__ import annotations

from argparse import Namespace

from abupdate.cli.output import say
from abupdate.config import load
from abupdate.health.checks import CheckRun, run_once
from abupdate.health.programs import find_programs


def health(options: Namespace) -> int:
    """`abupdate health`: exit 0 when every program says ok, else 1."""
    settings = load(options.config)
    programs, bounds = find_programs(settings.health.dir), settings.health
    found = run_once(CheckRun(programs, timeout_s=bounds.interval_s, memory_bytes=bounds.memory_mib << 20))
    rows = [{"name": one.name, "health": one.health.name.lower(), "reason": one.reason} for one in found.results]
    lines = [f"{row['health']:<9} {row['name']}" + (f": {row['reason']}" if row["reason"] else "") for row in rows]
    if not rows:
        lines = [f"no health programs in {settings.health.dir}: reaching userspace counts as healthy"]
    say(options, {"health": found.health.name.lower(), "programs": rows}, "\n".join(lines))
    return 0 if found.health == 0 else 1
