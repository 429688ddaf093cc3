"""Device verbs on places and limits that nobody meant: exit 2 and one line, or the job is done; nothing hangs."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import pytest

from tests.workstation import Kit, Workstation, command, environ


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("slot", ["A", "B"])
def test_a_boot_store_that_lies_on_a_slot(workstation: Workstation, kit: Kit, slot: str, copies: int) -> None:
    """A flash would write over the copies that lie there, and over what the running slot boots from; one of them is enough to refuse."""
    place = workstation.places[f"{slot}.rootfs"]
    with place.open("r+b") as file:
        file.write(workstation.env.read_bytes())
    lines = workstation.fw_env_config.read_text()
    assert lines.count(str(workstation.env)) == 2
    workstation.fw_env_config.write_text(lines.replace(str(workstation.env), str(place), copies))
    before = workstation.snapshot()
    done = workstation.run("flash", kit["v1"])
    assert done.code == 2
    assert f"lies on slot {slot}.rootfs" in done.err
    findings = workstation.run("--json", "doctor").document["findings"]
    assert [row["grade"] for row in findings if "lies on slot" in row["text"]] == ["fail"]
    assert workstation.snapshot() == before


def test_slots_that_are_one_thing_under_two_names(workstation_on_disk: Workstation, kit: Kit) -> None:
    """Slot B is a loop device over slot A's file: writing one is writing the other."""
    workstation = workstation_on_disk
    place = workstation.places["A.rootfs"]
    loop = subprocess.run(["losetup", "--find", "--show", place], check=True, capture_output=True, text=True).stdout.strip()
    try:
        workstation.edit('"rootfs_b"', f'"{loop}"')
        before = workstation.snapshot()
        done = workstation.run("flash", kit["v1"])
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"A.rootfs ({place}) lies on B.rootfs" in done.err or f"B.rootfs ({loop}) lies on A.rootfs" in done.err
        assert workstation.snapshot() == before
        assert "lies on" in workstation.run("doctor").out
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


@pytest.mark.timeout(20)
def test_named_pipes(workstation: Workstation) -> None:
    """Nobody writes to them; what a shell hands over as a pipe is read."""
    pipe = workstation.folder / "pipe"
    os.mkfifo(pipe, 0o600)
    text = workstation.config.read_text()
    for name, verb in (("ring.abk", ("keyring", "show")), ("fw_env.config", ("status",)), ("state", ("status",))):
        workstation.config.write_text(text.replace(f'"{name}"', '"pipe"'))
        done = workstation.run(*verb)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "is a named pipe" in done.err
    workstation.config.write_text(text)
    (workstation.folder / "config.d").mkdir()
    pipe.rename(workstation.folder / "config.d/10-x.toml")
    assert workstation.run("status").code == 2
    absolute = text.replace('"A"', '"B"').replace('= "', f'= "{workstation.folder}/')
    for word in ("compatible", "hardware_revision", "kind", "booted"):
        absolute = absolute.replace(f'{word} = "{workstation.folder}/', f'{word} = "')
    reading, writing = os.pipe()
    os.write(writing, absolute.encode())
    os.close(writing)
    argv = command("-c", f"/dev/fd/{reading}", "keyring", "show")
    read = subprocess.run(argv, env=environ(), pass_fds=(reading,), capture_output=True, text=True, check=False)
    os.close(reading)
    assert read.returncode == 0, read.stderr


def test_places_that_are_none(workstation: Workstation) -> None:
    circle = workstation.folder / "circle"
    circle.symlink_to("circle")
    workstation.edit('device = "no-watchdog"', 'device = "circle"')
    findings = workstation.run("--json", "doctor").document["findings"]
    assert [row["grade"] for row in findings if row["topic"] == "watchdog"] == ["fail"]
    workstation.edit('device = "circle"', 'device = "/dev/null"')
    findings = workstation.run("--json", "doctor").document["findings"]
    assert [row["grade"] for row in findings if row["topic"] == "watchdog"] == ["warn"], "a device, but none that the kernel lists"
    workstation.edit('state_dir = "state"', 'state_dir = "' + "x" * 300 + '"')
    done = workstation.run("status")
    assert (done.code, done.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("argv", [("--help",), ("--version",), ("flash", "--help")])
def test_help_on_a_full_disk(argv: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command(*argv), env=environ(), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "abupdate: standard output: No space left on device\n"


@pytest.mark.parametrize("size_mib", [1024, 200, 140])
def test_memory_for_few_threads(workstation: Workstation, kit: Kit, size_mib: int) -> None:
    """Threads want stacks and heaps of address space. Where there is room for all of them the job is done.

    Where there is room for some, those do the work, unless the last one that could start took what the others still needed: that is
    seldom, ends with 1 and one line, and the same command ends the job. How many threads may start is test_crew.py's matter.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (size_mib << 20, size_mib << 20))

    with workstation.start("flash", kit["v1"], preexec_fn=limit) as process:
        assert process.stderr
        said = process.stderr.read().decode()
        code = process.wait(30)
    if code and size_mib < 1024:
        last = said.splitlines()[-1]
        assert code == 1, said
        assert last.startswith("abupdate: ")
        assert "memory" in last
        assert workstation.status()["primary"] == "A"
        workstation.ok("flash", kit["v1"])
    else:
        assert code == 0, said
    assert workstation.holds("B", "v1")


def test_a_umask_that_takes_our_own_bits(workstation: Workstation, kit: Kit) -> None:
    before = os.umask(0o777)
    try:
        workstation.ok("flash", kit["v1"])
        assert os.umask(0o777) == 0o777, "given back"
    finally:
        os.umask(before)
    assert workstation.state.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in workstation.state.iterdir()} == {0o600}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["record.0", "record.1", "head.A", "head.B", "keyring"])
def test_a_named_pipe_in_state_dir_is_as_good_as_no_file(workstation: Workstation, kit: Kit, name: str) -> None:
    """Nobody writes to it: the service would hang before its first word, and a good trial be lost."""
    workstation.ok("flash", kit["v1"])
    place = workstation.state / name
    place.unlink(missing_ok=True)
    os.mkfifo(place, 0o600)
    for verb in (("status",), ("verify", "A"), ("keyring", "show")):
        workstation.run(*verb)
    workstation.reboot("B")
    workstation.ok("confirm")
    workstation.ok("flash", kit["v2"])
    assert place.is_file() or name in ("head.B", "keyring")


def test_status_and_verify_where_the_other_slots_device_is_gone(workstation: Workstation, kit: Kit) -> None:
    """What runs can be told of all the same."""
    workstation.confirmed("v1", "B")
    workstation.places["A.rootfs"].unlink()
    assert workstation.status()["slots"]["B"]["state"] == "confirmed"
    workstation.ok("verify", "B")
    done = workstation.run("flash", kit["v2"])
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_a_state_dir_that_is_no_folder(workstation: Workstation, kit: Kit) -> None:
    workstation.state.write_text("")
    for verb in (("status",), ("flash", kit["v1"]), ("keyring", "show")):
        done = workstation.run(*verb)
        assert (done.code, done.err.count("\n"), "is no folder" in done.err) == (2, 1, True), done.err


def test_a_url_that_abupdate_does_not_open_is_not_a_missing_file(workstation: Workstation) -> None:
    done = workstation.run("flash", "ftp://updates.invalid/gateway.abu")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "is no http(s) URL" in done.err


def test_every_error_has_a_hint(workstation: Workstation, kit: Kit, tmp_path: Path) -> None:
    data = bytearray(kit["v1"].read_bytes())
    data[16] ^= 1
    bad = tmp_path / "bad.abu"
    bad.write_bytes(data)
    for verb in (("info", bad), ("info", tmp_path / "none"), ("flash", bad), ("keyring", "update", kit["v1"]), ("confirm",)):
        done = workstation.run("--json", *verb)
        assert done.code in (2, 3, 4)
        assert done.document["hint"], done
        assert done.err.endswith(")\n")
