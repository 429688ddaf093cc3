"""A site of real daemons that have nothing but a serial line between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from abupdate.fleet.control import AskMetrics, ask
from abupdate.fleetsettings import FleetSettings
from abupdate.fleetwiring import patience_s
from tests.fleet.ptybus import running_hub
from tests.localsite import Member, local_site
from tests.workstation import Kit


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        (FleetSettings(udp_interface="eth0"), 1, 1),
        (FleetSettings(serial_device="/dev/ttyS1"), 4, 4.05),
        (FleetSettings(serial_device="/dev/ttyS1", udp_interface="eth0", serial_baud=4_000_000), 4, 4),
        (FleetSettings(serial_device="/dev/ttyS1", serial_baud=9600), 38, 39),
        (FleetSettings(serial_device="/dev/ttyS1", serial_turnaround_ms=100), 31, 32),
    ],
)
def test_patience_with_a_round_grows_with_what_a_vote_takes_on_the_line(settings: FleetSettings, least: float, most: float) -> None:
    assert least <= patience_s(settings) <= most


def in_touch(members: list[Member]) -> bool:
    return all(member.status() and all(one["up"] for one in member.status()["members"]) for member in members)


def test_a_rolling_update_over_a_serial_line(tmp_path: Path, kit: Kit) -> None:
    with running_hub(tmp_path, range(3)) as hub, local_site(tmp_path, kit, 3, lines=[hub.path(number) for number in range(3)]) as site:
        site.until(lambda: in_touch(site.members), "in touch")
        site.propose("v2")
        down: list[str] = []

        def step() -> None:
            waiting = [member for member in site.members if member.wants_reboot()]
            assert len(waiting) <= 1
            for member in waiting:
                down.append(member.name)
                member.reboot()
                member.confirm()

        def done() -> bool:
            status = site.members[0].status()
            return len(down) == 3 and bool(status) and not status["plan"] and not status["leases"]["held"]

        site.until(done, "done", 100, step)
        assert sorted(down) == ["gw1", "gw2", "gw3"]
        assert all(member.device.holds("B", "v2") for member in site.members)
        media = ask(site.members[0].device.folder / "fleet.sock", AskMetrics())["media"]
        assert set(media) == {"serial"}
        assert (media["serial"]["line"], media["serial"]["present"]) == (1, 3)
