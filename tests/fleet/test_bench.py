"""The bench of a simulated site, with the smallest one: it runs, its figures are those of the medium, and an aim that is missed shows."""

from __future__ import annotations

import pytest

from tests.bench import compare_fleetsite
from tests.bench.fleetfigures import bus_seconds


def test_a_site_of_four_is_measured_on_both_media_and_meets_its_aims(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_fleetsite.main(["--nodes", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("    4 ")] == [["4", "LAN"], ["4", "serial"]]
    assert [line.split()[0] for line in lines if " aim " in line] == ["met"] * 3
    for entry, times in (("ORDER", "1"), ("PLAN", "1"), ("GRANT", "4"), ("RELEASE", "4")):
        assert [line.split()[1] for line in lines if line.startswith(f"{entry} ") and " times" in line] == [times]


def test_a_missed_aim_is_said_and_is_the_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_fleetsite, "AIM_VOTE_BYTES", 126)
    assert compare_fleetsite.main(["--nodes", "4", "--media", "serial"]) == 1
    (missed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSED")]
    assert "a vote is 127 bytes on the wire, aim 126" in missed


def test_bus_time_is_ten_bits_a_byte() -> None:
    assert bus_seconds(11520) == 1.0
