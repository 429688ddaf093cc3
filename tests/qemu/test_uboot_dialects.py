"""Boards that run the boot scripts of Mender's, SWUpdate's or RAUC's pattern, on a U-Boot that saves and counts by itself; abupdate's store
on the other side, and the simulator's models beside both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from abupdate.bootloaders.menderenv import Mender
from abupdate.bootloaders.swupdateenv import SWUpdate
from abupdate.bootloaders.uboot import UBootStore
from abupdate.bootloaders.ubootdialect import Dialect, Native
from abupdate.model import BootState, TrialPolicy
from tests.qemu.hookcase import GONE, GOOD, HANG, JUNK
from tests.qemu.mmc_bench import MmcBench, MmcBoard
from tests.qemu.test_uboot_saveenv import ARM
from tests.qemu.uboot_bench import ROOT, Boot, run
from tests.sim import uboot_counting_model as model

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]

SLOTS = ("A", "B")
HOOKS = ROOT / "bootloader-hooks" / "uboot"
# Ten and more, so that decimal and hexadecimal numbers of a partition differ.
PARTS = model.PARTS
ADAPTED = {"abu_part_A=3 ": "abu_part_A=10", "abu_part_B=4\n": "abu_part_B=11\n"}
ADAPTED |= {"abu_hex_A=3": "abu_hex_A=a", "abu_hex_B=4": "abu_hex_B=b"}
DIALECTS: dict[str, Dialect] = {
    "mender": Mender(SLOTS, PARTS),
    "swupdate": SWUpdate(SLOTS, "rootfs_copy", model.COPIES),
    "rauc": Native(SLOTS, rauc=True),
}
RANDOM_STATES = 8
GOOD_A = BootState(("A",), {"A": 1, "B": 0}, policy=TrialPolicy(2, 0, 90))
ARMED = BootState(("B", "A"), {"A": 1, "B": 2}, "B", TrialPolicy(2, 0, 90))
CONFIRMED = BootState(("B", "A"), {"A": 1, "B": 1}, policy=TrialPolicy(2, 0, 90))


class Rig:
    """One dialect's boards."""

    def __init__(self, name: str, folder: Path, before: str = "") -> None:
        self.name = name
        self.dialect = DIALECTS[name]
        text = (HOOKS / f"{name}.cmd").read_text()
        for old, new in ADAPTED.items():
            text = text.replace(old, new)
        script = folder / f"{name}.cmd"
        script.write_text(before + text)
        self._bench = MmcBench(folder, script)

    def board(self, boot_a: str = GOOD, boot_b: str = GOOD, **env: str) -> MmcBoard:
        """A card whose slots' boot partitions are 10 and 11; nothing in its environment but U-Boot's defaults and `env`."""
        board = self._bench.board(boot_a, boot_b)
        run("/usr/sbin/sgdisk", "-r3:10", "-r4:11", board.disk)
        board.set(env)
        return board

    def store(self, board: MmcBoard) -> UBootStore:
        return UBootStore(board.config, SLOTS, dialect=self.dialect, lock_path=board.disk.with_name("lock"))


def rig_of(name: str, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module", params=["mender", "swupdate"])
def counted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mmc_uboot: Path) -> Rig:
    """Boards whose U-Boot counts by itself."""
    return rig_of(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def rauc(tmp_path_factory: pytest.TempPathFactory, mmc_uboot: Path) -> Rig:
    return rig_of("rauc", tmp_path_factory)


def slot_of(boot: Boot) -> tuple[str | None, bool]:
    """Which slot's kernel ran, and whether it was told that it is on trial. The script must have run without a word of complaint."""
    for word in ("syntax error", "Unknown command", "ERROR"):
        assert word not in boot.console, boot.console
    return boot.args.get("abupdate.slot"), "abupdate.trial" in boot.args


def started(rig: Rig, board: MmcBoard) -> None:
    """The first start, which puts into the environment what is missing."""
    assert slot_of(board.power_on()) == ("A", False)
    rig.store(board).commit(GOOD_A)


def bootable(rig: Rig, board: MmcBoard) -> MmcBoard:
    """The variables that a first start would have stored."""
    board.set({"mender_boot_part": "10", "mender_boot_part_hex": "a"} if rig.name == "mender" else {"rootfs_copy": "1", "ustate": "0"})
    return board


def test_first_start_leaves_a_fresh_board_that_abupdate_can_read(counted: Rig) -> None:
    board = counted.board(mender_check_saveenv_canary="1")
    boot = board.power_on()
    assert slot_of(boot) == ("A", False)
    assert (boot.args["panic"], boot.args["root"], boot.args["console"]) == ("10", "PARTLABEL=rootfs_a", "ttyAMA0")
    state = counted.store(board).read()
    assert (state.order, state.trial, state.fresh) == (("A",), None, True)
    assert not any(name.startswith("abu_") for name in board.env())
    counted.store(board).check_room(ARMED)
    before = board.copy(0), board.copy(1)
    assert slot_of(board.power_on()) == ("A", False)
    assert (board.copy(0), board.copy(1)) == before


def test_canary_that_was_asked_for_is_stored_at_the_first_start(tmp_path_factory: pytest.TempPathFactory, mmc_uboot: Path) -> None:
    rig = rig_of("mender", tmp_path_factory)
    board = rig.board(mender_check_saveenv_canary="1", mender_boot_part="10", mender_boot_part_hex="a")
    assert any("canary" in finding.text for finding in rig.store(board).inspect())
    assert slot_of(board.power_on()) == ("A", False)
    assert not any("canary" in finding.text for finding in rig.store(board).inspect())
    rig.store(board).commit(ARMED)
    assert (board.env()["mender_boot_part"], board.env()["mender_boot_part_hex"]) == ("11", "b")


def test_trial_boots_counted_and_is_confirmed(counted: Rig) -> None:
    board = counted.board()
    started(counted, board)
    counted.store(board).commit(ARMED)
    boot = board.power_on()
    assert slot_of(boot) == ("B", True)
    assert boot.args["root"] == "PARTLABEL=rootfs_b"
    assert boot.args["abupdate.boot_timeout"] == boot.args["watchdog.open_timeout"] == "90"
    state = counted.store(board).read()
    assert (state.order, dict(state.left), state.trial) == (("B", "A"), {"A": 1, "B": 1}, "B")
    counted.store(board).commit(CONFIRMED)
    before = board.copy(0), board.copy(1)
    for _ in range(4):
        assert slot_of(board.power_on()) == ("B", False)
    assert (board.copy(0), board.copy(1)) == before
    assert counted.store(board).read() == CONFIRMED


def test_tries_used_up_altbootcmd_goes_back_and_both_sides_say_so(counted: Rig) -> None:
    board = counted.board()
    started(counted, board)
    counted.store(board).commit(ARMED)
    assert [slot_of(board.power_on()) for _ in range(2)] == [("B", True)] * 2
    assert counted.store(board).read().left["B"] == 0
    boot = board.power_on()
    assert slot_of(boot) == ("A", False)
    assert "Using altbootcmd" in boot.console
    state = counted.store(board).read()
    assert (state.order, state.left["B"]) == (("A",), 0)
    assert state.trial == ("B" if counted.name == "swupdate" else None)
    assert board.env()["upgrade_available"] == board.env()["bootcount"] == "0"
    # Not the older copy either brings the trial back.
    assert board.copy(0)[5:] == board.copy(1)[5:]
    board.write_copy(0 if board.copy(0)[4] > board.copy(1)[4] else 1, b"\x55", at=100)
    assert slot_of(board.power_on()) == ("A", False)
    counted.store(board).commit(GOOD_A)
    assert counted.store(board).read() == GOOD_A
    assert board.env().get("ustate", "0") == "0"


def test_kernel_on_trial_that_does_not_load_costs_its_boots_and_then_the_good_slot_comes(counted: Rig) -> None:
    board = counted.board(boot_b=GONE)
    started(counted, board)
    counted.store(board).commit(ARMED)
    assert [board.power_on().words for _ in range(2)] == [None, None]
    assert slot_of(board.power_on()) == ("A", False)


def test_confirmed_kernel_that_does_not_load_leaves_the_device_on_the_other_slot(counted: Rig) -> None:
    board = counted.board(boot_b=GONE)
    started(counted, board)
    counted.store(board).commit(CONFIRMED)
    before = board.copy(0), board.copy(1)
    boot = board.power_on()
    assert slot_of(boot) == ("A", False)
    assert boot.args["abupdate.failed"] == "B"
    assert (board.copy(0), board.copy(1)) == before


def test_slot_that_is_not_noted_as_good_never_boots_for_one_that_does_not_load(counted: Rig) -> None:
    """It may hold half an update."""
    board = counted.board(boot_a=GONE)
    counted.store(bootable(counted, board)).commit(GOOD_A)
    boot = board.power_on()
    assert boot.words is None
    assert "no slot can be started, reset" in boot.console


def test_reverted_trial_never_boots_again(counted: Rig) -> None:
    board = counted.board()
    started(counted, board)
    counted.store(board).commit(ARMED)
    assert slot_of(board.power_on()) == ("B", True)
    counted.store(board).commit(GOOD_A)
    for _ in range(3):
        assert slot_of(board.power_on()) == ("A", False)
    assert counted.store(board).read() == GOOD_A


@pytest.mark.parametrize("name", ["mender", "swupdate"])
def test_u_boot_that_does_not_count_starts_no_trial(name: str, tmp_path: Path, mmc_uboot: Path) -> None:
    """Such a build leaves bootcount as it is stored; the script is all that can notice."""
    rig = Rig(name, tmp_path, before="setenv bootcount 0\n")
    board = rig.board()
    started(rig, board)
    rig.store(board).commit(ARMED)
    boot = board.power_on()
    assert slot_of(boot) == ("A", False)
    assert "does not count boots" in boot.console
    assert rig.store(board).read().order == ("A",)


def test_without_upgrade_available_nothing_is_on_trial(counted: Rig) -> None:
    """An old ustate of 1 must not send a board to its other slot."""
    board = counted.board()
    started(counted, board)
    counted.store(board).commit(ARMED)
    board.set({**board.env(), "upgrade_available": "0"})
    before = board.copy(0), board.copy(1)
    assert slot_of(board.power_on()) == ("B", False)
    assert (board.copy(0), board.copy(1)) == before


def test_write_protected_card_never_goes_back_to_the_trial_in_the_boot_that_ended_it(counted: Rig) -> None:
    board = counted.board()
    started(counted, board)
    counted.store(board).commit(ARMED)
    for _ in range(2):
        board.power_on()
    assert slot_of(board.power_on(readonly=True)) == ("A", False)


def test_watchdog_ends_trials_that_hang_until_altbootcmd_goes_back(counted: Rig) -> None:
    board = counted.board(boot_b=HANG, abu_arm=ARM)
    started(counted, board)
    counted.store(board).commit(BootState(("B", "A"), {"A": 1, "B": 2}, "B", TrialPolicy(2, 0, 3)))
    watched = board.boot_watched()
    assert [name for name, _ in watched.events if name != "RESET"] == ["WATCHDOG", "WATCHDOG", "SHUTDOWN"]
    assert watched.console.count("abupdate: watchdog armed, 3 s") == 2
    assert counted.store(board).read().order == ("A",)


def test_random_states_agree_with_the_model(counted: Rig) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    for number in range(RANDOM_STATES):
        part = draw.choice(["A", "B"])
        env = {"bootlimit": draw.choice(["1", "3", "10"]), "bootcount": draw.choice(["0", "1", "2", "3", "9", "10", "11"])}
        env |= {"upgrade_available": draw.choice(["0", "1", "1"]), "altbootcmd": "setenv abu_back yes; run bootcmd"}
        if counted.name == "mender":
            env |= {"mender_boot_part": str(PARTS[part]), "mender_boot_part_hex": f"{PARTS[part]:x}"}
        else:
            env |= {"rootfs_copy": model.COPIES[part], "ustate": draw.choice(["0", "1", "2", "3"])}
        env |= draw.choice(
            [{}, {"BOOT_ORDER": "A B"}, {"BOOT_ORDER": "B A"}, {"BOOT_ORDER": "A B", "BOOT_B_LEFT": "0"}, {"BOOT_ORDER": "A"}]
        )
        a, b = draw.choice([GOOD, GOOD, GONE]), draw.choice([GOOD, GOOD, JUNK])
        board = counted.board(a, b, **env)
        boot = board.power_on()
        said = model.boot(counted.name, env, [slot for slot, kind in (("A", a), ("B", b)) if kind == GOOD])
        got = (boot.args.get("abupdate.slot"), "abupdate.trial" in boot.args, {name: board.env().get(name) for name in env})
        last = said.saves[-1] if said.saves else env
        wanted = (None if said.resets else said.slot, said.trial and not said.resets, {name: last.get(name) for name in env})
        about = f"seed {seed}, state {number}: {env} {a} {b}\n{boot.console}"
        assert got == wanted, about
        assert max(board.copy(0)[4], board.copy(1)[4]) == 1 + len(said.saves), about


# ---- RAUC


RAUC_ARMED = BootState(("B", "A"), {"A": 9, "B": 2}, "B", TrialPolicy(2, 9, 90))


def test_rauc_trial_is_counted_confirmed_and_refilled(rauc: Rig) -> None:
    board = rauc.board()
    assert slot_of(board.power_on()) == ("A", False)
    assert rauc.store(board).read().left == {"A": 2, "B": 3}
    rauc.store(board).commit(RAUC_ARMED)
    boot = board.power_on()
    assert slot_of(boot) == ("B", True)
    assert (boot.args["rauc.slot"], boot.args["abupdate.boot_timeout"]) == ("B", "90")
    assert rauc.store(board).read().left == {"A": 9, "B": 1}
    confirmed = BootState(("B", "A"), {"A": 9, "B": 9}, policy=TrialPolicy(2, 9, 90))
    for _ in range(3):
        rauc.store(board).commit(confirmed)
        assert slot_of(board.power_on()) == ("B", False)
        assert rauc.store(board).read().left == {"A": 9, "B": 8}


def test_rauc_trial_used_up_falls_back_and_confirmed_boots_are_counted_too(rauc: Rig) -> None:
    board = rauc.board()
    rauc.store(board).commit(RAUC_ARMED)
    assert [slot_of(board.power_on()) for _ in range(3)] == [("B", True), ("B", True), ("A", False)]
    state = rauc.store(board).read()
    assert (state.left, state.trial) == ({"A": 8, "B": 0}, "B")


def test_rauc_counters_reset_when_all_are_used_never_bring_back_a_slot_that_is_out(rauc: Rig) -> None:
    """Step 3 of flash: out of the order as well as without boots, since the script gives them back."""
    board = rauc.board()
    rauc.store(board).commit(BootState(("A",), {"A": 1, "B": 0}, policy=TrialPolicy(2, 9, 90)))
    assert slot_of(board.power_on()) == ("A", False)
    reset = board.power_on()
    assert reset.words is None
    assert "all counters reset" in reset.console
    assert [slot_of(board.power_on())[0] for _ in range(3)] == ["A"] * 3


def test_letters_are_no_numbers_to_raucs_comparison(rauc: Rig) -> None:
    """Why the dialect stops at 9: our own script's `a` is 0 to this one."""
    board = rauc.board()
    board.set({"BOOT_ORDER": "A B", "BOOT_A_LEFT": "a", "BOOT_B_LEFT": "3"})
    assert slot_of(board.power_on()) == ("B", False)
    assert any("BOOT_A_LEFT is 'a'" in finding.text for finding in rauc.store(board).inspect())


def test_rauc_kernel_on_trial_that_does_not_load_costs_its_boots(rauc: Rig) -> None:
    board = rauc.board(boot_b=GONE)
    rauc.store(board).commit(RAUC_ARMED)
    assert [board.power_on().words for _ in range(2)] == [None, None]
    assert slot_of(board.power_on()) == ("A", False)
