"""A scenario of a boot hook, and what every hook's kernel must have been told: shared by the tests that boot our hooks for real."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.sim.hook_model import HookBoot

# What a boot partition holds. GONE: no kernel. JUNK: a kernel that does not start. RUINED: no file system. HANG: starts and hangs.
GOOD, GONE, NO_INITRD, JUNK, RUINED, HANG = "good", "gone", "no-initrd", "junk", "ruined", "hang"


@dataclass(frozen=True)
class Case:
    """Variables, what lies in the boot partitions, and what must come of it. then: variables that differ afterwards."""

    env: dict[str, str]
    slot: str | None
    then: dict[str, str] = field(default_factory=dict)
    a: str = GOOD
    b: str = GOOD
    readonly: bool = False
    trial: bool = False
    failed: str = ""
    unsaved: bool = False

    @property
    def loads(self) -> list[str]:
        """Slots whose kernel and initramfs load."""
        return [slot for slot, kind in (("A", self.a), ("B", self.b)) if kind == GOOD]


def without(env: dict[str, str], *names: str) -> dict[str, str]:
    """The variables but these."""
    return {name: value for name, value in env.items() if name not in names}


def told(case: Case, said: HookBoot, args: dict[str, str], console: str) -> None:
    """The kernel that ran was told what the case and the model say. console: its console=."""
    assert case.slot is not None
    assert args["root"] == f"PARTLABEL=rootfs_{case.slot.lower()}"
    assert (args["panic"], args["console"], "ro" in args) == ("10", console, True)
    assert ("abupdate.trial" in args) == case.trial == said.trial
    assert args.get("abupdate.failed", "") == case.failed == ",".join(said.failed)
    assert ("abupdate.unsaved" in args) == case.unsaved == said.unsaved
    assert args.get("abupdate.boot_timeout") == args.get("watchdog.open_timeout") == (str(said.timeout_s) if case.trial else None)
