"""Health programs that are real and mostly hostile: whatever they do, a round ends in time, says why, and leaves nothing running."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from abupdate.errors import ConfigError
from abupdate.health.checks import CheckRun, run_once
from abupdate.health.programs import find_programs
from abupdate.health.results import CheckResult, Health, Round

TIMEOUT_S = 0.5
# What programs sleep, which is how they are found: another run of these tests on this machine has another number.
NAP = f"4711{os.getpid()}"
Script = Callable[..., Path]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    def write(name: str, body: str, mode: int = 0o755, head: str = "#!/bin/sh\n") -> Path:
        path = tmp_path / "health.d" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(head + body + "\n")
        path.chmod(mode)
        return path

    return write


def run(*programs: Path, timeout_s: float = TIMEOUT_S, stop_at_critical: bool = False) -> Round:
    return run_once(CheckRun(programs, timeout_s=timeout_s, stop_at_critical=stop_at_critical))


def one(program: Path, timeout_s: float = TIMEOUT_S) -> CheckResult:
    (result,) = run(program, timeout_s=timeout_s).results
    return result


def alive(word: str) -> list[int]:
    """Processes, not zombies, with this word in their command line, that are younger than this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (folder / "cmdline").read_bytes() and started_at(folder) > started_at(Path("/proc/self")):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def started_at(folder: Path) -> int:
    """Start of a process, in the kernel's ticks since boot."""
    return int((folder / "stat").read_text().rpartition(")")[2].split()[19])


def gone(word: str) -> bool:
    """True once no such process is left; SIGKILL needs a moment to take effect."""
    deadline = time.monotonic() + 5
    while alive(word):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    ("body", "health", "reason"),
    [
        ("echo all fine; exit 0", Health.OK, "all fine"),
        ("exit 0", Health.OK, ""),
        ("echo first; echo modem slow; echo; exit 1", Health.DEGRADED, "modem slow"),
        ("echo to stderr >&2; exit 2", Health.CRITICAL, "to stderr"),
        ("exit 3", Health.CRITICAL, "exit code 3"),
        ("echo why; exit 127", Health.CRITICAL, "exit code 127: why"),
        ("kill -SEGV $$", Health.CRITICAL, "ended by SIGSEGV"),
        ("printf 'a\\033[31m\\000b\\377\\n'", Health.OK, "a [31m b\ufffd"),
        ("printf 'x%.0s' $(seq 5000)", Health.OK, "x" * 200),
        ("printf 'x%.0s' $(seq 199); printf ' y'", Health.OK, "x" * 199),
    ],
)
def test_what_a_program_says(script: Script, body: str, health: Health, reason: str) -> None:
    result = one(script("10-check", body), timeout_s=10)
    assert (result.name, result.health, result.reason) == ("10-check", health, reason)


def test_all_run_in_order_and_the_worst_counts(script: Script, tmp_path: Path) -> None:
    for name, code in (("20-b", 1), ("10-a", 0), ("30-c", 2), ("40-d", 0)):
        script(name, f"echo {name} >> {tmp_path}/order; exit {code}")
    programs = find_programs(tmp_path / "health.d")
    done = run(*programs, timeout_s=10)
    assert [result.name for result in done.results] == ["10-a", "20-b", "30-c", "40-d"]
    assert (tmp_path / "order").read_text().split() == ["10-a", "20-b", "30-c", "40-d"]
    assert done.health is Health.CRITICAL
    assert done.reason == "30-c is critical"
    assert [result.name for result in run(*programs, timeout_s=10, stop_at_critical=True).results] == ["10-a", "20-b", "30-c"]


def test_nothing_runs_after_a_program_that_cannot_be_run(script: Script, tmp_path: Path) -> None:
    """Where the first critical word ends the round; else the others have their say."""
    programs = (script("10-none", "", head="#!/none\n"), script("20-b", f"touch {tmp_path}/ran"))
    done = run(*programs, timeout_s=10, stop_at_critical=True)
    assert [(result.name, result.health) for result in done.results] == [("10-none", Health.CRITICAL)]
    assert not (tmp_path / "ran").exists()
    assert [result.health for result in run(*programs, timeout_s=10).results] == [Health.CRITICAL, Health.OK]
    assert (tmp_path / "ran").exists()


def test_a_hang_ends_in_time_and_the_rest_still_runs(script: Script) -> None:
    started = time.monotonic()
    done = run(script("10-hang", f"echo waiting; exec sleep {NAP}.25"), script("20-fine", "exit 0"))
    assert time.monotonic() - started < 20
    hang, fine = done.results
    assert (hang.health, hang.reason) == (Health.CRITICAL, "no answer within 0.5 s, last said: waiting")
    assert TIMEOUT_S <= hang.duration_s < 10
    assert fine.health is Health.OK
    assert gone(f"{NAP}.25")


def test_sigterm_is_ignored(script: Script) -> None:
    result = one(script("10-deaf", f"trap '' TERM; echo deaf; while :; do sleep {NAP}.26; done"))
    assert result.reason == "no answer within 0.5 s, last said: deaf"
    assert TIMEOUT_S + 1 <= result.duration_s < 10
    assert gone(f"{NAP}.26")


def test_a_program_may_clean_up_on_sigterm(script: Script, tmp_path: Path) -> None:
    result = one(script("10-tidy", f"trap 'echo tidied > {tmp_path}/tidy; exit 0' TERM; sleep {NAP}.27 & wait"))
    assert result.health is Health.CRITICAL, "late is late, whatever the exit code"
    assert (tmp_path / "tidy").read_text() == "tidied\n"
    assert gone(f"{NAP}.27")


@pytest.mark.parametrize("output", ["", ">/dev/null 2>&1"], ids=["holding the pipe", "quiet"])
def test_forks_die_with_their_program(script: Script, output: str) -> None:
    assert one(script("10-forks", f"sleep {NAP}.28 {output} & (sleep {NAP}.28 {output} &) ; exit 0")).health is Health.OK
    assert gone(f"{NAP}.28")


def test_a_detached_process_neither_holds_the_round_nor_survives(script: Script) -> None:
    started = time.monotonic()
    result = one(script("10-detach", f"setsid sh -c 'sleep {NAP}.29; echo' & exit 0"), timeout_s=10)
    assert result.health is Health.OK
    assert time.monotonic() - started < 9
    assert gone(f"{NAP}.29")


def test_a_flood_is_bounded_and_its_end_kept(script: Script) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On a busy host a program may take a second until its first word.
    flood = one(script("10-flood", "exec yes flooding"), timeout_s=3)
    # The signal may end its last word in the middle.
    start, _, word = flood.reason.partition(", last said: ")
    assert start == "no answer within 3 s"
    assert word
    assert "flooding".startswith(word)
    long = one(script("20-long", "head -c 20000000 /dev/zero | tr '\\0' x; echo; echo the end"), timeout_s=20)
    assert (long.health, long.reason) == (Health.OK, "the end")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8192, "KiB"


def test_one_look_at_a_flood_is_short(script: Script) -> None:
    """The loop that pets the watchdog calls poll: it must come back whatever the program prints."""
    checks = CheckRun([script("10-flood", f"exec yes {NAP}.45")], timeout_s=5)
    checks.start(0.0)
    longest = 0.0
    for _ in range(200):
        before = time.monotonic()
        assert checks.poll(1.0) is None
        longest = max(longest, time.monotonic() - before)
    checks.cancel()
    assert longest < 0.5
    assert gone(f"{NAP}.45")


def test_start_and_poll_never_wait(script: Script) -> None:
    checks = CheckRun([script("10-slow", f"exec sleep {NAP}.30")], timeout_s=1000)
    before = time.monotonic()
    checks.start(0.0)
    for _ in range(100):
        assert checks.poll(1.0) is None
    assert checks.active
    assert time.monotonic() - before < 2
    checks.cancel()
    assert not checks.active
    assert checks.poll(2.0) is None
    assert gone(f"{NAP}.30")


def test_time_is_the_callers(script: Script) -> None:
    checks = CheckRun([script("10-slow", f"exec sleep {NAP}.31")], timeout_s=1000)
    checks.start(100.0)
    assert checks.poll(1100.0) is None
    done = None
    for _ in range(500):
        done = checks.poll(1100.1)
        if done is not None:
            break
        time.sleep(0.01)
    assert done is not None
    assert done.results[0].reason == "no answer within 1000 s"


def test_a_new_start_gives_up_the_old_round(script: Script, tmp_path: Path) -> None:
    checks = CheckRun(
        [script("10-once", f"test -e {tmp_path}/second && exit 0; touch {tmp_path}/second; exec sleep {NAP}.32")], timeout_s=1000
    )
    checks.start(0.0)
    while not (tmp_path / "second").exists():
        time.sleep(0.01)
    assert run_once(checks).results[0].health is Health.OK
    assert gone(f"{NAP}.32")


@pytest.mark.parametrize(
    ("head", "word"), [("#!/nonexistent/interpreter\n", "No such file"), ("\x7fELF", "Exec format"), ("", "Exec format")]
)
def test_what_cannot_be_run_is_critical(script: Script, head: str, word: str) -> None:
    result = one(script("10-broken", "echo", head=head))
    assert result.health is Health.CRITICAL
    assert result.reason.startswith("cannot be run: ")
    assert word in result.reason


def test_a_program_that_vanishes_or_becomes_writable_between_rounds(script: Script, tmp_path: Path) -> None:
    vanishing, opened = script("10-v", "exit 0"), script("20-o", f"touch {tmp_path}/ran")
    checks = CheckRun([vanishing, opened], timeout_s=10)
    assert run_once(checks).health is Health.OK
    (tmp_path / "ran").unlink()
    vanishing.unlink()
    opened.chmod(0o777)
    done = run_once(checks)
    assert [result.health for result in done.results] == [Health.CRITICAL, Health.CRITICAL]
    assert "can write" in done.results[1].reason
    assert not (tmp_path / "ran").exists()


def test_the_environment_is_bounded(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("LD_PRELOAD", "")
    program = script("10-env", "pwd; env | sort | tr '\\n' ' '; echo; test ! -e /proc/self/fd/3")
    done = run_once(CheckRun([program], timeout_s=10, environ={"ABUPDATE_SLOT": "B"}))
    words = {word.partition("=")[0] for word in done.results[0].reason.split()}
    assert done.health is Health.OK, "a file of the service's is open in the program"
    # PWD is the shell's own.
    assert words == {"ABUPDATE_SLOT", "HOME", "LANG", "PATH", "PWD"}


def test_memory_and_processor_are_limited(script: Script) -> None:
    assert one(script("10-mem", "x = bytearray(600 << 20)", head="#!/usr/bin/env python3\n"), 20).reason.endswith("MemoryError")
    assert one(script("10-reserve", "import mmap; mmap.mmap(-1, 2 << 30, prot=0)", head="#!/usr/bin/env python3\n"), 20).health is Health.OK
    spin = one(script("20-spin", "while :; do :; done"), timeout_s=1)
    assert spin.health is Health.CRITICAL


def test_the_bound_of_memory_is_the_callers(script: Script) -> None:
    program = script("10-mem", "x = bytearray(60 << 20)", head="#!/usr/bin/env python3\n")
    assert run_once(CheckRun([program], timeout_s=20, memory_bytes=48 << 20)).results[0].reason.endswith("MemoryError")
    assert run_once(CheckRun([program], timeout_s=20, memory_bytes=256 << 20)).health is Health.OK


def test_what_a_program_starts_with(script: Script, tmp_path: Path) -> None:
    """Descriptors, folder, session, umask, signals, and its place when memory runs out; its children have the same."""
    extra = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(extra, True)
    body = f"""(cd {tmp_path}
ls -l /proc/self/fd | sed -n 's/.* -> //p' > files
cat /proc/self/oom_score_adj > oom
umask > umask
grep Sig[BI] /proc/self/status > signals)
pwd > {tmp_path}/pwd
echo $$ $(ps -o sid=,pgid= -p $$) > {tmp_path}/session
(ulimit -d; ulimit -t; ulimit -c) > {tmp_path}/limits"""
    try:
        assert one(script("10-facts", body), timeout_s=10).health is Health.OK
    finally:
        os.close(extra)

    def said(name: str) -> str:
        return (tmp_path / name).read_text().strip()

    # The last two are the listing program's own: its output, and the folder that it reads.
    files = said("files").split("\n")
    assert files[0] == "/dev/null"
    assert len(files) == 4
    assert not [name for name in files if name == str(tmp_path)]
    assert (said("oom"), said("umask"), said("pwd")) == ("500", "0022", "/")
    assert len(set(said("session").split())) == 1
    assert said("limits").split() == [str(512 << 10), "11", "0"]
    assert {line.split()[1].strip("0") for line in said("signals").splitlines()} == {""}


@pytest.mark.parametrize(
    "start",
    [
        f"env -i /usr/bin/setsid /bin/sleep {NAP}.41 <&- >&- 2>&- &",
        f"(setsid sh -c '(setsid sleep {NAP}.41 &) ; exec sleep {NAP}.41' >/dev/null 2>&1 &)",
        f"setsid sh -c 'trap \"\" TERM HUP; sleep {NAP}.41 & wait' &",
    ],
    ids=["no environment and no pipe", "forked twice", "holds the pipe"],
)
def test_a_daemon_does_not_outlive_its_program(script: Script, start: str) -> None:
    """It has left the group, and even its environment."""
    before = len(alive(f"{NAP}.41"))
    assert before == 0
    assert one(script("10-daemon", f"{start}\nsleep 0.1; exit 0"), timeout_s=10).health is Health.OK
    assert gone(f"{NAP}.41")


def test_a_small_fork_bomb_leaves_nothing(script: Script) -> None:
    """Every process starts two others in sessions of their own, five times over, and none of them ends by itself."""
    body = 'n=${1:-0}; [ "$n" -lt 5 ] && for i in 1 2; do setsid "$0" $((n + 1)) {NAP}.42 & done; sleep {NAP}.42'.replace("{NAP}", NAP)
    started = time.monotonic()
    assert one(script("10-bomb", body)).reason == "no answer within 0.5 s"
    assert gone(f"{NAP}.42")
    assert time.monotonic() - started < 10


def test_children_of_others_are_left_alone(script: Script) -> None:
    with subprocess.Popen(["sleep", f"{NAP}.43"]) as mine:
        assert one(script("10-a", f"(sleep {NAP}.44 &); exit 0"), timeout_s=10).health is Health.OK
        assert mine.poll() is None
        mine.kill()
        assert mine.wait() == -9
    assert gone(f"{NAP}.44")


def test_no_programs(tmp_path: Path) -> None:
    assert find_programs(tmp_path / "none") == ()
    done = run()
    assert (done.results, done.health) == ((), Health.OK)
    assert "no health programs" in done.reason


def test_which_files_are_programs(script: Script, tmp_path: Path) -> None:
    folder = script("20-real", "exit 0").parent
    for name in (".hidden", "10-old~", "10-a.dpkg-old", "10-b.bak"):
        script(name, "exit 2")
    script("README", "not a program", mode=0o644)
    (folder / "subdirectory").mkdir()
    (folder / "10-link").symlink_to(folder / "20-real")
    (folder / "30-dangling").symlink_to(folder / "nowhere")
    assert [path.name for path in find_programs(folder)] == ["10-link", "20-real"]


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_program_that_others_can_write_is_refused(script: Script, mode: int) -> None:
    path = script("10-open", "exit 0", mode=mode)
    with pytest.raises(ConfigError, match="can write") as caught:
        find_programs(path.parent)
    assert caught.value.message.startswith(str(path))
    assert "chmod go-w" in caught.value.hint


def test_a_program_of_another_user_is_refused(script: Script) -> None:
    path = script("10-foreign", "exit 0")
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="65534"):
        find_programs(path.parent)
    path.parent.joinpath("20-link").symlink_to(path)
    path.rename(path.with_name(".moved"))
    (path.parent / "20-link").unlink()
    (path.parent / "20-link").symlink_to(".moved")
    with pytest.raises(ConfigError, match="20-link"):
        find_programs(path.parent)


def test_nothing_is_left_behind(script: Script) -> None:
    """Descriptors and children after rounds of every kind."""

    def descriptors() -> set[tuple[str, str]]:
        found = set()
        for entry in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                found.add((entry.name, str(entry.readlink())))
        return found

    def children() -> set[str]:
        told = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], check=False, capture_output=True, text=True).stdout
        return {line.split()[0] for line in told.splitlines() if line.split()[1] != "ps"}

    # Tests before this one in the same process may have left something, which may go meanwhile.
    files, processes = descriptors(), children()
    programs = [script("10-a", "exit 0"), script("20-b", f"exec sleep {NAP}.33"), script("30-c", "", head="#!/none\n")]
    for _ in range(3):
        run(*programs, timeout_s=0.1)
    assert not descriptors() - files
    assert not children() - processes
