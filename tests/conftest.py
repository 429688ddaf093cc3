"""For all tests: signals as a terminal hands them out, also where the suite is started in the background; no blame for a busy machine."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy with other tests is no fault of the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_configure() -> None:
    """A shell without job control starts background commands with SIGINT ignored, and so would be every process under test."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_is_given_back() -> Iterator[None]:
    """What one test silences must not stay silent in the next one of the same process, in whatever order they come."""
    before = logging.root.manager.disable
    yield
    assert logging.root.manager.disable == before, "the log was left silenced"
