"""What the daemon has done by processes of their own (`fleet act`), as it calls them: real processes, the order to reboot is a file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.localsite import AGENT
from tests.workstation import Kit, Result, Workstation, environ

SAID = b'{"event":"drain","lease":7}\n'


@pytest.fixture
def member(workstation: Workstation, kit: Kit) -> Workstation:
    """A member of a site; v2 is written to B."""
    with workstation.config.open("a") as file:
        file.write('[fleet]\nudp_interface = "lo"\ncontrol = "fleet.sock"\nhooks = "hooks"\ndrain_timeout_s = 30\n')
    workstation.ok("flash", "--no-activate", kit["v2"])
    return workstation


def act(member: Workstation, *words: str, said: bytes = SAID) -> Result:
    """One call, waited for."""
    command = [sys.executable, str(AGENT), "-c", str(member.config), "--json", "fleet", "act", *words]
    env = {**environ(), "ABU_TEST_FOLDER": str(member.folder)}
    done = subprocess.run(command, input=said, capture_output=True, env=env, cwd=member.folder, timeout=60, check=False)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def program(member: Workstation, kind: str, name: str, body: str) -> None:
    path = member.folder / "hooks" / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def written(member: Workstation) -> str:
    return str(member.status()["slots"]["B"]["bundle"])


def ordered(member: Workstation) -> bool:
    return (member.folder / "reboot-ordered").exists()


def test_leave_drains_in_order_arms_under_the_lease_and_reboots(member: Workstation) -> None:
    for name in ("20-second", "10-first"):
        program(member, "drain", name, f'(echo {name}; cat) >> "{member.folder}/notes"')
    done = act(member, "leave", "--lease", "7", "--bundle", written(member))
    assert (done.code, done.document) == (0, {"reboot_ordered": True}), done.err
    assert (member.folder / "notes").read_text() == f"10-first\n{SAID.decode()}20-second\n{SAID.decode()}"
    assert ordered(member)
    attempt = member.status()["attempt"]
    assert (attempt["phase"], attempt["lease"]) == ("armed", 7)


@pytest.mark.parametrize(("body", "words"), [("echo a batch runs; exit 1", "10-batch: a batch runs"), ("exit 2", "10-batch said no")])
def test_the_first_program_that_says_no_keeps_the_device_up(member: Workstation, body: str, words: str) -> None:
    program(member, "drain", "10-batch", body)
    program(member, "drain", "20-later", f"touch {member.folder}/later")
    done = act(member, "leave", "--lease", "7", "--bundle", written(member))
    assert (done.code, done.document["error"]) == (6, f"drain: {words}")
    assert not (member.folder / "later").exists()
    assert not ordered(member)
    assert member.slot_state("B") == "written"


def test_a_slot_that_has_changed_since_is_not_armed(member: Workstation) -> None:
    with member.places["B.rootfs"].open("r+b") as file:
        file.write(b"rot")
    done = act(member, "leave", "--lease", "7", "--bundle", written(member))
    assert done.code == 1, done.out
    assert not ordered(member)
    assert "BOOT_TRIAL" not in member.printed()


def test_only_what_is_armed_under_the_lease_is_taken_back(member: Workstation) -> None:
    act(member, "leave", "--lease", "7", "--bundle", written(member))
    assert act(member, "disarm", "--lease", "8").code == 4
    assert member.status()["situation"] == "armed"
    assert act(member, "disarm", "--lease", "7").document == {"disarmed": True}
    status = member.status()
    assert (status["situation"], status["attempt"]["phase"], status["attempt"]["lease"]) == ("steady", "cancelled", 7)


def test_an_order_to_go_back_at_once_heeds_no_drain(member: Workstation) -> None:
    program(member, "drain", "10-batch", "exit 1")
    assert act(member, "back", "--bundle", "11" * 32).code == 6
    done = act(member, "back", "--bundle", written(member))
    assert (done.code, ordered(member)) == (0, True)
    assert member.status()["attempt"]["lease"] is None
    assert "drain/10-batch said no" in done.err


def test_hooks_all_run_and_those_that_fail_are_named(member: Workstation) -> None:
    program(member, "peer-leaving", "10-bad", "exit 1")
    program(member, "peer-leaving", "20-good", f'cat > "{member.folder}/heard"')
    done = act(member, "hooks", "peer-leaving", said=b'{"event":"peer-leaving"}\n')
    assert (done.code, done.document["error"]) == (1, "peer-leaving/10-bad said no")
    assert json.loads((member.folder / "heard").read_text()) == {"event": "peer-leaving"}
    assert act(member, "hooks", "restore").code == 0
    assert act(member, "hooks", "drain").code == 2


@pytest.mark.parametrize("words", [("leave", "--lease", "x", "--bundle", "00"), ("leave", "--lease", "7", "--bundle", "zz"), ("back",)])
def test_calls_that_the_daemon_never_makes(member: Workstation, words: tuple[str, ...]) -> None:
    assert act(member, *words).code == 2


def test_nobody_goes_down_for_a_daemon_that_has_ended(member: Workstation) -> None:
    """The caller is killed while the drain runs; what it has started ends with it."""
    program(member, "drain", "10-slow", f"touch {member.folder}/draining; sleep 60")
    command = [sys.executable, str(AGENT), "-c", str(member.config), "fleet", "act", "leave", "--lease", "7", "--bundle", written(member)]
    caller = f"import subprocess; subprocess.run({command!r}, input=b'')"
    env = {**environ(), "ABU_TEST_FOLDER": str(member.folder)}
    with subprocess.Popen([sys.executable, "-c", caller], env=env, cwd=member.folder, stderr=subprocess.DEVNULL) as process:
        end_s = time.monotonic() + 30
        while not (member.folder / "draining").exists():
            assert time.monotonic() < end_s
            time.sleep(0.02)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < end_s + 10, "it goes on without its daemon"
        time.sleep(0.02)
    assert not ordered(member)
    assert member.slot_state("B") == "written"
