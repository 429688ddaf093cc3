"""SIGTERM, SIGINT and SIGKILL at every system call of every verb and of the service: the same again ends where an uncut run ends."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faultpoints import Ending, Point, at, quiet, run_with
from tests.workstation import Kit, Workstation

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
FLASH_PHASES = ("lock", "observe", "manifest", "record", "chunks", "flush", "read back", "boot store", "check store")
REBOOT = 99


@dataclass(frozen=True)
class Case:
    """A verb on a device that was brought there by `prepare`. done_already: exit code of the second run where the first had done it all.

    reason_may_be_lost: the boot store comes before the record, so that a cut between the two leaves no reason.
    """

    name: str
    prepare: Callable[[Workstation], None]
    argv: Callable[[Kit], tuple[str | Path, ...]]
    done_already: int
    phases: tuple[str, ...] = ("lock", "boot store", "record")
    service: bool = False
    reason_may_be_lost: bool = False


def written(workstation: Workstation) -> None:
    workstation.ok("flash", workstation.kit["v1"], "--no-activate")


def armed(workstation: Workstation) -> None:
    workstation.ok("flash", workstation.kit["v1"])


def on_trial(workstation: Workstation) -> None:
    armed(workstation)
    workstation.reboot("B")


def fallen_back(workstation: Workstation) -> None:
    armed(workstation)
    workstation.setenv("BOOT_B_LEFT", "0")
    workstation.reboot("A")


def both_good(workstation: Workstation) -> None:
    workstation.confirmed("v1", "B")


def counted(workstation: Workstation) -> None:
    both_good(workstation)
    workstation.setenv("BOOT_B_LEFT", "4")


def to_be_repaired(workstation: Workstation) -> None:
    """As after a fallback; what stands for the watchdog is none, which is a warning and no failure of `doctor`."""
    fallen_back(workstation)
    workstation.edit('device = "no-watchdog"', 'device = "/dev/null"')


def three_keyrings(kit: Kit) -> Path:
    """A chain of versions 1 to 3, made at the first call."""
    chain, before = kit.folder / "signals-chain.abk", kit.ring
    if not chain.exists():
        made = [kit.ring.read_bytes()]
        for number in (2, 3):
            ring = kit.folder / f"signals-{number}.abk"
            kit.make("keys", "rotate", before, "-o", ring, "--sign", kit.folder / "root.pem")
            made.append(ring.read_bytes())
            before = ring
        chain.write_bytes(b"".join(made))
    return chain


CASES = (
    Case("flash", lambda workstation: None, lambda kit: ("flash", kit["v1"]), 5, FLASH_PHASES),
    Case("flash over a good slot", both_good, lambda kit: ("flash", kit["v2"]), 5, ("chunks", "boot store", "check store")),
    Case("flash over a written slot", written, lambda kit: ("flash", kit["v2"], "--no-activate"), 0, ("manifest", "record", "read back")),
    Case("activate", written, lambda kit: ("activate",), 5, ("lock", "read back", "boot store", "record")),
    Case("confirm", on_trial, lambda kit: ("confirm",), 4),
    Case("revert, armed", armed, lambda kit: ("revert",), 4),
    Case("revert, on trial", on_trial, lambda kit: ("revert",), 4, reason_may_be_lost=True),
    Case("revert, steady", both_good, lambda kit: ("revert",), 4),
    Case("verify", both_good, lambda kit: ("verify",), 0, ("observe", "read back")),
    Case("keyring update", lambda workstation: None, lambda kit: ("keyring", "update", three_keyrings(kit)), 4, ("lock", "keyring")),
    Case("doctor --fix", to_be_repaired, lambda kit: ("doctor", "--fix"), 0, ("boot store", "record")),
    Case("service, after a fallback", fallen_back, lambda kit: ("service",), 0, service=True),
    Case("service, boots refilled", counted, lambda kit: ("service",), 0, service=True),
    Case("service, end of the window", on_trial, lambda kit: ("service", "--trial"), 0, service=True),
)


def guarded(workstation: Workstation) -> Callable[[], None]:
    """For the child: a service that cannot reboot this machine, whose window is over, and that is told to end once it has settled."""

    def prepare() -> None:
        import ctypes

        from abupdate import wiring
        from abupdate.devices import power, thisboot
        from abupdate.operations import service

        ctypes.CDLL(None).prctl(24, 22, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_BOOT: no program that is run can reboot either

        def ordered() -> None:
            os._exit(REBOOT)

        power.reboot = power.reboot_now = ordered
        vars(wiring)["RUNTIME"] = workstation.folder / "runtime"
        start_s = time.monotonic() - 300
        thisboot.LinuxBoot.boottime_s = lambda boot: time.monotonic() - start_s  # type: ignore[method-assign, assignment]
        service._TICK_S = 0.01

        def settled(boot: thisboot.LinuxBoot) -> None:
            if not (workstation.folder / "on-trial").exists():
                os.kill(os.getpid(), signal.SIGTERM)

        thisboot.LinuxBoot.mark_settled = settled  # type: ignore[method-assign, assignment]

    return prepare


class Cuts:
    """A case, its device as it is before, and how the device and the verb end when nothing cuts them."""

    def __init__(self, case: Case, workstation: Workstation, saved: Path) -> None:
        self.case = case
        self.workstation = workstation
        self.saved = saved
        self.argv = case.argv(workstation.kit)
        case.prepare(workstation)
        if "--trial" in self.argv:
            (workstation.folder / "on-trial").touch()
        shutil.copytree(workstation.folder, saved)
        self.good = {name: digest for name, digest in workstation.hashes().items() if name[0] == self.booted}
        uncut = self.run(quiet)
        assert uncut.code == 0, uncut.err
        self.points = uncut.points
        self.end = self.seen()

    @property
    def booted(self) -> str:
        return "B" if 'booted = "B"' in self.workstation.config.read_text() else "A"

    def run(self, act: Callable[[Point], None]) -> Ending:
        before = guarded(self.workstation) if self.case.service else lambda: None
        return run_with(act, "-c", self.workstation.config, *self.argv, before=before)

    def seen(self) -> dict[str, Any]:
        """Everything that a person or the boot loader can see, the time aside."""
        document = self.workstation.status()
        if document["trial"]:
            del document["trial"]["deadline_s"]
        seen = {"status": document, "printed": self.workstation.printed(), "slots": self.workstation.hashes()}
        if self.argv[0] == "keyring":
            seen["keyring"] = self.workstation.ok("--json", "keyring", "show").document
        return seen

    def restore(self) -> None:
        shutil.rmtree(self.workstation.folder)
        shutil.copytree(self.saved, self.workstation.folder)

    def cut(self, point: Point, sign: signal.Signals) -> None:
        """The verb is cut at this point, what it leaves and says is looked at, and it is run again."""
        self.restore()
        first = self.run(at(point.number, sign))
        assert "Traceback" not in first.err, first.err
        between = self.seen()
        assert {name: digest for name, digest in between["slots"].items() if name[0] == self.booted} == self.good
        self.bootable(between)
        self.said(first, sign, between)
        second = self.run(quiet)
        complete = between["printed"] == self.end["printed"]
        assert second.code == 0 or (complete and second.code == self.case.done_already), (second.code, second.err)
        after = self.seen()
        if self.case.reason_may_be_lost and complete and after["status"]["attempt"]["reason"].startswith("unknown: cut before"):
            after["status"]["attempt"]["reason"] = self.end["status"]["attempt"]["reason"]
        assert after == self.end

    def bootable(self, seen: dict[str, Any]) -> None:
        """What is first in the boot order is whole: the running slot, or one that holds its bundle to the last byte."""
        first = seen["printed"].get("BOOT_ORDER", "A").split()[0]
        if first != self.booted:
            assert seen["slots"] == self.end["slots"]

    def said(self, first: Ending, sign: signal.Signals, seen: dict[str, Any]) -> None:
        if first.code == 0:
            # It came too late, or what it met was finished: then everything is done. A service ends in order wherever it is.
            assert self.case.service or seen == self.end
        elif sign is signal.SIGKILL:
            assert first.code == -signal.SIGKILL
        else:
            assert first.code == 1
            lines = first.err.splitlines()
            assert lines[-1].startswith(f"abupdate: interrupted by {sign.name}"), first.err
            trial = seen["status"]["trial"]
            if self.argv[0] in ("flash", "activate"):
                assert ("armed all the same" in lines[-1]) == (trial is not None)


@pytest.fixture
def cuts(request: pytest.FixtureRequest, workstation: Workstation, tmp_path: Path) -> Cuts:
    return Cuts(request.param, workstation, tmp_path / "saved")


by_case = pytest.mark.parametrize("cuts", CASES, indirect=True, ids=lambda case: case.name)


# Those that differ from another case by what they find, not by what they do.
AGAIN = ("flash over a written slot", "revert, armed", "service, boots refilled")


@pytest.mark.parametrize(
    "cuts",
    [pytest.param(case, id=case.name, marks=pytest.mark.slow if case.name in AGAIN else ()) for case in CASES],
    indirect=True,
)
def test_a_signal_in_each_phase(cuts: Cuts) -> None:
    """One call of each phase, the signals in turn; of the store's last look the very last, when all but the last record is done."""
    assert set(cuts.case.phases) <= {point.phase for point in cuts.points}
    for turn, phase in enumerate(cuts.case.phases, CASES.index(cuts.case)):
        calls = [point for point in cuts.points if point.phase == phase]
        if phase == "check store":
            cuts.cut(calls[-1], signal.SIGKILL)
            cuts.cut(calls[-1], signal.SIGTERM)
        else:
            cuts.cut(calls[len(calls) // 2], SIGNALS[turn % 3])


@pytest.mark.slow
@pytest.mark.timeout(900)
@by_case
def test_every_signal_at_every_call(cuts: Cuts) -> None:
    for point in cuts.points:
        for sign in SIGNALS:
            cuts.cut(point, sign)
