"""Boards that run RAUC's, Mender's or SWUpdate's boot script: the same environment, their variables, fw_printenv and fw_setenv."""

from __future__ import annotations

import subprocess
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from abupdate.bootloaders.menderenv import Mender
from abupdate.bootloaders.swupdateenv import SWUpdate
from abupdate.bootloaders.uboot import UBootStore
from abupdate.bootloaders.ubootdialect import Dialect, Native
from abupdate.model import TrialPolicy
from abupdate.ports import Bootloader
from tests.contract.subject import SLOTS, Seen, Subject

_BYTES = 0x4000
_OURS = ("BOOT_",)


class _Environment(Subject):
    factory: Mapping[str, str]
    theirs: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir(exist_ok=True)
        self._config = folder / "fw_env.config"
        self._areas = [folder / "env0", folder / "env1"]
        self._config.write_text("".join(f"{area} 0x0 {_BYTES:#x}\n" for area in self._areas))
        text = "".join(f"{name}={value}\n" for name, value in {"serial#": "0815", **self.factory}.items())
        for area in self._areas:
            subprocess.run(["mkenvimage", "-r", "-s", hex(_BYTES), "-o", area, "-"], input=text.encode(), check=True)
        (folder / "proc/sys/kernel").mkdir(parents=True)
        (folder / "proc/cmdline").write_text("root=/dev/mmcblk0p2 ro\n")
        (folder / "proc/sys/kernel/panic").write_text("0\n")

    @property
    @abstractmethod
    def dialect(self) -> Dialect:
        """The meaning of the variables."""

    def store(self) -> Bootloader:
        return UBootStore(
            self._config,
            SLOTS,
            dialect=self.dialect,
            root=self.folder,
            lock_path=self.folder / "lock",
            default_environment=self.folder / "none",
        )

    def values(self) -> dict[str, str]:
        said = subprocess.run(["fw_printenv", "-c", self._config], capture_output=True, text=True, check=True).stdout
        return dict(line.partition("=")[::2] for line in said.splitlines())

    def others(self) -> dict[str, str]:
        return {name: value for name, value in self.values().items() if name not in self.theirs and not name.startswith(_OURS)}

    def set(self, **values: str) -> None:
        script = "".join(f"{name}={value}\n" for name, value in values.items())
        subprocess.run(["fw_setenv", "-c", self._config, "-s", "-"], input=script.encode(), check=True)

    def tool_adds(self) -> None:
        self.set(ethaddr="02:00:00:00:00:01")

    def spoil(self) -> bool:
        for area in self._areas:
            data = bytearray(area.read_bytes())
            data[100] ^= 1
            area.write_bytes(data)
        return True


class Rauc(_Environment):
    """See Subject. The script reads counters with `test`: decimal digits."""

    policy = TrialPolicy(3, 3, 120)
    # The script makes them at its first start, and its environment has none before.
    factory: Mapping[str, str] = {}

    @property
    def dialect(self) -> Dialect:
        return Native(SLOTS, rauc=True)

    def tool_sees(self) -> Seen:
        values = self.values()
        order = values.get("BOOT_ORDER", "A B").split()
        lefts = {slot: int(values.get(f"BOOT_{slot}_LEFT", "3"), 10) for slot in SLOTS}
        trial = values.get("BOOT_TRIAL") or None
        return Seen(next(slot for slot in order if lefts[slot]), trial, lefts[trial] if trial else None, self.others())

    def tool_boots(self, slot: str, left: int) -> None:
        self.set(**{f"BOOT_{slot}_LEFT": f"{left:x}"})


class OnMender(_Environment):
    """See Subject."""

    policy = TrialPolicy(3, 0, 120)
    factory: Mapping[str, str] = {
        "mender_boot_part": "9",
        "mender_boot_part_hex": "9",
        "upgrade_available": "0",
        "bootcount": "0",
        "bootlimit": "3",
        "mender_check_saveenv_canary": "1",
        "mender_saveenv_canary": "1",
    }
    theirs = ("mender_boot_part", "mender_boot_part_hex", "upgrade_available", "bootcount", "bootlimit")

    @property
    def dialect(self) -> Dialect:
        return Mender(SLOTS, {"A": 9, "B": 10})

    def tool_sees(self) -> Seen:
        values = self.values()
        first = {"9": "A", "10": "B"}[values["mender_boot_part"]]
        assert int(values["mender_boot_part_hex"], 16) == int(values["mender_boot_part"])
        on_trial = values["upgrade_available"] == "1"
        left = int(values["bootlimit"]) - int(values["bootcount"]) if on_trial else None
        return Seen(first, first if on_trial else None, left, self.others())

    def tool_boots(self, slot: str, left: int) -> None:
        values = self.values()
        if values["upgrade_available"] != "1":
            return
        if slot == {"9": "A", "10": "B"}[values["mender_boot_part"]]:
            self.set(bootcount=f"{int(values['bootlimit']) - left}")
        else:
            number = {"A": 9, "B": 10}[slot]
            self.set(mender_boot_part=f"{number}", mender_boot_part_hex=f"{number:x}", upgrade_available="0")


class OnSWUpdate(_Environment):
    """See Subject."""

    policy = TrialPolicy(2, 0, 120)
    factory: Mapping[str, str] = {"rootfs": "first", "ustate": "0", "bootlimit": "3"}
    theirs = ("rootfs", "ustate", "upgrade_available", "bootcount", "bootlimit")

    @property
    def dialect(self) -> Dialect:
        return SWUpdate(SLOTS, "rootfs", {"A": "first", "B": "second"})

    def tool_sees(self) -> Seen:
        values = self.values()
        first = {"first": "A", "second": "B"}[values["rootfs"]]
        on_trial = values["ustate"] == "1"
        assert (values.get("upgrade_available") == "1") == on_trial
        left = int(values["bootlimit"]) - int(values["bootcount"]) if on_trial else None
        return Seen(first, first if on_trial else None, left, self.others())

    def tool_boots(self, slot: str, left: int) -> None:
        values = self.values()
        if values["ustate"] != "1":
            return
        if slot == {"first": "A", "second": "B"}[values["rootfs"]]:
            self.set(bootcount=f"{int(values['bootlimit']) - left}")
        else:
            self.set(rootfs={"A": "first", "B": "second"}[slot], ustate="3", bootcount="0", upgrade_available="0")
