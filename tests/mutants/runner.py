"""Applies one mutant to a copy of the tree and runs the quick part of the tests against that copy."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.table import Mutant

ROOT = Path(__file__).resolve().parents[2]
# Named tests of one mutant, and the whole quick part; a mutant that makes a test hang is killed by that, too.
_NAMED_S = 300
_WHOLE_S = 1200
_NOT_COPIED = shutil.ignore_patterns(".git", ".cache", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
# Linters would find a name that is not used any more, which says nothing about the tests; the table is stale in a mutated tree.
_NOT_RUN = ("--ignore=tests/test_linters.py", "--ignore=tests/mutants")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::.*?)(?: - .*)?$", re.MULTILINE)


class StaleError(Exception):
    """An entry of the table, or the set-up, that does not do what it says."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant: the test that failed (empty: it survived), after how many seconds. whole: by none of the named tests."""

    mutant: Mutant
    killed_by: str
    seconds: float
    whole: bool = False


def stale(mutant: Mutant, root: Path = ROOT) -> str:
    """Empty, or why the entry does not fit the code any more."""
    path = root / mutant.file
    if not path.is_file():
        return "there is no such file"
    count = path.read_text().count(mutant.old)
    if count != 1:
        return f"its old text occurs {count} times instead of once"
    if mutant.old == mutant.new:
        return "it changes nothing"
    try:
        compile(path.read_text().replace(mutant.old, mutant.new), mutant.file, "exec")
    except SyntaxError as error:
        return f"what it makes is no Python: {error}"
    missing = [test for test in mutant.killers if not (root / test.partition("::")[0]).is_file()]
    return f"there is no {missing[0]}" if missing else ""


def copied(folder: Path, mutant: Mutant | None = None) -> Path:
    """A copy of the tree with the mutant in it, and without anything compiled."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=_NOT_COPIED, symlinks=True)
    (tree / ".cache").mkdir()
    (tree / ".cache/venv").symlink_to(ROOT / ".cache/venv")
    if mutant is not None:
        path = tree / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
    return tree


def run_tests(tree: Path, tests: Sequence[str], limit_s: float) -> str:
    """Run tests in the tree up to the first failure; the id of the test that failed, empty when all passed.

    Raises StaleError where pytest did not run the tests of that tree against the abupdate of that tree.
    """
    command = [sys.executable, "-m", "pytest", "-p", "tests.mutants.in_copy", "-x", "-q", "-rfE", "-m", "not qemu and not slow", *tests]
    command += ["-p", "no:cacheprovider", "-o", "timeout=60", *_NOT_RUN]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTEST_"))}
    env = {**kept, "PYTHONPATH": str(tree), "ABUPDATE_TREE": str(tree), "PYTHONHASHSEED": "0", "COLUMNS": "300"}
    with subprocess.Popen(
        command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            said = process.communicate(timeout=limit_s)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "a test that never ended"
    if process.returncode == 0:
        return ""
    failed = _FAILED.search(said)
    if process.returncode == 1 and failed:
        return failed.group(1)
    if process.returncode == 1 and "Timeout" in said:
        return "a test that never ended"
    raise StaleError(f"pytest ended with {process.returncode}:\n{said[-2000:]}")


def judge(mutant: Mutant) -> Verdict:
    """Run the tests that should kill the mutant; when they pass, the whole quick part."""
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="abupdate-mutant-") as folder:
        tree = copied(Path(folder), mutant)
        try:
            found = run_tests(tree, mutant.killers, _NAMED_S)
            whole = not found
            if whole:
                found = run_tests(tree, (), _WHOLE_S)
        except StaleError as error:
            raise StaleError(f"{mutant.name}: {error}") from error
    return Verdict(mutant, found, time.monotonic() - start_s, whole and bool(found))


def baseline(mutants: Sequence[Mutant], *, whole: bool) -> None:
    """The tests must pass in an unchanged copy, or what kills would be the copy. Raises StaleError."""
    named = sorted({test for mutant in mutants for test in mutant.killers})
    with tempfile.TemporaryDirectory(prefix="abupdate-mutant-") as folder:
        tree = copied(Path(folder))
        failed = run_tests(tree, () if whole else named, _WHOLE_S)
    if failed:
        raise StaleError(f"{failed} fails without any mutant")
