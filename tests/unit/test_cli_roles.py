"""Who may sign what, seen from a device: keys in the wrong role, one key twice, old bundles again, and names that only look right."""

from __future__ import annotations

import shutil
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from abupdate.errors import Refused
from abupdate.formats import bundle as bundle_format
from abupdate.formats import keyring as keyring_format
from abupdate.formats import manifest as manifest_format
from abupdate.formats.signature import Domain, message, pack_block
from abupdate.host.keys import load_private
from abupdate.host.signing import sign_all
from abupdate.model import Manifest
from abupdate.transfer.admission import Identity, check_device
from tests.workstation import Kit, Workstation

ROLES = ("root", "release", "security", "admin")


@dataclass(frozen=True)
class Roles:
    """A keyring with one key in each role, and two of release; bundles of the kit signed by whomever."""

    kit: Kit
    folder: Path

    def signed(self, folder: Path, *names: str, domain: Domain = Domain.BUNDLE) -> Path:
        """The bundle v1, signed by these keys."""
        data = self.kit["v1"].read_bytes()
        with self.kit["v1"].open("rb") as file:
            old = bundle_format.read_signed(file.read, len(data))
        signers = [load_private(self.folder / f"{name}.pem") for name in names]
        made = pack_block(sign_all(signers, message(domain, old.manifest_bytes)))
        path = folder / "signed.abu"
        path.write_bytes(
            bundle_format.build_head(old.manifest_bytes, made, old.header.tables_bytes, old.header.payload_bytes) + data[len(old.raw) :]
        )
        return path


@pytest.fixture(scope="module")
def roles(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Roles:
    """The keyring wants two release keys."""
    folder = tmp_path_factory.mktemp("roles")
    for name in (*ROLES, "release-2"):
        kit.make("keys", "generate", folder / name)
    words: list[str | Path] = ["--release", folder / "release-2.pub", "--release-threshold", "2"]
    for name in ROLES:
        words += [f"--{name}", folder / f"{name}.pub"]
    kit.make("keys", "keyring", "-o", folder / "ring.abk", "--version", "1", *words, "--sign", folder / "root.pem")
    return Roles(kit, folder)


@pytest.fixture
def strict(workstation: Workstation, roles: Roles) -> Workstation:
    """A device with that keyring."""
    shutil.copyfile(roles.folder / "ring.abk", workstation.folder / "ring.abk")
    return workstation


def test_only_release_keys_release(strict: Workstation, roles: Roles, tmp_path: Path) -> None:
    before = strict.snapshot()
    for names in (("root",), ("admin",), ("security",), ("release",), ("root", "admin", "security"), ("release", "root", "admin")):
        done = strict.run("flash", roles.signed(tmp_path, *names))
        assert done.code == 3, names
        assert "signed" in done.err
        assert strict.snapshot() == before
    for domain in (Domain.KEYRING, Domain.MEMBERSHIP, Domain.ORDER):
        done = strict.run("flash", roles.signed(tmp_path, "release", "release-2", domain=domain))
        assert (done.code, "is wrong" in done.err) == (3, True)
        assert strict.snapshot() == before
    strict.ok("flash", roles.signed(tmp_path, "release", "release-2"))


@pytest.mark.parametrize("name", ["release", "security", "admin"])
def test_only_root_keys_sign_keyrings(strict: Workstation, roles: Roles, tmp_path: Path, name: str) -> None:
    """The host refuses to make one; so it is made past the host."""
    old, new = roles.folder / "ring.abk", tmp_path / "new.abk"
    assert roles.kit.folder.exists()
    body = keyring_format.encode_body(2, keyring_format.parse(old.read_bytes()).roles)
    signer = load_private(roles.folder / f"{name}.pem")
    new.write_bytes(keyring_format.build(body, sign_all([signer], message(Domain.KEYRING, body))))
    before = strict.snapshot()
    done = strict.run("keyring", "update", new)
    assert done.code == 3
    assert "signed by 0 of version 1's root keys" in done.err
    assert strict.snapshot() == before


def test_one_key_is_one_signer_whatever_it_is_called(strict: Workstation, roles: Roles, tmp_path: Path) -> None:
    good = roles.signed(tmp_path, "release")
    data = good.read_bytes()
    with good.open("rb") as file:
        old = bundle_format.read_signed(file.read, len(data))
    only = old.signatures[0]
    record = b"\1\0\x60\0" + only.public_key + only.value
    before = strict.snapshot()
    odd = bytes([*only.public_key[:31], only.public_key[31] ^ 0x80])
    for block in (
        record * 2,
        record + b"\1\0\x60\0" + odd + only.value,
        record + b"\1\0\x60\0" + odd + bytes(64),
        record + b"\1\0\x20\0" + only.public_key,
        record + b"\1\0\x5f\0" + only.public_key + only.value[:-1],
        record + b"\1\0\x61\0" + only.public_key + only.value + b"\0",
        record + b"\2\0\x60\0" + only.public_key + only.value,
    ):
        bad = tmp_path / "twice.abu"
        head = bundle_format.build_head(old.manifest_bytes, block, old.header.tables_bytes, old.header.payload_bytes)
        bad.write_bytes(head + data[len(old.raw) :])
        assert strict.run("flash", bad).code == 3
        assert strict.snapshot() == before


@pytest.mark.parametrize("value", [bytes(64), b"\1" + bytes(63), bytes(32) + b"\1" + bytes(31), b"\xff" * 64])
def test_a_key_of_the_keyring_with_a_signature_of_nothing(strict: Workstation, roles: Roles, tmp_path: Path, value: bytes) -> None:
    good = roles.signed(tmp_path, "release", "release-2")
    data = good.read_bytes()
    with good.open("rb") as file:
        old = bundle_format.read_signed(file.read, len(data))
    before = strict.snapshot()
    block = pack_block([old.signatures[0], replace(old.signatures[1], value=value)])
    good.write_bytes(
        bundle_format.build_head(old.manifest_bytes, block, old.header.tables_bytes, old.header.payload_bytes) + data[len(old.raw) :]
    )
    done = strict.run("flash", good)
    assert done.code == 3
    assert "is wrong" in done.err
    assert strict.snapshot() == before


def test_an_old_bundle_again_before_and_after_the_confirmation(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v1", "B")
    workstation.ok("flash", kit["v2"])
    older = kit.bundle("zero", version="0.9", counter=0, seed=90)
    assert workstation.run("flash", older).code == 5, "a trial is armed"
    workstation.reboot("A")
    assert workstation.run("flash", kit["v1"]).code == 5, "a trial runs"
    # The trial of version 2 raised nothing; what B has confirmed counts.
    workstation.ok("revert")
    workstation.reboot("B")
    assert workstation.status()["floor"] == 1
    before = workstation.snapshot()
    assert workstation.run("flash", older).code == 3, "below what B has confirmed"
    assert workstation.snapshot() == before
    workstation.confirmed("v3", "A")
    workstation.ok("flash", kit.bundle("same", version="3.1", counter=3, seed=31), "--no-activate")
    workstation.reboot("A")
    before = workstation.snapshot()
    for path in (kit["v2"], kit["v1"], older):
        for done in (workstation.run("flash", path), workstation.flash_pipe(path.read_bytes())):
            assert (done.code, "downgrade" in done.err) == (3, True), done.err
            assert workstation.snapshot() == before
    # The record lost: the head of the slot that runs and the boot store still know.
    for name in ("record.0", "record.1"):
        (workstation.state / name).unlink()
    assert workstation.run("flash", kit["v2"]).code == 3


def test_what_was_written_before_the_floor_rose_is_not_armed_after(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"], "--no-activate")
    state = workstation.state / "record.0"
    assert state.exists()
    workstation.setenv("BOOT_FLOOR", "7")
    done = workstation.run("activate")
    assert (done.code, "downgrade" in done.err) == (3, True), done.err


DEVICE = Identity("acm\u00e9-gateway", "r3", "0.1")


def claims(compatible: str = DEVICE.compatible, *revisions: str) -> Manifest:
    """What a bundle says it is for."""
    return Manifest(b"", compatible, tuple(sorted(revisions)), "1", 0, "", 0, "", frozenset(), ())


@pytest.mark.parametrize(
    "compatible",
    [
        unicodedata.normalize("NFD", DEVICE.compatible),
        DEVICE.compatible.upper(),
        DEVICE.compatible.title(),
        DEVICE.compatible[:-1],
        DEVICE.compatible + "s",
        DEVICE.compatible + " ",
        " " + DEVICE.compatible,
        DEVICE.compatible + "\0",
        DEVICE.compatible + "\0x",
        DEVICE.compatible + "\u200b",
        DEVICE.compatible + "\ufeff",
        DEVICE.compatible.replace("-", "\u2010"),
        DEVICE.compatible.replace("a", "\u0430"),
        DEVICE.compatible.replace("g", "\uff47"),
        "acme-gateway",
        "acm?-gateway",
        "*",
        ".*",
        "",
        "acm\udce9-gateway",
    ],
)
def test_a_compatible_that_only_looks_right(compatible: str) -> None:
    check_device(claims(), DEVICE)
    with pytest.raises(Refused, match="is for"):
        check_device(claims(compatible), DEVICE)


@pytest.mark.parametrize(
    "revision", ["r", "r33", "R3", "r3 ", " r3", "r3\0", "r3\u200b", "r\uff13", "r\u00b3", "r3\n", "r03", "r3,r4", "r*", "r?", "", "r3/r4"]
)
def test_a_hardware_revision_that_only_looks_right(revision: str) -> None:
    check_device(claims(DEVICE.compatible, "r2", "r3"), DEVICE)
    with pytest.raises(Refused, match="hardware"):
        check_device(claims(DEVICE.compatible, revision, "r9"), DEVICE)
    with pytest.raises(Refused, match="hardware"):
        check_device(claims(DEVICE.compatible, "r3"), replace(DEVICE, hardware_revision=revision))


@pytest.mark.parametrize("text", ["acme\0", "\0acme", "ac\0me", "acme\n", "acme\x1b[31m", "acme\u202e", "acme\u2028", "x" * 129, ""])
def test_what_no_manifest_may_say(text: str) -> None:
    """Such a value does not even come as far as the comparison: no builder writes it and no device decodes it."""
    for field in ({"compatible": text}, {"hardware_revisions": (text,)}):
        with pytest.raises(Refused):
            manifest_format.encode(replace(claims("acme", "r3"), **field))
