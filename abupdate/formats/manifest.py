"""The manifest of a bundle: what the release key signs. The bytes are specified in bundle.py.

Encoding and decoding are exact inverses: a value has one encoding, and whatever else is found is refused.
"""

from __future__ import annotations

import hashlib
import re
import struct

from abupdate.errors import Refused
from abupdate.formats import sealing, text, tlv
from abupdate.model import MAX_COUNTER, Codec, Image, ImageKind, Manifest

FORMAT = 1
MAX_MANIFEST_BYTES = 64 * 1024
MAX_IMAGES = 32
MAX_HARDWARE_REVISIONS = 64
MAX_SIZE_BYTES = 2**60
MAX_TABLES_BYTES = 64 * 1024 * 1024
SHA256_BYTES = 32
FLAGS = frozenset({"security-fix"})

KINDS = {ImageKind.RAW: 0, ImageKind.FILE: 1, ImageKind.TREE: 2, ImageKind.CONTAINER: 3, ImageKind.AGENT: 4}
CODECS = {Codec.NONE: 0, Codec.ZSTD: 1}
_KIND_NAMES = {number: kind for kind, number in KINDS.items()}
_CODEC_NAMES = {number: codec for codec, number in CODECS.items()}

_FORMAT, _COMPATIBLE, _HARDWARE, _VERSION, _COUNTER, _MIN_UPDATER, _BUILD_TIME, _DESCRIPTION, _FLAG = range(0x0001, 0x000A)
_IMAGE, _SEALING = 0x0020, 0x0030
_TAGS = {
    _FORMAT: False,
    _COMPATIBLE: False,
    _HARDWARE: True,
    _VERSION: False,
    _COUNTER: False,
    _MIN_UPDATER: False,
    _BUILD_TIME: False,
    _DESCRIPTION: False,
    _FLAG: True,
    _IMAGE: True,
    _SEALING: False,
}
_NAME, _KIND, _CODEC, _SIZE, _TABLE_BYTES, _TABLE_SHA256, _PAYLOAD_BYTES, _VERITY = range(0x0001, 0x0009)
_IMAGE_TAGS = dict.fromkeys((_NAME, _KIND, _CODEC, _SIZE, _TABLE_BYTES, _TABLE_SHA256, _PAYLOAD_BYTES, _VERITY), False)

_UPDATER = re.compile(rb"(?:0|[1-9][0-9]{0,5})(?:\.(?:0|[1-9][0-9]{0,5})){0,3}", re.ASCII)


def encode(manifest: Manifest) -> bytes:
    """The manifest's bytes; `bundle_id` is not looked at. Raises Refused for a value that no reader would accept."""
    if any(image.sealed != (manifest.sealing is not None) for image in manifest.images):
        raise Refused("either all images are sealed or none is")
    records = [
        (_FORMAT, struct.pack("<H", FORMAT)),
        (_COMPATIBLE, manifest.compatible.encode()),
        *((_HARDWARE, value) for value in sorted(revision.encode() for revision in manifest.hardware_revisions)),
        (_VERSION, manifest.version.encode()),
        (_COUNTER, _u64(manifest.security_counter)),
    ]
    if manifest.min_updater:
        records.append((_MIN_UPDATER, manifest.min_updater.encode()))
    records.append((_BUILD_TIME, _u64(manifest.build_time)))
    if manifest.description:
        records.append((_DESCRIPTION, manifest.description.encode()))
    records += [(_FLAG, flag.encode()) for flag in sorted(manifest.flags)]
    records += [(_IMAGE, _encode_image(image)) for image in manifest.images]
    if manifest.sealing is not None:
        records.append((_SEALING, sealing.encode(manifest.sealing)))
    encoded = tlv.pack(records)
    decode(encoded)
    return encoded


def _u64(number: int) -> bytes:
    if not 0 <= number < 2**64:
        raise Refused(f"{number} does not fit into a manifest")
    return struct.pack("<Q", number)


def _encode_image(image: Image) -> bytes:
    records = [
        (_NAME, image.name.encode()),
        (_KIND, bytes([KINDS[image.kind]])),
        (_CODEC, bytes([CODECS[image.codec]])),
        (_SIZE, _u64(image.size_bytes)),
        (_TABLE_BYTES, _u64(image.table_bytes)),
        (_TABLE_SHA256, image.table_sha256),
        (_PAYLOAD_BYTES, _u64(image.payload_bytes)),
    ]
    if image.verity_root is not None:
        records.append((_VERITY, image.verity_root))
    return tlv.pack(records)


def decode(data: bytes) -> Manifest:
    """Decode a manifest (at most MAX_MANIFEST_BYTES). Verifies no signature. Raises Refused."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise Refused(f"the manifest has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}")
    what = "the manifest"
    found = tlv.unpack(data, _TAGS, what)
    number = tlv.unsigned(tlv.one(found, _FORMAT, what), 2, 0xFFFF, "the manifest's format")
    if number != FORMAT:
        raise tlv.newer(f"manifest format {number}")
    hardware = found[_HARDWARE]
    if len(hardware) > MAX_HARDWARE_REVISIONS:
        raise Refused(f"the manifest names {len(hardware)} hardware revisions, more than {MAX_HARDWARE_REVISIONS}")
    tlv.ascending(hardware, "the hardware revisions")
    tlv.ascending(found[_FLAG], "the flags")
    flags = frozenset(text.plain(flag, 64, "a flag") for flag in found[_FLAG])
    for flag in sorted(flags - FLAGS):
        raise tlv.newer(f"the manifest (flag {flag})")
    seal = sealing.decode(found[_SEALING][0]) if found[_SEALING] else None
    images = tuple(_decode_image(value, sealed=seal is not None) for value in found[_IMAGE])
    if not 1 <= len(images) <= MAX_IMAGES:
        raise Refused(f"the manifest lists {len(images)} images instead of 1 to {MAX_IMAGES}")
    if len({image.name for image in images}) != len(images):
        raise Refused("the manifest lists an image twice")
    if sum(image.table_bytes for image in images) > MAX_TABLES_BYTES:
        raise Refused(f"the chunk tables take more than {MAX_TABLES_BYTES} bytes")
    if sum(image.payload_bytes for image in images) > MAX_SIZE_BYTES:
        raise Refused(f"the payload takes more than {MAX_SIZE_BYTES} bytes")
    return Manifest(
        bundle_id=hashlib.sha256(data).digest(),
        compatible=text.plain(tlv.one(found, _COMPATIBLE, what), 128, "the field compatible"),
        hardware_revisions=tuple(text.plain(value, 64, "a hardware revision") for value in hardware),
        version=text.matching(text.VERSION, tlv.one(found, _VERSION, what), "version"),
        security_counter=tlv.unsigned(tlv.one(found, _COUNTER, what), 8, MAX_COUNTER, "the security counter"),
        min_updater=text.matching(_UPDATER, found[_MIN_UPDATER][0], "minimum updater version") if found[_MIN_UPDATER] else "",
        build_time=tlv.unsigned(tlv.one(found, _BUILD_TIME, what), 8, MAX_COUNTER, "the build time"),
        description=text.plain(found[_DESCRIPTION][0], 4096, "the description", lines=True) if found[_DESCRIPTION] else "",
        flags=flags,
        images=images,
        sealing=seal,
    )


def _decode_image(value: bytes, *, sealed: bool) -> Image:
    what = "an image"
    found = tlv.unpack(value, _IMAGE_TAGS, what)
    name = text.matching(text.NAME, tlv.one(found, _NAME, what), "image name")
    what = f"image {name}"
    kind = tlv.unsigned(tlv.one(found, _KIND, what), 1, 255, f"{what}'s kind")
    codec = tlv.unsigned(tlv.one(found, _CODEC, what), 1, 255, f"{what}'s codec")
    if kind not in _KIND_NAMES:
        raise tlv.newer(f"{what} (kind {kind})")
    if codec not in _CODEC_NAMES:
        raise tlv.newer(f"{what} (codec {codec})")
    image = Image(
        name=name,
        kind=_KIND_NAMES[kind],
        size_bytes=tlv.unsigned(tlv.one(found, _SIZE, what), 8, MAX_SIZE_BYTES, f"{what}'s size"),
        codec=_CODEC_NAMES[codec],
        table_sha256=_digest(tlv.one(found, _TABLE_SHA256, what), f"{what}'s table hash"),
        table_bytes=tlv.unsigned(tlv.one(found, _TABLE_BYTES, what), 8, MAX_TABLES_BYTES, f"{what}'s table length"),
        payload_bytes=tlv.unsigned(tlv.one(found, _PAYLOAD_BYTES, what), 8, MAX_SIZE_BYTES, f"{what}'s payload length"),
        verity_root=_digest(found[_VERITY][0], f"{what}'s verity root") if found[_VERITY] else None,
        sealed=sealed,
    )
    if image.kind is ImageKind.RAW and not image.size_bytes:
        raise Refused(f"{what} is empty")
    return image


def _digest(value: bytes, what: str) -> bytes:
    if len(value) != SHA256_BYTES:
        raise Refused(f"{what} has {len(value)} bytes instead of {SHA256_BYTES}")
    return value
