"""The node's key: made once, never replaced, and tied to the log."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from abupdate.durable import LinuxFiles
from abupdate.errors import Busy, ConfigError, Failed
from abupdate.fleet import identity
from abupdate.fleet.events import RecordKind
from abupdate.fleet.identity import load, load_or_create, start_anew
from abupdate.fleet.store import Store, hold
from abupdate.formats import signature
from abupdate.host import keys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "fleet"


def test_the_first_start_makes_a_key_and_an_empty_log_and_later_ones_find_them(folder: Path) -> None:
    assert load(folder) is None
    made = load_or_create(folder)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {"log": 0o600, "lock": 0o600, "node.key": 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    store = Store(folder, made.public_key)
    loaded = store.load()
    assert (loaded.records, loaded.fault) == ((), "")
    store.append([(RecordKind.BOOT, b"1")])
    store.close()
    before = folder.joinpath("node.key").read_bytes()
    assert load_or_create(folder).public_key == made.public_key
    assert folder.joinpath("node.key").read_bytes() == before
    assert keys.load_private(folder / "node.key").public.raw == made.public_key


def test_two_nodes_have_two_keys(tmp_path: Path) -> None:
    assert load_or_create(tmp_path / "a" / "b").public_key != load_or_create(tmp_path / "c" / "d").public_key


def test_what_it_signs_verifies_by_the_strict_rules(folder: Path) -> None:
    node, other = load_or_create(folder), load_or_create(folder.parent / "other")
    signed = node.sign(b"content")
    assert signature.verify(node.public_key, signed, b"content")
    for _ in range(2):  # the second time with keys that are loaded
        assert other.verify(node.public_key, signed, b"content")
        assert not other.verify(node.public_key, signed, b"Content")
        assert not other.verify(other.public_key, signed, b"content")
        assert not other.verify(node.public_key, signed[:32] + bytes([signed[32] ^ 1]) + signed[33:], b"content")
        assert not other.verify(b"", signed, b"content")
        # The identity as key and R with S = 0: OpenSSL takes it for any message.
        identity_point = b"\1" + bytes(31)
        assert not other.verify(identity_point, identity_point + bytes(32), b"content")


def test_a_key_without_its_log_is_one_that_lost_it(folder: Path) -> None:
    node = load_or_create(folder)
    folder.joinpath("log").unlink()
    assert load_or_create(folder).public_key == node.public_key
    store = Store(folder, node.public_key)
    assert store.load().fault
    store.close()


def test_a_log_with_records_and_no_key_is_nobodys_to_go_on_with(folder: Path) -> None:
    node = load_or_create(folder)
    store = Store(folder, node.public_key)
    store.load()
    store.append([(RecordKind.VOTE, b"vote")])
    store.close()
    folder.joinpath("node.key").unlink()
    with pytest.raises(ConfigError, match="missing"):
        load_or_create(folder)
    folder.joinpath("log").write_bytes(b"not a log")
    with pytest.raises(ConfigError, match="missing"):
        load_or_create(folder)
    assert not folder.joinpath("node.key").exists()


def test_an_empty_log_without_a_key_is_a_first_start_that_was_cut(folder: Path) -> None:
    first = load_or_create(folder)
    folder.joinpath("node.key").unlink()
    second = load_or_create(folder)
    assert second.public_key != first.public_key
    store = Store(folder, second.public_key)
    assert not store.load().fault
    store.close()


def _pem(key: X25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n",
        _pem(X25519PrivateKey.from_private_bytes(bytes(32))),
        bytes(100_000),
    ],
    ids=["empty", "damaged", "encrypted", "of another kind", "too large"],
)
def test_a_file_that_is_no_node_key_is_refused_and_kept(folder: Path, data: bytes) -> None:
    load_or_create(folder)
    folder.joinpath("node.key").write_bytes(data)
    with pytest.raises(ConfigError, match="not an Ed25519 private key"):
        load_or_create(folder)
    assert folder.joinpath("node.key").read_bytes() == data


def test_a_public_key_is_no_node_key(folder: Path, tmp_path: Path) -> None:
    load_or_create(folder)
    keys.generate(tmp_path / "other")
    folder.joinpath("node.key").write_bytes(tmp_path.joinpath("other.pub").read_bytes())
    with pytest.raises(ConfigError):
        load(folder)


def test_a_key_that_cannot_be_read_is_not_made_anew(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.joinpath("node.key").mkdir()
    with pytest.raises(Failed, match="Is a directory"):
        load_or_create(folder)


def test_two_processes_do_not_make_a_key_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    with hold(folder), pytest.raises(Busy):
        load_or_create(folder)
    # The other one was done between the look and the lock.
    made = load_or_create(folder)
    answers = iter([None, made])
    monkeypatch.setattr(identity, "load", lambda *_: next(answers))
    assert load_or_create(folder) is made


def test_a_node_that_is_enrolled_anew_has_a_new_key_and_a_log_without_fault(folder: Path) -> None:
    node = load_or_create(folder)
    folder.joinpath("log").unlink()
    store = Store(folder, node.public_key)
    assert store.load().fault
    with pytest.raises(Busy):
        start_anew(folder)
    store.close()
    start_anew(folder)
    assert {path.name for path in folder.iterdir()} == {"lock", "log.old", "node.key.old"}
    anew = load_or_create(folder)
    assert anew.public_key != node.public_key
    store = Store(folder, anew.public_key)
    assert not store.load().fault
    store.close()


def test_a_place_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    tmp_path.joinpath("state").write_bytes(b"")
    for action in (load_or_create, start_anew):
        with pytest.raises(Failed, match="Not a directory"):
            action(tmp_path / "state" / "fleet")


def test_a_rename_that_fails_leaves_key_and_log(folder: Path) -> None:
    class Failing(LinuxFiles):
        def rename(self, path: Path, target: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

    made = load_or_create(folder)
    with pytest.raises(Failed, match="Input/output"):
        start_anew(folder, Failing())
    assert load_or_create(folder).public_key == made.public_key
