"""Words of strangers that would act on a terminal, a log, systemd or a health program: refused, or shown as escapes, everywhere."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate.devices.notify import Notifier
from abupdate.devices.statedir import StateDir
from abupdate.formats import bundle as bundle_format
from abupdate.formats.signature import Domain, message, pack_block
from abupdate.host.keys import load_private
from abupdate.host.signing import sign_all
from abupdate.log import PlainFormatter, plain
from abupdate.model import Attempt, Phase, SlotRecord, SlotState
from tests.workstation import Kit, Result, Workstation, command, environ

# All of the same length in bytes, so that one can stand where another was.
MILD = b"Harmless"
HOSTILE = {
    "escape": b"\x1b[31mred",
    "title": b"\x1b]0;PWN\x07",
    "bell": b"\x07\x07\x07\x07\x07\x07\x07\x07",
    "line": b"ok\nREADY",
    "return": b"ok\rDONE!",
    "one control of C1": b"\xc2\x9b31mred",
    "bidi override": b"\xe2\x80\xaeabcde",
    "bidi isolate": b"\xe2\x81\xa6abcde",
    "NUL": b"ok\0ok\0ok",
    "paragraph": b"\xe2\x80\xa9abcde",
    "no UTF-8": b"\xff\xfeabcdef",
}
FIELDS: dict[str, Callable[[str], dict[str, str]]] = {
    "description": lambda word: {"top": f'description = "{word}"'},
    "hardware revision": lambda word: {"top": f'hardware_revisions = ["r3", "{word}"]'},
    "compatible": lambda word: {"compatible": word},
    "version": lambda word: {"version": word},
}


def acts(text: str) -> bool:
    """True where a terminal would do something else than show it."""
    return plain(text) != text or "\x1b" in text


def with_word(kit: Kit, field: str, word: bytes) -> bytes:
    """A bundle in which a field of the manifest holds the word, signed by the release key."""
    path = kit.bundle(f"mild-{field.replace(' ', '-')}", **FIELDS[field](MILD.decode()))  # type: ignore[arg-type]
    data = path.read_bytes()
    with path.open("rb") as file:
        old = bundle_format.read_signed(file.read, len(data))
    assert old.manifest_bytes.count(MILD) == 1
    manifest = old.manifest_bytes.replace(MILD, word)
    made = sign_all([load_private(kit.folder / "release.pem")], message(Domain.BUNDLE, manifest))
    head = bundle_format.build_head(manifest, pack_block(made), old.header.tables_bytes, old.header.payload_bytes)
    return head + data[len(old.raw) :]


@pytest.mark.parametrize("field", FIELDS)
def test_in_a_manifest_that_the_release_key_has_signed(workstation: Workstation, kit: Kit, field: str) -> None:
    path = workstation.folder / "bad.abu"
    for name, word in HOSTILE.items():
        if name == "line" and field == "description":
            # Descriptions may have lines, which `info` marks as such.
            continue
        path.write_bytes(with_word(kit, field, word))
        for argv in (
            ("flash", path),
            ("info", path),
            ("--json", "info", path),
            ("bundle", "extract", path, "-o", workstation.folder / "out"),
        ):
            done: Result = workstation.run(*argv)
            assert done.code == 3, (name, done)
            assert not acts(done.out + done.err), (name, done)
            assert word.decode(errors="replace") not in done.err
    path.write_bytes(with_word(kit, field, MILD))
    assert workstation.run("info", path).code == 0, "the control"


def test_lines_of_a_description_are_marked(workstation: Workstation, kit: Kit) -> None:
    path = workstation.folder / "lines.abu"
    path.write_bytes(with_word(kit, "description", b"a\nnot si"))
    assert "  | a\n  | not si" in workstation.ok("info", path).out


def test_in_a_record(workstation: Workstation, kit: Kit) -> None:
    """What stands there was checked when it was written; who writes there now may be another."""
    workstation.ok("flash", kit["v1"], "--no-activate")
    state = StateDir(workstation.state)
    known, _ = state.load()
    assert known is not None
    word = "\x1b[2J\u202e\r\x9b1mred"
    slots = {"A": SlotRecord(SlotState.CONFIRMED, word, "aa"), "B": SlotRecord(SlotState.WRITTEN, word, word, 1)}
    state.save(replace(known, slots=slots, attempt=Attempt("B", Phase.FAILED, "x", word, word, reason=word)))
    document = workstation.run("--json", "status")
    assert document.out.isascii()
    assert document.document["attempt"]["reason"] == word, "whole for programs"
    for argv in (("status",), ("doctor",), ("verify",), ("activate",), ("revert",), ("flash", kit["v1"]), ("-vv", "status")):
        done = workstation.run(*argv)
        assert not acts(done.out + done.err), (argv, done)


def test_in_names_of_files(workstation: Workstation) -> None:
    name = "\x1b]0;title\x07\n\u202e.abu"
    for argv in (("flash", name), ("info", name), ("keyring", "update", name), ("keys", "generate", f"absent/{name}")):
        done = workstation.run(*argv)
        assert done.code in (1, 2)
        assert not acts(done.err), (argv, done)
        assert done.err.count("\n") == 1


def test_in_the_log(workstation: Workstation) -> None:
    record = logging.LogRecord("abupdate", logging.WARNING, "", 0, "why: %s", ("\x1b[31mred\nabupdate: all is well\u2028",), None)
    assert PlainFormatter("abupdate: %(message)s").format(record) == r"abupdate: why: \x1b[31mred\nabupdate: all is well\u2028"
    # And that this is the formatter of the program.
    code = "import logging; from abupdate import __main__ as m; m._log(0, quiet=False); logging.warning('a\\x1b\\nb')"
    argv = [*command()[:1], "-c", code]
    done = subprocess.run(argv, env=environ(), capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == "abupdate: a\\x1b\\nb\n"


def test_to_systemd(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}).status("reverted:\nREADY=1\n\x1b[31m\x85MAINPID=1\u2029x")
        said = receiver.recv(4096).decode()
    assert said == r"STATUS=reverted: READY=1 \x1b[31m MAINPID=1 x"


def test_to_a_health_program(workstation: Workstation, kit: Kit) -> None:
    """Nothing of a bundle gets there at all."""
    bundle = kit.bundle("worded", version="1.0-unmistakable", counter=1, seed=1, top='description = "unmistakable"')
    workstation.ok("flash", bundle)
    workstation.reboot("B")
    health = workstation.folder / "health.d"
    health.mkdir()
    seen = workstation.folder / "seen"
    (health / "10-env").write_text(
        f'#!/bin/sh\nexport -p > {seen}; echo "$0 $#" >> {seen}\nprintf "a\\033[31m\\n\\342\\200\\256b\\n"\nexit 1\n'
    )
    (health / "10-env").chmod(0o755)
    done = workstation.run("health")
    assert done.code == 1
    assert not acts(done.out + done.err)
    assert json.loads(workstation.run("--json", "health").out)["programs"][0]["reason"].isprintable()
    said = seen.read_text()
    assert "unmistakable" not in said
    assert said.splitlines()[-1] == f"{health}/10-env 0"
    assert {line.split("=")[0].removeprefix("export ") for line in said.splitlines()[:-1]} == {"HOME", "LANG", "PATH", "PWD"}


def test_plain_text_stays() -> None:
    text = "Gerät 3 läuft\n日本語　版 🏳️ \u200d – «ok»"
    assert plain(text) == text
