"""Times `abupdate status`, `abupdate confirm` and a bare interpreter in turn, on a device made of regular files; prints medians."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from abupdate.model import BootState, TrialPolicy
from tests.bench.measure import Sample, median, spread, timed
from tests.bench.with_abupdate import Abupdate, make_keyring

# What the project promises a workstation's user over a bare interpreter, seconds.
AIMS = {"status": 0.120, "confirm": 0.150}


def main() -> int:
    """Returns 0 where both aims are met, 1 where not."""
    parser = argparse.ArgumentParser(prog="tests/bench/startup", description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="runs of each (15)")
    runs = parser.parse_args().runs
    # Compiled modules, as an installed package has them: the first run must not pay for the others.
    subprocess.run([sys.executable, "-m", "compileall", "-q", "abupdate"], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_keyring(folder)
        slots = (folder / "a.img", folder / "b.img")
        for slot in slots:
            slot.write_bytes(bytes(4096))
        device = Abupdate(folder, slots)
        samples: dict[str, list[Sample]] = {"python -c pass": [], "status": [], "confirm": []}
        for _ in range(runs):
            device.fresh()
            samples["python -c pass"].append(timed([sys.executable, "-c", "pass"]))
            samples["status"].append(timed([*_command(device), "status"]))
            _start_trial(device)
            samples["confirm"].append(timed([*_command(device), "confirm"]))
            _must_be_confirmed(device)
    return _report(samples)


def _command(device: Abupdate) -> list[str]:
    return [sys.executable, "-m", "abupdate", "-c", str(device.config)]


def _start_trial(device: Abupdate) -> None:
    """The slot that runs is on trial: what the boot hook and the service would find after a flash."""
    device.store().commit(BootState(("A", "B"), {"A": 2, "B": 10}, "A", TrialPolicy()))


def _must_be_confirmed(device: Abupdate) -> None:
    if device.store().read().trial is not None:
        raise RuntimeError("confirm ended well and the trial is still on")


def _report(samples: dict[str, list[Sample]]) -> int:
    bare = median(samples["python -c pass"]).wall_s
    machine = f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"
    print(f"{machine}; {len(samples['status'])} runs of each")
    print(f"{'':16}{'wall ms':>9}{'(range s)':>12}{'cpu ms':>8}{'peak MiB':>10}{'over bare ms':>14}")
    met = True
    for name, runs in samples.items():
        middle = median(runs)
        over = middle.wall_s - bare
        print(
            f"{name:16}{middle.wall_s * 1e3:9.1f}{spread(runs):>12}{middle.cpu_s * 1e3:8.1f}"
            f"{middle.peak_bytes / 2**20:10.1f}{over * 1e3:14.1f}"
        )
        met &= over <= AIMS.get(name, over)
    for name, aim in AIMS.items():
        over = median(samples[name]).wall_s - bare
        print(f"{'ok  ' if over <= aim else 'MISS'} {name}: {over * 1e3:.0f} ms over a bare interpreter, aim {aim * 1e3:.0f} ms")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
