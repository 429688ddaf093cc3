"""Fixtures of the tests of the command line: a kit of keys and bundles, and a workstation set-up."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workstation import Kit, Workstation

_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Keys, keyring and bundles, made once."""
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def workstation(kit: Kit) -> Iterator[Workstation]:
    """A fresh board: slot A runs, nothing of ours in the environment.

    In a file system in memory where there is one: every verb flushes a dozen times, and a busy disk would take most of the tests' time.
    """
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="abupdate-", dir=place) as folder:
        yield Workstation(Path(folder), kit)


@pytest.fixture
def workstation_on_disk(tmp_path: Path, kit: Kit) -> Workstation:
    """The same on whatever the temporary folder lies on."""
    return Workstation(tmp_path, kit)
