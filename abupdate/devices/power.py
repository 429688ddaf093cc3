"""Ordered reboot: through the init system, or the kernel's own call where there is none that answers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from shutil import which

from abupdate.errors import Failed
from abupdate.log import log

_RB_AUTOBOOT = 0x01234567
_ANSWER_S = 20
_SYSTEMD = Path("/run/systemd/system")
_SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"


def reboot() -> None:
    """Ask the init system for a reboot and return once it has taken the order. Raises Failed where nothing takes it."""
    # systemd's own `reboot` drops a parameter that waits in /run/systemd/reboot-param, `systemctl reboot` passes it on.
    for name, *words in ((("systemctl", "reboot"),) if _SYSTEMD.is_dir() else ()) + (("reboot",),):
        program = which(name, path=_SEARCH)
        if program is None:
            continue
        try:
            done = subprocess.run([program, *words], stdin=subprocess.DEVNULL, timeout=_ANSWER_S, check=False)
            if done.returncode == 0:
                return
            log.warning("%s ended with %d", program, done.returncode)
        except (OSError, subprocess.TimeoutExpired) as error:
            log.warning("%s: %s", program, error)
    reboot_now()


def reboot_now() -> None:
    """Flush and let the kernel reboot at once, without the init system. Raises Failed where the kernel refuses."""
    import ctypes

    os.sync()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.reboot(_RB_AUTOBOOT)
    raise Failed(f"the kernel refuses to reboot: {os.strerror(ctypes.get_errno())}", "reboot by hand")
