"""`abupdate flash` of large images as a whole process: its peak memory, and a bundle that no 32-bit length describes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.workstation import Kit, Workstation, command, environ

MIB = 1 << 20
MARK_BYTES = 4 * MIB


def sparse(path: Path, size_bytes: int) -> None:
    """A file of this size with a few bytes in every chunk, so that none is all zeros, and more at both ends and across 4 GiB."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for offset in range(0, size_bytes, MIB):
            file.seek(offset)
            file.write(offset.to_bytes(8, "big") + b"+")
        for offset in {0, min(4096 * MIB, size_bytes) - MARK_BYTES // 2, size_bytes - MARK_BYTES}:
            file.seek(offset)
            file.write(os.urandom(MARK_BYTES))
        file.truncate(size_bytes)


def large(workstation: Workstation, kit: Kit, size_bytes: int, *, codec: str = "zstd", recipient: str = "") -> tuple[Path, Path]:
    """(bundle, image) with a rootfs of this size; the workstation's rootfs slots get room for it. recipient: it is sealed for that key."""
    folder = workstation.folder
    image = folder / f"image-{size_bytes}"
    sparse(image, size_bytes)
    spec = folder / f"{image.name}.toml"
    spec.write_text(
        f'compatible = "acme"\nversion = "9.0"\nsecurity_counter = 9\n'
        f'[images.rootfs]\nfile = "{image.name}"\nlevel = 1\ncodec = "{codec}"\n[images.boot]\nfile = "boot.img"\nlevel = 1\n'
    )
    (folder / "boot.img").write_bytes(os.urandom(4096))
    bundle = folder / f"{image.name}.abu"
    sealed: list[str | Path] = ["--recipient", kit.folder / f"{recipient}.pub"] if recipient else []
    kit.make("bundle", "create", spec, "-o", bundle, "--key", kit.folder / "release.pem", *sealed)
    for slot in "AB":
        os.truncate(workstation.places[f"{slot}.rootfs"], size_bytes)
    return bundle, image


def peak_kib(workstation: Workstation, bundle: Path) -> int:
    """Peak resident memory of a whole `abupdate flash`."""
    process = subprocess.Popen(command("-c", workstation.config, "flash", bundle), env=environ(), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_a_bundle_of_more_than_4_gib_is_flashed(workstation_on_disk: Workstation, kit: Kit, codec: str) -> None:
    bundle, image = large(workstation_on_disk, kit, 5 * 1024 * MIB, codec=codec)
    # Stored as it is, the bundle itself is longer than 32 bits can say; its zeros are holes.
    assert codec == "zstd" or bundle.stat().st_size > 4096 * MIB
    workstation_on_disk.ok("flash", bundle)
    slot = workstation_on_disk.places["B.rootfs"]
    subprocess.run(["cmp", image, slot], check=True)
    workstation_on_disk.ok("verify", "B")


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [False, True])
def test_memory_does_not_grow_with_the_image(workstation_on_disk: Workstation, kit: Kit, sealed: bool) -> None:
    kit.recipient("device")
    with workstation_on_disk.config.open("a") as config:
        config.write(f'[encryption]\nkeys = ["{kit.folder}/device.pem"]\n')
    recipient = "device" if sealed else ""
    small, _ = large(workstation_on_disk, kit, 64 * MIB, recipient=recipient)
    little = peak_kib(workstation_on_disk, small)
    workstation_on_disk.ok("revert")
    big, _ = large(workstation_on_disk, kit, 2048 * MIB, recipient=recipient)
    assert peak_kib(workstation_on_disk, big) - little <= 8 * 1024
