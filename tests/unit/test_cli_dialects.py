"""The verbs on boards with another updater's boot script: update, confirmation, fallback, going back; what is refused changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from tests.workstation import Kit, Workstation


@dataclass(frozen=True)
class Script:
    """config: lines of [bootloader]; trial: of [trial]; factory: the environment; first: variables that choose, for each slot;
    pending, settled: what is set besides while a trial runs, and afterwards; gone_back: what altbootcmd sets besides."""

    config: str
    trial: str
    factory: Mapping[str, str]
    first: Mapping[str, Mapping[str, str]]
    pending: Mapping[str, str]
    settled: Mapping[str, str]
    gone_back: Mapping[str, str]
    reason: str


MENDER = Script(
    'dialect = "mender"\npartitions = { A = 9, B = 10 }\n',
    "tries = 2\nconfirmed_tries = 0\n",
    {"mender_boot_part": "9", "mender_boot_part_hex": "9", "bootlimit": "2", "bootcount": "0", "upgrade_available": "0"},
    {"A": {"mender_boot_part": "9", "mender_boot_part_hex": "9"}, "B": {"mender_boot_part": "10", "mender_boot_part_hex": "a"}},
    {"upgrade_available": "1", "bootcount": "0"},
    {"upgrade_available": "0", "bootcount": "0"},
    {"upgrade_available": "0", "bootcount": "0"},
    "unknown: the bootloader went back, or a cut came before the reason",
)
SWUPDATE = Script(
    'dialect = "swupdate"\ncopy_var = "mmcpart"\ncopy_values = { A = "2", B = "3" }\n',
    "tries = 1\nconfirmed_tries = 0\n",
    {"mmcpart": "2", "ustate": "0", "bootlimit": "2"},
    {"A": {"mmcpart": "2"}, "B": {"mmcpart": "3"}},
    {"ustate": "1", "upgrade_available": "1", "bootcount": "1"},
    {"ustate": "0", "upgrade_available": "0", "bootcount": "0"},
    {"ustate": "3", "upgrade_available": "0", "bootcount": "0"},
    "tries exhausted",
)
RAUC = Script(
    'dialect = "rauc"\n',
    "tries = 3\nconfirmed_tries = 9\n",
    {},
    {"A": {}, "B": {}},
    {"BOOT_ORDER": "B A", "BOOT_TRIAL": "B", "BOOT_B_LEFT": "3"},
    {"BOOT_ORDER": "B A", "BOOT_B_LEFT": "9"},
    {"BOOT_B_LEFT": "0"},
    "tries exhausted",
)


def device(workstation: Workstation, script: Script) -> Workstation:
    workstation.edit('kind = "uboot"\n', f'kind = "uboot"\n{script.config}')
    workstation.config.write_text(f"{workstation.config.read_text()}[trial]\n{script.trial}")
    workstation.put_environment("".join(f"{name}={value}\n" for name, value in {"foreign": "kept", **script.factory}.items()))
    return workstation


@pytest.fixture(params=[MENDER, SWUPDATE, RAUC], ids=["mender", "swupdate", "rauc"])
def script(request: pytest.FixtureRequest) -> Script:
    found: Script = request.param
    return found


@pytest.fixture
def board(workstation: Workstation, script: Script) -> Workstation:
    return device(workstation, script)


def shows(board: Workstation, *wanted: Mapping[str, str]) -> None:
    printed = board.printed()
    for values in wanted:
        assert {name: printed.get(name) for name in values} == values
    assert printed["foreign"] == "kept"


def test_update_confirmation_and_going_back(board: Workstation, script: Script, kit: Kit) -> None:
    assert board.status()["slots"]["A"]["state"] == "confirmed"
    board.ok("flash", kit["v1"])
    shows(board, script.first["B"], script.pending)
    board.reboot("B")
    assert board.slot_state("B") == "trial"
    board.ok("confirm")
    shows(board, script.first["B"], script.settled)
    assert (board.slot_state("A"), board.slot_state("B")) == ("confirmed", "confirmed")
    board.ok("revert")
    shows(board, script.first["A"])
    board.reboot("A")
    assert (board.slot_state("A"), board.slot_state("B")) == ("confirmed", "confirmed")


def test_fallback_is_reported_with_what_is_known_of_it(board: Workstation, script: Script, kit: Kit) -> None:
    board.ok("flash", kit["v1"])
    for name, value in {**script.first["A"], **script.gone_back}.items():
        board.setenv(name, value)
    board.reboot("A")
    board.run("confirm")
    found = board.status()
    assert (found["attempt"]["phase"], found["attempt"]["reason"]) == ("reverted", script.reason)
    assert found["slots"]["B"]["state"] == "bad"
    board.ok("flash", kit["v1"])
    shows(board, script.first["B"], script.pending)


def test_armed_trial_is_cancelled(board: Workstation, script: Script, kit: Kit) -> None:
    board.ok("flash", kit["v1"])
    board.ok("revert")
    shows(board, script.first["A"])
    assert board.printed().get("BOOT_TRIAL") is None
    assert board.printed().get("upgrade_available", "0") == "0"
    assert board.slot_state("B") == "written"


@pytest.mark.parametrize(
    ("script", "name", "value", "word"),
    [
        (MENDER, "mender_boot_part", "7", "no slot's"),
        (MENDER, "mender_boot_part", "", "no mender_boot_part"),
        (MENDER, "bootlimit", "0", "never leave"),
        (MENDER, "bootlimit", "1", "tries = 2"),
        (MENDER, "mender_check_saveenv_canary", "1", "mender_saveenv_canary"),
        (SWUPDATE, "mmcpart", "9", "no slot's"),
        (SWUPDATE, "mmcpart", "", "no mmcpart"),
        (SWUPDATE, "bootlimit", "x", "never leave"),
    ],
)
def test_what_the_script_could_not_boot_or_leave_is_refused_before_anything_is_written(
    workstation: Workstation, kit: Kit, script: Script, name: str, value: str, word: str
) -> None:
    board = device(workstation, script)
    board.setenv(name, value)
    before = board.snapshot()
    done = board.run("flash", kit["v1"])
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert word in done.err
    assert done.err.endswith(")\n")
    after = board.snapshot()
    assert (after.slots, after.raw) == (before.slots, before.raw)


def test_doctor_names_what_the_script_lacks(workstation: Workstation) -> None:
    board = device(workstation, MENDER)
    board.setenv("mender_check_saveenv_canary", "1")
    done = board.run("doctor")
    assert done.code == 1
    assert "mender_saveenv_canary" in done.out
    assert "altbootcmd" in done.out
