"""U-Boot's environment in two files, with fw_printenv and fw_setenv of libubootenv."""

from __future__ import annotations

import subprocess
from pathlib import Path

from abupdate.bootloaders.uboot import UBootStore
from abupdate.ports import Bootloader
from tests.contract.subject import SLOTS, Seen, Subject

_BYTES = 0x4000
_OURS = ("BOOT_ORDER", "BOOT_TRIAL", "BOOT_TRIES", "BOOT_BUDGET", "BOOT_TIMEOUT", "BOOT_FLOOR")


class UBoot(Subject):
    """See Subject."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._config = folder / "fw_env.config"
        self._areas = [folder / "env0", folder / "env1"]
        self._config.write_text("".join(f"{area} 0x0 {_BYTES:#x}\n" for area in self._areas))
        for area in self._areas:
            subprocess.run(["mkenvimage", "-r", "-s", hex(_BYTES), "-o", area, "-"], input=b"serial#=0815\n", check=True)

    def store(self) -> Bootloader:
        return UBootStore(self._config, SLOTS, lock_path=self.folder / "lock", default_environment=self.folder / "none")

    def tool_sees(self) -> Seen:
        said = subprocess.run(["fw_printenv", "-c", self._config], capture_output=True, text=True, check=True).stdout
        values = dict(line.partition("=")[::2] for line in said.splitlines())
        order = values.get("BOOT_ORDER", "A B").split()
        lefts = {slot: int(values.get(f"BOOT_{slot}_LEFT", "a"), 16) for slot in SLOTS}
        trial = values.get("BOOT_TRIAL") or None
        others = {name: value for name, value in values.items() if name not in _OURS and not name.startswith(("BOOT_A_", "BOOT_B_"))}
        return Seen(next(slot for slot in order if lefts[slot]), trial, lefts[trial] if trial else None, others)

    def tool_boots(self, slot: str, left: int) -> None:
        subprocess.run(["fw_setenv", "-c", self._config, f"BOOT_{slot}_LEFT", f"{left:x}"], check=True)

    def tool_adds(self) -> None:
        subprocess.run(["fw_setenv", "-c", self._config, "ethaddr", "02:00:00:00:00:01"], check=True)

    def spoil(self) -> bool:
        for area in self._areas:
            data = bytearray(area.read_bytes())
            data[100] ^= 1
            area.write_bytes(data)
        return True
