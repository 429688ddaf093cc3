r"""Boot loader entries (Type #1) of the slots, as systemd-boot reads them, and the lines of loader.conf that matter here.

A file's name holds the counter: `slot-B+2-1.conf` has two boots left and one behind it; `slot-B.conf` is not counted. Its first 512
bytes hold everything that ever changes, so that every change is one sector, written in place; the rest is the slot's own arguments:

    title Slot B
    sort-key abu-99998          the smaller one boots
    linux /abu/B/vmlinuz        or `efi` for a unified kernel image; without either the entry is none
    initrd /abu/B/initrd
    options abupdate.slot=B panic=10 abupdate.trial=1 abupdate.boot_timeout=120 watchdog.open_timeout=120 abupdate.verity=c0ffee..
    # abupdate.floor=7
    ...line breaks up to byte 512...
    options root=PARTLABEL=rootfs_b ro
    ...line breaks up to a multiple of 512...

An entry that is switched off has `#` before linux, initrd and our options. What others wrote is read by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from abupdate.errors import ConfigError

SECTOR_BYTES = 512
MAX_BYTES = 64 << 10
FIRST_KEY = 99999
NO_KEY = FIRST_KEY + 1
_NAME = re.compile(r"slot-([A-Za-z0-9]{1,16})(?:\+(\d{1,4})(?:-(\d{1,4}))?)?\.conf", re.IGNORECASE)
_KEY = re.compile(r"abu-(\d{5})")
_ROOT = re.compile(r"[0-9a-f]{1,128}")
_NUMBER = re.compile(r"\d{1,19}")
_OURS = ("abupdate.slot", "abupdate.trial", "abupdate.boot_timeout", "watchdog.open_timeout", "abupdate.verity", "panic")
_OFF = "#"


@dataclass(frozen=True, slots=True)
class EntryName:
    """What a file's name says. left: boots left, None: not counted. done: boots counted down."""

    slot: str
    left: int | None = None
    done: int = 0

    @property
    def file(self) -> str:
        """The name."""
        counter = "" if self.left is None else f"+{self.left}" + (f"-{self.done}" if self.done else "")
        return f"slot-{self.slot}{counter}.conf"


@dataclass(frozen=True, slots=True)
class Entry:
    """What an entry says. key: of its place among the others. on: it can be booted. kernel: path on the ESP from its root.

    initrd: empty: none. unified: the kernel is a unified kernel image. trial_s: abupdate.boot_timeout where the slot is on trial, else
    None. verity: root hash in hex, empty: none. floor: mirror of the security counter's floor. cmdline: the slot's own arguments.
    """

    slot: str
    key: int
    on: bool
    kernel: str
    initrd: str = ""
    unified: bool = False
    trial_s: int | None = None
    verity: str = ""
    floor: int | None = None
    cmdline: str = ""


def parse_name(file: str, slots: tuple[str, ...]) -> EntryName | None:
    """What the name of a file of ours says, None for any other. FAT knows no case: names are of the slot that differs in nothing else."""
    match = _NAME.fullmatch(file)
    slot = next((slot for slot in slots if match and slot.casefold() == match[1].casefold()), None)
    if match is None or slot is None:
        return None
    return EntryName(slot, None if match[2] is None else int(match[2]), int(match[3] or 0))


def encode(entry: Entry) -> bytes:
    """The file's bytes, a multiple of 512. Raises ConfigError where what changes does not fit into the first sector."""
    off = "" if entry.on else _OFF
    options = [f"abupdate.slot={entry.slot}", "panic=10"]
    if entry.trial_s is not None:
        options += ["abupdate.trial=1", f"abupdate.boot_timeout={entry.trial_s}", f"watchdog.open_timeout={entry.trial_s}"]
    if entry.verity:
        options.append(f"abupdate.verity={entry.verity}")
    lines = [f"title Slot {entry.slot}", f"sort-key abu-{entry.key:05}", f"{off}{'efi' if entry.unified else 'linux'} {entry.kernel}"]
    lines += [f"{off}initrd {entry.initrd}"] * bool(entry.initrd)
    lines.append(f"{off}options {' '.join(options)}")
    lines += [] if entry.floor is None else [f"# abupdate.floor={entry.floor}"]
    head = "".join(f"{line}\n" for line in lines).encode()
    if len(head) > SECTOR_BYTES:
        raise ConfigError(
            f"the boot entry of slot {entry.slot} takes {len(head)} bytes, more than the {SECTOR_BYTES} that one write can change",
            "give kernel and initrd shorter paths on the ESP",
        )
    tail = f"options {entry.cmdline}\n".encode() if entry.cmdline else b""
    return head.ljust(SECTOR_BYTES, b"\n") + tail.ljust(-(-len(tail) // SECTOR_BYTES) * SECTOR_BYTES, b"\n")


def decode(slot: str, data: bytes) -> Entry:
    """What an entry's bytes say to systemd-boot and to us, whoever wrote them; never raises. One without a kernel is switched off."""
    lines = tuple(_lines(data[:MAX_BYTES]))
    found = {name: value for name, value in lines if name not in ("options", f"{_OFF}options")}
    kernel_line = next((name for name in ("linux", "efi", f"{_OFF}linux", f"{_OFF}efi") if found.get(name)), "")
    off = _OFF if kernel_line.startswith(_OFF) else ""
    words = " ".join(value for name, value in lines if name == "options" or (off and name == f"{off}options")).split()
    given = dict(word.partition("=")[::2] for word in words if word.partition("=")[0] in _OURS)
    key = _KEY.fullmatch(found.get("sort-key", ""))
    root = _ROOT.fullmatch(given.get("abupdate.verity", ""))
    timeout = given.get("abupdate.boot_timeout", "")
    floor = next((value for name, value in lines if name == "#" and value.startswith("abupdate.floor=")), "").partition("=")[2]
    return Entry(
        slot=slot,
        key=int(key[1]) if key else NO_KEY,
        on=kernel_line in ("linux", "efi"),
        kernel=found.get(kernel_line, ""),
        initrd=found.get(f"{off}initrd", ""),
        unified=kernel_line.endswith("efi"),
        trial_s=(int(timeout) if _NUMBER.fullmatch(timeout) else 0) if given.get("abupdate.trial") == "1" else None,
        verity=root[0] if root else "",
        floor=int(floor) if _NUMBER.fullmatch(floor) else None,
        cmdline=" ".join(word for word in words if word.partition("=")[0] not in _OURS),
    )


def is_whole(entry: Entry, data: bytes) -> bool:
    """True where the bytes are just what `encode` makes of the entry, but for the arguments' spelling: nobody edited it by hand."""
    try:
        return encode(entry)[:SECTOR_BYTES] == data[:SECTOR_BYTES] and len(data) % SECTOR_BYTES == 0
    except ConfigError:
        return False


def setting(conf: bytes, name: str) -> str:
    """Value of a setting of loader.conf, the last one counts; empty: not set."""
    return next((value for found, value in reversed(tuple(_lines(conf[:MAX_BYTES]))) if found == name), "")


def with_setting(conf: bytes, name: str, value: str) -> bytes:
    """loader.conf with one setting changed or added; other lines stay as they are."""
    kept = [line for line in conf.decode("utf-8", "surrogateescape").splitlines() if line.split()[:1] != [name]]
    return "".join(f"{line}\n" for line in (f"{name} {value}", *kept)).encode("utf-8", "surrogateescape")


def _lines(data: bytes) -> Iterator[tuple[str, str]]:
    """NAME, VALUE of each line; a comment's name starts with `#`. systemd-boot ends at the first NUL."""
    for line in data.partition(b"\0")[0].decode("utf-8", "replace").replace("\r", "\n").split("\n"):
        name, _, value = line.strip(" \t").replace("\t", " ").partition(" ")
        if name:
            yield name, value.strip(" ")
