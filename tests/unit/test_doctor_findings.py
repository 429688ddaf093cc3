"""What `doctor` finds: on a workstation set-up, and, as on a device, with a kernel command line, mounts and a watchdog of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from abupdate.cli import doctor
from abupdate.config import load
from abupdate.devices import watchdog_sysfs
from abupdate.model import Grade
from tests.workstation import Kit, Workstation, command, environ

Edit = Callable[[Workstation, Kit], object]
Finding = tuple[str, str, str]
# The rest of the line runs as the last command, in mounts that nobody else sees and that go with it.
PRIVATELY = """
set -e
cd "$1"
shift
[ ! -e cmdline ] || mount --bind cmdline /proc/cmdline
if [ ! -d class ]; then :
elif [ -d /sys/class/watchdog ]; then mount --bind class/watchdog /sys/class/watchdog
else mount --bind class /sys/class
fi
if [ -d mounted ]; then
    mkfs.ext4 -q -F -O ^has_journal rootfs_a
    mount -o loop rootfs_a mounted
fi
exec "$@"
"""


def found(text: str) -> list[Finding]:
    """(grade, topic, text) of doctor's document; what is wrong comes with what to do."""
    rows = json.loads(text)["findings"]
    assert all(row["hint"] for row in rows if row["grade"] != "ok")
    return [(row["grade"], row["topic"], row["text"]) for row in rows]


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def programs(workstation: Workstation, kit: Kit) -> None:
    (workstation.folder / "health.d").mkdir()
    program = workstation.folder / "health.d/10-fine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)


def one_area(workstation: Workstation, kit: Kit) -> None:
    made = workstation.folder / "single"
    subprocess.run(["mkenvimage", "-s", "0x4000", "-o", made, "-"], input=b"foreign=kept\n", check=True)
    workstation.fw_env_config.write_text(f"{made} 0x0 0x4000\n")


def spoiled_keyring(workstation: Workstation, kit: Kit) -> None:
    workstation.state.mkdir(mode=0o700)
    stored = workstation.state / "keyring"
    stored.write_bytes(kit.ring.read_bytes())
    stored.chmod(0o600)
    spoil(stored)


def spoiled_record(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    spoil(workstation.state / "record.1")


def emptied_environment(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    workstation.put_environment("foreign=kept\n")


def lost_record(workstation: Workstation, kit: Kit) -> None:
    workstation.state.mkdir(mode=0o700)
    (workstation.state / "record.0").write_bytes(b"x")


CASES: dict[str, tuple[Edit, Finding]] = {
    "fresh": (lambda workstation, kit: None, ("warn", "state_dir", "is not there yet")),
    "record": (
        spoiled_record,
        ("warn", "record", "record.1: record has a wrong checksum"),
    ),
    "record lost": (
        lost_record,
        ("warn", "record", "there is none (or none that this version reads)"),
    ),
    "board without our variables": (lambda workstation, kit: None, ("ok", "boot store", "holds none of our variables yet")),
    "store that was emptied": (emptied_environment, ("warn", "boot store", "holds none of our variables, though slots were flashed here")),
    "one copy of the environment": (one_area, ("fail", "boot store", "a single U-Boot environment can be lost")),
    "U-Boot's own boot command": (
        lambda workstation, kit: workstation.setenv("bootcmd", "run distro"),
        ("warn", "boot store", "the service will not rebuild a damaged store"),
    ),
    "believed": (lambda workstation, kit: None, ("warn", "boot", '[device] booted = "A" is believed')),
    "test keys": (
        lambda workstation, kit: workstation.edit("[watchdog]", "allow_test_keys = true\n[watchdog]"),
        ("warn", "trust", "test keys are accepted"),
    ),
    "stored keyring": (spoiled_keyring, ("warn", "trust", "the stored keyring is not used")),
    "a file as watchdog": (
        lambda workstation, kit: (workstation.folder / "no-watchdog").touch(),
        ("fail", "watchdog", "no-watchdog is no watchdog that the kernel lists"),
    ),
    "no watchdog": (lambda workstation, kit: None, ("fail", "watchdog", "no-watchdog is not there")),
    "no health programs": (lambda workstation, kit: None, ("warn", "health", "no health programs")),
    "health programs": (programs, ("ok", "health", "1 program in")),
    "slot too small to be there": (
        lambda workstation, kit: workstation.places["B.boot"].unlink(),
        ("fail", "slots", "boot_b"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_on_a_workstation(workstation: Workstation, kit: Kit, case: str) -> None:
    edit, (grade, topic, words) = CASES[case]
    edit(workstation, kit)
    done = workstation.run("--json", "doctor")
    rows = found(done.out)
    assert [row for row in rows if row[:2] == (grade, topic) and words in row[2]], rows
    assert done.code == 1, "this machine has no such watchdog"


def privately(workstation: Workstation) -> tuple[int, list[Finding]]:
    """doctor with the files of the workstation's folder in the kernel's places."""
    argv = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        PRIVATELY,
        "sh",
        str(workstation.folder),
        *command("-c", workstation.config, "--json", "doctor"),
    ]
    done = subprocess.run(argv, env=environ(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, found(done.stdout)


def watchdog(workstation: Workstation, **attributes: str) -> None:
    """A watchdog as sysfs shows it; nothing opens the device file where sysfs tells enough."""
    workstation.edit("no-watchdog", "watchdog0")
    (workstation.folder / "watchdog0").touch()
    folder = workstation.folder / "class/watchdog/watchdog0"
    folder.mkdir(parents=True)
    for name, value in attributes.items():
        (folder / name).write_text(f"{value}\n")


def test_on_a_device_where_all_is_well(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v1", "B")
    workstation.edit('booted = "B"', 'booted = "auto"')
    programs(workstation, kit)
    (workstation.folder / "cmdline").write_text("quiet abupdate.slot=B panic=10\n")
    watchdog(workstation, identity="i6300ESB timer", state="inactive", nowayout="0", options="0x8180", max_timeout="2046")
    code, rows = privately(workstation)
    assert (code, [row for row in rows if row[0] != "ok"]) == (0, [])
    assert ("ok", "boot", "slot B runs") in rows
    assert ("ok", "watchdog", f"{workstation.folder}/watchdog0 (i6300ESB timer), state inactive") in rows


def test_on_a_device_where_much_is_wrong(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v1", "B")
    workstation.edit('booted = "B"', 'booted = "auto"\n[trial]\ntries = 5')
    (workstation.folder / "mounted").mkdir()
    (workstation.folder / "cmdline").write_text("quiet abupdate.slot=B panic=0\n")
    watchdog(workstation, identity="a bad one", state="inactive", nowayout="0", options="0x8080")
    code, rows = privately(workstation)
    assert code == 1
    wrong = [row for row in rows if row[0] != "ok"]
    assert ("fail", "boot", "the kernel hangs for ever after a panic") in wrong
    assert ("fail", "watchdog", f"{workstation.folder}/watchdog0 (a bad one) stops whenever it is closed") in wrong
    assert ("warn", "slots", f"A.rootfs {workstation.places['A.rootfs']} is mounted read-write") in wrong
    assert ("ok", "boot", "the boot store holds other numbers than [trial]; the next flash or confirm writes them") in rows


def test_a_watchdog_that_cannot_wait_for_the_service(workstation: Workstation) -> None:
    watchdog(workstation, identity="small", state="active", nowayout="1", max_timeout="60")
    (workstation.folder / "class/watchdog/watchdog1").mkdir()
    code, rows = privately(workstation)
    assert ("ok", "watchdog", f"{workstation.folder}/watchdog0 (small) takes at most 60 s, boot_timeout_s is 120") in rows
    (workstation.folder / "watchdog0").unlink()
    code, rows = privately(workstation)
    assert code == 1
    assert ("fail", "watchdog", f"{workstation.folder}/watchdog0 is not there (there is watchdog0, watchdog1)") in rows


def test_a_watchdog_that_systemd_wants_for_itself(workstation: Workstation, monkeypatch: pytest.MonkeyPatch) -> None:
    """RuntimeWatchdogSec= and abupdate on the same device; on another one, no word of it."""
    watchdog(workstation, identity="one", state="active", nowayout="0", options="0x8180")
    settings = load(workstation.config)
    device, proc = workstation.folder / "watchdog0", workstation.folder / "proc/1"
    (proc / "fd").mkdir(parents=True)
    (proc / "comm").write_text("systemd\n")
    paths = watchdog_sysfs.WatchdogPaths(sys_class=workstation.folder / "class/watchdog", proc=proc.parent)
    monkeypatch.setattr(watchdog_sysfs, "KERNEL_PATHS", paths)
    monkeypatch.setattr(watchdog_sysfs, "devices", lambda: ("watchdog0", "watchdog1"))
    for held, grades in ((device, [Grade.FAIL]), (device.with_name("watchdog1"), [Grade.OK])):
        (proc / "fd/7").unlink(missing_ok=True)
        (proc / "fd/7").symlink_to(held)
        rows = list(doctor._watchdog(settings))
        assert [row.grade for row in rows] == grades
        assert ("is held by process 1 (systemd)" in rows[0].text) == (held == device)
