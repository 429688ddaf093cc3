"""Checks that are tests: ruff, mypy --strict, shellcheck, names that must not be committed, the top level."""

from __future__ import annotations

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
    run("shellcheck", *scripts)


def test_top_level() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_no_registry_hosts() -> None:
    # What a machine uses is derived from its own configuration; a committed host name would only work here.
    pattern = re.compile(rb"https?://(?!(?:www\.)?(?:apache\.org|127\.0\.0\.1|localhost)\b)[A-Za-z0-9.-]+\.[a-z]{2,}")
    for path in tracked():
        if path.name == "LICENSE":
            continue
        found = pattern.search(path.read_bytes())
        assert found is None, f"{path.relative_to(ROOT)}: {found and found.group()!r}"


def test_unit_files() -> None:
    units = sorted(str(path) for path in (ROOT / "images/debian").glob("*.service"))
    assert len(units) == 2
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    # The program is not installed here; everything else that systemd says about the units is a fault.
    rest = [line for line in done.stderr.splitlines() if "/usr/bin/abupdate is not executable" not in line and line.startswith("abupdate")]
    assert not rest, "\n".join(rest)
