"""Rotation as a device lives through it: `keyring show` and `update`, chains in bundles, revoked keys, a state_dir that is lost."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from abupdate.formats import bundle as bundle_format
from abupdate.formats.signature import pack_block
from tests.workstation import Kit, Result, Workstation, call


@dataclass(frozen=True)
class Rotated:
    """Version 2 has another release key, version 3 another root key. new: a bundle by the new release key, without a chain."""

    files: tuple[Path, Path, Path]
    chain: Path
    new: Path

    def carrying(self, folder: Path, bundle: Path, *chain: Path) -> Path:
        """A copy of a bundle with another chain."""
        path = folder / f"carrying-{bundle.name}"
        shutil.copyfile(bundle, path)
        done = call("bundle", "sign", path, *(word for file in chain for word in ("--chain", file)))
        assert done.code == 0, done.err
        return path


@pytest.fixture(scope="session")
def rotated(kit: Kit) -> Rotated:
    """Made by the command line, as a release engineer would."""
    folder = kit.folder
    for name in ("root2", "release2"):
        kit.make("keys", "generate", folder / name)
    two, three, chain = (folder / name for name in ("two.abk", "three.abk", "chain.abk"))
    release2 = folder / "release2.pub"
    kit.make("keys", "rotate", kit.ring, "-o", two, "--release", release2, "--sign", folder / "root.pem")
    signers = ("--sign", folder / "root.pem", "--sign", folder / "root2.pem")
    kit.make("keys", "rotate", two, "-o", three, "--root", folder / "root2.pub", *signers)
    chain.write_bytes(kit.ring.read_bytes() + two.read_bytes() + three.read_bytes())
    new = kit.bundle("new", version="4.0", counter=4, seed=4, key="release2")
    return Rotated((kit.ring, two, three), chain, new)


def version(workstation: Workstation) -> tuple[int, str]:
    """What `keyring show` says."""
    document = workstation.ok("--json", "keyring", "show").document
    return document["version"], document["source"]


def test_show_and_update(workstation: Workstation, rotated: Rotated) -> None:
    shown = workstation.ok("keyring", "show", "--json").document
    assert (shown["version"], shown["source"], shown["note"]) == (1, "factory", "")
    assert {name: role["threshold"] for name, role in shown["roles"].items()} == {"root": 1, "release": 1}
    assert "keyring version 1" in workstation.ok("keyring", "show").out
    assert not workstation.state.exists(), "looking changes nothing"
    updated = workstation.ok("--json", "keyring", "update", rotated.chain).document
    assert (updated["version"], updated["before"], updated["source"]) == (3, 1, "state_dir")
    after = workstation.ok("--json", "keyring", "show").document
    assert (after["version"], after["source"]) == (3, "state_dir")
    assert after["roles"]["release"]["keys"] != shown["roles"]["release"]["keys"]
    kept = workstation.state / "keyring"
    assert kept.read_bytes() == rotated.chain.read_bytes()
    assert (kept.stat().st_mode & 0o777, workstation.state.stat().st_mode & 0o777) == (0o600, 0o700)
    for file in (rotated.chain, *rotated.files):
        done = workstation.run("keyring", "update", file)
        assert (done.code, done.out) == (4, ""), "never back, and nothing newer"
    assert kept.read_bytes() == rotated.chain.read_bytes()


def test_one_version_after_the_other(workstation: Workstation, rotated: Rotated) -> None:
    done = workstation.run("keyring", "update", rotated.files[2])
    assert done.code == 3
    assert "version 2 must come between" in done.err
    workstation.ok("keyring", "update", rotated.files[1])
    workstation.ok("keyring", "update", rotated.files[2])
    assert version(workstation) == (3, "state_dir")


def refused(workstation: Workstation, file: Path) -> str:
    """What an update with this file is refused with; it changes nothing."""
    before = workstation.snapshot()
    done = workstation.run("keyring", "update", file)
    assert done.code == 3, done.err
    assert workstation.snapshot() == before
    return done.err


def test_what_is_no_next_version(workstation: Workstation, kit: Kit, rotated: Rotated, tmp_path: Path) -> None:
    bad = tmp_path / "bad.abk"
    for data in (b"", b"x" * 100, rotated.chain.read_bytes()[:-1], rotated.chain.read_bytes() + b"\0", bytes(300 << 10)):
        bad.write_bytes(data)
        done = workstation.run("keyring", "update", bad)
        assert done.code == 3, done.err
    assert workstation.run("keyring", "update", "/dev/null").code == 3
    assert workstation.run("keyring", "update", tmp_path / "missing").code == 2
    # By the release key, which has no say here; by nobody; by the new root key only.
    folder = kit.folder
    release2 = folder / "release2.pub"
    bad.unlink()
    kit.make("keys", "rotate", kit.ring, "-o", bad, "--add-root", folder / "release.pub", "--sign", folder / "release.pem")
    assert "version 2 of the keyring: it is signed by 0 of version 1's root keys" in refused(workstation, bad)
    bad.unlink()
    kit.make("keys", "rotate", kit.ring, "-o", bad, "--release", release2)
    assert "signed by 0 of version 1's" in refused(workstation, bad)
    bad.unlink()
    kit.make("keys", "rotate", kit.ring, "-o", bad, "--root", folder / "root2.pub", "--sign", folder / "root2.pem")
    assert "signed by 0 of version 1's" in refused(workstation, bad)
    kit.make("keys", "sign", bad, "--previous", kit.ring, "--key", folder / "root.pem")
    workstation.ok("keyring", "update", bad)
    # Another version 2 than this device has taken: two histories.
    assert "not the one that this device has" in refused(workstation, rotated.chain)


def test_a_test_key_comes_in_by_no_rotation(workstation: Workstation, kit: Kit, tmp_path: Path) -> None:
    kit.make("keys", "generate", "--test", tmp_path / "toy")
    bad = tmp_path / "toy.abk"
    kit.make("keys", "rotate", kit.ring, "-o", bad, "--add-release", tmp_path / "toy.pub", "--sign", kit.folder / "root.pem")
    assert "allow_test_keys" in refused(workstation, bad)
    workstation.edit('keyring = "ring.abk"', 'keyring = "ring.abk"\nallow_test_keys = true')
    workstation.ok("keyring", "update", bad)
    workstation.edit("\nallow_test_keys = true", "")
    for argv in (("keyring", "show"), ("flash", kit["v1"])):
        assert workstation.run(*argv).code == 3, "and it is no way back to version 1 either"


def flash(workstation: Workstation, bundle: Path, *, stream: bool) -> Result:
    """From a file or through a pipe."""
    return workstation.flash_pipe(bundle.read_bytes()) if stream else workstation.run("flash", bundle)


@pytest.mark.parametrize("stream", [False, True], ids=["file", "pipe"])
def test_a_bundle_brings_the_keyring_that_accepts_it(workstation: Workstation, rotated: Rotated, tmp_path: Path, stream: bool) -> None:
    before = workstation.snapshot()
    assert flash(workstation, rotated.new, stream=stream).code == 3
    assert workstation.snapshot() == before
    whole = rotated.carrying(tmp_path, rotated.new, rotated.chain)
    done = flash(workstation, whole, stream=stream)
    assert done.code == 0, done.err
    assert workstation.holds("B", "new")
    assert version(workstation) == (3, "state_dir")
    # State lost, in the other slot with its factory keyring: the chain is walked again.
    workstation.reboot("B")
    workstation.ok("confirm")
    shutil.rmtree(workstation.state)
    assert version(workstation) == (1, "factory")
    workstation.ok("flash", rotated.carrying(tmp_path, workstation.kit.bundle("newer", counter=5, key="release2", seed=5), *rotated.files))
    assert version(workstation) == (3, "state_dir")


def test_a_keyring_that_cannot_be_kept_is_not_used(workstation: Workstation, rotated: Rotated, tmp_path: Path) -> None:
    whole = rotated.carrying(tmp_path, rotated.new, rotated.chain)
    workstation.ok("keyring", "update", rotated.files[1])
    # Where the new file would be made.
    obstacle = workstation.state / "keyring.new"
    obstacle.mkdir()
    before = workstation.hashes()
    for argv in (("flash", whole), ("keyring", "update", rotated.chain)):
        assert workstation.run(*argv).code == 1
        assert version(workstation) == (2, "state_dir")
    assert (workstation.hashes(), workstation.slot_state("B")) == (before, "empty")
    obstacle.rmdir()
    workstation.ok("flash", whole)
    assert version(workstation) == (3, "state_dir")


def test_a_key_that_was_revoked(workstation: Workstation, kit: Kit, rotated: Rotated, tmp_path: Path) -> None:
    """By a keyring update, and by the very chain that the bundle carries: the keyring moves on, the slot does not."""
    carrying = rotated.carrying(tmp_path, kit["v1"], rotated.chain)
    before = workstation.snapshot()
    done = workstation.run("flash", carrying)
    assert done.code == 3
    assert "signed by 0 of the keyring's release keys" in done.err
    assert version(workstation) == (3, "state_dir")
    after = workstation.snapshot()
    assert (after.slots, after.raw) == (before.slots, before.raw)
    assert set(after.state) == {"keyring"}
    assert workstation.run("flash", kit["v1"]).code == 3
    assert workstation.snapshot() == after


def test_a_bad_chain_in_a_bundle_that_is_signed_well(workstation: Workstation, kit: Kit, rotated: Rotated, tmp_path: Path) -> None:
    data = kit["v1"].read_bytes()
    with kit["v1"].open("rb") as file:
        old = bundle_format.read_signed(file.read, len(data))
    one, two, three = (path.read_bytes() for path in rotated.files)
    block = old.raw[96 + len(old.manifest_bytes) :]
    before = workstation.snapshot()
    flipped = bytearray(two)
    flipped[random.Random(3).randrange(52, len(two))] ^= 1
    for chain in (b"x", one[:-1], one + three, two + one, bytes(flipped), one + two + three[:-1], three):
        head = bundle_format.build_head(old.manifest_bytes, block, old.header.tables_bytes, old.header.payload_bytes, chain)
        bad = tmp_path / "bad.abu"
        bad.write_bytes(head + data[len(old.raw) :])
        for stream in (False, True):
            done = flash(workstation, bad, stream=stream)
            assert done.code == 3, (chain[:60], done.err)
            assert "keyring" in done.err
            assert workstation.snapshot() == before
    head = bundle_format.build_head(old.manifest_bytes, block, old.header.tables_bytes, old.header.payload_bytes, one)
    bad.write_bytes(head + data[len(old.raw) :])
    workstation.ok("flash", bad)
    assert version(workstation) == (1, "factory")


def test_a_key_that_is_revoked_between_flash_and_activate(
    workstation: Workstation, kit: Kit, rotated: Rotated, caplog: pytest.LogCaptureFixture
) -> None:
    workstation.ok("flash", kit["v1"], "--no-activate")
    workstation.ok("keyring", "update", rotated.files[1])
    before = workstation.snapshot()
    assert workstation.run("activate").code == 3
    assert workstation.snapshot() == before
    # What lies there is still what was written: reading it says so, and that it would not be installed again.
    assert "unchanged" in workstation.ok("verify", "B").out
    assert "would not be installed again" in caplog.text


def test_a_stored_head_whose_signatures_are_nobody_s(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    stored = workstation.state / "head.B"
    good = bundle_format.parse_stored_head(stored.read_bytes())
    header = good.signed.header
    spoiled = replace(good.signed.signatures[0], value=bytes(64))
    for block in (b"", pack_block([spoiled])):
        head = bundle_format.build_head(good.signed.manifest_bytes, block, header.tables_bytes, header.payload_bytes)
        stored.write_bytes(head + good.tables.raw)
        done = workstation.run("verify", "B")
        assert done.code == 3
        assert "sign" in done.err


def test_activate_needs_the_keyring_that_was_kept(workstation: Workstation, rotated: Rotated, tmp_path: Path) -> None:
    """The chain is not kept with the manifest: what it brought is state_dir's own, and can come again from elsewhere."""
    bundle = rotated.carrying(tmp_path, rotated.new, rotated.chain)
    workstation.ok("flash", bundle, "--no-activate")
    assert bundle_format.parse_stored_head((workstation.state / "head.B").read_bytes()).signed.chain == b""
    kept = (workstation.state / "keyring").read_bytes()
    (workstation.state / "keyring").unlink()
    workstation.ok("verify", "B")
    before = workstation.snapshot()
    refused = workstation.run("activate")
    assert (refused.code, "signed by 0 of the keyring's release keys" in refused.err) == (3, True)
    assert workstation.snapshot() == before
    workstation.ok("keyring", "update", rotated.chain)
    assert (workstation.state / "keyring").read_bytes() == kept
    workstation.ok("activate")
    assert workstation.slot_state("B") == "trial"


def test_doctor_says_which_part_of_a_stored_keyring_counts(workstation: Workstation, kit: Kit, rotated: Rotated) -> None:
    workstation.ok("keyring", "update", rotated.chain)
    kept = workstation.state / "keyring"
    assert not [
        row for row in workstation.run("--json", "doctor").document["findings"] if (row["topic"], row["grade"]) == ("trust", "warn")
    ]
    kept.write_bytes(kept.read_bytes()[:-1])
    assert version(workstation) == (2, "state_dir")
    assert "trust: the stored keyring is used up to version 2 only: " in workstation.run("doctor").out
    kept.write_bytes(b"rubbish")
    assert "trust: the stored keyring is not used: this is not a keyring" in workstation.run("doctor").out
    # The old agent's keys count again, until the chain comes by: the state was lost.
    workstation.ok("flash", kit["v1"])


def test_a_keyring_planted_in_state_dir_is_not_believed(
    workstation: Workstation, kit: Kit, rotated: Rotated, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By somebody who can write the data partition and holds none of the root keys: signed as it should be, by keys of his own."""
    folder = kit.folder
    kit.make("keys", "generate", folder / "intruder")
    keys = ("--root", folder / "intruder.pub", "--release", folder / "intruder.pub", "--sign", folder / "intruder.pem")
    for number in ("1", "2"):
        kit.make("keys", "keyring", "-o", tmp_path / f"planted-{number}.abk", *keys, "--version", number)
    bundle = kit.bundle("intruder's", version="9.0", counter=9, seed=9, key="intruder")
    workstation.state.mkdir(mode=0o700)
    kept = workstation.state / "keyring"
    second = (tmp_path / "planted-2.abk").read_bytes()
    for planted in (second, (tmp_path / "planted-1.abk").read_bytes() + second, kit.ring.read_bytes() + second):
        kept.write_bytes(planted)
        kept.chmod(0o600)
        assert version(workstation) == (1, "factory")
        done = workstation.run("flash", bundle)
        assert (done.code, "signed by 0 of the keyring's release keys" in done.err) == (3, True)
        assert "the stored keyring is not used" in caplog.text
        caplog.clear()
    workstation.ok("flash", rotated.carrying(tmp_path, rotated.new, rotated.chain))
    assert kept.read_bytes() == rotated.chain.read_bytes()
    # What a device keeps tells a build host which keyring it has.
    assert workstation.ok("--json", "info", rotated.new, "--keyring", kept).document["keyring_version"] == 3


def test_info_looks_from_the_keyring_that_counts(workstation: Workstation, kit: Kit, rotated: Rotated, tmp_path: Path) -> None:
    whole = rotated.carrying(tmp_path, rotated.new, rotated.chain)
    for ring, wanted in ((rotated.files[0], 3), (rotated.files[1], 3), (rotated.files[2], 3)):
        document = workstation.ok("--json", "info", whole, "--keyring", ring).document
        assert (document["accepted"], document["keyring_version"], document["chain"]) == (True, wanted, [1, 2, 3])
        assert document["signatures"][0]["roles"] == ["release"]
    assert workstation.run("info", rotated.new, "--keyring", rotated.files[0]).code == 3
    assert workstation.run("info", rotated.new, "--keyring", rotated.files[1]).code == 0
    assert not workstation.state.exists()
    assert workstation.ok("--json", "info", kit["v1"]).document["accepted"]
    workstation.ok("keyring", "update", rotated.files[1])
    document = workstation.ok("--json", "info", kit["v1"]).document
    assert (document["accepted"], document["keyring_version"]) == (False, 2)
    assert "keyring chain     versions 1 to 3" in workstation.ok("info", whole).out
    out = tmp_path / "out"
    workstation.ok("bundle", "extract", whole, "-o", out, "--keyring", rotated.files[0])
    assert (out / "boot.img").read_bytes() == kit.images["new"]["boot"]
    assert workstation.run("bundle", "extract", rotated.new, "-o", tmp_path / "none", "--keyring", rotated.files[0]).code == 3
    # On a bundle whose chain does not follow from the keyring.
    done = workstation.run("--json", "info", rotated.carrying(tmp_path, rotated.new, rotated.files[2]), "--keyring", rotated.files[0])
    assert (done.code, done.document["accepted"]) == (3, False)
    assert "from version 1 to version 3" in done.document["reason"]


def test_what_is_wrong_with_the_stored_keyring_is_said_once(workstation: Workstation, kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    (workstation.state).mkdir(mode=0o700, exist_ok=True)
    (workstation.state / "keyring").write_bytes(b"rubbish")
    for argv in (("flash", kit["v1"], "--no-activate"), ("activate",), ("keyring", "update", kit.ring)):
        caplog.clear()
        workstation.run(*argv)
        assert caplog.text.count("the stored keyring is not used: this is not a keyring") == 1, argv
