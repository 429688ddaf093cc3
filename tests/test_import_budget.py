"""What the verbs of every start may load: measured in a process of its own, from sys.modules after the verb has run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workstation import Kit, Workstation, environ

# After the verb: its exit code and every module that was loaded on the way. os._exit: nothing may run behind it.
RUN = """
import os, sys
from abupdate.__main__ import main
code = main(sys.argv[2:])
names = sorted(sys.modules)
import json
with open(sys.argv[1], "w") as file:
    json.dump([code, names], file)
    file.flush()
os._exit(0)
"""
# The same for the service, which is stopped by its own signal as soon as it is up; the order to reboot goes nowhere.
SERVE = """
import os, signal, sys
from abupdate.devices import power
power.reboot = power.reboot_now = lambda: os._exit(99)
from abupdate.devices import thisboot
thisboot.LinuxBoot.mark_settled = lambda boot: None
from abupdate.operations.service import Service
start = Service._start
def started(service):
    found = start(service)
    os.kill(os.getpid(), signal.SIGTERM)
    return found
Service._start = started
"""

NEVER = ("asyncio", "abupdate.fleet", "abupdate.host", "abupdate.admin")
SEALED = ("abupdate.formats.contentkey", "cryptography.hazmat.primitives.asymmetric.x25519", "cryptography.hazmat.primitives.ciphers.aead")
DECODING = ("construct", "cryptography", "zstandard")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Keys, keyring and bundles."""
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def workstation(tmp_path: Path, kit: Kit) -> Workstation:
    """Slot B runs on trial."""
    made = Workstation(tmp_path, kit)
    made.ok("flash", kit["v1"])
    made.reboot("B")
    return made


def loaded(workstation: Workstation, *argv: str | Path, before: str = "", code: int = 0) -> set[str]:
    """Names of the modules that the verb has loaded."""
    report = workstation.folder / "report"
    command = [sys.executable, "-c", before + RUN, report, "-c", workstation.config, *argv]
    # Whoever measures coverage loads modules of his own.
    env = {name: value for name, value in environ().items() if not name.startswith("COVERAGE_")}
    done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    found, names = json.loads(report.read_text())
    assert found == code, done.stderr
    return set(names)


def of(names: set[str], *packages: str) -> set[str]:
    """Those of the names that belong to the packages."""
    return {name for name in names if any(name == package or name.startswith(f"{package}.") for package in packages)}


@pytest.mark.parametrize("argv", [("status",), ("--json", "status"), ("confirm",), ("revert",)])
def test_status_confirm_and_revert(workstation: Workstation, argv: tuple[str, ...]) -> None:
    names = loaded(workstation, *argv)
    assert "abupdate.machine" in names, "the measuring itself"
    assert not of(names, *NEVER, *DECODING, "abupdate.transfer")


def test_keyring_show(workstation: Workstation) -> None:
    names = loaded(workstation, "keyring", "show")
    assert "abupdate.operations.keyring" in names
    assert not of(names, *NEVER, "construct", "zstandard", "abupdate.transfer")


def test_asking_the_fleets_daemon(workstation: Workstation) -> None:
    """Only the socket's language is loaded of the fleet; nobody answers here."""
    with workstation.config.open("a") as config:
        config.write('[fleet]\nudp_interface = "lo"\ncontrol = "no-daemon.sock"\n')
    names = loaded(workstation, "fleet", "status", code=1)
    assert of(names, "abupdate.fleet") == {"abupdate.fleet", "abupdate.fleet.control"}
    assert not of(names, "asyncio", "abupdate.host", *DECODING, "abupdate.transfer", "abupdate.wiring")


def test_the_service(workstation: Workstation) -> None:
    names = loaded(workstation, "service", before=SERVE)
    assert "abupdate.operations.service" in names
    assert not of(names, *NEVER, *DECODING, "abupdate.transfer")


@pytest.mark.parametrize("argv", [("flash", "v2"), ("verify",)])
def test_what_reads_bundles_decodes_without_construct_too(workstation: Workstation, kit: Kit, argv: tuple[str, ...]) -> None:
    if argv[0] == "flash":
        workstation.ok("confirm")
    names = loaded(workstation, *(kit[part] if part == "v2" else part for part in argv))
    assert of(names, "abupdate.transfer")
    assert not of(names, *NEVER, "construct")
    assert not of(names, *SEALED), "nothing here is encrypted"


def test_a_sealed_bundle(workstation: Workstation, kit: Kit) -> None:
    kit.recipient("device")
    workstation.ok("confirm")
    with workstation.config.open("a") as config:
        config.write(f'[encryption]\nkeys = ["{kit.folder}/device.pem"]\n')
    names = loaded(workstation, "flash", kit.bundle("sealed", recipients=("device",)))
    assert of(names, *SEALED)
    assert not of(names, *NEVER, "construct")


def test_usage_costs_next_to_nothing(workstation: Workstation) -> None:
    names = loaded(workstation, "frobnicate", code=2)
    assert not of(names, *NEVER, *DECODING, "abupdate.transfer", "abupdate.wiring", "abupdate.operations", "json", "subprocess")


def test_the_fleets_daemon(tmp_path: Path) -> None:
    """What stays in memory as long as the device runs: nothing that only its children need."""
    report = tmp_path / "modules"
    source = "import sys, abupdate.cli.fleet_daemon, pathlib; pathlib.Path(sys.argv[1]).write_text('\\n'.join(sys.modules))"
    subprocess.run([sys.executable, "-c", source, report], env=environ(), check=True, timeout=30)
    names = set(report.read_text().splitlines())
    assert "abupdate.fleet.node" in names
    assert not of(names, "asyncio", "construct", "zstandard", "ssl", "http", "abupdate.host", "abupdate.admin", "abupdate.transfer")
