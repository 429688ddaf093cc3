"""The Raspberry Pi's autoboot.txt in a file; its firmware, of which there is no copy to run, as the crash simulator's model of it."""

from __future__ import annotations

from pathlib import Path

from abupdate.bootloaders.piplatform import LinuxPi
from abupdate.bootloaders.tryboot import TrybootStore
from abupdate.model import TrialPolicy
from abupdate.ports import Bootloader
from tests.contract.subject import SLOTS, Seen, Subject
from tests.sim.pi import FACTORY, PARTITIONS, chosen_partition

_OURS = ("[", "# abupdate ", "boot_partition=", "tryboot_a_b=")


class Tryboot(Subject):
    """See Subject. The folder is the root of /proc and /run as well."""

    policy = TrialPolicy(1, 0, 120)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder / "autoboot.txt"
        self._file.write_bytes(FACTORY)
        (folder / "run/systemd/system").mkdir(parents=True)
        (folder / "dev").mkdir()
        (folder / "dev/vcio").touch()
        self._parameter = folder / "run/systemd/reboot-param"
        self._started(flag=False)

    def _started(self, *, flag: bool) -> str:
        """The firmware boots, and tells the kernel."""
        slot = self._next(flag)
        chosen = self.folder / "proc/device-tree/chosen/bootloader"
        chosen.mkdir(parents=True, exist_ok=True)
        (chosen / "partition").write_bytes(PARTITIONS[slot].to_bytes(4, "big"))
        (chosen / "tryboot").write_bytes(int(flag).to_bytes(4, "big"))
        return slot

    def _next(self, flag: bool) -> str:
        partition = chosen_partition(self._file.read_bytes(), flag, tuple(PARTITIONS.values()))
        return next(slot for slot, number in PARTITIONS.items() if number == partition)

    def store(self) -> Bootloader:
        return self._store()

    def _store(self) -> TrybootStore:
        return TrybootStore(self._file, SLOTS, PARTITIONS, platform=LinuxPi(self.folder))

    def tool_sees(self) -> Seen:
        asked = self._parameter.exists() and self._parameter.read_text().split() == ["0", "tryboot"]
        first, good = self._next(asked), self._next(flag=False)
        others = [line for line in self._file.read_text().splitlines() if line and not line.startswith(_OURS)]
        return Seen(first, first if first != good else None, None, dict(enumerate_names(others)))

    def tool_boots(self, slot: str, left: int) -> None:
        """An ordered reboot: the service notes the try on its way down, systemd hands over the parameter, the firmware looks at it."""
        flag = self._parameter.exists()
        self._store().depart()
        self._parameter.unlink(missing_ok=True)
        assert self._started(flag=flag) == slot

    def tool_adds(self) -> None:
        self._file.write_text("# put here by hand\n" + self._file.read_text().rstrip("\n") + "\n")

    def spoil(self) -> bool:
        self._file.write_bytes(bytes(512))
        return True


def enumerate_names(lines: list[str]) -> list[tuple[str, str]]:
    """Lines by their place."""
    return [(str(number), line) for number, line in enumerate(lines)]
