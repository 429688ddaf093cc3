"""The reboot parameter with systemd's own programs, in namespaces where nothing can reboot; and how a reboot is told from other ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from abupdate.bootloaders.piplatform import PARAMETER, LinuxPi
from abupdate.cli import service

# A /run and processes of its own, without the right to reboot: `reboot -w` only reads its words and writes a line to the log of logins.
INSIDE = """
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd
mount -t tmpfs none /mnt
mount -t tmpfs none /var/log
ln -s "$(command -v systemctl)" /mnt/reboot
[ -z "$2" ] || echo "$2" >/run/systemd/reboot-param
eval "$1" >/dev/null 2>&1 || true
cat /run/systemd/reboot-param 2>/dev/null || echo none
"""


def after(command: str, before: str = "") -> str:
    """What the parameter is after a command. before: what it is set to first."""
    argv = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "setpriv", "--bounding-set=-sys_boot", "--inh-caps=-sys_boot"]
    done = subprocess.run([*argv, "sh", "-c", INSIDE, "sh", command, before], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_systemctl_reboot_passes_the_parameter_on() -> None:
    assert after("systemctl reboot", PARAMETER) == PARAMETER


def test_reboot_without_an_argument_removes_it() -> None:
    assert after("/mnt/reboot -w --no-wall", PARAMETER) == "none"


def test_reboot_with_the_argument_writes_what_abupdate_writes(tmp_path: Path) -> None:
    assert after(f"/mnt/reboot -w --no-wall '{PARAMETER}'") == PARAMETER
    (tmp_path / "run/systemd").mkdir(parents=True)
    platform = LinuxPi(tmp_path)
    platform.ask()
    assert (tmp_path / "run/systemd/reboot-param").read_text().strip() == PARAMETER
    assert platform.asked()


JOBS = {
    "a reboot": ("2087 reboot.target                start waiting\n2099 abupdate.service             stop  running\n", True),
    "a power-off": ("2087 poweroff.target             start waiting\n2099 abupdate.service             stop  running\n", False),
    "a restart of the service": ("2099 abupdate.service restart running\n", False),
    "a reboot that is taken back": ("2087 reboot.target stop waiting\n", False),
    "nothing": ("No jobs running.\n", False),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_reboot_is_told_apart_from_every_other_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, expected = JOBS[name]
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\n[ \"$*\" = 'list-jobs --no-legend --plain --full' ] || exit 1\ncat <<'E'\n{said}E\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(service, "_SYSTEMD", tmp_path)
    assert service._rebooting() is expected
    monkeypatch.setattr(service, "_SYSTEMD", tmp_path / "absent")
    assert service._rebooting() is False
