"""A U-Boot with its own redundant environment on MMC: its `saveenv` on one side, abupdate's codec and libubootenv on the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from abupdate.bootloaders.uboot import UBootStore
from abupdate.formats.ubootenv import Scheme, choose, decode
from abupdate.model import BootState, TrialPolicy
from tests.qemu.mmc_bench import MmcBench, MmcBoard
from tests.qemu.uboot_bench import COPY_OFFSETS, ENV_BYTES, Boot

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]

SLOTS = ("A", "B")
TRIAL = BootState(("B", "A"), {"A": 10, "B": 3}, "B", TrialPolicy(3, 10, 120))
CONFIRMED = BootState(("B", "A"), {"A": 10, "B": 10}, None, TrialPolicy(3, 10, 120))
FOREIGN = {"quoted": "if test \"${x}\" = 'y'; then run a; fi", "aaa": "first", "zzz": "last", "note": "a=b=c"}
# Does what the variable says; "ran" tells that it was the ordinary boot command.
SCRIPT = "echo ran bootcmd\nrun todo\npoweroff\n"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, mmc_uboot: Path) -> MmcBench:
    folder = tmp_path_factory.mktemp("mmc")
    script = folder / "todo.cmd"
    script.write_text(SCRIPT)
    return MmcBench(folder, script)


def store(board: MmcBoard) -> UBootStore:
    return UBootStore(board.config, SLOTS, lock_path=board.disk.with_name("fw_printenv.lock"))


def flags(board: MmcBoard) -> tuple[int, int]:
    return board.copy(0)[4], board.copy(1)[4]


def do(board: MmcBoard, commands: str) -> Boot:
    """Have U-Boot run commands, by way of the variable that its script runs."""
    board.setenv("todo", commands)
    return board.power_on()


def test_what_saveenv_wrote_is_what_both_readers_find(bench: MmcBench) -> None:
    board = bench.board()
    board.set({**FOREIGN, "todo": "setenv BOOT_ORDER B A; setenv BOOT_A_LEFT a; setenv BOOT_B_LEFT 2; setenv BOOT_TRIAL B; saveenv"})
    assert flags(board) == (0, 1)
    boot = board.power_on()
    assert "Loading Environment from MMC... OK" in boot.console
    assert flags(board) == (2, 1)
    state = store(board).read()
    assert (state.order, state.left, state.trial, state.fresh) == (("B", "A"), {"A": 10, "B": 2}, "B", False)
    assert {name: board.env().get(name) for name in FOREIGN} == FOREIGN
    copy = decode(board.copy(0), Scheme.INCREMENTAL)
    assert copy.flag == 2
    assert {name: (copy.environment.get(name) or b"").decode() for name in FOREIGN} == FOREIGN


def test_a_commit_is_what_uboot_boots_with_and_its_own_variables_stay(bench: MmcBench) -> None:
    board = bench.board()
    board.set(
        {**FOREIGN, "todo": "echo found ${BOOT_ORDER}, ${BOOT_A_LEFT} ${BOOT_B_LEFT}, ${BOOT_TRIAL}, ${BOOT_TIMEOUT}; printenv quoted"}
    )
    before = board.env()
    store(board).commit(TRIAL)
    assert flags(board) == (2, 1)
    boot = board.power_on()
    assert f"found B A, a 3, B, 78\nquoted={FOREIGN['quoted']}\n" in boot.console
    added = {"BOOT_ORDER": "B A", "BOOT_A_LEFT": "a", "BOOT_B_LEFT": "3", "BOOT_TRIAL": "B"}
    added |= {"BOOT_TRIES": "3", "BOOT_BUDGET": "a", "BOOT_TIMEOUT": "78"}
    assert board.env() == {**before, **added}


def test_backslashes_are_lost_by_uboot_and_by_nobody_else(bench: MmcBench) -> None:
    board = bench.board()
    board.set({"path": "C:\\dir\\file", "todo": "saveenv"})
    store(board).commit(TRIAL)
    assert board.env()["path"] == "C:\\dir\\file"
    board.power_on()
    assert board.env()["path"] == "C:dirfile"


def test_both_sides_take_turns_and_each_writes_over_the_older_copy(bench: MmcBench) -> None:
    board = bench.board()
    count = "setexpr BOOT_B_LEFT ${BOOT_B_LEFT} - 1; saveenv"
    board.set({**FOREIGN, "todo": count})
    seen = []
    for _ in range(3):
        newest = board.copy(flags(board).index(max(flags(board))))
        store(board).commit(TRIAL)
        assert newest in (board.copy(0), board.copy(1))
        seen.append(flags(board))
        newest = board.copy(flags(board).index(max(flags(board))))
        assert board.power_on().words is None
        assert newest in (board.copy(0), board.copy(1))
        seen.append(flags(board))
        assert store(board).read().left == {"A": 10, "B": 2}
        assert {name: board.env().get(name) for name in FOREIGN} == FOREIGN
    assert seen == [(2, 1), (2, 3), (4, 3), (4, 5), (6, 5), (6, 7)]


@pytest.mark.parametrize("before", [(253, 254), (254, 255), (255, 0), (0, 255), (255, 254), (7, 7)])
def test_the_flag_wraps_alike_on_both_sides(bench: MmcBench, before: tuple[int, int]) -> None:
    board = bench.board()
    for index, name in enumerate(("one", "two")):
        board.make_copy(index, {**board.defaults, "which": name, "todo": "echo loaded ${which}; setenv n 1; saveenv"}, before[index])
    newer = choose(*before, Scheme.INCREMENTAL)
    assert board.env()["which"] == ("one", "two")[newer]
    boot = board.power_on()
    assert f"loaded {('one', 'two')[newer]}" in boot.console
    saved = flags(board)
    assert saved[newer] == before[newer]
    assert saved[1 - newer] == (before[newer] + 1) % 256
    store(board).commit(CONFIRMED)
    assert flags(board)[newer] == (before[newer] + 2) % 256
    assert (board.env()["n"], board.env()["BOOT_ORDER"]) == ("1", "B A")
    assert f"loaded {('one', 'two')[newer]}" in board.power_on().console


@pytest.mark.parametrize("torn", [0, 1])
def test_a_commit_that_was_cut_off_leaves_uboot_on_the_old_copy(bench: MmcBench, torn: int) -> None:
    board = bench.board()
    board.make_copy(1 - torn, {**board.defaults, "which": "old", "todo": "echo loaded ${which}; setenv new 1; saveenv"}, 4)
    board.make_copy(torn, {**board.defaults, "which": "older"}, 3)
    old = board.copy(torn)
    store(board).commit(TRIAL)
    # The first sector reached the medium, the others did not.
    board.write_copy(torn, old[512:], at=512)
    boot = board.power_on()
    assert "Loading Environment from MMC... OK" in boot.console
    assert "loaded old" in boot.console
    # U-Boot wrote over the torn copy.
    assert store(board).invalid_copies() == ()
    assert (flags(board)[torn], board.env()["new"]) == (5, "1")


@pytest.mark.parametrize("torn", [0, 1])
def test_a_saveenv_that_was_cut_off_leaves_abupdate_on_the_old_copy(bench: MmcBench, torn: int) -> None:
    board = bench.board()
    board.make_copy(1 - torn, {**board.defaults, "todo": "setenv BOOT_B_LEFT 2; setenv long xxxxxxxx; saveenv"}, 4)
    board.make_copy(torn, board.defaults, 3)
    store(board).commit(TRIAL)
    old = board.copy(1 - torn)
    board.power_on()
    assert flags(board)[1 - torn] == 6
    board.write_copy(1 - torn, old[1024:], at=1024)
    assert store(board).invalid_copies() == (1 - torn,)
    assert store(board).read().left == {"A": 10, "B": 3}
    store(board).commit(CONFIRMED)
    assert flags(board) == ((5, 6) if torn == 0 else (6, 5))
    assert store(board).read().trial is None


def test_both_copies_damaged_uboot_boots_with_its_defaults_and_a_rebuild_gives_them_back(bench: MmcBench, tmp_path: Path) -> None:
    board = bench.board()
    initial = tmp_path / "u-boot-initial-env"
    initial.write_text("".join(f"{name}={value}\n" for name, value in board.defaults.items()))
    rebuilt = UBootStore(board.config, SLOTS, lock_path=tmp_path / "lock", default_environment=initial)
    boot = board.power_on()
    assert "bad CRC, using default environment" in boot.console
    assert "ran bootcmd" in boot.console
    rebuilt.rebuild(CONFIRMED)
    boot = do(board, "echo found ${BOOT_ORDER} ${BOOT_B_LEFT}")
    assert "found B A a" in boot.console
    assert {name: board.env().get(name) for name in board.defaults} == board.defaults


def test_fw_setenv_and_saveenv_and_a_commit_agree_on_one_environment(bench: MmcBench) -> None:
    board = bench.board()
    board.set({"todo": "setenv by_uboot 1; saveenv"})
    board.setenv("by_fw_setenv", "2")
    board.power_on()
    store(board).commit(TRIAL)
    board.setenv("again", "3")
    boot = do(board, "echo found ${by_uboot} ${by_fw_setenv} ${again} ${BOOT_TRIAL}")
    assert "found 1 2 3 B" in boot.console


def test_bootcount_is_decimal_and_left_hexadecimal_side_by_side(bench: MmcBench) -> None:
    """U-Boot counts 9, 10, 11 where a trial is under way; abupdate's counters beside it are read as 0x10 and written as such."""
    board = bench.board()
    todo = "echo left ${BOOT_A_LEFT} count ${bootcount}; setexpr BOOT_A_LEFT ${BOOT_A_LEFT} - 1; saveenv"
    board.set({"upgrade_available": "1", "bootlimit": "11", "bootcount": "8", "todo": todo, "altbootcmd": "echo ran altbootcmd; poweroff"})
    store(board).commit(BootState(("A", "B"), {"A": 16, "B": 10}, None, TrialPolicy(3, 16, 120)))
    said = [board.power_on().console for _ in range(4)]
    assert ["left 10 count 9" in said[0], "left f count 10" in said[1], "left e count 11" in said[2]] == [True] * 3
    assert ("ran altbootcmd" in said[3], "ran bootcmd" in said[3]) == (True, False)
    assert "Warning: Bootlimit (11) exceeded. Using altbootcmd." in said[3]
    env = board.env()
    assert (env["bootcount"], env["BOOT_A_LEFT"], store(board).read().left["A"]) == ("12", "d", 13)
    store(board).commit(CONFIRMED)
    assert board.env() == {**env, "BOOT_ORDER": "B A", "BOOT_A_LEFT": "a", "BOOT_BUDGET": "a"}


def test_nothing_is_counted_by_uboot_itself_without_an_upgrade(bench: MmcBench) -> None:
    board = bench.board()
    board.set({"bootlimit": "1", "bootcount": "5", "todo": "echo count ${bootcount}", "altbootcmd": "echo ran altbootcmd; poweroff"})
    before = board.copy(0), board.copy(1)
    for _ in range(2):
        assert "count 1\n" in board.power_on().console
    assert (board.copy(0), board.copy(1)) == before


def test_the_card_holds_the_copies_where_the_bench_says(bench: MmcBench) -> None:
    board = bench.board()
    board.set({"todo": "setenv marker here; saveenv"})
    board.power_on()
    raw = board.disk.read_bytes()
    assert raw.count(b"marker=here\0") == 1
    place = raw.index(b"marker=here\0")
    assert any(offset <= place < offset + ENV_BYTES for offset in COPY_OFFSETS)
