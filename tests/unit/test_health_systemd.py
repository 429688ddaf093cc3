"""The health program for systemd, run with a systemctl that answers as systemd 252 does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.workstation import ROOT

PROGRAM = ROOT / "images/debian/health.d/10-systemd"
SYSTEMCTL = """#!/bin/sh
case "$1" in
list-units) cat failed ;;
is-system-running) cat state; [ "$(cat state)" = running ] ;;
list-jobs) cat jobs ;;
esac
"""
FAILED = "acme-gateway.service loaded failed failed The gateway\nother.service loaded failed failed Another\n"
CONFIRMED = "  44 abupdate-confirmed.service start running\n  52 boot-complete.target start waiting\n  1 multi-user.target start waiting\n"
SLOW = "  44 abupdate-confirmed.service start running\n  60 acme-gateway.service start running\n  52 boot-complete.target start waiting\n"


@pytest.mark.parametrize(
    ("state", "failed", "jobs", "code", "word"),
    [
        ("running", "", "", 0, ""),
        ("starting", "", CONFIRMED, 0, ""),
        ("starting", "", "", 0, ""),
        ("starting", "", SLOW, 1, "starting: acme-gateway.service"),
        ("initializing", "", SLOW, 1, "initializing: acme-gateway.service"),
        ("degraded", FAILED, "", 2, "failed: acme-gateway.service other.service"),
        ("starting", FAILED, CONFIRMED, 2, "failed: acme-gateway.service other.service"),
        ("maintenance", "", "", 2, "maintenance"),
        ("stopping", "", "", 2, "stopping"),
        ("", "", "", 2, ""),
    ],
    ids=[
        "running",
        "only the confirmation",
        "no jobs",
        "slow",
        "early",
        "failed",
        "failed while starting",
        "maintenance",
        "stopping",
        "none",
    ],
)
def test_the_word_of_systemd_as_health(state: str, failed: str, jobs: str, code: int, word: str, tmp_path: Path) -> None:
    (tmp_path / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "systemctl").chmod(0o755)
    for name, text in (("state", state), ("failed", failed), ("jobs", jobs)):
        (tmp_path / name).write_text(text)
    environ = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([PROGRAM], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout.strip()) == (code, word)
