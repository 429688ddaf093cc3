"""Bundles that must not be installed: what is refused, with which exit code, and what is left untouched."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import __version__
from abupdate.formats import bundle as bundle_format
from abupdate.formats.signature import Domain, message, pack_block
from abupdate.host.keys import load_private
from abupdate.host.signing import sign_all
from tests.workstation import ROOTFS_PLACE, Kit, Result, Snapshot, Workstation, resize_pipe

Flash = Callable[[Workstation, bytes], Result]


def from_file(workstation: Workstation, data: bytes) -> Result:
    """`flash PATH`."""
    path = workstation.folder / "bad.abu"
    path.write_bytes(data)
    return workstation.run("flash", path)


def from_pipe(workstation: Workstation, data: bytes) -> Result:
    """`flash -` at the end of a pipe."""
    return workstation.flash_pipe(data)


def from_redirected(workstation: Workstation, data: bytes) -> Result:
    """`flash - <PATH`."""
    return workstation.flash_pipe(data, redirected=True)


def head_bytes(path: Path) -> int:
    """Length of all that precedes the payload."""
    with path.open("rb") as file:
        head = bundle_format.read_head(file.read, path.stat().st_size)
    return len(head.signed.raw) + len(head.tables.raw)


def assert_untouched(workstation: Workstation, before: Snapshot) -> None:
    """Nothing was written, not even the record."""
    assert workstation.snapshot() == before


def assert_target_out(workstation: Workstation, before: Snapshot) -> None:
    """Step 3 was reached and the flash failed: the target cannot boot, the running slot is first, good and as it was."""
    printed = workstation.printed()
    assert printed["BOOT_ORDER"] == "A"
    assert printed["BOOT_B_LEFT"] == "0"
    assert printed["BOOT_A_LEFT"] == "a"
    assert "BOOT_TRIAL" not in printed
    assert printed["foreign"] == "kept"
    hashes = workstation.hashes()
    assert {name: digest for name, digest in hashes.items() if name.startswith("A.")} == {
        name: digest for name, digest in before.slots.items() if name.startswith("A.")
    }
    document = workstation.status()
    assert document["slots"]["B"]["state"] == "writing"
    assert document["attempt"]["phase"] == "failed"
    assert document["attempt"]["reason"]
    assert workstation.run("activate").code == 4


def resigned(
    kit: Kit, path: Path, edit: Callable[[bytes], bytes] = bytes, keys: tuple[str, ...] = ("release",), spoil: bool = False
) -> bytes:
    """The bundle with another manifest and other signatures; the keys are those of the kit. spoil: flip a bit in the first signature."""
    data = path.read_bytes()
    with path.open("rb") as file:
        old = bundle_format.read_signed(file.read, len(data))
    manifest = edit(old.manifest_bytes)
    signers = [load_private(kit.folder / f"{key}.pem") for key in keys]
    made = list(sign_all(signers, message(Domain.BUNDLE, manifest)))
    if spoil:
        value = bytearray(made[0].value)
        value[3] ^= 1
        made[0] = replace(made[0], value=bytes(value))
    head = bundle_format.build_head(manifest, pack_block(made), old.header.tables_bytes, old.header.payload_bytes)
    return head + data[len(old.raw) :]


ways = pytest.mark.parametrize("flash", [from_file, from_pipe, from_redirected])


@pytest.mark.parametrize("keys", [("stranger",), ()], ids=["another key", "no key"])
def test_a_stored_manifest_that_nobody_here_signed_arms_nothing(workstation: Workstation, kit: Kit, keys: tuple[str, ...]) -> None:
    """Whoever can write to state_dir does not decide what boots. `verify` may remember a bundle whose key was revoked since; one that
    nobody signed it refuses too."""
    workstation.ok("flash", "--no-activate", kit["v1"])
    forged = resigned(kit, kit["v1"], keys=keys)
    size_bytes = len(forged) - kit["v1"].stat().st_size + head_bytes(kit["v1"])
    (workstation.state / "head.B").write_bytes(forged[:size_bytes])
    before = workstation.snapshot()
    done = workstation.run("activate")
    assert done.code == 3
    assert "sign" in done.err
    assert workstation.run("verify", "B").code == (0 if keys else 3)
    assert_untouched(workstation, before)


@ways
def test_signatures(workstation: Workstation, kit: Kit, flash: Flash) -> None:
    before = workstation.snapshot()
    for bad in (
        resigned(kit, kit["v1"], keys=()),
        resigned(kit, kit["v1"], keys=("stranger",)),
        resigned(kit, kit["v1"], keys=("root",)),
        resigned(kit, kit["v1"], spoil=True),
        kit.bundle("strange", key="stranger").read_bytes(),
    ):
        done = flash(workstation, bad)
        assert done.code == 3, done.err
        assert_untouched(workstation, before)


def test_a_signature_by_a_key_outside_the_keyring_does_no_harm(workstation: Workstation, kit: Kit) -> None:
    assert from_file(workstation, resigned(kit, kit["v1"], keys=("stranger", "release"))).code == 0


def test_resigning_itself_changes_nothing(workstation: Workstation, kit: Kit) -> None:
    """The positive control of this file's tampering."""
    assert from_file(workstation, resigned(kit, kit["v1"])).code == 0
    assert workstation.holds("B", "v1")


@ways
@pytest.mark.parametrize("compatible", ["acm", "acme2", "ACME", "Acme", "acme ", " acme", "acme-gateway", "acm\u0435", "*"])
def test_another_compatible(workstation: Workstation, kit: Kit, compatible: str, flash: Flash) -> None:
    bad = kit.bundle(f"compatible-{compatible.encode().hex()}", compatible=compatible)
    before = workstation.snapshot()
    done = flash(workstation, bad.read_bytes())
    assert done.code == 3
    assert "is for" in done.err
    assert_untouched(workstation, before)


@pytest.mark.parametrize("put", [b"acme\0", b"acme\n", b"acme\x7f", b"acm\xc3e", b"\0acme"])
def test_a_compatible_with_a_trick_in_it(workstation: Workstation, kit: Kit, put: bytes) -> None:
    """Signed with the right key: the device looks itself."""
    honest = kit.bundle("five", compatible="acmex")
    before = workstation.snapshot()
    assert from_file(workstation, resigned(kit, honest, lambda manifest: manifest.replace(b"acmex", put))).code == 3
    assert_untouched(workstation, before)


def test_an_empty_hardware_revision_or_another_one(workstation: Workstation, kit: Kit) -> None:
    right = kit.bundle("r3", top='hardware_revisions = ["r3", "r9"]')
    before = workstation.snapshot()
    for revision in ("r", "r33", "R3", "r4"):
        bad = kit.bundle(f"rev-{revision}", top=f'hardware_revisions = ["{revision}"]')
        assert workstation.run("flash", bad).code == 3
        assert_untouched(workstation, before)
    workstation.edit('hardware_revision = "r3"\n', "")
    done = workstation.run("flash", right)
    assert done.code == 3
    assert "not configured" in done.err
    assert_untouched(workstation, before)
    workstation.edit('compatible = "acme"\n', 'compatible = "acme"\nhardware_revision = "r9"\n')
    workstation.ok("flash", right)


def test_min_updater(workstation: Workstation, kit: Kit) -> None:
    numbers = [int(part) for part in __version__.split(".")]
    newer = ".".join(map(str, [*numbers[:-1], numbers[-1] + 1]))
    before = workstation.snapshot()
    for wanted in (newer, "999", f"{__version__}.0.1" if len(numbers) < 3 else f"{numbers[0] + 1}"):
        bad = kit.bundle(f"min-{wanted}", top=f'min_updater = "{wanted}"')
        done = workstation.run("flash", bad)
        assert done.code == 3
        assert wanted in done.err
        assert_untouched(workstation, before)
    workstation.ok("flash", kit.bundle("min-same", top=f'min_updater = "{__version__}"'))


@ways
def test_a_downgrade(workstation: Workstation, kit: Kit, flash: Flash) -> None:
    workstation.confirmed("v2", "B")
    before = workstation.snapshot()
    done = flash(workstation, kit["v1"].read_bytes())
    assert done.code == 3
    assert "downgrade" in done.err
    assert_untouched(workstation, before)
    same_counter = kit.bundle("two-again", version="2.1", counter=2, seed=22)
    workstation.ok("flash", same_counter)


def test_the_floor_rises_at_confirm_and_not_at_flash(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v3"])
    workstation.ok("revert")
    assert workstation.status()["floor"] == 0
    workstation.ok("flash", kit["v1"])


def test_images_that_do_not_match_the_slots(workstation: Workstation, kit: Kit) -> None:
    before = workstation.snapshot()
    for bad in (kit.bundle("modem", extra=True), kit.bundle("no-boot", without="boot"), kit.bundle("no-rootfs", without="rootfs")):
        done = workstation.run("flash", bad)
        assert done.code == 3
        assert "image" in done.err
        assert_untouched(workstation, before)


def test_a_slot_that_is_too_small(workstation: Workstation, kit: Kit) -> None:
    big = kit.bundle("big", rootfs_bytes=ROOTFS_PLACE + 4096)
    before = workstation.snapshot()
    done = workstation.run("flash", big)
    assert done.code == 2
    assert "too small" in done.err
    assert_untouched(workstation, before)
    assert workstation.flash_pipe(big.read_bytes()).code == 2
    assert_untouched(workstation, before)
    # The last image alone does not fit: still nothing of the first one is written.
    with workstation.places["B.boot"].open("r+b") as file:
        file.truncate(4096)
    before = workstation.snapshot()
    assert workstation.run("flash", kit["v1"]).code == 2
    assert_untouched(workstation, before)


def cuts(size: int, head: int) -> list[int]:
    """Lengths at which a bundle is cut: around every border, and some anywhere."""
    borders = {0, 1, 8, 40, 95, 96, 97, head - 1, head, head + 1, size - 16384, size - 4096, size - 1}
    return sorted(borders | set(random.Random(7).sample(range(size), 6)))


def test_a_truncated_file(workstation: Workstation, kit: Kit) -> None:
    data = kit["v1"].read_bytes()
    before = workstation.snapshot()
    for length in cuts(len(data), head_bytes(kit["v1"])):
        done = from_file(workstation, data[:length])
        assert done.code == 3, (length, done.err)
        assert_untouched(workstation, before)
    done = from_file(workstation, data + b"x")
    assert done.code == 3
    assert_untouched(workstation, before)
    assert from_file(workstation, data).code == 0, "and the whole one is fine afterwards"


def test_a_flipped_bit_before_the_payload(workstation: Workstation, kit: Kit) -> None:
    data = kit["v1"].read_bytes()
    head = head_bytes(kit["v1"])
    before = workstation.snapshot()
    for offset in sorted({*range(0, 96, 7), *random.Random(8).sample(range(96, head), 16), head - 1}):
        bad = bytearray(data)
        bad[offset] ^= 1 << (offset % 8)
        done = from_file(workstation, bytes(bad))
        assert done.code == 3, (offset, done.err)
        assert_untouched(workstation, before)


@ways
@pytest.mark.parametrize("where", [0.0, 0.4, 0.85, 1.0], ids=["first byte", "rootfs", "boot", "last byte"])
def test_a_flipped_bit_in_the_payload(workstation: Workstation, kit: Kit, flash: Flash, where: float) -> None:
    data = bytearray(kit["v1"].read_bytes())
    head = head_bytes(kit["v1"])
    data[head + int(where * (len(data) - head - 1))] ^= 0x40
    before = workstation.snapshot()
    done = flash(workstation, bytes(data))
    assert done.code == 3, done.err
    assert_target_out(workstation, before)
    workstation.ok("flash", kit["v1"])
    assert workstation.holds("B", "v1")


@pytest.mark.parametrize("redirected", [False, True], ids=["pipe", "redirected file"])
def test_a_stream_that_ends_early(workstation: Workstation, kit: Kit, redirected: bool) -> None:
    data = kit["v1"].read_bytes()
    head = head_bytes(kit["v1"])
    before = workstation.snapshot()
    for length in cuts(len(data), head):
        done = workstation.flash_pipe(data[:length], redirected=redirected)
        assert done.code == 1, (length, done.err)
        if length < head:
            assert_untouched(workstation, before)
        else:
            assert_target_out(workstation, before)
    assert workstation.flash_pipe(data, redirected=redirected).code == 0
    assert workstation.holds("B", "v1")


def test_a_stream_that_goes_on_after_the_bundle(workstation: Workstation, kit: Kit) -> None:
    before = workstation.snapshot()
    done = workstation.flash_pipe(kit["v1"].read_bytes() + b"x")
    assert done.code == 3
    assert_target_out(workstation, before)


def test_a_stream_that_stays_open_after_the_bundle(workstation: Workstation, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender says nothing more and does not go away: the bundle is whole and verified."""
    monkeypatch.setattr("abupdate.transfer.slots._END_WAIT_S", 0.1)
    reading, writing = os.pipe()
    resize_pipe(writing, 1 << 20)
    os.write(writing, kit["v1"].read_bytes())
    before = os.dup(0)
    os.dup2(reading, 0)
    try:
        workstation.ok("flash", "-")
    finally:
        os.dup2(before, 0)
        for descriptor in (before, reading, writing):
            os.close(descriptor)
    assert workstation.holds("B", "v1")


def test_a_failed_flash_after_a_good_one_takes_the_target_out(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v1", "B")
    data = bytearray(kit["v2"].read_bytes())
    data[-1] ^= 1
    running = {name: digest for name, digest in workstation.hashes().items() if name.startswith("B.")}
    assert from_file(workstation, bytes(data)).code == 3
    printed = workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_A_LEFT"]) == ("B", "0")
    assert {name: digest for name, digest in workstation.hashes().items() if name.startswith("B.")} == running
    assert workstation.run("revert").code == 4


def test_a_keyring_with_test_keys(workstation: Workstation, kit: Kit) -> None:
    if not (kit.folder / "trial-root.pem").exists():
        kit.make("keys", "generate", "--test", kit.folder / "trial-root")
        kit.make("keys", "generate", "--test", kit.folder / "trial-release")
    ring = workstation.folder / "test-ring.abk"
    roles = ("--root", kit.folder / "trial-root.pub", "--release", kit.folder / "trial-release.pub")
    kit.make("keys", "keyring", "-o", ring, "--version", "1", *roles, "--sign", kit.folder / "trial-root.pem")
    workstation.edit("ring.abk", "test-ring.abk")
    bad = kit.bundle("by-test-key", key="trial-release")
    before = workstation.snapshot()
    done = workstation.run("flash", bad)
    assert done.code == 3
    assert "allow_test_keys" in done.err
    assert_untouched(workstation, before)
    workstation.edit('keyring = "test-ring.abk"', 'keyring = "test-ring.abk"\nallow_test_keys = true')
    workstation.ok("flash", bad)
