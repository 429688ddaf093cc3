"""Who may import whom inside the package, read from the source (architecture: imports run one way)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "abupdate"

# part -> parts it may import from; a part may always import from itself, and everybody may import errors
MAY: dict[str, set[str]] = {
    "errors": set(),
    "model": set(),
    "log": set(),
    "durable": set(),
    "ports": {"model"},
    "machine": {"model"},
    "fleetsettings": set(),
    "config": {"fleetsettings"},
    "formats": {"model"},
    "operations": {"machine", "ports", "model", "log"},
    "bootloaders": {"durable", "formats", "model", "ports", "log"},
    "devices": {"durable", "formats", "model", "ports", "log"},
    "health": {"formats", "model", "ports", "log"},
    "transfer": {"devices", "formats", "model", "ports", "log"},
    "components": {"devices", "transfer", "formats", "model", "ports", "log"},
    "fleet": {"durable", "formats", "model", "ports", "log"},
    "host": {"formats", "model", "log"},
    "admin": {"formats", "model", "fleet", "log"},
    "bootwiring": {"config", "bootloaders", "devices", "model", "ports"},
    "fleetwiring": {"wiring", "config", "fleetsettings", "devices", "durable", "fleet", "formats", "log", "operations"},
    "wiring": {
        "bootwiring",
        "config",
        "fleetsettings",
        "operations",
        "bootloaders",
        "devices",
        "transfer",
        "health",
        "components",
        "fleet",
        "formats",
        "model",
        "ports",
        "log",
    },
}
CLI = {"cli", "__main__"}  # the outermost part: may import everything


def part_of(module: str) -> str:
    """abupdate.formats.bundle -> formats"""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def imports_of(path: Path) -> set[str]:
    """Parts of abupdate that a file imports, TYPE_CHECKING blocks and functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {part_of(name.name) for name in node.names if name.name.split(".")[0] == "abupdate"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "abupdate":
            assert node.level == 0, "relative imports hide who imports whom"
            if node.module == "abupdate":
                found |= {name.name for name in node.names if not name.name.startswith("__")}
            else:
                found.add(part_of(node.module))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    part = relative.parts[0].removesuffix(".py")
    if part in CLI or part == "__init__":
        return
    assert part in MAY, f"{part} has no rule: say in this table what it may import"
    forbidden = imports_of(path) - MAY[part] - {part, "errors"}
    assert not forbidden, f"{relative} imports {sorted(forbidden)}"


def test_packages_export_nothing() -> None:
    for init in PACKAGE.rglob("__init__.py"):
        body = ast.parse(init.read_text()).body
        allowed = body[1:] if init.parent != PACKAGE else body[2:]
        assert not allowed, f"{init}: only a docstring (and the version) belong here"


def test_table_has_no_cycles() -> None:
    def reach(part: str, seen: tuple[str, ...]) -> None:
        assert part not in seen, f"cycle: {seen}"
        for other in MAY.get(part, set()) - {part}:
            reach(other, (*seen, part))

    for part in MAY:
        reach(part, ())
