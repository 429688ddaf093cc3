"""Sites of real daemons on the loopback: a bundle is proposed, fetched, agreed on and rolled out, and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from abupdate.fleet.control import AskMetrics, ask
from tests.localsite import LocalSite, Member, local_site
from tests.workstation import Kit

IDLE_RSS_KIB = 48 << 10


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is one: every daemon flushes all the time."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="abupdate-", dir=place) as name:
        yield Path(name)


def heard(site: LocalSite) -> bool:
    """Everybody sees everybody."""
    return all(member.status() and all(one["up"] for one in member.status()["members"]) for member in site.members)


def finished(site: LocalSite, *, of: int = 0) -> bool:
    """The plan is over, and no lease is held, as far as one member knows."""
    status = site.members[of].status()
    return bool(status) and not status["plan"] and not status["orders"] and not status["leases"]["held"] and status["height"] > 2


def phases(site: LocalSite, of: int = 0) -> dict[str, str]:
    """What one member knows of everybody."""
    return {one["name"]: one["phase"] for one in site.members[of].status().get("members", [])}


def program(folder: Path, body: str) -> None:
    """A hook."""
    folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder.write_text(f"#!/bin/sh\n{body}\n")
    folder.chmod(0o755)


def rolling(members: list[Member], down: list[str]) -> None:
    """Reboot whoever has gone down, into a healthy slot."""
    for member in members:
        if member.wants_reboot():
            down.append(member.name)
            member.reboot()
            member.confirm()


def test_a_rolling_update_of_four(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, 4) as site:
        for member in site.members:
            for kind in ("drain", "restore", "peer-leaving", "peer-returned"):
                program(member.device.folder / "hooks" / kind / "10-note", f'echo "$(cat)" >> {member.device.folder}/hooks.log')
        site.until(lambda: heard(site), "in touch")
        order = site.propose("v2")
        down: list[str] = []
        most: list[int] = []

        def step() -> None:
            most.append(sum(member.wants_reboot() for member in site.members))
            rolling(site.members, down)

        site.until(lambda: len(down) == 4 and all(finished(site, of=n) for n in range(4)), "done", 120, step)
        assert sorted(down) == ["gw1", "gw2", "gw3", "gw4"]
        assert max(most) == 1, "never more than one at once"
        for member in site.members:
            assert member.device.status()["slots"]["B"]["state"] == "confirmed"
            assert member.device.holds("B", "v2")
            attempt = member.device.status()["attempt"]
            entries = member.device.ok("--json", "fleet", "log").document["entries"]
            mine = [entry["height"] for entry in entries if member.name in [grant["node"] for grant in entry.get("grants", ())]]
            assert [attempt["lease"]] == mine, "the record names the lease"
        kinds = [entry["kind"] for entry in entries]
        assert (kinds.count("order"), kinds.count("plan"), kinds.count("grant")) == (1, 1, 4)
        endings = [release["ending"] for entry in entries for release in entry.get("releases", ())]
        assert endings == ["complete"] * 4
        notes = site.members[0].device.folder / "hooks.log"
        site.until(lambda: '"restore"' in notes.read_text(), "restored", 20)
        said = [json.loads(line) for line in notes.read_text().splitlines()]
        events = [one["event"] for one in said]
        assert (events.count("drain"), events.count("restore")) == (1, 1)
        assert {one["node"] for one in said if one["event"] == "peer-leaving"} <= {"gw2", "gw3", "gw4"}
        assert events.count("peer-leaving") >= 1
        assert next(one for one in said if one["event"] == "drain")["order"] == order


def test_a_device_that_falls_back_halts_the_plan_and_says_why(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, 4) as site:
        site.until(lambda: heard(site), "in touch")
        site.propose("v2")
        site.until(lambda: any(member.wants_reboot() for member in site.members), "down", 60)
        (down,) = [member for member in site.members if member.wants_reboot()]
        down.reboot(works=False)
        down.device.ok("keyring", "show")
        others = [number for number, member in enumerate(site.members) if member is not down]
        site.until(lambda: bool((site.members[others[0]].status().get("plan") or {}).get("halted")), "halted", 60)
        status = site.members[others[0]].status()
        assert status["leases"]["held"] == []
        assert next(one for one in status["members"] if one["name"] == down.name)["phase"] == "reverted"
        assert down.device.status()["attempt"]["phase"] == "reverted"
        assert not any(member.wants_reboot() for member in site.members), "nobody else goes down"


def test_a_drain_that_says_no_defers_and_the_next_one_goes_on(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, 3) as site:
        stubborn = site.members[1]
        program(stubborn.device.folder / "hooks" / "drain" / "10-batch", "echo a batch runs; exit 1")
        site.until(lambda: heard(site), "in touch")
        site.propose("v2")
        down: list[str] = []

        def over() -> bool:
            endings = [
                (release["node"], release["ending"])
                for entry in site.members[0].device.ok("--json", "fleet", "log").document["entries"]
                for release in entry.get("releases", ())
            ]
            return len(down) == 2 and ("gw2", "defer") in endings

        site.until(lambda: bool(site.members[0].status()) and over(), "deferred and done", 100, lambda: rolling(site.members, down))
        assert sorted(down) == ["gw1", "gw3"]
        assert "10-batch: a batch runs" in stubborn.log
        assert not stubborn.device.holds("A", "v2")
        assert stubborn.device.status()["attempt"]["lease"] is None, "it never armed anything under a lease"


@pytest.mark.slow
def test_a_daemon_that_is_killed_while_it_drains_goes_down_only_once_and_only_for_its_own_lease(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, 3) as site:
        for member in site.members:
            text = f"touch {member.device.folder}/draining; sleep 3; echo drained >> {member.device.folder}/drained"
            program(member.device.folder / "hooks" / "drain" / "10-slow", text)
        site.until(lambda: heard(site), "in touch")
        site.propose("v2")
        site.until(lambda: any((member.device.folder / "draining").exists() for member in site.members), "draining", 60)
        (cut,) = [member for member in site.members if (member.device.folder / "draining").exists()]
        cut.stop(signal.SIGKILL)
        cut.start()
        site.until(cut.wants_reboot, "down after all", 60)
        assert (cut.device.folder / "drained").read_text() == "drained\n", "the first one ended with its daemon"
        cut.reboot()
        cut.confirm()
        down = [cut.name]
        site.until(lambda: len(down) == 3 and finished(site), "done", 120, lambda: rolling(site.members, down))


def test_a_source_with_another_bundle_is_rejected_in_words(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, 3) as site:
        site.until(lambda: heard(site), "in touch")
        site.members[0].device.ok("fleet", "propose", kit["v2"], "--source", kit["v3"], "--key", site.folder / "anna.pem")
        site.until(lambda: len((site.members[2].status().get("orders") or [{"rejected": {}}])[0]["rejected"]) == 3, "rejected", 60)
        (order,) = site.members[2].status()["orders"]
        assert "is wanted" in json.dumps(order["rejected"])
        assert not any(member.device.holds("B", "v3") for member in site.members)


def test_flash_with_the_fleet_waits_for_the_slot_or_is_deferred_at_once(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, 3, fleet='approve = "manual"') as site:
        site.until(lambda: heard(site), "in touch")
        done = site.members[0].device.run("flash", "--fleet", "--wait", "60", kit["v2"])
        assert (done.code, done.err.count("\n")) == (6, 1)
        assert site.members[0].device.slot_state("B") == "written"
        order = site.propose("v2")
        for member in site.members:
            site.until(lambda member=member: order in json.dumps(member.status().get("orders")), "known", 30)  # type: ignore[misc]
            member.device.ok("fleet", "approve", order)
        site.until(lambda: any(member.wants_reboot() for member in site.members), "down", 60)
        (first,) = [member for member in site.members if member.wants_reboot()]
        me = next(member for member in site.members if member is not first)
        done = me.device.run("flash", "--fleet", kit["v2"])
        assert (done.code, "gw" in done.err) == (6, True), "it says who is down"
        with me.device.start("--json", "flash", "--fleet", "--wait", "100", kit["v2"]) as waiting:
            down: list[str] = []
            others = [member for member in site.members if member is not me]
            site.until(lambda: waiting.poll() is not None, "answered", 100, lambda: rolling(others, down))
            assert waiting.stdout is not None
            answer = json.loads(waiting.stdout.read())
        assert waiting.returncode == 0, answer
        site.until(me.wants_reboot, "down", 30)
        assert me.device.status()["attempt"]["lease"] == answer["lease"]


def update(site: LocalSite, bundle: str, *words: str | Path) -> None:
    """All of them, to the end."""
    before = {member.name: member.reboots for member in site.members}
    site.propose(bundle, *words)
    down: list[str] = []
    site.until(
        lambda: all(member.reboots > before[member.name] for member in site.members) and all(finished(site, of=n) for n in range(3)),
        f"{bundle} on all",
        120,
        lambda: rolling(site.members, down),
    )


@pytest.mark.slow
def test_a_halted_plan_takes_back_who_was_done_and_an_admin_takes_back_all_at_once(folder: Path, kit: Kit) -> None:
    kit.bundle("v2b", version="2.1", counter=2, seed=21)
    with local_site(folder, kit, 3) as site:
        site.until(lambda: heard(site), "in touch")
        update(site, "v2")
        site.propose("v2b", "--on-halt", "rollback", "--rollback-to", str(kit["v2"]))
        site.until(lambda: any(member.wants_reboot() for member in site.members), "down", 60)
        (first,) = [member for member in site.members if member.wants_reboot()]
        first.reboot()
        first.confirm()
        others = [member for member in site.members if member is not first]
        site.until(lambda: any(member.wants_reboot() for member in others), "the next one down", 60)
        (second,) = [member for member in others if member.wants_reboot()]
        second.reboot(works=False)
        second.device.ok("status")
        site.until(first.wants_reboot, "going back", 60)
        assert first.device.status()["situation"] == "reboot-pending"
        first.reboot()
        site.until(lambda: all(finished(site, of=n) for n in range(3)), "over", 60)
        for member in site.members:
            booted = member.device.status()
            assert booted["slots"][booted["booted"]]["version"] == "2.0", member.name
        attempt = first.device.status()["attempt"]
        entries = site.members[0].device.ok("--json", "fleet", "log").document["entries"]
        (released,) = [release for entry in entries for release in entry.get("releases", ()) if release["lease"] == attempt["lease"]]
        assert (released["node"], released["ending"]) == (first.name, "complete")

        update(site, "v2b")
        site.members[1].device.ok("fleet", "rollback", "--to", kit["v2"], "--now", "--key", site.folder / "anna.pem")
        site.until(lambda: all(member.wants_reboot() for member in site.members), "all down at once", 60)
        for member in site.members:
            member.reboot()
        for member in site.members:
            booted = member.device.status()
            assert (booted["slots"][booted["booted"]]["version"], booted["attempt"]["lease"]) == ("2.0", None)


@pytest.mark.slow
def test_nobody_goes_down_while_the_site_is_paused(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, 3, fleet='approve = "manual"') as site:
        site.until(lambda: heard(site), "in touch")
        key = ("--key", site.folder / "anna.pem")
        order = site.propose("v2")
        site.members[0].device.ok("fleet", "pause", "--reason", "shift change", *key)
        for member in site.members:
            site.until(lambda member=member: order in json.dumps(member.status().get("orders")), "known", 30)  # type: ignore[misc]
            member.device.ok("fleet", "approve", order)
        site.until(lambda: bool(site.members[2].status().get("plan")), "a plan", 60)
        assert "shift change" in json.dumps(site.members[2].status()["paused"])
        assert not any(member.wants_reboot() for member in site.members)
        site.members[1].device.ok("fleet", "resume", *key)
        down: list[str] = []
        site.until(lambda: len(down) == 3 and finished(site), "done", 120, lambda: rolling(site.members, down))


def resources(member: Member) -> tuple[int, float]:
    """Resident memory in KiB and seconds of CPU so far."""
    assert member.daemon is not None
    status = Path(f"/proc/{member.daemon.pid}/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    fields = Path(f"/proc/{member.daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return rss, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_daemon_speaks_with_no_key_that_others_can_read(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, 3) as site:
        site.until(lambda: heard(site), "in touch")
        member = site.members[0]
        member.stop()
        next(member.device.state.glob("fleet/node.key")).chmod(0o640)
        member.start()
        assert member.daemon is not None
        assert member.daemon.wait(30) == 2
        assert "node key" in member.log
        assert "can be read by others" in member.log
        member.daemon = None


def test_an_idle_daemon_is_small_and_its_metrics_count(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, 3) as site:
        site.until(lambda: heard(site), "in touch")
        member = site.members[0]
        before = ask(member.device.folder / "fleet.sock", AskMetrics())
        rss, _ = resources(member)
        assert rss <= IDLE_RSS_KIB
        site.until(
            lambda: ask(member.device.folder / "fleet.sock", AskMetrics())["daemon"]["udp frames in"] > before["daemon"]["udp frames in"],
            "heard again",
            20,
        )
        after = ask(member.device.folder / "fleet.sock", AskMetrics())
        assert after["core"]["heard"]["HEARTBEAT"] > 0
        assert after["daemon"]["udp bytes out"] > after["daemon"]["udp frames out"] * 57
        assert (after["height"], after["leases"]) == (0, [])
        mode = (member.device.folder / "fleet.sock").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        word = member.device.folder / "run" / "fleet-health"
        site.until(lambda: json.loads(word.read_text())["sees_quorum"] is True, "well", 20)
        site.members[1].stop()
        site.members[2].stop()
        site.until(lambda: json.loads(word.read_text())["sees_quorum"] is False, "alone", 20)
        assert member.stop() == 0


def test_a_device_that_is_not_enrolled_says_how(folder: Path, kit: Kit) -> None:
    with local_site(folder, kit, 3) as site:
        member = site.members[0]
        member.stop()
        (member.device.state / "fleet" / "membership").unlink()
        member.start()
        assert member.daemon is not None
        assert member.daemon.wait(20) == 2
        assert "fleet join" in member.log.splitlines()[-1]
