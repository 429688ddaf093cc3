"""A victim in memory, the specimen's variants, and where a test looks when it cannot look everywhere."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from tests.hostile import specimen
from tests.hostile.specimen import Specimen
from tests.hostile.victim import Victim

_MEMORY = Path("/dev/shm")


@pytest.fixture
def quiet() -> Iterator[None]:
    """Thousands of refusals are not logged."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def victim(quiet: None) -> Iterator[Victim]:
    """A fresh one, where possible in a file system in memory."""
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="abupdate-", dir=place) as folder:
        yield Victim(Path(folder))


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Specimen]:
    """The specimen plain, with a chain, sealed; and `other`: another bundle, as good, with images of the same sizes."""
    made = {kind: specimen.variant(kind, tmp_path_factory.mktemp(kind)) for kind in ("plain", "chain", "sealed")}
    return made | {"other": specimen.variant("plain", tmp_path_factory.mktemp("other"), seed=2)}


Choose = Callable[[Sequence[int], int], list[int]]


@pytest.fixture
def chosen(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Choose:
    """Picks so many out of many, others for each commit; a test that is marked slow takes all."""
    if request.node.get_closest_marker("slow"):
        return lambda every, count: list(every)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    seed = done.stdout.strip()[:12] or "no commit"
    record_property("seed", seed)
    print(f"seed {seed}")
    return lambda every, count: sorted(Random(seed).sample(list(every), min(count, len(every))))
