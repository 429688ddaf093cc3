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
    kind = "raw"                          # optional
    codec = "zstd"                        # optional: "none" stores the bytes as they are
    level = 19                            # optional, for this image

Images are stored in the order of the file. Unknown keys are errors.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abupdate.errors import ConfigError
from abupdate.formats import chunktable
from abupdate.host.keyrings import load_chain
from abupdate.model import MAX_COUNTER, Codec, ImageKind

DEFAULT_LEVEL = 15
DEFAULT_CHUNK_BYTES = 1024 * 1024
_MAX_BYTES = 256 * 1024
# A key `a.a.a...` costs the parser the square of its parts, and a key cannot go on in the next line.
_MAX_LINE_BYTES = 16 * 1024
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
_IMAGE = ("file", "kind", "codec", "level")


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image to put into a bundle. level: of zstd."""

    name: str
    path: Path
    kind: ImageKind
    codec: Codec
    level: int


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
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path} is too large for a SPEC")
        if max(map(len, data.split(b"\n"))) > _MAX_LINE_BYTES:
            raise ConfigError(f"{path} has a line of more than {_MAX_LINE_BYTES} bytes", "a list may go over several lines")
        document = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        # Mostly TOMLDecodeError; a number of thousands of digits is a plain ValueError.
        raise ConfigError(f"{path} is not TOML: {' '.join(str(error).split())[:200]}") from error
    return _Table(document, str(path), _TOP).spec(path.parent, level)


class _Table:
    """A TOML table whose keys are all known; its getters raise ConfigError with the place of the fault."""

    def __init__(self, values: Mapping[str, Any], place: str, known: tuple[str, ...]) -> None:
        self.values = values
        self.place = place
        for key in values:
            if key not in known:
                raise ConfigError(f"{place}: unknown key {key!r}", f"known are {', '.join(known)}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(f"{self.place}: {key} is missing", f'add {key} = "..."')
        if not isinstance(value, str):
            raise ConfigError(f"{self.place}: {key} is not a string", f'write {key} = "..."')
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{self.place}: {key} is not a list of strings", f'write {key} = ["...", "..."]')
        if len(set(value)) != len(value):
            raise ConfigError(f"{self.place}: {key} holds a value twice")
        return tuple(value)

    def paths(self, key: str, folder: Path) -> tuple[Path, ...]:
        names = self.texts(key)
        if any("\0" in name for name in names):
            raise ConfigError(f"{self.place}: {key} holds a name with a NUL")
        return tuple(folder / name for name in names)

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(f"{self.place}: {key} is missing", f"add {key} = NUMBER")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{self.place}: {key} is not a number from {low} to {high}")
        return value

    def spec(self, folder: Path, level: int | None) -> Spec:
        images = self.values.get("images")
        if not isinstance(images, dict) or not images:
            raise ConfigError(f"{self.place}: no images", 'add [images.NAME] with file = "..."')
        default_level = self.number("level", 1, 22, DEFAULT_LEVEL)
        chunk_bytes = self.number("chunk_bytes", chunktable.ALIGN_BYTES, chunktable.MAX_CHUNK_BYTES, DEFAULT_CHUNK_BYTES)
        if chunk_bytes % chunktable.ALIGN_BYTES:
            raise ConfigError(f"{self.place}: chunk_bytes is not a multiple of {chunktable.ALIGN_BYTES}")
        return Spec(
            compatible=self.text("compatible"),
            version=self.text("version"),
            security_counter=self.number("security_counter", 0, MAX_COUNTER),
            hardware_revisions=self.texts("hardware_revisions"),
            description=self.text("description", ""),
            flags=frozenset(self.texts("flags")),
            min_updater=self.text("min_updater", ""),
            chunk_bytes=chunk_bytes,
            images=tuple(self._image(name, value, folder, default_level, level) for name, value in images.items()),
            recipients=self.paths("recipients", folder),
            chain=load_chain(self.paths("chain", folder)),
        )

    def _image(self, name: str, value: object, folder: Path, default_level: int, level: int | None) -> ImageSpec:
        place = f"{self.place}: [images.{name}]"
        if not isinstance(value, dict):
            raise ConfigError(f"{place} is not a table", f'write [images.{name}] and file = "..." below it')
        table = _Table(value, place, _IMAGE)
        kind_text, codec_text = table.text("kind", "raw"), table.text("codec", "zstd")
        if kind_text not in {kind.value for kind in ImageKind}:
            raise ConfigError(f"{place}: unknown kind {kind_text!r}", f"known are {', '.join(kind.value for kind in ImageKind)}")
        if kind_text != ImageKind.RAW.value:
            raise ConfigError(f"{place}: kind {kind_text!r} cannot be built yet", 'this version builds kind = "raw"')
        if codec_text not in {codec.value for codec in Codec}:
            raise ConfigError(f"{place}: unknown codec {codec_text!r}", 'known are "zstd" and "none"')
        image_level = table.number("level", 1, 22, default_level)
        path = folder / table.text("file")
        if not path.exists():
            raise ConfigError(f"{place}: {path} does not exist", "file is relative to the SPEC's folder")
        return ImageSpec(name, path, ImageKind(kind_text), Codec(codec_text), image_level if level is None else level)
