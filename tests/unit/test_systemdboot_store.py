"""systemd-boot's store over a folder: what is written comes back, in the steps and names that its docstring promises."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate.bootloaders import espfiles
from abupdate.bootloaders.espfiles import LinuxEspFiles
from abupdate.bootloaders.systemdboot import SystemdBootStore
from abupdate.errors import AbupdateError, ConfigError, Failed, StoreUnreadable
from abupdate.formats.bootentry import SECTOR_BYTES, Entry, decode, encode
from abupdate.model import BootState, TrialPolicy

SLOTS = ("A", "B")
ROOT = {"A": "aa" * 32, "B": "bb" * 32}
CMDLINE = {"A": "root=/dev/a ro", "B": "root=/dev/b ro"}
POLICY = TrialPolicy(3, 0, 90)
GOOD_A = BootState(("A",), {"A": 1, "B": 0}, policy=POLICY)
BOTH = BootState(("A", "B"), {"A": 1, "B": 1}, policy=POLICY)
ARMED_B = BootState(("B", "A"), {"A": 1, "B": 3}, trial="B", policy=POLICY)
CONFIRMED_B = BootState(("B", "A"), {"A": 1, "B": 1}, policy=POLICY)


class Noted(LinuxEspFiles):
    """Writes down what is asked of it; raises what it is told to at one of the calls."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.fault: tuple[int, OSError] | None = None

    def _note(self, what: str, path: Path) -> None:
        self.notes.append(f"{what} {path.name}")
        if self.fault is not None and len(self.notes) > self.fault[0]:
            raise self.fault[1]

    def create(self, path: Path, data: bytes) -> None:
        self._note("create", path)
        super().create(path, data)

    def rewrite(self, path: Path, data: bytes) -> None:
        self._note("rewrite", path)
        super().rewrite(path, data)

    def patch(self, path: Path, data: bytes) -> None:
        assert len(data) == SECTOR_BYTES
        before = path.read_bytes()
        super().patch(path, data)
        on = (decode("X", before).on, decode("X", path.read_bytes()).on)
        self._note({(False, True): "on", (True, False): "off"}.get(on, "change"), path)

    def remove(self, path: Path) -> None:
        assert not decode("X", path.read_bytes()).on, "an entry that boots must be switched off before it goes"
        self._note("remove", path)
        super().remove(path)


@pytest.fixture
def esp(tmp_path: Path) -> Path:
    """An ESP without entries."""
    (tmp_path / "efi/loader/entries").mkdir(parents=True)
    return tmp_path / "efi"


@pytest.fixture
def files() -> Noted:
    return Noted()


def store_on(esp: Path, files: LinuxEspFiles, cmdline: dict[str, str] = CMDLINE) -> SystemdBootStore:
    images = {slot: {"kernel": esp / f"abu/{slot}/vmlinuz", "initrd": esp / f"abu/{slot}/initrd"} for slot in SLOTS}
    return SystemdBootStore(esp, SLOTS, images, cmdline, files=files)


@pytest.fixture
def store(esp: Path, files: Noted) -> SystemdBootStore:
    """A store in which slot A alone boots."""
    found = store_on(esp, files)
    found.rebuild(GOOD_A)
    files.notes.clear()
    return found


def names(esp: Path) -> list[str]:
    return sorted(path.name for path in (esp / "loader/entries").iterdir())


def entry(esp: Path, name: str) -> Entry:
    return decode("X", (esp / "loader/entries" / name).read_bytes())


def shown(state: BootState) -> tuple[object, ...]:
    """What the operations hold the store to."""
    return state.order, dict(state.left), state.trial, dict(state.verity)


def test_a_whole_update_takes_the_steps_that_are_promised(store: SystemdBootStore, esp: Path, files: Noted) -> None:
    store.commit(BOTH)
    assert files.notes == ["create slot-B.conf", "on slot-B.conf"]
    files.notes.clear()
    store.commit(GOOD_A)
    assert files.notes == ["off slot-B.conf"]
    files.notes.clear()
    store.commit(ARMED_B)
    assert files.notes == ["create slot-B+3.conf", "on slot-B+3.conf"]
    assert names(esp) == ["slot-A.conf", "slot-B+3.conf", "slot-B.conf"]
    files.notes.clear()
    (esp / "loader/entries/slot-B+3.conf").rename(esp / "loader/entries/slot-B+2-1.conf")
    store.commit(CONFIRMED_B)
    assert files.notes == ["on slot-B.conf", "off slot-B+2-1.conf", "remove slot-B+2-1.conf"]
    assert names(esp) == ["slot-A.conf", "slot-B.conf"]
    assert entry(esp, "slot-B.conf").key < entry(esp, "slot-A.conf").key


@pytest.mark.parametrize("end", [GOOD_A, BootState(("A", "B"), {"A": 1, "B": 1})])
def test_a_trial_that_ends_otherwise_takes_the_counted_entry_away(store: SystemdBootStore, esp: Path, files: Noted, end: BootState) -> None:
    store.commit(ARMED_B)
    files.notes.clear()
    store.commit(GOOD_A)
    assert files.notes == ["off slot-B+3.conf", "remove slot-B+3.conf"]
    store.commit(end)
    assert shown(store.read()) == shown(end)


@pytest.mark.parametrize("before", [GOOD_A, BOTH, ARMED_B, CONFIRMED_B, BootState(("B",), {"A": 0, "B": 1})])
@pytest.mark.parametrize(
    "after",
    [
        GOOD_A,
        replace(BOTH, verity=ROOT),
        replace(ARMED_B, verity={"B": ROOT["B"]}, floor=7),
        replace(CONFIRMED_B, verity=ROOT, floor=2**62),
        BootState(("B",), {"A": 0, "B": 1}),
        BootState(("A", "B"), {"A": 99, "B": 1}, trial="A", policy=POLICY),
    ],
)
def test_every_state_comes_back_from_every_other(store: SystemdBootStore, before: BootState, after: BootState) -> None:
    for state in (before, after):
        left = {slot: count if slot == state.trial else min(count, 1) for slot, count in state.left.items()}
        store.commit(state)
        assert shown(store.read()) == shown(replace(state, left=left))
    assert after.floor is None or (store.read().floor or 0) >= after.floor
    trial = after.trial
    if trial is not None:
        assert store.read().policy == TrialPolicy(after.left[trial], 0, 90)


def test_a_steady_switch_changes_one_sector_of_the_other_slots_entry(store: SystemdBootStore, esp: Path, files: Noted) -> None:
    store.commit(BOTH)
    files.notes.clear()
    store.commit(CONFIRMED_B)
    assert files.notes == ["change slot-B.conf"]
    assert store.read().order == ("B", "A")


def test_a_commit_of_what_is_there_writes_nothing(store: SystemdBootStore, files: Noted) -> None:
    for state in (GOOD_A, BOTH, GOOD_A, ARMED_B, CONFIRMED_B):
        store.commit(state)
        files.notes.clear()
        store.commit(state)
        assert files.notes == []


def test_the_entries_say_what_the_kernel_needs(store: SystemdBootStore, esp: Path) -> None:
    store.commit(replace(ARMED_B, verity=ROOT))
    text = (esp / "loader/entries/slot-B+3.conf").read_text()
    assert "linux /abu/B/vmlinuz\ninitrd /abu/B/initrd\n" in text
    options = " ".join(line.partition(" ")[2] for line in text.splitlines() if line.startswith("options"))
    assert options.split() == [
        *("abupdate.slot=B", "panic=10", "abupdate.trial=1", "abupdate.boot_timeout=90", "watchdog.open_timeout=90"),
        *(f"abupdate.verity={ROOT['B']}", "root=/dev/b", "ro"),
    ]
    store.commit(CONFIRMED_B)
    assert "trial" not in (esp / "loader/entries/slot-B.conf").read_text()


def test_the_trials_counter_is_read_from_the_name(store: SystemdBootStore, esp: Path) -> None:
    store.commit(ARMED_B)
    at = esp / "loader/entries"
    (at / "slot-B+3.conf").rename(at / "slot-B+1-2.conf")
    assert shown(store.read()) == (("B", "A"), {"A": 1, "B": 1}, "B", {})
    assert store.read().policy == POLICY
    (at / "slot-B+1-2.conf").rename(at / "slot-B+0-3.conf")
    assert shown(store.read()) == (("A", "B"), {"A": 1, "B": 0}, "B", {})


def test_an_entry_that_is_renamed_while_it_is_read_is_looked_up_again(store: SystemdBootStore, esp: Path) -> None:
    """systemd-bless-boot does that at the very moment when the service starts on a confirmed slot."""
    store.commit(ARMED_B)

    class Blessed(LinuxEspFiles):
        def names(self, folder: Path) -> tuple[str, ...]:
            found = super().names(folder)
            if (folder / "slot-B+3.conf").exists():
                (folder / "slot-B+3.conf").rename(folder / "slot-B+2-1.conf")
            return found

    assert store_on(esp, Blessed()).read().left["B"] == 2


def test_of_two_counted_names_the_one_with_fewer_boots_left_counts(store: SystemdBootStore, esp: Path) -> None:
    store.commit(ARMED_B)
    at = esp / "loader/entries"
    (at / "slot-B+2-1.conf").write_bytes((at / "slot-B+3.conf").read_bytes())
    assert store.read().left["B"] == 2
    store.commit(CONFIRMED_B)
    assert names(esp) == ["slot-A.conf", "slot-B.conf"]


@pytest.mark.parametrize("junk", [b"", b"\0" * 1024, b"title nothing\n", os.urandom(700)])
def test_an_entry_without_content_is_none(store: SystemdBootStore, esp: Path, junk: bytes) -> None:
    store.commit(ARMED_B)
    at = esp / "loader/entries"
    (at / "slot-B+2-1.conf").write_bytes(junk)
    (at / "slot-B.conf").write_bytes(junk)
    assert shown(store.read()) == shown(ARMED_B)
    store.commit(CONFIRMED_B)
    assert shown(store.read()) == shown(CONFIRMED_B)
    assert names(esp) == ["slot-A.conf", "slot-B.conf"]


def test_entries_that_somebody_wrote_by_hand_are_read_and_left_alone(esp: Path, files: Noted) -> None:
    at = esp / "loader/entries"
    hand = b"title my board\nlinux\t/abu/A/vmlinuz\r\noptions  abupdate.slot=A root=/dev/a\n"
    (at / "slot-A.conf").write_bytes(hand)
    (at / "debian.conf").write_bytes(b"linux /vmlinuz\n")
    found = store_on(esp, files)
    assert shown(found.read()) == shown(GOOD_A)
    for state in (GOOD_A, ARMED_B, CONFIRMED_B):
        found.commit(state)
        assert shown(found.read()) == shown(state)
    assert (at / "slot-A.conf").read_bytes() == hand
    assert (at / "debian.conf").read_bytes() == b"linux /vmlinuz\n"
    found.commit(BOTH)
    found.commit(replace(CONFIRMED_B, order=("B",), left={"A": 0, "B": 1}))
    assert shown(found.read())[0] == ("B",)
    assert not entry(esp, "slot-A.conf").on


def test_a_slot_that_failed_stays_as_the_last_resort(store: SystemdBootStore, esp: Path, files: Noted) -> None:
    store.commit(CONFIRMED_B)
    failed = BootState(("A", "B"), {"A": 1, "B": 0}, policy=POLICY)
    files.notes.clear()
    store.commit(failed)
    assert shown(store.read()) == shown(failed)
    assert names(esp) == ["slot-A.conf", "slot-B+0.conf", "slot-B.conf"]
    assert entry(esp, "slot-B+0.conf").trial_s is None
    files.notes.clear()
    store.commit(failed)
    assert files.notes == []
    for state in (CONFIRMED_B, failed, GOOD_A, failed, ARMED_B):
        store.commit(state)
        assert shown(store.read()) == shown(state)


def test_an_entry_by_hand_becomes_ours_without_being_off_in_between(esp: Path, files: Noted) -> None:
    (esp / "loader/entries/slot-A.conf").write_bytes(b"linux /abu/A/vmlinuz\noptions abupdate.slot=A root=/dev/a")
    found = store_on(esp, files)
    found.commit(CONFIRMED_B)
    files.notes.clear()
    found.commit(BOTH)
    assert files.notes == ["rewrite slot-A.conf", "change slot-A.conf"]
    assert shown(found.read()) == shown(BOTH)


def test_new_arguments_reach_the_entry_that_is_written_next(esp: Path, files: Noted, store: SystemdBootStore) -> None:
    store.commit(BOTH)
    before = (esp / "loader/entries/slot-A.conf").read_bytes()
    changed = store_on(esp, files, {"A": "root=/dev/a new", "B": "root=/dev/b " + "x" * 600})
    for state in (GOOD_A, ARMED_B, CONFIRMED_B):
        changed.commit(state)
    assert entry(esp, "slot-B.conf").cmdline == "root=/dev/b " + "x" * 600
    assert (esp / "loader/entries/slot-A.conf").read_bytes() == before


def test_the_sort_keys_start_again_at_their_end(store: SystemdBootStore, esp: Path) -> None:
    at = esp / "loader/entries"
    (at / "slot-A.conf").write_bytes(encode(replace(entry(esp, "slot-A.conf"), slot="A", key=1)))
    for state in (ARMED_B, CONFIRMED_B, BootState(("B",), {"A": 0, "B": 1}), BootState(("A", "B"), {"A": 3, "B": 1}, trial="A")):
        store.commit(state)
        assert shown(store.read()) == shown(state)
    assert entry(esp, "slot-B.conf").key > 90000


def test_a_floor_alone_goes_where_nothing_boots_from(store: SystemdBootStore, esp: Path, files: Noted) -> None:
    store.commit(replace(GOOD_A, floor=5))
    assert store.read().floor == 5
    assert files.notes == ["create slot-B.conf"]
    store.commit(BOTH)
    files.notes.clear()
    store.commit(replace(BOTH, floor=6))
    assert files.notes == ["change slot-B.conf"]
    assert store.read().floor == 6
    assert shown(store.read()) == shown(BOTH)


def test_the_floor_rises_with_the_confirmation_and_not_before(store: SystemdBootStore, esp: Path, files: Noted) -> None:
    (esp / "loader/entries/slot-B.conf").write_bytes(b"")
    store.commit(replace(ARMED_B, floor=1))
    files.notes.clear()
    files.fault = (1, OSError(errno.EIO, "Input/output error"))
    files.patch = lambda path, data: files.rewrite(path, path.read_bytes())  # type: ignore[method-assign]
    with pytest.raises(Failed):
        store.commit(replace(CONFIRMED_B, floor=2))
    assert shown(store.read()) == shown(ARMED_B)
    assert store.read().floor == 1


def test_nothing_that_boots_is_an_unreadable_store(esp: Path, files: Noted) -> None:
    found = store_on(esp, files)
    for junk in (None, b"", b"\xff" * 2000):
        if junk is not None:
            (esp / "loader/entries/slot-A.conf").write_bytes(junk)
        with pytest.raises(StoreUnreadable) as caught:
            found.read()
        assert "doctor --fix" in caught.value.hint
    found.rebuild(GOOD_A)
    assert shown(found.read()) == shown(GOOD_A)


def test_an_esp_that_is_not_mounted_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    found = store_on(tmp_path, LinuxEspFiles())
    for call in (found.read, lambda: found.commit(GOOD_A), found.places):
        with pytest.raises(ConfigError, match="No such file") as caught:
            call()
        assert "mounted" in caught.value.hint
        assert "bootctl install --esp-path=" in caught.value.hint


@pytest.mark.parametrize(
    ("images", "cmdline", "error"),
    [
        ({"rootfs": Path("/dev/a")}, CMDLINE, "no image kernel or uki"),
        ({"kernel": Path("/boot/vmlinuz")}, CMDLINE, "does not lie on the ESP"),
        ({"kernel": Path("/efi/k"), "initrd": Path("/boot/initrd")}, CMDLINE, "does not lie on the ESP"),
        ({"kernel": Path("/efi/k")}, {}, "cmdline has nothing for slot A"),
    ],
)
def test_a_configuration_that_cannot_boot_is_refused_at_once(images: dict[str, Path], cmdline: dict[str, str], error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        SystemdBootStore(Path("/efi"), SLOTS, dict.fromkeys(SLOTS, images), cmdline)
    assert caught.value.hint


def test_a_unified_kernel_image_is_started_as_such(esp: Path, files: Noted) -> None:
    images = {slot: {"uki": esp / f"abu/{slot}/linux.efi", "initrd": esp / "not-used"} for slot in SLOTS}
    SystemdBootStore(esp, SLOTS, images, CMDLINE, files=files).rebuild(GOOD_A)
    text = (esp / "loader/entries/slot-A.conf").read_text()
    assert "\nefi /abu/A/linux.efi\n" in text
    assert "initrd" not in text


def test_room_is_proved_by_writing_and_nothing_stays(store: SystemdBootStore, esp: Path) -> None:
    (esp / "loader/abupdate.probe").write_bytes(b"left by a cut")
    before = {name: (esp / "loader/entries" / name).read_bytes() for name in names(esp)}
    store.check_room(ARMED_B)
    assert [path.name for path in (esp / "loader").iterdir()] == ["entries"]
    assert {name: (esp / "loader/entries" / name).read_bytes() for name in names(esp)} == before


def test_the_name_that_a_blessing_would_give_is_taken_from_the_first_trial_on(store: SystemdBootStore, esp: Path, files: Noted) -> None:
    """systemd-bless-boot renames to no name that is there. And a confirmation makes no new file, on an ESP that may be full by now."""
    store.commit(ARMED_B)
    assert files.notes == ["create slot-B.conf", "create slot-B+3.conf", "on slot-B+3.conf"]
    assert not entry(esp, "slot-B.conf").on
    files.notes.clear()
    store.commit(CONFIRMED_B)
    assert files.notes == ["on slot-B.conf", "off slot-B+3.conf", "remove slot-B+3.conf"]


def test_a_good_slot_with_a_counter_of_somebody_else_is_not_counted(store: SystemdBootStore, esp: Path) -> None:
    entries = esp / "loader/entries"
    (entries / "slot-A.conf").rename(entries / "slot-A+3.conf")
    assert shown(store.read()) == shown(GOOD_A)
    store.commit(GOOD_A)
    assert shown(store.read()) == shown(GOOD_A)
    assert names(esp) == ["slot-A.conf"]


def test_a_path_that_does_not_fit_beside_a_trial_is_refused_before_anything_is_written(esp: Path, files: Noted) -> None:
    images = {slot: {"kernel": esp / ("x" * 200) / ("y" * 200) / slot} for slot in SLOTS}
    with pytest.raises(ConfigError, match=r"takes 6\d\d bytes") as caught:
        SystemdBootStore(esp, SLOTS, images, CMDLINE, files=files).check_room(replace(ARMED_B, verity=ROOT))
    assert "shorter paths" in caught.value.hint
    assert files.notes == []


@pytest.mark.parametrize("slots", [("A", "B"), ("9", "10")])
def test_entries_without_a_sort_key_boot_and_change_places_as_systemd_boot_sorts_them(tmp_path: Path, slots: tuple[str, str]) -> None:
    """By name, the newest first. Taken for the other way round, a slot that was never asked to boot would be called failed."""
    (tmp_path / "loader/entries").mkdir(parents=True)
    for slot in slots:
        (tmp_path / f"loader/entries/slot-{slot}.conf").write_text(f"title x\nlinux /abu/{slot}/vmlinuz\noptions root=/dev/{slot} ro\n")
    images = {slot: {"kernel": tmp_path / f"abu/{slot}/vmlinuz"} for slot in slots}
    store = SystemdBootStore(tmp_path, slots, images, dict.fromkeys(slots, "ro"))
    older, newer = slots
    assert store.read().order == (newer, older)
    for order in ((newer, older), (older, newer), (newer, older)):
        store.commit(BootState(order, dict.fromkeys(slots, 1), policy=POLICY))
        assert store.read().order == order


class Deaf(LinuxEspFiles):
    """Takes every write and keeps the old bytes: a write-protected card that does not say so."""

    def create(self, path: Path, data: bytes) -> None:
        super().create(path, b"\0" * len(data))


class Full(LinuxEspFiles):
    """No room, or no permission. part: of the file that is there all the same, bytes."""

    def __init__(self, number: int, part: int | None = None) -> None:
        self.number = number
        self.part = part

    def create(self, path: Path, data: bytes) -> None:
        if self.part is not None:
            path.write_bytes(data[: self.part])
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("medium", [Deaf(), Full(errno.EROFS), Full(errno.ENOSPC, 0), Full(errno.EIO, 512)])
def test_an_esp_that_cannot_be_written_is_found_before_anything_is_armed(store: SystemdBootStore, esp: Path, medium: LinuxEspFiles) -> None:
    before = names(esp)
    with pytest.raises(ConfigError, match=r"cannot be written|does not keep") as caught:
        store_on(esp, medium).check_room(ARMED_B)
    assert caught.value.hint
    assert names(esp) == before
    assert [path.name for path in (esp / "loader").iterdir()] == ["entries"]


@pytest.mark.parametrize("before", [GOOD_A, BOTH, ARMED_B])
@pytest.mark.parametrize("after", [GOOD_A, BOTH, ARMED_B, CONFIRMED_B])
def test_an_error_anywhere_in_a_commit_leaves_the_state_before_or_after(esp: Path, before: BootState, after: BootState) -> None:
    for at in range(6):
        for path in (esp / "loader/entries").iterdir():
            path.unlink()
        files = Noted()
        found = store_on(esp, files)
        found.rebuild(GOOD_A)
        found.commit(before)
        files.notes.clear()
        files.fault = (at, OSError(errno.EIO, "Input/output error"))
        with suppress(Failed):
            found.commit(after)
        files.fault = None
        left = shown(found.read())
        # The operations always go through the state in which the slot is out; asked without it, a commit does that by itself.
        assert left in (shown(before), shown(after), *([shown(GOOD_A)] if {before.trial, after.trial} == {None, "B"} else []))
        found.commit(after)
        assert shown(found.read()) == shown(after)


def test_each_call_flushes_file_folder_and_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    def noting(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*words: object) -> object:
            notes.append(name)
            return real(*words)

        return call

    monkeypatch.setattr(os, "fsync", noting("file", os.fsync))
    monkeypatch.setattr(espfiles, "sync_folder", noting("folder", lambda path: None))
    monkeypatch.setattr(espfiles, "sync_filesystem", noting("all", lambda path: None))
    files, path = LinuxEspFiles(), tmp_path / "entry"
    calls: tuple[tuple[Callable[[], None], list[str]], ...] = (
        (lambda: files.create(path, b"x" * 1024), ["file", "folder", "all"]),
        (lambda: files.patch(path, b"y" * 512), ["file", "all"]),
        (lambda: files.rewrite(path, b"z" * 600), ["file", "all"]),
        (lambda: files.remove(path), ["folder", "all"]),
    )
    for call, want in calls:
        notes.clear()
        call()
        assert notes == want
    with pytest.raises(OSError, match="No such file"):
        files.patch(path, b"y" * 512)
    assert not path.exists()


def test_errors_carry_the_contracts_exit_code(tmp_path: Path) -> None:
    with pytest.raises(AbupdateError) as caught:
        store_on(tmp_path, LinuxEspFiles()).read()
    assert caught.value.exit_code == 2
