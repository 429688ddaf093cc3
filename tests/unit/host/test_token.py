"""A PKCS#11 token signs: SoftHSM holds the keys, OpenSC's pkcs11-tool is the command of --sign-with, private halves never leave."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.workstation import call

PIN = "271828"
# pkcs11-tool signs with the first private key where it is told only a label.
IDS = {"root": "01", "release": "02"}


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of pkcs11-tool on a fresh token with the keys `root` and `release`, whose public halves are in ROLE.pub."""
    module = next(Path("/usr/lib").glob("**/softhsm/libsofthsm2.so"))
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("TOKEN_PIN", PIN)
    words = ["--init-token", "--free", "--label", "abupdate", "--pin", PIN, "--so-pin", PIN]
    subprocess.run(["softhsm2-util", *words], check=True, capture_output=True)
    base = ["pkcs11-tool", "--module", str(module), "--token-label", "abupdate"]
    for name, number in IDS.items():
        generate = ["--login", "--pin", "env:TOKEN_PIN", "--keypairgen", "--key-type", "EC:edwards25519", "--id", number, "--label", name]
        subprocess.run([*base, *generate], check=True, capture_output=True)
        subprocess.run([*base, "--read-object", "--type", "pubkey", "--id", number, "-o", f"{name}.pub"], check=True, capture_output=True)
    return base


def sign_with(tool: list[str], name: str) -> str:
    """What a user writes behind --sign-with."""
    streams = "--input-file /dev/stdin --output-file /dev/stdout"
    return f"{' '.join(tool)} --login --pin env:TOKEN_PIN --sign --mechanism EDDSA --id {IDS[name]} {streams}"


def ok(*words: str | Path) -> None:
    """A command that succeeds."""
    done = call(*words)
    assert done.code == 0, done.err


def test_a_token_signs_keyrings_and_bundles(tool: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, release = (sign_with(tool, name) for name in ("root", "release"))
    roles = ("--root", "root.pub", "--release", "release.pub")
    ok("keys", "keyring", "-o", "one.abk", "--version", "1", *roles, "--sign", "root.pub", "--sign-with", root)
    ok("keys", "rotate", "one.abk", "-o", "two.abk")
    ok("keys", "sign", "two.abk", "--previous", "one.abk", "--key", "root.pub", "--sign-with", root)
    Path("rootfs").write_bytes(os.urandom(5000))
    Path("spec.toml").write_text('compatible = "acme"\nversion = "1.0"\nsecurity_counter = 1\n[images.rootfs]\nfile = "rootfs"\n')
    chain = ("--chain", "one.abk", "--chain", "two.abk")
    ok("bundle", "create", "spec.toml", "-o", "out.abu", *chain, "--key", "release.pub", "--sign-with", release)
    done = call("--json", "info", "out.abu", "--keyring", "one.abk")
    assert (done.code, done.document["role"], done.document["keyring_version"]) == (0, "release", 2)
    # The token's other key, and a wrong PIN: nothing is written.
    for command, pin in ((root, PIN), (release, "000000")):
        monkeypatch.setenv("TOKEN_PIN", pin)
        done = call("bundle", "create", "spec.toml", "-o", "bad.abu", "--key", "release.pub", "--sign-with", command)
        assert done.code == 1, done.err
        assert not Path("bad.abu").exists()
