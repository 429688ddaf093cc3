"""The boot script for a U-Boot that keeps its own environment: the decisions of boot.cmd, made with setenv and saveenv."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate.bootloaders.uboot import UBootStore
from abupdate.model import BootState, TrialPolicy
from tests.qemu.hookcase import GONE, GOOD, HANG, JUNK, Case, told, without
from tests.qemu.mmc_bench import MmcBench, MmcBoard
from tests.qemu.test_uboot_hook import CASES, CONFIRMED, FOREIGN, TRIAL
from tests.qemu.uboot_bench import ENV_BYTES, ROOT
from tests.sim import uboot_hook_model

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]

HOOK = ROOT / "bootloader-hooks" / "uboot" / "saveenv.cmd"
RANDOM_STATES = 30
# What U-Boot itself would not keep: flags that freeze a variable, addresses that are none, backslashes; and the script's own names.
REFUSED = {".flags", "ethaddr", "ipaddr", "path", "baudrate", "abu_part_A"}
# More variables than U-Boot holds at all.
BEYOND = {"a thousand foreign variables"}
NAMES = [name for name in CASES if name not in BEYOND]
# i6300esb as in boot.cmd's board block, on one line: what a board's own variable would hold.
ARM = (
    "setexpr.l abu_bar *0x40100f0010; setexpr abu_reload ${abu_bar} + 0xc; setexpr abu_ticks ${abu_timeout} * 0x200; "
    "setexpr abu_stage2 ${abu_bar} + 4; pci write.w 0.1e.0 0x60 3; "
    "mw.w ${abu_reload} 80; mw.w ${abu_reload} 86; mw.l ${abu_bar} ${abu_ticks}; "
    "mw.w ${abu_reload} 80; mw.w ${abu_reload} 86; mw.l ${abu_stage2} ${abu_ticks}; "
    "mw.w ${abu_reload} 80; mw.w ${abu_reload} 86; mw.w ${abu_reload} 100; pci write.b 0.1e.0 0x68 3"
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, mmc_uboot: Path) -> MmcBench:
    return MmcBench(tmp_path_factory.mktemp("saveenv"), HOOK)


def numbers(env: dict[str, str]) -> dict[str, str]:
    """Counters as numbers (saveenv writes f where boot.cmd leaves 0f), without what U-Boot counts by itself and what is empty."""
    return {
        name: str(uboot_hook_model.number(value)) if name.endswith("_LEFT") and name.startswith("BOOT_") else value
        for name, value in env.items()
        if value and name not in ("bootcount", "older")
    }


def adapted(case: Case) -> Case:
    return replace(case, env=without(case.env, *REFUSED))


@pytest.mark.parametrize("name", NAMES)
def test_decision_is_that_of_boot_cmd(bench: MmcBench, name: str) -> None:
    case = adapted(CASES[name])
    board = bench.board(case.a, case.b)
    board.set(case.env)
    before = board.copy(0), board.copy(1)
    expected = {**case.env, **case.then}

    boot = board.power_on(readonly=case.readonly)
    said = uboot_hook_model.boot(case.env, case.loads, can_save=not case.readonly)

    args = boot.args
    assert args.get("abupdate.slot") == case.slot == said.slot, boot.console
    assert numbers(board.stored()) == numbers(expected), boot.console
    if said.writes == 0:
        assert (board.copy(0), board.copy(1)) == before
    assert "syntax error" not in boot.console
    assert "Unknown command" not in boot.console
    if case.slot is None:
        assert "abupdate: no slot can be started, reset" in boot.console
        return
    told(case, said, args, "ttyAMA0")
    assert args.get("abupdate.verity", "") == case.env.get(f"BOOT_{case.slot}_VERITY", "")


def test_random_states_agree_with_the_model(bench: MmcBench) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    for number in range(RANDOM_STATES):
        choices = {
            "BOOT_ORDER": ["A B", "B A", "A", "B", "B C A"],
            "BOOT_A_LEFT": ["0", "1", "a", "10", "junk"],
            "BOOT_B_LEFT": ["0", "1", "3", "ff"],
            "BOOT_TRIAL": ["A", "B"],
            "BOOT_BUDGET": ["0", "3", "a", "20"],
            "BOOT_TIMEOUT": ["0", "9", "a", "63", "64", "3e7", "3e8", "7fe"],
            "BOOT_A_VERITY": ["0a" * 32],
            "bootargs": ["the board's own"],
        }
        env = {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.8}
        a, b = draw.choice([GOOD, GOOD, GONE]), draw.choice([GOOD, GOOD, JUNK])
        readonly = draw.random() < 0.2
        board = bench.board(a, b)
        board.set(env)
        boot = board.power_on(readonly=readonly)
        said = uboot_hook_model.boot(env, [slot for slot, kind in (("A", a), ("B", b)) if kind == GOOD], can_save=not readonly)
        got: dict[str, object] = {
            "slot": boot.args.get("abupdate.slot"),
            "trial": "abupdate.trial" in boot.args,
            "timeout_s": int(boot.args.get("abupdate.boot_timeout", "0")),
            "failed": boot.args.get("abupdate.failed", "") if boot.words else ",".join(said.failed),
            "env": numbers({name: value for name, value in board.env().items() if name in choices}),
        }
        wanted: dict[str, object] = {"slot": said.slot, "trial": said.trial, "timeout_s": said.timeout_s, "failed": ",".join(said.failed)}
        wanted["env"] = numbers(dict(said.env or {}))
        assert got == wanted, f"seed {seed}, state {number}: {env} {a} {b} readonly={readonly}\n{boot.console}"


def test_nothing_of_the_script_is_saved_and_the_board_s_own_bootargs_stay(bench: MmcBench) -> None:
    """Three saves in one boot: the trial and the confirmed slot are counted, neither loads, then the last resort."""
    board = bench.board(GONE, GONE)
    env = {**TRIAL, "bootargs": 'it\'s "what" ${the} board; had', "keep": FOREIGN["bootcmd_old"]}
    board.set(env)
    assert board.power_on().words is None
    left = board.env()
    assert {name for name in left if name.startswith("abu_")} == set()
    assert (left["bootargs"], left["keep"]) == (env["bootargs"], env["keep"])
    assert (left["BOOT_A_LEFT"], left["BOOT_B_LEFT"]) == ("a", "2")
    assert board.copy(0)[4] == 4 or board.copy(1)[4] == 4


def test_counting_ends_in_the_fallback_with_abupdate_s_store_on_the_other_side(bench: MmcBench) -> None:
    board = bench.board()
    board.set({"board": "own"})
    store = UBootStore(board.config, ("A", "B"), lock_path=board.disk.with_name("lock"))
    assert store.read().fresh
    store.commit(BootState(("B", "A"), {"A": 10, "B": 2}, "B", TrialPolicy(2, 10, 90)))
    for left in (1, 0):
        args = board.power_on().args
        assert (args["abupdate.slot"], args["abupdate.trial"], args["abupdate.boot_timeout"]) == ("B", "1", "90")
        assert store.read().left == {"A": 10, "B": left}
    args = board.power_on().args
    assert (args["abupdate.slot"], "abupdate.trial" in args) == ("A", False)
    assert store.read().left == {"A": 9, "B": 0}
    store.commit(BootState(("A",), {"A": 10, "B": 0}, None, TrialPolicy(2, 10, 90)))
    assert board.power_on().args["abupdate.slot"] == "A"
    assert board.env()["board"] == "own"


def damage(board: MmcBoard, index: int) -> None:
    board.write_copy(index, b"\x55", at=100)


def test_both_copies_damaged_a_confirmed_slot_boots_and_nothing_is_written(bench: MmcBench) -> None:
    board = bench.board(boot_a=GONE)
    board.set(TRIAL)
    damage(board, 0)
    damage(board, 1)
    before = board.disk.read_bytes()
    boot = board.power_on()
    assert "bad CRC, using default environment" in boot.console
    assert (boot.args["abupdate.slot"], boot.args["abupdate.failed"], "abupdate.trial" in boot.args) == ("B", "A", False)
    assert board.disk.read_bytes() == before


@pytest.mark.parametrize("index", [0, 1])
def test_one_damaged_copy_is_written_over(bench: MmcBench, index: int) -> None:
    board = bench.board()
    board.make_copy(1 - index, {**board.defaults, **TRIAL}, 7)
    board.make_copy(index, {**board.defaults, **CONFIRMED}, 8)
    damage(board, index)
    kept = board.copy(1 - index)
    assert board.power_on().args["abupdate.trial"] == "1"
    assert board.copy(1 - index) == kept
    assert (board.copy(index)[4], board.env()["BOOT_B_LEFT"]) == (8, "2")


def test_environment_without_room_for_a_counter_boots_the_confirmed_slot(bench: MmcBench) -> None:
    board = bench.board()
    env = {**bench.defaults, **without(TRIAL, "BOOT_B_LEFT", "BOOT_A_LEFT")}
    used = sum(len(name) + len(value) + 2 for name, value in env.items())
    board.make_copy(0, {**env, "filler": "x" * (ENV_BYTES - 5 - used - len("filler=") - 2 - 4)}, 1)
    before = board.copy(0), board.copy(1)
    args = board.power_on().args
    assert (args["abupdate.slot"], args["abupdate.unsaved"], "abupdate.trial" in args) == ("A", "1", False)
    assert (board.copy(0), board.copy(1)) == before


def test_board_s_watchdog_ends_a_trial_that_hangs_until_the_tries_are_used_up(bench: MmcBench) -> None:
    board = bench.board(boot_b=HANG)
    board.set({**TRIAL, "BOOT_B_LEFT": "2", "BOOT_TIMEOUT": "3", "abu_arm": ARM})
    watched = board.boot_watched()
    assert [name for name, _ in watched.events if name != "RESET"] == ["WATCHDOG", "WATCHDOG", "SHUTDOWN"]
    assert watched.console.count("abupdate: watchdog armed, 3 s") == 2
    assert "abupdate: slot A confirmed left 9" in watched.console
    assert board.env()["abu_arm"] == ARM
    assert (board.env()["BOOT_A_LEFT"], board.env()["BOOT_B_LEFT"]) == ("9", "0")


@pytest.mark.parametrize(
    ("env", "b", "lock"),
    [(CONFIRMED, HANG, 0), (TRIAL, HANG, 3), (TRIAL, JUNK, 0), ({**TRIAL, "BOOT_TIMEOUT": "0"}, HANG, 0)],
    ids=["confirmed", "trial", "no kernel on trial", "timeout 0"],
)
def test_watchdog_runs_only_under_a_kernel_on_trial(bench: MmcBench, env: dict[str, str], b: str, lock: int) -> None:
    board = bench.board(boot_a=HANG, boot_b=b)
    board.set({**env, "abu_arm": ARM})
    assert board.boot_watched(until="tiny: ").lock == lock
