"""Orders of the admins: made and signed offline, or signed and handed in on a member in one go."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from abupdate.errors import Refused
from abupdate.fleet.control import AskStatus, Submit
from abupdate.formats import membership as memberships
from abupdate.formats import order as orders
from abupdate.formats.order import OnHalt, Order, OrderKind
from tests.fakedaemon import FakeDaemon
from tests.workstation import Kit, Result, Workstation, call

SOURCE = ("--source", "https://updates.example/v2.abu")


@dataclass(frozen=True)
class Site:
    """Keys `anna` and `ben` are its admins, both are needed for what is past the budgets; gw1 to gw4 its nodes."""

    folder: Path
    file: Path

    def key(self, name: str) -> tuple[str, Path]:
        return "--key", self.folder / f"{name}.pem"


@pytest.fixture(scope="session")
def site(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Made by the command line, as an admin would."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("anna", "ben", "stranger", "gw1", "gw2", "gw3", "gw4"):
        kit.make("keys", "generate", folder / name)
    text = f'site = "plant-7"\nroots = ["{kit.folder}/root.pub"]\nadmins = ["anna.pub", "ben.pub"]\n'
    (folder / "site.toml").write_text(text + "".join(f'[nodes.gw{n}]\nkey = "gw{n}.pub"\n' for n in range(1, 5)))
    kit.make("fleet", "init", folder / "site.toml", "-o", folder / "site.abm", "--key", kit.folder / "root.pem")
    return Site(folder, folder / "site.abm")


@pytest.fixture
def status(site: Site) -> dict[str, object]:
    """What the daemon of a member says: the third order is the newest, one is open."""
    membership = memberships.parse(site.file.read_bytes())
    return {
        "genesis": membership.genesis.hex(),
        "epoch": 1,
        "members": [{"name": member.name, "index": member.index} for member in membership.members],
        "plan": {"order": "77" * 32},
        "orders": [{"order": "3f2a" + "00" * 30, "admin_seq": 3}],
        "last_admin_seq": 2,
        "newest_admin_seq": 3,
    }


@pytest.fixture
def device(workstation: Workstation) -> Iterator[Workstation]:
    """A member of the site."""
    with tempfile.TemporaryDirectory(prefix="ab-") as folder:
        text = workstation.config.read_text()
        workstation.config.write_text(f'{text}[fleet]\nudp_interface = "lo"\ncontrol = "{folder}/fleet.sock"\n')
        yield workstation


@pytest.fixture
def daemon(device: Workstation, status: dict[str, object]) -> Iterator[FakeDaemon]:
    path = Path(device.config.read_text().rpartition('control = "')[2].partition('"')[0])
    with FakeDaemon(path, {AskStatus: status, Submit: {}}) as running:
        yield running


def submitted(daemon: FakeDaemon) -> Order:
    """The one order that was handed in."""
    (data,) = [question.data for question in daemon.asked if isinstance(question, Submit)]
    return orders.parse(data)


def offline(site: Site, tmp_path: Path, *words: str | Path, seq: str = "1", name: str = "made.abo") -> Result:
    """A verb on a workstation, where no daemon runs."""
    return call("--json", "fleet", *words, "-o", tmp_path / name, "--membership", site.file, "--seq", seq)


def made(site: Site, tmp_path: Path, *words: str | Path) -> Order:
    """The order that a verb writes."""
    (tmp_path / "made.abo").unlink(missing_ok=True)
    done = offline(site, tmp_path, *words)
    assert done.code == 0, done.err
    order = orders.parse((tmp_path / "made.abo").read_bytes())
    assert done.document["order"] == order.id.hex()
    assert (done.document["submitted"], done.document["file"]) == (False, str(tmp_path / "made.abo"))
    return order


def test_a_member_signs_and_hands_in_at_once(device: Workstation, daemon: FakeDaemon, site: Site, kit: Kit) -> None:
    done = device.ok("--json", "fleet", "propose", kit["v2"], *SOURCE, "--share", "75", "--width", "2", *site.key("anna"))
    order = submitted(daemon)
    membership = memberships.parse(site.file.read_bytes())
    assert done.document["order"] == order.id.hex()
    assert (order.kind, order.genesis, order.epoch, order.admin_seq) == (OrderKind.UPDATE, membership.genesis, 1, 4)
    assert (order.version, order.counter, order.compatible, order.sources) == ("2.0", 2, "acme", (SOURCE[1],))
    assert (order.share, order.width, order.halt_at, order.on_halt, order.overdue_s) == (75, 2, 1, OnHalt.HOLD, 1800)
    assert len(orders.signers(order, membership.admins)) == 1


def test_an_order_comes_behind_those_that_are_on_their_way(
    device: Workstation, daemon: FakeDaemon, status: dict[str, object], site: Site
) -> None:
    daemon.answers[AskStatus] = {**status, "newest_admin_seq": 6}
    device.ok("fleet", "pause", *site.key("anna"))
    assert submitted(daemon).admin_seq == 7


def test_what_the_daemon_refuses_is_refused(device: Workstation, daemon: FakeDaemon, site: Site, kit: Kit) -> None:
    daemon.answers[Submit] = Refused("the order is signed by 0 of 1 admins")
    done = device.run("fleet", "propose", kit["v2"], *SOURCE, *site.key("stranger"))
    assert (done.code, done.out) == (3, "")


def test_nobody_signs(device: Workstation, daemon: FakeDaemon, kit: Kit) -> None:
    done = device.run("fleet", "propose", kit["v2"], *SOURCE)
    assert done.code == 2
    assert "nobody signs" in done.err
    assert daemon.asked == []


def test_signed_offline_and_carried_to_any_node(device: Workstation, daemon: FakeDaemon, site: Site, tmp_path: Path, kit: Kit) -> None:
    order = made(site, tmp_path, "propose", kit["v2"], *SOURCE)
    assert order.signatures == ()
    for name, complete in (("anna", True), ("ben", True)):
        done = call("--json", "fleet", "sign", tmp_path / "made.abo", "--membership", site.file, *site.key(name))
        assert (done.code, done.document["complete"], done.document["order"]) == (0, complete, order.id.hex())
    data = (tmp_path / "made.abo").read_bytes()
    assert device.ok("--json", "fleet", "propose", tmp_path / "made.abo").document["order"] == order.id.hex()
    assert daemon.asked == [Submit(data)]
    assert submitted(daemon).id == order.id, "signatures are not part of the id"


def test_a_membership_is_handed_in_too(device: Workstation, daemon: FakeDaemon, site: Site) -> None:
    done = device.ok("--json", "fleet", "propose", site.file).document
    assert (done["site"], done["epoch"], done["submitted"]) == ("plant-7", 1, True)
    assert daemon.asked == [Submit(site.file.read_bytes())]


def test_a_file_that_is_handed_in_stays_as_it_is(device: Workstation, daemon: FakeDaemon, site: Site, tmp_path: Path) -> None:
    for words in (site.key("anna"), ("-o", tmp_path / "x.abo")):
        assert device.run("fleet", "propose", site.file, *words).code == 2
    assert daemon.asked == []


class Handler(BaseHTTPRequestHandler):
    """Serves v2."""

    data = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(self.data)

    def log_message(self, *words: object) -> None:
        pass


def test_a_bundle_that_lies_on_a_server(site: Site, tmp_path: Path, kit: Kit) -> None:
    Handler.data = kit["v2"].read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v2.abu"
        order = made(site, tmp_path, "propose", url)
        other = made(site, tmp_path, "propose", url, "--source", "/srv/v2.abu")
        assert offline(site, tmp_path, "propose", f"ftp://127.0.0.1:{server.server_port}/v2.abu").code == 2
        server.shutdown()
    assert (order.version, order.sources) == ("2.0", (url,))
    assert (other.bundle, other.sources) == (order.bundle, ("/srv/v2.abu",))


def test_a_signer_sees_what_is_signed_and_what_is_missing(site: Site, tmp_path: Path, kit: Kit) -> None:
    made(site, tmp_path, "rollback", "--to", kit["v1"], "--now", "--nodes", "gw2", "gw4")
    out = call("fleet", "sign", tmp_path / "made.abo", "--membership", site.file, *site.key("anna")).out
    for text in ("rollback, number 1 in epoch 1", "version: 1.0", "nodes: 1, 3", "now: True", "1 of the admin keys of epoch 1, 2 needed"):
        assert text in out
    unknown = call("--json", "fleet", "sign", tmp_path / "made.abo").document
    assert (unknown["complete"], unknown["signatures"]) == (None, [])


def test_who_is_no_admin_does_not_sign(site: Site, tmp_path: Path, kit: Kit) -> None:
    assert offline(site, tmp_path, "pause", *site.key("stranger")).code == 2
    made(site, tmp_path, "pause")
    done = call("fleet", "sign", tmp_path / "made.abo", "--membership", site.file, *site.key("stranger"))
    assert (done.code, "no admin key" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pause", "77" * 32, "--reason", "Schicht"), {"kind": OrderKind.PAUSE, "target": b"\x77" * 32, "reason": "Schicht"}),
        (("pause",), {"kind": OrderKind.PAUSE, "target": bytes(32)}),
        (("resume", "77" * 32, "--halt-at", "3"), {"kind": OrderKind.RESUME, "target": b"\x77" * 32, "halt_at": 3}),
        (("resume",), {"kind": OrderKind.RESUME, "target": bytes(32), "halt_at": 0}),
        (("cancel", "77" * 32), {"kind": OrderKind.CANCEL, "target": b"\x77" * 32}),
        (("lost", "gw3", "--reason", "gestohlen"), {"kind": OrderKind.LOST, "nodes": frozenset({2}), "reason": "gestohlen"}),
        (("evict", "3"), {"kind": OrderKind.EVICT, "nodes": frozenset({3})}),
    ],
)
def test_every_kind_of_order(site: Site, tmp_path: Path, words: tuple[str, ...], expected: dict[str, object]) -> None:
    order = made(site, tmp_path, *words)
    assert {name: getattr(order, name) for name in expected} == expected


def test_short_names_and_numbers_come_from_the_daemon(device: Workstation, daemon: FakeDaemon, site: Site) -> None:
    device.ok("fleet", "cancel", "3f2a", *site.key("anna"))
    order = submitted(daemon)
    assert (order.target.hex(), order.admin_seq) == ("3f2a" + "00" * 30, 4)
    done = device.ok("--json", "fleet", "pause", "7777", "--seq", "9", *site.key("anna")).document
    assert (done["target"], done["admin_seq"]) == ("77" * 32, 9)


@pytest.mark.parametrize("to", ["1.0", "id", "file"])
def test_back_to_what_the_slots_of_a_member_hold(device: Workstation, daemon: FakeDaemon, site: Site, kit: Kit, to: str) -> None:
    held(device, "v1", "v2")
    bundle = orders_target(kit)
    text = {"1.0": "1.0", "id": bundle, "file": str(kit["v1"])}[to]
    device.ok("fleet", "rollback", "--to", text, "--width", "2", *site.key("anna"), *site.key("ben"))
    order = submitted(daemon)
    assert (order.kind, order.version, order.bundle.hex(), order.width) == (OrderKind.ROLLBACK, "1.0", bundle, 2)
    assert (order.nodes, order.now) == (frozenset(), False)
    assert device.run("fleet", "rollback", "--to", "3.0", *site.key("anna")).code == 2


def test_a_way_back_below_what_this_device_has_confirmed_is_warned_of(
    device: Workstation, daemon: FakeDaemon, site: Site, kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    held(device, "v1", "v2")
    keys = (*site.key("anna"), *site.key("ben"))
    device.ok("fleet", "rollback", "--to", kit.bundle("same", version="1.5", counter=2), *keys)
    assert "refuse to go back" not in caplog.text
    device.ok("fleet", "rollback", "--to", kit.bundle("below", version="0.5", counter=0), *keys)
    assert "version 0.5 has the security counter 0, and this device has confirmed " in caplog.text


def held(device: Workstation, *bundles: str) -> None:
    """The device's slots hold these bundles, the last one runs: installed before it became a member."""
    section = device.config.read_text().partition("[fleet]")[2]
    device.edit(f"[fleet]{section}", "")
    for bundle, slot in zip(bundles, ("B", "A"), strict=True):
        device.confirmed(bundle, slot)
    device.config.write_text(f"{device.config.read_text()}[fleet]{section}")


def orders_target(kit: Kit) -> str:
    """Bundle id of v1."""
    return str(call("--json", "info", kit["v1"], "--keyring", kit.ring).document["bundle"])


def test_a_halted_plan_may_lead_back(site: Site, tmp_path: Path, kit: Kit) -> None:
    old = kit.bundle("old-again", version="1.1", counter=2, seed=11)
    order = made(site, tmp_path, "propose", kit["v2"], *SOURCE, "--on-halt", "rollback", "--rollback-to", old)
    assert (order.on_halt, order.rollback_version, any(order.rollback_to)) == (OnHalt.ROLLBACK, "1.1", True)


def test_no_way_leads_back_below_the_floor(site: Site, tmp_path: Path, kit: Kit) -> None:
    done = offline(site, tmp_path, "propose", kit["v2"], *SOURCE, "--on-halt", "rollback", "--rollback-to", kit["v1"])
    assert done.code == 2
    assert "security counter is 1, and the floor rises to 2" in done.err
    assert not (tmp_path / "made.abo").exists()


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no source": (("propose", "v2"), "--source"),
    "a relative source": (("propose", "v2", "--source", "v2.abu"), "neither a URL"),
    "too many sources": (("propose", "v2", *(["--source", "/v2.abu"] * 9)), "1 to 8"),
    "a share of nobody": (("propose", "v2", *SOURCE, "--share", "0"), "--share"),
    "a share beyond": (("propose", "v2", *SOURCE, "--share", "101"), "--share"),
    "a width of nobody": (("propose", "v2", *SOURCE, "--width", "0"), "--width"),
    "halted from the start": (("propose", "v2", *SOURCE, "--halt-at", "0"), "--halt-at"),
    "overdue at once": (("propose", "v2", *SOURCE, "--overdue", "0"), "--overdue"),
    "a negative number": (("propose", "v2", *SOURCE, "--overdue", "-1"), "overdue"),
    "rollback to nowhere": (("propose", "v2", *SOURCE, "--on-halt", "rollback"), "--rollback-to"),
    "a way back that is not taken": (("propose", "v2", *SOURCE, "--rollback-to", "v2"), "--on-halt"),
    "back to itself": (("propose", "v2", *SOURCE, "--on-halt", "rollback", "--rollback-to", "v2"), "it installs"),
    "an unknown member": (("lost", "gw9"), "gw1, gw2, gw3, gw4"),
    "a number of nobody": (("evict", "4"), "no member"),
    "a short id": (("cancel", "7777"), "whole id"),
    "no id": (("pause", "all"), "id of an order"),
    "a long reason": (("pause", "--reason", "x" * 97), "0 to 96"),
    "a bundle that is none": (("propose", "ring", *SOURCE), "not a bundle"),
    "no such bundle": (("propose", "absent.abu", *SOURCE), "absent.abu"),
    "number 0": (("pause", "--seq", "0"), "--seq"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_order_that_makes_no_sense_is_not_made(site: Site, tmp_path: Path, kit: Kit, case: str) -> None:
    words, text = BAD[case]
    argv = [{"v2": str(kit["v2"]), "ring": str(kit.ring)}.get(word, word) for word in words]
    done = call("fleet", *argv, "-o", tmp_path / "made.abo", "--membership", site.file, *(() if "--seq" in words else ("--seq", "1")))
    assert done.code == (3 if case == "a bundle that is none" else 2), done.err
    assert text in done.err
    assert not (tmp_path / "made.abo").exists()


def test_offline_an_order_needs_its_number(site: Site, tmp_path: Path) -> None:
    done = call("fleet", "pause", "-o", tmp_path / "made.abo", "--membership", site.file)
    assert (done.code, "--seq" in done.err) == (2, True)


def test_without_daemon_and_membership_nothing_is_made(device: Workstation, site: Site, tmp_path: Path) -> None:
    done = device.run("fleet", "pause", "-o", tmp_path / "made.abo", *site.key("anna"))
    assert (done.code, "systemctl start abupdate-fleet" in done.err) == (1, True)


def test_an_order_never_takes_the_place_of_its_key(site: Site, tmp_path: Path) -> None:
    before = (site.folder / "anna.pem").read_bytes()
    done = call("fleet", "pause", "-o", site.folder / "anna.pem", "--membership", site.file, "--seq", "1", *site.key("anna"))
    assert done.code == 2
    assert (site.folder / "anna.pem").read_bytes() == before


def test_an_id_of_zeros_is_not_taken_for_the_whole_site(device: Workstation, daemon: FakeDaemon, site: Site) -> None:
    done = device.run("fleet", "pause", "0" * 64, *site.key("anna"))
    assert done.code == 2, done.err
    assert not any(isinstance(question, Submit) for question in daemon.asked)
