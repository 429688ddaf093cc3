"""A site on one machine: workstation set-ups, each with a real daemon, over UDP on the loopback or a serial line. The test reboots them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ports import free_ports
from tests.workstation import ROOT, Kit, Workstation, environ

AGENT = ROOT / "tests" / "agent.py"
LIAR = ROOT / "tests" / "liar.py"


class Member:
    """One device of the site and its daemon."""

    def __init__(self, name: str, folder: Path, kit: Kit, program: Path = AGENT) -> None:
        """program: AGENT or LIAR. `before`: words before the daemon's command line, which end in becoming it."""
        folder.mkdir()
        self.name = name
        self.device = Workstation(folder, kit)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.reboots = 0
        self._log = folder / "daemon.log"
        self._ordered = folder / "reboot-ordered"
        self._program = program
        self.before: Sequence[str] = ()
        self._slot = "A"

    @property
    def log(self) -> str:
        """What the daemon has said so far."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def environ(self) -> dict[str, str]:
        """Of its processes."""
        return {**environ(), "ABU_TEST_FOLDER": str(self.device.folder)}

    def start(self) -> None:
        """Start the daemon."""
        assert self.daemon is None
        with self._log.open("a") as file:
            command = [*self.before, sys.executable, str(self._program), "-v", "-c", str(self.device.config), "fleet", "daemon"]
            self.daemon = subprocess.Popen(command, env=self.environ, stdout=file, stderr=file, cwd=self.device.folder)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon; its exit code."""
        assert self.daemon is not None
        daemon, self.daemon = self.daemon, None
        daemon.send_signal(number)
        return daemon.wait(20)

    def status(self) -> dict[str, Any]:
        """`fleet status --json`, empty while the daemon does not answer."""
        done = self.device.run("--json", "fleet", "status")
        return done.document if done.code == 0 else {}

    def wants_reboot(self) -> bool:
        """An order to reboot waits."""
        return self._ordered.exists()

    def reboot(self, *, works: bool = True) -> None:
        """Carry the reboot out: what the boot store puts first runs. works: else the trial slot does not start and falls back."""
        self._ordered.unlink(missing_ok=True)
        self.reboots += 1
        if self.daemon is not None:
            self.stop()
        first = self.device.printed()["BOOT_ORDER"].split()[0]
        if works:
            self._slot = first
        else:
            self.device.setenv(f"BOOT_{first}_LEFT", "0")
        self.device.reboot(self._slot)
        self.start()

    def confirm(self) -> None:
        """As the trial's service does at the end of a healthy window."""
        self.device.ok("confirm")


class LocalSite:
    """Members, enrolled and running, and an admin's key."""

    def __init__(
        self, folder: Path, kit: Kit, count: int, *, fleet: str = "", site: str = "", lines: Sequence[Path] | None = None, liars: int = 0
    ) -> None:
        """fleet: more lines of each configuration's [fleet]. site: more lines of SITE.toml. lines: serial devices, instead of UDP.

        liars: so many of the last members lie.
        """
        self.folder = folder
        self.kit = kit
        programs = [AGENT] * (count - liars) + [LIAR] * liars
        self.members = [Member(f"gw{number}", folder / f"gw{number}", kit, program) for number, program in enumerate(programs, 1)]
        kit.make("keys", "generate", folder / "anna")
        ports = free_ports(count)
        for number, (member, port) in enumerate(zip(self.members, ports, strict=True)):
            peers = ", ".join(f'"127.0.0.1:{other}"' for other in ports if other != port)
            medium = f'udp_interface = "lo"\nudp_group = ""\nudp_port = {port}\nudp_peers = [{peers}]'
            if lines is not None:
                medium = f'serial_device = "{lines[number]}"'
            with member.device.config.open("a") as file:
                file.write(f"[fleet]\n{medium}\n")
                file.write(f'control = "fleet.sock"\nhooks = "hooks"\n{fleet}\n')
        text = ['site = "bench"', f'roots = ["{kit.folder}/root.pub"]', 'admins = ["anna.pub"]', "heartbeat_s = 1", site]
        for member in self.members:
            key = member.device.ok("--json", "fleet", "join").document["key"]
            text.append(f'[nodes.{member.name}]\nkey = "{key}"')
        (folder / "site.toml").write_text("\n".join(text))
        kit.make("fleet", "init", folder / "site.toml", "-o", folder / "site.abm", "--key", kit.folder / "root.pem")
        for member in self.members:
            member.device.ok("fleet", "join", folder / "site.abm")

    def start(self) -> None:
        """Start all daemons."""
        for member in self.members:
            member.start()

    def stop(self) -> None:
        """End whatever runs."""
        for member in self.members:
            if member.daemon is not None:
                member.daemon.kill()
                member.daemon.wait()

    def propose(self, bundle: str, *words: str | Path) -> str:
        """An admin orders an update at the first member; the order's id."""
        key = ("--key", self.folder / "anna.pem")
        source = ("--source", self.kit[bundle])
        done = self.members[0].device.ok("--json", "fleet", "propose", self.kit[bundle], *source, *words, *key)
        return str(done.document["order"])

    def until(self, reached: Callable[[], bool], what: str, timeout_s: float = 60.0, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until something holds; fails with everybody's last words."""
        end_s = time.monotonic() + timeout_s
        while not reached():
            meanwhile()
            assert time.monotonic() < end_s, f"not {what} in {timeout_s:g} s\n" + "\n".join(
                f"--- {member.name}\n{member.log[-3000:]}" for member in self.members
            )
            time.sleep(0.1)


@contextmanager
def local_site(
    folder: Path, kit: Kit, count: int, *, lines: Sequence[Path] | None = None, liars: int = 0, **more: str
) -> Iterator[LocalSite]:
    """A site whose daemons end with the block."""
    site = LocalSite(folder, kit, count, lines=lines, liars=liars, **more)
    try:
        site.start()
        yield site
    finally:
        site.stop()


def agreed(log: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What all must have alike of the document of `fleet log`: each knows of a quorum that signed, not of the same one."""
    return [{key: value for key, value in one.items() if key not in ("signed_by", "round")} for one in log["entries"]]


def ended(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who completed, in order, by the whole log of a site of width 1: each lease ends once, in its own holder's name, before the next."""
    held: dict[int, str] = {}
    done: list[str] = []
    for entry in entries:
        for release in entry.get("releases", ()):
            assert held.pop(release["lease"]) == release["node"], entries
            assert release["ending"] == "complete", release
            done.append(release["node"])
        for grant in entry.get("grants", ()):
            assert held == {}, f"two leases at once: {entries}"
            held[entry["height"]] = grant["node"]
    assert held == {}
    return done
