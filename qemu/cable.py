"""A process on the LAN of emulated devices: alone in a network namespace, whose one interface is plugged into a port of the hub (lan.py).

`plugged` makes the command line. Run as a program (inside `unshare --net`), this makes the interface, leaves a child behind that carries
Ethernet frames between the two, and becomes the command: its process id is the one that was started. Needs root and /dev/net/tun.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TUN = Path("/dev/net/tun")
INTERFACE = "eth0"
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_LENGTH = struct.Struct(">I")
_FRAME_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1
_USAGE = "usage: cable.py HUB_SOCKET ADDRESS/LENGTH MAC COMMAND..."


def plugged(port: Path, address: str, mac: str, command: Sequence[str]) -> list[str]:
    """The command line of a command on the LAN. port: the hub's socket. address: with its prefix length, as in 192.0.2.5/24."""
    return ["unshare", "--net", sys.executable, __file__, str(port), address, mac, *command]


def main(words: Sequence[str]) -> None:
    """Does not return. Raises OSError, CalledProcessError where the interface cannot be made or the hub is not there."""
    if len(words) < 4:
        sys.exit(_USAGE)
    port, address, mac, *command = words
    tap = _tap()
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH", INTERFACE.encode(), _IFF_TAP | _IFF_NO_PI))
    hub = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    hub.connect(port)
    for said in (
        ("link", "set", "dev", "lo", "up"),
        ("link", "set", "dev", INTERFACE, "address", mac),
        ("addr", "add", address, "dev", INTERFACE),
        ("link", "set", "dev", INTERFACE, "up"),
        ("route", "add", "224.0.0.0/4", "dev", INTERFACE),
    ):
        subprocess.run(["ip", *said], check=True, timeout=20)
    parent = os.getpid()
    if os.fork() == 0:
        # It ends with the command, however that ends.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            carry(tap, hub)
        os._exit(0)
    os.execvp(command[0], command)


def _tap() -> int:
    """A new interface's descriptor. A container may lack the device file of a driver that its kernel has."""
    if not TUN.exists():
        TUN.parent.mkdir(exist_ok=True)
        os.mknod(TUN, stat.S_IFCHR | 0o600, os.makedev(10, 200))
    return os.open(TUN, os.O_RDWR | os.O_CLOEXEC)


def carry(tap: int, hub: socket.socket) -> None:
    """Frames both ways until the hub hangs up. tap: descriptor of the interface, a frame each read and write."""
    inbox = bytearray()
    while True:
        ready, _, _ = select.select([tap, hub.fileno()], [], [])
        if tap in ready:
            data = os.read(tap, _FRAME_BYTES)
            hub.sendall(_LENGTH.pack(len(data)) + data)
        if hub.fileno() in ready:
            data = hub.recv(_FRAME_BYTES)
            if not data:
                return
            inbox += data
            while len(inbox) >= _LENGTH.size and len(inbox) >= _LENGTH.size + (length := _LENGTH.unpack_from(inbox)[0]):
                os.write(tap, inbox[_LENGTH.size : _LENGTH.size + length])
                del inbox[: _LENGTH.size + length]


if __name__ == "__main__":
    main(sys.argv[1:])
