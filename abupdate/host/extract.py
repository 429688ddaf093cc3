"""Takes the images out of a bundle, every chunk verified before it is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from abupdate.errors import ConfigError, Refused
from abupdate.formats import bundle
from abupdate.formats.codec import Decoder
from abupdate.formats.sealing import names
from abupdate.host.atomic import output, pwrite_sparse

if TYPE_CHECKING:
    from abupdate.formats.contentkey import ContentKey, Identity


def extract(path: Path, folder: Path, open_: bundle.Open = bundle.decode, *, identity: Identity | None = None) -> dict[str, Path]:
    """Write each image to FOLDER/NAME.img (zero chunks become holes); returns the files by image name.

    `open_` decides about the signatures before anything else is read. identity: opens a sealed bundle (ConfigError without). An
    image that is damaged leaves no file; files that exist are never overwritten (ConfigError). Raises Refused for a fault in the
    bundle.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    with file:
        head = bundle.read_head(file.read, os.fstat(file.fileno()).st_size, open_)
        key = _content_key(head.signed, identity)
        # What only its recipients may read stays with whoever opened it.
        sealed = head.signed.manifest.sealing is not None
        try:
            folder.mkdir(mode=0o700 if sealed else 0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {folder}: {error.strerror}") from error
        written: dict[str, Path] = {}
        for image in head.signed.manifest.images:
            target = folder / f"{image.name}.img"
            with output(target, mode=0o600 if sealed else 0o644, replace=False) as fd:
                _extract_image(file, head, image.name, fd, key)
                os.ftruncate(fd, image.size_bytes)
            written[image.name] = target
    return written


def _content_key(signed: bundle.Signed, identity: Identity | None) -> ContentKey | None:
    sealing = signed.manifest.sealing
    if sealing is None:
        return None
    if identity is None:
        ids = names(recipient.key_id for recipient in sealing.recipients)
        raise ConfigError(f"the bundle is sealed for {ids}", "--identity KEY.pem opens it")
    from abupdate.formats.contentkey import unseal

    return unseal(sealing, [identity])


def _extract_image(file: BinaryIO, head: bundle.Head, name: str, fd: int, key: ContentKey | None) -> None:
    decoder = Decoder(key.image(name) if key is not None else None)
    start, codec = head.signed.payload_offset(name), head.signed.image(name).codec
    for chunk in head.tables.chunks(name):
        if chunk.zero:
            continue
        file.seek(start + chunk.stored_offset)
        stored = file.read(chunk.stored_size)
        try:
            data = decoder.plain(chunk, codec, stored)
        except Refused as error:
            raise Refused(f"image {name}: {error.message}", error.hint) from error
        pwrite_sparse(fd, data, chunk.offset)
