"""Real processes at the same moment on one device: two flashes, a verb against another, and fw_setenv against all of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.workstation import Kit, Result, Workstation


def at_once(workstation: Workstation, *verbs: tuple[str | Path, ...]) -> list[Result]:
    """Start all verbs before any is waited for; `flash - BUNDLE` gets the bundle through a pipe."""
    with ExitStack() as stack:
        running: list[subprocess.Popen[bytes]] = []
        for verb in verbs:
            if verb[:2] == ("flash", "-"):
                feeder = stack.enter_context(subprocess.Popen(["cat", verb[2]], stdout=subprocess.PIPE))
                running.append(workstation.start("flash", "-", *verb[3:], stdin=feeder.stdout))
                assert feeder.stdout
                feeder.stdout.close()  # ours: the reader's end alone decides how long the feeder runs
            else:
                running.append(workstation.start(*verb))
        ends = [process.communicate(timeout=60) for process in running]
    results = [Result(process.returncode, out.decode(), err.decode()) for process, (out, err) in zip(running, ends, strict=True)]
    assert all("Traceback" not in result.err for result in results), results
    return results


@pytest.mark.parametrize("way", ["file and file", "pipe and pipe", "file and pipe"])
def test_of_two_flashes_one_is_busy_and_the_other_ends_well(workstation: Workstation, kit: Kit, way: str) -> None:
    kinds = zip(way.split(" and "), ("v1", "v2"), strict=True)
    results = at_once(workstation, *(("flash", "-", kit[name]) if kind == "pipe" else ("flash", kit[name]) for kind, name in kinds))
    assert sorted(result.code for result in results) == [0, 5], results
    winner = "v1" if results[0].code == 0 else "v2"
    assert workstation.holds("B", winner)
    printed = workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_TRIAL"], printed["BOOT_B_LEFT"]) == ("B A", "B", "3")
    assert workstation.status()["slots"]["B"]["version"] == f"{winner[1]}.0"


def test_flash_against_confirm(workstation: Workstation, kit: Kit) -> None:
    """The confirmation goes through whoever is first; the flash comes after it or is busy."""
    workstation.ok("flash", kit["v1"])
    workstation.reboot("B")
    confirm, flash = at_once(workstation, ("confirm",), ("flash", kit["v2"]))
    assert confirm.code == 0, confirm.err
    assert flash.code in (0, 5), flash.err
    assert workstation.slot_state("B") == "confirmed"
    assert workstation.holds("B", "v1")
    printed = workstation.printed()
    if flash.code == 0:
        assert (printed["BOOT_ORDER"], printed["BOOT_TRIAL"], printed["BOOT_B_LEFT"]) == ("A B", "A", "a")
        assert workstation.holds("A", "v2")
    else:
        assert printed["BOOT_ORDER"] == "B A"
        assert "BOOT_TRIAL" not in printed


def test_revert_against_confirm(workstation: Workstation, kit: Kit) -> None:
    """Whoever is first: the trial has one end, A boots next, and both say what they have done."""
    workstation.ok("flash", kit["v1"])
    workstation.reboot("B")
    revert, confirm = at_once(workstation, ("revert",), ("confirm",))
    assert revert.code == 0, revert.err
    printed = workstation.printed()
    assert "BOOT_TRIAL" not in printed
    if confirm.code == 0:
        assert (printed["BOOT_ORDER"], printed["BOOT_B_LEFT"]) == ("A B", "a"), "confirmed, and then back to the other good slot"
        assert workstation.slot_state("B") == "confirmed"
    else:
        assert confirm.code == 4, confirm.err
        assert (printed["BOOT_ORDER"], printed["BOOT_B_LEFT"]) == ("A", "0")
        assert workstation.slot_state("B") == "bad"
    assert workstation.status()["situation"] == "reboot-pending"


@contextmanager
def foreign_writes(workstation: Workstation) -> Iterator[list[int]]:
    """fw_setenv in a loop, one new variable after the other; at the end the list holds how many it has set."""
    stop = workstation.folder / "stop"
    script = 'i=0; echo on; while [ ! -e "$2" ]; do i=$((i+1)); fw_setenv -c "$1" n$i "value $i" || exit 1; done; echo $i'
    argv = ["sh", "-c", script, "sh", str(workstation.fw_env_config), str(stop)]
    count: list[int] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"on\n"
        try:
            yield count
        finally:
            stop.touch()
            out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        count.append(int(out))
    stop.unlink()


def test_no_variable_of_fw_setenv_is_lost_beside_an_update(workstation: Workstation, kit: Kit) -> None:
    """flash, confirm and revert re-read and write under fw_setenv's own lock: neither undoes what the other has stored."""
    with foreign_writes(workstation) as count:
        workstation.ok("flash", kit["v1"])
        workstation.reboot("B")
        workstation.ok("confirm")
        workstation.ok("flash", kit["v2"], "--no-activate")
        workstation.ok("activate")
        workstation.ok("revert")
    printed = workstation.printed()
    assert count[0] >= 10, "it ran beside all of them"
    assert {name: value for name, value in printed.items() if name[0] == "n"} == {f"n{i}": f"value {i}" for i in range(1, count[0] + 1)}
    assert printed["foreign"] == "kept"
    assert (printed["BOOT_ORDER"], printed["BOOT_A_LEFT"], printed["BOOT_B_LEFT"], printed["BOOT_FLOOR"]) == ("B", "0", "a", "1")
    assert "BOOT_TRIAL" not in printed
