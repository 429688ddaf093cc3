"""GRUB's store: in place and by sectors, under a lock, for our hook and RAUC's script; bad input changes nothing; doctor's findings."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import bootwiring
from abupdate.bootloaders import grubenvfile
from abupdate.bootloaders.envcalls import LinuxCalls
from abupdate.bootloaders.grub import GrubStore
from abupdate.bootloaders.grubvars import values_of
from abupdate.config import compose
from abupdate.errors import AbupdateError, Busy, ConfigError, Failed, StoreUnreadable
from abupdate.formats.grubenv import SECTOR_BYTES, SIZE_BYTES
from abupdate.model import BootState, Grade, TrialPolicy
from tests.sim import grub_hook_model
from tests.unit.test_uboot_dialects import CONFIG

SLOTS = ("A", "B")
HOOK = Path(__file__).resolve().parents[2] / "bootloader-hooks/grub/grub.cfg"
ARMED = BootState(("B", "A"), {"A": 10, "B": 3}, "B", TrialPolicy(3, 10, 90), 31, verity={"B": "5a" * 32})
CALM = BootState(("B", "A"), {"A": 10, "B": 10}, None, TrialPolicy(3, 10, 90), 31)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "grubenv"
    edit(made, "create")
    edit(made, "set", "saved_entry=Debian", "path=C:\\dir")
    return made


def edit(path: Path, *words: str) -> dict[str, str]:
    said = subprocess.run(["grub-editenv", path, *words], check=True, capture_output=True, text=True).stdout
    return dict(line.partition("=")[::2] for line in said.splitlines())


class Watched(LinuxCalls):
    """Remembers what is written; `fails` is raised by the next call of that name."""

    def __init__(self, **fails: int) -> None:
        self.writes: list[tuple[int, int]] = []
        self.flushes = 0
        self.fails = fails

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self._fail("pwrite")
        self.writes.append((offset, len(data)))
        return super().pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        self._fail("fsync")
        self.flushes += 1
        super().fsync(fd)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        self._fail("pread")
        return super().pread(fd, count, offset)

    def _fail(self, name: str) -> None:
        if name in self.fails:
            raise OSError(self.fails[name], os.strerror(self.fails[name]))


def test_a_first_commit_writes_the_second_sector_first_and_each_later_one_the_first_sector_alone(path: Path) -> None:
    calls = Watched()
    store = GrubStore(path, SLOTS, calls=calls)
    inode = path.stat().st_ino
    assert store.read().fresh
    store.commit(ARMED)
    assert calls.writes == [(SECTOR_BYTES, SECTOR_BYTES), (0, SECTOR_BYTES)]
    calls.writes.clear()
    store.commit(CALM)
    assert calls.writes == [(0, SECTOR_BYTES)]
    assert store.read() == replace(CALM, fresh=False)
    flushes = calls.flushes
    store.commit(CALM)
    assert (calls.writes, calls.flushes) == ([(0, SECTOR_BYTES)], flushes + 1)
    assert (path.stat().st_ino, path.stat().st_size) == (inode, SIZE_BYTES)
    assert edit(path, "list").items() >= {"saved_entry": "Debian", "path": "C:\\dir", "A_LEFT": "10", "ORDER": "B A"}.items()


def test_a_policy_and_a_floor_that_are_not_said_stay(path: Path) -> None:
    store = GrubStore(path, SLOTS)
    store.commit(ARMED)
    store.commit(BootState(("A",), {"A": 1, "B": 0}))
    assert (store.read().policy, store.read().floor) == (ARMED.policy, 31)


def test_a_floor_that_has_no_room_is_left_out(path: Path) -> None:
    store = GrubStore(path, ("A", "B"))
    # Root hashes of 512 bits beside the tool's warning take nearly all of the first sector.
    full = replace(ARMED, floor=2**63 - 1, verity={"A": "5a" * 64, "B": "5b" * 64})
    store.check_room(full)
    store.commit(full)
    assert store.read().floor == full.floor
    fuller = replace(full, verity={"A": "5a" * 77, "B": "5b" * 77})
    store.check_room(fuller)
    store.commit(fuller)
    assert store.read() == replace(fuller, floor=None)
    with pytest.raises(ConfigError, match="of its first 512"):
        store.check_room(replace(full, verity={"A": "5a" * 90, "B": "5b" * 90}))


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"# GRUB Environment Block\n" + b"#" * 998, b"# GRUB Environment Block\n" + b"#" * 1000, bytes(SIZE_BYTES)],
    ids=["empty", "one byte", "short", "long", "zeros"],
)
def test_a_file_that_is_no_block_changes_nothing_and_is_written_anew_only_on_order(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    store = GrubStore(path, SLOTS)
    for act in (store.read, lambda: store.commit(CALM), lambda: store.check_room(CALM)):
        with pytest.raises(StoreUnreadable) as caught:
            act()
        assert (caught.value.exit_code, "\n" in caught.value.line, bool(caught.value.hint)) == (2, False, True)
    assert path.read_bytes() == data
    store.rebuild(CALM)
    assert store.read() == CALM
    assert path.stat().st_size == SIZE_BYTES


def test_rebuilding_keeps_what_can_be_read(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")
    store = GrubStore(path, SLOTS)
    store.rebuild(CALM)
    assert edit(path, "list").items() >= {"saved_entry": "Debian", "path": "C:\\dir"}.items()


def test_a_file_that_is_something_else_is_not_written_over_even_on_order(path: Path) -> None:
    path.write_bytes(HOOK.read_bytes())
    store = GrubStore(path, SLOTS)
    for act in (store.read, lambda: store.rebuild(CALM)):
        with pytest.raises(ConfigError, match="does not begin as an environment block") as caught:
            act()
        assert "is it the right file?" in caught.value.hint
    assert path.read_bytes() == HOOK.read_bytes()


@pytest.mark.parametrize("kind", ["absent", "folder"])
def test_what_is_no_file_is_a_configuration_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "grubenv"
    if kind == "folder":
        path.mkdir()
    store = GrubStore(path, SLOTS)
    for act in (store.read, lambda: store.commit(CALM), lambda: store.rebuild(CALM)):
        with pytest.raises(ConfigError, match="grubenv") as caught:
            act()
        assert caught.value.hint
        assert not isinstance(caught.value, StoreUnreadable)
    assert path.exists() == (kind == "folder")


def test_slots_that_the_hook_does_not_boot_and_dialects_that_grub_has_not_are_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="slots A and B"):
        GrubStore(path, ("system0", "system1"))
    with pytest.raises(ConfigError, match="dialect"):
        GrubStore(path, SLOTS, "mender")
    assert GrubStore(path, ("system0", "system1"), "rauc").read().order == ("system0", "system1")


@pytest.mark.parametrize(
    "state",
    [replace(CALM, order=("A", "C")), replace(CALM, trial="C"), replace(CALM, order=()), replace(CALM, left={"A": 100, "B": 0})],
    ids=["unknown slot", "unknown trial", "dark", "counter"],
)
def test_states_that_the_hook_cannot_hold_are_refused(path: Path, state: BootState) -> None:
    store = GrubStore(path, SLOTS)
    store.commit(ARMED)
    before = path.read_bytes()
    for act in (store.commit, store.check_room):
        with pytest.raises(ConfigError) as caught:
            act(state)
        assert caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("call", "number", "kind"), [("pwrite", errno.EIO, Failed), ("pwrite", errno.EROFS, ConfigError), ("fsync", errno.EIO, Failed)]
)
def test_a_medium_that_fails_is_no_success(path: Path, call: str, number: int, kind: type[AbupdateError]) -> None:
    with pytest.raises(kind, match="grubenv"):
        GrubStore(path, SLOTS, calls=Watched(**{call: number})).commit(CALM)


def test_a_block_that_cannot_be_read_is_unreadable(path: Path) -> None:
    with pytest.raises(StoreUnreadable, match="cannot be read"):
        GrubStore(path, SLOTS, calls=Watched(pread=errno.EIO)).read()


def test_a_write_that_is_not_there_afterwards_is_no_success(path: Path) -> None:
    class Lost(Watched):
        def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
            return len(data)

    with pytest.raises(Failed, match="reads back differently"):
        GrubStore(path, SLOTS, calls=Lost()).commit(CALM)


def test_another_abupdate_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grubenvfile, "LOCK_WAIT_S", 0.05)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="environment block"):
            GrubStore(path, SLOTS).commit(CALM)
        assert GrubStore(path, SLOTS).read().fresh
    GrubStore(path, SLOTS).commit(CALM)


def test_the_service_waits_for_another_one_no_longer_than_its_watchdog_allows(path: Path) -> None:
    text = CONFIG.replace('kind = "uboot"', 'kind = "grub"').format(bootloader=f'grubenv = "{path}"', trial="[watchdog]\ntimeout_s = 1")
    store, _ = bootwiring.bootloader(compose([(Path("/c"), text.encode())], Path("/c")), petting=True)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        began_s = time.monotonic()
        with pytest.raises(Busy, match="environment block"):
            store.commit(CALM)
    assert time.monotonic() - began_s < 1


def test_edits_by_hand_are_read_as_the_hook_reads_them(path: Path) -> None:
    edit(path, "set", "ORDER=B C A B", "A_LEFT=7", "TRIAL=X B", "BUDGET=5", "FLOOR=99999999999999999999", "TIMEOUT=soon")
    state = GrubStore(path, SLOTS).read()
    assert (state.order, state.left, state.trial, state.floor) == (("B", "A"), {"A": 7, "B": 5}, "B", None)
    env = edit(path, "list")
    assert grub_hook_model.boot(env).slot == "B"


def test_every_variable_of_the_hook_is_one_that_the_store_writes() -> None:
    code = "\n".join(line for line in HOOK.read_text().splitlines() if not line.startswith("#"))
    written = {name for name, value in values_of(replace(ARMED, verity={"A": "a", "B": "b"}), CALM, SLOTS).items() if value is not None}
    used = set(re.findall(r"\$(ORDER|TRIAL|[A-Z]+(?:_[A-Z]+)?)\b", code))
    assert used <= written
    # TRIES is in LEFT already when the hook sees it; the floor is none of its business.
    assert written - used == {"TRIES", "FLOOR"}
    assert f'set BUDGET="{TrialPolicy().budget}"' in code
    assert f'set abu_timeout="{TrialPolicy().boot_timeout_s}"' in code
    assert GrubStore(Path("x"), SLOTS).traits.max_tries == grub_hook_model.MAX_LEFT


def test_raucs_variables_keep_raucs_meaning(path: Path) -> None:
    edit(path, "set", "ORDER=A B", "A_OK=1", "A_TRY=1", "B_OK=1", "B_TRY=0")
    store = GrubStore(path, SLOTS, "rauc")
    found = store.read()
    assert (found.order, found.left, found.trial, found.fresh) == (SLOTS, {"A": 0, "B": 1}, None, False)
    for state, order, flags in (
        (BootState(("A",), {"A": 1, "B": 0}), "A", "1000"),
        (BootState(("B", "A"), {"A": 1, "B": 1}, "B"), "B A", "1010"),
        (BootState(("B", "A"), {"A": 0, "B": 1}), "B A", "1110"),
    ):
        store.commit(state)
        seen = edit(path, "list")
        assert seen["ORDER"] == order
        assert "".join(seen[name] for name in ("A_OK", "A_TRY", "B_OK", "B_TRY")) == flags
        assert seen["saved_entry"] == "Debian"
        read = store.read()
        assert (read.order, read.left, read.trial) == (state.order, state.left, state.trial)
    with pytest.raises(ConfigError, match="one boot"):
        store.commit(ARMED)
    with pytest.raises(ConfigError, match="root hash"):
        store.commit(BootState(("A",), {"A": 1, "B": 0}, verity={"A": "5a"}))


def test_slot_that_rauc_has_marked_bad_is_out_though_its_name_stays_in_the_order(path: Path) -> None:
    """As `rauc status mark-bad` leaves it."""
    edit(path, "set", "ORDER=B A", "A_OK=0", "A_TRY=0", "B_OK=1", "B_TRY=0")
    found = GrubStore(path, SLOTS, "rauc").read()
    assert (found.order, found.left) == (("B",), {"A": 0, "B": 1})


def test_counts_have_two_digits_so_that_grub_moves_nothing_when_it_counts(path: Path) -> None:
    GrubStore(path, SLOTS).commit(BootState(("B", "A"), {"A": 10, "B": 3}, "B"))
    assert (edit(path, "list")["A_LEFT"], edit(path, "list")["B_LEFT"]) == ("10", "03")


def test_the_floors_mirror_stands_beside_raucs_variables(path: Path) -> None:
    store = GrubStore(path, SLOTS, "rauc")
    store.commit(BootState(("A",), {"A": 1, "B": 0}, floor=31))
    assert (store.read().floor, edit(path, "list")["FLOOR"]) == (31, "31")
    store.commit(BootState(("A",), {"A": 1, "B": 0}))
    assert store.read().floor == 31


class Place:
    """A grubenv as if it lay on other file systems and devices."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mountinfo, self.sysfs = path.with_name("mountinfo"), path.with_name("sysfs")
        self.lies("ext4")
        path.with_name("grub.cfg").write_bytes(HOOK.read_bytes())

    def lies(self, fs_type: str, device: str = "sda1", options: str = "rw") -> None:
        """On this."""
        root = "1 0 7:1 / / rw - ext4 /dev/root rw\n"
        self.mountinfo.write_text(f"{root}2 1 8:1 / {self.path.parent} rw - {fs_type} /dev/x {options}\n")
        self.sysfs.mkdir(exist_ok=True)
        (self.sysfs / device).mkdir()
        link = self.sysfs / "8:1"
        link.unlink(missing_ok=True)
        link.symlink_to(device)

    def findings(self, dialect: str = "") -> list[tuple[Grade, str, str]]:
        """Doctor's."""
        store = GrubStore(self.path, SLOTS, dialect, mountinfo=self.mountinfo, sysfs=self.sysfs, root=self.path.parent)
        return [(one.grade, one.text, one.hint) for one in store.inspect()]

    def bad(self, dialect: str = "") -> str:
        """Text of the one finding that is not good; it has a hint."""
        ((grade, text, hint),) = [one for one in self.findings(dialect) if one[0] is not Grade.OK]
        assert hint
        return f"{grade.value}: {text}"


@pytest.fixture
def place(path: Path) -> Place:
    return Place(path)


def test_doctor_is_content_with_a_plain_partition_and_our_script(place: Place) -> None:
    assert [grade for grade, _, _ in place.findings()] == [Grade.OK, Grade.OK]


@pytest.mark.parametrize("fs_type", ["btrfs", "zfs", "f2fs", "overlay", "tmpfs", "bcachefs"])
def test_doctor_refuses_file_systems_that_grub_cannot_overwrite(place: Place, fs_type: str) -> None:
    place.lies(fs_type, device="x")
    assert re.match(f"fail: .* lies on {fs_type}, to which GRUB cannot write", place.bad())


@pytest.mark.parametrize(("device", "word"), [("dm-0", "device-mapper"), ("md127", "RAID")])
def test_doctor_refuses_lvm_and_raid(place: Place, device: str, word: str) -> None:
    place.lies("ext4", device)
    assert place.bad().startswith("fail: ")
    assert word in place.bad()


def test_doctor_refuses_a_journal_of_data_and_a_read_only_mount(place: Place) -> None:
    place.lies("ext4", "sda2", "rw,data=journal")
    assert "undone by the journal" in place.bad()
    place.lies("ext4", "sda3", "ro")
    assert "read-only" in place.bad()
    place.lies("ext4", "sda4")
    options = place.path.parent / "proc/fs/ext4/sda4/options"
    options.parent.mkdir(parents=True)
    options.write_text("rw\ndata=journal\n")
    assert "undone by the journal" in place.bad()


def test_doctor_names_slots_of_the_order_that_are_not_configured(place: Place) -> None:
    edit(place.path, "set", "ORDER=R A B", "TRIAL=R")
    assert re.match("warn: .* names 'R' in ORDER or TRIAL, which is no slot that is configured", place.bad())


def test_doctor_finds_a_hole(place: Place) -> None:
    class Hollow(type(place.path)):  # type: ignore[misc]
        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            found = super().stat(follow_symlinks=follow_symlinks)
            return os.stat_result((*found[:10],), {"st_blocks": 0})

    place.path = Hollow(place.path)
    assert "has a hole" in place.bad()


def test_doctor_says_what_is_wrong_with_the_file(place: Place) -> None:
    place.path.write_bytes(b"#")
    assert "has 1 bytes, an environment block of GRUB has 1024" in place.bad()
    place.path.unlink()
    assert "No such file" in place.bad()
    assert f"grub-editenv {place.path} create" in place.findings()[0][2]
    os.mkfifo(place.path)
    assert "is no file" in place.bad()


@pytest.mark.parametrize(
    ("script", "dialect", "said"),
    [
        (None, "", "warn: .*no boot script beside the environment block"),
        ("menuentry x { linux /vmlinuz }", "", "fail: .*boots the slots without counting"),
        ("menuentry x { linux /vmlinuz abupdate.slot=A }", "", "fail: .*boots the slots without counting"),
        ("menuentry x { linux /vmlinuz }", "rauc", "fail: .*boots the slots without counting"),
        ("save_env A_TRY B_TRY", "", "fail: .*is RAUC's boot script"),
        ("ours", "rauc", "fail: .*is abupdate's boot script, not RAUC's"),
    ],
)
def test_doctor_looks_at_the_boot_script(place: Place, script: str | None, dialect: str, said: str) -> None:
    config = place.path.with_name("grub.cfg")
    config.unlink()
    if script is not None:
        config.write_text(HOOK.read_text() if script == "ours" else script)
    assert re.match(said, place.bad(dialect))


def test_doctor_says_what_raucs_script_leaves_out_of_the_kernels_arguments(place: Place) -> None:
    place.path.with_name("grub.cfg").write_text("save_env A_TRY B_TRY")
    proc = place.path.parent / "proc"
    (proc / "sys/kernel").mkdir(parents=True)
    (proc / "cmdline").write_text("root=/dev/sda2 rauc.slot=A\n")
    (proc / "sys/kernel/panic").write_text("0\n")
    texts = [text for grade, text, _ in place.findings("rauc") if grade is not Grade.OK]
    assert [re.search("no panic=|does not mark a trial", text) is not None for text in texts] == [True, True]
    (proc / "cmdline").write_text("root=/dev/sda2 abupdate.slot=A\n")
    (proc / "sys/kernel/panic").write_text("10\n")
    assert {grade for grade, _, _ in place.findings("rauc")} == {Grade.OK}


def test_doctor_makes_an_empty_block_where_there_is_none(place: Place) -> None:
    store = GrubStore(place.path, SLOTS)
    assert store.repairs() == ()
    made = place.path.with_name("made")
    edit(made, "create")
    place.path.unlink()
    (repair,) = store.repairs()
    assert not place.path.exists()
    repair.run()
    assert place.path.read_bytes() == made.read_bytes()
    assert store.read().fresh
    with pytest.raises(Failed):
        repair.run()
