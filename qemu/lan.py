"""A LAN of emulated devices: a hub between QEMU's stream network backends, which can lose frames, cut ports off, and sees who says what.

QEMU's framing on the UNIX socket is a length (u32, big-endian) and an Ethernet frame.
"""

from __future__ import annotations

import struct
from pathlib import Path

from qemu.cables import Cables, Port

FLEET_PORT = 7717
_LENGTH = struct.Struct(">I")
_MAX_FRAME_BYTES = 1 << 16
_ETHERNET, _IPV4, _IPV6, _UDP = 14, 0x0800, 0x86DD, 17


class Hub(Cables):
    """See Cables; `path(port)` is where a device's `-netdev stream` connects to."""

    name = "lan"

    def __init__(self, folder: Path, ports: int, seed: int = 0) -> None:
        super().__init__(folder, ports, seed)
        self._loss = 0.0

    def lose(self, share: float) -> None:
        """This share of all frames gets lost, to each receiver on its own."""
        with self._lock:
            self._loss = share

    def heal(self) -> None:
        """A whole network again."""
        super().heal()
        self.lose(0.0)

    def sort(self, port: Port) -> bool:
        """See Cables: each whole Ethernet frame goes to the others."""
        while len(port.inbox) >= _LENGTH.size:
            length = _LENGTH.unpack_from(port.inbox)[0]
            if length > _MAX_FRAME_BYTES:
                return False
            if len(port.inbox) < _LENGTH.size + length:
                break
            whole = bytes(port.inbox[: _LENGTH.size + length])
            del port.inbox[: _LENGTH.size + length]
            self.note(port, look(whole[_LENGTH.size :]))
            for other in self._ports:
                if self.reaches(port, other) and self._random.random() >= self._loss:
                    other.outbox += whole
        return True

    def carry(self) -> None:
        """See Cables: a frame is through at once."""


def look(ethernet: bytes) -> bytes:
    """The fleet's frame in an Ethernet frame, empty where it carries something else."""
    if len(ethernet) < _ETHERNET + 20:
        return b""
    kind = int.from_bytes(ethernet[12:14], "big")
    if kind == _IPV4:
        header, protocol = (ethernet[_ETHERNET] & 15) * 4, ethernet[_ETHERNET + 9]
    elif kind == _IPV6:
        header, protocol = 40, ethernet[_ETHERNET + 6]
    else:
        return b""
    datagram = ethernet[_ETHERNET + header :]
    if protocol != _UDP or len(datagram) < 8 or int.from_bytes(datagram[2:4], "big") != FLEET_PORT:
        return b""
    return datagram[8 : int.from_bytes(datagram[4:6], "big")]
