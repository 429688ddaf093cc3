"""What scripts read: one JSON document on standard output, progress and errors on standard error, exit codes of wrong usage."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from abupdate.__main__ import main
from tests.workstation import Kit, Result, Workstation, call, command, environ

BOTH_PLACES = pytest.mark.parametrize("after", [False, True], ids=["--json VERB", "VERB --json"])


def one_line(done: Result) -> str:
    """The error line: one, ours, without a traceback."""
    assert done.err.endswith("\n")
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("abupdate: ")
    assert "Traceback" not in done.err
    return lines[0]


def with_json(workstation: Workstation, argv: tuple[str | Path, ...], *, after: bool) -> Result:
    return workstation.run(*argv, "--json") if after else workstation.run("--json", *argv)


@BOTH_PLACES
def test_success_is_one_document(workstation: Workstation, kit: Kit, after: bool) -> None:
    """Every verb, in an order in which each succeeds."""
    health = workstation.folder / "health.d"
    health.mkdir()
    (health / "fine").write_text("#!/bin/sh\necho all is well\n")
    (health / "fine").chmod(0o755)
    v1 = kit["v1"]
    steps: list[tuple[tuple[str | Path, ...], set[str]]] = [
        (("status",), {"compatible", "booted", "primary", "trial", "slots", "attempt"}),
        (("info", v1), {"bundle", "version", "images", "signatures"}),
        (("flash", v1, "--no-activate", "--progress", "json"), {"slot", "version", "bundle", "armed", "reboot_needed"}),
        (("verify", "B"), {"slots"}),
        (("activate",), {"slot", "version", "bundle", "armed", "reboot_needed"}),
        (("revert",), {"slot", "version", "reboot_needed"}),
        (("activate", "B"), {"slot", "version", "bundle", "armed", "reboot_needed"}),
        (("status",), {"compatible", "booted", "primary", "trial", "slots", "attempt"}),
        (("health",), {"health", "programs"}),
    ]
    for argv, keys in steps:
        done = with_json(workstation, argv, after=after)
        assert done.code == 0, (argv, done.err)
        assert keys <= done.document.keys(), argv
    workstation.reboot("B")
    assert with_json(workstation, ("confirm",), after=after).document["confirmed"] is True
    doctor = with_json(workstation, ("doctor",), after=after)
    assert doctor.code == 1, "there is no watchdog"
    assert {row["grade"] for row in doctor.document["findings"]} <= {"ok", "warn", "fail"}


def test_success_on_the_build_host_is_one_document(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"an image" * 1000)
    (tmp_path / "spec.toml").write_text('compatible = "x"\nversion = "1"\nsecurity_counter = 1\n[images.rootfs]\nfile = "image"\n')
    key, bundle, ring = tmp_path / "key", tmp_path / "x.abu", tmp_path / "ring"
    roles = ("--root", f"{key}.pub", "--release", f"{key}.pub")
    for argv in (
        ("keys", "generate", key),
        ("keys", "keyring", "-o", ring, "--version", "1", *roles, "--sign", f"{key}.pem"),
        ("bundle", "create", tmp_path / "spec.toml", "-o", bundle, "--key", f"{key}.pem"),
        ("bundle", "sign", bundle, "--key", kit.folder / "stranger.pem"),
        ("bundle", "extract", bundle, "-o", tmp_path / "out", "--keyring", ring),
        ("info", bundle, "--keyring", ring),
    ):
        done = call("--json", *argv)
        assert done.code == 0, done.err
        assert done.document
        assert done.err == ""
    assert (tmp_path / "out").is_dir()


@BOTH_PLACES
def test_an_error_is_one_document_too(workstation: Workstation, kit: Kit, after: bool) -> None:
    cases: list[tuple[int, tuple[str | Path, ...]]] = [
        (4, ("confirm",)),
        (4, ("revert",)),
        (4, ("activate",)),
        (4, ("verify",)),
        (2, ("verify", "C")),
        (2, ("flash", workstation.folder / "absent")),
        (2, ("flash", workstation.folder)),
        (3, ("flash", workstation.config)),
        (3, ("info", workstation.config)),
        (2, ("info", workstation.folder / "absent")),
        (2, ("flash", kit["v1"], "--max-rate", "fast")),
        (2, ("bundle", "create", workstation.folder / "absent", "-o", "x", "--key", kit.folder / "release.pem")),
        (2, ("keys", "generate")),
    ]
    for code, argv in cases:
        done = with_json(workstation, argv, after=after) if argv != ("keys", "generate") else workstation.run("--json", *argv)
        assert done.code == code, (argv, done.err)
        line = one_line(done)
        document = done.document
        assert document.keys() == {"error", "hint", "exit_code"}
        assert document["exit_code"] == code
        assert line == f"abupdate: {document['error']}" + (f" ({document['hint']})" if document["hint"] else "")
    workstation.ok("flash", kit["v1"])
    assert with_json(workstation, ("flash", kit["v2"]), after=after).document["exit_code"] == 5
    assert with_json(workstation, ("confirm",), after=after).document["exit_code"] == 3


def test_every_refusal_has_a_hint(workstation: Workstation, kit: Kit) -> None:
    for argv in (
        ("flash", workstation.folder / "absent"),
        ("confirm", "x"),
        ("frobnicate",),
        ("verify", "C"),
        ("flash", workstation.config),
    ):
        done = workstation.run(*argv)
        assert one_line(done).endswith(")"), done.err
    workstation.ok("flash", kit["v1"])
    for argv in (("flash", kit["v2"]), ("confirm",)):
        assert one_line(workstation.run(*argv)).endswith(")")


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("frobnicate",),
        ("flash",),
        ("flash", "a", "b"),
        ("flash", "x", "--progress", "loud"),
        ("flash", "x", "--max-rate", "0"),
        ("flash", "x", "--max-rate", "-1k"),
        ("flash", "x", "--max-rate", "1T"),
        ("flash", "x", "--max-rate", "\u0661k"),
        ("flash", "x", "--no-such"),
        ("status", "extra"),
        ("keys",),
        ("bundle",),
        ("-c",),
    ],
)
@pytest.mark.parametrize("json_wanted", [False, True])
def test_wrong_usage(argv: tuple[str, ...], json_wanted: bool) -> None:
    done = call(*(["--json"] if json_wanted else []), *argv)
    assert done.code == 2
    assert "--help" in one_line(done)
    if json_wanted:
        assert done.document["exit_code"] == 2
    else:
        assert done.out == ""


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["flash", "--help"], ["keys", "keyring", "--help"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    assert "abupdate" in capsys.readouterr().out


def test_progress_as_json_lines(workstation: Workstation, kit: Kit) -> None:
    done = workstation.ok("--json", "flash", kit["v1"], "--progress", "json")
    assert done.document["slot"] == "B"
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert all(line.keys() == {"phase", "done_bytes", "total_bytes"} for line in lines)
    total = sum(len(image) for image in kit.images["v1"].values())
    assert {line["total_bytes"] for line in lines} == {total}
    for phase in ("write", "verify"):
        done_bytes = [line["done_bytes"] for line in lines if line["phase"] == phase]
        assert done_bytes == sorted(done_bytes)
        assert done_bytes[-1] == total
    phases = [line["phase"] for line in lines]
    assert phases == sorted(phases, key=["write", "verify"].index)


def test_a_bar_is_drawn_over_itself(workstation: Workstation, kit: Kit) -> None:
    done = workstation.ok("flash", kit["v1"], "--progress", "bar")
    assert "\r  writing [" in done.err
    assert "100%" in done.err
    assert done.out.startswith("version 1.0 is written to slot B")
    for kind in ("none", "auto"):
        workstation.ok("revert")
        assert workstation.ok("flash", kit["v1"], "--progress", kind).err == "", "no terminal, no bar"


def test_quiet(workstation: Workstation, kit: Kit) -> None:
    done = workstation.ok("-q", "flash", kit["v1"])
    assert (done.out, done.err) == ("", "")
    assert workstation.run("-q", "flash", kit["v1"]).err, "errors are still said"


def test_a_traceback_only_with_vv(workstation: Workstation) -> None:
    for flags, wanted in (((), False), (("-v",), False), (("-vv",), True)):
        done = workstation.run(*flags, "confirm")
        assert done.code == 4
        assert ("Traceback" in done.err) is wanted
        assert done.err.splitlines()[-1].startswith("abupdate: nothing is on trial")


def test_log_lines_go_to_standard_error(workstation: Workstation, kit: Kit) -> None:
    done = subprocess.run(
        command("-c", workstation.config, "-v", "--json", "flash", kit["v1"]), env=environ(), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["armed"] is True
    assert "abupdate: boot store: slot B boots next, on trial" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("argv", "code"), [(("status",), 1), (("--json", "status"), 1), (("confirm",), 4), (("--json", "confirm"), 4), (("info", "v1"), 1)]
)
def test_a_reader_who_leaves(workstation: Workstation, kit: Kit, argv: tuple[str, ...], code: int, unbuffered: str) -> None:
    """Lost output is not a success; an error keeps its code."""
    reading, writing = os.pipe()
    os.close(reading)
    full = [str(kit["v1"]) if part == "v1" else part for part in argv]
    with workstation.start(*full, stdout=writing, env={**environ(), "PYTHONUNBUFFERED": unbuffered}) as process:
        os.close(writing)
        assert process.stderr
        said = process.stderr.read().decode()
        assert process.wait(30) == code
    assert said == ("" if code == 1 else "abupdate: nothing is on trial (there is nothing to do)\n")


def test_a_flash_that_nobody_watches_any_more_goes_on(workstation: Workstation, kit: Kit) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with workstation.start("flash", kit["v1"], "--progress", "json", stderr=writing) as process:
        os.close(writing)
        assert process.stdout
        assert b"reboot needed" in process.stdout.read()
        assert process.wait(30) == 0
    assert workstation.holds("B", "v1")
    assert workstation.printed()["BOOT_TRIAL"] == "B"


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1 2"])
def test_closed_descriptors_never_become_a_slot(workstation: Workstation, kit: Kit, closed: str) -> None:
    shut = " ".join(f"{number}>&-" for number in closed.split())
    line = f'exec "$@" {shut}'
    argv = command("-c", workstation.config, "-vv", "--json", "flash", kit["v1"], "--progress", "json")
    done = subprocess.run(["sh", "-c", line, "sh", *argv], env=environ(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert workstation.holds("B", "v1")
    if "1" not in closed:
        assert json.loads(done.stdout)["armed"] is True


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("argv", "code"), [(("status",), 1), (("--json", "confirm"), 4)])
def test_output_on_a_full_disk(workstation: Workstation, argv: tuple[str, ...], code: int, unbuffered: str) -> None:
    environment = {**environ(), "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full, workstation.start(*argv, stdout=full, env=environment) as process:
        assert process.stderr
        said = process.stderr.read().decode()
        assert process.wait(30) == code
    assert "Traceback" not in said
    assert "Exception" not in said
    assert ("No space left" in said) or code == 4


def test_a_terminal_without_the_letters(workstation: Workstation, kit: Kit) -> None:
    bundle = kit.bundle("letters", top='description = "f\u00fcr \u2603"')
    environment = {**environ(), "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"}
    with workstation.start("info", bundle, env=environment) as process:
        assert process.stdout
        assert b"f\\xfcr \\u2603" in process.stdout.read()
        assert process.wait(30) == 0


def test_names_with_odd_bytes(workstation: Workstation) -> None:
    for name in ("a\nb", "a\udcffb", "x" * 5000):
        done = workstation.run("--json", "flash", name)
        assert done.code == 2
        one_line(done)
        assert done.document["exit_code"] == 2
