"""A device whose spare slot holds nothing of any bundle, flashed in this process through the production path, with every write recorded.

What is real: configuration, wiring, state_dir, U-Boot's environment, sources, slots as regular files. What is added: `Recorder` around
each target, which compares every byte that is about to be written with what may be there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from abupdate import wiring
from abupdate.config import load
from abupdate.devices.block import open_target
from abupdate.errors import AbupdateError
from abupdate.formats import ubootenv
from abupdate.operations.flash import flash
from abupdate.ports import Source, SparseTarget
from abupdate.transfer.slots import Bundle, DeviceSlots
from abupdate.transfer.sources import StreamSource, open_source
from tests.hostile import specimen

PLACE_BYTES = 16 << 10
ENV_BYTES = 0x1000
OLD = b"\xa5"
_CONFIG = f"""\
compatible = "{specimen.COMPATIBLE}"
hardware_revision = "{specimen.REVISION}"
state_dir = "state"
[slots.A]
images = {{ rootfs = "rootfs_a", boot = "boot_a", modem = "modem_a" }}
[slots.B]
images = {{ rootfs = "rootfs_b", boot = "boot_b", modem = "modem_b" }}
[bootloader]
kind = "uboot"
fw_env_config = "fw_env.config"
[trust]
keyring = "ring.abk"
[watchdog]
device = "no-watchdog"
[device]
booted = "A"
[encryption]
keys = ["device.pem"]
"""
_IMAGES = ("rootfs", "boot", "modem")


Where = Callable[[str, int], None]


@dataclass(slots=True)
class Journal:
    """What was written to the spare slot: image, offset, bytes (zeros where a range was zeroed). verifying: all of it was flushed.

    before_write, before_read: called with image and offset before the target itself is asked; one at a time.
    """

    writes: list[tuple[str, int, bytes]] = field(default_factory=list)
    verifying: bool = False
    before_write: Where = lambda image, offset: None
    before_read: Where = lambda image, offset: None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Recorder:
    """`ports.SparseTarget` that writes down what goes to the real one."""

    def __init__(self, image: str, target: SparseTarget, journal: Journal) -> None:
        self._image = image
        self._target = target
        self._journal = journal

    @property
    def size_bytes(self) -> int:
        """See ports.Target."""
        return self._target.size_bytes

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """See ports.Target."""
        with self._journal.lock:
            self._journal.before_read(self._image, offset)
        return self._target.pread_into(buffer, offset)

    def pwrite(self, buffer: memoryview, offset: int) -> None:
        """See ports.Target."""
        self._note(offset, bytes(buffer))
        self._target.pwrite(buffer, offset)

    def zero_range(self, offset: int, length: int) -> bool:
        """See ports.SparseTarget."""
        done = self._target.zero_range(offset, length)
        if done:
            self._note(offset, bytes(length))
        return done

    def next_data(self, offset: int, end: int) -> int:
        """See ports.SparseTarget."""
        return self._target.next_data(offset, end)

    def flush(self) -> None:
        """See ports.Target."""
        self._target.flush()
        self._journal.verifying = True

    def close(self) -> None:
        """See ports.Target."""
        self._target.close()

    def _note(self, offset: int, data: bytes) -> None:
        with self._journal.lock:
            self._journal.before_write(self._image, offset)
            self._journal.writes.append((self._image, offset, data))


class Victim:
    """One device in a folder; `reset` puts it back to where it was."""

    def __init__(self, folder: Path, place_bytes: int = PLACE_BYTES) -> None:
        self.folder = folder
        self.places = {(slot, image): folder / f"{image}_{slot.lower()}" for slot in "AB" for image in _IMAGES}
        self.env = folder / "env"
        (folder / "config.toml").write_text(_CONFIG)
        (folder / "ring.abk").write_bytes(specimen.ring())
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / "device.pem").touch(0o600)
        (folder / "device.pem").write_bytes(specimen.device_key().private_bytes(*form))
        (folder / "fw_env.config").write_text(f"{self.env} 0x0 {ENV_BYTES:#x}\n{self.env} {ENV_BYTES:#x} {ENV_BYTES:#x}\n")
        self.env.write_bytes(b"\xff" * 2 * ENV_BYTES)
        for (slot, _), path in self.places.items():
            path.write_bytes((OLD if slot == "B" else b"\x5a") * place_bytes)
        self.journal = Journal()
        self._settings = load(folder / "config.toml")
        # Once: its parts read the files anew each time, and checking the devices takes longer than all the rest of a refusal.
        self._board = wiring.board(self._settings, outside=True)
        self._start()
        self._files: dict[Path, bytes] = {}
        self._files = self.files()

    def _start(self) -> None:
        # As the factory leaves it: slot A confirmed, B not bootable, the record says so.
        entries = (b"BOOT_ORDER=A", b"BOOT_A_LEFT=10", b"BOOT_B_LEFT=0", b"foreign=kept")
        copy = ubootenv.encode(ubootenv.Environment(entries), ENV_BYTES, ubootenv.Scheme.INCREMENTAL, 1)
        self.env.write_bytes(copy + b"\xff" * ENV_BYTES)
        # A first refusal makes state_dir with its record.
        assert self.flash_bytes(b"PK") == 3

    def files(self) -> dict[Path, bytes]:
        """Every file of the device but the lock and what a test puts there."""
        kept = [self.env, *self.places.values(), *sorted((self.folder / "state").iterdir())]
        return {path: path.read_bytes() for path in kept if path.name != "lock"}

    def unchanged(self) -> bool:
        """Whether nothing at all was written since the start. A keyring from a bundle's chain is no part of the flash: it is verified by
        the keyring before it, and kept before the signatures are looked at.
        """
        ring = self.folder / "state" / "keyring"
        found = {path: data for path, data in self.files().items() if path != ring}
        return found == self._files and not self.journal.writes

    def reset(self) -> None:
        """Back to the start."""
        for path, data in self.files().items():
            if path not in self._files:
                path.unlink()
            elif data != self._files[path]:
                path.write_bytes(self._files[path])
        self.journal = Journal()

    def flash(self, source: Source) -> int:
        """Flash from a source; the exit code. Any error but the project's own leaves this function."""
        admit = wiring.admission(self._settings)
        images = {slot: part.images for slot, part in self._settings.slots.items()}
        contents = DeviceSlots(images, open_head=admit, open_target=self._open)
        try:
            flash(self._board, contents, lambda: Bundle(source, admit, wiring.unsealing(self._settings)), lambda *_: None)
        except AbupdateError as error:
            return error.exit_code
        return 0

    def flash_bytes(self, data: bytes) -> int:
        """Flash a file that holds these bytes."""
        path = self.folder / "update.abu"
        path.write_bytes(data)
        with open_source(str(path)) as source:
            return self.flash(source)

    def flash_stream(self, data: bytes) -> int:
        """Flash a pipe through which these bytes came (at most what a pipe holds), and that has ended."""
        read_end, write_end = os.pipe()
        try:
            os.write(write_end, data)
            os.close(write_end)
            with StreamSource(read_end) as source:
                return self.flash(source)
        finally:
            os.close(read_end)

    def _open(self, path: Path) -> Recorder:
        target = open_target(path)
        assert isinstance(target, SparseTarget)
        return Recorder(path.name.removesuffix("_b"), target, self.journal)

    def bootable(self) -> bool:
        """Whether the boot store would ever start slot B."""
        boot = self._board.store.read()
        assert boot.order[0] in ("A", "B")
        return "B" in boot.order or bool(boot.left["B"]) or boot.order[0] != "A"

    def holds(self, images: dict[str, bytes]) -> bool:
        """Whether slot B holds these images from end to end."""
        return all(self.places["B", image].read_bytes()[: len(data)] == data for image, data in images.items())

    def slot_a_is_untouched(self) -> bool:
        """Byte for byte."""
        return all(path.read_bytes() == self._files[path] for (slot, _), path in self.places.items() if slot == "A")

    def covered(self, images: dict[str, bytes]) -> bool:
        """Whether every byte that was written is the one that the signed tables have there: nothing else reached the slot, not even
        for a moment, and the places hold either that or what they held before.
        """
        for image, offset, data in self.journal.writes:
            if images[image][offset : offset + len(data)] != data:
                return False
        for image, wanted in images.items():
            found = self.places["B", image].read_bytes()
            for at in range(0, len(found), specimen.BLOCK_BYTES):
                end = min(at + specimen.BLOCK_BYTES, max(at, len(wanted)))
                if found[at:end] not in (wanted[at:end], OLD * (end - at)) or found[end : at + specimen.BLOCK_BYTES].strip(OLD):
                    return False
        return True
