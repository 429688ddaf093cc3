"""A site of six real daemons of which one lies: it votes twice, proposes two things at once and forges COMPLETE. f = 1."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.localsite import LocalSite, agreed, ended, local_site
from tests.workstation import Kit

MEMBERS = 6
# Time enough for a second one to go down too, if a forged COMPLETE let it.
DOWN_S = 3.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is one: every daemon flushes all the time."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="abupdate-", dir=place) as name:
        yield Path(name)


def decided(site: LocalSite, number: int) -> list[dict[str, Any]]:
    """A member's log."""
    return agreed(site.members[number].device.ok("--json", "fleet", "log").document)


def closed(site: LocalSite, number: int, order: str) -> dict[str, Any]:
    """How the plan ended, as a member knows it; empty while it is open."""
    return next((one for one in site.members[number].status().get("closed", []) if one["order"] == order), {})


@pytest.mark.timeout(300)
def test_a_liar_among_six_neither_stops_nor_breaks_a_rolling_update(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, MEMBERS, liars=1, site=f"faults = 1\nmin_up = {MEMBERS - 1}") as site:
        honest, liar = site.members[:-1], site.members[-1]
        site.until(lambda: all(one["up"] for member in site.members for one in member.status().get("members", [{"up": False}])), "in touch")
        order = site.propose("v2")
        down: dict[str, float] = {}
        most: list[int] = []

        def step() -> None:
            most.append(sum(member.wants_reboot() for member in site.members))
            for member in honest:
                if member.wants_reboot() and time.monotonic() > down.setdefault(member.name, time.monotonic()) + DOWN_S:
                    member.reboot()
                    member.confirm()

        site.until(lambda: all(closed(site, number, order) for number in range(len(honest))), "done", 240, step)
        assert sorted(down) == [member.name for member in honest]
        assert max(most) == 1, "never two at once"
        assert not liar.wants_reboot(), "it never went down, whatever it said"
        for member in honest:
            assert member.device.status()["slots"]["B"]["state"] == "confirmed"
            assert member.device.holds("B", "v2")
        logs = [decided(site, number) for number in range(len(honest))]
        assert all(log == logs[0] for log in logs), logs
        assert sorted(ended(logs[0])) == [member.name for member in site.members]
        told = set(re.findall(r"lie: (\w+): (\w+)", liar.log))
        assert {("Claiming", "COMPLETE"), ("Forging", "COMPLETE"), ("FalseComplete", "COMPLETE")} <= told, told
        assert {kind for lie, kind in told if lie == "Equivocating"} == {"PREVOTE", "PRECOMMIT", "PROPOSAL"}, told
        for member in honest:
            accused = set(re.findall(r"node (\d+) has voted twice", member.log))
            assert accused == {str(MEMBERS - 1)}, f"{member.name} accuses {accused}"
