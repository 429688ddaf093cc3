"""The bundle's head: every flipped byte, every truncation, sizes, bounds, and what is read before trust."""

from __future__ import annotations

import hashlib
import struct
import time
from collections import deque
from collections.abc import Callable
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import AbupdateError, Failed, Refused
from abupdate.formats import bundle, chunktable
from abupdate.formats.bundle import HEADER, Envelope, Head, Open, Signed
from abupdate.formats.codec import Decoder
from abupdate.formats.trusted import opener
from abupdate.model import Codec, Image, ImageKind, Keyring


def accept(ring: Keyring) -> Open:
    """The check that a device makes between the two steps."""
    return opener(ring)


def as_file(data: bytes, ring: Keyring) -> Head:
    """Read the head as from a file of that size."""
    return bundle.read_head(BytesIO(data).read, len(data), accept(ring))


def as_stream(data: bytes, ring: Keyring) -> Head:
    """Read the head as from a pipe."""
    return bundle.read_head(BytesIO(data).read, None, accept(ring))


def test_what_was_built_is_read_back(small_bundle: bytes, small_images: dict[str, bytes], ring: Keyring) -> None:
    head = as_file(small_bundle, ring)
    manifest = head.signed.manifest
    assert (manifest.compatible, manifest.version, manifest.security_counter) == ("acme-gateway", "1.2.0", 7)
    assert manifest.hardware_revisions == ("r3", "r4")
    assert (manifest.description, manifest.min_updater, manifest.flags) == ("two\nlines", "0.1", frozenset())
    assert manifest.bundle_id == hashlib.sha256(head.signed.manifest_bytes).digest()
    assert head.signed.header.total_bytes == len(small_bundle)
    decoder = Decoder()
    for name, data in small_images.items():
        start = head.signed.payload_offset(name)
        assert head.signed.image(name).size_bytes == len(data)
        position = 0
        for chunk in head.tables.chunks(name):
            stored = small_bundle[start + chunk.stored_offset : start + chunk.stored_offset + chunk.stored_size]
            assert chunk.offset == position
            piece = data[position : position + chunk.size]
            assert decoder.plain(chunk, head.signed.image(name).codec, stored) == piece
            assert chunk.sha256 == hashlib.sha256(piece).digest()
            assert chunk.stored_sha256 == (bytes(32) if chunk.zero else hashlib.sha256(stored).digest())
            assert chunk.probe == hashlib.sha256(piece[:4096]).digest()[:8]
            assert chunk.zero == (not any(piece))
            position += chunk.size
        assert position == len(data)
    sorts = {(chunk.zero, chunk.raw) for chunk in head.tables.chunks("rootfs")}
    assert sorts == {(False, True), (True, False), (False, False)}
    assert {chunk.raw for chunk in head.tables.chunks("boot")} == {False}
    for lookup in (head.signed.image, head.signed.payload_offset, head.tables.chunks):
        with pytest.raises(KeyError):
            lookup("other")


@pytest.mark.parametrize("mask", [0x01, pytest.param(0x80, marks=pytest.mark.slow), pytest.param(0xFF, marks=pytest.mark.slow)])
def test_every_flipped_byte_of_the_head_is_refused(small_bundle: bytes, ring: Keyring, mask: int) -> None:
    length = as_file(small_bundle, ring).signed.header.head_bytes
    assert length > 1000
    for position in range(length):
        damaged = bytearray(small_bundle)
        damaged[position] ^= mask
        with pytest.raises(Refused):
            as_file(bytes(damaged), ring)
        with pytest.raises(Refused):
            as_stream(bytes(damaged), ring)
        with pytest.raises(Refused):
            bundle.parse_stored_head(bytes(damaged[:length]), accept(ring))


def test_every_truncation(small_bundle: bytes, ring: Keyring) -> None:
    length = as_file(small_bundle, ring).signed.header.head_bytes
    for cut in range(len(small_bundle)):
        with pytest.raises(Refused):
            as_file(small_bundle[:cut], ring)
        if cut < length:
            with pytest.raises(Failed):
                as_stream(small_bundle[:cut], ring)
            # A file that gets shorter after its size was taken.
            with pytest.raises(Refused):
                bundle.read_head(BytesIO(small_bundle[:cut]).read, len(small_bundle), accept(ring))
            with pytest.raises(Refused):
                bundle.parse_stored_head(small_bundle[:cut])
    assert as_stream(small_bundle[:length], ring).raw == small_bundle[:length]


def test_a_file_that_is_too_long_is_refused(small_bundle: bytes, ring: Keyring) -> None:
    for tail in (b"\0", b"more", small_bundle):
        with pytest.raises(Refused, match="header says"):
            as_file(small_bundle + tail, ring)


def test_what_is_no_bundle(ring: Keyring) -> None:
    for data in (b"PK\x03\x04", b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(5000)):
        for read in (as_file, as_stream):
            with pytest.raises(Refused, match="not a bundle"):
                read(data, ring)
    with pytest.raises(Refused):
        as_file(b"", ring)
    with pytest.raises(Failed):
        as_stream(b"", ring)


def test_the_stored_head_is_the_head(small_bundle: bytes, ring: Keyring) -> None:
    head = as_file(small_bundle, ring)
    length = head.signed.header.head_bytes
    assert head.raw == small_bundle[:length]
    again = bundle.parse_stored_head(head.raw)
    assert again == head
    for tail in (b"\0", small_bundle[length:]):
        with pytest.raises(Refused, match="longer"):
            bundle.parse_stored_head(head.raw + tail)


def test_what_is_kept_of_a_head_is_all_but_its_chain(small_bundle: bytes, ring: Keyring) -> None:
    plain = as_file(small_bundle, ring)
    assert plain.kept == plain.raw
    signed = plain.signed
    block = signed.raw[HEADER.size + len(signed.manifest_bytes) :]
    start = bundle.build_head(signed.manifest_bytes, block, signed.header.tables_bytes, signed.header.payload_bytes, b"of keyrings")
    data = start + small_bundle[len(signed.raw) :]
    chained = bundle.read_head(BytesIO(data).read, len(data))
    assert (chained.signed.chain, chained.kept) == (b"of keyrings", plain.raw)


def test_tables_are_not_read_before_the_signatures_are_accepted(small_bundle: bytes, ring: Keyring) -> None:
    source = BytesIO(small_bundle)
    signed = bundle.read_signed(source.read, len(small_bundle))
    assert source.tell() == len(signed.raw)
    source = BytesIO(small_bundle)

    def refuse(envelope: Envelope) -> Signed:
        raise Refused("not trusted")

    with pytest.raises(Refused, match="not trusted"):
        bundle.read_head(source.read, len(small_bundle), refuse)
    assert source.tell() == len(signed.raw)


def header(**changes: int) -> bytes:
    """A header with consistent lengths, but for the changes."""
    names = ("version", "flags", "manifest", "signatures", "chain", "tables", "payload")
    fields = dict(zip(names, (1, 0, 300, 100, 0, 1000, 5000), strict=True)) | {name: changes[name] for name in changes if name in names}
    total = changes.get("total", HEADER.size + sum(fields[name] for name in names[2:]))
    return HEADER.pack(bundle.MAGIC, *fields.values(), total & (2**64 - 1), bytes(32), bytes([0] * 15 + [changes.get("zeros", 0)]))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (header(version=2), "newer"),
        (header(version=0), "newer"),
        (header(flags=1), "newer"),
        (header(flags=0x8000), "newer"),
        (header(zeros=1), "newer"),
        (header(manifest=0), "manifest"),
        (header(manifest=65537), "manifest"),
        (header(manifest=2**32 - 1), "manifest"),
        (header(signatures=16385), "signatures"),
        (header(chain=2**18 + 1), "bounds"),
        (header(tables=2**26 + 1), "bounds"),
        (header(tables=2**64 - 1), "bounds"),
        (header(payload=2**64 - 1), "bounds"),
        (header(total=0), "add up"),
        (header(total=2**64 - 1), "add up"),
        # The sum of the lengths in 32 bits: CVE-2026-34155's kind of mistake.
        (header(payload=2**32 + 5000, total=HEADER.size + 6400), "add up"),
    ],
)
def test_a_header_is_refused_before_anything_else_is_read(data: bytes, text: str) -> None:
    source = BytesIO(data + bytes(1000))
    with pytest.raises(Refused, match=text):
        bundle.read_signed(source.read, None)
    assert source.tell() == HEADER.size


class Meter:
    """A source that counts what is asked of it."""

    def __init__(self, data: bytes) -> None:
        self.source = BytesIO(data)
        self.largest = 0

    def read(self, count: int) -> bytes:
        """As much as there is."""
        self.largest = max(self.largest, count)
        return self.source.read(count)


@given(data=st.data(), stream=st.booleans())
def test_fuzz_gives_refusals_and_failures_only(small_bundle: bytes, ring: Keyring, data: st.DataObject, stream: bool) -> None:
    length = struct.unpack_from("<Q", small_bundle, 24)[0] + 900
    start = data.draw(st.integers(0, length))
    end = data.draw(st.integers(start, length))
    mutated = small_bundle[:start] + data.draw(st.binary(max_size=100)) + small_bundle[end:]
    meter = Meter(mutated)
    try:
        head = bundle.read_head(meter.read, None if stream else len(mutated), accept(ring))
    except (Refused, Failed):
        pass
    else:
        assert head.raw == small_bundle[: len(head.raw)]
    assert meter.largest <= 1024 * 1024


@given(st.binary(max_size=600), st.booleans())
def test_fuzz_behind_a_good_magic(data: bytes, stream: bool) -> None:
    whole = bundle.MAGIC + data
    with pytest.raises(AbupdateError) as caught:
        bundle.read_head(BytesIO(whole).read, None if stream else len(whole))
    assert type(caught.value) in ((Refused, Failed) if stream else (Refused,))


def rebuilt(small_bundle: bytes, edit: Callable[[bytearray], None]) -> tuple[Head, bytes]:
    """The rootfs table of the small bundle after an edit, with the head to hold it against."""
    head = bundle.read_head(BytesIO(small_bundle).read, len(small_bundle))
    table = bytearray(head.tables.raw[: head.signed.image("rootfs").table_bytes])
    edit(table)
    return head, bytes(table)


def put(offset: int, layout: str, *values: int | bytes) -> Callable[[bytearray], None]:
    """An edit that writes values at an offset of the table."""
    return lambda table: struct.pack_into(layout, table, offset, *values)


ENTRY_0, ENTRY_1, ENTRY_2 = (chunktable.HEADER.size + number * chunktable.ENTRY.size for number in range(3))


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (put(0, "<I", 4), "length"),
        (put(0, "<I", 2**32 - 1), "length"),
        (put(4, "<I", 1), "newer"),
        (put(8, "<I", 1), "newer"),
        (put(12, "<I", 1), "newer"),
        (put(ENTRY_0 + 8, "<I", 4), "newer"),
        (put(ENTRY_0 + 8, "<I", 2**31), "newer"),
        (put(ENTRY_0, "<I", 0), "size"),
        (put(ENTRY_0, "<I", 4095), "size"),
        (put(ENTRY_0, "<I", chunktable.MAX_CHUNK_BYTES + 4096), "size"),
        # Raw, but the stored size differs; zero and raw at once; raw without the mark.
        (put(ENTRY_0 + 4, "<I", 4095), "contradicts"),
        (put(ENTRY_0 + 8, "<I", 3), "contradicts"),
        (put(ENTRY_0 + 8, "<I", 0), "contradicts"),
        (put(ENTRY_0 + 52, "32s", bytes(32)), "contradicts"),
        (put(ENTRY_0 + 12, "8s", bytes(8)), "contradicts"),
        # A zero chunk with stored bytes, a stored hash or another hash than that of zeros.
        (put(ENTRY_1 + 4, "<I", 1), "contradicts"),
        (put(ENTRY_1 + 52, "32s", b"\x01" * 32), "contradicts"),
        (put(ENTRY_1 + 20, "32s", b"\x01" * 32), "contradicts"),
        # Encoded and not smaller, or nothing at all.
        (put(ENTRY_2 + 4, "<I", 4096), "contradicts"),
        (put(ENTRY_2 + 4, "<I", 0), "contradicts"),
        # Another stored size: the sum is wrong.
        (put(ENTRY_2 + 4, "<I", 1), "add up"),
    ],
)
def test_tables_that_break_a_rule(small_bundle: bytes, edit: Callable[[bytearray], None], text: str) -> None:
    head, table = rebuilt(small_bundle, edit)
    with pytest.raises(Refused, match=text):
        chunktable.check(memoryview(table), head.signed.image("rootfs"))


def test_zero_chunks_of_many_sizes_cost_no_time() -> None:
    """`info` reads the tables of bundles that nobody signed: hashing 4 MiB of zeros anew for each entry would take half an hour."""
    sizes = [chunktable.ALIGN_BYTES * (1 + number % 1024) for number in range(5000)]
    entries = [chunktable.ENTRY.pack(size, 0, chunktable.FLAG_ZERO, *reversed(chunktable.zero_digests(size)), bytes(32)) for size in sizes]
    table = chunktable.pack_header(len(sizes)) + b"".join(entries)
    image = Image("rootfs", ImageKind.RAW, sum(sizes), Codec.NONE, bytes(32), len(table), 0)
    chunktable.zero_digests.cache_clear()
    started = time.thread_time()
    chunktable.check(table, image)
    assert time.thread_time() - started < 2


@pytest.mark.parametrize("size", [1, 4095, 4096, 65535, 65536, 65537, 3 << 20, chunktable.MAX_CHUNK_BYTES - 1, chunktable.MAX_CHUNK_BYTES])
def test_digests_of_zeros(size: int) -> None:
    digest, head = chunktable.zero_digests(size)
    assert digest == hashlib.sha256(bytes(size)).digest()
    assert head == hashlib.sha256(bytes(min(size, 4096))).digest()[:8]


def test_chunks_of_a_large_table_are_made_one_at_a_time() -> None:
    import tracemalloc

    count = 50_000
    digest, head = chunktable.zero_digests(4096)
    entry = chunktable.ENTRY.pack(4096, 0, chunktable.FLAG_ZERO, head, digest, bytes(32))
    table = chunktable.pack_header(count) + entry * count
    tracemalloc.start()
    try:
        last = deque(chunktable.chunks(memoryview(table)), maxlen=1).pop()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last.offset == (count - 1) * 4096
    assert peak < 100_000
