"""The U-Boot hook on stock U-Boot: which slot boots, what is counted, what is never touched, and that the model says the same."""

from __future__ import annotations

import random

import pytest

from tests.qemu.forgetful_disk import forgetful_disk
from tests.qemu.hookcase import GONE, GOOD, HANG, JUNK, NO_INITRD, RUINED, Case, told, without
from tests.qemu.uboot_bench import COPY_OFFSETS, ENV_BYTES, Bench
from tests.sim import uboot_hook_model

RANDOM_STATES = 30

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]

FOREIGN = {
    "bootcmd_old": "if test \"${x}\" = 'y'; then run a; else echo $b; fi",
    "ipaddr": "dhcp",
    "ethaddr": "not an address",
    "baudrate": "9600",
    ".flags": "BOOT_A_LEFT:dr,BOOT_B_LEFT:dr",
    "path": "C:\\dir\\file",
    "XBOOT_A_LEFT": "7",
    "note": "BOOT_A_LEFT=6 BOOT_B_LEFT=6",
    "abu_part_A": "99",
}
CONFIRMED = {"BOOT_ORDER": "A B", "BOOT_A_LEFT": "a", "BOOT_B_LEFT": "a", "BOOT_TRIES": "3", "BOOT_BUDGET": "a", "BOOT_TIMEOUT": "78"}
TRIAL = {**CONFIRMED, "BOOT_ORDER": "B A", "BOOT_B_LEFT": "3", "BOOT_TRIAL": "B", "BOOT_FLOOR": "1f"}
ROOTS = {"BOOT_A_VERITY": "0a" * 32, "BOOT_B_VERITY": "0b" * 32}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("uboot"))


CASES = {
    "fresh board: nothing counted or written": Case({"foreign": "1"}, "A"),
    "fresh board, A empty": Case({"foreign": "1"}, "B", a=RUINED, failed="A"),
    "confirmed is counted": Case(CONFIRMED, "A", {"BOOT_A_LEFT": "9"}),
    "confirmed, two digits": Case({**CONFIRMED, "BOOT_A_LEFT": "20"}, "A", {"BOOT_A_LEFT": "1f"}),
    "confirmed, digits become fewer": Case({**CONFIRMED, "BOOT_A_LEFT": "10"}, "A", {"BOOT_A_LEFT": "0f"}),
    "prefix": Case({**CONFIRMED, "BOOT_A_LEFT": "0xb"}, "A", {"BOOT_A_LEFT": "00a"}),
    "more than two digits count as ff": Case({**CONFIRMED, "BOOT_A_LEFT": "1234"}, "A", {"BOOT_A_LEFT": "00fe"}),
    "confirmed used up: the other good one": Case({**CONFIRMED, "BOOT_A_LEFT": "0"}, "B", {"BOOT_B_LEFT": "9"}),
    "budget 0 is not counted": Case({**CONFIRMED, "BOOT_BUDGET": "0", "BOOT_A_LEFT": "1"}, "A"),
    "budget 0, nothing left": Case({**CONFIRMED, "BOOT_BUDGET": "0", "BOOT_A_LEFT": "0"}, "B"),
    "budget 0, trial is counted": Case({**TRIAL, "BOOT_BUDGET": "0"}, "B", {"BOOT_B_LEFT": "2"}, trial=True),
    "trial is counted": Case(TRIAL, "B", {"BOOT_B_LEFT": "2"}, trial=True),
    "trial, last try": Case({**TRIAL, "BOOT_B_LEFT": "1"}, "B", {"BOOT_B_LEFT": "0"}, trial=True),
    "trial used up": Case({**TRIAL, "BOOT_B_LEFT": "0"}, "A", {"BOOT_A_LEFT": "9"}),
    "trial of A": Case({**TRIAL, "BOOT_ORDER": "A B", "BOOT_TRIAL": "A"}, "A", {"BOOT_A_LEFT": "9"}, trial=True),
    "trial not in the order": Case({**TRIAL, "BOOT_ORDER": "A"}, "A", {"BOOT_A_LEFT": "9"}),
    "trial of an unknown slot": Case({**TRIAL, "BOOT_TRIAL": "C"}, "B", {"BOOT_B_LEFT": "2"}),
    "kernel missing on trial": Case(TRIAL, "A", {"BOOT_A_LEFT": "9", "BOOT_B_LEFT": "2"}, b=GONE, failed="B"),
    "initrd missing on trial": Case(TRIAL, "A", {"BOOT_A_LEFT": "9", "BOOT_B_LEFT": "2"}, b=NO_INITRD, failed="B"),
    "junk for a kernel on trial": Case(TRIAL, "A", {"BOOT_A_LEFT": "9", "BOOT_B_LEFT": "2"}, b=JUNK, failed="B"),
    "no file system on trial": Case(TRIAL, "A", {"BOOT_A_LEFT": "9", "BOOT_B_LEFT": "2"}, b=RUINED, failed="B"),
    "kernel of the confirmed slot missing": Case(CONFIRMED, "B", {"BOOT_A_LEFT": "9", "BOOT_B_LEFT": "9"}, a=GONE, failed="A"),
    "write-protected: confirmed boots": Case(CONFIRMED, "A", readonly=True, unsaved=True),
    "write-protected: never the trial": Case(TRIAL, "A", readonly=True, unsaved=True),
    "write-protected, budget 0": Case({**TRIAL, "BOOT_BUDGET": "0"}, "A", readonly=True, unsaved=True),
    "all used up": Case({**CONFIRMED, "BOOT_A_LEFT": "0", "BOOT_B_LEFT": "0"}, "A", {"BOOT_A_LEFT": "a", "BOOT_B_LEFT": "a"}),
    "all used up, first one gone": Case(
        {**CONFIRMED, "BOOT_A_LEFT": "0", "BOOT_B_LEFT": "0"}, "B", {"BOOT_A_LEFT": "a", "BOOT_B_LEFT": "a"}, a=GONE, failed="A"
    ),
    "all used up with a trial": Case({**TRIAL, "BOOT_A_LEFT": "0", "BOOT_B_LEFT": "0"}, "A", {"BOOT_A_LEFT": "a"}),
    "all used up, larger budget": Case(
        {**CONFIRMED, "BOOT_BUDGET": "1e", "BOOT_A_LEFT": "0", "BOOT_B_LEFT": "00"}, "A", {"BOOT_A_LEFT": "1e", "BOOT_B_LEFT": "1e"}
    ),
    "all used up, budget 0": Case(
        {**CONFIRMED, "BOOT_BUDGET": "0", "BOOT_A_LEFT": "0", "BOOT_B_LEFT": "0"}, "A", {"BOOT_A_LEFT": "1", "BOOT_B_LEFT": "1"}
    ),
    "all used up, write-protected": Case({**CONFIRMED, "BOOT_A_LEFT": "0", "BOOT_B_LEFT": "0"}, "A", readonly=True, unsaved=True),
    "no kernel anywhere": Case(TRIAL, None, {"BOOT_A_LEFT": "a", "BOOT_B_LEFT": "2"}, a=GONE, b=GONE),
    "only an exhausted trial in the order": Case({**TRIAL, "BOOT_ORDER": "B", "BOOT_B_LEFT": "0"}, "A"),
    "no known slot in the order": Case({**CONFIRMED, "BOOT_ORDER": "X Y"}, "A"),
    "order missing": Case(without(CONFIRMED, "BOOT_ORDER"), "A", {"BOOT_A_LEFT": "9"}),
    "left missing": Case(without(CONFIRMED, "BOOT_A_LEFT"), "A", {"BOOT_A_LEFT": "9"}),
    "left without a value": Case({**CONFIRMED, "BOOT_A_LEFT": ""}, "A", {"BOOT_A_LEFT": "9"}),
    "left of the other missing": Case(without({**CONFIRMED, "BOOT_A_LEFT": "0"}, "BOOT_B_LEFT"), "B", {"BOOT_B_LEFT": "9"}),
    "left missing, large budget": Case({**without(CONFIRMED, "BOOT_A_LEFT"), "BOOT_BUDGET": "64"}, "A", {"BOOT_A_LEFT": "63"}),
    "left is no number": Case({**CONFIRMED, "BOOT_A_LEFT": "yes"}, "B", {"BOOT_B_LEFT": "9"}),
    "budget missing": Case(
        without({**CONFIRMED, "BOOT_A_LEFT": "0", "BOOT_B_LEFT": "0"}, "BOOT_BUDGET"), "A", {"BOOT_A_LEFT": "a", "BOOT_B_LEFT": "a"}
    ),
    "timeout missing": Case(without(TRIAL, "BOOT_TIMEOUT"), "B", {"BOOT_B_LEFT": "2"}, trial=True),
    "timeout 0": Case({**TRIAL, "BOOT_TIMEOUT": "0"}, "B", {"BOOT_B_LEFT": "2"}, trial=True),
    "timeout 1005": Case({**TRIAL, "BOOT_TIMEOUT": "3ed"}, "B", {"BOOT_B_LEFT": "2"}, trial=True),
    "timeout too long": Case({**TRIAL, "BOOT_TIMEOUT": "ffff"}, "B", {"BOOT_B_LEFT": "2"}, trial=True),
    "only the trial variable": Case({"BOOT_TRIAL": "B"}, "A", {"BOOT_A_LEFT": "9"}),
    "foreign variables": Case({**FOREIGN, **TRIAL}, "B", {"BOOT_B_LEFT": "2"}, trial=True),
    "foreign variables behind": Case({**TRIAL, **FOREIGN}, "B", {"BOOT_B_LEFT": "2"}, trial=True),
    "left missing among foreign variables": Case({**FOREIGN, **without(TRIAL, "BOOT_B_LEFT")}, "B", {"BOOT_B_LEFT": "9"}, trial=True),
    "root hashes on trial": Case({**TRIAL, **ROOTS}, "B", {"BOOT_B_LEFT": "2"}, trial=True),
    "root hashes, kernel missing on trial": Case({**ROOTS, **TRIAL}, "A", {"BOOT_A_LEFT": "9", "BOOT_B_LEFT": "2"}, b=GONE, failed="B"),
    "root hash of the other slot": Case({**TRIAL, "BOOT_A_VERITY": "0a" * 32}, "B", {"BOOT_B_LEFT": "2"}, trial=True),
    "root hash, confirmed": Case({**CONFIRMED, **ROOTS}, "A", {"BOOT_A_LEFT": "9"}),
    "root hash on a board that was never written to": Case({"BOOT_A_VERITY": "0a" * 32}, "A"),
    "a thousand foreign variables": Case({**{f"v{n}": str(n) for n in range(1000)}, **TRIAL}, "B", {"BOOT_B_LEFT": "2"}, trial=True),
}


@pytest.mark.parametrize("name", CASES)
def test_decision(bench: Bench, name: str) -> None:
    case = CASES[name]
    board = bench.board(case.a, case.b)
    board.set(case.env)
    before = board.copy(0), board.copy(1)
    expected = {**case.env, **case.then}

    boot = board.boot(readonly=case.readonly)
    said = uboot_hook_model.boot(case.env, case.loads, can_save=not case.readonly)

    args = boot.args
    assert args.get("abupdate.slot") == case.slot == said.slot, boot.console
    assert said.env == expected
    # fw_printenv shows neither .flags nor variables without a value.
    assert board.env() == {name: value for name, value in expected.items() if value and name != ".flags"}
    if expected == case.env:
        assert (board.copy(0), board.copy(1)) == before
    else:
        assert dict(board.entries()) == expected
        assert board.entries()[-len(case.env) :] == [(name, expected[name]) for name in case.env]
    if case.slot is None:
        return
    told(case, said, args, "ttyAMA0")
    assert args.get("abupdate.verity", "") == case.env.get(f"BOOT_{case.slot}_VERITY", "")
    said_left = f" trial left {expected[f'BOOT_{case.slot}_LEFT']}" if case.trial else " confirmed left"
    assert f"abupdate: slot {case.slot}{said_left}" in boot.console


def test_random_states_agree_with_the_model(bench: Bench) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    for number in range(RANDOM_STATES):
        choices = {
            "BOOT_ORDER": ["A B", "B A", "A", "B", "B C A"],
            "BOOT_A_LEFT": ["0", "1", "a", "10", "junk"],
            "BOOT_B_LEFT": ["0", "1", "3", "ff", ""],
            "BOOT_TRIAL": ["A", "B", ""],
            "BOOT_BUDGET": ["0", "3", "a", "20"],
            "BOOT_TIMEOUT": ["0", "9", "a", "63", "64", "3e7", "3e8", "7fe"],
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
        said = uboot_hook_model.boot(env, [slot for slot, kind in (("A", a), ("B", b)) if kind == GOOD], can_save=not readonly)
        got = {
            "slot": boot.args.get("abupdate.slot"),
            "trial": "abupdate.trial" in boot.args,
            "timeout_s": int(boot.args.get("abupdate.boot_timeout", "0")),
            "env": dict(board.entries()),
        }
        wanted = {"slot": said.slot, "trial": said.trial, "timeout_s": said.timeout_s, "env": said.env}
        assert got == wanted, f"seed {seed}, state {number}: {env} {a} {b} readonly={readonly}\n{boot.console}"


def test_timeouts_reach_the_kernel_in_decimal() -> None:
    seconds = {
        name: uboot_hook_model.boot(CASES[name].env).timeout_s
        for name in ("timeout missing", "timeout 0", "timeout 1005", "timeout too long")
    }
    assert list(seconds.values()) == [120, 0, 1005, 2046]


def test_counting_ends_in_the_fallback_and_a_refill_restores_every_value(bench: Bench) -> None:
    board = bench.board()
    env = {**TRIAL, **without(FOREIGN, ".flags")}
    board.set(env)
    assert [board.boot().args["abupdate.slot"] for _ in range(4)] == ["B", "B", "B", "A"]
    assert (board.env()["BOOT_B_LEFT"], board.env()["BOOT_A_LEFT"]) == ("0", "9")
    board.setenv("BOOT_A_LEFT", "a")
    assert board.env() == {**env, "BOOT_B_LEFT": "0"}


def test_confirmed_slot_that_never_comes_up_ends_on_the_other(bench: Bench) -> None:
    board = bench.board()
    board.set({**CONFIRMED, "BOOT_BUDGET": "3", "BOOT_A_LEFT": "2", "BOOT_B_LEFT": "2"})
    assert [board.boot().args["abupdate.slot"] for _ in range(5)] == ["A", "A", "B", "B", "A"]
    assert (board.env()["BOOT_A_LEFT"], board.env()["BOOT_B_LEFT"]) == ("3", "3")


@pytest.mark.parametrize("flags", [(0, 1), (1, 0), (5, 5), (254, 255), (255, 254), (255, 0), (0, 255), (255, 1), (128, 0)])
def test_newer_copy_is_the_one_that_libubootenv_takes(bench: Bench, flags: tuple[int, int]) -> None:
    board = bench.board()
    for index, order in enumerate(("A B", "B A")):
        board.make_copy(index, {**CONFIRMED, "BOOT_ORDER": order}, flags[index])
    slot = board.env()["BOOT_ORDER"][0]
    newer, older = (0, 1) if slot == "A" else (1, 0)
    kept = board.copy(newer)

    assert board.boot().args["abupdate.slot"] == slot
    assert board.copy(newer) == kept
    assert board.copy(older)[4] == (flags[newer] + 1) % 256
    assert board.env() == {**CONFIRMED, "BOOT_ORDER": "A B" if slot == "A" else "B A", f"BOOT_{slot}_LEFT": "9"}


def test_flag_wraps(bench: Bench) -> None:
    board = bench.board()
    board.make_copy(0, CONFIRMED, 253)
    board.make_copy(1, CONFIRMED, 254)
    for left, flag in (("9", 255), ("8", 0), ("7", 1)):
        board.boot()
        assert board.env()["BOOT_A_LEFT"] == left
        assert flag in (board.copy(0)[4], board.copy(1)[4])


@pytest.mark.parametrize("torn", [0, 1])
@pytest.mark.parametrize("damage", ["torn", "bit", "erased", "checksum"])
def test_one_damaged_copy_is_gone_over(bench: Bench, torn: int, damage: str) -> None:
    board = bench.board()
    good = 1 - torn
    board.make_copy(good, {**FOREIGN, **TRIAL, "long": "x" * 4000}, 7)
    board.make_copy(torn, {**CONFIRMED, "BOOT_ORDER": "A", "long": "y" * 4000}, 8)
    match damage:
        case "torn":
            board.write_copy(torn, board.copy(good)[1024:], at=1024)
        case "bit":
            board.write_copy(torn, bytes([board.copy(torn)[-1] ^ 1]), at=ENV_BYTES - 1)
        case "erased":
            board.write_copy(torn, b"\xff" * ENV_BYTES)
        case _:
            board.write_copy(torn, bytes([board.copy(torn)[0] ^ 1]))
    kept = board.copy(good)

    assert board.boot().args["abupdate.slot"] == "B"
    assert board.copy(good) == kept
    assert board.copy(torn)[4] == 8
    assert board.env()["BOOT_B_LEFT"] == "2"


def test_both_copies_damaged_nothing_is_written(bench: Bench) -> None:
    board = bench.board(boot_a=GONE)
    board.set(TRIAL)
    for index in (0, 1):
        board.write_copy(index, b"\x55", at=100)
    before = board.disk.read_bytes()
    boot = board.boot()
    said = uboot_hook_model.boot(None, ["B"])
    assert boot.args["abupdate.slot"] == said.slot == "B"
    assert (boot.args["abupdate.failed"], said.env) == ("A", None)
    assert "abupdate.trial" not in boot.args
    assert board.disk.read_bytes() == before


@pytest.mark.parametrize("env", [CONFIRMED, TRIAL], ids=["confirmed", "trial"])
def test_write_that_is_acknowledged_and_lost_counts_as_none(bench: Bench, env: dict[str, str]) -> None:
    board = bench.board()
    board.set(env)
    socket = board.disk.with_name("forgetful.sock")
    with forgetful_disk(socket, board.disk.read_bytes()) as dropped:
        boot = board.boot(nbd=socket)
    assert (boot.args["abupdate.slot"], boot.args.get("abupdate.unsaved")) == ("A", "1")
    assert "abupdate.trial" not in boot.args
    assert {offset for offset, _ in dropped} == {COPY_OFFSETS[0]}


def _filler(env: dict[str, str], free: int) -> dict[str, str]:
    """The environment with one more variable, so that `free` bytes of a copy stay unused."""
    used = sum(len(name) + len(value) + 2 for name, value in env.items())
    return {**env, "filler": "x" * (ENV_BYTES - 5 - used - len("filler=") - 2 - free)}


@pytest.mark.parametrize("free", [0, 1])
def test_full_environment_is_counted_in_place(bench: Bench, free: int) -> None:
    board = bench.board()
    board.set(_filler(TRIAL, free))
    assert board.boot().args["abupdate.slot"] == "B"
    assert board.env() == {**_filler(TRIAL, free), "BOOT_B_LEFT": "2"}


@pytest.mark.parametrize(("free", "pad", "fits"), [(13, 0, False), (14, 0, True), (17, 0xFF, True)])
def test_variable_that_does_not_fit_costs_no_other_one(bench: Bench, free: int, pad: int, fits: bool) -> None:
    env = _filler(without(TRIAL, "BOOT_B_LEFT"), free)
    board = bench.board()
    board.make_copy(1, env, 1, pad=pad)
    before = board.copy(1)
    assert board.boot().args["abupdate.slot"] == ("B" if fits else "A")
    # Where B's counter finds no place, A's can still be changed in its own.
    assert board.env() == {**env, **({"BOOT_B_LEFT": "9"} if fits else {"BOOT_A_LEFT": "9"})}
    assert board.copy(1) == before


def test_what_fw_setenv_writes_is_counted_and_kept(bench: Bench) -> None:
    board = bench.board()
    board.set(without(TRIAL, "BOOT_TRIAL"))
    for name, value in {"BOOT_TRIAL": "B", "quoted": 'it\'s "$x"; reset', "aaa": "first", "zzz": "last"}.items():
        board.setenv(name, value)
    before = board.env()
    assert board.boot().args["abupdate.trial"] == "1"
    assert board.env() == {**before, "BOOT_B_LEFT": "2"}
    board.setenv("BOOT_TRIAL", "")
    boot = board.boot()
    assert "abupdate.trial" not in boot.args
    assert board.env() == {**before, "BOOT_TRIAL": "", "BOOT_B_LEFT": "1"}


def test_stock_uboot_finds_the_hook_by_itself(bench: Bench) -> None:
    board = bench.board()
    board.set(TRIAL)
    assert board.boot(stock=True).args["abupdate.slot"] == "B"
    assert board.env() == {**TRIAL, "BOOT_B_LEFT": "2"}


def test_watchdog_ends_a_kernel_that_hangs_until_the_tries_are_used_up(bench: Bench) -> None:
    board = bench.board(boot_b=HANG)
    board.set({**TRIAL, "BOOT_B_LEFT": "2", "BOOT_TIMEOUT": "3"})
    watched = board.boot_watched()
    assert [name for name, _ in watched.events if name != "RESET"] == ["WATCHDOG", "WATCHDOG", "SHUTDOWN"]
    between = watched.events[-1][1] - watched.events[0][1]
    # From the first expiry: U-Boot again (a second or two), three seconds of the second trial, U-Boot and the other slot.
    assert 3.0 <= between <= 30.0
    assert watched.console.count("abupdate: watchdog armed, 3 s") == 2
    assert watched.console.count("abupdate.trial=1 abupdate.boot_timeout=3 watchdog.open_timeout=3 i6300esb.heartbeat=3") == 2
    assert "abupdate: slot A confirmed left 9" in watched.console
    assert board.env() == {**TRIAL, "BOOT_TIMEOUT": "3", "BOOT_A_LEFT": "9", "BOOT_B_LEFT": "0"}


@pytest.mark.parametrize(
    ("env", "lock"),
    [(CONFIRMED, 0), (TRIAL, 3), ({**TRIAL, "BOOT_TIMEOUT": "0"}, 0)],
    ids=["confirmed", "trial", "timeout 0"],
)
def test_watchdog_runs_locked_on_trial_only(bench: Bench, env: dict[str, str], lock: int) -> None:
    board = bench.board(boot_a=HANG, boot_b=HANG)
    board.set(env)
    assert board.boot_watched(until="tiny: ").lock == lock


def test_kernel_that_cannot_start_leaves_no_watchdog_behind(bench: Bench) -> None:
    board = bench.board(boot_a=HANG, boot_b=JUNK)
    board.set(TRIAL)
    watched = board.boot_watched(until="tiny: ")
    assert "abupdate: slot B trial left 2" in watched.console
    assert (watched.lock, "abupdate.slot=A" in watched.console) == (0, True)
    assert (watched.events, watched.console.count("abupdate: order")) == ((), 1)
