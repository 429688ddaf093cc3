"""Which keyring counts, and how it moves on: over a real state_dir, with every write seen."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from abupdate.devices.statedir import StateDir
from abupdate.durable import LinuxFiles
from abupdate.errors import Failed, NothingToDo, Refused
from abupdate.formats import keyring, rotation, tlv
from abupdate.model import KeyringSource
from abupdate.operations import keyring as operation
from abupdate.operations.keyring import Trust
from tests.rings import body_of, one, signed, trusted

CHAIN = [one(version) for version in range(1, 6)]


def trust(factory: bytes = CHAIN[0], *, allowed: bool = False) -> Trust:
    """The rules as a device has them."""
    own = trusted(factory)
    return Trust(
        factory=own,
        recall=lambda kept: rotation.recall(own, kept),
        usable=lambda ring: keyring.check_test_keys(ring, allowed),
        advance=lambda current, kept, chain: rotation.advance(own, current, kept, chain, allow_test_keys=allowed),
    )


class Witness(StateDir):
    """A state_dir that tells which versions were kept, in order, and fails at one of them."""

    def __init__(self, path: Path, fails_at: int = 0) -> None:
        super().__init__(path)
        self.kept: list[int] = []
        self.fails_at = fails_at

    def save_keyring(self, data: bytes) -> None:
        """Keep it durably, or fail."""
        version = rotation.split(data)[-1].version
        if version == self.fails_at:
            raise Failed("no room")
        super().save_keyring(data)
        self.kept.append(version)


@pytest.fixture
def state(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "state")


def version(state: StateDir, rules: Trust) -> tuple[int, KeyringSource]:
    """What counts now."""
    found = operation.observe(state, rules)
    return found.ring.version, found.source


def test_without_a_stored_one_the_factory_keyring_counts(state: Witness) -> None:
    assert state.load_keyring() is None
    assert version(state, trust()) == (1, KeyringSource.FACTORY)
    assert not state.path.exists()


def test_every_version_is_kept_before_the_next_and_privately(state: Witness) -> None:
    before, after = operation.update(state, trust(), b"".join(CHAIN))
    assert (before.ring.version, after.ring.version, after.source) == (1, 5, KeyringSource.STATE_DIR)
    assert state.kept == [2, 3, 4, 5]
    assert version(state, trust()) == (5, KeyringSource.STATE_DIR)
    assert state.load_keyring() == b"".join(CHAIN)
    assert (state.path / "keyring").stat().st_mode & 0o777 == 0o600
    assert state.path.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in state.path.iterdir()) == ["keyring", "lock"]


def test_a_write_that_fails_leaves_the_version_before_and_the_next_update_goes_on(tmp_path: Path) -> None:
    state = Witness(tmp_path / "state", fails_at=4)
    with pytest.raises(Failed):
        operation.update(state, trust(), b"".join(CHAIN))
    assert version(state, trust()) == (3, KeyringSource.STATE_DIR)
    state.fails_at = 0
    operation.update(state, trust(), b"".join(CHAIN))
    assert state.kept == [2, 3, 4, 5]


def test_nothing_newer(state: Witness) -> None:
    operation.update(state, trust(), CHAIN[1] + CHAIN[2])
    for chain in (CHAIN[2], CHAIN[0], CHAIN[0] + CHAIN[1], b"".join(CHAIN[:3]), b""):
        with pytest.raises(NothingToDo):
            operation.update(state, trust(), chain)
    assert state.kept == [2, 3]
    assert state.load_keyring() == b"".join(CHAIN[:3])


def test_what_is_refused_leaves_everything_as_it_was(state: Witness) -> None:
    operation.update(state, trust(), CHAIN[1])
    for bad in (CHAIN[3], CHAIN[2] + one(4, "stranger"), one(2, release="release-2") + CHAIN[2], CHAIN[2][:-1], b"no keyring"):
        with pytest.raises(Refused):
            operation.update(state, trust(), bad)
    assert state.kept == [2]


def test_a_newer_slot_brings_a_newer_factory_keyring_and_an_older_one_does_not_go_back(state: Witness) -> None:
    operation.update(state, trust(), CHAIN[1] + CHAIN[2])
    assert version(state, trust(CHAIN[3])) == (4, KeyringSource.FACTORY)
    assert version(state, trust(CHAIN[0])) == (3, KeyringSource.STATE_DIR)
    # Equal: the slot's own.
    assert version(state, trust(CHAIN[2])) == (3, KeyringSource.FACTORY)
    operation.update(state, trust(CHAIN[3]), CHAIN[4])
    assert version(state, trust(CHAIN[0])) == (5, KeyringSource.STATE_DIR)


def test_two_keyrings_of_one_version(state: Witness) -> None:
    operation.update(state, trust(), CHAIN[1])
    other = one(2, release="release-2")
    found = operation.observe(state, trust(other))
    assert (found.source, found.ring.body) == (KeyringSource.FACTORY, trusted(other).body)
    assert "another version 2" in found.note


NEXT = CHAIN[1]
LOST = {
    "empty": b"",
    "cut off": NEXT[:-1],
    "a byte more": NEXT + b"\0",
    "flipped": NEXT[:100] + bytes([NEXT[100] ^ 1]) + NEXT[101:],
    "flipped behind a good one": NEXT + CHAIN[2][:100] + bytes([CHAIN[2][100] ^ 1]) + CHAIN[2][101:],
    "a gap": CHAIN[2],
    "a gap behind a good one": NEXT + CHAIN[3],
    "not signed": keyring.build(body_of(2, ("root",)), []),
    "signed by another": one(2, "stranger"),
    "signed by its own root keys alone": one(2, root=("stranger",)),
    "of another line": one(1, root=("stranger",)) + one(2, root=("stranger",)) + one(3, root=("stranger",)),
    "of another line behind a good one": NEXT + one(3, root=("stranger",)),
    "not by its own root keys": signed(body_of(2, ("root", "admin"), 2), "root"),
    "another format": NEXT[:8] + b"\x02\x00" + NEXT[10:],
    "another format behind a good one": NEXT + CHAIN[2][:8] + b"\x02\x00" + CHAIN[2][10:],
    "huge": NEXT + bytes(1 << 20),
}


@pytest.mark.parametrize("how", LOST)
def test_stored_keyrings_that_are_no_good_count_as_lost_and_the_last_good_one_walks_again(
    state: Witness, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    operation.update(state, trust(), NEXT)
    (state.path / "keyring").write_bytes(LOST[how])
    found = operation.observe(state, trust())
    if LOST[how].startswith(NEXT) and len(LOST[how]) < rotation.MAX_CHAIN_BYTES:
        assert (found.ring.version, found.source) == (2, KeyringSource.STATE_DIR)
        assert "the stored keyring is used up to version 2 only" in found.note
    else:
        assert (found.ring.version, found.source) == (1, KeyringSource.FACTORY)
        assert "the stored keyring is not used" in found.note
    operation.update(state, trust(), b"".join(CHAIN[:3]))
    assert found.note in caplog.text
    assert version(state, trust()) == (3, KeyringSource.STATE_DIR)
    assert state.load_keyring() == b"".join(CHAIN[:3])
    beside = [path for path in state.path.iterdir() if path.name.startswith("keyring.")]
    # What a newer abupdate has written is kept for it.
    assert [(path.name, path.read_bytes()) for path in beside] == ([("keyring.v2", LOST[how])] if "format" in how else [])


# ---- slots with factory keyrings of different versions on one state_dir


def test_what_a_slot_with_a_newer_keyring_keeps_leads_from_the_older_one(state: Witness) -> None:
    operation.update(state, trust(), NEXT)
    # Slot B came with version 4; versions 2 and 3 lead to it, and 3 comes with the next chain.
    operation.update(state, trust(CHAIN[3]), b"".join(CHAIN))
    assert state.load_keyring() == b"".join(CHAIN)
    for own in CHAIN[:4]:
        assert version(state, trust(own)) == (5, KeyringSource.STATE_DIR)


def test_what_does_not_lead_anywhere_is_left_out(state: Witness) -> None:
    operation.update(state, trust(), NEXT)
    # Nobody tells how version 2 became 4.
    operation.update(state, trust(CHAIN[3]), CHAIN[4])
    assert state.load_keyring() == CHAIN[3] + CHAIN[4]
    assert version(state, trust(CHAIN[3])) == (5, KeyringSource.STATE_DIR)
    found = operation.observe(state, trust())
    assert (found.ring.version, found.source) == (1, KeyringSource.FACTORY)
    assert "from version 1 to version 4" in found.note
    operation.update(state, trust(), b"".join(CHAIN))
    assert version(state, trust()) == (5, KeyringSource.STATE_DIR)


@pytest.mark.parametrize("before", [b"", NEXT], ids=["nothing stored", "version 2 stored"])
def test_a_stranger_puts_nothing_in_front_of_what_is_kept(state: Witness, before: bytes) -> None:
    """A chain is passed over up to the device's own version; what stands there is not signed by anybody, and must not be kept."""
    if before:
        operation.update(state, trust(), before)
    planted = signed(body_of(3, ("root", "stranger")), "stranger")
    operation.update(state, trust(CHAIN[3]), planted + CHAIN[3] + CHAIN[4])
    kept = state.load_keyring()
    assert kept is not None
    assert planted not in kept
    assert kept.endswith(CHAIN[3] + CHAIN[4])


def test_a_chain_that_was_kept_without_its_beginning_gets_the_slots_own(state: Witness) -> None:
    with state.lock():
        state.save_keyring(NEXT)
    assert version(state, trust()) == (2, KeyringSource.STATE_DIR)
    operation.update(state, trust(), CHAIN[2])
    assert state.load_keyring() == b"".join(CHAIN[:3])


def test_the_oldest_versions_go_where_there_is_no_room(state: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    operation.update(state, trust(), b"".join(CHAIN[:4]))
    monkeypatch.setattr(rotation, "MAX_CHAIN_BYTES", sum(map(len, CHAIN[1:])))
    with pytest.raises(Refused, match="since the running slot's own"):
        operation.update(state, trust(), CHAIN[4])
    assert state.load_keyring() == b"".join(CHAIN[:4])
    operation.update(state, trust(CHAIN[1]), CHAIN[4])
    assert state.load_keyring() == b"".join(CHAIN[1:])


def newer_than_this_agent(version: int) -> bytes:
    """A keyring with a role that this release does not know, as a later one may make it."""
    body = body_of(version, ("root",))
    return signed(body + tlv.pack([(9, b"what for")]), "root")


@pytest.mark.parametrize("last", [newer_than_this_agent(4), one(4, "stranger"), CHAIN[3][:-9], CHAIN[4], CHAIN[3][:40] + b"\xff" * 50])
def test_what_was_walked_before_a_version_that_does_not_count_stays(state: Witness, last: bytes) -> None:
    """Else whatever an agent of the other slot has added brings keys back that were revoked long ago."""
    state.save_keyring(b"".join(CHAIN[:3]))
    stored = b"".join(CHAIN[:3]) + last
    (state.path / "keyring").write_bytes(stored)
    found = operation.observe(state, trust())
    assert (found.ring.version, found.source) == (3, KeyringSource.STATE_DIR)
    assert found.note.startswith("the stored keyring is used up to version 3 only: ")
    with pytest.raises(NothingToDo):
        operation.update(state, trust(), b"".join(CHAIN[:3]))
    assert state.load_keyring() == stored, "the other slot's agent may know what to do with it"
    operation.update(state, trust(), b"".join(CHAIN[:4]))
    assert state.load_keyring() == b"".join(CHAIN[:4])
    assert operation.observe(state, trust()).note == ""


def test_a_stored_keyring_that_cannot_be_read(state: Witness) -> None:
    state.path.mkdir()
    (state.path / "keyring").mkdir()
    found = operation.observe(state, trust())
    assert (found.ring.version, found.source) == (1, KeyringSource.FACTORY)
    assert found.note == "the stored keyring is not used: it is empty"


def test_a_medium_that_fails_for_a_moment_takes_no_keyring_back(tmp_path: Path) -> None:
    """What cannot be read now is not lost, and an older chain must not take its place."""

    class Failing(LinuxFiles):
        fails = False

        def read(self, descriptor: int, count: int) -> bytes:
            if self.fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(descriptor, count)

    files = Failing()
    state = StateDir(tmp_path / "state", files=files)
    operation.update(state, trust(), b"".join(CHAIN[:4]))
    files.fails = True
    for act in (lambda: operation.observe(state, trust()), lambda: operation.update(state, trust(), b"".join(CHAIN[:2]))):
        with pytest.raises(Failed, match=os.strerror(errno.EIO)):
            act()
    files.fails = False
    assert version(state, trust()) == (4, KeyringSource.STATE_DIR)


def test_test_keys_are_refused_wherever_they_are(state: Witness) -> None:
    marked = signed(body_of(2, ("root",), test="release-1"), "root")
    with pytest.raises(Refused, match="test key"):
        operation.update(state, trust(), marked)
    operation.update(state, trust(allowed=True), marked)
    # No longer allowed: refused, and no way back to an older keyring.
    with pytest.raises(Refused, match="test key"):
        operation.observe(state, trust())
    with pytest.raises(Refused, match="test key"):
        operation.observe(state, trust(signed(body_of(3, ("root",), test="root"), "root")))


def test_a_refusal_gives_the_lock_back(state: Witness) -> None:
    with pytest.raises(Refused):
        operation.update(state, trust(), b"bad")
    with state.lock():
        pass


def test_the_version_that_was_walked_to_is_the_one_that_is_returned(state: Witness) -> None:
    _before, after = operation.update(state, trust(), CHAIN[1] + CHAIN[2])
    assert keyring.build(after.ring.body, after.ring.signatures) == CHAIN[2]
    assert operation.observe(state, trust()) == after
