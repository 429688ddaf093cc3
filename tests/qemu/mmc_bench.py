"""Boards whose U-Boot keeps its own redundant environment on the SD card: U-Boot from Debian's source package, in QEMU, no Linux.

    bench = MmcBench(folder, SCRIPT)         # a boot script, compiled to boot.scr; U-Boot is built where it is not cached
    board = bench.board(boot_a=GOOD, boot_b=GONE)
    board.set({"BOOT_ORDER": "B A"})         # beside U-Boot's own defaults (bootcmd runs boot.scr); both copies by mkenvimage -r
    boot = board.power_on()                  # until the tiny kernel or the script powers off, or U-Boot resets the board
    boot.args, boot.console, board.env(), board.copy(0)

The card has the partitions of bootloader-hooks/README.md: the script in 1, kernels in 3 and 4, the environment's copies in 2.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from images.ubootbuild import ENV_BYTES, ENV_OFFSETS, uboot
from tests.qemu import uboot_bench
from tests.qemu.hookcase import GOOD
from tests.qemu.uboot_bench import BOOT_WAIT_S, Bench, Board, Boot

# U-Boot itself adds these to what it saves.
RUNTIME = frozenset({"fdtcontroladdr", "fileaddr", "filesize", "stdin", "stdout", "stderr", "loadaddr", "bootargs"})

assert (ENV_OFFSETS, ENV_BYTES) == (uboot_bench.COPY_OFFSETS, uboot_bench.ENV_BYTES)


class MmcBench(Bench):
    """The parts that all boards share. Raises CannotBuild where U-Boot cannot be had here."""

    def __init__(self, folder: Path, hook: Path) -> None:
        made = uboot()
        self.uboot = made / "u-boot.bin"
        lines = (made / "u-boot-initial-env").read_text().splitlines()
        self.defaults = dict(line.split("=", 1) for line in lines if not line.endswith("="))
        super().__init__(folder, hook)

    def board(self, boot_a: str = GOOD, boot_b: str = GOOD) -> MmcBoard:
        """A card of its own whose environment holds no valid copy yet. One at a time: the next one overwrites it."""
        return MmcBoard(self, self._fresh_disk(boot_a, boot_b))


class MmcBoard(Board):
    """One SD card, its environment, and boots of it."""

    def __init__(self, bench: MmcBench, disk: Path) -> None:
        super().__init__(bench, disk)
        self._uboot = bench.uboot
        self.defaults = bench.defaults

    def command(self, *, readonly: bool = False, stock: bool = False, nbd: Path | None = None) -> list[str]:
        """QEMU's command line without what says how it ends. readonly: the card takes writes and forgets them, as worn ones do."""
        assert not stock
        assert nbd is None
        words = ["qemu-system-aarch64", "-accel", "tcg", "-M", "virt", "-cpu", "cortex-a53", "-m", "256", "-nic", "none"]
        words += ["-display", "none", "-bios", str(self._uboot), "-device", "sdhci-pci"]
        words += ["-blockdev", f"driver=file,node-name=f0,filename={self.disk}"]
        # QEMU's SD card does not tell the guest of a write that failed.
        broken = ",inject-error.0.event=write_aio,inject-error.0.iotype=write,inject-error.0.errno=5" if readonly else ""
        words += ["-blockdev", f"driver=blkdebug,node-name=b0,image=f0{broken}", "-blockdev", "driver=raw,node-name=card0,file=b0"]
        return [*words, "-device", "sd-card,drive=card0"]

    def power_on(self, *, readonly: bool = False) -> Boot:
        """Power on, until the guest powers off or resets. words is None where no kernel ran."""
        command = [*self.command(readonly=readonly), "-serial", "stdio", "-monitor", "none", "-no-reboot"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_WAIT_S, check=False)
        console = done.stdout.decode(errors="replace").replace("\r", "")
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        found = re.search(r"^tiny: (.*)$", console, re.MULTILINE)
        return Boot(tuple(found.group(1).split()) if found else None, console)

    def set(self, env: Mapping[str, str]) -> None:
        """Both copies valid: the older one with U-Boot's defaults alone, the newer one with them and `env`."""
        self.make_copy(0, {**self.defaults, "older": "copy"}, 0)
        self.make_copy(1, {**self.defaults, **env}, 1)

    def stored(self) -> dict[str, str]:
        """What fw_printenv says, without U-Boot's own defaults and what it adds when it saves."""
        return {name: value for name, value in self.env().items() if self.defaults.get(name) != value and name not in RUNTIME}
