"""The GRUB hook on Debian's GRUB: which slot boots, what is counted, what is never touched, and that the model says the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from abupdate.bootloaders.grub import GrubStore
from abupdate.formats.grubenv import SECTOR_BYTES, SIGNATURE
from abupdate.model import BootState, TrialPolicy
from tests.qemu.forgetful_disk import forgetful_disk
from tests.qemu.grub_bench import HOOK, Bench, Board
from tests.qemu.hookcase import GONE, GOOD, JUNK, NO_INITRD, RUINED, Case, told, without
from tests.sim import grub_hook_model

RANDOM_STATES = 30

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

CONFIRMED = {"ORDER": "A B", "A_LEFT": "10", "B_LEFT": "10", "TRIES": "03", "BUDGET": "10", "TIMEOUT": "120"}
TRIAL = {**CONFIRMED, "ORDER": "B A", "B_LEFT": "03", "TRIAL": "B", "FLOOR": "31"}
FOREIGN = {"saved_entry": "Debian, with Linux 6.1", "path": "C:\\dir", "next_entry": "", "XA_LEFT": "7", "A_OK": "1", "abu_part_A": "gpt99"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("grub"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("grub-real"), real=True)


# In each `./tests/run`; the others, and the same under UEFI, in `--all`.
FEW = {
    "fresh board: nothing counted or written": Case({"foreign": "1"}, "A"),
    "confirmed is counted": Case(CONFIRMED, "A", {"A_LEFT": "09"}),
    "trial is counted": Case(TRIAL, "B", {"B_LEFT": "02"}, trial=True),
    "trial used up": Case({**TRIAL, "B_LEFT": "00"}, "A", {"A_LEFT": "09"}),
    "kernel missing on trial": Case(TRIAL, "A", {"A_LEFT": "09", "B_LEFT": "02"}, b=GONE, failed="B"),
    "write-protected: never the trial": Case(TRIAL, "A", readonly=True, unsaved=True),
    "no kernel anywhere": Case(TRIAL, None, {"A_LEFT": "10", "B_LEFT": "02"}, a=GONE, b=GONE),
}
MANY = {
    "fresh board, A empty": Case({"foreign": "1"}, "B", a=RUINED, failed="A"),
    "empty block": Case({}, "A"),
    "confirmed, one digit as written by hand": Case({**CONFIRMED, "A_LEFT": "9"}, "A", {"A_LEFT": "08"}),
    "confirmed, zeros in front": Case({**CONFIRMED, "A_LEFT": "0008"}, "A", {"A_LEFT": "07"}),
    "the largest count": Case({**CONFIRMED, "A_LEFT": "15"}, "A", {"A_LEFT": "14"}),
    "a larger count is the largest": Case({**CONFIRMED, "A_LEFT": "99"}, "A", {"A_LEFT": "14"}),
    "a much larger count": Case({**CONFIRMED, "A_LEFT": "12345678901234567890"}, "A", {"A_LEFT": "14"}),
    "confirmed used up: the other good one": Case({**CONFIRMED, "A_LEFT": "00"}, "B", {"B_LEFT": "09"}),
    "budget 0 is not counted": Case({**CONFIRMED, "BUDGET": "0", "A_LEFT": "01"}, "A"),
    "budget 0, nothing left": Case({**CONFIRMED, "BUDGET": "0", "A_LEFT": "00"}, "B"),
    "budget 0, trial is counted": Case({**TRIAL, "BUDGET": "0"}, "B", {"B_LEFT": "02"}, trial=True),
    "trial, last try": Case({**TRIAL, "B_LEFT": "01"}, "B", {"B_LEFT": "00"}, trial=True),
    "trial of A": Case({**TRIAL, "ORDER": "A B", "TRIAL": "A"}, "A", {"A_LEFT": "09"}, trial=True),
    "trial not in the order": Case({**TRIAL, "ORDER": "A"}, "A", {"A_LEFT": "09"}),
    "trial of an unknown slot": Case({**TRIAL, "TRIAL": "C"}, "B", {"B_LEFT": "02"}),
    "initrd missing on trial": Case(TRIAL, "A", {"A_LEFT": "09", "B_LEFT": "02"}, b=NO_INITRD, failed="B"),
    "junk for a kernel on trial": Case(TRIAL, "A", {"A_LEFT": "09", "B_LEFT": "02"}, b=JUNK, failed="B"),
    "no file system on trial": Case(TRIAL, "A", {"A_LEFT": "09", "B_LEFT": "02"}, b=RUINED, failed="B"),
    "kernel of the confirmed slot missing": Case(CONFIRMED, "B", {"A_LEFT": "09", "B_LEFT": "09"}, a=GONE, failed="A"),
    "write-protected: confirmed boots": Case(CONFIRMED, "A", readonly=True, unsaved=True),
    "write-protected, budget 0": Case({**TRIAL, "BUDGET": "0"}, "A", readonly=True, unsaved=True),
    "all used up": Case({**CONFIRMED, "A_LEFT": "00", "B_LEFT": "00"}, "A", {"A_LEFT": "10", "B_LEFT": "10"}),
    "all used up, first one gone": Case(
        {**CONFIRMED, "A_LEFT": "00", "B_LEFT": "00"}, "B", {"A_LEFT": "10", "B_LEFT": "10"}, a=GONE, failed="A"
    ),
    "all used up with a trial": Case({**TRIAL, "A_LEFT": "00", "B_LEFT": "00"}, "A", {"A_LEFT": "10"}),
    "all used up, larger budget": Case({**CONFIRMED, "BUDGET": "30", "A_LEFT": "00", "B_LEFT": "0"}, "A", {"A_LEFT": "15", "B_LEFT": "15"}),
    "all used up, budget 0": Case({**CONFIRMED, "BUDGET": "0", "A_LEFT": "00", "B_LEFT": "00"}, "A", {"A_LEFT": "01", "B_LEFT": "01"}),
    "all used up, write-protected": Case({**CONFIRMED, "A_LEFT": "00", "B_LEFT": "00"}, "A", readonly=True, unsaved=True),
    "only an exhausted trial in the order": Case({**TRIAL, "ORDER": "B", "B_LEFT": "00"}, "A"),
    "no known slot in the order": Case({**CONFIRMED, "ORDER": "X * -f"}, "A"),
    "order missing": Case(without(CONFIRMED, "ORDER"), "A", {"A_LEFT": "09"}),
    "left missing": Case(without(CONFIRMED, "A_LEFT"), "A", {"A_LEFT": "09"}),
    "left without a value": Case({**CONFIRMED, "A_LEFT": ""}, "A", {"A_LEFT": "09"}),
    "left of the other missing": Case(without({**CONFIRMED, "A_LEFT": "00"}, "B_LEFT"), "B", {"B_LEFT": "09"}),
    "left is no number": Case({**CONFIRMED, "A_LEFT": "yes"}, "B", {"B_LEFT": "09"}),
    "left is a hexadecimal number": Case({**CONFIRMED, "A_LEFT": "0x3"}, "B", {"B_LEFT": "09"}),
    "budget missing": Case(without({**CONFIRMED, "A_LEFT": "00", "B_LEFT": "00"}, "BUDGET"), "A", {"A_LEFT": "10", "B_LEFT": "10"}),
    "timeout missing": Case(without(TRIAL, "TIMEOUT"), "B", {"B_LEFT": "02"}, trial=True),
    "timeout 0": Case({**TRIAL, "TIMEOUT": "0"}, "B", {"B_LEFT": "02"}, trial=True),
    "timeout with zeros in front": Case({**TRIAL, "TIMEOUT": "0090"}, "B", {"B_LEFT": "02"}, trial=True),
    "timeout is no number": Case({**TRIAL, "TIMEOUT": "soon"}, "B", {"B_LEFT": "02"}, trial=True),
    "only the trial variable": Case({"TRIAL": "B"}, "A", {"A_LEFT": "09"}),
    "foreign variables": Case({**FOREIGN, **TRIAL}, "B", {"B_LEFT": "02"}, trial=True),
    "foreign variables behind": Case({**TRIAL, **FOREIGN}, "B", {"B_LEFT": "02"}, trial=True),
}


def judged(case: Case, board: Board, *, uefi: bool = False) -> None:
    """Boot once; the case, the model and the board say the same."""
    board.set(case.env)
    before = board.pull()
    expected = {**case.env, **case.then}

    boot = board.boot(readonly=case.readonly, uefi=uefi)
    said = grub_hook_model.boot(case.env, case.loads, can_save=not case.readonly)

    args = boot.args
    assert args.get("abupdate.slot") == case.slot == said.slot, boot.console
    assert said.env == expected
    assert board.env() == expected, boot.console
    if expected == case.env:
        assert board.pull() == before
    if case.slot is None:
        return
    told(case, said, args, "ttyS0")
    assert f"abupdate: slot {case.slot} {'trial' if case.trial else 'confirmed'}" in boot.console


@pytest.mark.parametrize("name", FEW)
def test_decision(bench: Bench, name: str) -> None:
    judged(FEW[name], bench.board(FEW[name].a, FEW[name].b))


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_decision_in_odd_states(bench: Bench, name: str) -> None:
    judged(MANY[name], bench.board(MANY[name].a, MANY[name].b))


def test_debians_kernel_boots_on_trial_under_bios(real: Bench) -> None:
    judged(FEW["trial is counted"], real.board())


def test_debians_kernel_boots_on_trial_under_uefi(real: Bench) -> None:
    judged(FEW["trial is counted"], real.board(), uefi=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trial used up", "kernel missing on trial", "write-protected: never the trial", "no kernel anywhere"])
def test_decision_under_uefi(real: Bench, name: str) -> None:
    judged(FEW[name], real.board(FEW[name].a, FEW[name].b), uefi=True)


@pytest.mark.slow
@pytest.mark.parametrize("b", [JUNK, RUINED, NO_INITRD])
def test_what_is_no_kernel_is_passed_over_under_uefi(real: Bench, b: str) -> None:
    judged(Case(TRIAL, "A", {"A_LEFT": "09", "B_LEFT": "02"}, b=b, failed="B"), real.board(boot_b=b), uefi=True)


@pytest.mark.slow
def test_random_states_agree_with_the_model(bench: Bench) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    for index in range(RANDOM_STATES):
        choices = {
            "ORDER": ["A B", "B A", "A", "B", "B C A"],
            "A_LEFT": ["0", "00", "01", "1", "10", "16", "junk"],
            "B_LEFT": ["00", "01", "03", "99", ""],
            "TRIAL": ["A", "B", ""],
            "BUDGET": ["0", "3", "10", "20"],
            "TIMEOUT": ["0", "9", "077", "99999", "100000"],
        }
        env = {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.8}
        env["foreign"] = "kept"
        names = list(env)
        draw.shuffle(names)
        env = {name: env[name] for name in names}
        a, b = draw.choice([GOOD, GOOD, GONE]), draw.choice([GOOD, GOOD, JUNK])
        readonly = draw.random() < 0.2
        board = bench.board(a, b)
        board.set(env)
        boot = board.boot(readonly=readonly)
        said = grub_hook_model.boot(env, [slot for slot, kind in (("A", a), ("B", b)) if kind == GOOD], can_save=not readonly)
        got = {
            "slot": boot.args.get("abupdate.slot"),
            "trial": "abupdate.trial" in boot.args,
            "timeout_s": int(boot.args.get("abupdate.boot_timeout", "0")),
            "env": board.env(),
        }
        wanted = {"slot": said.slot, "trial": said.trial, "timeout_s": said.timeout_s, "env": said.env}
        assert got == wanted, f"seed {seed}, state {index}: {env} {a} {b} readonly={readonly}\n{boot.console}"


def test_what_the_store_commits_is_counted_in_its_first_sector_and_read_back(bench: Bench) -> None:
    board = bench.board()
    board.set(FOREIGN)
    store = GrubStore(board.file, ("A", "B"))
    state = BootState(("B", "A"), {"A": 10, "B": 2}, "B", TrialPolicy(2, 10, 90), 7, verity={"B": "5a" * 32})
    store.commit(state)
    board.push()
    committed = board.pull()
    boot = board.boot()
    assert (boot.args["abupdate.slot"], boot.args["abupdate.trial"], boot.args["abupdate.boot_timeout"]) == ("B", "1", "90")
    assert boot.args["abupdate.verity"] == "5a" * 32
    counted = board.pull()
    # Two digits, and nothing else: a torn write could not be told from a whole one.
    assert [at for at in range(len(counted)) if counted[at] != committed[at]] == [committed.index(b"B_LEFT=02") + 8]
    seen = store.read()
    assert (seen.left, seen.trial, seen.verity) == ({"A": 10, "B": 1}, "B", {"B": "5a" * 32})
    assert board.env().items() >= FOREIGN.items()


@pytest.mark.slow
def test_counting_ends_in_the_fallback_and_a_refill_restores_it(bench: Bench) -> None:
    board = bench.board()
    board.set({**TRIAL, **FOREIGN})
    assert [board.boot().args["abupdate.slot"] for _ in range(4)] == ["B", "B", "B", "A"]
    store = GrubStore(board.file, ("A", "B"))
    board.pull()
    found = store.read()
    assert found.left == {"A": 9, "B": 0}
    store.commit(BootState(("A",), {"A": 10, "B": 0}))
    board.push()
    assert board.boot().args["abupdate.slot"] == "A"
    assert board.env()["A_LEFT"] == "09"
    assert board.env().items() >= FOREIGN.items()


@pytest.mark.slow
def test_confirmed_slot_that_never_comes_up_ends_on_the_other(bench: Bench) -> None:
    board = bench.board()
    board.set({**CONFIRMED, "BUDGET": "3", "A_LEFT": "02", "B_LEFT": "02"})
    assert [board.boot().args["abupdate.slot"] for _ in range(5)] == ["A", "A", "B", "B", "A"]
    assert (board.env()["A_LEFT"], board.env()["B_LEFT"]) == ("03", "03")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["signature", "zeros"])
@pytest.mark.parametrize("a", [GOOD, GONE])
def test_damaged_block_boots_a_then_b_never_a_trial_and_nothing_is_written(bench: Bench, damage: str, a: str) -> None:
    board = bench.board(boot_a=a)
    board.set(TRIAL)
    data = board.pull()
    board.push(b"X" + data[1:] if damage == "signature" else bytes(len(data)))
    before = board.disk.read_bytes()
    boot = board.boot()
    said = grub_hook_model.boot(None, "B" if a == GONE else "AB")
    assert boot.args["abupdate.slot"] == said.slot == ("B" if a == GONE else "A")
    assert boot.args.get("abupdate.failed", "") == ",".join(said.failed)
    assert "abupdate.trial" not in boot.args
    assert board.disk.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("env", [CONFIRMED, TRIAL], ids=["confirmed", "trial"])
def test_write_that_is_acknowledged_and_lost_counts_as_none(bench: Bench, env: dict[str, str]) -> None:
    board = bench.board()
    board.set(env)
    socket = board.disk.with_name("forgetful.sock")
    with forgetful_disk(socket, board.disk.read_bytes()) as dropped:
        boot = board.boot(nbd=socket)
    assert dropped
    assert (boot.args["abupdate.slot"], boot.args.get("abupdate.unsaved")) == ("A", "1")
    assert "abupdate.trial" not in boot.args


@pytest.mark.slow
def test_full_block_in_which_the_counter_is_missing_starts_no_trial(bench: Bench) -> None:
    board = bench.board()
    env = without(TRIAL, "B_LEFT")
    used = len(SIGNATURE) + 69 + sum(len(f"{name}={value}\n") for name, value in env.items())
    env["filler"] = "x" * (2 * SECTOR_BYTES - used - len("filler=\n"))
    board.set(env)
    boot = board.boot()
    assert (boot.args["abupdate.slot"], boot.args.get("abupdate.unsaved")) == ("A", "1")
    assert board.env() == {**env, "A_LEFT": "09"}


@pytest.mark.slow
def test_raucs_script_and_the_dialect_mean_the_same(tmp_path: Path) -> None:
    board = Bench(tmp_path, hook=Path(__file__).with_name("rauc_grub.cfg")).board()
    board.set({**FOREIGN, "A_OK": "1", "A_TRY": "0", "B_OK": "0", "B_TRY": "0", "ORDER": "A B"})
    store = GrubStore(board.file, ("A", "B"), "rauc")

    def boots() -> str | None:
        board.push()
        said = grub_hook_model.rauc_boot(board.env())
        slot = board.boot().args.get("rauc.slot")
        assert (slot, board.env()) == (said.slot, said.env)
        return slot

    assert boots() == "A"
    assert store.read().left == {"A": 0, "B": 0}
    # The service refills; an update is armed, tried once, and left.
    store.commit(BootState(("A",), {"A": 1, "B": 0}))
    assert boots() == "A"
    store.commit(BootState(("B", "A"), {"A": 1, "B": 1}, "B"))
    assert [boots(), boots()] == ["B", "A"]
    assert (store.read().left, store.read().trial) == ({"A": 0, "B": 0}, "B")
    # Armed anew and confirmed.
    store.commit(BootState(("B", "A"), {"A": 1, "B": 1}, "B"))
    assert boots() == "B"
    store.commit(BootState(("B", "A"), {"A": 1, "B": 1}))
    assert boots() == "B"
    # Nobody says that a slot works: the other one, then none, and each good one has its try back.
    assert [boots(), boots(), boots()] == ["A", None, "B"]


def unchecked(folder: Path, *, uefi: bool) -> Board:
    """As if B's initramfs were there and its blocks not: the hook without its look beforehand."""
    text = HOOK.read_text()
    careless = text.replace('! -s "($abu_disk,$abu_part)$abu_initrd"', '-n ""')
    assert careless != text
    hook = folder / "grub.cfg"
    hook.write_text(careless)
    return Bench(folder, real=uefi, hook=hook).board(boot_b=NO_INITRD)


@pytest.mark.slow
def test_kernel_whose_initramfs_cannot_be_read_is_forgotten(tmp_path: Path) -> None:
    judged(MANY["initrd missing on trial"], unchecked(tmp_path, uefi=False))


@pytest.mark.slow
def test_initramfs_that_cannot_be_read_costs_each_try_a_reset_under_uefi(tmp_path: Path) -> None:
    board = unchecked(tmp_path, uefi=True)
    board.set(TRIAL)
    tries = int(TRIAL["B_LEFT"])
    for left in reversed(range(tries)):
        boot = board.boot(uefi=True)
        assert "slot B could not be started and stays in memory, reset" in boot.console
        assert int(board.env()["B_LEFT"]) == left
    assert board.boot(uefi=True).args["abupdate.slot"] == "A"
