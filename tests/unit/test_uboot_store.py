"""UBootStore against the real fw_printenv and fw_setenv: the same bytes, the same copy, the same lock."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abupdate.bootloaders.envcalls import LinuxCalls
from abupdate.bootloaders.envfile import FileArea
from abupdate.bootloaders.envlock import LOCK_PATH
from abupdate.bootloaders.uboot import UBootStore
from abupdate.errors import Busy, ConfigError, Failed, StoreUnreadable
from abupdate.formats.fwenvconfig import EnvLocation
from abupdate.formats.ubootenv import Environment, Scheme, encode
from abupdate.model import MAX_COUNTER, BootState, TrialPolicy

SIZE = 0x2000
SLOTS = ("A", "B")
TRIAL = BootState(("B", "A"), {"A": 10, "B": 3}, "B", TrialPolicy(3, 10, 120), floor=0x1F)
FOREIGN = b"weird=\xff\xfe\\n'\""


class Bench:
    """An environment in a file, its fw_env.config, the store over it, and U-Boot's own tools."""

    def __init__(self, folder: Path, offsets: tuple[int, ...] = (0, SIZE), room: int = 2 * SIZE, suffix: str = "") -> None:
        self.env = folder / "env"
        self.config = folder / "fw_env.config"
        self.offsets = offsets
        self.env.write_bytes(b"\xa5" * room)
        self.config.write_text("".join(f"{self.env} {offset:#x} {SIZE:#x}{suffix}\n" for offset in offsets))

    @property
    def scheme(self) -> Scheme:
        return Scheme.SINGLE if len(self.offsets) == 1 else Scheme.INCREMENTAL

    def put(self, index: int, *entries: bytes, flag: int = 0) -> None:
        raw = bytearray(self.env.read_bytes())
        raw[self.offsets[index] : self.offsets[index] + SIZE] = encode(Environment(entries), SIZE, self.scheme, flag)
        self.env.write_bytes(raw)

    def spoil(self, index: int) -> None:
        raw = bytearray(self.env.read_bytes())
        raw[self.offsets[index] + 100] ^= 0x10
        self.env.write_bytes(raw)

    def store(self) -> UBootStore:
        return UBootStore(self.config, SLOTS, default_environment=Path("/nonexistent"))

    def printed(self) -> dict[bytes, bytes]:
        """What fw_printenv says; it warns and takes defaults where it finds no valid copy, which is a failure here."""
        done = subprocess.run(["fw_printenv", "-c", self.config], check=True, capture_output=True)
        assert b"Cannot" not in done.stderr
        return dict(line.split(b"=", 1) for line in done.stdout.splitlines())

    def setenv(self, *words: str | bytes) -> None:
        subprocess.run(["fw_setenv", "-c", self.config, *words], check=True, capture_output=True)


@pytest.fixture(params=[(0,), (0, SIZE), (0x1200, 0x5000)], ids=["single", "redundant", "offsets"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    made = Bench(tmp_path, request.param, 0x8000)
    for index in range(len(made.offsets)):
        made.put(index, b"foo=bar", FOREIGN, flag=2 - index)
    return made


@pytest.fixture
def pair(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.put(0, b"foo=bar", FOREIGN, flag=1)
    made.put(1, b"foo=old", flag=0)
    return made


def test_a_commit_is_what_fw_printenv_reads(bench: Bench) -> None:
    assert bench.store().read() == BootState(SLOTS, {"A": 10, "B": 10}, fresh=True)
    bench.store().commit(TRIAL)
    assert bench.store().read() == TRIAL
    assert bench.printed() == {
        b"foo": b"bar",
        b"weird": FOREIGN[6:],
        b"BOOT_ORDER": b"B A",
        b"BOOT_A_LEFT": b"a",
        b"BOOT_B_LEFT": b"3",
        b"BOOT_TRIAL": b"B",
        b"BOOT_TRIES": b"3",
        b"BOOT_BUDGET": b"a",
        b"BOOT_TIMEOUT": b"78",
        b"BOOT_FLOOR": b"1f",
    }
    assert bench.store().single == (len(bench.offsets) == 1)


def test_what_fw_setenv_writes_is_read(bench: Bench) -> None:
    for words in (("BOOT_ORDER", "B A"), ("BOOT_A_LEFT", "3"), ("BOOT_B_LEFT", "1f"), ("BOOT_TRIAL", "B"), ("BOOT_TIMEOUT", "14")):
        bench.setenv(*words)
    assert bench.store().read() == BootState(("B", "A"), {"A": 3, "B": 31}, "B", TrialPolicy(boot_timeout_s=20))
    bench.setenv("BOOT_TRIAL")
    assert bench.store().read().trial is None


def test_only_the_other_copy_is_written_and_nothing_around_it(bench: Bench) -> None:
    before = bench.env.read_bytes()
    bench.store().commit(TRIAL)
    after = bench.env.read_bytes()
    target = bench.offsets[-1]
    assert len(after) == len(before)
    assert after[:target] == before[:target]
    assert after[target + SIZE :] == before[target + SIZE :]
    assert after != before


def test_a_commit_that_changes_nothing_writes_nothing(bench: Bench) -> None:
    store = bench.store()
    store.commit(TRIAL)
    before, time_before = bench.env.read_bytes(), bench.env.stat().st_mtime_ns
    store.commit(TRIAL)
    store.commit(replace(TRIAL, policy=None, floor=None))
    store.commit(store.read())
    assert bench.env.read_bytes() == before
    assert bench.env.stat().st_mtime_ns == time_before


def test_confirm_deletes_the_trial_and_keeps_policy_and_floor(bench: Bench) -> None:
    bench.store().commit(TRIAL)
    bench.store().commit(BootState(("B", "A"), {"A": 10, "B": 10}))
    assert bench.store().read() == BootState(("B", "A"), {"A": 10, "B": 10}, None, TRIAL.policy, TRIAL.floor)
    assert b"BOOT_TRIAL" not in bench.printed()


def test_all_flags_in_turn_and_their_wrap(pair: Bench) -> None:
    store = pair.store()
    for number in range(270):
        store.commit(BootState(SLOTS, {"A": number, "B": 1}))
        assert store.read().left["A"] == number
        if number % 16 == 14 or number in (252, 253, 254, 255, 256):
            assert pair.printed()[b"BOOT_A_LEFT"] == b"%x" % number


@settings(max_examples=60, deadline=None)
@given(flags=st.tuples(st.integers(0, 255), st.integers(0, 255)), bad=st.sampled_from([None, 0, 1]))
def test_any_flags_any_bad_copy(tmp_path_factory: pytest.TempPathFactory, flags: tuple[int, int], bad: int | None) -> None:
    bench = Bench(tmp_path_factory.mktemp("flags"))
    for index in (0, 1):
        bench.put(index, b"BOOT_ORDER=" + SLOTS[index].encode(), flag=flags[index])
    if bad is not None:
        bench.spoil(bad)
    store = bench.store()
    assert store.read().order == (bench.printed()[b"BOOT_ORDER"].decode(),)
    assert store.invalid_copies() == (() if bad is None else (bad,))
    store.commit(TRIAL)
    assert store.read() == TRIAL
    assert bench.printed()[b"BOOT_ORDER"] == b"B A"
    assert store.invalid_copies() == ()


def test_every_torn_write_leaves_the_old_or_the_new_state(pair: Bench) -> None:
    store = pair.store()
    old_state, old = store.read(), pair.env.read_bytes()
    store.commit(TRIAL)
    new = pair.env.read_bytes()
    seen = set()
    for cut in range(0, SIZE + 1, 512):
        pair.env.write_bytes(new[: SIZE + cut] + old[SIZE + cut :])
        state = store.read()
        assert state in (old_state, TRIAL)
        assert pair.printed().get(b"BOOT_TRIAL") == (b"B" if state == TRIAL else None)
        seen.add(state == TRIAL)
        store.commit(replace(TRIAL, trial=None))
        assert store.read().trial is None
    assert seen == {False, True}


def test_torn_sectors_in_any_order(pair: Bench) -> None:
    """A disk may write the sectors of one request in any order: every subset of the first five, the rest old or new."""
    store = pair.store()
    old_state, old = store.read(), pair.env.read_bytes()
    store.commit(TRIAL)
    new = pair.env.read_bytes()
    for mask in range(1 << 6):
        raw = bytearray(old)
        for sector in range(SIZE // 512):
            if mask >> min(sector, 5) & 1:
                place = slice(SIZE + sector * 512, SIZE + (sector + 1) * 512)
                raw[place] = new[place]
        pair.env.write_bytes(raw)
        assert store.read() in (old_state, TRIAL)
        assert (b"BOOT_TRIAL" in pair.printed()) == (store.read() == TRIAL)


def test_a_single_environment_does_tear(tmp_path: Path) -> None:
    """Negative control: the same cuts on a single environment lose it, which is why `single` is told."""
    bench = Bench(tmp_path, (0,), SIZE)
    bench.put(0, *(b"v%d=%s" % (index, b"x" * 50) for index in range(40)))
    old = bench.env.read_bytes()
    bench.store().commit(TRIAL)
    bench.env.write_bytes(bench.env.read_bytes()[:512] + old[512:])
    with pytest.raises(StoreUnreadable):
        bench.store().read()


def test_both_checksums_wrong_then_rebuilt(pair: Bench) -> None:
    pair.spoil(0)
    pair.spoil(1)
    before = pair.env.read_bytes()
    store = pair.store()
    for act in (store.read, lambda: store.commit(TRIAL)):
        with pytest.raises(StoreUnreadable) as caught:
            act()
        assert caught.value.exit_code == 2
        assert caught.value.hint
        assert str(pair.env) in caught.value.message
    assert pair.env.read_bytes() == before
    assert not store.has_defaults
    store.rebuild(TRIAL)
    assert store.read() == TRIAL
    assert store.invalid_copies() == ()
    assert pair.printed()[b"BOOT_ORDER"] == b"B A"
    pair.spoil(0)
    assert store.read() == TRIAL, "rebuild wrote one copy alone"


def test_rebuild_restores_what_u_boot_was_built_with(pair: Bench, tmp_path: Path) -> None:
    pair.spoil(0)
    pair.spoil(1)
    (tmp_path / "initial").write_bytes(b"# made at build time\nbootcmd=run distro\nbootdelay=2\r\nBOOT_ORDER=A\n\nnonsense\n=x\n")
    store = UBootStore(pair.config, SLOTS, default_environment=tmp_path / "initial")
    assert store.has_defaults
    store.rebuild(TRIAL)
    printed = pair.printed()
    assert printed[b"bootcmd"] == b"run distro"
    assert printed[b"bootdelay"] == b"2"
    assert printed[b"BOOT_ORDER"] == b"B A"
    assert b"nonsense" not in printed


@pytest.mark.parametrize("how", ["writable", "strange", "folder"])
def test_what_others_can_write_is_no_built_in_environment(pair: Bench, tmp_path: Path, how: str) -> None:
    """Its bootcmd would run in U-Boot."""
    initial = tmp_path / "initial"
    if how == "folder":
        initial.mkdir()
    else:
        initial.write_bytes(b"bootcmd=run theirs\n")
        initial.chmod(0o664 if how == "writable" else 0o644)
        if how == "strange":
            os.chown(initial, 12345, -1)
    store = UBootStore(pair.config, SLOTS, default_environment=initial)
    assert not store.has_defaults
    pair.setenv("bootcmd", "run ours")
    store.read()
    assert "is no file that root alone can write" in store.irreplaceable
    pair.spoil(0)
    pair.spoil(1)
    store.rebuild(TRIAL)
    assert b"bootcmd" not in pair.printed()
    assert store.read() == TRIAL


def test_rebuild_of_a_valid_store_keeps_foreign_variables(pair: Bench) -> None:
    pair.spoil(1)
    pair.store().rebuild(TRIAL)
    assert pair.store().read() == TRIAL
    assert pair.printed()[b"foo"] == b"bar"


def test_a_parallel_fw_setenv_undoes_nothing_and_loses_nothing(pair: Bench) -> None:
    store = pair.store()
    enough = threading.Event()
    last: dict[str, int] = {}

    def hammer(name: str) -> None:
        for number in range(5000):
            if enough.is_set():
                return
            pair.setenv(name, str(number))
            last[name] = number

    threads = [threading.Thread(target=hammer, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    try:
        for number in range(100):
            store.commit(BootState(SLOTS, {"A": number, "B": 1}))
            assert store.read().left["A"] == number
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert min(last.values()) > 10, "the two did not run side by side"
    printed = pair.printed()
    assert {name: int(printed[name.encode()]) for name in last} == last
    assert printed[b"BOOT_A_LEFT"] == b"63"
    assert printed[b"weird"] == FOREIGN[6:]


def test_the_lock_is_fw_setenvs(pair: Bench) -> None:
    """While somebody holds it fw_setenv waits, and so does a commit, which then gives up with a word."""
    store = UBootStore(pair.config, SLOTS, lock_wait_s=0.3)
    with LOCK_PATH.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = subprocess.Popen(["fw_setenv", "-c", pair.config, "late", "1"])
        with pytest.raises(Busy) as caught:
            store.commit(TRIAL)
        assert waiting.poll() is None
        assert str(LOCK_PATH) in caught.value.hint
        assert store.read().fresh, "reading goes on without the lock"
    assert waiting.wait(timeout=20) == 0
    assert pair.printed()[b"late"] == b"1"


def test_a_lock_is_nobody_elses(pair: Bench, tmp_path: Path) -> None:
    """/run/lock is open to everybody, and whoever can open the lock can hold it: a trial could then be neither confirmed nor ended."""
    lock = tmp_path / "lock"

    def commit() -> int:
        UBootStore(pair.config, SLOTS, lock_path=lock, lock_wait_s=0.3).commit(TRIAL)
        return stat.S_IMODE(lock.stat().st_mode)

    assert commit() == 0o600
    # As fw_setenv leaves it.
    lock.chmod(0o644)
    assert commit() == 0o600
    # A stranger has made it, and holds it.
    lock.unlink()
    lock.touch(0o666)
    os.chown(lock, 12345, -1)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert commit() == 0o600
    assert lock.stat().st_uid == 0


def test_a_lock_that_is_replaced_while_it_is_waited_for(pair: Bench, tmp_path: Path) -> None:
    """Two would hold "the" lock."""
    lock = tmp_path / "lock"
    lock.touch()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        store = UBootStore(pair.config, SLOTS, lock_path=lock, lock_wait_s=20)
        waiting = threading.Thread(target=store.commit, args=(TRIAL,))
        waiting.start()
        time.sleep(0.1)
        lock.rename(tmp_path / "old")
        lock.touch()
        with lock.open() as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            fcntl.flock(held, fcntl.LOCK_UN)
            waiting.join(0.3)
            assert waiting.is_alive(), "the other one is not asked for"
        waiting.join(20)
    assert pair.store().read() == TRIAL


def test_no_room_for_the_numbers_of_the_boot_side(tmp_path: Path) -> None:
    """They cost no refill: what is counted there already goes on."""
    bench = Bench(tmp_path)
    ours = (b"BOOT_A_LEFT=3", b"BOOT_B_LEFT=0", b"BOOT_ORDER=A")
    bench.put(0, *ours, b"f=" + b"x" * (SIZE - 5 - sum(len(one) + 1 for one in ours) - 8), flag=1)
    bench.put(1, b"x=1", flag=0)
    bench.store().commit(BootState(("A",), {"A": 10}, policy=TrialPolicy(3, 0, 120)))
    assert bench.printed()[b"BOOT_A_LEFT"] == b"a"
    assert b"BOOT_BUDGET" not in bench.printed()
    with pytest.raises(ConfigError):
        bench.store().commit(TRIAL)


def test_no_place_for_the_lock(pair: Bench, tmp_path: Path) -> None:
    store = UBootStore(pair.config, SLOTS, lock_path=tmp_path / "none" / "lock")
    assert "No such file" in store.lock_problem
    pair.config.chmod(0o644)
    os.chown(pair.config, 12345, -1)
    before = pair.config.stat()
    store.commit(TRIAL)
    assert store.read() == TRIAL
    # What is locked instead is the configuration, which stays as it is.
    after = pair.config.stat()
    assert (after.st_ino, after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_ino, before.st_mode, 12345, before.st_mtime_ns)
    assert pair.store().lock_problem == ""


@pytest.mark.parametrize("room", [0, SIZE, 2 * SIZE - 1])
def test_a_short_file_is_a_configuration_error(tmp_path: Path, room: int) -> None:
    bench = Bench(tmp_path, room=room)
    with pytest.raises(ConfigError, match="too short") as caught:
        bench.store().read()
    assert not isinstance(caught.value, StoreUnreadable)
    assert str(bench.env) in caught.value.message
    with pytest.raises(ConfigError):
        bench.store().commit(TRIAL)
    assert bench.env.stat().st_size == room


def test_places_that_cannot_be(tmp_path: Path) -> None:
    bench = Bench(tmp_path, (0,), SIZE)
    bench.put(0)
    for device, word in [
        (str(tmp_path / "missing"), "No such file"),
        (str(tmp_path), "neither file, block device nor flash"),
        ("/dev/null", "no flash"),
        ("/dev/ubi0_0", "UBI"),
        ("/dev/mtd0:env", "UBI"),
    ]:
        bench.config.write_text(f"{device} 0x0 {SIZE:#x}\n")
        with pytest.raises(ConfigError, match=word) as caught:
            bench.store().read()
        assert not isinstance(caught.value, StoreUnreadable)
        assert caught.value.message.startswith(device)
    bench.config.write_text(f"{bench.env} -{SIZE:#x} {SIZE:#x}\n")
    with pytest.raises(ConfigError, match="negative offset"):
        bench.store().read()
    os.mkfifo(tmp_path / "fifo")
    bench.config.write_text(f"{tmp_path / 'fifo'} 0 {SIZE:#x}\n")
    with pytest.raises(ConfigError, match="neither file"):
        bench.store().read()


def test_one_file_under_two_names_overlaps(pair: Bench, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(pair.env)
    pair.config.write_text(f"{pair.env} 0 {SIZE:x}\n{tmp_path / 'alias'} 0x1000 {SIZE:x}\n")
    with pytest.raises(ConfigError, match="overlap"):
        pair.store().read()


def test_a_missing_configuration_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "none")):
        UBootStore(tmp_path / "none", SLOTS)


def test_no_room_changes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for index in (0, 1):
        bench.put(index, b"big=" + b"x" * (SIZE - 60), flag=index)
    before = bench.env.read_bytes()
    with pytest.raises(ConfigError, match="no room"):
        bench.store().commit(TRIAL)
    assert bench.env.read_bytes() == before


@pytest.mark.parametrize("spare", [*range(8), 40])
def test_the_floor_is_mirrored_where_a_trial_has_room_beside_it(tmp_path: Path, spare: int) -> None:
    """The longest mirror, and a few bytes more than a trial needs: it costs no confirmation and no later trial."""
    bench = Bench(tmp_path)
    ours = replace(TRIAL, floor=None)
    bench.put(0, flag=1)
    bench.store().commit(ours)
    used = sum(len(name) + len(value) + 2 for name, value in bench.printed().items())
    filler = b"f=" + b"x" * (SIZE - 5 - used - spare - 4)
    bench.put(0, filler, flag=1)
    bench.put(1, filler, flag=0)
    bench.store().check_room(ours)
    assert bench.env.read_bytes()[4] == 1, "asking writes nothing"
    bench.store().commit(ours)
    bench.store().commit(BootState(("B", "A"), {"A": 10, "B": 10}, floor=MAX_COUNTER))
    confirmed = bench.store().read()
    assert (confirmed.trial, confirmed.left["B"], confirmed.floor) == (None, 10, MAX_COUNTER if spare == 40 else None)
    bench.store().commit(replace(ours, floor=confirmed.floor))
    assert bench.store().read().trial == "B"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((b"BOOT_ORDER=B",), BootState(("B",), {"A": 0, "B": 10})),
        ((b"BOOT_ORDER=C  B\tC B A",), BootState(("B", "A"), {"A": 10, "B": 10})),
        ((b"BOOT_A_LEFT=0",), BootState(SLOTS, {"A": 0, "B": 10}, fresh=True)),
        ((b"BOOT_A_LEFT=zz", b"BOOT_B_LEFT=0xF"), BootState(SLOTS, {"A": 0, "B": 15}, fresh=True)),
        ((b"BOOT_A_LEFT=00a", b"BOOT_B_LEFT=3x"), BootState(SLOTS, {"A": 10, "B": 3}, fresh=True)),
        ((b"BOOT_A_LEFT=-1", b"BOOT_B_LEFT=\xff"), BootState(SLOTS, {"A": 0, "B": 0}, fresh=True)),
        ((b"BOOT_TRIAL=B",), BootState(SLOTS, {"A": 10, "B": 10}, "B")),
        ((b"BOOT_TRIAL=C",), BootState(SLOTS, {"A": 10, "B": 10})),
        ((b"BOOT_TRIAL=",), BootState(SLOTS, {"A": 10, "B": 10}, fresh=True)),
        ((b"BOOT_BUDGET=5", b"BOOT_TRIES=x"), BootState(SLOTS, {"A": 5, "B": 5}, None, TrialPolicy(3, 5, 120), fresh=True)),
        ((b"BOOT_BUDGET=0",), BootState(SLOTS, {"A": 1, "B": 1}, None, TrialPolicy(3, 0, 120), fresh=True)),
        ((b"BOOT_TIMEOUT=x",), BootState(SLOTS, {"A": 10, "B": 10}, None, TrialPolicy(3, 10, 0), fresh=True)),
        ((b"BOOT_FLOOR=fx", b"BOOT_TRIAL=A"), BootState(SLOTS, {"A": 10, "B": 10}, "A")),
        ((b"BOOT_TRIAL=A B",), BootState(SLOTS, {"A": 10, "B": 10}, "B")),
        ((b"BOOT_FLOOR=ff",), BootState(SLOTS, {"A": 10, "B": 10}, floor=255, fresh=True)),
        ((b"BOOT_ORDER=C",), BootState((), {"A": 0, "B": 0})),
    ],
)
def test_what_is_missing_alone_or_garbage_has_its_default(pair: Bench, entries: tuple[bytes, ...], expected: BootState) -> None:
    pair.put(0, *entries, flag=1)
    assert pair.store().read() == expected


def test_unknown_slots_leave_the_order_at_the_next_commit(pair: Bench) -> None:
    pair.put(0, b"BOOT_ORDER=C B A B", b"BOOT_C_LEFT=3", flag=1)
    pair.store().commit(pair.store().read())
    assert pair.printed()[b"BOOT_ORDER"] == b"B A"
    assert pair.printed()[b"BOOT_C_LEFT"] == b"3"


@pytest.mark.parametrize(
    "state",
    [
        BootState(("C",), {}),
        BootState(SLOTS, {"C": 1}),
        BootState(SLOTS, {}, "C"),
        BootState((), {}),
        BootState(SLOTS, {"A": -1}),
        BootState(SLOTS, {}, floor=MAX_COUNTER + 1),
    ],
)
def test_a_state_that_cannot_be_stored_is_refused(pair: Bench, state: BootState) -> None:
    before = pair.env.read_bytes()
    with pytest.raises(ConfigError):
        pair.store().commit(state)
    assert pair.env.read_bytes() == before


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(SLOTS).flatmap(lambda order: st.integers(1, 2).map(lambda count: tuple(order[:count]))),
    left=st.fixed_dictionaries({"A": st.integers(0, 1000), "B": st.integers(0, 1000)}),
    trial=st.sampled_from([None, *SLOTS]),
    policy=st.none() | st.builds(TrialPolicy, st.integers(1, 99), st.integers(0, 99), st.integers(0, 9999)),
    floor=st.none() | st.integers(0, MAX_COUNTER),
)
def test_round_trip_of_states(
    tmp_path_factory: pytest.TempPathFactory,
    order: tuple[str, ...],
    left: dict[str, int],
    trial: str | None,
    policy: TrialPolicy | None,
    floor: int | None,
) -> None:
    bench = Bench(tmp_path_factory.mktemp("state"))
    bench.put(0, FOREIGN, b"bare", b"empty=", flag=200)
    state = BootState(order, left, trial, policy, floor)
    bench.store().commit(state)
    assert bench.store().read() == state
    bench.setenv("foreign", "1")
    assert bench.store().read() == state


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    backing = tmp_path / "disk"
    backing.write_bytes(bytes(1 << 20))
    device = subprocess.run(["losetup", "--find", "--show", backing], check=True, capture_output=True, text=True).stdout.strip()
    yield Path(device)
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.parametrize(
    "offsets", ["0x8000 0x2000|0xC000 0x2000", "-0x4000 0x2000|-0x2000 0x2000", "0x8100 0x2000 0x200 16|-0x2000 0x2000"]
)
def test_a_block_device(loop: Path, tmp_path: Path, offsets: str) -> None:
    config = tmp_path / "config"
    config.write_text("".join(f"{loop} {line}\n" for line in offsets.split("|")))
    store = UBootStore(config, SLOTS, default_environment=Path("/nonexistent"))
    with pytest.raises(StoreUnreadable):
        store.read()
    store.rebuild(BootState(SLOTS, {"A": 10, "B": 0}))
    for number in range(5):
        store.commit(replace(TRIAL, left={"A": number, "B": 3}))
        printed = subprocess.run(["fw_printenv", "-c", config, "BOOT_A_LEFT"], check=True, capture_output=True, text=True).stdout
        assert printed == f"BOOT_A_LEFT={number:x}\n"
    subprocess.run(["fw_setenv", "-c", config, "BOOT_A_LEFT", "7"], check=True, capture_output=True)
    assert store.read().left["A"] == 7
    # What the device's backing file holds is what counts after a power cut, not the block device's cache.
    assert (tmp_path / "disk").read_bytes().count(b"BOOT_ORDER=B A\0") == 2


def test_a_read_only_block_device_is_refused_and_unchanged(loop: Path, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(f"{loop} 0x0 0x2000\n{loop} 0x2000 0x2000\n")
    store = UBootStore(config, SLOTS, default_environment=Path("/nonexistent"))
    store.rebuild(BootState(SLOTS, {}))
    subprocess.run(["blockdev", "--setro", loop], check=True)
    before = (tmp_path / "disk").read_bytes()
    try:
        with pytest.raises(ConfigError, match=str(loop)):
            store.commit(TRIAL)
        assert store.read().trial is None
    finally:
        subprocess.run(["blockdev", "--setrw", loop], check=True)
    assert (tmp_path / "disk").read_bytes() == before


def test_a_medium_that_fails_under_one_copy_costs_that_copy_alone(tmp_path: Path) -> None:
    """A loop device with direct I/O over a file that was cut short answers reads behind its end with EIO, as a dying disk does."""
    backing, config = tmp_path / "disk", tmp_path / "config"
    backing.write_bytes(bytes(1 << 20))
    command = ["losetup", "--find", "--show", "--direct-io=on", str(backing)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        config.write_text(f"{device} 0x0 0x2000\n{device} 0x80000 0x2000\n")
        store = UBootStore(config, SLOTS, default_environment=Path("/nonexistent"))
        store.rebuild(TRIAL)
        os.truncate(backing, 0x40000)
        subprocess.run(["blockdev", "--flushbufs", device], check=True)
        with pytest.raises(OSError, match="Input/output error"), open(device, "rb", buffering=0) as raw:  # noqa: PTH123
            os.pread(raw.fileno(), 512, 0x80000)
        assert store.read() == TRIAL
        assert store.invalid_copies() == (1,)
        os.truncate(backing, 0)
        subprocess.run(["blockdev", "--flushbufs", device], check=True)
        with pytest.raises(ConfigError, match="Input/output error") as caught:
            store.read()
        assert not isinstance(caught.value, StoreUnreadable)
        assert device in caught.value.message
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


class Noted(LinuxCalls):
    """The real calls, and a note of each; `lossy` says that it writes and does not, what is called `broken` cannot be flushed."""

    def __init__(self, *, lossy: bool = False) -> None:
        self.lossy = lossy
        self.broken = ""
        self.notes: list[str] = []

    def open(self, device: str, flags: int) -> int:
        self.notes.append("open synchronous" if flags & os.O_DSYNC else "open")
        return super().open(device, flags)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        self.notes.append(f"read {offset:#x}")
        return super().pread(fd, count, offset)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self.notes.append(f"write {offset:#x}")
        return len(data) if self.lossy else super().pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        name = str(Path(f"/proc/self/fd/{fd}").readlink())
        if name == self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.notes.append(f"fsync {name}")
        super().fsync(fd)

    def forget(self, fd: int, offset: int, length: int) -> None:
        self.notes.append(f"forget {offset:#x} to {offset + length:#x}")
        super().forget(fd, offset, length)


def test_a_commit_first_brings_the_copy_that_counts_to_the_medium(tmp_path: Path) -> None:
    """Also one that changes nothing: a flush that failed may have left what everybody reads in the disk's cache alone."""
    bench = Bench(tmp_path)
    other = tmp_path / "other"
    bench.config.write_text(f"{bench.env} 0x0 {SIZE:#x}\n{other} 0x0 {SIZE:#x}\n")
    calls = Noted()
    stale, valid = (encode(Environment((b"foo=bar",)), SIZE, Scheme.INCREMENTAL, flag) for flag in (1, 2))
    bench.env.write_bytes(valid)
    other.write_bytes(stale)

    def commit(broken: str = "") -> list[str]:
        calls.notes.clear()
        calls.broken = broken
        UBootStore(bench.config, SLOTS, find_area=lambda location: FileArea(location, tmp_path, calls=calls)).commit(TRIAL)
        return [note.replace(str(tmp_path), "") for note in calls.notes if note.startswith(("fsync", "write"))]

    with pytest.raises(Failed, match="cannot bring the U-Boot environment to the medium"):
        commit(broken=str(bench.env))
    assert (bench.env.read_bytes(), other.read_bytes()) == (valid, stale), "nothing was written"
    assert commit() == ["fsync /env", "write 0x0", "fsync /other"]
    # Not flushed, and the next one that asks for the same state does not believe what it reads.
    bench.env.write_bytes(valid)
    other.write_bytes(stale)
    with pytest.raises(Failed, match="cannot write"):
        commit(broken=str(other))
    assert other.read_bytes() != stale
    # Nor does anybody else: the kernel may keep what never reached the medium.
    assert calls.notes[-2].startswith("write")
    assert calls.notes[-1].startswith("forget")
    assert commit() == ["fsync /other"]


def test_a_copy_is_written_flushed_and_read_back_from_the_medium(tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.write_bytes(bytes(0x8000))
    calls = Noted()
    FileArea(EnvLocation(str(env), 0x1200, SIZE), tmp_path, calls=calls).write(b"b" * SIZE)
    assert calls.notes == ["open synchronous", "write 0x1200", f"fsync {env}", "forget 0x1000 to 0x4200", "read 0x1200"]
    assert env.read_bytes() == bytes(0x1200) + b"b" * SIZE + bytes(0x8000 - 0x1200 - SIZE)


def test_a_store_is_rebuilt_where_one_of_its_places_is_dead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One valid copy is all that the device needs to boot."""
    bench = Bench(tmp_path)
    other = tmp_path / "other"
    bench.config.write_text(f"{bench.env} 0x0 {SIZE:#x}\n{other} 0x0 {SIZE:#x}\n")
    for dead, alive in ((bench.env, other), (other, bench.env)):
        bench.env.write_bytes(bytes(SIZE))
        other.write_bytes(bytes(SIZE))
        calls = Noted()
        calls.broken = str(dead)
        store = UBootStore(bench.config, SLOTS, find_area=lambda location, calls=calls: FileArea(location, tmp_path, calls=calls))  # type: ignore[misc]
        store.rebuild(TRIAL)
        assert "cannot write the U-Boot environment" in caplog.text
        dead.write_bytes(bytes(SIZE))
        assert bench.store().read() == TRIAL, alive
        caplog.clear()
    for path in (bench.env, other):
        path.unlink()
        path.mkdir()
    with pytest.raises(ConfigError):
        bench.store().rebuild(TRIAL)


def test_a_medium_that_loses_writes_is_not_believed(tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.write_bytes(bytes(SIZE))
    with pytest.raises(Failed, match="reads back differently"):
        FileArea(EnvLocation(str(env), 0, SIZE), tmp_path, calls=Noted(lossy=True)).write(b"b" * SIZE)


def test_a_write_protected_emmc_boot_partition_is_opened_and_closed_again(tmp_path: Path) -> None:
    env = tmp_path / "mmcblk0boot0"
    env.write_bytes(bytes(SIZE))
    switch = tmp_path / "block" / env.name / "force_ro"
    switch.parent.mkdir(parents=True)
    area = FileArea(EnvLocation(str(env), 0, SIZE), tmp_path / "block")
    switch.write_text("0\n")
    area.write(b"a" * SIZE)
    assert switch.read_text() == "0\n", "what was open stays open"
    switch.write_text("1\n")
    seen: list[tuple[str, bytes]] = []

    class Watched(PosixPath):
        def write_text(self, data: str, *rest: Any, **options: Any) -> int:
            seen.append((data, env.read_bytes()[:1]))
            return super().write_text(data, *rest, **options)

    FileArea(EnvLocation(str(env), 0, SIZE), Watched(tmp_path / "block")).write(b"b" * SIZE)
    assert switch.read_text() == "1"
    assert seen == [("0", b"a"), ("1", b"b")], "the partition was written while it was protected"
    assert env.read_bytes() == b"b" * SIZE


def test_location_is_the_same_at_every_start(pair: Bench) -> None:
    assert pair.store().location == f"uboot:{pair.env}@0x0+0x2000,{pair.env}@0x2000+0x2000"


def test_an_environment_that_only_u_boot_knows_is_not_the_services_to_rebuild(tmp_path: Path) -> None:
    """Without its bootcmd, U-Boot would stop at its prompt: a rebuilt store that lacks it bricks the device."""
    defaults = tmp_path / "initial-env"
    area = tmp_path / "env"
    config = tmp_path / "fw_env.config"
    config.write_text(f"{area} 0x0 0x1000\n{area} 0x1000 0x1000\n")
    for text, there, replaceable in (("x=1", False, True), ("bootcmd=run distro", False, False), ("bootcmd=run distro", True, True)):
        made = subprocess.run(
            ["mkenvimage", "-r", "-s", "0x1000", "-o", "-", "-"], input=text.encode(), check=True, capture_output=True
        ).stdout
        area.write_bytes(made * 2)
        defaults.unlink(missing_ok=True)
        if there:
            defaults.write_text("bootcmd=run distro\n")
        store = UBootStore(config, ("A", "B"), default_environment=defaults)
        store.read()
        assert (store.irreplaceable == "") is replaceable
