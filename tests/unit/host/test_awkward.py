"""The build host's verbs on what nobody meant: exit 2 and one line, nothing hangs, and no file that is needed is lost."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from abupdate.host.keys import load_public
from abupdate.host.signing import load_signers, sign_all
from tests.workstation import Kit, Result, call, command, environ

Words = tuple[str | Path, ...]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names are in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def wrong_usage(*words: str | Path) -> Result:
    done = call(*words)
    assert done.code == 2, done
    assert done.err.count("\n") == 1, done.err
    assert "internal error" not in done.err
    return done


def creating(kit: Kit, spec: Path, *more: str | Path) -> Words:
    return ("bundle", "create", spec, "-o", "out.abu", "--key", kit.folder / "release.pem", *more)


def test_names_that_are_none(kit: Kit) -> None:
    for name in ("", ".", "/", "..", "x" * 252):
        wrong_usage("keys", "generate", name)
    assert call("keys", "generate", "x" * 251).code == 0, "as long as the file system takes"
    wrong_usage("-c", "x" * 300, "status")
    wrong_usage(*creating(kit, Path("y" * 300)))


def foreign(der: bytes) -> bytes:
    return b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(der) + b"-----END PUBLIC KEY-----\n"


def test_keys_that_the_library_does_not_know(kit: Kit, tmp_path: Path) -> None:
    """An algorithm that nobody knows, a curve that is not supported, and one about which the library has an opinion."""
    algorithm = bytes.fromhex("302a300506032b6577032100") + bytes(32)
    curve = bytes.fromhex("3032301006072a8648ce3d020106052b81040006031e0004") + bytes(28)
    made = subprocess.run(["openssl", "genpkey", "-algorithm", "DH", "-pkeyopt", "group:ffdhe2048"], capture_output=True, check=True)
    finite = subprocess.run(["openssl", "pkey", "-pubout"], input=made.stdout, capture_output=True, check=True).stdout
    keys = {"a": foreign(algorithm), "c": foreign(curve), "d": finite}
    for name, data in keys.items():
        path = tmp_path / f"{name}.pub"
        path.write_bytes(data)
        roles = ("--root", kit.folder / "root.pub", "--release", path, "--sign", kit.folder / "root.pem")
        wrong_usage("keys", "keyring", "-o", "ring.abk", "--version", "1", *roles)
        wrong_usage(*creating(kit, kit.folder / "v1.toml", "--recipient", path))


def test_a_passphrase_that_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\xff" * 1024)
    path.chmod(0o600)
    wrong_usage("keys", "generate", "locked", "--passphrase-file", path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[images.rootfs]", 'recipients = ["a\\u0000b"]\n[images.rootfs]'),
        ("[images.rootfs]", 'chain = ["a\\u0000b"]\n[images.rootfs]'),
        ('file = "v1.rootfs"', 'file = "pipe"'),
        ('version = "1.0"', "a" + ".a" * 20000 + " = 1"),
    ],
    ids=["NUL in a recipient", "NUL in a chain", "named pipe", "endless key"],
)
@pytest.mark.timeout(20)
def test_recipes(kit: Kit, tmp_path: Path, old: str, new: str) -> None:
    text = (kit.folder / "v1.toml").read_text()
    assert text.count(old) == 1
    for image in ("rootfs", "boot"):
        (tmp_path / f"v1.{image}").symlink_to(kit.folder / f"v1.{image}")
    os.mkfifo("pipe")
    Path("spec.toml").write_text(text.replace(old, new))
    wrong_usage(*creating(kit, Path("spec.toml")))


def test_a_build_time_of_thousands_of_digits(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1" * 5000)
    wrong_usage(*creating(kit, kit.folder / "v1.toml"))


def test_no_output_takes_the_place_of_an_input(kit: Kit, tmp_path: Path) -> None:
    files = {name: (kit.folder / name).read_bytes() for name in ("v1.toml", "v1.rootfs", "v1.boot", "release.pem", "root.pub", "ring.abk")}
    for name, data in files.items():
        Path(name).write_bytes(data)
        Path(name).chmod(0o600)
    bundle: Words = ("bundle", "create", "v1.toml", "--key", "release.pem", "--chain", "ring.abk", "-o")
    ring: Words = ("keys", "keyring", "--version", "1", "--root", "root.pub", "--release", kit.folder / "release.pub", "-o")
    Path("link").symlink_to("release.pem")
    for words, outputs in (
        (bundle, ("v1.toml", "v1.rootfs", "release.pem", "link", "ring.abk")),
        ((*ring[:-1], "--sign", kit.folder / "root.pem", "-o"), ("root.pub",)),
        (("keys", "rotate", "ring.abk", "-o"), ("ring.abk",)),
    ):
        for output in outputs:
            wrong_usage(*words, output)
    assert {name: Path(name).read_bytes() for name in files} == files
    assert not list(tmp_path.glob(".*.tmp"))


def test_signing_through_a_link(kit: Kit) -> None:
    """What the link points to is signed."""
    ring = ("--root", "root-2.pub", "--root", kit.folder / "root.pub", "--release", kit.folder / "release.pub")
    assert call("keys", "generate", "root-2").code == 0
    assert call("keys", "keyring", "-o", "real.abk", "--version", "1", *ring, "--sign", kit.folder / "root.pem").code == 0
    Path("real.abu").write_bytes(kit["v1"].read_bytes())
    words: dict[str, Words] = {
        "real.abu": ("bundle", "sign", "link.abu", "--key", kit.folder / "stranger.pem"),
        "real.abk": ("keys", "sign", "link.abk", "--key", "root-2.pem"),
    }
    for name, argv in words.items():
        link, before = Path(name.replace("real", "link")), Path(name).read_bytes()
        link.symlink_to(name)
        assert call(*argv).code == 0
        assert link.is_symlink()
        assert Path(name).read_bytes() != before


def test_a_folder_that_cannot_be_looked_into(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    powerless = ("setpriv", "--bounding-set=-all")
    for words in (
        ("keys", "generate", "closed/x"),
        ("-c", "closed/c.toml", "status"),
        creating(kit, kit.folder / "v1.toml", "-o", "closed/x"),
    ):
        done = subprocess.run([*powerless, *command(*words)], env=environ(), capture_output=True, text=True, check=False)
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1


@pytest.fixture
def sign_with(kit: Kit) -> Callable[[str], bytes]:
    """A command's signature by the release key over some message."""

    def sign(command: str) -> bytes:
        [made] = sign_all(load_signers([kit.folder / "release.pub"], sign_with=command), b"message")
        assert made.public_key == load_public(kit.folder / "release.pub").raw
        return made.value

    return sign


@pytest.mark.timeout(20)
def test_a_signer_that_leaves_somebody_behind(kit: Kit, tmp_path: Path, sign_with: Callable[[str], bytes]) -> None:
    """An agent that it has started keeps its output open: the signature is there all the same."""
    script = tmp_path / "sign"
    private = kit.folder / "release.pem"
    script.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > agent\ncat > message\nopenssl pkeyutl -sign -rawin -inkey {private} -in message\n")
    script.chmod(0o755)
    try:
        assert len(sign_with(str(script))) == 64
    finally:
        os.kill(int(Path("agent").read_text()), 9)


def test_an_output_takes_the_place_of_a_file_and_of_nothing_else(kit: Kit, tmp_path: Path) -> None:
    """As root, `-o /dev/null` would leave the machine without it."""
    os.mknod("node", 0o20666, os.makedev(1, 3))
    os.mkfifo("pipe")
    for name in ("node", "pipe"):
        before = os.lstat(name)
        for words in (creating(kit, kit.folder / "v1.toml"), ("keys", "rotate", kit.ring, "--sign", kit.folder / "root.pem")):
            done = wrong_usage(*(word for word in words if word not in ("-o", "out.abu")), "-o", name)
            assert "is no regular file" in done.err
        after = os.lstat(name)
        assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
    (tmp_path / "link").symlink_to("target.abu")
    renamed = [word if word != "out.abu" else "link" for word in creating(kit, kit.folder / "v1.toml")]
    assert call(*renamed).code == 0
    assert (tmp_path / "link").is_symlink()
    assert call("info", "target.abu").code == 0
