"""The systemd units: how far their sandbox goes, what must never be in it, and that the service confirms a trial inside of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workstation import ROOT, Workstation, environ

UNITS = tuple(ROOT / "images/debian" / name for name in ("abupdate-trial.service", "abupdate.service", "abupdate-fleet.service"))
CONFIRMED = ROOT / "images/debian/abupdate-confirmed.service"
WORST = 7.5
# What would keep a device from confirming: no watchdog, no boot store, no start in early boot, no ffi, no eMMC boot partition.
NEVER = (
    "DeviceAllow",
    "DevicePolicy",
    "MemoryDenyWriteExecute",
    "PrivateDevices",
    "PrivateNetwork",
    "PrivateTmp",
    "PrivateUsers",
    "ProtectClock",
    "ProtectKernelTunables",
    "RootDirectory",
    "User",
)


def settings(unit: Path) -> list[tuple[str, str]]:
    """Names and values of a unit's [Service]."""
    body = unit.read_text().partition("[Service]\n")[2].partition("\n[Install]")[0]
    found = [line.partition("=") for line in body.splitlines() if line and not line.startswith("#")]
    return [(name, value) for name, _, value in found]


def sandbox(unit: Path) -> list[tuple[str, str]]:
    found = settings(unit)
    return found[found.index(("NoNewPrivileges", "yes")) :]


def test_all_units_have_the_same_sandbox() -> None:
    assert sandbox(UNITS[0]) == sandbox(UNITS[1]) == sandbox(UNITS[2]) == sandbox(CONFIRMED)
    assert len(sandbox(UNITS[0])) > 15


@pytest.mark.parametrize("unit", [*UNITS, CONFIRMED], ids=lambda unit: unit.name)
def test_what_would_stop_the_service_is_not_in_it(unit: Path) -> None:
    assert not {name for name, _ in settings(unit)} & set(NEVER)
    assert ("OOMPolicy", "continue") in settings(unit), "a health program that is killed for its memory would end the service"


@pytest.mark.parametrize("unit", [*UNITS, CONFIRMED], ids=lambda unit: unit.name)
def test_capabilities_that_a_boot_store_needs_are_not_taken_away(unit: Path) -> None:
    """Raw devices and mounts, files of others, programs of a board's own, and efivarfs, whose variables the kernel makes immutable."""
    taken = {word.removeprefix("~") for name, value in settings(unit) if name == "CapabilityBoundingSet" for word in value.split()}
    assert not taken & {"CAP_SYS_ADMIN", "CAP_SYS_RAWIO", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_LINUX_IMMUTABLE"}


@pytest.mark.parametrize("unit", [*UNITS, CONFIRMED], ids=lambda unit: unit.name)
def test_folders_that_a_boot_store_may_be_a_file_in_stay_writable(unit: Path) -> None:
    """Where a path is both, systemd takes ProtectSystem=, which closes /boot and /efi unless it is off, for ReadWritePaths=."""
    assert "ProtectSystem" not in dict(settings(unit))
    closed = [
        word.lstrip("-") for name, value in settings(unit) if name in ("ReadOnlyPaths", "InaccessiblePaths") for word in value.split()
    ]
    assert closed == ["/usr", "/etc"]


@pytest.mark.parametrize("unit", [*UNITS, CONFIRMED], ids=lambda unit: unit.name)
def test_the_figure_of_systemd_analyze(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(unit)], capture_output=True, text=True, timeout=60, check=True
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout[-500:]
    assert float(found[1]) <= WORST
    assert "not found" not in done.stderr
    assert "Unknown" not in done.stderr, done.stderr


# As in test_import_budget: what would reboot this machine ends the process instead. And it has just booted.
SERVE = """
import os, sys, time
from abupdate.devices import power, thisboot
power.reboot = power.reboot_now = lambda: os._exit(99)
booted_s = time.monotonic()
thisboot.LinuxBoot.boottime_s = lambda boot: time.monotonic() - booted_s
from abupdate.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
# A mount namespace as ReadOnlyPaths=/usr /etc makes it (and /run, so that this machine's own stays as it is), then the capabilities.
ENTER = """
set -e
for folder in /usr /etc; do mount --bind $folder $folder; mount -o remount,bind,ro $folder; done
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/abupdate
umask 0077
exec setpriv --no-new-privs --bounding-set="$0" "$@"
"""
HEALTH = """#!/bin/sh
(grep -E 'NoNewPrivs|CapBnd|CapEff' /proc/self/status; touch /etc/abupdate-was-here /usr/abupdate-was-here 2>&1) >> facts
exit 0
"""


def test_a_trial_is_confirmed_inside(workstation: Workstation) -> None:
    """Namespace and capabilities are real; the filter of system calls is not tried here."""
    workstation.ok("flash", workstation.kit["v1"])
    workstation.reboot("B")
    workstation.edit('dir = "health.d"', 'dir = "health.d"\ninterval_s = 30')
    with workstation.config.open("a") as config:
        config.write("[trial]\nwindow_s = 1\n")
    health = workstation.folder / "health.d"
    health.mkdir()
    facts = workstation.folder / "facts"
    (health / "10-facts").write_text(HEALTH.replace(">> facts", f">> {facts}"))
    (health / "10-facts").chmod(0o755)
    taken = [value for name, value in sandbox(UNITS[0]) if name == "CapabilityBoundingSet"]
    assert all(value.startswith("~") for value in taken)
    dropped = [word.removeprefix("CAP_").lower() for value in taken for word in value[1:].split()]
    # ProtectKernelModules= takes the first; the second is for the safety of the machine that runs this test.
    bounding = ",".join(f"-{name}" for name in (*dropped, "sys_module", "sys_boot"))
    command = ["unshare", "--mount", "sh", "-c", ENTER, bounding, sys.executable, "-c", SERVE, "-c", str(workstation.config)]
    done = subprocess.run([*command, "service", "--trial"], env=environ(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert workstation.slot_state("B") == "confirmed"
    assert workstation.printed()["BOOT_FLOOR"] == "1"
    said = facts.read_text()
    assert said.count("Read-only file system") == 2, said
    assert "NoNewPrivs:\t1" in said
    effective = int(re.findall(r"CapEff:\t([0-9a-f]+)", said)[0], 16)
    assert not effective & 1 << 25, "CAP_SYS_TIME"
    assert effective & 1 << 13, "CAP_NET_RAW"
    modes = {path.name: path.stat().st_mode & 0o777 for path in workstation.state.iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert not Path("/etc/abupdate-was-here").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_trial_is_watched_where_the_initramfs_says_so_as_well(there: bool, tmp_path: Path) -> None:
    """A Raspberry Pi's firmware adds no kernel arguments; systemd itself judges the unit's conditions."""
    if there:
        (tmp_path / "tryboot").touch()
    lines = [line for line in UNITS[0].read_text().splitlines() if line.startswith("Condition")]
    assert lines == ["ConditionKernelCommandLine=|abupdate.trial=1", "ConditionPathExists=|/run/abupdate/tryboot"]
    lines = [line.replace("/run/abupdate", str(tmp_path)) for line in lines]
    done = subprocess.run(["systemd-analyze", "condition", *lines], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) == there, done.stderr


def test_nothing_behind_boot_complete_comes_before_the_confirmation() -> None:
    """What systemd makes of the unit: required by the target and before it, as long as the window lasts, not again once it was done."""
    text = CONFIRMED.read_text()
    assert "Before=boot-complete.target\n" in text
    assert text.partition("[Install]\n")[2] == "RequiredBy=boot-complete.target\n"
    assert {("Type", "oneshot"), ("RemainAfterExit", "yes"), ("TimeoutStartSec", "infinity")} <= set(settings(CONFIRMED))


def test_systemd_understands_every_unit(tmp_path: Path) -> None:
    """Installed as they are, but for the program, which this machine has somewhere else."""
    for unit in (*UNITS, CONFIRMED):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/abupdate", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in (*UNITS, CONFIRMED))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "abupdate" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
