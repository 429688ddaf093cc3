"""Prints what the crash simulator saw: one line for each operation, at the end of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sim.explore import Tally


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds fw_env.config and the environment's lock."""
    return tmp_path_factory.mktemp("sim")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of runs log the same; what matters is in the Violation."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str, Tally], None]:
    """Leaves a count for the summary."""
    return lambda name, tally: record_property("crash simulator", (name, tally.steps, tally.runs, len(tally.states)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table."""
    reports = [report for report in terminalreporter.stats.get("passed", []) if isinstance(report, pytest.TestReport)]
    # As the workers of a parallel run send them.
    rows: list[tuple[str, int, int, int]] = [
        tuple(value)  # type: ignore[arg-type,misc]
        for report in reports
        for name, value in report.user_properties
        if name == "crash simulator"
    ]
    if not rows:
        return
    terminalreporter.write_line(f"{'crash simulator: operation':36} {'steps':>6} {'runs':>7} {'states':>8}")
    for title, steps, runs, states in sorted(rows):
        terminalreporter.write_line(f"{title:36} {steps:6} {runs:7} {states:8}")
    terminalreporter.write_line(f"{'total':36} {'':6} {'':7} {sum(row[3] for row in rows):8}")
