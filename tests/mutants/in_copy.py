"""A pytest plugin: ends the run unless the abupdate that is tested lies in the tree named by ABUPDATE_TREE."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import abupdate


def pytest_configure(config: pytest.Config) -> None:
    """An editable install points elsewhere; a run against that would kill no mutant, or every one."""
    wanted = Path(os.environ["ABUPDATE_TREE"]).resolve()
    for found in (Path(abupdate.__file__).resolve(), Path(__file__).resolve(), config.rootpath.resolve()):
        if not found.is_relative_to(wanted):
            raise pytest.UsageError(f"{found} is not in {wanted}")
