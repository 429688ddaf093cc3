"""Bundles and slots together: opens a bundle, writes its images to a slot's devices, verifies what lies there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from abupdate.devices.fileimage import open_for_reading, open_place
from abupdate.errors import ConfigError, Failed, Refused
from abupdate.formats.bundle import Head, Open, Tables, parse_stored_head, read_signed, read_tables
from abupdate.formats.codec import Opener
from abupdate.model import Image, ImageKind, Manifest, Sealing
from abupdate.ports import FileTarget, OpenBundle, Progress, Source, Target, WaitingSource
from abupdate.transfer.install import install_image
from abupdate.transfer.sources import RateLimit
from abupdate.transfer.verify import verify_image

if TYPE_CHECKING:
    from abupdate.formats.contentkey import ContentKey

# How long a whole bundle's sender may take to close the stream.
_END_WAIT_S = 2.0
# The slot's boot entries are written after its images, and need a little on the same file system: two files and a block of their folder.
_BESIDE_BYTES, _BESIDE_BLOCKS = 8192, 3


def _without_keys(sealing: Sealing) -> ContentKey:
    from abupdate.formats.contentkey import unseal

    return unseal(sealing, ())


class Bundle:
    """`ports.OpenBundle` over a source. `open_` has accepted the manifest before the object exists."""

    def __init__(self, source: Source, open_: Open, unseal: Callable[[Sealing], ContentKey] = _without_keys) -> None:
        """Read and check what is signed; unseal finds the key of a sealed bundle, whether its chunks are needed or not.

        Raises Refused, or Failed for a stream that ends early.
        """
        self.source = source
        self._signed = read_signed(lambda count: _take(source, count), source.size_bytes, open_)
        sealing = self._signed.manifest.sealing
        self._key = unseal(sealing) if sealing is not None else None
        self._tables: Tables | None = None

    @property
    def manifest(self) -> Manifest:
        """See ports.OpenBundle."""
        return self._signed.manifest

    @property
    def tables(self) -> Tables:
        """The verified chunk tables, read at the first call."""
        if self._tables is None:
            self._tables = read_tables(lambda count: _take(self.source, count), self._signed)
        return self._tables

    def opener(self, image: str) -> Opener | None:
        """What decrypts the image's chunks, None where the bundle is not sealed."""
        return None if self._key is None else self._key.image(image)

    def head(self) -> bytes:
        """See ports.OpenBundle."""
        return Head(self._signed, self.tables).kept


class DeviceSlots:
    """`ports.SlotContents` over the configured devices."""

    def __init__(
        self,
        slots: Mapping[str, Mapping[str, Path]],
        max_rate: int | None = None,
        *,
        open_head: Open,
        open_target: Callable[[Path], Target] = open_place,
        open_readonly: Callable[[Path], Target] = open_for_reading,
    ) -> None:
        """slots: slot -> image -> device. max_rate: bytes a second read from the source. open_head: decides about stored heads.

        open_target, open_readonly: as in devices/fileimage.py; the crash simulator has its own.
        """
        self._open_target = open_target
        self._open_readonly = open_readonly
        self._slots = slots
        self._max_rate = max_rate
        self._open_head = open_head
        self._claimed: dict[str, dict[str, Target]] = {}

    @contextmanager
    def claim(self, slot: str) -> Iterator[None]:
        """See ports.SlotContents."""
        with ExitStack() as stack:
            opened: dict[str, Target] = {}
            for image, path in self._slots[slot].items():
                opened[image] = self._open_target(path)
                stack.callback(opened[image].close)
            self._claimed[slot] = opened
            try:
                yield
            finally:
                del self._claimed[slot]

    def fits(self, slot: str, manifest: Manifest) -> None:
        """See ports.SlotContents."""
        targets = self._claimed[slot]
        names = {image.name for image in manifest.images}
        for name in sorted(names - targets.keys()):
            raise Refused(f"the bundle holds image {name}, which this device has no place for", "add it to [slots] or get another bundle")
        for name in sorted(targets.keys() - names):
            raise Refused(f"the bundle lacks image {name}, so the slot would not be whole", "build the bundle with all images of the slot")
        for image in manifest.images:
            place, target = self._slots[slot][image.name], targets[image.name]
            if image.kind is ImageKind.FILE:
                if not isinstance(target, FileTarget):
                    raise ConfigError(f"image {image.name} is a file, {place} is not", "name a path on a mounted file system")
                continue
            if image.kind is not ImageKind.RAW:
                raise Refused(f"image {image.name} is of kind {image.kind.value}, which needs a newer abupdate")
            if isinstance(target, FileTarget) and not target.exists:
                hint = f'check the slot\'s path, or build the bundle with kind = "file" for {image.name}, which makes one'
                raise ConfigError(f"{place}: No such file or directory, and image {image.name} is for a device", hint)
            if image.size_bytes > target.size_bytes:
                raise ConfigError(
                    f"image {image.name} has {image.size_bytes} bytes and {place} {target.size_bytes}",
                    "the slot is too small for this bundle",
                )
        _check_space([(image, target) for image in manifest.images if isinstance(target := targets[image.name], FileTarget)])

    def write(self, slot: str, bundle: OpenBundle, progress: Progress) -> None:
        """See ports.SlotContents."""
        assert isinstance(bundle, Bundle)
        targets = self._claimed[slot]
        total = sum(image.size_bytes for image in bundle.manifest.images)
        limit = RateLimit(self._max_rate) if self._max_rate else None
        before = 0
        for image in bundle.manifest.images:
            chunks, opener, target = bundle.tables.chunks(image.name), bundle.opener(image.name), targets[image.name]
            shown = _shifted(progress, "write", before, total)
            if image.kind is ImageKind.FILE and isinstance(target, FileTarget):
                target.resize(image.size_bytes)
            install_image(bundle.source, image, chunks, target, shown, limit=limit, opener=opener)
            before += image.size_bytes
        _expect_end(bundle.source)
        for target in targets.values():
            target.flush()

    def verify(self, slot: str, head: bytes, progress: Progress) -> None:
        """See ports.SlotContents. Uses the claimed devices, or opens them for reading."""
        parsed = parse_stored_head(head, self._open_head)
        images = parsed.signed.manifest.images
        total = sum(image.size_bytes for image in images)
        before = 0
        with ExitStack() as stack:
            for image in images:
                target = self._claimed.get(slot, {}).get(image.name)
                if target is None:
                    path = self._slots[slot].get(image.name)
                    if path is None:
                        raise ConfigError(
                            f"slot {slot} has no image {image.name}", "the bundle on it was written under another configuration"
                        )
                    opened = self._open_readonly(path)
                    stack.callback(opened.close)
                    target = opened
                if image.kind is ImageKind.FILE and target.size_bytes != image.size_bytes:
                    place = self._slots[slot][image.name]
                    raise Failed(f"{place} has {target.size_bytes} bytes, image {image.name} {image.size_bytes}", "flash the slot again")
                verify_image(image, parsed.tables.chunks(image.name), target, _shifted(progress, "verify", before, total))
                before += image.size_bytes


def _check_space(images: list[tuple[Image, FileTarget]]) -> None:
    """Raises ConfigError where a file system has no room for its images of kind `file`."""
    needed: dict[int, int] = {}
    for image, target in images:
        if image.kind is not ImageKind.FILE:
            continue
        room = target.room()
        # A name that is new may need a block of its folder's.
        blocks = -(-image.size_bytes // room.block_bytes) + (0 if target.exists else 1)
        growth = needed.get(room.filesystem, 0) + blocks * room.block_bytes - room.held_bytes
        needed[room.filesystem] = growth
        lacks = growth + max(_BESIDE_BYTES, _BESIDE_BLOCKS * room.block_bytes) - room.free_bytes
        if growth > 0 and lacks > 0:
            raise ConfigError(
                f"image {image.name} has {image.size_bytes} bytes, its file system lacks {lacks}",
                "make room on it: the ESP holds the kernels of both slots",
            )


def _take(source: Source, count: int) -> bytes:
    """Up to `count` bytes (bounded by the format before); fewer only at the end."""
    buffer = bytearray(count)
    return bytes(buffer[: source.read_into(memoryview(buffer))])


def _shifted(progress: Progress, phase: str, before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(phase, before + done, total)


def _expect_end(source: Source) -> None:
    """A stream must end where the header says that it does; a file's size was checked before.

    One that stays open and says nothing has delivered all that there is: nobody waits for its end for ever.
    """
    if isinstance(source, WaitingSource) and source.silent(_END_WAIT_S):
        return
    if source.size_bytes is None and source.read_into(memoryview(bytearray(1))):
        raise Refused("the stream goes on after the bundle's end", "send the bundle alone")
