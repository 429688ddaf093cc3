"""What a Raspberry Pi's firmware told the kernel about this boot, and the parameter of the next ordered reboot.

systemd keeps that parameter in /run/systemd/reboot-param and hands it to the kernel at the end of a shutdown; a kernel of the Raspberry
Pi's own tree sets the firmware's one-shot flag where it holds ` tryboot`. As run with systemd 252: `systemctl reboot` leaves the file as
it is, `reboot` without an argument removes it, `reboot '0 tryboot'` writes it. It lies in a tmpfs: nothing but that shutdown uses it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol

from abupdate.errors import Failed
from abupdate.log import log

PARAMETER = "0 tryboot"


class Platform(Protocol):
    """Around autoboot.txt; the crash simulator has one of its own."""

    def chosen(self, name: str) -> int | None:
        """A number in the device tree's chosen/bootloader; None where there is none."""

    def asked(self) -> bool:
        """True where the next ordered reboot sets the flag."""

    def ask(self) -> None:
        """Have it set. Raises Failed."""

    def forget(self) -> None:
        """Take that back; a parameter of somebody else stays."""

    def slot_argument(self) -> str | None:
        """What the kernel was told in abupdate.slot=; None where it was not."""

    def shortcomings(self) -> tuple[tuple[str, str], ...]:
        """Why asking might not be enough here: text and hint."""


class LinuxPi:
    """`Platform` of the running system. root: of /proc, /run, /dev."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._parameter = root / "run/systemd/reboot-param"

    def chosen(self, name: str) -> int | None:
        """See Platform: 4 bytes, big-endian."""
        try:
            with (self._root / "proc/device-tree/chosen/bootloader" / name).open("rb") as file:
                data = file.read(5)
        except OSError:
            return None
        return int.from_bytes(data, "big") if len(data) == 4 else None

    def asked(self) -> bool:
        """See Platform."""
        try:
            with self._parameter.open("rb") as file:
                return file.read(64).split() == PARAMETER.encode().split()
        except OSError:
            return False

    def ask(self) -> None:
        """See Platform."""
        if not self._parameter.parent.is_dir():
            # Without systemd the parameter is up to whoever reboots.
            log.warning("the trial starts with: reboot '%s'", PARAMETER)
            return
        fresh = self._parameter.with_name(f".{self._parameter.name}.abupdate")
        try:
            fresh.write_text(f"{PARAMETER}\n")
            fresh.replace(self._parameter)
        except OSError as error:
            raise Failed(f"{self._parameter} cannot be written: {error.strerror}", f"reboot with: systemctl reboot '{PARAMETER}'") from None

    def forget(self) -> None:
        """See Platform."""
        if self.asked():
            with suppress(OSError):
                self._parameter.unlink()

    def slot_argument(self) -> str | None:
        """See Platform."""
        try:
            words = (self._root / "proc/cmdline").read_text().split()
        except OSError:
            return None
        return next((word.partition("=")[2] for word in reversed(words) if word.startswith("abupdate.slot=")), None)

    def shortcomings(self) -> tuple[tuple[str, str], ...]:
        """See Platform."""
        found = []
        if not (self._root / "dev/vcio").exists():
            text = "this kernel has no /dev/vcio: kernels without the Raspberry Pi's own patches may drop the parameter tryboot"
            found.append((text, "use a kernel of the Raspberry Pi's tree, or prove that a trial starts"))
        if not (self._root / "run/systemd/system").is_dir():
            text = "this init system does not pass on /run/systemd/reboot-param: a plain reboot would not start a trial"
            found.append((text, f"reboot with: reboot '{PARAMETER}', by a program that hands its argument to the kernel"))
        return tuple(found)
