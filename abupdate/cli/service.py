"""Handler of `abupdate service`."""

from __future__ import annotations

import subprocess
import time
from argparse import Namespace
from pathlib import Path

from abupdate import wiring
from abupdate.config import load
from abupdate.devices import power, watchdog, watchdog_sysfs
from abupdate.devices.notify import Notifier
from abupdate.devices.thisboot import kernel_argument
from abupdate.health.checks import CheckRun
from abupdate.health.monitor import Limits
from abupdate.health.programs import find_programs
from abupdate.health.watch import Watch
from abupdate.operations.confirmed import wait_confirmed
from abupdate.operations.service import Hardware, Numbers, Service

_SYSTEMD = Path("/run/systemd/system")


def service(options: Namespace) -> int:
    """`abupdate service [--trial]`: serves until it is told to end, or the trial ends. --wait: only waits for the confirmation."""
    settings = load(options.config)
    if options.wait:
        return wait_confirmed(wiring.tolerant(settings, service=True), time.sleep)
    device = settings.watchdog.device
    trial, health = settings.trial, settings.health

    def watch() -> Watch:
        # Looked for on trial alone: a health program that cannot be trusted must not keep a confirmed slot from being served.
        programs = find_programs(settings.health.dir)
        run = CheckRun(programs, timeout_s=health.interval_s, memory_bytes=health.memory_mib << 20, stop_at_critical=True)
        limits = Limits(trial.window_s, trial.auto_confirm, health.degraded_row_s, health.degraded_total_s)
        return Watch(run, limits, health.interval_s, has_programs=bool(programs), peers=wiring.peers(settings))

    board = wiring.tolerant(settings, service=True)
    hardware = Hardware(
        open_watchdog=lambda: watchdog.Watchdog(device),
        running=lambda: watchdog_sysfs.facts(device).state == "active",
        hinted=kernel_argument("abupdate.trial") == "1" or bool(board.store.tried()),
        always=settings.watchdog.always,
        disarm=settings.watchdog.after_confirm == "disarm",
        reboot=power.reboot,
        reboot_now=power.reboot_now,
        going_down=_going_down,
        rebooting=_rebooting,
    )
    numbers = Numbers(trial.window_s, trial.boot_timeout_s, settings.watchdog.timeout_s)
    return Service(board, watch, hardware, Notifier(), numbers, trial_only=options.trial).run()


def _going_down() -> bool:
    return _systemctl("is-system-running").strip() == "stopping"


def _rebooting() -> bool:
    jobs = (line.split() for line in _systemctl("list-jobs", "--no-legend", "--plain", "--full").splitlines())
    return any(job[1:3] == ["reboot.target", "start"] for job in jobs)


def _systemctl(*words: str) -> str:
    """What it prints; nothing where systemd does not run, or does not answer in time."""
    if not _SYSTEMD.is_dir():
        return ""
    try:
        return subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
