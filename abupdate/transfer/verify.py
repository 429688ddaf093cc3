"""Reads an image back from its target and compares it with the signed chunk table; reads and hashes overlap on a few threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from abupdate.errors import Failed
from abupdate.model import Chunk, Image
from abupdate.ports import Target
from abupdate.transfer.batches import Batch, Buffers, batches, check_room, data_pieces, matches, read_whole
from abupdate.transfer.crew import Crew, Progress


def verify_image(image: Image, chunks: Iterator[Chunk], target: Target, progress: Progress) -> None:
    """Compare what the medium holds with the image's table.

    `target.flush()` must have returned since the last write, or cached bytes might be verified. progress: as in install_image.
    Raises Failed at a difference and for I/O errors, ConfigError where the image cannot fit.
    """
    check_room(image, target)
    verify = _Verify(image, chunks, target)
    verify.crew.run(verify.work, progress)


class _Verify:
    """What the threads of one `verify_image` share."""

    def __init__(self, image: Image, chunks: Iterator[Chunk], target: Target) -> None:
        self.crew = Crew()
        self.image = image
        self.target = target
        self.batches = batches(chunks, sealed=image.sealed)
        self.order = threading.Lock()

    def work(self) -> None:
        """One thread's part: batches until there are no more."""
        buffers = Buffers()
        while batch := self._take(buffers):
            if batch.zero:
                self._check_zeros(batch, buffers)
            else:
                self._check_data(batch, buffers)
            self.crew.advance(batch.size)

    def _take(self, buffers: Buffers) -> Batch | None:
        with self.order:
            batch = None if self.crew.stopping else next(self.batches, None)
            if batch is not None:
                buffers.fit(batch)
            return batch

    def _check_data(self, batch: Batch, buffers: Buffers) -> None:
        read_whole(self.target, buffers.slot[: batch.size], batch.offset)
        for chunk in batch.chunks:
            if not matches(buffers.slot[chunk.offset - batch.offset :][: chunk.size], chunk.sha256):
                raise self._differs(chunk.offset)

    def _check_zeros(self, batch: Batch, buffers: Buffers) -> None:
        for offset, length in data_pieces(self.target, batch):
            if self.crew.stopping:
                return
            read_whole(self.target, buffers.slot[:length], offset)
            if not buffers.is_zero(buffers.slot[:length]):
                raise self._differs(offset)

    def _differs(self, offset: int) -> Failed:
        message = f"the slot does not hold image {self.image.name}: it differs near byte {offset}"
        return Failed(message, "flash it again; if that does not help, the medium is failing")
