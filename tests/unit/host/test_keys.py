"""Key files, keyrings and signers: what other tools read, what is refused, what is never overwritten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from abupdate.errors import ConfigError, Failed
from abupdate.formats import keyring as keyring_format
from abupdate.formats import signature
from abupdate.host import keyrings, keys
from abupdate.host.keyrings import RoleRequest
from abupdate.host.signing import load_signers, sign_all
from abupdate.model import PublicKey, RoleName


def mode(path: Path) -> int:
    """Permission bits."""
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("passphrase", [None, b"open sesame"])
def test_generated_keys_are_read_back_here_and_by_openssl(tmp_path: Path, passphrase: bytes | None, test: bool) -> None:
    private, public, key = keys.generate(tmp_path / "dir.key", passphrase=passphrase, test=test)
    assert (private.name, public.name) == ("dir.key.pem", "dir.key.pub")
    assert (mode(private), mode(public)) == (0o600, 0o644)
    assert keys.load_public(public) == key == keys.load_private(private, passphrase).public
    assert key.test is test
    for path in (private, public):
        assert (b"abupdate-test-key" in path.read_bytes()) is test
    assert (b"ENCRYPTED" in private.read_bytes()) is (passphrase is not None)
    # Another implementation sees the same key in both files.
    words = ["-passin", f"pass:{passphrase.decode()}"] if passphrase else []
    derived = subprocess.run(["openssl", "pkey", "-in", private, *words, "-pubout"], check=True, capture_output=True).stdout
    assert derived.strip() in public.read_bytes()
    message = signature.message(signature.Domain.BUNDLE, b"object")
    assert signature.verify(key.raw, keys.load_private(private, passphrase).sign(message), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dir.key.pem", "dir.key.pub"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    private, public, _key = keys.generate(tmp_path / "a")
    for path in (private, public):
        before = path.read_bytes()
        other = public if path is private else private
        other.rename(tmp_path / "aside")
        with pytest.raises(ConfigError, match="exists"):
            keys.generate(tmp_path / "a")
        assert path.read_bytes() == before
        assert not other.exists()
        (tmp_path / "aside").rename(other)
    with pytest.raises(ConfigError):
        keys.generate(tmp_path / "missing" / "a")


def test_a_private_key_that_others_can_read_is_refused_unless_it_is_a_test_key(tmp_path: Path) -> None:
    private, _public, _key = keys.generate(tmp_path / "a")
    private.chmod(0o640)
    with pytest.raises(ConfigError, match="read by others") as caught:
        keys.load_private(private)
    assert "chmod 600" in caught.value.hint
    marked, _public, _key = keys.generate(tmp_path / "t", test=True)
    marked.chmod(0o644)
    assert keys.load_private(marked).public.test


def test_passphrases(tmp_path: Path) -> None:
    private, _public, _key = keys.generate(tmp_path / "a", passphrase=b"right")
    with pytest.raises(ConfigError, match="encrypted"):
        keys.load_private(private)
    with pytest.raises(ConfigError, match="wrong"):
        keys.load_private(private, b"wrong")
    file = tmp_path / "pass"
    file.write_bytes(b"right\r\nsecond line\n")
    file.chmod(0o600)
    assert keys.read_passphrase(file) == b"right"
    file.chmod(0o604)
    with pytest.raises(ConfigError, match="read by others"):
        keys.read_passphrase(file)
    file.chmod(0o600)
    file.write_bytes(b"\nx")
    with pytest.raises(ConfigError, match="no passphrase"):
        keys.read_passphrase(file)


def test_files_that_are_no_keys(tmp_path: Path) -> None:
    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", rsa], check=True)
    rsa.chmod(0o600)
    public = tmp_path / "rsa.pub"
    subprocess.run(["openssl", "pkey", "-in", rsa, "-pubout", "-out", public], check=True)
    text, cut, large = tmp_path / "text", tmp_path / "cut", tmp_path / "large"
    text.write_text("hello")
    good, good_public, _key = keys.generate(tmp_path / "good")
    cut.write_bytes(good.read_bytes()[:-40])
    cut.chmod(0o600)
    large.write_bytes(bytes(100_000))
    for path in (rsa, public, text, cut, large, good_public, tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError):
            keys.load_private(path, b"x")
    for path in (rsa, public, text, cut, large, good, tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError):
            keys.load_public(path)


def test_a_public_key_of_small_order_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    weak = Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little"))
    path = tmp_path / "weak.pub"
    path.write_bytes(weak.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigError, match="safe"):
        keys.load_public(path)


def made(tmp_path: Path, *names: str) -> dict[str, PublicKey]:
    """Key pairs in files of these names."""
    return {name: keys.generate(tmp_path / name)[2] for name in names}


def test_keyring_from_files(tmp_path: Path) -> None:
    public = made(tmp_path, "r", "a", "b", "s")
    requests = {
        RoleName.ROOT: RoleRequest([tmp_path / "r.pub"], None),
        RoleName.RELEASE: RoleRequest([tmp_path / "a.pub", tmp_path / "b.pub"], 2),
        RoleName.SECURITY: RoleRequest([tmp_path / "s.pub"], 1),
        RoleName.ADMIN: RoleRequest([], None),
    }
    signers = load_signers([tmp_path / "r.pem"])
    built = keyrings.create(tmp_path / "ring.abk", 5, requests, signers)
    assert keyring_format.parse((tmp_path / "ring.abk").read_bytes()) == built
    assert built.version == 5
    assert set(built.roles) == {RoleName.ROOT, RoleName.RELEASE, RoleName.SECURITY}
    assert set(built.roles[RoleName.RELEASE].keys) == {public["a"], public["b"]}
    before = (tmp_path / "ring.abk").read_bytes()
    bad: list[tuple[RoleName, RoleRequest, str]] = [
        (RoleName.RELEASE, RoleRequest([tmp_path / "a.pub"], 2), "threshold 2"),
        (RoleName.RELEASE, RoleRequest([tmp_path / "a.pub"], 0), "threshold 0"),
        (RoleName.RELEASE, RoleRequest([tmp_path / "a.pub", tmp_path / "a.pub"], 1), "ascending"),
        (RoleName.RELEASE, RoleRequest([], None), "no release"),
        (RoleName.ADMIN, RoleRequest([], 1), "without --admin"),
        (RoleName.ROOT, RoleRequest([tmp_path / "a.pub"], 1), "root keys"),
    ]
    for role, request, text in bad:
        with pytest.raises(ConfigError, match=text):
            keyrings.create(tmp_path / "ring.abk", 5, requests | {role: request}, signers)
    with pytest.raises(ConfigError, match="version 0"):
        keyrings.create(tmp_path / "ring.abk", 0, requests, signers)
    assert (tmp_path / "ring.abk").read_bytes() == before


SIGNER = """
import os, sys
from pathlib import Path
from abupdate.formats.signature import key_id
from abupdate.host.keys import load_private
pair = load_private(Path(sys.argv[1]))
assert os.environ["ABUPDATE_PUBLIC_KEY"] == pair.public.raw.hex() and os.environ["ABUPDATE_KEY_ID"] == key_id(pair.public.raw)
sys.stdout.buffer.write(pair.sign(sys.stdin.buffer.read()))
"""


def test_an_external_command_signs(tmp_path: Path) -> None:
    public = made(tmp_path, "a", "b")
    script = tmp_path / "sign with it.py"
    script.write_text(SIGNER)
    command = f"{sys.executable} '{script}' {tmp_path / 'a.pem'}"
    signers = load_signers([tmp_path / "a.pub", tmp_path / "b.pem"], sign_with=command)
    message = signature.message(signature.Domain.KEYRING, b"object")
    signatures = sign_all(signers, message)
    assert {item.public_key for item in signatures} == {public["a"].raw, public["b"].raw}
    assert all(signature.verify(item.public_key, item.value, message) for item in signatures)


def test_an_external_command_that_signs_wrongly(tmp_path: Path) -> None:
    made(tmp_path, "a", "b")
    message = signature.message(signature.Domain.KEYRING, b"object")
    script = tmp_path / "sign.py"
    script.write_text("import sys; sys.stdout.buffer.write(bytes(range(64)))")
    for command, text in (
        (f"{sys.executable} {script}", "does not verify"),
        ("false", "ended with 1"),
        ("true", "0 bytes"),
        ("head -c 65 /dev/zero", "more than 64 bytes"),
        ("yes", "more than 64 bytes"),
    ):
        with pytest.raises(Failed, match=text):
            sign_all(load_signers([tmp_path / "a.pub"], sign_with=command), message)
    with pytest.raises(ConfigError, match="cannot run"):
        sign_all(load_signers([tmp_path / "a.pub"], sign_with="/nonexistent/command"), message)


def test_signers_that_make_no_sense(tmp_path: Path) -> None:
    made(tmp_path, "a", "b")
    a = tmp_path / "a.pem"
    for paths, command, text in (
        ([a, a], None, "twice"),
        ([tmp_path / "a.pub"], None, "public key"),
        ([a], "true", "no key to sign for"),
        ([a], " ", "empty"),
        ([a], "'open", "words"),
        ([a] * 65, None, "too many"),
    ):
        with pytest.raises(ConfigError, match=text):
            load_signers(paths, sign_with=command)
