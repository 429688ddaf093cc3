"""Opens a console on a fresh device: `python -m qemu.shell`. Ctrl-] ends it; --keep FOLDER keeps the disk for the next time."""

from __future__ import annotations

import argparse
import os
import select
import sys
import termios
import tty
from pathlib import Path

from qemu.console import Console
from qemu.device import Device

ESCAPE = b"\x1d"


def main() -> int:
    """Start a device and connect the terminal to its serial line."""
    parser = argparse.ArgumentParser(prog="qemu.shell", description="a console on an emulated device; Ctrl-] ends it")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep disk and console log here")
    options = parser.parse_args()
    with Device(options.keep) as device:
        up = device.boot()
        print(f"slot {up.slot}, version {up.version}; log {device.folder}/console.log; Ctrl-] ends", file=sys.stderr)
        device.console.mirror = show
        device.type("stty sane; PS1='abu-qemu# ' sh -i; stty -echo")
        talk(device.console)
    return 0


def show(data: bytes) -> None:
    """What the machine says, for the person at the terminal."""
    os.write(1, data)


def talk(console: Console) -> None:
    """Copy what is typed to the serial line until Ctrl-], the end of stdin or of the machine."""
    saved = termios.tcgetattr(0) if os.isatty(0) else None
    if saved:
        tty.setraw(0)
    try:
        while console.connected:
            ready, _, _ = select.select([0], [], [], 0.5)
            if ready:
                typed = os.read(0, 4096)
                if not typed or ESCAPE in typed:
                    return
                console.send_bytes(typed)
    finally:
        if saved:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)


if __name__ == "__main__":
    sys.exit(main())
