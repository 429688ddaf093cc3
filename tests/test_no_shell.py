"""No word of a bundle, a peer or a configuration ever reaches a shell: read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "abupdate"
FILES = sorted(PACKAGE.rglob("*.py"))
# Calls that hand a line of text to a shell, or run text as Python.
FORBIDDEN = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
    "pty.spawn",
    "eval",
    "exec",
    "compile",
    "pickle.load",
    "pickle.loads",
    "marshal.loads",
}
SHELLS = {"sh", "bash", "dash", "busybox", "env"}
# Where programs are started at all; a new place is to be looked at.
STARTERS = {
    "bootloaders/custom.py",
    "cli/service.py",
    "devices/power.py",
    "devices/tpm.py",
    "fleet/jobs.py",
    "health/checks.py",
    "host/signing.py",
}


def named(node: ast.expr) -> str:
    """os.path.join -> "os.path.join"; empty for anything else than names and dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = named(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def faults(source: str) -> list[str]:
    """What in a file starts a shell or runs text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = named(node.func)
            if name in FORBIDDEN or name.startswith(("os.exec", "os.spawn", "os.posix_spawn")):
                found.append(name)
            if any(keyword.arg in ("shell", None) and "subprocess" in name for keyword in node.keywords):
                found.append(f"{name} with shell= or **")
            found += [
                f"{name} of a string" for first in node.args[:1] if name.startswith("subprocess.") and isinstance(first, ast.JoinedStr)
            ]
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "subprocess", "pty", "pickle", "asyncio"):
            found += [f"from {node.module} import {alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in FORBIDDEN]
            found += [f"from subprocess import {alias.name}" for alias in node.names if node.module == "subprocess"]
        elif isinstance(node, ast.List | ast.Tuple) and node.elts and isinstance(node.elts[0], ast.Constant):
            program = node.elts[0].value
            if isinstance(program, str) and program.rpartition("/")[2] in SHELLS:
                found.append(f"runs {program}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_shell(path: Path) -> None:
    assert not faults(path.read_text())


def test_programs_are_started_in_few_places() -> None:
    found = set()
    for path in FILES:
        calls = [named(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(name in ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.check_call") for name in calls):
            found.add(str(path.relative_to(PACKAGE)))
    assert found == STARTERS


@pytest.mark.parametrize(
    "line",
    [
        "os.system(word)",
        "subprocess.run(word, shell=True)",
        "subprocess.Popen(word, **options)",
        "subprocess.run(['/bin/sh', '-c', word])",
        "subprocess.run(('bash', '-c', word))",
        "subprocess.run(f'reboot {word}')",
        "from os import popen",
        "from subprocess import run",
        "os.execvp(word, [])",
        "eval(word)",
    ],
)
def test_the_test_sees_it(line: str) -> None:
    assert faults(line)
