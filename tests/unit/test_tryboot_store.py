"""The Raspberry Pi's store: autoboot.txt, the reboot parameter, and the firmware's words in the device tree."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate.bootloaders.envcalls import LinuxCalls
from abupdate.bootloaders.piplatform import PARAMETER, LinuxPi
from abupdate.bootloaders.tryboot import TrybootStore
from abupdate.errors import AbupdateError, ConfigError, Failed, StoreUnreadable
from abupdate.model import BootState, Grade, TrialPolicy
from tests.workstation import ROOT

SLOTS = ("A", "B")
PARTITIONS = {"A": 2, "B": 3}
FACTORY = b"# of the board\n[all]\ntryboot_a_b=1\nboot_partition=2\n"
POLICY = TrialPolicy(1, 0, 90)
CALM = BootState(("A",), {"A": 1, "B": 0}, None, POLICY, 7)
BOTH = BootState(("B", "A"), {"A": 1, "B": 1}, None, POLICY, 7)
ARMED = BootState(("B", "A"), {"A": 1, "B": 1}, "B", POLICY, 7)


class Pi:
    """A Raspberry Pi's files under a folder; `run` is systemd's."""

    def __init__(self, root: Path, data: bytes = FACTORY) -> None:
        self.root = root
        self.path = root / "autoboot.txt"
        self.path.write_bytes(data)
        self.parameter = root / "run/systemd/reboot-param"
        (root / "run/systemd/system").mkdir(parents=True)
        (root / "dev").mkdir()
        (root / "dev/vcio").touch()
        self.says(2, tryboot=0)

    def says(self, partition: int | None, tryboot: int | None) -> None:
        """What the firmware leaves in the device tree."""
        chosen = self.root / "proc/device-tree/chosen/bootloader"
        chosen.mkdir(parents=True, exist_ok=True)
        for name, value in (("partition", partition), ("tryboot", tryboot)):
            (chosen / name).unlink(missing_ok=True)
            if value is not None:
                (chosen / name).write_bytes(value.to_bytes(4, "big"))

    @property
    def store(self) -> TrybootStore:
        """As the wiring makes it."""
        return TrybootStore(self.path, SLOTS, PARTITIONS, platform=LinuxPi(self.root))

    @property
    def asked(self) -> bool:
        """The next ordered reboot sets the flag."""
        return self.parameter.exists() and self.parameter.read_text() == f"{PARAMETER}\n"

    def findings(self, least: Grade = Grade.WARN) -> list[str]:
        """Texts of doctor's findings that are at least so bad."""
        bad = (Grade.WARN, Grade.FAIL) if least is Grade.WARN else (Grade.FAIL,)
        return [one.text for one in self.store.inspect() if one.grade in bad]


@pytest.fixture
def pi(tmp_path: Path) -> Pi:
    return Pi(tmp_path)


def test_a_file_that_abupdate_never_wrote_to_is_fresh(pi: Pi) -> None:
    state = pi.store.read()
    assert (state.order, dict(state.left), state.trial, state.fresh) == (("A",), {"A": 1, "B": 0}, None, True)


@pytest.mark.parametrize("state", [CALM, BOTH, ARMED, replace(ARMED, order=("A", "B"), trial="A"), replace(BOTH, left={"A": 0, "B": 1})])
def test_what_was_committed_is_read_back(pi: Pi, state: BootState) -> None:
    pi.store.commit(state)
    assert pi.store.read() == state
    assert len(pi.path.read_bytes()) == 512
    assert pi.path.read_bytes().startswith(b"# of the board\n")


def test_arming_asks_for_the_try_and_disarming_takes_it_back(pi: Pi) -> None:
    pi.store.commit(CALM)
    assert not pi.asked
    pi.store.commit(ARMED)
    assert pi.asked
    assert b"[tryboot]\n# abupdate trial=B:1\nboot_partition=3\n" in pi.path.read_bytes()
    pi.store.commit(CALM)
    assert not pi.parameter.exists()
    assert b"tryboot]" not in pi.path.read_bytes()


def test_a_parameter_of_somebody_else_stays(pi: Pi) -> None:
    pi.parameter.write_text("4\n")
    pi.store.commit(CALM)
    assert pi.parameter.read_text() == "4\n"


def test_after_a_power_cut_the_trial_is_asked_for_again(pi: Pi) -> None:
    pi.store.commit(ARMED)
    pi.parameter.unlink()
    pi.store.rearm()
    assert pi.asked


def test_the_trial_itself_never_asks_for_another_try(pi: Pi) -> None:
    pi.store.commit(ARMED)
    pi.parameter.unlink()
    pi.says(3, tryboot=1)
    pi.store.rearm()
    pi.store.commit(ARMED)
    assert not pi.parameter.exists()
    pi.store.depart()
    assert pi.store.read().left["B"] == 1


def test_nothing_armed_is_nothing_to_ask_for(pi: Pi) -> None:
    pi.store.commit(BOTH)
    pi.store.rearm()
    assert not pi.parameter.exists()


def test_going_down_for_the_trial_uses_its_only_boot_up(pi: Pi) -> None:
    pi.store.commit(ARMED)
    pi.store.depart()
    assert pi.store.read() == replace(ARMED, left={"A": 1, "B": 0})
    pi.parameter.unlink()
    pi.store.rearm()
    assert not pi.parameter.exists(), "tried already"


def test_going_down_without_the_parameter_uses_nothing_up(pi: Pi) -> None:
    pi.store.commit(ARMED)
    pi.parameter.unlink()
    pi.store.depart()
    assert pi.store.read() == ARMED


def test_without_systemd_arming_still_writes_the_store(pi: Pi, caplog: pytest.LogCaptureFixture) -> None:
    (pi.root / "run/systemd/system").rmdir()
    (pi.root / "run/systemd").rmdir()
    pi.store.commit(ARMED)
    assert pi.store.read() == ARMED
    assert f"reboot '{PARAMETER}'" in caplog.text


def test_the_firmware_says_which_slot_runs_and_whether_it_was_a_try(pi: Pi) -> None:
    assert (pi.store.running(), pi.store.tried()) == ("A", False)
    pi.says(3, tryboot=1)
    assert (pi.store.running(), pi.store.tried()) == ("B", True)
    pi.says(0, tryboot=None)
    assert (pi.store.running(), pi.store.tried()) == (None, None)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (FACTORY.replace(b"=2", b"=5"), "partition 5, which is no slot's"),
        (b"[all]\ntryboot_a_b=1\n", "names no boot_partition"),
        (b"", "names no boot_partition"),
        (bytes(512), "names no boot_partition"),
        (bytes(60) + FACTORY, "is no text"),
        (FACTORY + b"#" * 512, "more than 512 bytes"),
    ],
)
def test_a_file_that_says_nothing_sensible_is_one_line_and_a_hint(pi: Pi, data: bytes, text: str) -> None:
    pi.path.write_bytes(data)
    for call in (pi.store.read, lambda: pi.store.commit(ARMED), lambda: pi.store.check_room(ARMED)):
        with pytest.raises(ConfigError, match=text) as caught:
            call()
        assert caught.value.exit_code == 2
        assert caught.value.hint
        assert "\n" not in caught.value.line
    assert pi.path.read_bytes() == data
    assert not pi.parameter.exists()


def test_a_missing_file_and_a_folder_are_one_line_and_a_hint(pi: Pi) -> None:
    pi.path.unlink()
    with pytest.raises(ConfigError, match="No such file") as caught:
        pi.store.commit(ARMED)
    assert "bootloader-hooks/tryboot" in caught.value.hint
    pi.path.mkdir()
    with pytest.raises(ConfigError):
        pi.store.read()


def test_partitions_must_name_just_the_slots(pi: Pi) -> None:
    for partitions in ({}, {"A": 2}, {"A": 2, "C": 3}):
        with pytest.raises(ConfigError, match="which partitions") as caught:
            TrybootStore(pi.path, SLOTS, partitions)
        assert "partitions = { A = 2, B = 3 }" in caught.value.hint


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (replace(CALM, order=("C",)), "'C' is not configured"),
        (replace(CALM, order=()), "leave the device dark"),
        (replace(ARMED, order=("B",)), "leave the device dark"),
        (replace(CALM, verity={"A": "00"}), "root hash"),
        (replace(CALM, left={"A": 100}), "counts to 99"),
    ],
)
def test_a_state_that_the_file_cannot_hold_changes_nothing(pi: Pi, state: BootState, text: str) -> None:
    for call in (pi.store.check_room, pi.store.commit, pi.store.rebuild):
        with pytest.raises(ConfigError, match=text):
            call(state)
    assert pi.path.read_bytes() == FACTORY


def test_a_full_file_refuses_the_trial_before_anything_is_written(pi: Pi) -> None:
    full = FACTORY + b"#" * 400
    pi.path.write_bytes(full)
    with pytest.raises(ConfigError, match="512 are the limit"):
        pi.store.check_room(ARMED)
    with pytest.raises(ConfigError, match="512 are the limit"):
        pi.store.commit(ARMED)
    assert pi.path.read_bytes() == full
    assert not pi.parameter.exists()


def test_a_slot_without_boots_that_a_hand_has_put_first_is_what_boots_next(pi: Pi) -> None:
    pi.store.commit(BootState(("A", "B"), {"A": 1, "B": 0}))
    pi.path.write_bytes(pi.path.read_bytes().replace(b"boot_partition=2", b"boot_partition=3"))
    state = pi.store.read()
    assert (state.order, dict(state.left)) == (("B", "A"), {"A": 1, "B": 1})


def test_edited_by_hand_the_partition_counts_and_not_the_note(pi: Pi) -> None:
    pi.store.commit(CALM)
    pi.path.write_bytes(pi.path.read_bytes().replace(b"boot_partition=2", b"boot_partition=3"))
    assert pi.store.read().order == ("B", "A")


@pytest.mark.parametrize("line", [b"boot_partition=3\n", b"# abupdate trial=B:1\n", b"tryboot_a_b=1\n"])
def test_a_trial_is_one_only_where_the_firmware_would_start_it_and_we_marked_it(pi: Pi, line: bytes) -> None:
    pi.store.commit(ARMED)
    pi.path.write_bytes(pi.path.read_bytes().replace(line, b""))
    assert pi.store.read().trial is None


def test_a_damaged_file_is_rebuilt_and_a_whole_one_keeps_what_is_foreign(pi: Pi) -> None:
    pi.path.write_bytes(bytes(512))
    with pytest.raises(StoreUnreadable):
        pi.store.read()
    pi.store.rebuild(ARMED)
    assert pi.store.read() == ARMED
    assert pi.asked
    pi.path.write_bytes(b"# of the board\n")
    pi.store.rebuild(CALM)
    assert pi.store.read() == CALM
    assert pi.path.read_bytes().startswith(b"# of the board\n")


class Failing(LinuxCalls):
    """Fails, or does half, at one call."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.writes: list[tuple[int, int]] = []

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """See Calls."""
        self.writes.append((offset, len(data)))
        if self.at == "pwrite":
            raise OSError(5, os.strerror(5))
        if self.at == "protected":
            raise OSError(30, os.strerror(30))
        if self.at == "half":
            return super().pwrite(fd, data[: len(data) // 2], offset)
        return super().pwrite(fd, bytearray(data).swapcase() if self.at == "other" else data, offset)  # type: ignore[arg-type]

    def fsync(self, fd: int) -> None:
        """See Calls."""
        if self.at == "fsync":
            raise OSError(5, os.strerror(5))
        super().fsync(fd)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """See Calls."""
        if self.at == "pread":
            raise OSError(5, os.strerror(5))
        return super().pread(fd, count, offset)


@pytest.mark.parametrize(
    ("at", "kind"),
    [
        ("pwrite", Failed),
        ("half", Failed),
        ("other", Failed),
        ("fsync", Failed),
        ("pread", StoreUnreadable),
        ("protected", ConfigError),
    ],
)
def test_a_failing_medium_is_said_so_and_never_a_success(pi: Pi, at: str, kind: type[AbupdateError]) -> None:
    pi.store.commit(CALM)
    with pytest.raises(kind) as caught:
        TrybootStore(pi.path, SLOTS, PARTITIONS, platform=LinuxPi(pi.root), calls=Failing(at)).commit(ARMED)
    assert caught.value.hint
    assert not pi.asked, "the parameter comes after the store"


def test_a_commit_is_one_write_of_one_sector(pi: Pi) -> None:
    calls = Failing("")
    store = TrybootStore(pi.path, SLOTS, PARTITIONS, platform=LinuxPi(pi.root), calls=calls)
    store.commit(CALM)
    assert calls.writes == [(len(FACTORY), 512 - len(FACTORY)), (0, 512)], "first the length, with what was there"
    calls.writes.clear()
    inode = pi.path.stat().st_ino
    store.commit(ARMED)
    assert calls.writes == [(0, 512)]
    store.commit(ARMED)
    assert calls.writes == [(0, 512)], "what is there already is only flushed"
    assert pi.path.stat().st_ino == inode


def test_a_board_that_is_set_up_right_has_nothing_to_complain_about(pi: Pi) -> None:
    assert pi.findings() == []
    pi.store.commit(ARMED)
    assert pi.findings() == []
    assert any("systemctl reboot" in one.hint for one in pi.store.inspect())


def test_doctor_names_what_is_missing(pi: Pi) -> None:
    pi.path.write_bytes(b"boot_partition=2\n[tryboot]\nboot_partition=3\n")
    assert any("without tryboot_a_b" in text for text in pi.findings())
    assert any("nothing is armed" in text for text in pi.findings())
    pi.store.commit(ARMED)
    pi.parameter.unlink()
    assert pi.findings() == ["a trial is armed, but the next reboot would not start it"]
    pi.says(3, tryboot=0)
    assert any("does not boot" in text for text in pi.findings())
    pi.says(0, tryboot=0)
    assert any("no slot's" in text for text in pi.findings())
    pi.says(None, tryboot=None)
    assert any("does not say whether this boot was a try" in text for text in pi.findings(Grade.FAIL))
    (pi.root / "dev/vcio").unlink()
    (pi.root / "run/systemd/system").rmdir()
    assert any("vcio" in text for text in pi.findings())
    assert any("init system" in text for text in pi.findings())
    pi.path.unlink()
    assert any("cannot be used" in text for text in pi.findings(Grade.FAIL))


def test_doctor_knows_a_command_line_of_the_other_slot(pi: Pi) -> None:
    line = pi.root / "proc/cmdline"
    line.write_text("quiet abupdate.slot=A\n")
    assert pi.findings() == []
    line.write_text("abupdate.slot=A abupdate.slot=B\n")
    assert pi.findings(Grade.FAIL) == ["the kernel was started with abupdate.slot=B from the partition of slot A"]


def test_the_file_to_begin_with_is_a_fresh_board_of_just_one_sector(pi: Pi) -> None:
    data = (ROOT / "bootloader-hooks/tryboot/autoboot.txt").read_bytes()
    assert len(data) == 512
    pi.path.write_bytes(data)
    assert (pi.store.read().order, pi.store.read().fresh, pi.findings()) == (("A",), True, [])
    pi.store.commit(ARMED)
    assert pi.store.read() == ARMED


def test_the_hooks_files_say_the_same_as_each_other() -> None:
    folder = ROOT / "bootloader-hooks/tryboot"
    config = (folder / "config.txt").read_text()
    for slot, partition in PARTITIONS.items():
        name = f"cmdline-{slot.lower()}.txt"
        assert f"[boot_partition={partition}]\ncmdline={name}\n" in config
        words = (folder / name).read_text().split()
        assert {f"abupdate.slot={slot}", "panic=10", "abupdate.boot_timeout=120", "watchdog.open_timeout=120", "ro"} <= set(words)
        assert (folder / name).read_text().count("\n") == 1, "the firmware takes the first line alone"
    assert "abupdate" not in (folder / "cmdline.txt").read_text()
    assert "panic=10" in (folder / "cmdline.txt").read_text()


def test_doctor_writes_a_missing_file_for_the_slot_that_the_firmware_booted(pi: Pi) -> None:
    assert pi.store.repairs() == ()
    pi.path.unlink()
    pi.says(3, tryboot=0)
    (repair,) = pi.store.repairs()
    assert "slot B from partition 3" in repair.text
    repair.run()
    assert pi.store.read().order == ("B",)
    assert len(pi.path.read_bytes()) == 512
    pi.path.unlink()
    pi.says(9, tryboot=0)
    assert pi.store.repairs() == (), "which slot it should be is not known"


def test_the_store_names_the_whole_file_as_its_place(pi: Pi) -> None:
    assert pi.store.places() == ((pi.path, 0, 512),)
    assert pi.store.location == f"tryboot:{pi.path}"
    assert pi.store.irreplaceable == pi.store.tears == ""
