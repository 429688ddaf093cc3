"""Frames in a stream of bytes: COBS with a 0x00 behind each frame, and one before each burst.

The one before ends whatever a line makes of a driver that is switched on, so that the frame behind it stands alone. After garbage the
next 0x00 is where frames begin again. Memory is bounded: what is longer than any frame is dropped as it comes in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from abupdate.errors import ConfigError
from abupdate.formats.frame import MAX_FRAME_BYTES

try:
    from cobs import cobs
except ImportError as error:
    raise ConfigError(
        "cobs is not installed: a serial line to the peers needs it", "pip install cobs (Debian has no package of it)"
    ) from error

END = b"\x00"
# COBS adds a byte to every 254.
MAX_ENCODED_BYTES = MAX_FRAME_BYTES + 1


def burst(frames: Iterable[bytes]) -> bytes:
    """The bytes on the line of frames that are sent in one go."""
    return END + b"".join(cobs.encode(frame) + END for frame in frames)


class Deframer:
    """Takes bytes in any pieces. dropped: what was no frame, by reason."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self._begun = bytearray()
        self._overlong = False

    @property
    def held_bytes(self) -> int:
        """Of a frame that is not whole yet."""
        return len(self._begun)

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that end in this piece, decoded; nothing is known of what they hold."""
        found: list[bytes] = []
        *ended, rest = data.split(END)
        for piece in ended:
            self._take(piece)
            whole = self._end()
            if whole is not None:
                found.append(whole)
        self._take(rest)
        return found

    def forget(self) -> None:
        """What was begun will not be ended: the line is another one."""
        self._begun.clear()
        self._overlong = False

    def _take(self, piece: bytes) -> None:
        if self._overlong or len(self._begun) + len(piece) > MAX_ENCODED_BYTES:
            self._overlong = True
            self._begun.clear()
        else:
            self._begun += piece

    def _end(self) -> bytes | None:
        if self._overlong:
            self._overlong = False
            self.dropped["too long"] += 1
            return None
        if not self._begun:
            return None
        try:
            whole: bytes = cobs.decode(bytes(self._begun))
        except cobs.DecodeError:
            self.dropped["no frame"] += 1
            return None
        finally:
            self._begun.clear()
        return whole
