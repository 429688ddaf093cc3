"""Fixtures of the tests of the command line: a kit of keys and bundles, and a workstation set-up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workstation import Kit, Workstation


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Keys, keyring and bundles, made once."""
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def workstation(tmp_path: Path, kit: Kit) -> Workstation:
    """A fresh board: slot A runs, nothing of ours in the environment."""
    folder = tmp_path / "workstation"
    folder.mkdir(mode=0o755)
    return Workstation(folder, kit)
