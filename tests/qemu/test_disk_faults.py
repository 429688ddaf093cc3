"""A medium that fails under each part of an update: the verb says so, what runs stays, and the same verb ends the job afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu.device import Ran
from tests.qemu.faulty_disk import ENVIRONMENT, FaultyDevice, Rule, journal_sectors, sector_of, writes_fail
from tests.qemu.guest import FLASH_TIMEOUT_S, confirm, flash, settled_environment, until

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(500)]

MIB = 1 << 20


@pytest.fixture
def device(images: Path) -> Iterator[FaultyDevice]:
    """A fresh device on a disk that can be told to fail, booted, its service at work: version 1.0.0 on slot A, nothing on B."""
    fresh = FaultyDevice()
    with fresh:
        assert fresh.boot().slot == "A"
        settled_environment(fresh)
        yield fresh


def quiet_flash(device: FaultyDevice, bundle: str, *options: str) -> Ran:
    """`abupdate flash`, without a bar."""
    return device.run(f"abupdate flash --progress none {' '.join(options)} /bundles/{bundle}.abu", FLASH_TIMEOUT_S)


def failed(ran: Ran, *words: str) -> None:
    """Exit 1, in one line that says what and where."""
    assert ran.exit_code == 1, ran.output
    assert all(word in ran.output for word in words), ran.output
    assert "Traceback" not in ran.output


def nothing_armed(device: FaultyDevice, running: str) -> None:
    """The running slot boots next; nothing is on trial."""
    values = device.environment()
    assert values["BOOT_ORDER"].split()[0] == running
    assert "BOOT_TRIAL" not in values


def finishes(device: FaultyDevice, bundle: str, version: str) -> None:
    """A second flash ends the job, through trial and confirmation."""
    flash(device, bundle)
    up = device.reboot()
    assert up.version == version
    confirm(device)
    assert device.status()["slots"][up.slot]["state"] == "confirmed"
    assert device.watchdog_resets == 0


@pytest.mark.parametrize(
    ("label", "offset"),
    [
        ("rootfs_b", 20 * MIB),
        pytest.param("boot_b", 0, marks=pytest.mark.slow),
        pytest.param("boot_b", 30 * MIB, marks=pytest.mark.slow),
        pytest.param("rootfs_b", 0, marks=pytest.mark.slow),
    ],
)
def test_the_slot_cannot_be_written(device: FaultyDevice, label: str, offset: int) -> None:
    with device.failing(*writes_fail(sector_of(label, offset))):
        ran = quiet_flash(device, "v2")
        failed(ran, f"/dev/disk/by-partlabel/{label} failed", "Input/output error")
        status = device.status()
        assert (status["attempt"]["phase"], status["slots"]["B"]["state"]) == ("failed", "writing")
        assert "Input/output error" in status["attempt"]["reason"]
        nothing_armed(device, "A")
        assert device.environment()["BOOT_B_LEFT"] == "0"
        assert device.run("abupdate activate").exit_code == 4
        device.power_cycle()
    assert device.wait_up().slot == "A"
    finishes(device, "v2", "2.0.0")


@pytest.mark.slow
def test_the_slot_cannot_be_read_back(device: FaultyDevice) -> None:
    rule = {"event": "none", "iotype": "read", "errno": 5, "sector": sector_of("rootfs_b", 20 * MIB), "once": False}
    assert quiet_flash(device, "v2", "--no-activate").exit_code == 0
    with device.failing(rule):
        failed(device.run("abupdate activate --progress none", FLASH_TIMEOUT_S), "Input/output error")
        nothing_armed(device, "A")
        failed(device.run("abupdate verify B --progress none", FLASH_TIMEOUT_S), "Input/output error")
    assert device.run("abupdate activate --progress none", FLASH_TIMEOUT_S).exit_code == 0
    assert device.reboot().version == "2.0.0"


def test_the_boot_store_cannot_be_written(device: FaultyDevice) -> None:
    """At step 8, at the confirmation, at step 3: the verb ends with 1, nothing has changed; later the same verb goes through."""
    assert quiet_flash(device, "v2", "--no-activate").exit_code == 0
    before = device.environment()
    with device.failing(*writes_fail(*ENVIRONMENT)):
        failed(device.run("abupdate activate --progress none", FLASH_TIMEOUT_S), "cannot write the U-Boot environment: Input/output error")
        assert device.environment() == before
    assert device.environment() == before
    assert device.run("abupdate activate --progress none", FLASH_TIMEOUT_S).exit_code == 0

    assert device.reboot().version == "2.0.0"
    until("the service has the trial", lambda: device.status()["situation"] == "on-trial")
    with device.failing(*writes_fail(*ENVIRONMENT)):
        failed(device.run("abupdate confirm"), "cannot write the U-Boot environment: Input/output error")
        assert device.environment()["BOOT_TRIAL"] == "B"
        assert device.status()["slots"]["B"]["state"] == "trial"
        failed(device.run("abupdate revert"), "cannot write the U-Boot environment: Input/output error")
        assert device.environment()["BOOT_TRIAL"] == "B"
    confirm(device)
    before = settled_environment(device)
    assert before["BOOT_ORDER"] == "B A"

    with device.failing(*writes_fail(*ENVIRONMENT)):
        failed(quiet_flash(device, "v3"), "cannot write the U-Boot environment: Input/output error")
        assert device.environment() == before, "slot A is still there to fall back to"
        assert device.status()["slots"]["A"]["state"] == "confirmed"
    device.power_cycle()
    assert device.wait_up().slot == "B"
    finishes(device, "v3", "3.0.0")


@pytest.mark.slow
def test_one_copy_of_the_boot_store_cannot_be_written(device: FaultyDevice) -> None:
    """Only the copy whose turn it is fails: the other one counts, and says what it said."""
    before = device.environment()
    for turn in ENVIRONMENT:
        with device.failing(*writes_fail(turn)):
            ran = device.run("fw_setenv n 1; fw_setenv n 2; abupdate --json status")
            assert ran.exit_code == 0, ran.output
            assert json.loads(ran.output.splitlines()[-1])["primary"] == "A"
    assert {name: value for name, value in device.environment().items() if name != "n"} == before


def ends_and_is_finished_later(device: FaultyDevice, reasons: tuple[str, ...], *rules: Rule) -> None:
    """The medium fails by these rules while a slot is written: exit 1, nothing armed, and a flash after the fault ends the job.

    reasons: what a flash under the fault may end with; which of them depends on when the kernel makes the data partition read-only.
    """
    device.type("abupdate flash --progress json /bundles/v2.abu; echo flash-ended $?")
    device.wait(r'"phase": "write", "done_bytes": [1-9]\d{6,}', 120)
    with device.failing(*rules):
        device.wait(r"^flash-ended 1\n", FLASH_TIMEOUT_S)
        nothing_armed(device, "A")
        assert device.status()["slots"]["B"]["state"] == "writing"
        ran = quiet_flash(device, "v2")
        failed(ran)
        assert any(reason in ran.output for reason in reasons), ran.output
        nothing_armed(device, "A")
        device.power_cycle()
        assert device.wait_up().slot == "A", "also while the medium still fails"
        device.power_cycle()
    assert device.wait_up().slot == "A"
    settled_environment(device)
    finishes(device, "v2", "2.0.0")


@pytest.mark.slow
def test_the_data_partition_fails_while_a_slot_is_written(device: FaultyDevice) -> None:
    """Its journal cannot be written any more, so the kernel makes it read-only: step 7 cannot be recorded, and nothing is armed."""
    ends_and_is_finished_later(device, ("state_dir must be writable",), *writes_fail(*journal_sectors(device)))


@pytest.mark.slow
def test_no_flush_succeeds_while_a_slot_is_written(device: FaultyDevice) -> None:
    """Every write is taken, and what is volatile cannot be made durable."""
    reasons = ("state_dir must be writable", "cannot bring the U-Boot environment to the medium")
    ends_and_is_finished_later(device, reasons, {"event": "none", "iotype": "flush", "errno": 5, "once": False})


BLOCKS = """
import fcntl, struct, sys
with open("/data/env", "rb") as file:
    for number in range(8):
        block = bytearray(struct.pack("i", number))
        fcntl.ioctl(file, 1, block)  # FIBMAP
        print(*struct.unpack("i", block))
"""


@pytest.mark.slow
def test_a_boot_store_in_a_file_shows_what_is_on_the_medium(device: FaultyDevice) -> None:
    """After a failed write the kernel keeps the new content of a file in its cache, and nothing of it on the medium."""
    device.check("cp /dev/disk/by-partlabel/env /run/env && head -c 16384 /run/env >/data/env && head -c 16384 /run/env >>/data/env; sync")
    device.check("printf '/data/env 0x0 0x4000\\n/data/env 0x4000 0x4000\\n' >/data/fw_env.config; chmod 644 /data/fw_env.config")
    device.check("sed 's|^kind.*|&\\nfw_env_config = \"/data/fw_env.config\"|' /etc/abupdate/config.toml >/data/config.toml")
    device.check("fw_setenv -c /data/fw_env.config BOOT_ORDER 'A B' && fw_setenv -c /data/fw_env.config BOOT_B_LEFT 3 && sync")
    blocks = [int(word) for word in device.check(f"python3 - <<'END'\n{BLOCKS}END").split()]
    assert all(blocks)
    seen = "abupdate -c /data/config.toml --json status"
    with device.failing(*writes_fail(*(sector_of("data", block * 4096) for block in blocks))):
        failed(device.run("abupdate -c /data/config.toml revert"), "cannot write the U-Boot environment: Input/output error")
        status = json.loads(device.check(seen))
        assert (status["primary"], status["situation"]) == ("A", "steady")
        assert "BOOT_ORDER=A B" in device.check("fw_printenv -c /data/fw_env.config")
    device.check("echo 3 >/proc/sys/vm/drop_caches")
    assert json.loads(device.check(seen))["primary"] == "A", "the medium has never had anything else"
    device.check("abupdate -c /data/config.toml revert")
    assert json.loads(device.check(seen))["situation"] == "reboot-pending"
