"""What `doctor` finds on a member of a site."""

from __future__ import annotations

from pathlib import Path

from tests.fleet.ptybus import running_hub
from tests.localsite import Member, local_site
from tests.workstation import Kit, Workstation


def about_the_site(device: Workstation) -> list[tuple[str, str]]:
    """(grade, text) of what is said of it; what is wrong comes with what to do."""
    rows = [row for row in device.run("--json", "doctor").document["findings"] if row["topic"] == "fleet"]
    assert all(row["hint"] for row in rows if row["grade"] != "ok"), rows
    return [(row["grade"], row["text"]) for row in rows]


def in_touch(members: list[Member]) -> bool:
    return all(member.status() and all(one["up"] for one in member.status()["members"]) for member in members)


def test_nothing_is_said_of_a_site_on_a_device_that_is_in_none(workstation: Workstation) -> None:
    assert about_the_site(workstation) == []


def test_a_device_that_is_to_be_a_member_and_is_not_yet(workstation: Workstation) -> None:
    with workstation.config.open("a") as file:
        file.write('[fleet]\nudp_interface = "abu-none"\nserial_device = "/dev/abu-none"\n')
    found = about_the_site(workstation)
    assert found[0] == ("fail", "this device is not enrolled in a site")
    assert ("fail", "there is no network interface abu-none") in found
    assert ("fail", "the serial line /dev/abu-none is not there") in found
    assert ("warn", "the fleet daemon does not answer") in found


def test_members_that_run_and_one_that_has_lost_its_log(tmp_path: Path, kit: Kit) -> None:
    with local_site(tmp_path, kit, 3) as site:
        site.until(lambda: in_touch(site.members), "in touch")
        member = site.members[0]
        hook = member.device.folder / "hooks/drain/10-pumps"
        hook.parent.mkdir(parents=True, mode=0o755)
        hook.write_text("#!/bin/sh\n")
        hook.chmod(0o755)
        assert about_the_site(member.device) == [
            ("ok", "it is gw1 of site bench, epoch 1, and votes"),
            ("ok", "peers are reached on lo"),
            ("ok", f"1 program in {hook.parent}"),
            ("ok", "the daemon runs: height 0, 3 of 3 nodes are up"),
        ]
        hook.chmod(0o777)
        assert [grade for grade, _ in about_the_site(member.device)] == ["ok", "ok", "fail", "ok"]
        member.stop()
        path = member.device.state / "fleet/log"
        whole = path.read_bytes()
        path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
        assert about_the_site(member.device)[1] == ("warn", f"{path} is damaged: what it has said before is not all known")
        path.write_bytes((site.members[1].device.state / "fleet/log").read_bytes())
        assert about_the_site(member.device)[1] == ("warn", f"{path} is the log of another key")
        path.unlink()
        assert about_the_site(member.device)[1] == ("warn", f"{member.device.state}/fleet holds no log of what it has said")
        member.start()
        site.until(lambda: bool(member.status()) and bool(member.status()["stopped"]), "it has noticed")
        (stopped,) = [text for grade, text in about_the_site(member.device) if grade == "warn" and "does not vote" in text]
        assert stopped.startswith("the daemon runs: ")


def test_a_member_on_a_serial_line_whose_driver_does_not_switch_the_direction(tmp_path: Path, kit: Kit) -> None:
    with (
        running_hub(tmp_path, range(3)) as hub,
        local_site(tmp_path, kit, 3, lines=[hub.path(number) for number in range(3)], fleet="serial_rs485 = true") as site,
    ):
        site.until(lambda: in_touch(site.members), "in touch")
        found = about_the_site(site.members[0].device)
        assert ("ok", f"peers are reached on {hub.path(0)} at 115200 baud") in found
        assert ("warn", f"the driver of {hub.path(0)} does not switch the direction of RS-485") in found
