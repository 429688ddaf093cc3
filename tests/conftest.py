"""For all tests: signals as a terminal hands them out, also where the suite is started in the background."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell without job control starts background commands with SIGINT ignored, and so would be every process under test."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
