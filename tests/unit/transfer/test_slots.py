"""DeviceSlots over real files: everything is on the medium before `write` returns."""

from __future__ import annotations

import os
from pathlib import Path

from abupdate.devices.block import BlockTarget, open_target
from abupdate.formats.bundle import decode
from abupdate.formats.contentkey import ContentKey
from abupdate.model import Sealing
from abupdate.transfer.slots import Bundle, DeviceSlots
from abupdate.transfer.sources import open_source

GOLDEN = Path(__file__).parents[2] / "formats/golden/golden.abu"


def sealed(sealing: Sealing) -> ContentKey:
    """The golden bundle is not."""
    raise AssertionError(sealing)


def test_every_image_is_flushed_after_the_last_write(tmp_path: Path) -> None:
    notes: list[str] = []
    places = {name: tmp_path / name for name in ("rootfs", "boot")}
    for path in places.values():
        path.write_bytes(b"\xa5" * 65536)

    class Noted(BlockTarget):
        def pwrite(self, buffer: memoryview, offset: int) -> None:
            super().pwrite(buffer, offset)
            notes.append(f"write {self.path.name}")

        def flush(self) -> None:
            super().flush()
            notes.append(f"flush {self.path.name}")

    def opened(path: Path) -> BlockTarget:
        open_target(path).close()
        return Noted(path, os.open(path, os.O_RDWR), direct=False)

    slots = DeviceSlots({"B": places}, open_head=decode, open_target=opened)
    with slots.claim("B"), open_source(str(GOLDEN)) as source:
        slots.write("B", Bundle(source, decode, sealed), lambda phase, done, total: None)
    assert {note for note in notes if note.startswith("write")} == {"write rootfs", "write boot"}
    assert notes[-2:] == ["flush rootfs", "flush boot"]
    assert not any(note.startswith("flush") for note in notes[:-2])
