"""systemd-boot's entries in a folder, with bootctl of systemd, which lists them in the order of their boot."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from abupdate.bootloaders.systemdboot import SystemdBootStore
from abupdate.model import TrialPolicy
from abupdate.ports import Bootloader
from tests.contract.subject import SLOTS, Seen, Subject

# bootctl takes nothing but the root of a file system for an ESP.
_LIST = "mount -t tmpfs none /mnt && cp -a {esp}/. /mnt/ && SYSTEMD_RELAX_ESP_CHECKS=1 bootctl --esp-path=/mnt list --json=short"
_BY_HAND = "title Factory\nlinux /abu/A/vmlinuz\noptions abupdate.slot=A root=PARTLABEL=rootfs_A ro\n"


class SdBoot(Subject):
    """See Subject."""

    policy = TrialPolicy(3, 0, 120)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._esp = folder / "efi"
        self._entries = self._esp / "loader/entries"
        self._entries.mkdir(parents=True)
        (self._esp / "EFI/systemd").mkdir(parents=True)
        (self._esp / "loader/loader.conf").write_text("default slot-*\n")
        for slot in SLOTS:
            (self._esp / "abu" / slot).mkdir(parents=True)
            (self._esp / "abu" / slot / "vmlinuz").write_bytes(b"kernel")
        (self._entries / "slot-A.conf").write_text(_BY_HAND)

    def store(self) -> Bootloader:
        images = {slot: {"kernel": self._esp / "abu" / slot / "vmlinuz"} for slot in SLOTS}
        return SystemdBootStore(self._esp, SLOTS, images, {slot: f"root=PARTLABEL=rootfs_{slot} ro" for slot in SLOTS})

    def tool_sees(self) -> Seen:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", _LIST.format(esp=self._esp)], capture_output=True, text=True, timeout=60, check=True
        )
        entries = [json.loads(line) for line in done.stdout.splitlines()]
        # bootctl also lists what is switched off, which systemd-boot passes over.
        ours = [one for one in entries if one["id"].startswith("slot-") and "linux" in one]
        trial = next((one for one in ours if "abupdate.trial=1" in one["options"].split()), None)
        name = None if trial is None else trial["id"].removeprefix("slot-").removesuffix(".conf")
        others = {one["id"]: one["options"] for one in entries if not one["id"].startswith("slot-")}
        first = ours[0]["id"].removeprefix("slot-").removesuffix(".conf")
        return Seen(first, name, None if trial is None else trial.get("triesLeft"), others)

    def tool_boots(self, slot: str, left: int) -> None:
        """As the boot loader renames what it counts."""
        for path in self._entries.glob(f"slot-{slot}+*.conf"):
            done = self.policy.tries - left
            path.rename(path.with_name(f"slot-{slot}+{left}" + (f"-{done}" if done else "") + ".conf"))

    def tool_adds(self) -> None:
        (self._esp / "other").write_bytes(b"kernel")
        (self._entries / "rescue.conf").write_text("title Rescue\nlinux /other\noptions rescue\n")

    def spoil(self) -> bool:
        for path in self._entries.iterdir():
            path.write_bytes(b"")
        return True
