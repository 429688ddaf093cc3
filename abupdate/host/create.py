"""Builds a signed bundle from a SPEC in one pass over the images, in bounded memory.

Every number in the manifest has a fixed width, so the head's length is known before the first chunk is encoded: the payload
goes straight to its place, and the head is written in front of it at the end.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from abupdate.errors import ConfigError, Failed, Refused
from abupdate.formats import bundle, chunktable, manifest, signature
from abupdate.host.atomic import is_same, output, pwrite_all, pwrite_sparse
from abupdate.host.chunking import encode_image
from abupdate.host.recipients import Seal
from abupdate.host.signing import Signer, sign_all
from abupdate.host.spec import ImageSpec, Spec
from abupdate.model import MAX_COUNTER, Image, ImageKind, Manifest, Signature

Progress = Callable[[int, int], None]


def create(spec: Spec, path: Path, signers: Sequence[Signer], progress: Progress | None = None, *, seal: Seal | None = None) -> Manifest:
    """Write the bundle `path`, whole or not at all. `progress(done, all)` gets bytes of images. seal: who alone can read the payload.

    With equal inputs, zstd library and SOURCE_DATE_EPOCH the file is the same byte for byte, unless it is sealed. Raises ConfigError (the
    SPEC's values break the format's rules, an image cannot be read) and Failed.
    """
    for source in spec.images:
        if is_same(path, source.path):
            raise ConfigError(f"{path} is the file of image {source.name}", "write the bundle to another file")
    with ExitStack() as stack:
        files = [_open(image, stack) for image in spec.images]
        try:
            draft = _draft(spec, files, seal)
            manifest_bytes = manifest.encode(draft)
        except Refused as error:
            # The rules that a device refuses by; here they are about what the SPEC says.
            raise ConfigError(f"SPEC: {error.message}", error.hint) from error
        blank = signature.pack_block(Signature(signer.public.raw, bytes(signature.SIGNATURE_BYTES)) for signer in signers)
        tables_length = sum(image.table_bytes for image in draft.images)
        head = bundle.build_head(manifest_bytes, blank, tables_length, 0, spec.chain)
        fd = stack.enter_context(output(path))
        offset = len(head) + tables_length
        tables: list[bytes] = []
        images: list[Image] = []
        total = sum(image.size_bytes for image in draft.images)
        done = 0
        for image, spec_image, file in zip(draft.images, spec.images, files, strict=True):
            table = [chunktable.pack_header(-(-image.size_bytes // spec.chunk_bytes))]
            start = offset
            sealer = None if seal is None else seal.key.image(image.name)
            for piece in encode_image(file, image.size_bytes, spec.chunk_bytes, image.codec, spec_image.level, sealer):
                pwrite_sparse(fd, piece.stored, offset)
                offset += piece.chunk.stored_size
                table.append(chunktable.pack_entry(piece.chunk))
                done += piece.chunk.size
                if progress is not None:
                    progress(done, total)
            tables.append(b"".join(table))
            digest = hashlib.sha256(tables[-1]).digest()
            images.append(replace(image, table_sha256=digest, payload_bytes=offset - start))
        final = replace(draft, images=tuple(images))
        manifest_bytes = manifest.encode(final)
        block = signature.pack_block(sign_all(signers, signature.message(signature.Domain.BUNDLE, manifest_bytes)))
        payload_bytes = sum(image.payload_bytes for image in images)
        pwrite_all(fd, bundle.build_head(manifest_bytes, block, tables_length, payload_bytes, spec.chain) + b"".join(tables), 0)
        os.ftruncate(fd, offset)
    return manifest.decode(manifest_bytes)


def build_time() -> int:
    """SOURCE_DATE_EPOCH where it is set, else now; seconds since 1970. Raises ConfigError."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return int(time.time())
    # The length first: Python does not read numbers of thousands of digits.
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > MAX_COUNTER:
        raise ConfigError(f"SOURCE_DATE_EPOCH is {text[:40]!r}", "it is a number of seconds since 1970")
    return int(text)


def _draft(spec: Spec, files: Sequence[int], seal: Seal | None) -> Manifest:
    """The manifest with everything but table hashes and payload lengths."""
    images: list[Image] = []
    for image, fd in zip(spec.images, files, strict=True):
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
        if not size_bytes and image.kind is ImageKind.RAW:
            raise ConfigError(f"{image.path} is empty")
        length = chunktable.table_bytes(-(-size_bytes // spec.chunk_bytes))
        digest = bytes(manifest.SHA256_BYTES)
        sealed, root = seal is not None, image.verity_root
        images.append(Image(image.name, image.kind, size_bytes, image.codec, digest, length, 0, verity_root=root, sealed=sealed))
    return Manifest(
        bundle_id=b"",
        compatible=spec.compatible,
        hardware_revisions=spec.hardware_revisions,
        version=spec.version,
        security_counter=spec.security_counter,
        min_updater=spec.min_updater,
        build_time=build_time(),
        description=spec.description,
        flags=spec.flags,
        images=tuple(images),
        sealing=None if seal is None else seal.sealing,
    )


def _open(image: ImageSpec, stack: ExitStack) -> int:
    try:
        # Not waiting for whoever might write into a named pipe.
        fd = os.open(image.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"cannot read {image.path}: {error.strerror}") from error
    stack.callback(os.close, fd)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ConfigError(f"{image.path} is neither a file nor a block device")
    try:
        os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        raise Failed(f"cannot read {image.path}: {error.strerror}") from error
    return fd
