"""The boot-time service over a real boot store and record; hardware, health and supervisor are scripted, and nothing here can reboot."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import wiring
from abupdate.bootloaders.uboot import UBootStore
from abupdate.config import load
from abupdate.devices.statedir import StateDir
from abupdate.devices.thisboot import LinuxBoot
from abupdate.errors import Busy, ConfigError, Failed
from abupdate.health.checks import CheckRun
from abupdate.health.monitor import Limits
from abupdate.health.programs import find_programs
from abupdate.health.watch import Watch
from abupdate.model import BootState, Decision, Verdict
from abupdate.operations import service as module
from abupdate.operations.board import Board
from abupdate.operations.service import Hardware, Numbers, Service
from abupdate.ports import TrialWatch
from tests.workstation import Kit, Workstation, environ

WAIT = Decision(Verdict.WAIT)
CONFIRM = Decision(Verdict.CONFIRM, "healthy")
CRITICAL = Decision(Verdict.REVERT, "health critical: disk")


class Bench:
    """One boot of a device with the service on it. `events`: what hardware, health and supervisor were asked for, in order."""

    def __init__(self, workstation: Workstation, root: Path) -> None:
        self.workstation = workstation
        self.root = root
        self.events: list[str] = []
        self.pets = 0
        self.ticks = 0
        self.on_tick: Callable[[int], None] = lambda tick: None
        self.on_ready: Callable[[], None] = lambda: None
        self.decide: Callable[[float], Decision] = lambda now_s: WAIT
        self.busy_opens = 0
        self.absent = False
        self.disarm_problem = ""
        self.granted_s = 0
        self.pet_fails = False
        self.stop_at_reboot = False
        (root / "proc/sys/kernel/random").mkdir(parents=True)
        (root / "sys/class/watchdog/watchdog0").mkdir(parents=True)
        self.boots = 0
        self.boot("A")

    # -- this boot

    def boot(self, slot: str, reset: int = 0) -> None:
        """A new boot into a slot; reset: what the watchdog driver says of the last one."""
        self.boots += 1
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"boot {self.boots}\n")
        (self.root / "proc/cmdline").write_text(f"quiet abupdate.slot={slot}\n")
        (self.root / "sys/class/watchdog/watchdog0/bootstatus").write_text(f"{reset}\n")
        self.events.clear()
        self.pets = self.ticks = 0
        self.workstation.reboot(slot)

    @property
    def marker(self) -> Path:
        return self.root / "run/abupdate/settled"

    def board(self) -> Board:
        settings = load(self.workstation.config)
        places = {slot: tuple(part.images.values()) for slot, part in settings.slots.items()}
        return replace(wiring.tolerant(settings, service=True), boot=LinuxBoot(places, Path("/dev/watchdog0"), None, self.root))

    def serve(
        self,
        *,
        hinted: bool = False,
        running: bool = False,
        always: bool = False,
        disarm: bool = False,
        going_down: bool = False,
        rebooting: bool = False,
        trial_only: bool = False,
        window_s: float = 1e9,
        pet_timeout_s: int = 1,
        watch: Callable[[], TrialWatch] | None = None,
    ) -> int:
        """Run the service to its end; ticks beyond 400 are a failure."""
        self.ticks = 0
        hardware = Hardware(
            open_watchdog=self.open,
            running=lambda: running,
            hinted=hinted,
            always=always,
            disarm=disarm,
            reboot=self.reboot,
            reboot_now=lambda: self.events.append("reboot now"),
            going_down=lambda: going_down,
            rebooting=lambda: rebooting,
        )
        numbers = Numbers(window_s, boot_timeout_s=120, pet_timeout_s=pet_timeout_s)
        return Service(self.board(), watch or self.make_watch, hardware, self, numbers, trial_only=trial_only).run()

    def serve_with(self, store: UBootStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on over this store, and by a clock that goes 0.02 s a tick."""
        sound, root, bench = self.board, self.root, self

        class Ticking(LinuxBoot):
            def boottime_s(self) -> float:
                return 1000 + bench.ticks / 50

        boot = Ticking({"A": (), "B": ()}, Path("/dev/watchdog0"), None, root)
        monkeypatch.setattr(self, "board", lambda: replace(sound(), store=store, boot=boot))

    def terminate_at(self, tick: int) -> None:
        self.on_tick = lambda now: os.kill(os.getpid(), signal.SIGTERM) if now == tick else None

    # -- Hardware and Watchdog

    def open(self) -> Bench:
        if self.absent:
            raise ConfigError("no watchdog here", "softdog")
        if self.busy_opens:
            self.busy_opens -= 1
            self.events.append("busy")
            raise Busy("/dev/watchdog0 is busy", "RuntimeWatchdogSec")
        self.events.append("open")
        return self

    def reboot(self) -> None:
        self.events.append("reboot")
        if self.stop_at_reboot:
            os.kill(os.getpid(), signal.SIGTERM)

    @property
    def stops_on_close(self) -> bool:
        return False

    def set_timeout(self, asked_s: int) -> int:
        self.events.append(f"timeout {asked_s}")
        return self.granted_s or asked_s

    def pet(self) -> None:
        if self.pet_fails:
            raise Failed("the watchdog is gone")
        self.pets += 1

    def time_left_s(self) -> int | None:
        return None

    def disarm(self) -> str:
        self.events.append("disarm")
        return self.disarm_problem

    def hand_over(self) -> None:
        self.events.append("hand over")

    # -- TrialWatch

    def make_watch(self) -> Bench:
        self.events.append("watch")
        return self

    def tick(self, now_s: float) -> Decision:
        return self.decide(now_s)

    def stop(self) -> None:
        self.events.append("stop watching")

    # -- Announcer

    @property
    def watchdog_s(self) -> float | None:
        return 30.0

    def ready(self, status: str = "") -> bool:
        self.events.append(f"ready: {status}")
        self.on_ready()
        return True

    def alive(self) -> bool:
        self.ticks += 1
        assert self.ticks < 400, self.events
        self.on_tick(self.ticks)
        return True

    def status(self, status: str) -> bool:
        self.events.append(f"status: {status}")
        return True

    def stopping(self, status: str = "") -> bool:
        self.events.append("stopping")
        return True


@pytest.fixture
def bench(workstation: Workstation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Slot A runs on a fresh board; the service's own periods are a fiftieth of what they are."""
    monkeypatch.setattr(module, "_TICK_S", 0.01)
    monkeypatch.setattr(module, "_LOOK_S", 0.1)
    monkeypatch.setattr(module, "_CONFIRM_TRIES_S", 0.2)
    monkeypatch.setattr(module, "_REBOOT_PATIENCE_S", 0.1)
    monkeypatch.setattr(wiring, "RUNTIME", tmp_path / "runtime")
    return Bench(workstation, tmp_path / "root")


@pytest.fixture
def on_trial(bench: Bench, kit: Kit) -> Bench:
    """Version 1.0 runs on B, on trial; the service has served on A before."""
    bench.terminate_at(2)
    assert bench.serve() == 0
    bench.on_tick = lambda tick: None
    bench.workstation.ok("flash", kit["v1"])
    bench.boot("B")
    return bench


def now_s() -> float:
    """Seconds since the kernel started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextmanager
def locked(workstation: Workstation) -> Iterator[None]:
    """Another process is at work: the lock of all mutating verbs is held."""
    program = "import fcntl,sys;f=open(sys.argv[1],'w');fcntl.flock(f,fcntl.LOCK_EX);print('held',flush=True);sys.stdin.read()"
    argv = [sys.executable, "-c", program, str(workstation.state / "lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            holder.stdin.close()
            holder.wait(10)


def settled_on_b(bench: Bench) -> Workstation:
    """v1 is confirmed on B, which runs, and the service has dealt with this boot."""
    bench.workstation.confirmed("v1", "B")
    bench.boot("B")
    bench.terminate_at(2)
    assert bench.serve() == 0
    return bench.workstation


def reverted(bench: Bench) -> None:
    """The store leads back to A, the hardware was armed before the reboot was ordered, and nobody pets it any more."""
    printed = bench.workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_B_LEFT"]) == ("A", "0")
    assert "BOOT_TRIAL" not in printed
    assert "reboot" in bench.events
    assert bench.events.index("timeout 120") < bench.events.index("hand over") < bench.events.index("reboot")
    assert "disarm" not in bench.events


# ---- a trial


def test_a_healthy_window_ends_with_a_confirmation(on_trial: Bench) -> None:
    """Real health programs, real seconds."""
    bench = on_trial
    folder = bench.workstation.folder / "health.d"
    folder.mkdir()
    (folder / "fine").write_text("#!/bin/sh\necho fine\n")
    (folder / "fine").chmod(0o755)
    start_s = now_s()
    seen: list[str | None] = []
    bench.on_tick = lambda tick: seen.append(bench.workstation.printed().get("BOOT_TRIAL")) if tick in (3, 20) else None

    def watch() -> Watch:
        programs = find_programs(folder)
        run = CheckRun(programs, timeout_s=5, stop_at_critical=True)
        return Watch(run, Limits(start_s + 0.8), 0.2, has_programs=True)

    assert bench.serve(hinted=True, trial_only=True, watch=watch) == 0
    assert now_s() >= start_s + 0.8
    assert seen == ["B", "B"]
    printed = bench.workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_B_LEFT"], printed["BOOT_FLOOR"]) == ("B A", "a", "1")
    assert "BOOT_TRIAL" not in printed
    assert bench.pets > 1
    # --trial: armed for the next process.
    assert bench.events == ["open", "timeout 1", "ready: on trial", "timeout 120", "hand over"]


def test_a_critical_health_program_ends_the_trial_at_once(on_trial: Bench) -> None:
    bench = on_trial
    folder = bench.workstation.folder / "health.d"
    folder.mkdir()
    (folder / "disk").write_text("#!/bin/sh\necho disk is gone\nexit 2\n")
    (folder / "disk").chmod(0o755)

    def watch() -> Watch:
        return Watch(CheckRun(find_programs(folder), timeout_s=5, stop_at_critical=True), Limits(1e9), 0.2, has_programs=True)

    assert bench.serve(hinted=True, watch=watch) == 1
    reverted(bench)
    assert bench.events[-1] == "reboot now", "the init system did not take the order"
    document = bench.workstation.status()
    assert document["situation"] == "reboot-pending"
    assert document["attempt"]["reason"].startswith("health critical: disk")
    assert "disk is gone" in document["attempt"]["reason"]
    bench.boot("A")
    assert bench.workstation.slot_state("B") == "bad"


def test_the_init_system_takes_the_order_to_reboot(on_trial: Bench) -> None:
    bench = on_trial
    bench.decide = lambda now_s: CRITICAL
    bench.stop_at_reboot = True
    assert bench.serve(hinted=True) == 0, "a failure now would let systemd cut the shutdown short"
    reverted(bench)
    assert "reboot now" not in bench.events
    assert bench.events.count("open") == 1, "nobody takes the watchdog back"


def test_a_trial_goes_back_without_a_watchdog_too(on_trial: Bench) -> None:
    bench = on_trial
    bench.absent = True
    bench.decide = lambda now_s: CRITICAL
    assert bench.serve(hinted=True) == 1
    assert bench.workstation.printed()["BOOT_ORDER"] == "A"
    assert "reboot" in bench.events


def test_the_hardware_is_armed_for_the_reboot_even_where_it_was_not_before(on_trial: Bench) -> None:
    bench = on_trial
    bench.decide = lambda now_s: CRITICAL
    assert bench.serve(hinted=False, running=False) == 1
    reverted(bench)


def test_health_programs_that_cannot_be_trusted_end_the_trial(on_trial: Bench) -> None:
    bench = on_trial

    def watch() -> TrialWatch:
        raise ConfigError("health.d/x: group or others can write this health program", "chmod")

    assert bench.serve(hinted=True, watch=watch) == 1
    reverted(bench)
    assert "group or others" in bench.workstation.status()["attempt"]["reason"]


def test_going_back_does_not_wait_for_a_lock_that_somebody_keeps(on_trial: Bench) -> None:
    bench = on_trial
    bench.decide = lambda now_s: CRITICAL
    with locked(bench.workstation):
        assert bench.serve(hinted=True) == 1
    reverted(bench)


def test_confirmed_by_hand_meanwhile(on_trial: Bench) -> None:
    bench = on_trial

    def by_hand(tick: int) -> None:
        if tick == 5:
            bench.workstation.ok("confirm")
        if tick == 60:
            os.kill(os.getpid(), signal.SIGTERM)

    bench.on_tick = by_hand
    assert bench.serve(hinted=True) == 0
    assert "reboot" not in bench.events
    assert bench.events[-3:] == ["stop watching", "stopping", "disarm"]


def test_reverted_by_hand_meanwhile(on_trial: Bench) -> None:
    """The operator has until the end of the window to reboot; health has no say any more."""
    bench = on_trial

    def by_hand(tick: int) -> None:
        if tick == 3:
            bench.workstation.ok("revert")
            # Not before the service has looked again.
            bench.decide = lambda now_s: WAIT if now_s < look_s else CONFIRM

    look_s = now_s() + 0.6
    bench.on_tick = by_hand
    start_s = now_s()
    assert bench.serve(hinted=True, window_s=start_s + 0.9) == 1
    assert now_s() >= start_s + 0.9
    reverted(bench)
    assert bench.workstation.status()["attempt"]["reason"] == "ordered by the operator"
    assert "status: rebooting: reverted by hand and not rebooted" in bench.events


def test_the_store_cannot_be_written_any_more(on_trial: Bench) -> None:
    """Nothing can be confirmed or reverted: the reboot is ordered, the tries run out."""
    bench = on_trial
    bench.decide = lambda now_s: CONFIRM if bench.ticks > 2 else WAIT
    away = bench.workstation.folder / "away"

    def lose(tick: int) -> None:
        if tick == 2:
            bench.workstation.env.rename(away)

    bench.on_tick = lose
    assert bench.serve(hinted=True) == 1
    assert bench.events.index("hand over") < bench.events.index("reboot")
    away.rename(bench.workstation.env)
    assert bench.workstation.printed()["BOOT_TRIAL"] == "B"


def test_a_confirmation_waits_for_another_abupdate(on_trial: Bench) -> None:
    bench = on_trial
    bench.decide = lambda now_s: CONFIRM
    lock = os.open(bench.workstation.state / "lock", os.O_RDWR | os.O_CREAT, 0o600)

    def hold(tick: int) -> None:
        if tick == 1:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if tick == 6:
            os.close(lock)

    bench.on_tick = hold
    assert bench.serve(hinted=True, trial_only=True) == 0
    assert "BOOT_TRIAL" not in bench.workstation.printed()
    assert bench.ticks >= 6


def test_trial_tries_are_not_refilled(on_trial: Bench) -> None:
    bench = on_trial
    bench.workstation.setenv("BOOT_B_LEFT", "2")
    bench.terminate_at(5)
    assert bench.serve(hinted=True) == 0
    assert bench.workstation.printed()["BOOT_B_LEFT"] == "2"


# ---- the watchdog


def test_a_watchdog_that_is_busy_at_first(on_trial: Bench) -> None:
    bench = on_trial
    bench.busy_opens = 4
    bench.terminate_at(20)
    assert bench.serve(hinted=True) == 0
    assert bench.events[:5] == ["busy", "ready: on trial", "watch", "busy", "busy"]
    assert "open" in bench.events
    assert bench.pets > 0


def test_a_watchdog_that_grants_less_than_asked_is_petted_as_often_as_it_needs(on_trial: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench = on_trial
    bench.granted_s = 1
    start_s = now_s()
    bench.on_tick = lambda tick: os.kill(os.getpid(), signal.SIGTERM) if now_s() - start_s > 1.2 else None
    assert bench.serve(hinted=True, pet_timeout_s=30) == 0
    assert bench.pets >= 4, "every quarter of the granted second, not every two seconds"
    assert "asked for 30 s, granted 1 s" in caplog.text


def test_a_watchdog_that_can_no_longer_be_petted_is_said_once(on_trial: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench = on_trial
    bench.on_tick = lambda tick: setattr(bench, "pet_fails", True) if tick == 2 else None
    bench.decide = lambda now_s: CONFIRM if bench.ticks > 120 else WAIT
    assert bench.serve(hinted=True, trial_only=True) == 0
    assert [record.message for record in caplog.records].count("watchdog: the watchdog is gone") == 1


def test_a_confirmed_slot_leaves_a_watchdog_alone_that_nobody_has_started(bench: Bench) -> None:
    bench.terminate_at(10)
    assert bench.serve() == 0
    assert bench.events == ["ready: watching", "stopping"]


def test_a_watchdog_that_runs_already_is_petted_on_a_confirmed_slot(bench: Bench) -> None:
    bench.terminate_at(80)
    assert bench.serve(running=True) == 0
    assert bench.pets >= 3
    assert bench.events == ["open", "timeout 1", "ready: watching", "stopping", "disarm"]


def test_always(bench: Bench) -> None:
    bench.terminate_at(10)
    bench.busy_opens = 2
    assert bench.serve(always=True, disarm=True) == 0
    assert bench.events == ["busy", "ready: watching", "busy", "open", "timeout 1", "stopping", "hand over"]


@pytest.mark.parametrize("problem", ["", "nowayout"])
def test_disarm_after_the_confirmation(on_trial: Bench, problem: str) -> None:
    bench = on_trial
    bench.disarm_problem = problem
    pets: list[int] = []

    def script(tick: int) -> None:
        if tick in (30, 120):
            pets.append(bench.pets)
        if tick == 120:
            os.kill(os.getpid(), signal.SIGTERM)

    bench.on_tick = script
    bench.decide = lambda now_s: CONFIRM
    # Not hinted: where the boot side says "trial" the hardware is held as long as it is needed.
    assert bench.serve(running=True, disarm=True) == 0
    assert bench.events[:5] == ["open", "timeout 1", "ready: on trial", "watch", "stop watching"]
    if problem:
        assert pets[1] > pets[0], "it still runs, so it is petted on"
        assert bench.events[5:] == ["disarm", "stopping", "disarm", "hand over"]
    else:
        assert pets[1] == pets[0]
        assert bench.events[5:] == ["disarm", "stopping"]


def test_disarm_after_a_confirmation_of_a_hinted_trial(on_trial: Bench) -> None:
    bench = on_trial
    bench.terminate_at(60)
    bench.decide = lambda now_s: CONFIRM
    assert bench.serve(hinted=True, disarm=True) == 0
    assert bench.events[5:] == ["disarm", "stopping"], "stopped once, and not opened again"


def test_pet_after_the_confirmation(on_trial: Bench) -> None:
    bench = on_trial
    pets: list[int] = []

    def script(tick: int) -> None:
        if tick in (30, 120):
            pets.append(bench.pets)
        if tick == 120:
            os.kill(os.getpid(), signal.SIGTERM)

    bench.on_tick = script
    bench.decide = lambda now_s: CONFIRM
    assert bench.serve(hinted=True) == 0
    assert pets[1] > pets[0]
    assert bench.events[-2:] == ["stopping", "disarm"]


# ---- SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_on_trial(on_trial: Bench, number: signal.Signals) -> None:
    bench = on_trial
    before = bench.workstation.printed()
    bench.on_tick = lambda tick: os.kill(os.getpid(), number) if tick == 5 else None
    assert bench.serve(hinted=True) == 0
    assert bench.events[-3:] == ["stop watching", "stopping", "hand over"]
    assert bench.workstation.printed() == before


def test_stopped_while_a_reboot_is_pending(on_trial: Bench) -> None:
    bench = on_trial
    bench.workstation.ok("revert")
    bench.terminate_at(5)
    assert bench.serve(running=True) == 0
    assert bench.events[-2:] == ["stopping", "hand over"]


def test_stopped_in_a_shutdown_of_a_confirmed_slot(bench: Bench) -> None:
    bench.terminate_at(5)
    assert bench.serve(running=True, going_down=True) == 0
    assert bench.events[-3:] == ["stopping", "timeout 120", "hand over"]


def test_stopped_on_a_confirmed_slot_with_hardware_that_cannot_stop(bench: Bench) -> None:
    bench.disarm_problem = "nowayout"
    bench.terminate_at(5)
    assert bench.serve(running=True) == 0
    assert bench.events[-3:] == ["stopping", "disarm", "hand over"]


def test_the_signal_handlers_are_put_back(bench: Bench) -> None:
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    bench.terminate_at(2)
    assert bench.serve() == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_watchdog_that_somebody_else_holds_on_a_confirmed_slot_is_left_to_them(bench: Bench) -> None:
    bench.busy_opens = 1
    bench.on_ready = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert bench.serve(running=True) == 0
    assert bench.events == ["busy", "ready: watching", "stopping"]


# ---- --trial without a trial


def test_trial_only_on_a_confirmed_slot_hands_over_at_once(bench: Bench) -> None:
    assert bench.serve(running=True, trial_only=True) == 0
    assert bench.events == ["open", "timeout 1", "ready: watching", "timeout 120", "hand over"]


# ---- the start: outcome, refill, marker


def test_the_boots_of_a_confirmed_slot_are_refilled_before_anything_else(bench: Bench) -> None:
    bench.workstation.confirmed("v1", "B")
    bench.boot("B")
    bench.workstation.setenv("BOOT_B_LEFT", "1")
    seen: list[str] = []
    bench.on_ready = lambda: seen.append(bench.workstation.printed()["BOOT_B_LEFT"])
    bench.terminate_at(3)
    assert bench.serve() == 0
    assert seen == ["a"]
    assert "watch" not in bench.events, "no health check on a confirmed slot"


def test_twelve_boots_leave_every_value_as_it_was(bench: Bench) -> None:
    workstation = bench.workstation
    workstation.confirmed("v1", "B")
    before = workstation.printed()
    for _ in range(12):
        bench.boot("B")
        workstation.setenv("BOOT_B_LEFT", f"{int(workstation.printed()['BOOT_B_LEFT'], 16) - 1:x}")
        bench.terminate_at(1)
        assert bench.serve() == 0
        assert workstation.printed() == before


def test_a_start_without_need_writes_nothing(bench: Bench) -> None:
    settled_on_b(bench)
    bench.boot("B")
    before = bench.workstation.snapshot()
    assert bench.serve() == 0
    assert bench.workstation.snapshot() == before


def test_a_budget_of_0_writes_nothing_at_boot(bench: Bench) -> None:
    bench.workstation.confirmed("v1", "B")
    with bench.workstation.config.open("a") as file:
        file.write("[trial]\nconfirmed_tries = 0\n")
    bench.boot("B")
    bench.workstation.setenv("BOOT_B_LEFT", "1")
    bench.workstation.setenv("BOOT_BUDGET", "0")
    before = bench.workstation.env.read_bytes()
    bench.terminate_at(2)
    assert bench.serve() == 0
    assert bench.workstation.env.read_bytes() == before


@pytest.mark.parametrize(("configured", "stored"), [(0, "a"), (0, None), (10, "0"), (5, "a")])
def test_the_boot_side_counts_by_what_is_configured_on_the_slot_that_runs(bench: Bench, configured: int, stored: str | None) -> None:
    """The other slot's configuration has set the budget, or somebody has edited this one: else a healthy slot's boots run out."""
    bench.workstation.confirmed("v1", "B")
    with bench.workstation.config.open("a") as file:
        file.write(f"[trial]\nconfirmed_tries = {configured}\n")
    bench.workstation.setenv("BOOT_BUDGET", stored or "")
    for _ in range(12):
        bench.boot("B")
        # What the hook does.
        printed = bench.workstation.printed()
        if int(printed.get("BOOT_BUDGET") or "a", 16):
            bench.workstation.setenv("BOOT_B_LEFT", f"{int(printed['BOOT_B_LEFT'], 16) - 1:x}")
        bench.terminate_at(2)
        assert bench.serve() == 0
    printed = bench.workstation.printed()
    assert int(printed["BOOT_BUDGET"], 16) == configured
    assert int(printed["BOOT_B_LEFT"], 16) >= max(configured, 1)


def test_a_fresh_board_is_left_alone(bench: Bench) -> None:
    before = bench.workstation.env.read_bytes()
    bench.terminate_at(2)
    assert bench.serve() == 0
    assert bench.workstation.env.read_bytes() == before


def test_a_fresh_board_on_which_the_hook_counts_is_refilled(bench: Bench) -> None:
    """Else its boots would run out although it is healthy."""
    bench.workstation.put_environment("BOOT_A_LEFT=3\n")
    bench.terminate_at(2)
    assert bench.serve() == 0
    assert bench.workstation.printed() == {"BOOT_A_LEFT": "a", "BOOT_B_LEFT": "0", "BOOT_ORDER": "A"}


@pytest.mark.parametrize(
    ("reset", "left", "reason"),
    [(32, "0", "watchdog, tries exhausted"), (32, "1", "watchdog, tries left"), (0, "0", "tries exhausted"), (0, "2", "load failed")],
)
def test_a_fallback_is_recorded_and_cleaned_up(on_trial: Bench, reset: int, left: str, reason: str) -> None:
    bench = on_trial
    bench.workstation.setenv("BOOT_B_LEFT", left)
    bench.boot("A", reset=reset)
    bench.terminate_at(2)
    assert bench.serve() == 0
    printed = bench.workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_B_LEFT"]) == ("A", "0")
    assert "BOOT_TRIAL" not in printed
    document = bench.workstation.status()
    assert document["attempt"]["phase"] == "reverted"
    assert document["attempt"]["reason"] == reason
    assert document["slots"]["B"]["state"] == "bad"


def test_an_armed_slot_of_this_boot_is_not_a_fallback(bench: Bench, kit: Kit) -> None:
    """The service is started again between flash and reboot."""
    bench.workstation.ok("flash", kit["v1"])
    # The kernel's real id is in the record; the service shall see the same one.
    (bench.root / "proc/sys/kernel/random/boot_id").write_text(Path("/proc/sys/kernel/random/boot_id").read_text())
    before = bench.workstation.printed()
    bench.terminate_at(2)
    assert bench.serve() == 0
    assert bench.workstation.printed() == before


def test_a_confirmed_slot_that_did_not_start(bench: Bench) -> None:
    workstation = bench.workstation
    workstation.confirmed("v1", "B")
    bench.boot("A")
    workstation.setenv("BOOT_B_LEFT", "0")
    bench.terminate_at(2)
    assert bench.serve() == 0
    printed = workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_A_LEFT"], printed["BOOT_B_LEFT"]) == ("A B", "a", "0")
    document = workstation.status()
    assert "confirmed slot did not start" in document["attempt"]["reason"]
    assert document["slots"]["B"]["state"] == "bad"


def test_a_boot_is_settled_also_where_a_copy_of_the_floor_cannot_be_raised(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Worn(UBootStore):
        def commit(self, state: BootState) -> None:
            raise Failed("the medium takes no more writes")

    bench.workstation.confirmed("v1", "B")
    bench.workstation.setenv("BOOT_FLOOR", "0")
    bench.boot("B")
    board = replace(bench.board(), store=Worn(bench.workstation.fw_env_config, ("A", "B")))
    monkeypatch.setattr(bench, "board", lambda: board)
    bench.terminate_at(3)
    assert bench.serve() == 0
    assert bench.workstation.printed()["BOOT_FLOOR"] == "0", "it was to be raised"
    assert bench.marker.exists()


def test_a_boot_is_settled_once(bench: Bench) -> None:
    """A service that is started again must not take an ordered switch for a slot that did not start."""
    workstation = settled_on_b(bench)
    assert bench.marker.read_text() == f"boot {bench.boots}\n"
    # Somebody else, with fw_setenv: no record says that it was ordered.
    workstation.setenv("BOOT_ORDER", "A B")
    before = workstation.printed()
    assert bench.serve() == 0
    assert workstation.printed() == before
    # On the next boot the marker of this one says nothing.
    bench.boot("B")
    assert bench.serve() == 0
    assert workstation.printed()["BOOT_ORDER"] == "B A"


# ---- stores that cannot do what U-Boot's environment does


def test_boots_that_the_store_did_not_count_end_the_trial_all_the_same(on_trial: Bench) -> None:
    """A write-protected ESP: the counter in it stays what it was, boot after boot."""
    workstation = on_trial.workstation
    for _ in range(3):
        on_trial.terminate_at(2)
        assert on_trial.serve() == 0
        assert workstation.status()["trial"] is not None
        on_trial.boot("B")
    assert on_trial.serve(trial_only=True) == 1
    assert "watch" not in on_trial.events
    assert on_trial.events[-1] == "reboot now"
    attempt = workstation.status()["attempt"]
    assert (attempt["phase"], attempt["reason"]) == ("reverted", "tries exhausted: the bootloader could not count them")
    assert workstation.printed()["BOOT_ORDER"] == "A"


def test_a_service_that_starts_again_in_the_same_boot_uses_no_try_up(on_trial: Bench) -> None:
    for _ in range(6):
        on_trial.terminate_at(2)
        assert on_trial.serve() == 0
    assert on_trial.workstation.status()["trial"] is not None


def test_what_is_armed_is_armed_again_at_every_start(bench: Bench, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    rearmed: list[str] = []

    class Reminded(UBootStore):
        def rearm(self) -> None:
            rearmed.append(self.read().trial or "")

    bench.serve_with(Reminded(bench.workstation.fw_env_config, ("A", "B")), monkeypatch)
    bench.terminate_at(2)
    assert bench.serve() == 0
    assert not rearmed
    bench.workstation.ok("flash", kit["v1"])
    # The verb ran in this machine's own boot, and so does the service then.
    name = "proc/sys/kernel/random/boot_id"
    (bench.root / name).write_text(Path("/", name).read_text())
    bench.terminate_at(2)
    assert bench.serve() == 0
    assert rearmed == ["B"]


# ---- what can be missing


def test_what_the_medium_refuses_once_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a healthy slot goes through this boot without its boots refilled."""
    workstation = bench.workstation
    workstation.confirmed("v1", "B")
    bench.boot("B")
    workstation.setenv("BOOT_B_LEFT", "4")
    refusals = [Failed("Input/output error")] * 2

    class Worn(UBootStore):
        def commit(self, state: BootState) -> None:
            if refusals:
                raise refusals.pop()
            super().commit(state)

    bench.serve_with(Worn(workstation.fw_env_config, ("A", "B")), monkeypatch)
    bench.terminate_at(80)
    assert bench.serve() == 0
    assert not refusals
    assert workstation.printed()["BOOT_B_LEFT"] == "a"
    assert bench.marker.exists()


def test_a_medium_that_refuses_always_is_asked_less_and_less(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worn flash takes the write and fails its comparison: every attempt wears it further."""
    bench.workstation.confirmed("v1", "B")
    bench.boot("B")
    bench.workstation.setenv("BOOT_B_LEFT", "4")
    attempts: list[BootState] = []

    class Worn(UBootStore):
        def commit(self, state: BootState) -> None:
            attempts.append(state)
            raise Failed("Input/output error")

    bench.serve_with(Worn(bench.workstation.fw_env_config, ("A", "B")), monkeypatch)
    bench.terminate_at(390)
    assert bench.serve() == 0
    assert len(attempts) == 5, "twice the time before each"
    assert not bench.marker.exists()


def test_a_store_that_was_valid_here_is_rebuilt(bench: Bench) -> None:
    workstation = settled_on_b(bench)
    workstation.spoil_environment(0, 1)
    bench.boot("B")
    assert bench.serve() == 0
    assert workstation.printed() | {"BOOT_FLOOR": "1"} == {
        "BOOT_ORDER": "B",
        "BOOT_A_LEFT": "0",
        "BOOT_B_LEFT": "a",
        "BOOT_TRIES": "3",
        "BOOT_BUDGET": "a",
        "BOOT_TIMEOUT": "78",
        "BOOT_FLOOR": "1",
    }
    assert workstation.slot_state("B") == "confirmed"


def test_a_store_that_was_emptied_is_filled_with_what_the_record_knows(bench: Bench) -> None:
    """The boot side's default is the other slot, whatever is in it."""
    workstation = settled_on_b(bench)
    workstation.put_environment("foreign=kept\n")
    bench.boot("B")
    assert bench.serve() == 0
    said = workstation.printed()
    assert (said["foreign"], said["BOOT_ORDER"], said["BOOT_A_LEFT"], said["BOOT_B_LEFT"]) == ("kept", "B", "0", "a")
    assert workstation.slot_state("B") == "confirmed"


def test_a_store_that_is_lost_during_a_trial(on_trial: Bench) -> None:
    """The record knows of the trial, so it goes on as one and can still be reverted."""
    bench = on_trial
    bench.workstation.spoil_environment(0, 1)
    seen: list[dict[str, str]] = []
    bench.on_ready = lambda: seen.append(bench.workstation.printed())
    bench.decide = lambda now_s: CRITICAL
    assert bench.serve(hinted=True) == 1
    assert (seen[0]["BOOT_ORDER"], seen[0]["BOOT_TRIAL"]) == ("B A", "B")
    reverted(bench)


def test_a_store_that_was_never_seen_valid_here_is_left_alone(bench: Bench) -> None:
    bench.workstation.spoil_environment(0)
    before = bench.workstation.env.read_bytes()
    bench.terminate_at(30)
    assert bench.serve() == 0
    assert bench.workstation.env.read_bytes() == before
    assert not bench.marker.exists()
    assert "reboot" not in bench.events


def test_a_store_at_another_place_is_left_alone(bench: Bench) -> None:
    workstation = settled_on_b(bench)
    env = workstation.env
    workstation.fw_env_config.write_text(f"{env} 0x0 0x3000\n{env} 0x5000 0x3000\n")
    before = workstation.env.read_bytes()
    bench.boot("B")
    assert bench.serve() == 0
    assert workstation.env.read_bytes() == before


def test_a_trial_whose_store_cannot_be_read_ends_with_a_reboot(on_trial: Bench) -> None:
    """Nobody can confirm it, so it must not go on for ever; the bootloader has the tries."""
    bench = on_trial
    bench.workstation.spoil_environment(0, 1)
    for path in bench.workstation.state.iterdir():
        path.unlink()
    before = bench.workstation.env.read_bytes()
    bench.decide = lambda now_s: CONFIRM if bench.ticks > 5 else WAIT
    assert bench.serve(hinted=True) == 1
    assert bench.workstation.env.read_bytes() == before
    assert bench.events.index("hand over") < bench.events.index("reboot")


@pytest.mark.parametrize("verdict", [CONFIRM, CRITICAL], ids=["confirm", "revert"])
@pytest.mark.parametrize("how", ["file in its place", "others can write it"])
def test_the_data_partition_is_gone(on_trial: Bench, verdict: Decision, how: str) -> None:
    """The boot store alone decides."""
    bench = on_trial
    state = bench.workstation.state
    if how == "file in its place":
        state.rename(state.with_name("away"))
        state.write_text("")
    else:
        state.chmod(0o777)
    bench.decide = lambda now_s: verdict
    code = bench.serve(hinted=True, trial_only=True)
    if verdict is CONFIRM:
        assert code == 0
        printed = bench.workstation.printed()
        assert printed["BOOT_ORDER"] == "B A"
        assert "BOOT_TRIAL" not in printed
    else:
        assert code == 1
        reverted(bench)


def test_a_lock_that_another_process_holds_at_the_start(bench: Bench) -> None:
    """A flash that outlived the service: the outcome is settled when it has ended, and the boots are refilled then."""
    workstation = bench.workstation
    workstation.confirmed("v1", "B")
    bench.boot("B")
    workstation.setenv("BOOT_B_LEFT", "4")
    holding = locked(workstation)
    holding.__enter__()
    seen: list[str] = []

    def script(tick: int) -> None:
        if tick == 30:
            seen.append(workstation.printed()["BOOT_B_LEFT"])
            assert not bench.marker.exists()
            holding.__exit__(None, None, None)
        if bench.marker.exists():
            os.kill(os.getpid(), signal.SIGTERM)

    bench.on_tick = script
    assert bench.serve() == 0
    assert seen == ["4"]
    assert workstation.printed()["BOOT_B_LEFT"] == "a"


@pytest.mark.parametrize("granted_s", [0, 3, 600])
def test_no_wait_for_a_lock_outlasts_the_hardware(on_trial: Bench, monkeypatch: pytest.MonkeyPatch, granted_s: int) -> None:
    """Nobody pets meanwhile; the driver may grant less than was asked for, or more than anybody wants to wait."""
    monkeypatch.setattr(module, "_LOOK_S", 5.0)
    waits: list[float] = []

    class Asked(StateDir):
        @contextmanager
        def lock(self, wait_s: float = 0.0) -> Iterator[None]:
            waits.append(wait_s)
            with super().lock(wait_s):
                yield

    board = replace(on_trial.board(), state=Asked(on_trial.workstation.state))
    monkeypatch.setattr(on_trial, "board", lambda: board)
    on_trial.granted_s = granted_s
    on_trial.decide = lambda now_s: CRITICAL
    assert on_trial.serve(hinted=True, pet_timeout_s=9) == 1
    assert "reboot" in on_trial.events
    assert waits == {0: [3.0, 3.0], 3: [1.0, 1.0], 600: [5.0, 3.0]}[granted_s]


# ---- the real thing: a process of its own

# The order to reboot is taken out before anything else runs: not by way of PATH, and not left to the kernel either.
GUARDED = """
import ctypes, os, sys, time
assert ctypes.CDLL(None, use_errno=True).prctl(24, 22, 0, 0, 0) == 0 or os.geteuid() != 0  # PR_CAPBSET_DROP, CAP_SYS_BOOT
from abupdate.devices import power, thisboot
from pathlib import Path
def ordered():
    print("REBOOT", flush=True)
    os._exit(99)
power.reboot = power.reboot_now = ordered
from abupdate import wiring
wiring.RUNTIME = Path(sys.argv.pop(1))
start_s = time.monotonic()
thisboot.LinuxBoot.boottime_s = lambda boot: time.monotonic() - start_s  # this boot is as old as the process
thisboot.LinuxBoot.mark_settled = lambda boot: None  # the machine's own /run is not ours
from abupdate.__main__ import main
sys.exit(main())
"""


@contextmanager
def served(workstation: Workstation, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """`abupdate service` as a process that cannot reboot the machine; stopped at the end if it still runs."""
    runtime = workstation.folder / "runtime"
    command = [sys.executable, "-c", GUARDED, str(runtime), "-c", str(workstation.config), *argv]
    with subprocess.Popen(command, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def prepare(workstation: Workstation, kit: Kit, status: int) -> None:
    """A trial on B with a window of 2 s, and a health program with this exit status."""
    with workstation.config.open("a") as file:
        file.write("[trial]\nwindow_s = 2\n")
    folder = workstation.folder / "health.d"
    folder.mkdir()
    (folder / "check").write_text(f"#!/bin/sh\necho checked\nexit {status}\n")
    (folder / "check").chmod(0o755)
    workstation.ok("flash", kit["v1"])
    workstation.reboot("B")


def test_the_service_confirms_as_a_process_of_its_own(workstation: Workstation, kit: Kit) -> None:
    prepare(workstation, kit, 0)
    with served(workstation, "service", "--trial") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b""), err
    assert b"slot is confirmed: healthy for the window of 2 s" in err
    printed = workstation.printed()
    assert printed["BOOT_ORDER"] == "B A"
    assert "BOOT_TRIAL" not in printed


def test_the_service_reverts_as_a_process_of_its_own(workstation: Workstation, kit: Kit) -> None:
    prepare(workstation, kit, 2)
    with served(workstation, "service", "--trial") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (99, b"REBOOT\n"), err
    assert b"going back: health critical: check" in err
    assert workstation.printed()["BOOT_ORDER"] == "A"


def test_the_service_stays_and_ends_at_sigterm(workstation: Workstation, kit: Kit) -> None:
    prepare(workstation, kit, 0)
    with served(workstation, "service") as process:
        assert process.stderr
        while b"slot is confirmed" not in (line := process.stderr.readline()):
            assert line, "it ended"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize("device", ["/dev/watchdog0", "/dev/watchdog"])
def test_the_watchdogs_word_is_found_under_both_names_of_its_device(tmp_path: Path, device: str) -> None:
    folder = tmp_path / "sys/class/watchdog/watchdog0"
    folder.mkdir(parents=True)
    (folder / "bootstatus").write_text("32\n")
    assert LinuxBoot({}, Path(device), None, tmp_path).reset_reason() == "watchdog"
    (folder / "bootstatus").write_text("0\n")
    assert LinuxBoot({}, Path(device), None, tmp_path).reset_reason() == ""
