"""The service as a process of its own, with health programs that misbehave: the verdict comes in time, and nothing of them is left."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

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
