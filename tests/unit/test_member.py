"""The verbs on a member of a site: what they refuse, what --alone and --fleet change. The daemon is a stub on the real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from abupdate import wiring
from abupdate.cli import reboot
from abupdate.config import load
from abupdate.errors import AbupdateError, Deferred
from abupdate.fleet.control import AskUpdate, failure
from abupdate.fleet.controlserver import ControlServer
from abupdate.formats.bundle import parse_stored_head
from abupdate.operations import flash
from tests.workstation import Kit, Workstation


@pytest.fixture
def member(workstation: Workstation) -> Workstation:
    """A workstation with a section [fleet]."""
    with workstation.config.open("a") as file:
        file.write('[fleet]\nudp_interface = "lo"\ncontrol = "fleet.sock"\nhooks = "hooks"\n')
    return workstation


@pytest.fixture
def reboots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Orders to reboot end here."""
    ordered: list[str] = []
    monkeypatch.setattr(reboot, "go_down", lambda settings: ordered.append("reboot"))
    return ordered


@contextmanager
def daemon(path: Path, answer: dict[str, object] | AbupdateError) -> Iterator[list[AskUpdate]]:
    """Somebody on the control socket who answers the next question so."""
    server = ControlServer(path)
    asked: list[AskUpdate] = []
    ended = threading.Event()

    def serve() -> None:
        while not ended.wait(0.01):
            for one in server.handle(0.0):
                assert isinstance(one.question, AskUpdate)
                asked.append(one.question)
                server.answer(one, failure(answer) if isinstance(answer, AbupdateError) else answer, 0.0)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        ended.set()
        thread.join()
        server.close()


@pytest.mark.parametrize("argv", [("flash", "v2"), ("flash", "v2", "--reboot"), ("activate",)])
def test_a_member_is_not_updated_behind_the_backs_of_the_others(member: Workstation, kit: Kit, argv: tuple[str, ...]) -> None:
    member.ok("flash", "--no-activate", kit["v1"])
    before = member.snapshot()
    done = member.run(*(kit[word] if word == "v2" else word for word in argv))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--fleet" in done.err
    assert "--alone" in done.err
    assert member.snapshot() == before


def test_alone_is_said_in_the_log(member: Workstation, kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    member.ok("flash", "--alone", kit["v2"])
    member.ok("revert")
    member.ok("activate", "--alone")
    assert caplog.messages.count("an update without asking the other devices of the site (--alone)") == 2


def test_a_local_revert_waits_for_nobody_and_a_switch_with_a_reboot_does(member: Workstation, kit: Kit, reboots: list[str]) -> None:
    member.ok("flash", "--alone", kit["v2"])
    member.ok("revert")
    member.ok("activate", "--alone")
    member.reboot("B")
    member.ok("revert", "--reboot")
    assert reboots == ["reboot"], "the end of a trial"
    member.reboot("A")
    done = member.run("revert", "--reboot")
    assert (done.code, "a reboot into the other slot" in done.err) == (2, True)
    assert reboots == ["reboot"]


@pytest.mark.parametrize("argv", [("flash", "--fleet", "v2"), ("activate", "--fleet"), ("flash", "--wait", "5", "v2")])
def test_without_a_site_there_is_no_fleet(workstation: Workstation, kit: Kit, argv: tuple[str, ...]) -> None:
    before = workstation.snapshot()
    done = workstation.run(*(kit[word] if word == "v2" else word for word in argv))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert workstation.snapshot() == before


def test_fleet_and_no_activate_contradict_each_other(member: Workstation, kit: Kit) -> None:
    assert member.run("flash", "--fleet", "--no-activate", kit["v2"]).code == 2


def test_through_the_fleet_the_slot_is_written_and_the_daemon_goes_down(member: Workstation, kit: Kit, reboots: list[str]) -> None:
    with daemon(member.folder / "fleet.sock", {"lease": 7}) as asked:
        done = member.ok("--json", "flash", "--fleet", "--wait", "30", kit["v2"])
    assert member.slot_state("B") == "written"
    assert done.document["lease"] == 7
    assert asked == [AskUpdate(bytes.fromhex(str(done.document["bundle"])), 30)]
    assert reboots == []


def test_what_is_written_already_is_not_written_again_before_the_fleet_is_asked(member: Workstation, kit: Kit) -> None:
    member.ok("flash", "--no-activate", kit["v2"])
    before = member.snapshot()
    with daemon(member.folder / "fleet.sock", {"lease": 8}) as asked:
        assert member.ok("--json", "flash", "--fleet", kit["v2"]).document["lease"] == 8
        assert member.ok("--json", "activate", "--fleet").document["lease"] == 8
    assert [question.wait_s for question in asked] == [0, 0]
    assert member.snapshot() == before


def arm(member: Workstation, lease: int | None) -> None:
    """What is written is armed, as the daemon has it done under a lease."""
    settings = load(member.config)
    admit = wiring.admission(settings)
    board = wiring.board(settings, outside=True)
    contents = wiring.contents(settings, open_head=admit)
    flash.activate(board, contents, lambda head: parse_stored_head(head, admit).signed.manifest, None, lambda *_: None, lease=lease)


def test_on_the_way_down_the_same_bundle_is_asked_for_and_not_written(member: Workstation, kit: Kit) -> None:
    member.ok("flash", "--no-activate", kit["v2"])
    arm(member, 9)
    before = member.snapshot()
    with daemon(member.folder / "fleet.sock", {"lease": 9}) as asked:
        for argv in (("flash", "--fleet", kit["v2"]), ("activate", "--fleet")):
            document = member.ok("--json", *argv).document
            assert (document["lease"], document["slot"], document["armed"], document["reboot_needed"]) == (9, "B", True, False)
    assert {question.bundle.hex() for question in asked} == {str(member.status()["slots"]["B"]["bundle"])}
    assert len(asked) == 2
    assert member.snapshot() == before


@pytest.mark.parametrize(("lease", "bundle"), [(9, "v3"), (None, "v2")])
def test_on_the_way_down_another_bundle_is_refused_and_so_is_one_that_the_fleet_did_not_arm(
    member: Workstation, kit: Kit, lease: int | None, bundle: str
) -> None:
    member.ok("flash", "--no-activate", kit["v2"])
    arm(member, lease)
    before = member.snapshot()
    with daemon(member.folder / "fleet.sock", {"lease": 9}) as asked:
        done = member.run("flash", "--fleet", kit[bundle])
    assert (done.code, done.err.count("\n"), asked) == (5, 1, [])
    assert member.snapshot() == before


def test_a_bundle_in_no_plan_is_deferred_and_stays_written(member: Workstation, kit: Kit) -> None:
    with daemon(member.folder / "fleet.sock", Deferred("no plan names this bundle", "propose it")):
        done = member.run("flash", "--fleet", kit["v2"])
    assert (done.code, done.err.count("\n")) == (6, 1)
    assert member.slot_state("B") == "written"


def test_a_daemon_that_is_not_there_is_a_failure(member: Workstation, kit: Kit) -> None:
    done = member.run("flash", "--fleet", kit["v2"])
    assert (done.code, "the fleet daemon does not answer" in done.err) == (1, True)


def test_a_source_with_another_bundle_than_the_orders_is_refused_before_anything_is_written(member: Workstation, kit: Kit) -> None:
    member.ok("flash", "--no-activate", kit["v2"])
    wanted = str(member.status()["slots"]["B"]["bundle"])
    before = member.snapshot()
    done = member.run("flash", "--no-activate", "--bundle", wanted, kit["v3"])
    assert (done.code, done.err.count("\n"), "is wanted" in done.err) == (3, 1, True)
    assert member.snapshot() == before
    member.ok("flash", "--no-activate", "--bundle", wanted, kit["v2"])
