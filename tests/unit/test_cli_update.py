"""flash, activate, confirm, revert on a workstation set-up: exit codes, what boots next, and that a refusal changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib

import pytest

from abupdate.devices import power
from abupdate.devices.statedir import StateDir
from tests.workstation import ENV_BYTES, Kit, Workstation


def test_a_fresh_board_is_a_valid_start(workstation: Workstation) -> None:
    before = workstation.snapshot()
    document = workstation.status()
    assert (document["booted"], document["primary"], document["trial"], document["situation"]) == ("A", "A", None, "steady")
    assert {slot: part["state"] for slot, part in document["slots"].items()} == {"A": "confirmed", "B": "empty"}
    assert document["attempt"] is None
    assert workstation.run("confirm").code == 4
    assert workstation.run("revert").code == 4
    assert workstation.run("activate").code == 4
    assert workstation.run("verify").code == 4
    assert workstation.snapshot() == before


def test_a_fresh_board_on_which_a_boot_script_has_counted(workstation: Workstation) -> None:
    workstation.put_environment("foreign=kept\nBOOT_A_LEFT=9\nBOOT_B_LEFT=a\n")
    document = workstation.status()
    assert {slot: part["state"] for slot, part in document["slots"].items()} == {"A": "confirmed", "B": "empty"}
    assert workstation.run("revert").code == 4, "nobody has ever said that B is good"
    workstation.ok("flash", workstation.kit["v1"])
    assert workstation.printed()["BOOT_ORDER"] == "B A"


@pytest.mark.parametrize("place", ["workstation", "workstation_on_disk"])
def test_the_confirmed_path(place: str, request: pytest.FixtureRequest, kit: Kit) -> None:
    workstation: Workstation = request.getfixturevalue(place)
    before = workstation.snapshot()
    done = workstation.ok("--json", "flash", kit["v1"]).document
    assert (done["slot"], done["version"], done["armed"], done["reboot_needed"]) == ("B", "1.0", True, True)
    assert workstation.holds("B", "v1")
    armed = workstation.printed()
    assert armed == {
        **before.printed,
        "BOOT_ORDER": "B A",
        "BOOT_A_LEFT": "a",
        "BOOT_B_LEFT": "3",
        "BOOT_TRIAL": "B",
        "BOOT_TRIES": "3",
        "BOOT_BUDGET": "a",
        "BOOT_TIMEOUT": "78",
    }
    assert workstation.status()["trial"] == {"slot": "B", "tries_left": 3, "deadline_s": None}
    workstation.reboot("B")
    document = workstation.status()
    assert document["situation"] == "on-trial"
    assert document["trial"]["deadline_s"] is not None
    done = workstation.ok("--json", "confirm").document
    assert done == {"slot": "B", "version": "1.0", "confirmed": True}
    after = workstation.printed()
    assert (after["BOOT_ORDER"], after["BOOT_A_LEFT"], after["BOOT_B_LEFT"], after["BOOT_FLOOR"]) == ("B A", "a", "a", "1")
    assert "BOOT_TRIAL" not in after
    assert after["foreign"] == "kept"
    assert workstation.hashes()["A.rootfs"] == before.slots["A.rootfs"]
    document = workstation.status()
    assert {slot: part["state"] for slot, part in document["slots"].items()} == {"A": "confirmed", "B": "confirmed"}
    assert document["slots"]["B"]["version"] == "1.0"
    assert document["attempt"]["phase"] == "confirmed"
    # And once more, back to A.
    workstation.confirmed("v2", "A")
    assert workstation.holds("A", "v2")
    assert workstation.status()["floor"] == 2


def test_confirm_twice_is_nothing_to_do(workstation: Workstation) -> None:
    workstation.confirmed("v1", "B")
    before = workstation.snapshot()
    assert workstation.run("confirm").code == 4
    assert workstation.snapshot() == before


def test_confirm_on_the_wrong_slot_is_refused(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    before = workstation.snapshot()
    done = workstation.run("confirm")
    assert done.code == 3
    assert "slot B is" in done.err
    assert workstation.snapshot() == before


@pytest.mark.parametrize("verb", [("flash", "v2"), ("flash", "v1"), ("flash", "v2", "--no-activate"), ("activate",), ("activate", "B")])
@pytest.mark.parametrize("running", [False, True], ids=["armed", "running"])
def test_a_second_update_during_a_trial_is_busy(workstation: Workstation, kit: Kit, verb: tuple[str, ...], running: bool) -> None:
    workstation.ok("flash", kit["v1"])
    if running:
        workstation.reboot("B")
    before = workstation.snapshot()
    argv = [str(kit[part]) if part in ("v1", "v2") else part for part in verb]
    done = workstation.run(*argv)
    assert done.code == 5, done.err
    assert workstation.snapshot() == before


def test_two_flashes_at_once(workstation: Workstation, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    real = StateDir.lock
    # The verbs' patience with the lock, five times over, would be most of this file's time.
    monkeypatch.setattr(StateDir, "lock", lambda state, wait_s=0.0: real(state, min(wait_s, 0.1)))
    data = kit["v1"].read_bytes()
    with workstation.start("--json", "flash", "-", "--progress", "json", stdin=subprocess.PIPE) as first:
        assert first.stdin
        assert first.stderr
        assert first.stdout
        first.stdin.write(data[: len(data) // 2])
        first.stdin.flush()
        assert json.loads(first.stderr.readline())["phase"] == "write"
        middle = workstation.snapshot()
        for verb in (("flash", kit["v2"]), ("activate",), ("confirm",), ("revert",), ("doctor", "--fix")):
            done = workstation.run(*verb)
            assert done.code == 5, (verb, done.err)
            assert "another abupdate" in done.err
        assert workstation.snapshot().printed == middle.printed
        assert workstation.slot_state("B") == "writing", "looking is free"
        first.stdin.write(data[len(data) // 2 :])
        first.stdin.close()
        assert json.loads(first.stdout.read())["version"] == "1.0"
        assert first.wait(30) == 0
    assert workstation.holds("B", "v1")


def test_a_flash_waits_a_moment_for_the_lock(workstation: Workstation, kit: Kit) -> None:
    """The service holds it at its start, which is when people type."""
    program = "import fcntl,sys,time;f=open(sys.argv[1],'w');fcntl.flock(f,fcntl.LOCK_EX);print('held',flush=True);time.sleep(0.5)"
    workstation.state.mkdir(mode=0o700)
    with subprocess.Popen([sys.executable, "-c", program, workstation.state / "lock"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        workstation.ok("flash", kit["v1"])
        assert holder.wait(10) == 0


def test_the_bundle_that_the_confirmed_slot_holds(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v1", "B")
    before = workstation.snapshot()
    done = workstation.run("flash", kit["v1"])
    assert done.code == 4
    assert workstation.snapshot() == before
    assert workstation.flash_pipe(kit["v1"].read_bytes()).code == 4
    assert workstation.snapshot() == before


@pytest.mark.parametrize("redirected", [False, True], ids=["pipe", "redirected file"])
def test_flash_from_standard_input(workstation: Workstation, kit: Kit, redirected: bool) -> None:
    done = workstation.flash_pipe(kit["v1"].read_bytes(), redirected=redirected)
    assert done.code == 0, done.err
    assert workstation.holds("B", "v1")
    assert workstation.printed()["BOOT_TRIAL"] == "B"


def test_flash_from_a_named_pipe(workstation: Workstation, kit: Kit) -> None:
    fifo = workstation.folder / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cp", kit["v1"], fifo]) as feeder:
        workstation.ok("flash", fifo)
        assert feeder.wait(10) == 0
    assert workstation.holds("B", "v1")


def test_max_rate(workstation: Workstation, kit: Kit) -> None:
    done = workstation.run("flash", kit["v1"], "--max-rate", "0")
    assert done.code == 2
    before = os.times().elapsed
    workstation.ok("flash", kit["v1"], "--max-rate", "200k")
    # About 140 KiB are stored; the first read is free, so two thirds of the whole is a safe lower bound.
    stored = kit["v1"].stat().st_size
    assert os.times().elapsed - before > 0.5 * stored / (200 << 10)
    assert workstation.holds("B", "v1")


def test_flash_after_a_trial_that_was_reverted_needs_no_help(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    workstation.reboot("A")
    document = workstation.status()
    assert document["situation"] == "fell-back"
    assert document["attempt"]["phase"] == "reverted"
    assert document["attempt"]["reason"] == "load failed"
    assert document["slots"]["B"]["state"] == "bad"
    assert workstation.run("confirm").code == 4, "settled first, then nothing is on trial"
    assert "BOOT_TRIAL" not in workstation.printed()
    assert workstation.printed()["BOOT_ORDER"] == "A"
    workstation.confirmed("v2", "B")
    assert workstation.status()["slots"]["B"]["version"] == "2.0"


def test_a_fallback_says_that_the_tries_are_exhausted(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    workstation.setenv("BOOT_B_LEFT", "0")
    workstation.reboot("A")
    assert workstation.status()["attempt"]["reason"] == "tries exhausted"


# ---- two steps: --no-activate, activate


def test_no_activate_then_activate(workstation: Workstation, kit: Kit) -> None:
    done = workstation.ok("--json", "flash", kit["v1"], "--no-activate").document
    assert (done["armed"], done["reboot_needed"]) == (False, False)
    printed = workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_B_LEFT"]) == ("A", "0")
    assert workstation.slot_state("B") == "written"
    assert workstation.run("revert").code == 4
    done = workstation.ok("--json", "activate").document
    assert (done["slot"], done["version"], done["armed"]) == ("B", "1.0", True)
    assert workstation.printed()["BOOT_TRIAL"] == "B"
    assert workstation.run("activate").code == 5


def test_activate_wants_the_bundle_to_fit_the_slots_as_they_are_now(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"], "--no-activate")
    for slot in ("a", "b"):
        (workstation.folder / f"modem_{slot}").write_bytes(bytes(4096))
        workstation.edit(f'boot = "boot_{slot}"', f'boot = "boot_{slot}", modem = "modem_{slot}"')
    before = workstation.snapshot()
    done = workstation.run("activate")
    assert (done.code, "the bundle lacks image modem" in done.err) == (3, True), done.err
    assert workstation.snapshot() == before


def test_activate_after_a_reboot_and_of_a_named_slot(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"], "--no-activate")
    workstation.reboot("A")
    assert workstation.run("activate", "C").code == 2
    assert workstation.run("activate", "A").code == 2
    workstation.ok("activate", "B")
    assert workstation.status()["situation"] == "armed", "this boot's id is in the record, or it would look like a fallback"


@pytest.mark.parametrize("image", ["rootfs", "boot"])
@pytest.mark.parametrize("offset", [0, 20000])
def test_activate_reads_the_slot_again(workstation: Workstation, kit: Kit, image: str, offset: int) -> None:
    workstation.ok("flash", kit["v1"], "--no-activate")
    with workstation.places[f"B.{image}"].open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    before = workstation.snapshot()
    assert workstation.run("activate").code == 1
    assert workstation.printed() == before.printed
    workstation.ok("flash", kit["v1"])
    assert workstation.holds("B", "v1")


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_activate_refuses_a_stored_head_that_was_tampered_with(workstation: Workstation, kit: Kit, fraction: float) -> None:
    workstation.ok("flash", kit["v1"], "--no-activate")
    head = workstation.state / "head.B"
    data = bytearray(head.read_bytes())
    data[int(fraction * (len(data) - 1))] ^= 1
    head.write_bytes(data)
    before = workstation.snapshot()
    done = workstation.run("activate")
    assert done.code == 3, done.err
    assert workstation.snapshot() == before


def test_activate_with_the_head_of_another_bundle(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v2"], "--no-activate")
    other = (workstation.state / "head.B").read_bytes()
    workstation.ok("flash", kit["v1"], "--no-activate")
    (workstation.state / "head.B").write_bytes(other)
    before = workstation.snapshot()
    assert workstation.run("activate").code == 4
    assert workstation.snapshot() == before


def test_activate_refuses_a_head_that_this_keyring_does_not_accept(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"], "--no-activate")
    stranger = ("--release", kit.folder / "stranger.pub", "--release-threshold", "1", "--sign", kit.folder / "root.pem")
    ring = workstation.folder / "ring.abk"
    ring.unlink()
    kit.make("keys", "keyring", "-o", ring, "--version", "1", "--root", kit.folder / "root.pub", "--root-threshold", "1", *stranger)
    before = workstation.snapshot()
    assert workstation.run("activate").code == 3
    assert workstation.snapshot() == before


def test_activate_with_a_lost_head(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"], "--no-activate")
    (workstation.state / "head.B").unlink()
    before = workstation.snapshot()
    assert workstation.run("activate").code == 4
    assert workstation.snapshot() == before


def test_activate_with_a_lost_record(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"], "--no-activate")
    for name in ("record.0", "record.1"):
        (workstation.state / name).unlink()
    before = workstation.snapshot()
    assert workstation.run("activate").code == 4
    assert workstation.snapshot() == before


def test_activate_after_the_floor_has_risen(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v1", "B")
    workstation.ok("flash", kit["v2"], "--no-activate")
    workstation.setenv("BOOT_FLOOR", "3")
    before = workstation.snapshot()
    assert workstation.run("activate").code == 3
    assert workstation.snapshot() == before


# ---- revert


def test_revert_cancels_an_armed_trial(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    done = workstation.ok("--json", "revert").document
    assert done == {"slot": "A", "version": "", "reboot_needed": False}
    printed = workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_B_LEFT"]) == ("A", "0")
    assert "BOOT_TRIAL" not in printed
    assert workstation.slot_state("B") == "written"
    assert workstation.status()["attempt"]["phase"] == "cancelled"
    assert workstation.run("revert").code == 4
    workstation.ok("activate")
    assert workstation.printed()["BOOT_TRIAL"] == "B"


def test_revert_ends_a_running_trial(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    workstation.reboot("B")
    done = workstation.ok("--json", "revert").document
    assert (done["slot"], done["reboot_needed"]) == ("A", True)
    printed = workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_B_LEFT"]) == ("A", "0")
    assert "BOOT_TRIAL" not in printed
    document = workstation.status()
    assert document["situation"] == "reboot-pending"
    assert document["attempt"]["reason"] == "ordered by the operator"
    before = workstation.snapshot()
    assert workstation.run("revert").code == 4
    assert workstation.run("confirm").code == 4
    assert workstation.run("flash", kit["v2"]).code == 5
    assert workstation.snapshot() == before
    workstation.reboot("A")
    assert workstation.status()["situation"] == "steady"
    assert workstation.slot_state("B") == "bad"
    workstation.ok("flash", kit["v2"])


def test_revert_to_the_other_confirmed_slot(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v1", "B")
    done = workstation.ok("--json", "revert").document
    assert (done["slot"], done["reboot_needed"]) == ("A", True)
    assert workstation.printed()["BOOT_ORDER"] == "A B"
    assert workstation.status()["situation"] == "reboot-pending"
    assert workstation.run("flash", kit["v2"]).code == 5
    workstation.reboot("A")
    document = workstation.status()
    assert document["situation"] == "steady"
    assert document["slots"]["B"]["state"] == "confirmed"
    workstation.ok("revert")
    workstation.reboot("B")
    assert workstation.status()["booted"] == "B"


def test_revert_below_the_floor_is_refused(workstation: Workstation) -> None:
    workstation.confirmed("v1", "B")
    workstation.confirmed("v2", "A")
    before = workstation.snapshot()
    done = workstation.run("revert")
    assert done.code == 3
    assert "floor" in done.err
    assert workstation.snapshot() == before


def test_revert_with_the_other_slot_used_up(workstation: Workstation) -> None:
    workstation.confirmed("v1", "B")
    workstation.setenv("BOOT_A_LEFT", "0")
    before = workstation.snapshot()
    assert workstation.run("revert").code == 4
    assert workstation.snapshot() == before


def test_revert_ends_a_trial_that_is_below_the_floor_all_the_same(workstation: Workstation, kit: Kit) -> None:
    """Leaving a trial is the bootloader's own way back too; the floor guards installs and rollbacks by order."""
    workstation.confirmed("v1", "B")
    workstation.ok("flash", kit["v2"])
    workstation.reboot("A")
    assert workstation.status()["situation"] == "on-trial"
    workstation.ok("revert")
    assert workstation.printed()["BOOT_ORDER"] == "B"


def test_revert_of_a_trial_that_nobody_remembers(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    for name in ("record.0", "record.1"):
        (workstation.state / name).write_bytes(b"torn")
    assert workstation.status()["situation"] == "unknown"
    assert workstation.status()["record"] == "lost"
    assert workstation.run("flash", kit["v2"]).code == 5
    workstation.ok("revert")
    assert workstation.printed()["BOOT_ORDER"] == "A"
    workstation.ok("flash", kit["v2"])


def test_a_lost_record_does_not_strand_a_trial(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    workstation.reboot("B")
    for path in workstation.state.iterdir():
        path.unlink()
    workstation.state.rmdir()
    assert workstation.status()["situation"] == "on-trial"
    workstation.ok("confirm")
    assert workstation.printed()["BOOT_ORDER"] == "B A"
    assert "BOOT_TRIAL" not in workstation.printed()


def test_the_floor_survives_the_loss_of_the_record(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v3", "B")
    for name in ("record.0", "record.1"):
        (workstation.state / name).unlink()
    assert workstation.status()["floor"] == 3
    before = workstation.snapshot()
    assert workstation.run("flash", kit["v2"]).code == 3
    assert workstation.snapshot().slots == before.slots
    workstation.setenv("BOOT_FLOOR", "")
    assert workstation.status()["floor"] == 3, "the running slot's own manifest remembers"


def test_confirm_does_not_need_the_other_slots_device(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    workstation.reboot("B")
    workstation.places["A.rootfs"].unlink()
    workstation.ok("confirm")


def test_confirm_works_where_the_record_cannot_be_written(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    workstation.reboot("B")
    # A folder where the new record would be made: no write of it can succeed, for root neither.
    for name in ("record.0.new", "record.1.new"):
        (workstation.state / name).mkdir()
    workstation.ok("confirm")
    assert workstation.printed()["BOOT_ORDER"] == "B A"
    assert workstation.slot_state("B") == "confirmed"


def test_a_flash_that_cannot_write_its_record_writes_no_slot(workstation: Workstation, kit: Kit) -> None:
    workstation.state.mkdir(mode=0o700)
    (workstation.state / "record.0.new").mkdir()
    before = workstation.hashes()
    assert workstation.run("flash", kit["v1"]).code == 1
    assert workstation.hashes() == before
    assert workstation.printed()["BOOT_ORDER"] == "A"


# ---- --reboot


def test_reboot_is_ordered_only_where_one_is_needed(workstation: Workstation, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered: list[str] = []
    monkeypatch.setattr(power, "reboot", lambda: ordered.append("reboot"))
    assert workstation.run("flash", kit["v1"], "--reboot", "--no-activate").code == 0
    assert workstation.run("confirm").code == 4
    assert not ordered
    workstation.ok("flash", kit["v1"], "--reboot")
    assert ordered == ["reboot"]
    workstation.ok("revert", "--reboot")
    assert ordered == ["reboot"], "cancelled: this slot goes on running"
    workstation.ok("activate")
    workstation.reboot("B")
    workstation.ok("revert", "--reboot")
    assert ordered == ["reboot"] * 2


def test_no_reboot_after_a_failure(workstation: Workstation, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered: list[str] = []
    monkeypatch.setattr(power, "reboot", lambda: ordered.append("reboot"))
    assert workstation.flash_pipe(kit["v1"].read_bytes()[:-1], "--reboot").code == 1
    assert not ordered


def test_files_of_state_dir_are_private(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    assert workstation.state.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in workstation.state.iterdir()} == {0o600}


def test_a_record_of_another_major_version_is_kept_and_its_floor_counts(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v3", "B")
    # Magic, major and the rest of the frame as the newer agent would write them: only the number of the version differs.
    data = bytearray((workstation.state / "record.0").read_bytes())
    data[4:6] = (2).to_bytes(2, "big")
    data[-4:] = zlib.crc32(data[:-4]).to_bytes(4, "big")
    for name in ("record.0", "record.1"):
        (workstation.state / name).write_bytes(data)
    (workstation.state / "head.B").unlink()
    workstation.setenv("BOOT_FLOOR", "")
    document = workstation.status()
    assert (document["record"], document["floor"], document["slots"]["B"]["state"]) == ("lost", 3, "confirmed")
    assert workstation.run("flash", kit["v2"]).code == 3
    workstation.ok("flash", kit.bundle("v4", version="4.0", counter=4, seed=4))
    assert (workstation.state / "record.0.v2").read_bytes() == data
    assert workstation.status()["record"] == "whole"


def test_an_environment_without_room_for_a_trial_is_no_reason_to_write(workstation: Workstation) -> None:
    """To write everything first, at every try, would be the same answer an hour later."""
    workstation.put_environment("f=" + "x" * (ENV_BYTES - 5 - 60) + "\n")
    before = workstation.snapshot()
    done = workstation.run("flash", workstation.kit["v1"])
    assert (done.code, "no room" in done.err) == (2, True), done.err
    assert workstation.snapshot() == before


def test_an_update_is_confirmed_in_an_environment_without_room_for_the_floor(workstation: Workstation) -> None:
    """The mirror of the floor is the one copy that may be missing; the boot that counts was healthy."""
    workstation.put_environment("f=" + "x" * (ENV_BYTES - 5 - 105) + "\n")
    dated = workstation.kit.bundle("dated", version="1.5", counter=20261123, seed=1)
    workstation.ok("flash", dated)
    workstation.reboot("B")
    workstation.ok("confirm")
    assert "BOOT_FLOOR" not in workstation.printed()
    document = workstation.status()
    assert (document["slots"]["B"]["state"], document["floor"]) == ("confirmed", 20261123)
    assert workstation.run("doctor", "--fix").err.count("the floor is") <= 1
    assert workstation.run("flash", workstation.kit["v2"]).code == 3
