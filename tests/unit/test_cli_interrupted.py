"""A flash that is ended from outside: by a signal, at any moment. The device stays whole and the next flash finishes the job."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.workstation import Kit, Workstation

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGKILL]


@contextmanager
def flashing(workstation: Workstation, kit: Kit, fraction: float) -> Iterator[subprocess.Popen[bytes]]:
    """A flash that has got a part of the bundle through its pipe, has said that it writes, and waits for the rest."""
    data = kit["v1"].read_bytes()
    with workstation.start("--json", "flash", "-", "--progress", "json", stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(data[: int(fraction * len(data))])
        process.stdin.flush()
        if fraction > 0.4:
            assert json.loads(process.stderr.readline())["phase"] == "write"
        yield process


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_writing(workstation: Workstation, kit: Kit, number: signal.Signals) -> None:
    running = {name: digest for name, digest in workstation.hashes().items() if name.startswith("A.")}
    with flashing(workstation, kit, 0.6) as process:
        assert process.stdout
        assert process.stderr
        process.send_signal(number)
        # The pipe is still open: the signal alone must end it.
        code = process.wait(20)
        out, err = process.stdout.read().decode(), process.stderr.read().decode()
    assert "Traceback" not in err
    if number is signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 1
        assert json.loads(out)["exit_code"] == 1
        assert f"interrupted by {number.name}" in json.loads(out)["error"]
        assert workstation.status()["attempt"]["reason"] == f"interrupted by {number.name}"
    printed = workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_B_LEFT"]) == ("A", "0")
    assert "BOOT_TRIAL" not in printed
    assert workstation.slot_state("B") == "writing"
    assert {name: digest for name, digest in workstation.hashes().items() if name.startswith("A.")} == running
    assert workstation.run("activate").code == 4
    workstation.reboot("A")
    assert workstation.status()["situation"] == "steady"
    workstation.ok("flash", kit["v1"])
    assert workstation.holds("B", "v1")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_manifest_is_there(workstation: Workstation, kit: Kit, number: signal.Signals) -> None:
    before = workstation.snapshot()
    with flashing(workstation, kit, 0.0005) as process:
        lock = workstation.state / "lock"
        assert process.stderr
        deadline = time.monotonic() + 20
        while not lock.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
        process.send_signal(number)
        code = process.wait(20)
        assert code == (-signal.SIGKILL if number is signal.SIGKILL else 1)
    assert workstation.snapshot() == before
    workstation.ok("flash", kit["v1"])


def test_kill_at_many_moments(workstation: Workstation, kit: Kit) -> None:
    """Wherever it was: the running slot is first and good, and flash, or revert and flash, finishes."""
    seen: set[str] = set()
    for step in range(12):
        with workstation.start("flash", kit["v1"], "--max-rate", "2M") as process:
            try:
                process.wait(0.16 + 0.03 * step)
            except subprocess.TimeoutExpired:
                process.kill()
        document = workstation.status()
        seen.add(document["slots"]["B"]["state"])
        printed = workstation.printed()
        if document["trial"]:
            assert printed["BOOT_ORDER"] == "B A"
            assert workstation.holds("B", "v1"), "armed means whole"
            workstation.ok("revert")
        else:
            assert document["primary"] == "A"
            assert document["slots"]["A"]["state"] == "confirmed"
    workstation.ok("flash", kit["v2"])
    assert workstation.holds("B", "v2")
    assert seen & {"writing", "written", "trial"}, seen


def test_a_second_signal_does_not_cut_the_clean_up_short(workstation: Workstation, kit: Kit) -> None:
    with flashing(workstation, kit, 0.6) as process:
        assert process.stderr
        for _ in range(5):
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
        err = process.stderr.read().decode()
    assert "Traceback" not in err
    assert workstation.slot_state("B") == "writing"
    workstation.ok("flash", kit["v1"])
