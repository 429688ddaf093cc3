"""The table of mutants fits the code; the mutants themselves run with `python -m tests.mutants`."""

from __future__ import annotations

import pytest

from tests.mutants.runner import stale
from tests.mutants.table import MUTANTS


def test_names_are_unique_and_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 24
    assert all(mutant.breaks and mutant.killers for mutant in MUTANTS)


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_every_entry_fits_the_code(file: str) -> None:
    problems = {mutant.name: stale(mutant) for mutant in MUTANTS if mutant.file == file}
    assert not {name: problem for name, problem in problems.items() if problem}
