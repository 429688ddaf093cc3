"""Checks that are tests: ruff, mypy --strict, shellcheck, names that must not be committed, the top level."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {"pyproject.toml", "abupdate", "bootloader-hooks", "images", "tests", "qemu", "README.md", "LICENSE"}


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_ruff_check() -> None:
    run(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_format() -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_mypy_strict() -> None:
    run(sys.executable, "-m", "mypy")


def test_shellcheck() -> None:
    assert shutil.which("shellcheck"), "shellcheck is missing: ./tests/run installs it"
    scripts = []
    for path in tracked():
        with path.open("rb") as file:
            first = file.readline(80)
        if re.match(rb"#!\s*/\S*/(env +)?(ba|da)?sh\b", first):
            scripts.append(str(path.relative_to(ROOT)))
    assert len(scripts) >= 3
    run("shellcheck", "-x", *scripts)


def test_top_level() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def registry_hosts() -> set[str]:
    """Hosts of the package registries that this machine is configured for; a committed one would only work here."""
    texts = [path.read_text(errors="replace") for path in Path("/etc/apt").rglob("*") if path.suffix in (".list", ".sources")]
    texts.append(subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout)
    texts += [value for name, value in os.environ.items() if "index" in name.lower() or "registry" in name.lower()]
    hosts = {host.lower() for text in texts for host in re.findall(r"https?://(?:[^/@\s]*@)?([A-Za-z0-9.-]+)", text)}
    return {host for host in hosts if "." in host or len(host) > 8} - {"localhost", "127.0.0.1"}


def test_no_registry_hosts() -> None:
    hosts = registry_hosts()
    assert hosts, "no registry is configured here: where do packages come from?"
    for path in tracked():
        content = path.read_bytes().lower()
        assert not [host for host in hosts if host.encode() in content], path.relative_to(ROOT)


def test_unit_files() -> None:
    units = sorted(str(path) for path in (ROOT / "images/debian").glob("*.service"))
    assert len(units) == 4
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    # The program is not installed here; everything else that systemd says about the units is a fault.
    rest = [line for line in done.stderr.splitlines() if "/usr/bin/abupdate is not executable" not in line and line.startswith("abupdate")]
    assert not rest, "\n".join(rest)
