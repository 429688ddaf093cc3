"""Images of kind `file`: regular files of a mounted file system, made, grown and shrunk by what a bundle holds."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from abupdate import durable, wiring
from abupdate.config import Settings, validate
from abupdate.devices import fileimage
from abupdate.devices.block import BlockTarget
from abupdate.devices.fileimage import FileImage
from abupdate.errors import AbupdateError, Busy, ConfigError, Failed, Refused
from abupdate.formats.bundle import decode
from abupdate.host import keys
from abupdate.host import spec as specs
from abupdate.host.create import create
from abupdate.transfer.slots import Bundle, DeviceSlots
from abupdate.transfer.sources import open_source

KERNEL = random.Random(1).randbytes(70_001)
INITRD = bytes(9000) + random.Random(2).randbytes(40_000)
ROOTFS = b"root file system" * 2048


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Builds a bundle of the images that it is given: name -> (kind, content)."""
    pair = keys.load_private(keys.generate(tmp_path / "key")[0])
    folder = tmp_path / "bundles"
    folder.mkdir()

    def make(**images: tuple[str, bytes]) -> Path:
        text = 'compatible = "acme"\nversion = "1"\nsecurity_counter = 1\nchunk_bytes = 16384\nlevel = 1\n'
        for name, (kind, content) in images.items():
            (folder / name).write_bytes(content)
            text += f'[images.{name}]\nfile = "{name}"\nkind = "{kind}"\n'
        (folder / "spec.toml").write_text(text)
        path = folder / f"{len(list(folder.iterdir()))}.abu"
        create(specs.load(folder / "spec.toml"), path, [pair])
        return path

    return make


@pytest.fixture
def esp(mount: Callable[..., Path]) -> Path:
    """A file system of 1 MiB with a folder for slot B."""
    point = mount("none", "-t", "tmpfs", "-o", "size=1m")
    (point / "B").mkdir()
    return point


def flash(places: dict[str, Path], bundle: Path) -> DeviceSlots:
    """What `flash` does with a slot's contents."""
    slots = DeviceSlots({"B": places}, open_head=decode)
    with slots.claim("B"), open_source(str(bundle)) as source:
        opened = Bundle(source, decode)
        slots.fits("B", opened.manifest)
        slots.write("B", opened, lambda phase, done, total: None)
        slots.verify("B", opened.head(), lambda phase, done, total: None)
    return slots


def head_of(bundle: Path) -> bytes:
    """What `flash` keeps of a bundle."""
    with open_source(str(bundle)) as source:
        return Bundle(source, decode).head()


def test_the_files_are_made_grown_and_shrunk_to_what_the_bundle_holds(esp: Path, build: Callable[..., Path]) -> None:
    places = {"kernel": esp / "B/vmlinuz", "initrd": esp / "B/initrd"}
    flash(places, build(kernel=("file", KERNEL), initrd=("file", INITRD)))
    assert [path.read_bytes() for path in places.values()] == [KERNEL, INITRD]
    number = places["kernel"].stat().st_ino
    flash(places, build(kernel=("file", KERNEL[:5000]), initrd=("file", INITRD + KERNEL)))
    assert [path.read_bytes() for path in places.values()] == [KERNEL[:5000], INITRD + KERNEL]
    assert places["kernel"].stat().st_ino == number, "rewritten in place, not replaced"
    flash(places, build(kernel=("file", b""), initrd=("file", INITRD)))
    assert [path.read_bytes() for path in places.values()] == [b"", INITRD]


def test_raw_images_and_files_of_one_slot_come_from_one_bundle(tmp_path: Path, esp: Path, build: Callable[..., Path]) -> None:
    rootfs = tmp_path / "rootfs_b"
    rootfs.write_bytes(b"\xa5" * 65536)
    flash({"rootfs": rootfs, "kernel": esp / "B/vmlinuz"}, build(rootfs=("raw", ROOTFS), kernel=("file", KERNEL)))
    assert rootfs.read_bytes() == ROOTFS + b"\xa5" * (65536 - len(ROOTFS)), "a raw image never changes its place's size"
    assert (esp / "B/vmlinuz").read_bytes() == KERNEL


def test_nothing_is_made_before_the_payload_is_written(esp: Path, build: Callable[..., Path]) -> None:
    slots = DeviceSlots({"B": {"kernel": esp / "B/vmlinuz"}}, open_head=decode)
    with slots.claim("B"), open_source(str(build(kernel=("file", KERNEL)))) as source:
        slots.fits("B", Bundle(source, decode).manifest)
    assert not (esp / "B/vmlinuz").exists()


@pytest.mark.parametrize("there", [b"", b"old" * 100_000])
def test_a_file_system_without_room_is_refused_before_anything_is_written(esp: Path, build: Callable[..., Path], there: bytes) -> None:
    places = {"kernel": esp / "B/vmlinuz", "initrd": esp / "B/initrd"}
    places["kernel"].write_bytes(there)
    half = random.Random(3).randbytes(600_000)
    with pytest.raises(ConfigError, match="its file system lacks") as caught:
        flash(places, build(kernel=("file", half), initrd=("file", half)))
    assert "make room" in caught.value.hint
    assert places["kernel"].read_bytes() == there
    assert not places["initrd"].exists()


def test_images_leave_room_for_the_boot_entries_that_come_after_them(esp: Path, build: Callable[..., Path]) -> None:
    room = os.statvfs(esp)
    # All of it but the block that a new name may need.
    filling = random.Random(5).randbytes((room.f_bavail - 1) * room.f_frsize)
    with pytest.raises(ConfigError, match="its file system lacks"):
        flash({"kernel": esp / "B/vmlinuz"}, build(kernel=("file", filling)))
    assert not (esp / "B/vmlinuz").exists()


def test_a_file_that_only_fits_over_its_old_self_is_taken(esp: Path, build: Callable[..., Path]) -> None:
    places = {"kernel": esp / "B/vmlinuz"}
    places["kernel"].write_bytes(bytes(900_000))
    fresh = random.Random(4).randbytes(900_000)
    flash(places, build(kernel=("file", fresh)))
    assert places["kernel"].read_bytes() == fresh


def test_a_file_for_a_block_device_is_refused(tmp_path: Path, loop: Callable[[Path], Path], build: Callable[..., Path]) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xa5" * (1 << 20))
    with pytest.raises(ConfigError, match=r"image kernel is a file, /dev/loop\d+ is not"):
        flash({"kernel": loop(backing)}, build(kernel=("file", KERNEL)))
    assert backing.read_bytes() == b"\xa5" * (1 << 20)


def test_a_raw_image_is_never_written_to_a_file_that_is_not_there(esp: Path, build: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        flash({"kernel": esp / "B/vmlinuz"}, build(kernel=("raw", KERNEL)))
    assert 'kind = "file"' in caught.value.hint
    assert not (esp / "B/vmlinuz").exists()


def test_a_folder_or_device_that_is_missing_is_a_mistake_in_the_configuration(esp: Path, build: Callable[..., Path]) -> None:
    for place in (esp / "C/vmlinuz", Path("/dev/abu-no-such-device")):
        with pytest.raises(ConfigError, match="No such file"):
            flash({"kernel": place}, build(kernel=("file", KERNEL)))
        assert not place.exists()


def test_a_dangling_link_is_no_place_for_a_file(esp: Path, build: Callable[..., Path]) -> None:
    (esp / "B/vmlinuz").symlink_to(esp / "elsewhere")
    with pytest.raises(ConfigError):
        flash({"kernel": esp / "B/vmlinuz"}, build(kernel=("file", KERNEL)))
    assert not (esp / "elsewhere").exists()


def test_a_read_only_file_system_is_refused_before_anything_is_written(
    mount: Callable[..., Path], tmp_path: Path, build: Callable[..., Path]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    point = mount(source, "--bind", "-o", "ro")
    with pytest.raises(ConfigError, match="read-only file system"):
        flash({"kernel": point / "vmlinuz"}, build(kernel=("file", KERNEL)))


@pytest.mark.parametrize("change", ["longer", "shorter", "other", "missing"])
def test_verify_sees_a_file_that_is_longer_shorter_other_or_missing(esp: Path, build: Callable[..., Path], change: str) -> None:
    path = esp / "B/vmlinuz"
    bundle = build(kernel=("file", KERNEL))
    slots = flash({"kernel": path}, bundle)
    slots.verify("B", head_of(bundle), lambda phase, done, total: None)
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes({"longer": KERNEL + b"x", "shorter": KERNEL[:-1], "other": KERNEL[:-1] + b"x"}[change])
    with pytest.raises(Failed) as caught:
        slots.verify("B", head_of(bundle), lambda phase, done, total: None)
    assert "flash" in caught.value.hint


def test_the_file_the_folder_and_the_file_system_are_flushed_in_this_order(
    esp: Path, build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []

    def noting(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(place: object) -> None:
            notes.append(name)
            real(place)

        return call

    monkeypatch.setattr(BlockTarget, "flush", noting("file", BlockTarget.flush))
    monkeypatch.setattr(fileimage, "sync_folder", noting("folder", durable.sync_folder))
    monkeypatch.setattr(fileimage, "sync_filesystem", noting("file system", durable.sync_filesystem))
    flash({"kernel": esp / "B/vmlinuz"}, build(kernel=("file", KERNEL)))
    assert notes == ["folder", "file", "folder", "file system"]


def test_a_file_that_another_process_has_locked_is_busy(esp: Path) -> None:
    import fcntl

    path = esp / "B/vmlinuz"
    target = fileimage.open_place(path)
    assert isinstance(target, FileImage)
    with path.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="locked"):
            target.resize(10)
    assert path.stat().st_size == 0


def test_a_full_file_system_ends_a_write_with_a_reason(esp: Path) -> None:
    target = fileimage.open_place(esp / "B/vmlinuz")
    assert isinstance(target, FileImage)
    target.resize(2 << 20)
    with pytest.raises(Failed, match="No space") as caught:
        target.pwrite(memoryview(os.urandom(2 << 20)), 0)
    target.close()
    assert "full" in caught.value.hint


def test_other_kinds_are_still_refused(esp: Path, build: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="cannot be built yet"):
        build(kernel=("container", KERNEL))


def settings_for(tmp_path: Path, a: Path, b: Path) -> Settings:
    """A configuration whose slots hold one kernel each."""
    raw = {
        "compatible": "acme",
        "state_dir": str(tmp_path / "state"),
        "slots": {"A": {"images": {"kernel": str(a)}}, "B": {"images": {"kernel": str(b)}}},
        "bootloader": {"kind": "uboot"},
        "trust": {"keyring": "ring.abk"},
    }
    return validate(raw, tmp_path / "config.toml")


def test_the_configuration_accepts_a_file_that_is_still_to_be_made(tmp_path: Path, esp: Path) -> None:
    wiring.check_devices(settings_for(tmp_path, esp / "B/vmlinuz", esp / "B/other"))


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ("B/vmlinuz", "B/VMLINUZ", "same file"),
        ("B/vmlinuz", "C/vmlinuz", "No such file"),
        ("B/vmlinuz", "B", "neither"),
    ],
)
def test_the_configuration_refuses_places_that_cannot_be(tmp_path: Path, esp: Path, a: str, b: str, error: str) -> None:
    with pytest.raises(AbupdateError, match=error) as caught:
        wiring.check_devices(settings_for(tmp_path, esp / a, esp / b))
    assert caught.value.exit_code == ConfigError.exit_code
    assert caught.value.hint
    assert not isinstance(caught.value, Refused)


def test_a_slot_that_would_be_written_over_another_ones_file_is_refused(
    tmp_path: Path, ext4: Path, loop: Callable[[Path], Path], mount: Callable[..., Path]
) -> None:
    from abupdate.devices import usage

    device = loop(ext4)
    point = mount(device)
    assert usage.covers(device, point / "vmlinuz")
    assert not usage.covers(point / "vmlinuz", device)
