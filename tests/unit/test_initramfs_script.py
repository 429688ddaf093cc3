"""What the initramfs part takes for a trial, in the shells that an initramfs has: a kernel argument, or the firmware's word on a Pi."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.workstation import ROOT

SCRIPT = ROOT / "bootloader-hooks/initramfs/abupdate-trial.sh"
# The real command line is not ours to change.
RUN = """
. "$1"
ABUPDATE_TRYBOOT=$2/tryboot
ABUPDATE_RUN=$2/run
trial=$3
abupdate_value() { [ "$1" != abupdate.trial ] || echo "$trial"; }
abupdate_say() { echo "said: $*"; }
abupdate_on_trial && echo trial || echo none
abupdate_arm_watchdog "$4"
"""


@pytest.fixture(params=[("dash",), ("busybox", "sh")], ids=lambda shell: shell[0])
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


def said(shell: tuple[str, ...], folder: Path, argument: str = "") -> list[str]:
    """What the functions say; `armed` where the program was run."""
    program = folder / "arm"
    program.write_text("#!/bin/sh\necho armed $1\n")
    program.chmod(0o755)
    argv = [*shell, "-c", RUN, "sh", str(SCRIPT), str(folder), argument, str(program)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if "softdog" not in line]


def test_no_word_of_a_trial_is_none(shell: tuple[str, ...], tmp_path: Path) -> None:
    assert said(shell, tmp_path) == ["none"]
    (tmp_path / "tryboot").write_bytes(bytes(4))
    assert said(shell, tmp_path) == ["none"]
    assert not (tmp_path / "run").exists()


def test_the_kernel_argument_is_enough_and_leaves_no_file(shell: tuple[str, ...], tmp_path: Path) -> None:
    found = said(shell, tmp_path, "1")
    assert found[0] == "trial"
    assert "armed 120" in found[1]
    assert not (tmp_path / "run").exists()


def test_the_firmwares_flag_is_enough_and_tells_systemd(shell: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "tryboot").write_bytes(b"\0\0\0\1")
    found = said(shell, tmp_path)
    assert found[0] == "trial"
    assert "armed 120" in found[1]
    assert (tmp_path / "run/tryboot").exists()
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_without_a_place_for_the_file_the_watchdog_is_armed_all_the_same(shell: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "tryboot").write_bytes(b"\0\0\0\1")
    (tmp_path / "run").write_text("no folder")
    found = said(shell, tmp_path)
    assert found[0].startswith("said: no ")
    assert found[1] == "trial"
    assert any("armed 120" in line for line in found)


@pytest.mark.parametrize("flag", [b"", b"\0", b"\1\0\0\2", b"\0\0\0\2", b"1"])
def test_another_value_is_no_trial(shell: tuple[str, ...], tmp_path: Path, flag: bytes) -> None:
    (tmp_path / "tryboot").write_bytes(flag)
    assert said(shell, tmp_path) == ["none"]
