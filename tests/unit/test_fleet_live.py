"""The command line against real nodes that agree with each other: what is ordered on one is seen on all."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from abupdate.fleet.identity import Identity
from abupdate.host import keys
from tests.livesite import LiveSite
from tests.workstation import Kit, Result, Workstation

PATIENCE_S = 30.0


@dataclass
class People:
    """Who uses the command line of each node. A device's folders are the same one: only the daemon is another."""

    workstation: Workstation
    site: LiveSite
    folder: Path

    def run(self, node: int, *words: str | Path) -> Result:
        """A verb on a node."""
        text = self.workstation.config.read_text().partition("[fleet]")[0]
        self.workstation.config.write_text(f'{text}[fleet]\nudp_interface = "lo"\ncontrol = "{self.site.sockets[node]}"\n')
        return self.workstation.run("--json", "fleet", *words)

    def ok(self, node: int, *words: str | Path) -> dict[str, Any]:
        """A verb that must succeed."""
        done = self.run(node, *words)
        assert done.code == 0, done.err
        return done.document

    def order(self, node: int, *words: str | Path) -> str:
        """An order by anna; its id."""
        return str(self.ok(node, *words, "--key", self.folder / "anna.pem")["order"])

    def see(self, node: int, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status of a node that is what is wanted."""
        end_s = time.monotonic() + PATIENCE_S
        while not wanted(status := self.ok(node, "status")):
            assert time.monotonic() < end_s, status
            time.sleep(0.05)
        return status


@pytest.fixture
def people(workstation: Workstation, kit: Kit, tmp_path: Path) -> Iterator[People]:
    """Four nodes, gw1 to gw4."""
    for name in ("anna", "ben", "gw1", "gw2", "gw3", "gw4"):
        kit.make("keys", "generate", tmp_path / name)
    text = f'site = "plant-7"\nheartbeat_s = 1\nroots = ["{kit.folder}/root.pub"]\nadmins = ["anna.pub", "ben.pub"]\n'
    (tmp_path / "site.toml").write_text(text + "".join(f'[nodes.gw{number}]\nkey = "gw{number}.pub"\n' for number in range(1, 5)))
    kit.make("fleet", "init", tmp_path / "site.toml", "-o", tmp_path / "site.abm", "--key", kit.folder / "root.pem")
    pairs = [Identity(keys.load_private(tmp_path / f"gw{number}.pem").private) for number in range(1, 5)]
    with tempfile.TemporaryDirectory(prefix="ab-") as folder, LiveSite((tmp_path / "site.abm").read_bytes(), pairs, Path(folder)) as site:
        made = People(workstation, site, tmp_path)
        made.see(0, lambda status: all(member["up"] for member in status["members"]))
        yield made


def only(status: dict[str, Any]) -> dict[str, Any]:
    """The one open order."""
    (order,) = status["orders"]
    assert isinstance(order, dict)
    return order


def test_an_order_from_its_proposal_to_its_end(people: People, kit: Kit) -> None:
    bundle = ("propose", kit["v2"], "--source", "/v2.abu", "--share", "75")
    order = people.order(0, *bundle)
    seen = only(people.see(3, lambda status: bool(status["orders"]) and status["orders"][0]["committed"]))
    assert (seen["order"], seen["version"], seen["needed"]) == (order, "2.0", 3)

    people.ok(0, "approve", order[:8])
    people.ok(1, "reject", order[:8], "--reason", "Pumpe läuft")
    seen_by_others = people.see(2, lambda status: only(status)["rejected"] != {} and only(status)["approved_by"] != [])
    assert only(seen_by_others)["approved_by"] == ["gw1"]
    assert only(seen_by_others)["rejected"] == {"gw2": "Pumpe läuft"}
    assert seen_by_others["blocked"] == (f"order {order[:12]} has 1 of 3 approvals; rejected by gw2 (Pumpe läuft); not yet by gw3, gw4")

    people.ok(2, "reject", order[:8])
    assert "cannot get more" in people.see(0, lambda status: len(only(status)["rejected"]) == 2)["blocked"]

    people.order(1, "pause", "--reason", "Schicht")
    assert people.see(3, lambda status: status["paused"] != "")["blocked"] == "paused by an admin: Schicht"
    people.order(1, "resume")
    people.see(3, lambda status: status["paused"] == "")

    people.order(2, "cancel", order[:8])
    people.see(3, lambda status: status["orders"] == [] and status["last_admin_seq"] == 4)
    log = people.ok(3, "log")["entries"]
    assert [entry["kind"] for entry in log] == ["order"] * 4
    assert all(len(entry["signed_by"]) >= 3 for entry in log)
    assert log[0]["order"] == order
    assert [entry["order_kind"] for entry in log] == ["update", "pause", "resume", "cancel"]
    assert log[1]["reason"] == "Schicht"


def test_enough_approvals_make_a_plan(people: People, kit: Kit) -> None:
    order = people.order(0, "propose", kit["v2"], "--source", "/v2.abu", "--share", "50")
    people.see(2, lambda status: bool(status["orders"]) and status["orders"][0]["committed"])
    people.ok(2, "approve", order)
    people.see(3, lambda status: bool(status["orders"]) and status["orders"][0]["committed"])
    people.ok(3, "approve", order)
    status = people.see(1, lambda status: status["plan"] is not None and status["leases"]["held"] != [])
    assert (status["plan"]["order"], status["plan"]["wave"], status["orders"]) == (order, 0, [])
    holder = status["leases"]["held"][0]["node"]
    assert holder in ("gw3", "gw4")
    assert status["blocked"].startswith(f"waits for {holder} (lease ")
    kinds = [entry["kind"] for entry in people.ok(1, "log")["entries"]]
    assert kinds[:3] == ["order", "plan", "grant"]


def test_what_no_site_decides_is_refused_at_once(people: People, kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    kit.make("keys", "generate", tmp_path / "stranger" / "key")
    pause = people.run(0, "pause", "--key", tmp_path / "stranger" / "key.pem")
    assert pause.code == 3, pause.err
    assert people.run(0, "approve", "ab" * 32).code == 3
    assert people.run(0, "resume", "--key", tmp_path / "anna.pem").code == 3
    assert people.ok(0, "log")["entries"] == []


def test_an_order_for_the_wrong_epoch_or_number_is_refused(people: People, tmp_path: Path) -> None:
    people.order(0, "pause")
    people.see(0, lambda status: status["last_admin_seq"] == 1)
    done = people.run(0, "pause", "--seq", "1", "--reason", "again", "--key", tmp_path / "anna.pem")
    assert done.code == 3, done.err


def test_the_next_membership_is_decided_by_the_old_one(people: People, kit: Kit, tmp_path: Path) -> None:
    text = (tmp_path / "site.toml").read_text().replace("heartbeat_s = 1", "heartbeat_s = 2")
    (tmp_path / "site.toml").write_text(text)
    words = ("-o", tmp_path / "next.abm", "--previous", tmp_path / "site.abm", "--key", kit.folder / "root.pem")
    kit.make("fleet", "init", tmp_path / "site.toml", *words)
    people.ok(1, "propose", tmp_path / "next.abm")
    status = people.see(3, lambda status: status["epoch"] == 2)
    assert status["agreement"]["heartbeat_s"] == 2
    (entry,) = people.ok(2, "log")["entries"]
    assert (entry["kind"], entry["epoch"], len(entry["signed_by"]) >= 3) == ("reconfig", 1, True)
