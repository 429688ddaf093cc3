"""Members of a site of emulated devices that are processes of this host: real daemons on the same LAN, with files instead of slots."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from qemu.cable import INTERFACE, plugged
from tests.localsite import AGENT, Member
from tests.workstation import Kit, command

_MIB = 1 << 20
# As large as what the devices' bundles hold; sparse.
_PLACES = {"rootfs": 128 * _MIB, "boot": 64 * _MIB}
SHUTDOWN_S = 16.0
TRIAL_S = 10.0


class _Images(Kit):
    """Keyring of the devices' images; makes nothing."""

    def __init__(self, ring: Path) -> None:
        self.folder, self.ring, self.images = ring.parent, ring, {}


class Neighbour:
    """One such member, with a device of its own. It is asked by processes: the site's harness has threads.

    number: of the member, and of its port. ring: the images' keyring. program: AGENT or LIAR.
    """

    def __init__(self, number: int, folder: Path, ring: Path, port: Path, program: Path = AGENT) -> None:
        self.number = number
        self.member = Member(f"n{number}", folder, _Images(ring), program)
        device = self.member.device
        for place, path in device.places.items():
            os.truncate(path, _PLACES[place.partition(".")[2]])
        device.edit('compatible = "acme"', 'compatible = "abu-qemu"')
        device.edit('keyring = "ring.abk"', 'keyring = "ring.abk"\nallow_test_keys = true')
        with device.config.open("a") as file:
            file.write(f'[fleet]\nudp_interface = "{INTERFACE}"\ncontrol = "fleet.sock"\nhooks = "hooks"\n')
        self.member.before = plugged(port, f"192.0.2.{number + 1}/24", f"52:54:00:ab:01:{number:02x}", ())

    def ask(self, *words: str | Path) -> dict[str, Any]:
        """A verb with --json; empty where it fails (the daemon does not answer)."""
        argv = command("-c", self.member.device.config, "--json", *words)
        done = subprocess.run(argv, env=self.member.environ, capture_output=True, text=True, timeout=60, check=False)
        document: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return document

    def key(self) -> str:
        """Its public key, of the first `fleet join`."""
        return str(self.ask("fleet", "join")["key"])

    def join(self, membership: Path) -> None:
        """Be a member from now on: the second `fleet join`, and the daemon."""
        assert self.ask("fleet", "join", membership)
        self.member.start()

    def go_on(self) -> bool:
        """Carry out what it has ordered; True where it was down and is back, its update confirmed.

        Down for long enough to be missed on the wire: what is judged there is judged for this one too.
        """
        if not self.member.wants_reboot():
            return False
        self.member.stop()
        time.sleep(SHUTDOWN_S)
        self.member.reboot()
        time.sleep(TRIAL_S)
        assert self.ask("confirm"), self.member.log[-2000:]
        return True

    def close(self) -> None:
        """End its daemon."""
        if self.member.daemon is not None:
            self.member.daemon.kill()
            self.member.daemon.wait(20)
