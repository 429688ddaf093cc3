"""`abupdate` as a process in tests of a site: the order to reboot goes into a file, and what lies in /run lies in the test's folder.

Called as ABU_TEST_FOLDER=folder python tests/agent.py ARGUMENTS... Children of the daemon are called the same way.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from abupdate import fleetwiring, wiring
from abupdate.__main__ import main
from abupdate.devices import power, thisboot

_FOLDER = Path(os.environ["ABU_TEST_FOLDER"])


def _ordered() -> None:
    (_FOLDER / "reboot-ordered").touch()


def prepare() -> None:
    """From now on this process has no device but the folder's."""
    power.reboot = power.reboot_now = _ordered
    wiring.fleet_health = lambda: _FOLDER / "run" / "fleet-health"
    thisboot.LinuxBoot.mark_settled = lambda self: None  # type: ignore[method-assign]
    fleetwiring.abupdate = lambda settings: (sys.executable, __file__, "-c", str(settings.path), "--json")


if __name__ == "__main__":
    prepare()
    sys.exit(main(sys.argv[1:]))
