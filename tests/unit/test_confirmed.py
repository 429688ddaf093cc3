"""Waiting for the confirmation: nothing is called confirmed that is not, and nobody is kept waiting for what cannot come."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from abupdate.operations.confirmed import POLL_S
from tests.workstation import Workstation, command, environ


@contextmanager
def waiting(workstation: Workstation) -> Iterator[subprocess.Popen[str]]:
    words = command("-v", "-c", workstation.config, "service", "--wait")
    with subprocess.Popen(words, env=environ(), stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def until_it_waits(process: subprocess.Popen[str]) -> str:
    """Its first word that it waits."""
    assert process.stderr is not None
    for line in process.stderr:
        if "waiting" in line:
            return line
    raise AssertionError("it ended")


def test_a_slot_that_is_not_on_trial_is_confirmed_at_once(workstation: Workstation) -> None:
    with waiting(workstation) as process:
        assert process.wait(60) == 0


def test_a_trial_is_waited_for_until_somebody_confirms_it(workstation: Workstation) -> None:
    workstation.ok("flash", workstation.kit["v1"])
    workstation.reboot("B")
    with waiting(workstation) as process:
        assert "slot B is on trial" in until_it_waits(process)
        time.sleep(POLL_S + 1)
        assert process.poll() is None
        workstation.ok("confirm")
        assert process.wait(60) == 0


def test_a_trial_that_is_reverted_never_is(workstation: Workstation) -> None:
    workstation.ok("flash", workstation.kit["v1"])
    workstation.reboot("B")
    with waiting(workstation) as process:
        until_it_waits(process)
        workstation.ok("revert")
        assert process.wait(60) == 1


def test_an_unreadable_store_is_no_confirmation(workstation: Workstation) -> None:
    for path in workstation.folder.glob("env*"):
        if path.is_file():
            path.write_bytes(b"\xa5" * path.stat().st_size)
    with waiting(workstation) as process:
        until_it_waits(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(POLL_S + 1)
