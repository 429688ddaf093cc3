"""A serial port by pyserial: raw bytes, never blocking, the direction of RS-485 by the kernel where its driver can do that."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import termios
from pathlib import Path

from abupdate.errors import ConfigError
from abupdate.log import log

try:
    import serial
except ImportError as error:
    raise ConfigError(
        "pyserial is not installed, and a serial line needs it", "install pyserial; Debian: apt install python3-serial"
    ) from error

# linux/serial.h: flags, delays before and after sending in ms, padding. The numbers are those of asm-generic; others refuse them.
_RS485 = struct.Struct("@II I20x")
_TIOCGRS485, _TIOCSRS485 = 0x542E, 0x542F
_ENABLED, _RTS_ON_SEND = 1, 2
_PIECE_BYTES = 2048


class Gone(Exception):
    """The port cannot be used any more, or not yet: unplugged, taken by somebody else, no serial port at all."""


class SerialPort:
    """An open port. kernel_switches: the kernel switches the direction of an RS-485 driver; else the adapter must do that by itself."""

    def __init__(self, path: Path, baud: int, *, rs485: bool) -> None:
        """Raises Gone."""
        self.path = path
        self.kernel_switches = False
        self._port = serial.Serial(exclusive=True, timeout=0, write_timeout=0)
        self._port.port = str(path)
        self._port.baudrate = baud
        if rs485:
            # Where RTS is the direction: listen.
            self._port.rts = False
        try:
            self._port.open()
            if rs485:
                self.kernel_switches = _let_kernel_switch(self._port.fileno())
            # Some USB adapters collect what comes in for 16 ms; the ring has to know earlier.
            with contextlib.suppress(OSError, ValueError, NotImplementedError):
                self._port.set_low_latency_mode(True)
        except (OSError, ValueError, termios.error) as error:
            self._port.close()
            raise Gone(str(error)) from error

    def fileno(self) -> int:
        """To wait on."""
        return int(self._port.fileno())

    def read(self) -> bytes:
        """What has come in, at most 2048 bytes; empty: nothing. Raises Gone."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        try:
            ready = poll.poll(0)
            if not ready:
                return b""
            data = os.read(self.fileno(), _PIECE_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise Gone(str(error)) from error
        if not data:
            raise Gone("it was unplugged")
        return data

    def write(self, data: bytes) -> int:
        """How many bytes of these the kernel has taken. Raises Gone."""
        try:
            return os.write(self.fileno(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EINTR:
                return 0
            raise Gone(str(error)) from error

    def drop_output(self) -> None:
        """Forget what the line has not taken."""
        with contextlib.suppress(OSError, termios.error):
            termios.tcflush(self.fileno(), termios.TCOFLUSH)

    def close(self) -> None:
        """Let somebody else have it."""
        with contextlib.suppress(OSError):
            self._port.close()


def _let_kernel_switch(descriptor: int) -> bool:
    try:
        fcntl.ioctl(descriptor, _TIOCSRS485, _RS485.pack(_ENABLED | _RTS_ON_SEND, 0, 0))
        answer = fcntl.ioctl(descriptor, _TIOCGRS485, bytes(_RS485.size))
    except OSError as error:
        log.warning("the kernel does not switch this port's direction (%s): the adapter must do that by itself", error.strerror)
        return False
    # A driver clears what it cannot do.
    return bool(_RS485.unpack(answer)[0] & _ENABLED)
