"""What is fuzzed: for each parser a function that takes any bytes and asserts what must hold, a mutation that knows its shape, and
the memory that it may take.

A function returns True where the parser accepted the input. It fails on any error that is not the project's own, and where an
accepted input, built again from what was read, gives other bytes. `check` adds the bounds of memory and time.
"""

from __future__ import annotations

import hashlib
import json
import time
import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from random import Random

import zstandard

from abupdate import config
from abupdate.bootloaders import ubootvars
from abupdate.errors import ConfigError, Failed, Refused, StoreUnreadable
from abupdate.formats import (
    autoboot,
    bootanswer,
    bootentry,
    bundle,
    chunktable,
    fleetlog,
    fwenvconfig,
    keyring,
    manifest,
    mountinfo,
    peerhealth,
    record,
    rotation,
    signature,
    tlv,
    ubootenv,
    verity,
)
from abupdate.formats.bundle import Head
from abupdate.formats.codec import Decoder
from abupdate.formats.fleetlog_spec import log_spec
from abupdate.formats.sealing import OVERHEAD_BYTES
from abupdate.formats.ubootenv import Scheme
from abupdate.health.results import last_line
from abupdate.model import Chunk, Codec, Image, ImageKind
from tests.fuzz import boardtargets, efitarget, fleettargets, grubtarget, linetarget, shapes
from tests.fuzz.shapes import Mutation

KIB, MIB = 1 << 10, 1 << 20
SCHEMES = tuple(Scheme)
FRAGMENT = b"\x1c"
# Generous: a machine that is busy, an interpreter that is traced. A parser with a square in it takes minutes.
TIME_BOUND_S = 5.0


@dataclass(frozen=True, slots=True)
class Target:
    """A parser under test. Peak of Python's memory while it runs: at most fixed_bytes + factor * length of the input."""

    run: Callable[[bytes], bool]
    mutate: Mutation
    fixed_bytes: int
    factor: int


def check(target: Target, data: bytes, *, memory: bool = True) -> bool:
    """Run one input within the target's bounds; memory: count that too, which takes six times as long. Raises whatever is a finding."""
    if memory:
        tracemalloc.start()
    try:
        started = time.thread_time()
        accepted = target.run(data)
        took_s = time.thread_time() - started
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        if memory:
            tracemalloc.stop()
    bound = target.fixed_bytes + target.factor * len(data)
    assert peak <= bound, f"{peak} bytes of memory for {len(data)} bytes of input, the bound is {bound}"
    assert took_s <= TIME_BOUND_S, f"{took_s:.1f} s for {len(data)} bytes"
    return accepted


def _agree(head: Head, data: bytes) -> None:
    """A head that was accepted, built again from its values."""
    signed = head.signed
    assert head.raw == data[: len(head.raw)]
    assert bundle.parse_stored_head(head.raw) == head
    assert bundle.parse_stored_head(head.kept).tables.raw == head.tables.raw
    block = signature.pack_block(signed.signatures)
    tables = b"".join(
        chunktable.pack_header(len(chunks)) + b"".join(map(chunktable.pack_entry, chunks))
        for chunks in (list(head.tables.chunks(image.name)) for image in signed.manifest.images)
    )
    assert tables == head.tables.raw
    if not shapes.has_optional(signed.manifest_bytes, shapes.IMAGES):
        assert manifest.encode(signed.manifest) == signed.manifest_bytes
    if not shapes.has_optional(signed.raw[bundle.HEADER.size + len(signed.manifest_bytes) :][: signed.header.signatures_bytes], {}):
        parts = shapes.BundleParts(signed.manifest_bytes, block, signed.chain, [tables], b"")
        lengths = signed.header.payload_bytes, signed.header.total_bytes
        assert parts.join()[bundle.HEADER.size :] == head.raw[bundle.HEADER.size :]
        assert lengths == (sum(image.payload_bytes for image in signed.manifest.images), len(head.raw) + lengths[0])


def run_bundle(data: bytes) -> bool:
    """A whole bundle: as a file, and as a stream, which must say the same of whole ones."""
    try:
        head = bundle.read_head(BytesIO(data).read, len(data))
    except Refused:
        head = None
    try:
        streamed = bundle.read_head(BytesIO(data).read, None)
    except (Refused, Failed):
        streamed = None
    if head is None:
        # A file has the right length as well; that apart, both are taken or neither.
        assert streamed is None or streamed.signed.header.total_bytes != len(data)
        return False
    assert streamed is not None
    assert streamed.raw == head.raw
    assert head.signed.header.total_bytes == len(data)
    _agree(head, data)
    return True


def run_head(data: bytes) -> bool:
    """A head as it is stored in state_dir."""
    try:
        head = bundle.parse_stored_head(data)
    except Refused:
        return False
    assert head.raw == data
    _agree(head, data)
    return True


def run_manifest(data: bytes) -> bool:
    """What the release key signs."""
    try:
        decoded = manifest.decode(data)
    except Refused:
        return False
    again = manifest.encode(decoded)
    assert again == data or shapes.has_optional(data, shapes.IMAGES)
    assert manifest.decode(again).images == decoded.images
    return True


def run_signatures(data: bytes) -> bool:
    """A block of signatures."""
    try:
        found = signature.unpack_block(data)
    except Refused:
        return False
    assert signature.pack_block(found) == data or shapes.has_optional(data, {})
    return True


def run_tlv(data: bytes) -> bool:
    """Any sequence of records."""
    known = {1: True, 2: False, 0x20: True}
    try:
        found = tlv.unpack(data, known, "the sequence")
    except Refused:
        return False
    again = tlv.pack((tag, value) for tag in sorted(found) for value in found[tag])
    assert again == data or shapes.has_optional(data, {})
    return True


def run_table(data: bytes) -> bool:
    """A chunk table behind one byte: the codec, whether the manifest's sums are right, whether the bundle is sealed."""
    if not data:
        return False
    table = data[1:]
    size, stored = shapes.table_sums(table)
    codec = Codec.ZSTD if data[0] & 1 else Codec.NONE
    image = Image(
        "rootfs", ImageKind.RAW, size + (data[0] & 2), codec, bytes(32), len(table), stored + (data[0] & 4), sealed=bool(data[0] & 8)
    )
    try:
        chunktable.check(memoryview(table), image)
    except Refused:
        return False
    assert not data[0] & 6
    offset = stored_offset = count = 0
    packed = [b""]
    for chunk in chunktable.chunks(memoryview(table)):
        assert (chunk.offset, chunk.stored_offset) == (offset, stored_offset)
        assert 0 < chunk.size <= chunktable.MAX_CHUNK_BYTES
        assert 0 <= chunk.stored_size <= chunk.size + (OVERHEAD_BYTES if image.sealed else 0)
        assert (chunk.stored_size == 0) == chunk.zero
        offset, stored_offset, count = offset + chunk.size, stored_offset + chunk.stored_size, count + 1
        packed.append(chunktable.pack_entry(chunk))
    packed[0] = chunktable.pack_header(count)
    assert b"".join(packed) == table
    return True


def run_keyring(data: bytes) -> bool:
    """A keyring file; also whether enough of its root keys signed it, which must end in a word."""
    try:
        ring = keyring.parse(data)
    except Refused:
        return False
    blocks = data[len(data) - int.from_bytes(data[16:20], "little") :]
    if not shapes.has_optional(ring.body, shapes.ROLES) and not shapes.has_optional(blocks, {}):
        assert keyring.build(keyring.encode_body(ring.version, ring.roles), ring.signatures) == data
    with suppress(Refused):
        keyring.check_self_signed(ring)
        keyring.check_test_keys(ring, allowed=False)
    return True


def run_chain(data: bytes) -> bool:
    """Keyring files one after the other."""
    try:
        frames = rotation.split(data)
        rings = [keyring.decode(frame) for frame in frames]
    except Refused:
        return False
    assert b"".join(frame.data for frame in frames) == data
    assert [ring.version for ring in rings] == [frame.version for frame in frames]
    if len(frames) > 1:
        try:
            steps = rotation.walk(rings[0], data, allow_test_keys=True)
        except Refused:
            return False
        assert [step.data for step in steps] == [frame.data for frame in frames[1:]]
        # What a device keeps after each of them leads there again from its own keyring.
        for kept in rotation.advance(rings[0], rings[0], b"", data, allow_test_keys=True):
            assert rotation.recall(rings[0], kept.data).rings[-1] == kept.ring
            assert len(kept.data) <= rotation.MAX_CHAIN_BYTES
    return True


def run_record(data: bytes) -> bool:
    """The record in state_dir: understood, unknown (with its floor) or damaged; what is understood can be written again."""
    unknown: record.RecordUnknown | None = None
    try:
        sequence, decoded = record.decode(data)
    except record.RecordUnknown as error:
        unknown = error
    except record.RecordDamaged:
        return False
    if unknown is not None:
        assert 0 <= unknown.floor < 1 << 64
        return False
    try:
        again = record.encode(decoded, sequence)
    except Failed:
        # Other characters than ASCII take more room when they are written again.
        assert len(data) > record.MAX_PAYLOAD_BYTES // 6
        return True
    twin = record.decode(again)
    assert twin == (sequence, decoded) or "nan" in repr(decoded)
    assert record.encode(twin[1], sequence) == again
    return True


def run_fleetlog(data: bytes) -> bool:
    """The fleet's log: what is whole of it, built again, gives the same bytes, and more can be appended there."""
    try:
        contents = fleetlog.read(data)
    except fleetlog.UnknownVersion:
        return False
    if contents.head is None:
        assert contents.damaged
        return False
    assert fleetlog.HEAD_BYTES <= contents.whole_bytes <= len(data)
    again, end = fleetlog.start(contents.head)
    for records in fleetlog_batches(data[: contents.whole_bytes]):
        added, end = fleetlog.batch(end, records)
        again += added
    assert (again, end) == (data[: contents.whole_bytes], contents.end)
    more, end = fleetlog.batch(end, [(1, b"one"), (2, b"")])
    longer = fleetlog.read(again + more)
    assert longer.records == (*contents.records, (1, b"one"), (2, b""))
    assert longer.end == end
    # Damage to what stands before is damage for good, also when more was appended.
    if contents.records:
        spoiled = again[:-1] + bytes([again[-1] ^ 1]) + more
        assert fleetlog.read(spoiled).damaged
    return bool(contents.records) and not contents.damaged


def fleetlog_batches(data: bytes) -> list[list[tuple[int, bytes]]]:
    """A whole log's records by the calls that appended them, as the declaration reads them."""
    batches: dict[int, list[tuple[int, bytes]]] = {}
    for one in log_spec.parse(data).records:
        batches.setdefault(one.first, []).append((one.kind, one.data))
    return list(batches.values())


def run_environment(data: bytes) -> bool:
    """One copy of U-Boot's environment behind one byte that names the scheme."""
    if not data:
        return False
    scheme, raw = SCHEMES[data[0] % len(SCHEMES)], data[1:]
    try:
        copy = ubootenv.decode(raw, scheme)
    except StoreUnreadable:
        return False
    try:
        again = ubootenv.encode(copy.environment, len(raw), scheme, copy.flag)
    except ConfigError:
        # U-Boot takes data that ends without its closing zeros; we never write such.
        assert b"\0\0" not in raw[ubootenv.header_bytes(scheme) :]
        return True
    assert ubootenv.decode(again, scheme) == copy
    end = raw.find(b"\0\0", ubootenv.header_bytes(scheme))
    start = ubootenv.header_bytes(scheme)
    if raw[start] == 0:
        end = start - 1
    if end >= 0 and not any(raw[end + 1 :]):
        assert again == raw
    copy.environment.get("BOOT_ORDER")
    return True


def run_bootstate(data: bytes) -> bool:
    """Variables, with zero bytes between them, as boot state: read without an error, written and read again they say the same."""
    environment, slots = ubootenv.Environment(tuple(entry for entry in data.split(b"\0") if entry)), ("A", "B")
    state = ubootvars.state_of(environment, slots)
    try:
        again = ubootvars.changed(environment, state, slots)
    except ConfigError:
        assert not state.order
        return False
    seen = ubootvars.state_of(again, slots)
    assert (seen.order, seen.left, seen.trial, seen.policy, seen.floor) == (state.order, state.left, state.trial, state.policy, state.floor)
    ours = (b"BOOT_", b"BOOT_A_", b"BOOT_B_")
    assert [one for one in again.entries if not one.startswith(ours)] == [one for one in environment.entries if not one.startswith(ours)]
    return True


def run_verity(data: bytes) -> bool:
    """A file system's own words on its length (its bytes 0 to 63 and 1024 to 1423), and the verity superblock behind it."""
    head = (data[:64].ljust(1024, b"\0") + data[64:464]).ljust(verity.HEAD_BYTES, b"\0")
    size = verity.filesystem_bytes(head)
    assert 0 <= size < verity.MAX_BYTES
    try:
        offset = verity.superblock_offset(head)
        block = verity.decode(data[464:], offset)
    except ConfigError:
        return False
    assert size <= offset < size + verity.ALIGN_BYTES
    assert 0 < block.data_blocks * block.data_block <= offset
    assert offset + verity.SUPERBLOCK.size <= block.tree_offset(offset) <= offset + 2 * verity.ALIGN_BYTES
    levels = block.levels()
    assert len(levels) < 16
    assert levels[:1] == ((1,) if block.data_blocks > 1 else ())
    return True


def run_fwenv(data: bytes) -> bool:
    """The text of fw_env.config."""
    try:
        found = fwenvconfig.parse(data)
    except ConfigError:
        return False
    lines = [
        f"{item.device} {item.offset} {item.size_bytes:x} {item.sector_bytes:x} {item.sectors:x} {0 if item.lock else 1}" for item in found
    ]
    assert fwenvconfig.parse("\n".join(lines).encode()) == found
    return True


def run_autoboot(data: bytes) -> bool:
    """The Raspberry Pi's autoboot.txt: what is written into it wins, and every foreign line stays."""
    try:
        found = autoboot.parse(data)
    except ConfigError:
        return False
    foreign = found.foreign()
    ours = ("boot_partition", "tryboot_a_b")
    plain = [line for line in found.lines if not line.startswith(("[", "# abupdate ")) and line.partition("=")[0].strip(" \t") not in ours]
    assert [line for line in foreign if not line.startswith("[")] == plain
    for trial, notes in ((3, {"order": "A:1", "trial": "B:1"}), (None, {"order": "A:1"})):
        new = autoboot.changed(found, 2, trial, notes)
        assert new.foreign() == foreign
        assert (new.partition(tryboot=False), new.partition(tryboot=True)) == (2, trial or 2)
        assert new.switches_partitions()
        assert new.notes == notes
        with suppress(ConfigError):
            assert autoboot.parse(autoboot.encode(new)) == new
    return found.partition(tryboot=False) is not None


def run_bootentry(data: bytes) -> bool:
    """A boot entry, and loader.conf: what is read is what is written again, and a setting that is changed is read back."""
    found = bootentry.decode("B", data)
    changed = bootentry.with_setting(data, "default", "slot-*")
    if b"\0" not in data and len(data) < bootentry.MAX_BYTES:
        assert bootentry.setting(changed, "default") == "slot-*"
    first = data.split(b"\n")[0].decode(errors="replace")
    name = bootentry.parse_name(first, ("A", "B"))
    assert name is None or bootentry.parse_name(name.file, ("A", "B")) == name
    if not found.kernel:
        assert not found.on
        return False
    try:
        written = bootentry.encode(found)
    except ConfigError:
        return True
    assert bootentry.decode("B", written) == found
    assert bootentry.is_whole(found, written)
    assert len(written) % bootentry.SECTOR_BYTES == 0
    off = bootentry.decode("B", bootentry.encode(replace(found, on=False)))
    assert off == replace(found, on=False)
    return found.on


def run_bootanswer(data: bytes) -> bool:
    """What a board's own get-state prints; told to set-state and answered by it again, it says the same."""
    slots = ("A", "B")
    try:
        found = bootanswer.parse_answer(data, slots)
    except ConfigError as error:
        problem = error.line
    else:
        problem = ""
    assert len(problem) < 400
    assert problem.isprintable()
    if problem:
        return False
    if found.state is None:
        return True
    told = json.loads(bootanswer.encode_request("commit", found.state, slots))["state"]
    again = {**json.loads(data), "state": {**told, "fresh": found.state.fresh}}
    assert bootanswer.parse_answer(json.dumps(again).encode(), slots) == found
    return True


def run_mounts(data: bytes) -> bool:
    """The kernel's lists of mounts and swap: a line that makes no sense takes no other with it."""
    found = mountinfo.parse_mounts(data)
    assert len(found) <= data.count(b"\n") + 1
    sound = b"9 1 8:1 / /mnt rw - ext4 /dev/sda1 rw"
    assert mountinfo.parse_mounts(data + b"\n" + sound) == (*found, *mountinfo.parse_mounts(sound))
    assert mountinfo.parse_swaps(b"Filename\n" + data.replace(b"\n", b" ") + b"\n/swap file")[-1] == "/swap"
    return bool(found)


def run_config(data: bytes) -> bool:
    """A configuration and its fragments, with 0x1C between them."""
    path = Path("/etc/abupdate/config.toml")
    fragments = data.split(FRAGMENT, 3)
    try:
        settings = config.compose(((path.with_name(f"{number}.toml"), text) for number, text in enumerate(fragments)), path)
    except ConfigError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert refusal.isprintable()
        assert len(refusal) < 2 * config.MAX_LINE_BYTES
        return False
    assert len(settings.slots) == 2
    assert all(place.is_absolute() for slot in settings.slots.values() for place in slot.images.values())
    return True


def run_health(data: bytes) -> bool:
    """The end of what a health program printed."""
    line = last_line(data)
    assert len(line) <= 200
    assert line.isprintable()
    assert line == line.strip()
    line.encode()
    return bool(line)


def run_peers(data: bytes) -> bool:
    """The word of the fleet's daemon for the health check."""
    try:
        found = peerhealth.decode(data)
    except Refused:
        return False
    again = peerhealth.encode(found)
    assert peerhealth.decode(again).doubters == found.doubters
    assert len(again) < 64 * KIB
    return True


def run_codec(data: bytes) -> bool:
    """Stored bytes behind the signed size (4 bytes): only one whole frame of that very size is decoded."""
    size, stored = int.from_bytes(data[:4], "little") % (chunktable.MAX_CHUNK_BYTES + 1), data[4:]
    plain: bytes | None = None
    with suppress(zstandard.ZstdError):
        if zstandard.get_frame_parameters(stored).content_size == size:
            plain = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompress(stored)
    # The signature is honest, the builder is not: both hashes are those of what is there.
    digest = hashlib.sha256(plain if plain is not None and len(plain) == size else bytes(size)).digest()
    chunk = Chunk(0, size, digest, bytes(8), 0, len(stored), hashlib.sha256(stored).digest(), False, False)
    out = bytearray(size)
    try:
        Decoder().decode(chunk, Codec.ZSTD, memoryview(stored), memoryview(out))
    except Refused:
        return False
    assert plain is not None
    assert out == plain
    reader = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompressobj()
    assert reader.decompress(stored) == plain
    assert reader.eof
    assert not reader.unused_data
    return True


def mutate_codec(data: bytes, chance: Random, change: shapes.Bytes) -> bytes:
    """The frame or the size in front; the size is put to what the frame declares, mostly."""
    stored = change(data[4:])
    size = data[:4].ljust(4, b"\0")
    if chance.random() < 0.5:
        with suppress(zstandard.ZstdError):
            size = (zstandard.get_frame_parameters(stored).content_size % 2**32).to_bytes(4, "little")
    return size + stored


def mutate_behind(mutation: Mutation) -> Mutation:
    """A mutation of what follows one byte of options."""

    def mutate(data: bytes, chance: Random, change: shapes.Bytes) -> bytes:
        first = bytes([chance.randrange(256)]) if chance.random() < 0.1 else data[:1] or b"\0"
        return first + mutation(data[1:], chance, change)

    return mutate


def mutate_variables(data: bytes, chance: Random, change: shapes.Bytes) -> bytes:
    """Of variables with zero bytes between them: as lines of a text."""
    return shapes.mutate_lines(data.replace(b"\0", b"\n"), chance, change).replace(b"\n", b"\0")


def mutate_head(data: bytes, chance: Random, change: shapes.Bytes) -> bytes:
    """A bundle's head: as a bundle, without the payload that comes of it; the header goes on counting it."""
    mutated = shapes.mutate_bundle(data, chance, change)
    parts = shapes.take_bundle_apart(mutated)
    return mutated if parts is None else mutated[: len(mutated) - len(parts.payload)]


def mutate_chain(data: bytes, chance: Random, change: shapes.Bytes) -> bytes:
    """One file of the chain; or they come twice, go, change places."""
    files: list[bytes] = []
    rest = data
    while len(rest) > keyring.HEADER.size:
        length = keyring.HEADER.size + int.from_bytes(rest[12:16], "little") + int.from_bytes(rest[16:20], "little")
        files.append(rest[:length])
        rest = rest[length:]
    if not files or chance.random() < 0.1:
        return change(data)
    at = chance.randrange(len(files))
    match chance.randrange(6):
        case 0:
            files.insert(at, files[at])
        case 1:
            del files[at]
        case 2:
            files.reverse()
        case _:
            files[at] = shapes.mutate_keyring(files[at], chance, change)
    return b"".join(files)


# The bounds are what the formats cost in Python's objects, with room to spare: a byte of a TLV record, of JSON or of TOML may become an
# object of some 100 bytes. None of them depends on a number that the input declares.
TARGETS: Mapping[str, Target] = {
    "bundle": Target(run_bundle, shapes.mutate_bundle, 5 * MIB, 100),
    "head": Target(run_head, mutate_head, 5 * MIB, 100),
    "manifest": Target(run_manifest, shapes.records_mutation(shapes.IMAGES), 256 * KIB, 100),
    "signatures": Target(run_signatures, shapes.records_mutation({}), 256 * KIB, 100),
    "tlv": Target(run_tlv, shapes.records_mutation({}), 256 * KIB, 100),
    "table": Target(run_table, mutate_behind(shapes.mutate_table), 5 * MIB, 20),
    "keyring": Target(run_keyring, shapes.mutate_keyring, 256 * KIB, 100),
    "chain": Target(run_chain, mutate_chain, 256 * KIB, 100),
    "record": Target(run_record, shapes.mutate_record, 256 * KIB, 200),
    "frame": Target(fleettargets.run_frame, fleettargets.mutate_frame, 256 * KIB, 100),
    "entry": Target(fleettargets.run_entry, fleettargets.mutate_fixed, 256 * KIB, 100),
    "membership": Target(fleettargets.run_membership, fleettargets.signed_file_mutation(fleettargets.MEMBERSHIP), 256 * KIB, 100),
    "order": Target(fleettargets.run_order, fleettargets.signed_file_mutation({}), 256 * KIB, 100),
    "certificate": Target(fleettargets.run_certificate, fleettargets.mutate_fixed, 256 * KIB, 100),
    "evidence": Target(fleettargets.run_evidence, fleettargets.mutate_evidence, 256 * KIB, 100),
    "line": Target(linetarget.run_line, linetarget.mutate_line, 512 * KIB, 100),
    "fleetlog": Target(run_fleetlog, shapes.mutate_fleetlog, 512 * KIB, 200),
    "environment": Target(run_environment, shapes.mutate_environment, 256 * KIB, 100),
    "bootstate": Target(run_bootstate, mutate_variables, 256 * KIB, 200),
    "dialects": Target(boardtargets.run_dialects, mutate_variables, 256 * KIB, 200),
    "foreign": Target(boardtargets.run_foreign, shapes.mutate_lines, MIB, 400),
    "grubenv": Target(grubtarget.run_grubenv, shapes.mutate_lines, 512 * KIB, 200),
    "autoboot": Target(run_autoboot, shapes.mutate_lines, 256 * KIB, 200),
    "bootentry": Target(run_bootentry, shapes.mutate_lines, 512 * KIB, 200),
    "bootanswer": Target(run_bootanswer, shapes.mutate_lines, 512 * KIB, 400),
    "loadoption": Target(efitarget.run_loadoption, fleettargets.mutate_fixed, 256 * KIB, 100),
    "efimarker": Target(efitarget.run_efimarker, shapes.mutate_plain, 256 * KIB, 200),
    "gpt": Target(efitarget.run_gpt, fleettargets.mutate_fixed, 256 * KIB, 100),
    "verity": Target(run_verity, fleettargets.mutate_fixed, 256 * KIB, 100),
    "fwenv": Target(run_fwenv, shapes.mutate_lines, 256 * KIB, 200),
    "mounts": Target(run_mounts, shapes.mutate_lines, 256 * KIB, 200),
    "config": Target(run_config, shapes.mutate_lines, MIB, 400),
    "peers": Target(run_peers, shapes.mutate_lines, 256 * KIB, 100),
    "health": Target(run_health, shapes.mutate_lines, 256 * KIB, 100),
    "codec": Target(run_codec, mutate_codec, 18 * MIB, 20),
}
