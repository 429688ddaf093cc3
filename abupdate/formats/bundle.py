"""The signed bundle (`.abu`), byte by byte: this text is the specification; layout.py says the same in construct, tested to agree.

All numbers are little-endian and unsigned; nothing is padded; one value has one encoding; what is not said here is refused.

    header | manifest | signatures | chain | chunk tables | payload

**Header**, 96 bytes:

    0   8  magic 89 41 42 55 0D 0A 1A 0A
    8   2  format version, 1
    10  2  flags, 0 (any bit that is set needs a newer abupdate)
    12  4  length of the manifest, 1 to 65536
    16  4  length of the signatures, at most 16384
    20  4  length of the chain, at most 262144
    24  8  length of all chunk tables, at most 64 MiB
    32  8  length of the payload
    40  8  length of the whole file: 96 and the five lengths above
    48 32  SHA-256 of signatures ‖ chain (against damage; it protects nothing)
    80 16  zeros

Everything before the payload is the head. A device keeps the head of what it has written, with an empty chain. The bundle's id is
the SHA-256 of the manifest's bytes. A reader that holds a keyring verifies the signatures over the manifest's raw bytes before it
decodes them.

**Manifest**: a TLV sequence (tlv.py). Texts are UTF-8 without control characters and without bidirectional controls.

    0001  format of the manifest, u16, 1
    0002  compatible, text of 1 to 128 bytes
    0003  hardware revision, text of 1 to 64 bytes; a list of 0 to 64, strictly ascending by bytes; none: every revision
    0004  version, 1 to 64 of A-Z a-z 0-9 . + ~ : _ -, starting with a letter or digit
    0005  security counter, u64, below 2^63
    0006  minimum updater version, 1 to 4 numbers below 10^6 without leading zeros, joined by dots; absent: any
    0007  build time, u64, seconds since 1970, below 2^63
    0008  description, text of 1 to 4096 bytes that may hold line feeds; absent: none
    0009  flag, a list, strictly ascending: `security-fix`; another one needs a newer abupdate
    0020  image, a nested sequence; a list of 1 to 32, in the order in which tables and payloads are stored
          0001  name, 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit; each name once
          0002  kind, u8: 0 raw, 1 file, 2 tree, 3 container, 4 agent
          0003  codec, u8: 0 none, 1 zstd
          0004  size on the slot, u64, at most 2^60; not 0 for raw
          0005  length of the chunk table, u64
          0006  SHA-256 of the chunk table
          0007  length of the image's payload, u64; they add up to the header's at most 2^60
          0008  dm-verity root hash, 32 bytes; optional
    0030  sealing, a nested sequence; absent: the payload is not encrypted
          0001  suite, u8: 1 (another one needs a newer abupdate)
          0002  seal id, 32 random bytes
          0003  ephemeral X25519 public key, 32 bytes; below 2^255 - 19, and not a point of small order
          0004  recipient, 56 bytes: key id (8), wrapped content key (48); a list of 1 to 512, strictly ascending by key id

Other tags without bit 15 need a newer abupdate; an image's 0009 for a table that is
a hash tree and 000A for patch groups. Tags with bit 15 may be passed over.

**Signatures**: the block of signature.py over the manifest, in the domain `bundle`. An empty block is an unsigned bundle.

**Chain**: the keyring's rotations (rotation.py), outside what the release key signs: keyring files one after the other, each version
one more than the one before; may be empty. A device walks it from its own version before it looks at the signatures. It is judged
by the keyring and not by the reader of the bundle: a chain that is no chain is refused by whoever holds a keyring against it.

**Chunk tables**, one for each image, in the manifest's order; each 16 bytes and 84 for each chunk:

    0   4  number of chunks
    4  12  flags, number of compression groups, number of patch groups, u32 each: 0 (another value needs a newer abupdate)

    0   4  size on the slot: 1 to 4194304, a multiple of 4096 except the last one's
    4   4  stored size
    8   4  flags: 1 zero, 2 raw; another bit needs a newer abupdate
    12  8  probe: the first 8 bytes of the SHA-256 of the chunk's first 4096 bytes (of all of it where it is shorter)
    20 32  SHA-256 of the bytes on the slot
    52 32  SHA-256 of the stored bytes

Chunks lie on the slot, and their stored bytes in the payload, one after the other without gaps. A zero chunk is all zeros:
stored size 0, stored hash 32 zero bytes. Under the codec none every other chunk is stored as it is, with equal sizes and
hashes. Under zstd a raw chunk is stored so too; any other is one zstd frame (RFC 8878) that is smaller than the chunk,
declares its content's size, has a window of at most 8 MiB and no dictionary, and nothing follows the frame. Sizes and stored
sizes add up to what the manifest says.

**Sealing**. In a sealed bundle every chunk but a zero one is stored encrypted: 28 bytes longer than above, with a stored hash of
its own. Hashes and probe of the slot's bytes stay what they are, so what lies on a slot is recognised and verified without a key.
A recipient's key id is the first 8 bytes of the SHA-256 of its raw X25519 public key. Suite 1, with ‖ for concatenation:

    content key = 32 random bytes, new for every bundle
    wrap key    = HKDF-SHA256 (RFC 5869) of X25519(ephemeral, recipient), salt: seal id,
                  info: "abupdate seal 1 wrap" 00 ‖ ephemeral public key ‖ recipient's public key; 32 bytes
    wrapped     = ChaCha20-Poly1305 (RFC 8439) of the content key under the wrap key, nonce: 12 zero bytes, no associated data
    chunk key   = HKDF-Expand-SHA256 of the content key, info: "abupdate seal 1 chunk" 00 ‖ seal id ‖ length of the image's name, u8 ‖
                  name ‖ offset on the slot, u64 ‖ size on the slot, u32 ‖ SHA-256 of the bytes on the slot; 32 bytes
    stored      = nonce (12 random bytes) ‖ ChaCha20-Poly1305 of what is stored without sealing, under the chunk key, no associated data

So a chunk opens only in its own place in its own bundle, and whoever has the content key may seal it again with another nonce.
A key for each chunk, and not one key with the place as associated data: a device that makes nonces from bad randomness cannot
use one nonce for two different chunks under one key. The signature covers all of it (it is in the manifest), and the stored hash
is verified before anything is decrypted. Recipients cannot be added later, since that is another manifest and another bundle.

Without a key one still learns everything in the head: versions, recipients' key ids, sizes, which chunks are zero, how well each one
compresses, and by their hashes which chunks equal one another or something that one has or can guess. Sealing hides what cannot
be guessed; a short secret in an otherwise known block can be tried out. It does not say who built the bundle: the signatures do.

**Payload**: the stored bytes of all images' chunks, in order. Nothing follows.

A file whose size is not the header's, and any fault in the head, is Refused. A stream that ends early is Failed, since the
next try may bring the rest.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from abupdate.errors import Failed, Refused
from abupdate.formats import chunktable, manifest, rotation, signature, tlv
from abupdate.model import Chunk, Image, Manifest, Signature

MAGIC = b"\x89ABU\r\n\x1a\n"
FORMAT_VERSION = 1
HEADER = struct.Struct("<8sHHIIIQQQ32s16s")
_PIECE_BYTES = 1024 * 1024

Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Header:
    """The lengths of a bundle's parts, in bytes, and the plain hash over signatures and chain."""

    manifest_bytes: int
    signatures_bytes: int
    chain_bytes: int
    tables_bytes: int
    payload_bytes: int
    envelope_sha256: bytes

    @property
    def head_bytes(self) -> int:
        """Length of everything before the payload."""
        return HEADER.size + self.manifest_bytes + self.signatures_bytes + self.chain_bytes + self.tables_bytes

    @property
    def total_bytes(self) -> int:
        """Length of the whole bundle."""
        return self.head_bytes + self.payload_bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """Header, manifest, signatures and chain as they were read: the manifest and the chain are bytes that nobody has decoded.

    raw: all of their bytes. is_stream: an early end of what follows may be mended by another try.
    """

    header: Header
    manifest_bytes: bytes
    signatures: tuple[Signature, ...]
    chain: bytes
    raw: bytes
    is_stream: bool = False


@dataclass(frozen=True, slots=True)
class Signed:
    """An envelope and its manifest, decoded. Made by `decode`, which believes it, or by `trusted.open_with`, which verifies it before."""

    envelope: Envelope
    manifest: Manifest

    @property
    def header(self) -> Header:
        """The lengths."""
        return self.envelope.header

    @property
    def manifest_bytes(self) -> bytes:
        """What was signed."""
        return self.envelope.manifest_bytes

    @property
    def signatures(self) -> tuple[Signature, ...]:
        """All signatures, by whomever."""
        return self.envelope.signatures

    @property
    def chain(self) -> bytes:
        """The keyring's rotations."""
        return self.envelope.chain

    @property
    def raw(self) -> bytes:
        """The envelope's bytes."""
        return self.envelope.raw

    def image(self, name: str) -> Image:
        """The image of that name. Raises KeyError."""
        for image in self.manifest.images:
            if image.name == name:
                return image
        raise KeyError(name)

    def payload_offset(self, name: str) -> int:
        """Where the stored bytes of an image start, from the start of the file. Raises KeyError."""
        offset = self.header.head_bytes
        for image in self.manifest.images:
            if image.name == name:
                return offset
            offset += image.payload_bytes
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Tables:
    """The chunk tables, verified against the manifest. raw: their bytes, in the manifest's order."""

    signed: Signed
    raw: bytes

    def chunks(self, name: str) -> Iterator[Chunk]:
        """The chunks of an image, made one at a time. Raises KeyError."""
        offset = 0
        for image in self.signed.manifest.images:
            if image.name == name:
                return chunktable.chunks(memoryview(self.raw)[offset : offset + image.table_bytes])
            offset += image.table_bytes
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Head:
    """Everything before the payload."""

    signed: Signed
    tables: Tables

    @property
    def raw(self) -> bytes:
        """The head's bytes as they were read."""
        return self.signed.raw + self.tables.raw

    @property
    def kept(self) -> bytes:
        """What `state_dir` keeps, from which `parse_stored_head` makes it again: a head without a chain.

        The chain's keyrings have a place of their own there, and a release that knows no chains reads this head too.
        """
        signed = self.signed
        start = HEADER.size + signed.header.manifest_bytes
        block = signed.raw[start : start + signed.header.signatures_bytes]
        return build_head(signed.manifest_bytes, block, signed.header.tables_bytes, signed.header.payload_bytes) + self.tables.raw


Open = Callable[[Envelope], Signed]
"""Decides about an envelope and decodes it: `decode`, or one that verifies signatures first. Raises Refused."""


def decode(envelope: Envelope) -> Signed:
    """Decode the manifest. Verifies no signature: for those who hold no keyring, or have held it against the envelope. Raises Refused."""
    parsed = manifest.decode(envelope.manifest_bytes)
    if sum(image.table_bytes for image in parsed.images) != envelope.header.tables_bytes:
        raise Refused("the header and the manifest disagree about the length of the chunk tables")
    if sum(image.payload_bytes for image in parsed.images) != envelope.header.payload_bytes:
        raise Refused("the header and the manifest disagree about the length of the payload")
    return Signed(envelope, parsed)


def read_signed(read: Read, size_bytes: int | None, open_: Open = decode) -> Signed:
    """Read header, manifest, signatures and chain from the start of a bundle: at most 96 + 65536 + 16384 + 262144 bytes.

    `read(n)` returns exactly n bytes, fewer only at the end. size_bytes: of the file, None for a stream. open_: decides about the
    signatures. Raises Refused for a fault (a file that ends early too), Failed for a stream that ends early.
    """
    return open_(_read_envelope(_Reader(read, is_file=size_bytes is not None), size_bytes))


def read_tables(read: Read, signed: Signed) -> Tables:
    """Read the chunk tables that follow, and verify them against the manifest. The caller has checked the signatures before.

    At most 64 MiB are held. Raises Refused, and Failed where a stream ends early.
    """
    return _read_tables(_Reader(read, is_file=not signed.envelope.is_stream), signed)


def read_head(read: Read, size_bytes: int | None, open_: Open = decode) -> Head:
    """Both steps; the tables are not read before `open_` has accepted the envelope."""
    signed = read_signed(read, size_bytes, open_)
    return Head(signed, read_tables(read, signed))


def parse_stored_head(data: bytes, open_: Open = decode) -> Head:
    """Decode a head that was kept without its payload (`Head.kept`). open_: decides about the signatures. Raises Refused."""
    view = memoryview(data)
    position = 0

    def read(count: int) -> bytes:
        nonlocal position
        piece = bytes(view[position : position + count])
        position += len(piece)
        return piece

    reader = _Reader(read, is_file=True)
    signed = open_(_read_envelope(reader, None))
    tables = _read_tables(reader, signed)
    if position != len(data):
        raise Refused("the stored head is longer than its header says")
    return Head(signed, tables)


def build_head(manifest_bytes: bytes, signatures: bytes, tables_bytes: int, payload_bytes: int, chain: bytes = b"") -> bytes:
    """The head up to the chunk tables. signatures: a block made by `signature.pack_block`. chain: keyring files, one after the other.

    Raises Refused where a bound is broken.
    """
    header = HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        0,
        len(manifest_bytes),
        len(signatures),
        len(chain),
        tables_bytes,
        payload_bytes,
        HEADER.size + len(manifest_bytes) + len(signatures) + len(chain) + tables_bytes + payload_bytes,
        hashlib.sha256(signatures + chain).digest(),
        bytes(16),
    )
    _decode_header(header)
    return header + manifest_bytes + signatures + chain


class _Reader:
    """Reads exact lengths and blames an early end on the right party."""

    def __init__(self, read: Read, *, is_file: bool) -> None:
        self._read = read
        self.is_file = is_file

    def early_end(self) -> Refused | Failed:
        if self.is_file:
            return Refused("the bundle is cut off", "copy or download it again")
        return Failed("the bundle's stream ended early", "try again")

    def take(self, count: int) -> bytes:
        pieces: list[bytes] = []
        while count:
            piece = self._read(min(count, _PIECE_BYTES))
            if not piece:
                raise self.early_end()
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


def _read_envelope(reader: _Reader, size_bytes: int | None) -> Envelope:
    magic = reader._read(len(MAGIC))
    if not MAGIC.startswith(magic) or (reader.is_file and magic != MAGIC):
        raise Refused("this is not a bundle", "`abupdate bundle create` makes one")
    if magic != MAGIC:
        raise reader.early_end()
    start = magic + reader.take(HEADER.size - len(magic))
    header = _decode_header(start)
    if size_bytes is not None and size_bytes != header.total_bytes:
        raise Refused(f"the bundle has {size_bytes} bytes and its header says {header.total_bytes}", "copy or download it again")
    manifest_bytes = reader.take(header.manifest_bytes)
    block = reader.take(header.signatures_bytes)
    chain = reader.take(header.chain_bytes)
    if hashlib.sha256(block + chain).digest() != header.envelope_sha256:
        raise Refused("the bundle's signatures are damaged", "copy or download it again")
    signatures = signature.unpack_block(block)
    return Envelope(header, manifest_bytes, signatures, chain, start + manifest_bytes + block + chain, not reader.is_file)


def _decode_header(data: bytes) -> Header:
    magic, version, flags, *lengths, digest, zeros = HEADER.unpack(data)
    manifest_bytes, signatures_bytes, chain_bytes, tables_bytes, payload_bytes, total_bytes = lengths
    if magic != MAGIC:
        raise Refused("this is not a bundle", "`abupdate bundle create` makes one")
    if version != FORMAT_VERSION:
        raise tlv.newer(f"bundle format {version}")
    if flags or any(zeros):
        raise tlv.newer("the bundle (header flags)")
    if not 1 <= manifest_bytes <= manifest.MAX_MANIFEST_BYTES:
        raise Refused(f"the manifest has {manifest_bytes} bytes instead of 1 to {manifest.MAX_MANIFEST_BYTES}")
    if signatures_bytes > signature.MAX_BLOCK_BYTES:
        raise Refused(f"the signatures take {signatures_bytes} bytes, more than {signature.MAX_BLOCK_BYTES}")
    if chain_bytes > rotation.MAX_CHAIN_BYTES or tables_bytes > manifest.MAX_TABLES_BYTES or payload_bytes > manifest.MAX_SIZE_BYTES:
        raise Refused("the lengths in the bundle's header are out of bounds")
    header = Header(manifest_bytes, signatures_bytes, chain_bytes, tables_bytes, payload_bytes, digest)
    if total_bytes != header.total_bytes:
        raise Refused("the lengths in the bundle's header do not add up")
    return header


def _read_tables(reader: _Reader, signed: Signed) -> Tables:
    raw = reader.take(signed.header.tables_bytes)
    offset = 0
    for image in signed.manifest.images:
        table = memoryview(raw)[offset : offset + image.table_bytes]
        if hashlib.sha256(table).digest() != image.table_sha256:
            raise Refused(f"the chunk table of image {image.name} is damaged", "copy or download the bundle again")
        chunktable.check(table, image)
        offset += image.table_bytes
    return Tables(signed, raw)
