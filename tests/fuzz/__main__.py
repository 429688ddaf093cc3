"""`python -m tests.fuzz TARGET... [--seconds N] [--runs N]`: coverage-guided fuzzing with atheris, one target after the other.

    python -m tests.fuzz --list                    the targets
    python -m tests.fuzz all --seconds 60          every target for a minute, each in a process of its own
    python -m tests.fuzz together --runs 3000      all targets in one process, by turns: the suite's short run
    python -m tests.fuzz bundle FILE               one input, as a finding is looked at

What it learns stays in .cache/fuzz/TARGET, so that the next run goes on there. A finding ends with 1 and is kept in that folder as
crash-*, timeout-* or oom-*: put it into tests/fuzz/found/TARGET once it is understood; the suite replays what lies there. The last line
of each run is `TARGET EXECUTIONS ACCEPTED`: how many inputs were run, and how many of them the parser accepted.
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from random import Random

import atheris

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".cache" / "fuzz"
MAX_INPUT_BYTES = 8192
# What libFuzzer sees of the whole process: the interpreter, the libraries, the corpus. the targets' bounds are much closer.
RSS_LIMIT_MIB = 1024
UNIT_TIMEOUT_S = 20
# Counting memory takes six times as long: every so often, and where the process grew.
MEMORY_EVERY = 16
COUNTERS = struct.Struct("<QQ")


def main() -> int:
    """Choose what is run and in which process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("name", nargs="*", help="a target and perhaps an input; `all`; `together`")
    parser.add_argument("--seconds", type=int, default=0, help="end after so many seconds (each target)")
    parser.add_argument("--runs", type=int, default=0, help="end after so many inputs (each target)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seeds", action="store_true", help="write the seed corpus anew")
    options = parser.parse_args()
    # Imported under atheris, which counts what is reached of the parsers and not of the tests.
    with atheris.instrument_imports(include=["abupdate"], enable_loader_override=False):
        import tests.fuzz.targets as table
    from tests.fuzz import seeds

    if options.list:
        print("\n".join(table.TARGETS))
        return 0
    if options.seeds:
        print(f"{seeds.write()} bytes")
        return 0
    if not options.name:
        parser.error("which target? --list names them")
    if options.name == ["all"]:
        return _each(list(table.TARGETS), options)
    name, *inputs = options.name
    if name != "together" and name not in table.TARGETS:
        parser.error(f"no target {name}: --list names them")
    if inputs:
        for path in inputs:
            accepted = table.check(table.TARGETS[name], Path(path).read_bytes())
            print(f"{path}: {'accepted' if accepted else 'refused'}")
        return 0
    return _guarded(name, options)


def _guarded(name: str, options: argparse.Namespace) -> int:
    """Fuzz in a child, since libFuzzer leaves the process without a word to Python; what it counted is shared."""
    counters = mmap.mmap(-1, COUNTERS.size)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        Run(name, options, counters).fuzz()
        os._exit(1)  # Fuzz() does not return
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    executions, accepted = COUNTERS.unpack(counters)
    print(f"{name} {executions} {accepted}" + (f" FINDING (see {KEPT / name})" if code else ""), flush=True)
    return 1 if code else 0


def _each(names: list[str], options: argparse.Namespace) -> int:
    words = [f"--seconds={options.seconds}", f"--runs={options.runs}", f"--seed={options.seed}"]
    codes = [subprocess.run([sys.executable, "-m", "tests.fuzz", name, *words], cwd=ROOT, check=False).returncode for name in names]
    return 1 if any(codes) else 0


class Run:
    """One process of libFuzzer; it ends by leaving the process."""

    def __init__(self, name: str, options: argparse.Namespace, counters: mmap.mmap) -> None:
        from tests.fuzz import seeds
        from tests.fuzz.targets import TARGETS

        self.name = name
        self.together = name == "together"
        self.targets = list(TARGETS.items()) if self.together else [(name, TARGETS[name])]
        self.options = options
        self.counters = counters
        self.executions = self.accepted = self.most_kib = 0
        self.folder = KEPT / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start = self.folder.parent / f"{name}.seeds"
        self.start.mkdir(exist_ok=True)
        for old in self.start.iterdir():
            old.unlink()
        self.good = [[path.read_bytes() for path in seeds.kept(target)] for target, _ in self.targets]
        for number, (target, _) in enumerate(self.targets):
            for path in seeds.kept(target):
                first = bytes([number]) if self.together else b""
                (self.start / f"{target}-{path.name}").write_bytes(first + path.read_bytes())

    def fuzz(self) -> None:
        """Hand over to libFuzzer, which ends the process."""
        arguments = [
            sys.argv[0],
            f"-artifact_prefix={self.folder}/",
            f"-max_len={MAX_INPUT_BYTES}",
            f"-rss_limit_mb={RSS_LIMIT_MIB}",
            f"-timeout={UNIT_TIMEOUT_S}",
            "-print_final_stats=0",
            "-verbosity=0",
            "-close_fd_mask=0",
        ]
        arguments += [f"-max_total_time={self.options.seconds}"] if self.options.seconds else []
        arguments += [f"-runs={self.options.runs}"] if self.options.runs else []
        arguments += [f"-seed={self.options.seed}"] if self.options.seed else []
        # The run of the suite starts from the seeds alone, so that it does the same each time.
        arguments += [str(self.start)] if self.together else [str(self.folder), str(self.start)]
        atheris.Setup(arguments, self.one, custom_mutator=self.mutate)
        atheris.Fuzz()

    def _choose(self, data: bytes) -> tuple[int, bytes]:
        if not self.together:
            return 0, data
        return (data[0] % len(self.targets), data[1:]) if data else (0, b"")

    def one(self, data: bytes) -> None:
        """One input."""
        from tests.fuzz.targets import check

        number, data = self._choose(data)
        self.executions += 1
        target = self.targets[number][1]
        try:
            self.accepted += check(target, data, memory=self.executions % MEMORY_EVERY == 0)
            if self._grown():
                check(target, data)
        finally:
            COUNTERS.pack_into(self.counters, 0, self.executions, self.accepted)

    def _grown(self) -> bool:
        """Whether the process has more memory than ever: then the last input is run once more, and its memory counted."""
        before, self.most_kib = self.most_kib, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return self.most_kib > before

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """A mutation that knows the shape, by libFuzzer's own where bytes are to change."""
        number, rest = self._choose(data)
        first = bytes([number]) if self.together else b""
        chance = Random(seed)
        room = max(1, max_size - 1)

        def change(part: bytes) -> bytes:
            return bytes(atheris.Mutate(part, max(1, min(room, 2 * len(part) + 16))))

        # What libFuzzer keeps is mostly refused, each in a new way: some of its inputs start from a good one again.
        mutated = chance.choice(self.good[number]) if self.good[number] and chance.random() < 0.3 else rest
        for _ in range(chance.choice((1, 1, 2, 3))):
            mutated = self.targets[number][1].mutate(mutated, chance, change)
        return first + mutated[:room]


if __name__ == "__main__":
    sys.exit(main())
