"""What a boot script that is not ours leaves out of the kernel's arguments, what that costs, and the line to add: for `doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from abupdate.model import Finding, Grade

_TOPIC = "boot script"


def kernel_arguments(root: Path, whose: str) -> Iterator[Finding]:
    """Looks at this boot's arguments. root: of /proc. whose: the script, in words."""
    try:
        words = (root / "proc/cmdline").read_text(errors="replace").split()
        panic = (root / "proc/sys/kernel/panic").read_text().strip()
    except OSError:
        return
    if not any(word.startswith(("abupdate.slot=", "rauc.slot=")) for word in words):
        text = f"{whose} does not say which slot it boots: that is told by the root file system's device alone"
        yield Finding(Grade.WARN, _TOPIC, text, "add abupdate.slot=A (or B) to the kernel arguments of each slot")
    if panic == "0":
        text = f"{whose} sets no panic=: a kernel that panics hangs for ever, unless a watchdog runs, and never falls back"
        yield Finding(Grade.WARN, _TOPIC, text, "add panic=10 to the kernel arguments")
    if not any(word.startswith("abupdate.slot=") for word in words):
        text = f"{whose} does not mark a trial: nothing arms the watchdog before the service starts, and a hang until then hangs for ever"
        line = "abupdate.slot=A abupdate.trial=1 abupdate.boot_timeout=120 watchdog.open_timeout=120"
        yield Finding(
            Grade.WARN,
            _TOPIC,
            text,
            f"on trial add {line} to the kernel arguments, else abupdate.slot=A alone; or let the bootloader arm it",
        )
