"""Process 1 of the EFI bench's guest: efivarfs, the ESP, and whatever Python the host sends over the serial line.

Says `GUEST READY` with the kernel's command line, then answers each line (base64 of a program) with a line: what the program left in
`result`, or the error that it raised. The program sees `variables` (abupdate's), `store()` and `libc`.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

POWER_OFF, RESTART = 0x4321FEDC, 0x1234567
libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, source: str, target: str) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mount {target}")


def load_modules() -> None:
    for path in (Path("/modules") / name for name in Path("/modules/order").read_text().split()):
        fd = os.open(path, os.O_RDONLY)
        if libc.syscall({"x86_64": 313, "aarch64": 273}[platform.machine()], fd, b"", 0):
            raise OSError(ctypes.get_errno(), f"load {path.name}")
        os.close(fd)


def store():  # type: ignore[no-untyped-def]
    """The adapter as wiring makes it, for the slots of the bench."""
    from abupdate.bootloaders.efi import EfiStore
    from abupdate.bootloaders.efientries import SlotFiles

    esp = Path("/efi")
    arguments = "console=ttyS0 quiet random.trust_cpu=on"
    if Path("/efi/abu/A/linux.efi").exists():
        slots = {s: SlotFiles(esp / f"abu/{s}/linux.efi", None, f"{arguments} root={s}", unified=True) for s in "AB"}
    else:
        slots = {s: SlotFiles(esp / f"abu/{s}/vmlinuz", esp / f"abu/{s}/initrd.img", f"{arguments} root={s}") for s in "AB"}
    return EfiStore(slots, esp=esp)


def sh(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def main() -> None:
    mount("proc", "proc", "/proc")
    mount("sysfs", "sysfs", "/sys")
    mount("devtmpfs", "devtmpfs", "/dev")
    console = os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY)
    for number in (0, 1, 2):
        os.dup2(console, number)
    import tty

    tty.setraw(0)
    load_modules()
    mount("efivarfs", "efivarfs", "/sys/firmware/efi/efivars")
    deadline = time.monotonic() + 20
    while not Path("/dev/vda1").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    mount("vfat", "/dev/vda1", "/efi")
    sys.path.insert(0, "/package")
    words = Path("/proc/cmdline").read_text().split()
    if "fault=panic" in words:
        Path("/proc/sysrq-trigger").write_text("c")
    sys.stdout.write(f"\r\nGUEST READY {json.dumps(words)}\r\n")
    sys.stdout.flush()
    for line in sys.stdin.buffer:
        names = {"store": store, "sh": sh, "libc": libc, "Path": Path, "os": os, "result": None}
        try:
            exec(base64.b64decode(line), names)  # from the test beside it
            answer: object = {"result": names["result"]}
        except BaseException as error:  # the host is told
            answer = {"error": repr(error), "hint": getattr(error, "hint", "")}
        sys.stdout.write("\r\nGUEST SAYS " + base64.b64encode(json.dumps(answer).encode()).decode() + "\r\n")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:  # the host is told
        sys.stdout.write(f"\r\nGUEST FAULT {error!r}\r\n")
        sys.stdout.flush()
        libc.reboot(POWER_OFF)
