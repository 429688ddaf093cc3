"""The seed corpus: small real artefacts of each format, made by the project's own builders. `python -m tests.fuzz --seeds` makes it."""

from __future__ import annotations

import os
import struct
import tempfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import zstandard

from abupdate.formats import bootentry, bundle, fleetlog, manifest, peerhealth, record, signature, ubootenv, verity
from abupdate.formats.bootentry import Entry
from abupdate.formats.membership import Recovery
from abupdate.formats.order import OrderKind
from abupdate.formats.peerhealth import PeerHealth
from abupdate.formats.ubootenv import Environment, Scheme
from abupdate.model import Attempt, Manifest, Phase, Recipient, Record, Sealing, SlotRecord, SlotState
from tests.formats import fleetgolden, sitefiles
from tests.fuzz import boardtargets, efitarget, grubtarget, linetarget
from tests.hostile import specimen
from tests.workstation import CONFIG

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path(__file__).parent / "found"
MAX_CORPUS_BYTES = 200 << 10
_TEXT = b"".join(b"line %d\n" % number for number in range(500))
_FRAGMENTS = (
    CONFIG + "[trial]\nwindow_s = 60\ntries = 2\nauto_confirm = false\n",
    CONFIG + '\x1c[health]\ninterval_s = 5\n[slots."B"]\nimages.rootfs = "/dev/x"\nimages.boot = \'y\'\n',
    'trial = { tries = 0x3 }\n"compatible" = """a\\u0041"""\n',
)
_VARIABLES = (
    "BOOT_ORDER=A B\0BOOT_A_LEFT=a\0BOOT_B_LEFT=0x3\0BOOT_TRIAL=B\0BOOT_TRIES=3\0BOOT_BUDGET=a\0BOOT_TIMEOUT=78\0BOOT_FLOOR=7\0x=1",
    "bootcmd=run distro\0BOOT_B_LEFT=\0BOOT_FLOOR=ffffffffffffffffff",
    "",
)
_FWENV = (
    "/dev/mmcblk0 0x3c0000 0x4000\n/dev/mmcblk0 0x3c4000 0x4000\n",
    "# NOR\n/dev/mtd1 0x0 0x2000 0x1000 2 1\n/dev/mtd2 0 2000 1000 2 0\n",
    "/boot/uboot.env -0x8000 4000\n",
)
_AUTOBOOT = (
    "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n",
    "# board\n[none]\n[tryboot]\nboot_partition=4\n[all]\r\nodd\n[all]\n# abupdate order=A:1,B:0\n# abupdate floor=5\ntryboot_a_b=1\n"
    "boot_partition=2\n[tryboot]\n# abupdate trial=B:1\nboot_partition=3\n",
)
_BOOTANSWERS = (
    '{"abupdate": 1, "slots": ["A", "B"], "traits": {"max_tries": 3, "counts_confirmed": true, "falls_through": true, '
    '"armed_in_store": true, "keeps_verity": true},\n"state": {"order": ["B", "A"], "left": {"A": 10, "B": 3}, "trial": "B",\n'
    '"policy": {"tries": 3, "budget": 10, "boot_timeout_s": 120}, "floor": 7, "verity": {"B": "00112233445566778899aabbccddeeff"}},\n'
    '"places": [["/dev/mmcblk0", 4096, 8192]], "tears": "", "irreplaceable": "why"}\n',
    '{"abupdate": 1, "slots": ["B", "A"],\n"traits": {"max_tries": 1, "counts_confirmed": false, "falls_through": false, '
    '"armed_in_store": true},\n"state": null}\n',
)
_MOUNTS = (
    "22 28 0:20 / /sys rw,nosuid - sysfs sysfs rw\n28 1 254:1 / / ro,noatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro\n",
    "40 28 0:33 /@ /data rw shared:2 master:3 - btrfs /dev/sdb2 rw,subvol=/@\n41 28 7:0 / /a\\040b\\134c rw - vfat /dev/loop0 rw\n",
    "42 28 0:34 / /media/STICK\rX rw - tmpfs \x0b\u2028\x85 rw\n43 28 254:3 / /b ro - squashfs /dev/vda3 ro\n",
)


def seeds() -> dict[str, list[bytes]]:
    """Inputs by target."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("SOURCE_DATE_EPOCH")
        os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
        try:
            whole = specimen.build(Path(folder)).data
            unsigned = specimen.build(Path(folder), seed=2, signers=()).data
        finally:
            del os.environ["SOURCE_DATE_EPOCH"]
            if before is not None:
                os.environ["SOURCE_DATE_EPOCH"] = before
    head = bundle.read_head(BytesIO(whole).read, len(whole))
    tables, position = [], 0
    for image in head.signed.manifest.images:
        codec = b"\1" if image.codec.value == "zstd" else b"\0"
        tables.append(codec + head.tables.raw[position : position + image.table_bytes])
        position += image.table_bytes
    block = signature.pack_block(head.signed.signatures)
    first, second = specimen.ring(), specimen.ring(2, ("root", "root-2"), ("root", "root-2"))
    third = specimen.ring(3, ("root-2",), ("root", "root-2"))
    return {
        "bundle": [whole, unsigned],
        "head": [head.raw],
        "manifest": [head.signed.manifest_bytes, _sealed(head.signed.manifest)],
        "signatures": [block, b""],
        "tlv": [block, b""],
        "table": tables,
        "keyring": [first, second],
        "chain": [b"", first + second, first + second + third],
        "record": _records(),
        "fleetlog": _fleetlogs(),
        **_fleet(),
        "line": linetarget.seeds(),
        "environment": _environments(),
        "bootstate": [text.encode() for text in _VARIABLES],
        "dialects": [text.encode() for text in boardtargets.VARIABLES],
        "foreign": [text.encode() for text in boardtargets.CONFIGURATIONS],
        "grubenv": [text.encode() for text in grubtarget.SEEDS],
        "autoboot": [text.encode() for text in _AUTOBOOT],
        "bootentry": [
            bootentry.encode(
                Entry("B", 99998, True, "/abu/B/vmlinuz", "/abu/B/initrd", trial_s=90, verity="5a" * 32, floor=7, cmdline="ro")
            ),
            bootentry.encode(Entry("B", 3, False, "/abu/B/linux.efi", unified=True, cmdline="root=/dev/b ro")),
            b"slot-B+2-1.conf\ntitle hand\r\nlinux\t/k\noptions a=1\n options abupdate.trial=1 panic=5\n# x\n",
            b"default slot-a.conf\ntimeout 3\n# editor no\n",
        ],
        "bootanswer": [text.encode() for text in _BOOTANSWERS],
        **efitarget.seeds(),
        "verity": _verity(),
        "fwenv": [text.encode() for text in _FWENV],
        "mounts": [text.encode() for text in _MOUNTS],
        "config": [text.encode() for text in _FRAGMENTS],
        "peers": [peerhealth.encode(PeerHealth(12.5, True, ("gw1", "gw\u00fc"), 2))],
        "health": [b"disk ok\nlink down\n", "Temperatur 40 °C\r\n\x1b[31mrot\x1b[0m".encode(), b"\xff\xfe\x00" * 9],
        "codec": _frames(),
    }


def _sealed(plain: Manifest) -> bytes:
    """The manifest of a sealed bundle with made-up keys: real ones are random."""
    recipients = tuple(Recipient(bytes([number] * 8), bytes([number] * 48)) for number in (1, 2))
    images = tuple(replace(image, sealed=True) for image in plain.images)
    return manifest.encode(replace(plain, images=images, sealing=Sealing(b"s" * 32, b"\x09".ljust(32, b"\0"), recipients)))


def _records() -> list[bytes]:
    slots = {"A": SlotRecord(SlotState.CONFIRMED, "1.0", "aa" * 32, 7), "B": SlotRecord(SlotState.TRIAL, "2.0", "bb" * 32, 8, {"new": 1})}
    attempt = Attempt("B", Phase.ARMED, "boot", "bb" * 32, "2.0", 8, "A", 3, "because", {"more": [None, "ü"]})
    return [record.encode(Record(7, slots, attempt, "uboot:/dev/x@0x0+0x4000", {"x": {}}), 9), record.encode(Record(), 1)]


def _fleet() -> dict[str, list[bytes]]:
    """What goes over the fleet's wire: the golden files."""
    files = fleetgolden.files()
    wholes = {"membership": "golden.abm", "order": "golden.abo", "certificate": "golden.certificate", "evidence": "golden.evidence"}
    made = {target: [files[name]] for target, name in wholes.items()}
    made["membership"].append(sitefiles.membership_file(sitefiles.site(17, recovery=Recovery(bytes(32), 9, {1: 3, 16: 9}))))
    made["order"] += [sitefiles.order_file(sitefiles.plain_order(kind), "admin") for kind in list(OrderKind)[1:]]
    for target in ("frame", "entry"):
        made[target] = [data for name, data in files.items() if name.endswith(f".{target}")]
    return made


def _fleetlogs() -> list[bytes]:
    """One that was appended to, a new one, one that was replaced after a fault, and one with a torn end."""
    head, end = fleetlog.start(fleetlog.Head(b"k" * 32, b"n" * 16))
    first, end = fleetlog.batch(end, [(1, b"\0\0\0\1"), (2, b"vote" * 9)])
    second, end = fleetlog.batch(end, [(3, b""), (5, b"fact" * 20), (2, b"vote")])
    replaced, end = fleetlog.start(fleetlog.Head(b"k" * 32, b"m" * 16, 2, fleetlog.Fault.DAMAGED))
    return [head + first + second, head, replaced + fleetlog.batch(end, [(7, b"state" * 9), (2, b"")])[0], head + first + second[:-30]]


def _verity() -> list[bytes]:
    """Squashfs, erofs and ext4 of 1000 blocks with superblocks of several salts and sizes of blocks."""
    squashfs = b"hsqs".ljust(40, b"\0") + struct.pack("<Q", 1000 * 4096 - 7)
    erofs = struct.pack("<I8xB23xI", 0xE0F5E1E2, 12, 1000)
    ext4 = struct.pack("<4xI16xI28xH38xI", 1000, 2, 0xEF53, 0x80).ljust(400, b"\0")
    heads = (squashfs.ljust(464, b"\0"), bytes(64) + erofs.ljust(400, b"\0"), bytes(64) + ext4)
    blocks = ((4096, 4096, 1000, b"salt" * 8), (1024, 4096, 4000, b""), (4096, 512, 1, bytes(range(256))))
    pack = verity.SUPERBLOCK.pack
    return [
        head + pack(verity.MAGIC, 1, 1, bytes(16), b"sha256", data, hashes, count, len(salt), b"", salt, b"")
        for head, (data, hashes, count, salt) in zip(heads, blocks, strict=True)
    ]


def _environments() -> list[bytes]:
    made = []
    for number, scheme in enumerate(Scheme):
        entries = Environment((b"BOOT_ORDER=A B", b"BOOT_A_LEFT=3", b"foreign", b"bootcmd=run x; run y"))
        made.append(bytes([number]) + ubootenv.encode(entries, 256, scheme, 1))
    return made


def _frames() -> list[bytes]:
    kinds: tuple[dict[str, Any], ...] = ({}, {"write_checksum": True}, {"write_content_size": False}, {"level": 19})
    compressors = [zstandard.ZstdCompressor(**options) for options in kinds]
    plains = (_TEXT[:1500], b"a" * 5000, b"")
    return [len(plain).to_bytes(4, "little") + compressor.compress(plain) for compressor in compressors for plain in plains]


def write() -> int:
    """Write the corpus into the tree; returns its size in bytes."""
    total = 0
    for target, inputs in seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for number, data in enumerate(inputs):
            (folder / f"{number:02}").write_bytes(data)
            total += len(data)
    assert total < MAX_CORPUS_BYTES
    return total


def kept(target: str) -> list[Path]:
    """The seeds of a target, and the inputs that once showed a fault."""
    return [path for folder in (CORPUS, FOUND) for path in sorted((folder / target).glob("*")) if path.is_file()]
