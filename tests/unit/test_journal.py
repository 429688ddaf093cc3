"""What the journal gets: priorities where standard error is the journal itself, plain lines everywhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from abupdate.log import is_journal
from tests.workstation import ROOT

SAY = """
import logging, sys
from abupdate import __main__ as program
from abupdate.log import log
program._log(2, quiet=False)
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
    log.log(level, "level %d\\n<0>not a line of its own", level)
sys.exit(program.main(["-c", "/nonexistent.toml", "status"]))
"""


def said(folder: Path, stream: str) -> list[str]:
    """Lines on standard error; stream: what JOURNAL_STREAM says, with the file's own numbers filled in."""
    path = folder / "journal"
    with path.open("wb") as file:
        found = os.fstat(file.fileno())
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "JOURNAL_STREAM": stream.format(device=found.st_dev, inode=found.st_ino)}
        done = subprocess.run([sys.executable, "-c", SAY], stderr=file, env=environ, timeout=60, check=False)
    assert done.returncode == 2
    return path.read_text().splitlines()


def test_each_line_to_the_journal_has_its_priority(tmp_path: Path) -> None:
    lines = said(tmp_path, "{device}:{inode}")
    wanted = [f"<{number}>level {level}\\n<0>not a line of its own" for number, level in ((7, 10), (6, 20), (4, 30), (3, 40))]
    assert lines[:4] == wanted
    assert [line.startswith("<3>") for line in lines[4:]] == [True]
    assert "/nonexistent.toml" in lines[4]


@pytest.mark.parametrize("stream", ["", "1:2", "{device}:1", "junk", "{device}:{inode}:0"])
def test_any_other_stream_gets_plain_lines(stream: str, tmp_path: Path) -> None:
    lines = said(tmp_path, stream)
    assert len(lines) == 5
    assert all(line.startswith("abupdate: ") for line in lines)


def test_a_closed_descriptor_is_no_journal() -> None:
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    assert not is_journal(write, {"JOURNAL_STREAM": "1:2"})
