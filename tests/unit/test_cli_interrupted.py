"""A flash that is ended from outside: by a signal, at any moment. The device stays whole and the next flash finishes the job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from tests.workstation import Kit, Workstation, environ

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


def killed_at(workstation: Workstation, bundle: Path, moment: int) -> int:
    """Flash in a child process that kills itself at the moment-th Python call; returns how many it made (0: killed)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def count(frame: FrameType, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        try:
            workstation.run("flash", bundle)
        finally:
            sys.setprofile(None)
            os.write(writing, str(calls).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as report:
        said = report.read()
    os.waitpid(child, 0)
    return int(said or 0)


@pytest.mark.parametrize("moments", [25, pytest.param(75, marks=pytest.mark.slow)])
def test_kill_at_many_moments(workstation: Workstation, kit: Kit, moments: int) -> None:
    """Wherever it was: the running slot is first and good, armed means whole, and the next flash finishes the job."""
    total = killed_at(workstation, kit["v1"], -1)
    assert total > 1000
    workstation.ok("revert")
    seen: set[str] = set()
    for step in range(moments):
        bundle = ("v1", "v2")[step % 2]
        killed_at(workstation, kit[bundle], total * (step + 1) // moments - 5)
        document = workstation.status()
        printed = workstation.printed()
        assert document["slots"]["A"]["state"] == "confirmed"
        if document["trial"]:
            seen.add("armed")
            assert printed["BOOT_ORDER"] == "B A"
            assert workstation.holds("B", bundle)
            workstation.ok("revert")
        else:
            seen.add(document["slots"]["B"]["state"])
            assert document["primary"] == "A"
            assert printed["BOOT_ORDER"] == "A"
            assert printed["BOOT_B_LEFT"] == "0"
    workstation.ok("flash", kit["v3"])
    assert workstation.holds("B", "v3")
    assert {"writing", "written", "armed"} <= seen


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


@pytest.mark.parametrize("where", ["_report", "_flushed"])
def test_a_signal_in_the_last_moment_makes_no_traceback(workstation: Workstation, where: str) -> None:
    """It comes while the verb's end is being reported; the code is the verb's own."""
    program = (
        "import os, signal, sys\n"
        "import abupdate.__main__ as entry\n"
        f"real = entry.{where}\n"
        "def signalled(*argv, **named):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(*argv, **named)\n"
        f"entry.{where} = signalled\n"
        "sys.exit(entry.main(sys.argv[1:]))\n"
    )
    argv = [sys.executable, "-c", program, "-c", str(workstation.config), "--json", "confirm"]
    done = subprocess.run(argv, env=environ(), capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"]
    assert done.returncode == (1 if where == "_report" else 4)
