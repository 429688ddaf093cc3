"""The verbs of `fleet` that ask the daemon, through the real socket."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from abupdate.errors import AbupdateError, Busy, Failed, NothingToDo, Refused
from abupdate.fleet.control import AskLog, AskStatus, Judge
from tests.fakedaemon import FakeDaemon
from tests.workstation import Workstation, command, environ

ONE, OTHER = "3f2a" + "00" * 30, "3f2b" + "11" * 30


def member(index: int, **fields: object) -> dict[str, object]:
    return {
        "index": index, "name": f"gw{index + 1}", "me": index == 0, "voter": True, "groups": [], "up": True, "age_s": 1.0, "address": "",
        "healthy": True, "trial": False, "stopped": False, "height": 12, "phase": "idle", "reason": "", "bundle": "00" * 8, "lease": None,
        "doubted_by": [], "evicted": False, "voted_twice": False, **fields,
    }  # fmt: skip


def order(text: str) -> dict[str, object]:
    return {
        "order": text, "kind": "update", "admin_seq": 3, "version": "2.0", "bundle": "09" * 32, "rollback_to": None, "on_halt": "hold",
        "committed": True, "needed": 3, "approved_by": ["gw1"], "rejected": {}, "waits_here_for": "",
    }  # fmt: skip


STATUS: dict[str, object] = {
    "site": "plant-7", "genesis": "aa" * 32, "epoch": 1, "height": 12, "round": 0, "node": "gw1",
    "agreement": {
        "nodes": 3, "voters": 3, "faults": 0, "quorum": 2, "live_budget": 1, "voter_budget": 1, "stall_ok": False, "min_up": 2,
        "groups": {}, "approvals": 1, "heartbeat_s": 5, "worth": "no Byzantine tolerance: every node is trusted",
    },
    "members": [member(0), member(1), member(2)], "leases": {"held": [], "lost": []}, "plan": None,
    "orders": [order(ONE), order(OTHER)], "paused": "", "stopped": "", "last_admin_seq": 3, "closed": [],
    "adrift": False, "blocked": "", "alarms": [],
}  # fmt: skip
LOG: dict[str, object] = {
    "height": 12,
    "entries": [{"height": 12, "epoch": 1, "round": 0, "kind": "order", "order": ONE, "signed_by": ["gw1", "gw2"]}],
}


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Short, since the kernel takes 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ab-") as folder:
        yield Path(folder) / "fleet.sock"


@pytest.fixture
def device(workstation: Workstation, socket_path: Path) -> Workstation:
    """A member of a site."""
    text = workstation.config.read_text()
    workstation.config.write_text(f'{text}[fleet]\nudp_interface = "lo"\ncontrol = "{socket_path}"\n')
    return workstation


@pytest.fixture
def daemon(device: Workstation, socket_path: Path) -> Iterator[FakeDaemon]:
    """Its daemon."""
    with FakeDaemon(socket_path, {AskStatus: STATUS, AskLog: LOG, Judge: {}}) as running:
        yield running


def test_status_as_a_table_and_as_json(device: Workstation, daemon: FakeDaemon) -> None:
    assert device.ok("--json", "fleet", "status").document == STATUS
    assert device.ok("fleet", "status", "--json").document == STATUS
    lines = device.ok("fleet", "status").out.splitlines()
    assert lines[0] == "site plant-7, epoch 1, height 12; this is gw1"
    assert sum(line.split()[0] in ("*", "gw2", "gw3") for line in lines) == 3
    assert daemon.asked == [AskStatus()] * 3


def test_what_others_say_cannot_act_on_the_terminal(device: Workstation, daemon: FakeDaemon) -> None:
    daemon.answers[AskStatus] = {**STATUS, "members": [member(0, reason="\x1b[2J\u202eevil")]}
    out = device.ok("fleet", "status").out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "evil" in out


def test_log(device: Workstation, daemon: FakeDaemon) -> None:
    assert device.ok("--json", "fleet", "log").document == LOG
    assert device.ok("fleet", "log", "--from", "7", "-n", "256").out == "    12  order 3f2a00000000; signed by gw1, gw2\n"
    assert daemon.asked == [AskLog(0, 20), AskLog(7, 256)]


@pytest.mark.parametrize("words", [("-n", "0"), ("-n", "257"), ("-n", "-1"), ("--from", "4294967296"), ("--from", "x")])
def test_a_log_out_of_bounds_is_not_asked_for(device: Workstation, daemon: FakeDaemon, words: tuple[str, str]) -> None:
    assert device.run("fleet", "log", *words).code == 2
    assert daemon.asked == []


@pytest.mark.parametrize("verb", ["approve", "reject"])
def test_a_person_judges_an_order_by_its_first_digits(device: Workstation, daemon: FakeDaemon, verb: str) -> None:
    done = device.ok("--json", "fleet", verb, "3f2a", "--reason", "Pumpe läuft").document
    assert done == {"order": ONE, "approved": verb == "approve", "reason": "Pumpe läuft"}
    assert daemon.asked[1:] == [Judge(bytes.fromhex(ONE), verb == "approve", "Pumpe läuft")]
    assert ONE in device.ok("fleet", verb, ONE).out


def test_a_plan_has_a_short_name_too(device: Workstation, daemon: FakeDaemon) -> None:
    plan = {"order": "77" * 32}
    daemon.answers[AskStatus] = {**STATUS, "plan": plan}
    device.ok("fleet", "reject", "7777")
    assert daemon.asked[-1] == Judge(bytes.fromhex("77" * 32), approve=False)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("3f2", "first 4"),
        ("3f2b0", "no open order"),
        ("3f2", "id of an order"),
        ("beefbeef", "no open order"),
        ("xyzw", "id"),
        ("0" * 65, "id"),
    ],
)
def test_an_order_that_is_none_is_a_usage_error(device: Workstation, daemon: FakeDaemon, text: str, word: str) -> None:
    done = device.run("fleet", "approve", text)
    assert done.code == 2
    assert word in done.err
    assert Judge not in map(type, daemon.asked)


def test_digits_that_name_two_orders_are_a_usage_error(device: Workstation, daemon: FakeDaemon) -> None:
    daemon.answers[AskStatus] = {**STATUS, "orders": [order(ONE), order("3f2a" + "22" * 30)]}
    done = device.run("fleet", "approve", "3f2a")
    assert (done.code, "2 open orders" in done.err) == (2, True)


@pytest.mark.parametrize("reason", ["x" * 97, "ä" * 49, "two\nlines", "\x1b[2J"])
def test_a_reason_that_no_frame_carries_is_a_usage_error(device: Workstation, daemon: FakeDaemon, reason: str) -> None:
    assert device.run("fleet", "reject", ONE, "--reason", reason).code == 2
    assert daemon.asked == []


@pytest.mark.parametrize("kind", [Failed, Refused, NothingToDo, Busy])
def test_what_the_daemon_says_went_wrong_is_the_exit_code(device: Workstation, daemon: FakeDaemon, kind: type[AbupdateError]) -> None:
    daemon.answers[Judge] = kind("it is a plan already", "too late")
    done = device.run("fleet", "approve", ONE)
    assert done.code == kind.exit_code
    assert done.err == "abupdate: it is a plan already (too late)\n"


@pytest.mark.parametrize("verb", [("status",), ("log",), ("approve", ONE), ("reject", ONE)])
def test_without_a_daemon_the_hint_says_how_to_start_it(device: Workstation, verb: tuple[str, ...]) -> None:
    done = device.run("fleet", *verb)
    assert done.code == 1
    assert "systemctl start abupdate-fleet" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("verb", [("status",), ("status", "--watch"), ("log",), ("approve", ONE), ("reject", ONE)])
def test_who_is_no_member_is_told_so(workstation: Workstation, verb: tuple[str, ...]) -> None:
    done = workstation.run("fleet", *verb)
    assert done.code == 2
    assert "[fleet]" in done.err


def test_watch_as_json_is_a_document_on_each_line(device: Workstation, socket_path: Path) -> None:
    process = device.start("--json", "fleet", "status", "--watch")
    assert process.stdout is not None
    away = json.loads(process.stdout.readline())
    assert (away["error"], away["exit_code"]) == ("the fleet daemon does not answer", 1)
    assert "systemctl start abupdate-fleet" in away["hint"]
    with FakeDaemon(socket_path, {AskStatus: STATUS}):
        assert json.loads(process.stdout.readline())["height"] == STATUS["height"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_watch_shows_every_change_until_it_is_interrupted(device: Workstation, daemon: FakeDaemon) -> None:
    process = device.start("fleet", "status", "--watch")
    assert process.stdout is not None
    assert b"height 12" in process.stdout.readline()
    daemon.answers[AskStatus] = {**STATUS, "height": 13}
    while b"height 13" not in (line := process.stdout.readline()):
        assert line, "it ended"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert b"height 12" not in out


def test_watch_waits_for_a_daemon_that_is_away(device: Workstation, socket_path: Path) -> None:
    process = device.start("fleet", "status", "--watch")
    assert process.stdout is not None
    assert b"systemctl start abupdate-fleet" in process.stdout.readline()
    with FakeDaemon(socket_path, {AskStatus: STATUS}):
        while b"height 12" not in (line := process.stdout.readline()):
            assert line, "it ended"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_watch_draws_over_itself_on_a_terminal(device: Workstation, daemon: FakeDaemon) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command("-c", device.config, "fleet", "status", "--watch"), stdout=follower, stderr=follower, env={**environ(), "LINES": "5"}
    )
    os.close(follower)
    shown = b""
    while b"NODE" not in shown:
        shown += os.read(leader, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    os.close(leader)
    assert shown.startswith(b"\x1b[H\x1b[J")
    assert b"gw1   ok" not in shown, "what does not fit is cut off"
