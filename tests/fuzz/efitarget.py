"""What is fuzzed of EFI: load options, our own variable, the partition table that an entry is made from."""

from __future__ import annotations

import struct

from abupdate.bootloaders.efistate import Firmware, state_of, trial_slot
from abupdate.errors import ConfigError
from abupdate.formats import efiboot, efimarker, gpt
from abupdate.formats.efiboot import ACTIVE, LoadOption, Partition
from abupdate.formats.efimarker import Marker

_SLOTS = ("A", "B")
_PARTITION = Partition(1, 2048, 524288, bytes(range(16)))


def _agrees(seen: Firmware) -> None:
    """Whatever the variables hold, it is a state of the configured slots."""
    state = state_of(seen, _SLOTS)
    assert set(state.order) <= set(_SLOTS)
    assert len(set(state.order)) == len(state.order)
    assert state.trial == trial_slot(seen, _SLOTS)
    assert state.trial is None or state.order[0] == state.trial
    assert all(state.left[slot] == 0 for slot in _SLOTS if slot not in state.order)


def run_loadoption(data: bytes) -> bool:
    """A Boot#### variable, also as the entry of a slot; built again from its values it is the same."""
    found = efiboot.decode_option(data)
    numbers = efiboot.decode_order(data)
    if numbers is not None:
        assert efiboot.encode_order(numbers) == data
    if found is None:
        return False
    assert efiboot.encode_option(found) == data
    place = efiboot.place_of(found.path)
    try:
        path = efiboot.file_on(*place) if place is not None else b""
    except ConfigError:
        path = b""
    if path and place is not None:
        again = efiboot.place_of(path)
        assert again is not None
        assert again[0] == place[0]
    text = efiboot.decode_cmdline(found.data)
    if 0 < len(text) <= efiboot.MAX_CMDLINE:
        assert efiboot.decode_cmdline(efiboot.encode_cmdline(text)) == text
    for following in (None, 2):
        options = {
            1: LoadOption(ACTIVE, "abupdate A", b""),
            2: LoadOption(found.attributes, "abupdate B", found.path, found.data),
            3: found,
        }
        _agrees(Firmware((3, 2, 1), following, 2, options, frozenset(options), Marker("B", ("A",))))
    return True


def run_efimarker(data: bytes) -> bool:
    """Our own variable; written again it says the same."""
    found = efimarker.decode(data)
    raw = efimarker.encode(found)
    assert len(raw) <= 2 * efimarker.MAX_BYTES
    assert efimarker.decode(raw[: efimarker.MAX_BYTES]) == found or len(raw) > efimarker.MAX_BYTES - 600
    options = {number: LoadOption(ACTIVE, f"abupdate {slot}", b"") for number, slot in enumerate(_SLOTS)}
    for order in ((), (0,), (1, 0)):
        _agrees(Firmware(order, None, 1, options, frozenset(options), found))
    return bool(found.good or found.trial)


def run_gpt(data: bytes) -> bool:
    """The start of a disk: 512 bytes of a DOS table, then GPT's header, then an entry."""
    entries = gpt.parse_header(data[512:1024])
    try:
        if entries is None:
            found = gpt.dos_partition(data[:512], 1, 2048, 4096)
        else:
            assert entries.start >= 2
            found = gpt.parse_entry(data[1024 : 1024 + entries.size_bytes], 1)
    except ConfigError:
        return False
    assert len(found.signature) == 16
    assert str(found)
    assert efiboot.place_of(efiboot.file_on(found, "abu/A/vmlinuz")) == (found, "/abu/A/vmlinuz")
    return True


def seeds() -> dict[str, list[bytes]]:
    """Inputs by target."""
    path = efiboot.file_on(_PARTITION, "abu/B/vmlinuz")
    words = "root=PARTLABEL=b abupdate.slot=B panic=10 abupdate.verity=00ff abupdate.trial=1"
    options = [
        LoadOption(ACTIVE, "abupdate B", path, efiboot.encode_cmdline(words)),
        LoadOption(ACTIVE | 0x100, "UiApp", b"\x04\x07\x14\x00" + bytes(16) + b"\x04\x06\x14\x00" + bytes(16) + b"\x7f\xff\x04\x00"),
        # What one program of the field writes: the disk's path before it, a name in two nodes, arguments that are no text.
        LoadOption(9, "Linux \u00fc", b"\x02\x01\x0c\x00\xd0\x41\x03\x0a\0\0\0\0" + path[:42] + path[42:-4] + path[42:], b"\x01\x02\x03"),
    ]
    header = b"EFI PART" + bytes(64) + struct.pack("<QII", 2, 128, 128)
    entry = bytes(range(1, 33)) + struct.pack("<QQ", 2048, 526335) + bytes(8) + "esp".encode("utf-16-le")
    dos = bytes(440) + b"\x12\x34\x56\x78" + bytes(66) + b"\x55\xaa"
    return {
        "loadoption": [efiboot.encode_option(option) for option in options],
        "efimarker": [b"trial=B good=A floor=12", b"good=A,B spent=B later=x", b""],
        "gpt": [bytes(512) + header.ljust(512, b"\0") + entry.ljust(128, b"\0"), dos],
    }
