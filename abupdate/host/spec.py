"""Reads SPEC.toml, the recipe of a bundle.

    compatible = "acme-gateway"
    version = "1.2.0"
    security_counter = 7
    hardware_revisions = ["r3", "r4"]     # optional; none: every revision
    description = "..."                   # optional
    flags = ["security-fix"]              # optional
    min_updater = "0.1"                   # optional
    level = 15                            # optional: zstd level, 1 to 22
    chunk_bytes = 1048576                 # optional: multiple of 4096, at most 4194304
    recipients = ["device.pub"]           # optional: who alone can read the payload; relative to the SPEC's folder
    chain = ["keyring-1.abk", "keyring-2.abk"]  # optional: every version of the keyring, oldest first (keyrings or chains)
    [images.rootfs]
    file = "rootfs.ext4"                  # relative to the SPEC's folder
    kind = "raw"                          # optional: "file" for a regular file on the device, such as a kernel on the ESP
    codec = "zstd"                        # optional: "none" stores the bytes as they are
    level = 19                            # optional, for this image
    verity = true                         # optional: a root file system with its dm-verity tree behind it; its root hash is signed

Images are stored in the order of the file. Unknown keys are errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from abupdate.errors import ConfigError
from abupdate.formats import chunktable
from abupdate.host import tables, verity
from abupdate.host.keyrings import load_chain
from abupdate.host.tables import Table
from abupdate.model import MAX_COUNTER, Codec, ImageKind

DEFAULT_LEVEL = 15
DEFAULT_CHUNK_BYTES = 1024 * 1024
_TOP = (
    "compatible",
    "version",
    "security_counter",
    "hardware_revisions",
    "description",
    "flags",
    "min_updater",
    "level",
    "chunk_bytes",
    "recipients",
    "chain",
    "images",
)
_IMAGE = ("file", "kind", "codec", "level", "verity")


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image to put into a bundle. level: of zstd. verity_root: root hash of dm-verity or None."""

    name: str
    path: Path
    kind: ImageKind
    codec: Codec
    level: int
    verity_root: bytes | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """What a bundle is to be made of; `chunk_bytes` is the size of every chunk but an image's last. recipients: public key files.

    chain: the keyring's rotations.
    """

    compatible: str
    version: str
    security_counter: int
    hardware_revisions: tuple[str, ...]
    description: str
    flags: frozenset[str]
    min_updater: str
    chunk_bytes: int
    images: tuple[ImageSpec, ...]
    recipients: tuple[Path, ...] = ()
    chain: bytes = b""


def load(path: Path, *, level: int | None = None) -> Spec:
    """Read and check a SPEC.toml; `level` overrides its levels. Raises ConfigError."""
    return _spec(Table(tables.read(path, "SPEC"), str(path), _TOP), path.parent, level)


def _spec(table: Table, folder: Path, level: int | None) -> Spec:
    images = table.values.get("images")
    if not isinstance(images, dict) or not images:
        raise ConfigError(f"{table.place}: no images", 'add [images.NAME] with file = "..."')
    default_level = table.number("level", 1, 22, DEFAULT_LEVEL)
    chunk_bytes = table.number("chunk_bytes", chunktable.ALIGN_BYTES, chunktable.MAX_CHUNK_BYTES, DEFAULT_CHUNK_BYTES)
    if chunk_bytes % chunktable.ALIGN_BYTES:
        raise ConfigError(f"{table.place}: chunk_bytes is not a multiple of {chunktable.ALIGN_BYTES}")
    return Spec(
        compatible=table.text("compatible"),
        version=table.text("version"),
        security_counter=table.number("security_counter", 0, MAX_COUNTER),
        hardware_revisions=table.texts("hardware_revisions"),
        description=table.text("description", ""),
        flags=frozenset(table.texts("flags")),
        min_updater=table.text("min_updater", ""),
        chunk_bytes=chunk_bytes,
        images=tuple(_image(table.place, name, value, folder, default_level, level) for name, value in images.items()),
        recipients=table.paths("recipients", folder),
        chain=load_chain(table.paths("chain", folder)),
    )


def _image(where: str, name: str, value: object, folder: Path, default_level: int, level: int | None) -> ImageSpec:
    place = f"{where}: [images.{name}]"
    if not isinstance(value, dict):
        raise ConfigError(f"{place} is not a table", f'write [images.{name}] and file = "..." below it')
    table = Table(value, place, _IMAGE)
    kind_text, codec_text = table.text("kind", "raw"), table.text("codec", "zstd")
    if kind_text not in {kind.value for kind in ImageKind}:
        raise ConfigError(f"{place}: unknown kind {kind_text!r}", f"known are {', '.join(kind.value for kind in ImageKind)}")
    if kind_text not in (ImageKind.RAW.value, ImageKind.FILE.value):
        raise ConfigError(f"{place}: kind {kind_text!r} cannot be built yet", 'this version builds kind = "raw" and "file"')
    if codec_text not in {codec.value for codec in Codec}:
        raise ConfigError(f"{place}: unknown codec {codec_text!r}", 'known are "zstd" and "none"')
    image_level = table.number("level", 1, 22, default_level)
    path = folder / table.text("file")
    if not path.exists():
        raise ConfigError(f"{place}: {path} does not exist", "file is relative to the SPEC's folder")
    root = None
    if table.flag("verity", default=False):
        if kind_text != ImageKind.RAW.value:
            raise ConfigError(f'{place}: verity needs kind = "raw"', "the initramfs opens a partition with it")
        root = verity.root_hash(path)
    return ImageSpec(name, path, ImageKind(kind_text), Codec(codec_text), image_level if level is None else level, root)
