"""Two releases on one device: the agent of the other slot reads and writes the same state_dir, boot store and bundles, in both directions.

`tests/releases/` holds the wheel of an earlier release as it was built from its commit (`git archive`, `pip wheel --no-deps`); where this
clone has that commit, the wheel is held against it. The old agent always runs as a process of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from abupdate.devices.statedir import StateDir
from abupdate.errors import Busy
from abupdate.formats.record import decode, encode
from abupdate.model import Phase, Record
from tests.workstation import ROOT, Kit, Result, Workstation

WHEEL = ROOT / "tests/releases/abupdate-0.1.0-py3-none-any.whl"
WHEEL_SHA256 = "0c4c75c6077d385c68c4372213f4641cb6fc57cd4802c5f9eb2db79c0f6c309f"
COMMIT = "3baf652b06fa01f484eb66d93924428449f3c655"
# The old agent with less patience for the lock; all else is its own.
HURRIED = """
import sys
from abupdate.__main__ import main
from abupdate.operations import flash
flash.LOCK_WAIT_S = 0.0
sys.exit(main(sys.argv[1:]))
"""
FIELDS = {"cohort": {"ring": 2}, "since": [1, "two", None]}


@dataclass(frozen=True, slots=True)
class OldAgent:
    """The earlier release, unpacked into a folder."""

    site: Path

    def environ(self) -> dict[str, str]:
        """Its package in front of everything; whatever is measured in this process is not this code."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE_"))}
        return {**kept, "PYTHONPATH": str(self.site)}

    def python(self, folder: Path, *argv: str | Path) -> Result:
        """Its Python with these arguments."""
        command = [sys.executable, *map(str, argv)]
        done = subprocess.run(command, cwd=folder, env=self.environ(), capture_output=True, text=True, timeout=60, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    def run(self, workstation: Workstation, *argv: str | Path) -> Result:
        """One of its verbs."""
        return self.python(workstation.folder, "-m", "abupdate", "-c", workstation.config, *argv)

    def ok(self, workstation: Workstation, *argv: str | Path) -> Result:
        """A verb that must succeed."""
        done = self.run(workstation, *argv)
        assert done.code == 0, done.err
        return done


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> OldAgent:
    """The old agent, which is what runs and not this checkout."""
    site = tmp_path_factory.mktemp("old-release")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(site)
    agent = OldAgent(site)
    found = agent.python(site.parent, "-c", "import abupdate.wiring, abupdate.__main__; print(abupdate.wiring.__file__)").out.strip()
    assert Path(found) == site / "abupdate/wiring.py"
    return agent


def record_of(workstation: Workstation) -> Record:
    """The record, which must be there, in two equal copies."""
    copies = [(workstation.state / name).read_bytes() for name in ("record.0", "record.1")]
    assert copies[0] == copies[1]
    return decode(copies[0])[1]


def mark(workstation: Workstation) -> None:
    """Fields of a version that neither agent knows, at every level of the record."""
    state = StateDir(workstation.state)
    record = record_of(workstation)
    slots = {name: replace(slot, extra={**slot.extra, **FIELDS}) for name, slot in record.slots.items()}
    assert record.attempt is not None
    attempt = replace(record.attempt, extra={**record.attempt.extra, **FIELDS})
    state.save(replace(record, slots=slots, attempt=attempt, extra={**record.extra, **FIELDS}))


def marked(workstation: Workstation) -> list[str]:
    """Where these fields still are."""
    record = record_of(workstation)
    places = {"record": record.extra, **{name: slot.extra for name, slot in record.slots.items()}}
    places |= {"attempt": record.attempt.extra} if record.attempt else {}
    return sorted(name for name, extra in places.items() if FIELDS.items() <= extra.items())


def assert_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Both agents see the same device. The window of a trial runs on between the two looks, where this machine was just started."""
    for document in (there, here):
        if document["trial"]:
            document["trial"]["deadline_s"] = document["trial"]["deadline_s"] is None
    assert there == here


def fall_back(workstation: Workstation, slot: str) -> None:
    """The trial of the other slot has used up its tries; this slot runs again, in a later boot."""
    trial = workstation.printed()["BOOT_TRIAL"]
    workstation.setenv(f"BOOT_{trial}_LEFT", "0")
    workstation.reboot(slot)


def test_the_wheel_is_the_release_that_it_says() -> None:
    assert hashlib.sha256(WHEEL.read_bytes()).hexdigest() == WHEEL_SHA256
    archive = subprocess.run(["git", "archive", COMMIT, "abupdate"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        return  # a shallow clone or an unpacked archive: the sum above has to do
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tree, zipfile.ZipFile(WHEEL) as wheel:
        files = [member for member in tree.getmembers() if member.isfile()]
        assert {member.name for member in files} == {name for name in wheel.namelist() if name.startswith("abupdate/")}
        for member in files:
            content = tree.extractfile(member)
            assert content is not None
            assert content.read() == wheel.read(member.name), member.name


def test_the_old_one_flashes_and_this_one_confirms_and_back(workstation: Workstation, kit: Kit, old: OldAgent) -> None:
    """Slot A has the old agent, slot B this one."""
    old.ok(workstation, "flash", kit["v1"])
    workstation.reboot("B")
    before = workstation.status()
    assert (before["situation"], before["slots"]["B"]["version"], before["record"]) == ("on-trial", "1.0", "whole")
    workstation.ok("verify", "B")
    workstation.ok("confirm")
    assert record_of(workstation).floor == 1
    mark(workstation)

    workstation.ok("flash", kit["v2"])
    workstation.reboot("A")
    there = json.loads(old.ok(workstation, "--json", "status").out)
    assert_same(there, workstation.status())
    assert (there["situation"], there["trial"]["slot"], there["trial"]["tries_left"]) == ("on-trial", "A", 3)
    old.ok(workstation, "confirm")
    assert workstation.slot_state("A") == "confirmed"
    assert record_of(workstation).floor == 2
    assert marked(workstation) == ["B", "record"], "the attempt and slot A are new ones"
    # The floor that the old one raised holds for this one, and the other way round.
    for refused in (workstation.run("flash", kit["v1"]), old.run(workstation, "flash", kit["v1"])):
        assert refused.code == 3
        assert "security counter is 1, this device has confirmed 2" in refused.err
    assert old.run(workstation, "revert").code == 3
    assert workstation.holds("B", "v1")


def test_this_one_falls_back_and_the_old_one_goes_on(workstation: Workstation, kit: Kit, old: OldAgent) -> None:
    """Slot B has this agent and wrote what it knows; slot A's older one settles the fallback, keeps all that, and updates again."""
    workstation.confirmed("v1", "B")
    workstation.confirmed("v2", "A")
    workstation.ok("flash", kit["v3"])
    mark(workstation)
    fall_back(workstation, "A")
    kept = {name: data for name, data in workstation.state_files().items() if not name.startswith("record")}

    told = json.loads(old.ok(workstation, "--json", "status").out)
    assert (told["situation"], told["slots"]["B"]["state"], told["floor"]) == ("fell-back", "bad", 2)
    assert told == workstation.status()
    assert "fix: boot store" in old.run(workstation, "doctor", "--fix").err
    record = record_of(workstation)
    assert record.attempt is not None
    assert (record.attempt.phase, record.attempt.reason, record.floor) == (Phase.REVERTED, "tries exhausted", 2)
    assert marked(workstation) == ["A", "B", "attempt", "record"], "a rewrite by the old one loses nothing"
    files = workstation.state_files()
    assert {name: files.get(name) for name in kept} == kept

    old.ok(workstation, "flash", kit["v3"])
    assert marked(workstation) == ["A", "B", "record"]
    workstation.reboot("B")
    workstation.ok("confirm")
    record = record_of(workstation)
    assert (record.floor, record.extra["cohort"]) == (3, FIELDS["cohort"])
    assert old.run(workstation, "verify").code == 0


def test_one_lock(workstation: Workstation, kit: Kit, old: OldAgent) -> None:
    with StateDir(workstation.state).lock():
        before = workstation.snapshot()
        busy = old.python(workstation.folder, "-c", HURRIED, "-c", workstation.config, "flash", kit["v1"])
        assert (busy.code, workstation.snapshot()) == (5, before), busy.err
        assert "another abupdate is at work" in busy.err
    # It holds the lock as long as its stream does not go on.
    command = [sys.executable, "-m", "abupdate", "-c", str(workstation.config), "flash", "--progress=json", "-"]
    bundle = kit["v1"].read_bytes()
    with subprocess.Popen(
        command, cwd=workstation.folder, env=old.environ(), stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(bundle[:-5000])
        assert b'"phase": "write"' in process.stderr.readline()
        with pytest.raises(Busy), StateDir(workstation.state).lock():
            pass
        process.stdin.write(bundle[-5000:])
        process.stdin.close()
        process.stderr.read()
        assert process.wait(30) == 0
    assert workstation.slot_state("B") == "trial"
    workstation.ok("revert")


def test_bundles_and_keyrings_of_the_old_one_serve_this_one(workstation: Workstation, kit: Kit, old: OldAgent, tmp_path: Path) -> None:
    spec = kit.folder / "v2.toml"
    made, ring = tmp_path / "old.abu", tmp_path / "old.abk"
    assert old.python(tmp_path, "-m", "abupdate", "bundle", "create", spec, "-o", made, "--key", kit.folder / "release.pem").code == 0
    keys = ("--root", kit.folder / "root.pub", "--release", kit.folder / "release.pub", "--sign", kit.folder / "root.pem")
    assert old.python(tmp_path, "-m", "abupdate", "keys", "keyring", "-o", ring, "--version", "1", *keys).code == 0
    assert ring.read_bytes() == kit.ring.read_bytes()
    workstation.ok("flash", made)
    assert workstation.holds("B", "v2")
    old.ok(workstation, "verify", "B")


@pytest.mark.parametrize("agent", ["this", "old"])
def test_a_record_of_another_major_version_is_lost_and_kept(agent: str, workstation: Workstation, kit: Kit, old: OldAgent) -> None:
    """Whichever agent is the older one: it rebuilds the record from facts, and whoever wrote the other finds it again."""
    workstation.confirmed("v1", "B")
    strange = bytearray(encode(replace(record_of(workstation), floor=3), 99))
    strange[4:6] = (2).to_bytes(2, "big")
    strange[-4:] = zlib.crc32(strange[:-4]).to_bytes(4, "big")
    for name in ("record.0", "record.1"):
        (workstation.state / name).write_bytes(strange)

    def run(*argv: str | Path) -> Result:
        return workstation.run(*argv) if agent == "this" else old.run(workstation, *argv)

    told = json.loads(run("--json", "status").out)
    assert (told["record"], told["floor"], told["slots"]["B"]["state"]) == ("lost", 3, "confirmed")
    assert run("flash", kit["v2"]).code == 3, "its floor counts all the same"
    assert run("flash", kit["v3"]).code == 0
    assert (workstation.state / "record.0.v2").read_bytes() == strange
    assert (workstation.state / "record.1.v2").read_bytes() == strange
    assert record_of(workstation).floor == 3
    assert run("revert").code == 0


@dataclass(frozen=True, slots=True)
class Later:
    """What only this release makes: version 2 of the keyring (a new release key), bundles of the first release key with its chain, and
    sealed, and a plain one by the new release key."""

    keyring: Path
    chained: Path
    sealed: Path
    rotated: Path


@pytest.fixture(scope="session")
def later(kit: Kit) -> Later:
    """Made by this release's command line."""
    folder = kit.folder
    for name in ("later-release",):
        kit.make("keys", "generate", folder / name)
    two = folder / "later-two.abk"
    kit.make("keys", "rotate", kit.ring, "-o", two, "--add-release", folder / "later-release.pub", "--sign", folder / "root.pem")
    chained = folder / "later-chained.abu"
    chained.write_bytes(kit.bundle("later-plain", version="2.1", counter=2, seed=21).read_bytes())
    kit.images["later-chained"] = kit.images["later-plain"]
    kit.make("bundle", "sign", chained, "--chain", kit.ring, "--chain", two)
    kit.recipient("later-device")
    sealed = kit.bundle("later-sealed", version="2.2", counter=2, seed=22, recipients=("later-device",))
    rotated = kit.bundle("later-rotated", version="2.3", counter=2, seed=23, key="later-release")
    return Later(two, chained, sealed, rotated)


def test_bundles_of_this_one_that_the_old_one_cannot_read_are_refused(
    workstation: Workstation, kit: Kit, old: OldAgent, later: Later
) -> None:
    workstation.confirmed("v1", "B")
    workstation.ok("keyring", "update", later.keyring)
    before = workstation.snapshot()
    for bundle, why in (
        (later.chained, "needs a newer abupdate"),
        (later.sealed, "needs a newer abupdate"),
        (later.rotated, "signed by 0 of the keyring's release keys"),
    ):
        done = old.run(workstation, "flash", bundle)
        assert done.code == 3, done.err
        assert why in done.err
        assert done.err.count("\n") == 1
        assert workstation.snapshot() == before, bundle.name
    # What only leaves out what the old one does not know is as good as ever.
    old.ok(workstation, "flash", kit["v2"])
    assert workstation.holds("A", "v2")


def test_the_old_one_lives_with_all_that_this_one_keeps(workstation: Workstation, kit: Kit, old: OldAgent, later: Later) -> None:
    """A newer keyring and the manifests of chained and sealed bundles lie in state_dir when the old one comes back."""
    workstation.edit("[device]", f'[encryption]\nkeys = ["{kit.folder}/later-device.pem"]\n[device]')
    workstation.confirmed("v1", "B")
    workstation.ok("flash", later.chained, "--no-activate")
    # Every slot has a configuration of its own; the old one's knows of no encryption.
    workstation.edit(f'[encryption]\nkeys = ["{kit.folder}/later-device.pem"]\n', "")
    old.ok(workstation, "activate")
    workstation.reboot("A")
    assert json.loads(old.ok(workstation, "--json", "status").out)["situation"] == "on-trial"
    old.ok(workstation, "confirm")
    assert record_of(workstation).floor == 2
    ring = (workstation.state / "keyring").read_bytes()
    assert ring == kit.ring.read_bytes() + later.keyring.read_bytes()
    # It runs from what the chained bundle brought. It refuses chains, and reads the manifest that was kept, which has none.
    old.ok(workstation, "verify", "A")
    records = {name: (workstation.state / name).read_bytes() for name in ("record.0", "record.1")}
    for name in records:
        (workstation.state / name).unlink()
    workstation.setenv("BOOT_FLOOR", "0")
    told = json.loads(old.ok(workstation, "--json", "status").out)
    assert (told["record"], told["floor"], told["slots"]["A"]["version"]) == ("lost", 2, "2.1"), "the kept manifest is a witness"
    assert old.run(workstation, "flash", kit["v1"]).code == 3, "the floor holds"
    for name, data in records.items():
        (workstation.state / name).write_bytes(data)
    old.ok(workstation, "flash", kit["v3"])
    workstation.reboot("B")
    workstation.ok("confirm")
    assert (workstation.state / "keyring").read_bytes() == ring
    assert workstation.ok("--json", "keyring", "show").document["version"] == 2
    workstation.ok("verify")

    # Sealed, and fallen back from.
    workstation.edit("[device]", f'[encryption]\nkeys = ["{kit.folder}/later-device.pem"]\n[device]')
    sealed = kit.bundle("later-sealed-4", version="4.0", counter=4, seed=24, recipients=("later-device",))
    workstation.ok("flash", sealed)
    workstation.edit(f'[encryption]\nkeys = ["{kit.folder}/later-device.pem"]\n', "")
    fall_back(workstation, "B")
    told = json.loads(old.ok(workstation, "--json", "status").out)
    assert (told["situation"], told["floor"], told["slots"]["A"]["version"]) == ("fell-back", 3, "4.0")
    assert "slot A fell back" in old.run(workstation, "doctor", "--fix").err
    again = kit.bundle("later-5", version="5.0", counter=5, seed=25)
    old.ok(workstation, "flash", again)
    assert workstation.holds("A", "later-5")
