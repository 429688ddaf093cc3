"""The service as a process of its own, with health programs that misbehave: the verdict comes in time, and nothing of them is left."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from abupdate.formats.peerhealth import PeerHealth, encode
from tests.unit.test_service import served
from tests.workstation import Kit, Workstation

CONFIRMED, REBOOT = 0, 99


@dataclass(frozen=True)
class Program:
    """A health program, the exit code that the service must end with, and the word that it must say why."""

    name: str
    body: str
    code: int
    word: str


PROGRAMS = (
    Program("hangs", "exec sleep 600", REBOOT, "no answer within 1 s"),
    Program("ignores SIGTERM", "trap '' TERM INT HUP; while :; do sleep 600; done", REBOOT, "no answer within 1 s"),
    Program("floods and hangs", "exec yes a flood of words", REBOOT, "no answer within 1 s, last said: a flood of words"),
    Program("floods and ends well", "yes a flood of words | head -c 700000; exit 0", CONFIRMED, "slot is confirmed"),
    Program("leaves children", "sleep 600 & setsid sleep 600 & sleep 600 >/dev/null 2>&1 & exit 0", CONFIRMED, "slot is confirmed"),
    Program(
        "forks on and on",
        "f() { sleep 600 & f | f; }; n=0; while [ $n -lt 50 ]; do sleep 600 & n=$((n+1)); done; wait",
        REBOOT,
        "no answer",
    ),
    Program("is killed by a signal", "kill -SEGV $$", REBOOT, "ended by SIGSEGV"),
)


def left_over(mark: Path) -> list[str]:
    """Command lines of processes that have the folder in their environment."""
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"ABU_TEST={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_that_misbehaves(workstation: Workstation, kit: Kit, program: Program) -> None:
    with workstation.config.open("a") as file:
        file.write("[trial]\nwindow_s = 2\n")
    workstation.edit('dir = "health.d"', 'dir = "health.d"\ninterval_s = 1')
    folder = workstation.folder / "health.d"
    folder.mkdir()
    (folder / "check").write_text(f"#!/bin/sh\nexport ABU_TEST={workstation.folder}\n{program.body}\n")
    (folder / "check").chmod(0o755)
    workstation.ok("flash", kit["v1"])
    workstation.reboot("B")
    start_s = time.monotonic()
    with served(workstation, "service", "--trial") as process:
        _, err = process.communicate(timeout=40)
    assert process.returncode == program.code, err
    assert program.word.encode() in err
    assert time.monotonic() - start_s < 30
    printed = workstation.printed()
    assert printed["BOOT_ORDER"] == ("B A" if program.code == CONFIRMED else "A")
    assert "BOOT_TRIAL" not in printed
    assert left_over(workstation.folder) == []
    if program.code == REBOOT:
        assert program.word in workstation.status()["attempt"]["reason"] or program.word == "no answer"
    assert os.access(folder / "check", os.X_OK)


GOOD = PeerHealth(1.0, True, (), 1)
MEMBERS = (
    ("sees its peers", encode(GOOD), CONFIRMED, "sees its peers"),
    ("broken network", encode(PeerHealth(1.0, False, (), 1)), REBOOT, "does not see enough of its peers"),
    ("no daemon", None, REBOOT, "the fleet's daemon says nothing"),
    ("doubted", encode(PeerHealth(1.0, True, ("gw7",), 1)), REBOOT, "doubted by gw7"),
)


@pytest.mark.parametrize(("word", "code", "reason"), [case[1:] for case in MEMBERS], ids=[case[0] for case in MEMBERS])
def test_a_member_of_a_site_on_trial(workstation: Workstation, kit: Kit, word: bytes | None, code: int, reason: str) -> None:
    """The daemon is its file alone; this boot is as old as the process."""
    with workstation.config.open("a") as file:
        file.write('[trial]\nwindow_s = 4\n[fleet]\nudp_interface = "lo"\n')
    workstation.edit('dir = "health.d"', 'dir = "health.d"\ninterval_s = 1\ndegraded_row_s = 3')
    workstation.ok("flash", "--alone", kit["v1"])
    workstation.reboot("B")
    (workstation.state / "fleet").mkdir()
    (workstation.state / "fleet" / "membership").touch()
    runtime = workstation.folder / "runtime"
    runtime.mkdir()
    if word is not None:
        (runtime / "fleet-health").write_bytes(word)
    with served(workstation, "service", "--trial") as process:
        _, err = process.communicate(timeout=40)
    assert process.returncode == code, err
    assert reason.encode() in err
    assert workstation.printed()["BOOT_ORDER"] == ("B A" if code == CONFIRMED else "A")


def test_a_device_that_is_not_enrolled_yet_is_confirmed_without_peers(workstation: Workstation, kit: Kit) -> None:
    with workstation.config.open("a") as file:
        file.write('[trial]\nwindow_s = 1\n[fleet]\nudp_interface = "lo"\n')
    workstation.ok("flash", "--alone", kit["v1"])
    workstation.reboot("B")
    with served(workstation, "service", "--trial") as process:
        _, err = process.communicate(timeout=40)
    assert process.returncode == CONFIRMED, err
