"""The image that both updaters flash: an ext4 file system of real files from /usr, 70 % full, the same at every build."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

IMAGE_BYTES = 512 << 20
_FILL = 0.70
# What the file system keeps for itself (inodes, bitmaps) counts as full; blocks of files are rounded up.
_OVERHEAD_BYTES = 16 << 20
_UUID = "0b5e7ac1-3a5d-4c2f-9a51-6d2d3c3f0a11"


def build_image(folder: Path) -> Path:
    """Make rootfs.img in the folder, unless it is there already."""
    image = folder / "rootfs.img"
    if image.exists():
        return image
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    _copy_files(tree, int(IMAGE_BYTES * _FILL) - _OVERHEAD_BYTES)
    part = folder / "rootfs.part"
    with part.open("wb") as out:
        out.truncate(IMAGE_BYTES)
    fixed = ["-m", "0", "-U", _UUID, "-E", f"hash_seed={_UUID},root_owner=0:0,lazy_itable_init=0"]
    command = ["mkfs.ext4", "-q", "-F", *fixed, "-d", str(tree), str(part)]
    subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "E2FSPROGS_FAKE_TIME": "1700000000"})
    shutil.rmtree(tree)
    part.rename(image)
    return image


def build_filler(folder: Path) -> Path:
    """What lies on a slot before each flash: bytes that no image holds and that are not zero, so that nobody saves anything."""
    filler = folder / "filler.img"
    if not filler.exists():
        part = folder / "filler.part"
        block = bytes(range(1, 256)) * 4113
        with part.open("wb") as out:
            for number in range(IMAGE_BYTES >> 20):
                out.write((b"%08d" % number + block)[: 1 << 20])
        part.rename(filler)
    return filler


def _copy_files(tree: Path, room_bytes: int) -> None:
    left = room_bytes
    for source in _files():
        size = -(-source.stat().st_size // 4096) * 4096
        if size > left:
            continue
        target = tree / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        os.utime(target, (1_700_000_000, 1_700_000_000))
        left -= size
        if left < 4096:
            return
    raise RuntimeError(f"/usr holds {left >> 20} MiB too little to fill the image")


def _files() -> list[Path]:
    """Programs and libraries first, then everything else, by name: what a root file system holds, in an order that is always the same."""
    found = []
    for top in ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/share"):
        for folder, folders, names in os.walk(top):
            folders.sort()
            found += [path for name in sorted(names) if (path := Path(folder, name)).is_file() and not path.is_symlink()]
    return found
