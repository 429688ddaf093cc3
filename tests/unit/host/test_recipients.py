"""Keys of recipients and sealed bundles on the build host: generate, create, sign, extract, and what is wrong use."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from abupdate.errors import ConfigError
from abupdate.formats.contentkey import key_id
from abupdate.host import recipients
from tests.workstation import Kit, call

# SubjectPublicKeyInfo of X25519 (RFC 8410) without the key.
_SPKI = bytes.fromhex("302a300506032b656e032100")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Keys, and a bundle that two recipients can open."""
    made = Kit(tmp_path_factory.mktemp("kit"))
    for name in ("device", "product", "other"):
        made.recipient(name)
    made.bundle("sealed", recipients=("device", "product"))
    return made


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("passphrase", [None, b"open sesame"])
def test_generated_keys_are_read_back_here_and_by_openssl(tmp_path: Path, passphrase: bytes | None, test: bool) -> None:
    private, public, identity = recipients.generate(tmp_path / "dir.key", passphrase=passphrase, test=test)
    assert (private.stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o600, 0o644)
    assert recipients.load_public(public) == identity.public_key == recipients.load_identity(private, passphrase).public_key
    assert recipients.load_identity(private, passphrase).test is test
    words = ["-passin", f"pass:{passphrase.decode()}"] if passphrase else []
    derived = subprocess.run(["openssl", "pkey", "-in", private, *words, "-pubout"], check=True, capture_output=True).stdout
    assert derived.strip() in public.read_bytes()
    assert derived.startswith(b"-----BEGIN PUBLIC KEY")


def test_a_key_that_openssl_has_made(tmp_path: Path) -> None:
    subprocess.run(["openssl", "genpkey", "-algorithm", "x25519", "-out", tmp_path / "k.pem"], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", tmp_path / "k.pem", "-pubout", "-out", tmp_path / "k.pub"], check=True)
    (tmp_path / "k.pem").chmod(0o600)
    identity = recipients.load_identity(tmp_path / "k.pem")
    assert identity.public_key == recipients.load_public(tmp_path / "k.pub")
    assert identity.key_id == key_id(identity.public_key)


def test_a_private_key_that_others_can_read_is_refused_unless_it_is_a_test_key(tmp_path: Path) -> None:
    for name, test in (("own", False), ("toy", True)):
        private, _, made = recipients.generate(tmp_path / name, test=test)
        private.chmod(0o640)
        if test:
            assert recipients.load_identity(private).key_id == made.key_id
            continue
        with pytest.raises(ConfigError, match="read by others"):
            recipients.load_identity(private)


def test_generate_on_the_command_line(tmp_path: Path) -> None:
    made = call("--json", "keys", "generate", "--recipient", tmp_path / "a").document
    assert (made["kind"], made["test"]) == ("recipient", False)
    assert made["key_id"] == recipients.load_identity(tmp_path / "a.pem").key_id.hex()
    assert "recipient key" in call("keys", "generate", "--recipient", tmp_path / "b").out
    assert "test recipient key" in call("keys", "generate", "--recipient", "--test", tmp_path / "c").out
    assert call("keys", "generate", "--recipient", tmp_path / "a").code == 2
    signer = call("--json", "keys", "generate", tmp_path / "d").document
    assert signer["kind"] == "signer"


@pytest.mark.parametrize("u", [0, 1, 2**255 - 20])
def test_an_unsafe_public_key_is_refused(tmp_path: Path, u: int) -> None:
    subprocess.run(
        ["openssl", "pkey", "-pubin", "-inform", "DER", "-out", tmp_path / "weak.pub"],
        input=_SPKI + u.to_bytes(32, "little"),
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigError, match="not a safe X25519 key"):
        recipients.load_public(tmp_path / "weak.pub")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipient", "release.pub"], "not an X25519 key"),
        (["--recipient", "device.pem"], "not a public key"),
        (["--recipient", "missing.pub"], "does not exist"),
        (["--recipient", "device.pub", "--recipient", "device.pub"], "twice"),
        (["--recipient", "v1.toml"], "is not a key"),
    ],
)
def test_wrong_recipients(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(kit.folder)
    done = call("bundle", "create", "v1.toml", "-o", tmp_path / "out.abu", "--key", "release.pem", *words)
    assert done.code == 2
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


def test_recipients_of_the_spec(kit: Kit, tmp_path: Path) -> None:
    spec = kit.folder / "listed.toml"
    spec.write_text('recipients = ["device.pub"]\n' + (kit.folder / "v1.toml").read_text())
    base = ("--json", "bundle", "create", spec, "--key", kit.folder / "release.pem", "-o")
    made = call(*base, tmp_path / "one.abu").document
    assert made["sealed_for"] == [kit.recipient("device")]
    made = call(*base, tmp_path / "two.abu", "--recipient", kit.folder / "product.pub").document
    assert made["sealed_for"] == sorted([kit.recipient("device"), kit.recipient("product")])
    said = call("bundle", "create", spec, "--key", kit.folder / "release.pem", "-o", tmp_path / "text.abu").out
    assert said.endswith(f", sealed for {kit.recipient('device')}\n")
    # Named in both places.
    assert call(*base, tmp_path / "twice.abu", "--recipient", kit.folder / "device.pub").code == 2
    plain = call("--json", "bundle", "create", kit.folder / "v1.toml", "--key", kit.folder / "release.pem", "-o", tmp_path / "plain.abu")
    assert plain.document["sealed_for"] is None


def test_signing_a_sealed_bundle_changes_nothing_else(kit: Kit, tmp_path: Path) -> None:
    path = tmp_path / "copy.abu"
    path.write_bytes(kit["sealed"].read_bytes())
    before = call("--json", "info", path).document
    assert call("bundle", "sign", path, "--key", kit.folder / "stranger.pem").code == 0
    after = call("--json", "info", path).document
    assert len(after.pop("signatures")) == len(before.pop("signatures")) + 1
    assert after.pop("size_bytes") > before.pop("size_bytes")
    assert after == before
    extracted(kit, path, tmp_path)


def extracted(kit: Kit, path: Path, folder: Path) -> None:
    done = call("bundle", "extract", path, "-o", folder / "d", "--identity", kit.folder / "product.pem", "--keyring", kit.ring)
    assert done.code == 0, done.err
    for name, data in kit.images["sealed"].items():
        assert (folder / "d" / f"{name}.img").read_bytes() == data


def test_extract(kit: Kit, tmp_path: Path) -> None:
    extracted(kit, kit["sealed"], tmp_path)
    other = ("bundle", "extract", kit["sealed"], "-o", tmp_path / "e")
    done = call(*other)
    assert done.code == 2
    assert "--identity" in done.err
    done = call(*other, "--identity", kit.folder / "other.pem")
    assert done.code == 3
    assert kit.recipient("other") in done.err
    assert call(*other, "--identity", kit.folder / "release.pem").code == 2
    assert call(*other, "--identity", kit.folder / "device.pub").code == 2
    assert not (tmp_path / "e").exists()


def test_extract_with_an_encrypted_key(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("open sesame\n")
    (tmp_path / "word").chmod(0o600)
    if not (kit.folder / "locked.pem").exists():
        kit.make("keys", "generate", "--recipient", kit.folder / "locked", "--passphrase-file", tmp_path / "word")
    path = kit.bundle("locked-bundle", recipients=("locked",))
    words = ("bundle", "extract", path, "-o", tmp_path / "d", "--identity", kit.folder / "locked.pem")
    assert call(*words).code == 2
    done = call(*words, "--passphrase-file", tmp_path / "word")
    assert done.code == 0, done.err
    assert (tmp_path / "d" / "boot.img").read_bytes() == kit.images["locked-bundle"]["boot"]
