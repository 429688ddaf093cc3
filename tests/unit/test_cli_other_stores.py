"""The command line over a Raspberry Pi's autoboot.txt and over a board's own programs: an update, and what is refused untouched."""

from __future__ import annotations

from pathlib import Path

import pytest

from abupdate.bootloaders import tryboot
from abupdate.bootloaders.piplatform import LinuxPi
from abupdate.cli import service
from abupdate.formats.grubenv import EMPTY
from abupdate.operations.board import Board
from abupdate.operations.service import Hardware
from tests.contract.custom import MEDIUM_BYTES, boots, install, sector
from tests.unit.test_tryboot_store import Pi
from tests.workstation import Result, Workstation

ONE_TRY = "[trial]\ntries = 1\nconfirmed_tries = 0\n"


@pytest.fixture
def pi(workstation: Workstation, monkeypatch: pytest.MonkeyPatch) -> Pi:
    """A Raspberry Pi set up as the README says; /proc, /run and /dev are below its folder."""
    root = workstation.folder / "pi"
    root.mkdir()
    pi = Pi(root)
    monkeypatch.setattr(tryboot, "LinuxPi", lambda: LinuxPi(root))
    workstation.edit(
        'kind = "uboot"\nfw_env_config = "fw_env.config"\n',
        'kind = "tryboot"\nautoboot = "pi/autoboot.txt"\npartitions = { A = 2, B = 3 }\n',
    )
    workstation.config.write_text(workstation.config.read_text() + ONE_TRY)
    return pi


@pytest.fixture
def medium(workstation: Workstation) -> Path:
    """The example of bootloader-hooks/custom over a file."""
    install(workstation.folder, sector(7, b"\x00\xff", (10, 0), 255, ours=0).ljust(MEDIUM_BYTES, b"\0"))
    workstation.edit('kind = "uboot"\nfw_env_config = "fw_env.config"\n', 'kind = "custom"\nprograms = "boot"\n')
    return workstation.folder / "medium"


def refused(workstation: Workstation, *words: str) -> Result:
    """`flash` ends with 2, one line and a hint, and nothing has changed on the slots or in state_dir."""
    before, state = workstation.hashes(), workstation.state_files()
    done = workstation.run("flash", workstation.kit["v1"])
    assert done.code == 2, done.err
    for word in words:
        assert word in done.err
    assert len(done.err.strip().splitlines()) <= 2, done.err
    assert (workstation.hashes(), workstation.state_files()) == (before, state)
    return done


# -- a Raspberry Pi


def test_an_update_of_a_raspberry_pi(workstation: Workstation, pi: Pi) -> None:
    workstation.ok("flash", workstation.kit["v1"])
    assert workstation.holds("B", "v1")
    assert pi.asked
    assert workstation.status()["situation"] == "armed"
    workstation.reboot("B")
    pi.parameter.unlink()
    pi.says(3, tryboot=1)
    assert workstation.status()["situation"] == "on-trial"
    workstation.ok("confirm")
    assert (workstation.slot_state("A"), workstation.slot_state("B")) == ("confirmed", "confirmed")
    assert b"boot_partition=3\n" in pi.path.read_bytes()
    assert b"[tryboot]" not in pi.path.read_bytes()
    assert not pi.asked


def test_a_raspberry_pi_that_lost_power_before_the_trial_is_still_armed(workstation: Workstation, pi: Pi) -> None:
    workstation.ok("flash", workstation.kit["v1"])
    workstation.reboot("A")
    pi.parameter.unlink()
    assert workstation.status()["situation"] == "armed"
    assert any("would not start it" in row["text"] for row in workstation.run("--json", "doctor").document["findings"])
    workstation.ok("revert")
    assert workstation.slot_state("B") == "written"


@pytest.mark.parametrize(("setting", "hint"), [("tries = 1", "set tries = 1"), ("confirmed_tries = 0", "set confirmed_tries = 0")])
def test_a_raspberry_pi_counts_no_more_than_it_can(workstation: Workstation, pi: Pi, setting: str, hint: str) -> None:
    workstation.edit(f"{setting}\n", "")
    data = pi.path.read_bytes()
    refused(workstation, hint)
    assert pi.path.read_bytes() == data


def test_a_raspberry_pi_needs_its_partitions(workstation: Workstation, pi: Pi) -> None:
    workstation.edit("partitions = { A = 2, B = 3 }\n", "")
    refused(workstation, "add partitions = { A = 2, B = 3 }")


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"[all]\nboot_partition=9\n", "partition 9"), (b"#" * 600, "512 bytes"), (b"boot_partition=2\n" + b"#" * 450, "512 are the limit")],
)
def test_an_autoboot_txt_that_cannot_be_used_is_left_alone(workstation: Workstation, pi: Pi, data: bytes, word: str) -> None:
    pi.path.write_bytes(data)
    refused(workstation, word)
    assert pi.path.read_bytes() == data
    assert not pi.asked


def test_doctor_writes_a_raspberry_pi_an_autoboot_txt(workstation: Workstation, pi: Pi) -> None:
    pi.path.unlink()
    refused(workstation, "No such file")
    done = workstation.run("doctor", "--fix")
    assert "slot A from partition 2" in done.err
    workstation.ok("flash", workstation.kit["v1"])


# -- a store that lies where it should not, or not at all


@pytest.mark.parametrize("image", ["rootfs_a", "rootfs_b"])
def test_doctor_mends_no_boot_store_that_lies_on_a_slot(workstation: Workstation, image: str) -> None:
    """The other slot's images need not be there for that."""
    (workstation.folder / "boot_b").unlink()
    (workstation.folder / "fw_env.config").write_text(
        f"{workstation.folder / image} 0x0 0x4000\n{workstation.folder / image} 0x4000 0x4000\n"
    )
    before = (workstation.folder / image).read_bytes()
    done = workstation.run("doctor", "--fix")
    assert (done.code, len(done.err.strip().splitlines())) == (2, 1)
    assert "no update may write over it" in done.err
    assert (workstation.folder / image).read_bytes() == before


def test_a_store_that_is_not_there_is_not_called_a_slot(workstation: Workstation) -> None:
    workstation.edit('kind = "uboot"\nfw_env_config = "fw_env.config"\n', 'kind = "grub"\ngrubenv = "no/grub/grubenv"\n')
    done = refused(workstation, "the boot store's place", "No such file", "`abupdate doctor` says what is missing")
    assert "slot's path" not in done.err


@pytest.mark.parametrize("loss", ["file gone", "made anew"])
def test_a_grubenv_that_was_lost_gets_back_what_the_record_knows(workstation: Workstation, loss: str) -> None:
    """An empty one boots A first, which may hold half an update."""
    grubenv = workstation.folder / "grubenv"
    workstation.edit('kind = "uboot"\nfw_env_config = "fw_env.config"\n', 'kind = "grub"\ngrubenv = "grubenv"\n')
    grubenv.write_bytes(EMPTY)
    workstation.confirmed("v1", "B")
    cut = workstation.folder / "cut"
    cut.write_bytes(workstation.kit["v2"].read_bytes()[:-1])
    assert workstation.flash_pipe(cut.read_bytes()).code == 1
    grubenv.unlink()
    if loss == "made anew":
        grubenv.write_bytes(EMPTY)
    workstation.run("doctor", "--fix")
    assert b"\nORDER=B\nA_LEFT=00\nB_LEFT=10\n" in grubenv.read_bytes()
    assert workstation.slot_state("A") == "writing"


# -- a board's own programs


def test_an_update_through_a_boards_own_programs(workstation: Workstation, medium: Path) -> None:
    workstation.ok("flash", workstation.kit["v1"])
    started = boots(medium.read_bytes())
    assert started.slot == "B"
    medium.write_bytes(started.after(medium.read_bytes()))
    workstation.reboot("B")
    assert workstation.status()["situation"] == "on-trial"
    workstation.ok("confirm")
    assert (workstation.slot_state("A"), workstation.slot_state("B")) == ("confirmed", "confirmed")
    assert boots(medium.read_bytes()).slot == "B"
    workstation.reboot("B")
    workstation.ok("flash", workstation.kit["v2"])
    workstation.ok("revert")
    assert boots(medium.read_bytes()).slot == "B"


def test_a_damaged_store_of_a_board_is_written_anew_by_doctor(workstation: Workstation, medium: Path) -> None:
    medium.write_bytes(bytes(MEDIUM_BYTES))
    refused(workstation, "no valid state")
    assert workstation.run("status").code == 2
    workstation.run("doctor", "--fix")
    assert workstation.status()["situation"] == "steady"
    workstation.ok("flash", workstation.kit["v1"])


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("echo '{}'", "version null"),
        ("echo", "no JSON"),
        ("""echo '{"abupdate": 1, "slots": ["A", "C"], "traits": {}, "state": null}'""", "configured are A, B"),
    ],
)
def test_a_program_that_answers_nonsense_is_refused(workstation: Workstation, medium: Path, script: str, word: str) -> None:
    program = workstation.folder / "boot/get-state"
    program.write_text(f"#!/bin/sh\n{script}\n")
    data = medium.read_bytes()
    refused(workstation, word)
    assert medium.read_bytes() == data


def test_a_program_that_others_can_write_is_refused(workstation: Workstation, medium: Path) -> None:
    (workstation.folder / "boot/set-state").chmod(0o777)
    data = medium.read_bytes()
    refused(workstation, "others can write it", "chmod go-w")
    assert medium.read_bytes() == data


def test_a_trial_whose_store_does_not_answer_is_watched_all_the_same(
    workstation: Workstation, medium: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service comes up; what it does about a store that does not answer is its own business, and tested there."""
    workstation.ok("flash", workstation.kit["v1"])
    workstation.reboot("B")
    (workstation.folder / "boot/get-state").write_text("#!/bin/sh\nexit 1\n")
    assert served(workstation, monkeypatch) == [False]
    assert medium.exists()


def test_the_service_takes_the_firmwares_word_for_a_trial(workstation: Workstation, pi: Pi, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel argument says so on a Raspberry Pi."""
    pi.says(3, tryboot=1)
    assert served(workstation, monkeypatch) == [True]
    pi.says(3, tryboot=0)
    assert served(workstation, monkeypatch) == [False]


def served(workstation: Workstation, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """`abupdate service --trial` up to the service itself: whether it was told that this boot is a trial."""
    told: list[bool] = []

    class Told:
        def __init__(self, board: Board, watch: object, hardware: Hardware, *rest: object, trial_only: bool) -> None:
            told.append(hardware.hinted)

        def run(self) -> int:
            return 0

    monkeypatch.setattr(service, "Service", Told)
    workstation.ok("service", "--trial")
    return told


def test_no_image_lies_on_a_boards_store(workstation: Workstation, medium: Path) -> None:
    store = workstation.folder / "boot/store"
    store.unlink()
    place = workstation.places["B.rootfs"]
    place.write_bytes(medium.read_bytes().ljust(place.stat().st_size, b"\0"))
    store.symlink_to(place)
    refused(workstation, "lies on slot B.rootfs")


def test_doctor_tells_that_the_programs_answer(workstation: Workstation, medium: Path) -> None:
    findings = workstation.run("--json", "doctor").document["findings"]
    assert any("get-state answers within" in row["text"] for row in findings)
