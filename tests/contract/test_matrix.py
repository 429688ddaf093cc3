"""The README's table of bootloaders: each cell names tests that exist, and says of them what is so."""

from __future__ import annotations

import pytest

from tests.contract.matrix import COLUMNS, MATRIX, ROOT, Without, is_slow, named, table


def test_the_readme_shows_the_table() -> None:
    assert table() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", MATRIX)
def test_every_cell_is_a_test_or_a_reason(name: str) -> None:
    cells = MATRIX[name]
    assert tuple(column for column in COLUMNS if column in cells) == COLUMNS
    assert len(cells) == len(COLUMNS)
    for cell in cells.values():
        assert named(cell) or (isinstance(cell, Without) and cell.reason)
        for test in named(cell):
            assert is_slow(test) in (True, False), f"{test} is not there"


def test_one_boot_of_every_bootloader_that_an_emulator_runs_is_in_every_run() -> None:
    for name, cells in MATRIX.items():
        shown = {cell.shown() for cell in cells.values()}
        assert "boot" in shown or "boot (*all*)" not in shown, name
