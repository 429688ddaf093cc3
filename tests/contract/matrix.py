"""Which test shows what on which bootloader: the README's table, each cell a boot in QEMU, a model, or the reason why there is none."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("flash", "trial", "confirm", "revert", "hang", "panic", "tries exhausted", "power cut")


@dataclass(frozen=True)
class Boot:
    """Tests that boot the real bootloader, as FILE::FUNCTION below tests/qemu. One in every run is enough for the table to say so."""

    tests: tuple[str, ...]

    def shown(self) -> str:
        return "boot" if any(not is_slow(f"tests/qemu/{test}") for test in self.tests) else "boot (*all*)"


@dataclass(frozen=True)
class Model:
    """Tests over a model of the boot side, as FILE::FUNCTION below tests."""

    tests: tuple[str, ...]

    def shown(self) -> str:
        return "model"


@dataclass(frozen=True)
class Without:
    """n/a, and why."""

    reason: str

    def shown(self) -> str:
        return f"n/a: {self.reason}"


Cell = Boot | Model | Without
MATRIX: Mapping[str, Mapping[str, Cell]] = {}


def table() -> str:
    """The README's table."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, cells in MATRIX.items():
        lines.append(f"| {name} | " + " | ".join(cells[column].shown() for column in COLUMNS) + " |")
    return "\n".join(lines)


@cache
def _functions(path: Path) -> Mapping[str, bool]:
    """Test functions of a file -> whether they run under --all alone."""
    tree = ast.parse(path.read_text())
    marks = [node for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets[0])]
    whole = any(_is_mark(child) for node in marks for child in ast.walk(node))
    return {
        node.name: whole or any(_is_mark(one) for one in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def _is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "slow"


def is_slow(test: str) -> bool:
    """Whether the test, as FILE::FUNCTION, runs under --all alone. Raises KeyError for one that is not there."""
    file, _, name = test.partition("::")
    return _functions(ROOT / file)[name]


def tests_of(cell: Cell) -> tuple[str, ...]:
    """FILE::FUNCTION from the project's folder on."""
    match cell:
        case Boot():
            return tuple(f"tests/qemu/{test}" for test in cell.tests)
        case Model():
            return tuple(f"tests/{test}" for test in cell.tests)
        case Without():
            return ()
