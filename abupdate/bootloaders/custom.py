"""Boot state behind a board's own programs: `get-state` and `set-state` in a folder, speaking the JSON of formats/bootanswer.py.

`get-state` exits with 0 and prints an answer, also where no copy of the state is valid. `set-state` exits with 0 only when the whole
state is on the medium (`check`: when it would fit), with 2 when it will never take this state (no room), with anything else when
it failed and may be asked again. The last line that a program prints on standard error is what people get to read.

Each runs without a shell, in a session of its own, with / as its folder, a bounded environment, and limits on time and output; what is
left of it then is killed. Program and folder must be root's, and nobody else's to write.
"""

from __future__ import annotations

import os
import selectors
import signal
import stat
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from abupdate.errors import AbupdateError, ConfigError, Failed, StoreUnreadable
from abupdate.formats.bootanswer import MAX_BYTES, BootAnswer, encode_request, parse_answer
from abupdate.model import BootState, BootTraits, Finding, Grade
from abupdate.ports import Bootloader

PATIENCE_S = 10.0
_GET, _SET = "get-state", "set-state"
_NEVER = 2
_TAIL_BYTES = 4096
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
_SILENT = BootAnswer(BootTraits(255, counts_confirmed=True, falls_through=True, armed_in_store=True, keeps_verity=True), None)
_HINT = "see bootloader-hooks/README.md, custom; try it by hand as root"


@dataclass(frozen=True, slots=True)
class Said:
    """How a program ended. code: its exit code, negative: the signal. said: its last line on standard error."""

    code: int
    output: bytes
    said: str

    @property
    def why(self) -> str:
        how = f"ended by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        return f"{self.said} ({how})" if self.said else how


class CustomStore(Bootloader):
    """`ports.Bootloader` over two programs in `folder`. patience_s: how long each may take."""

    def __init__(self, folder: Path, slots: tuple[str, ...], *, patience_s: float = PATIENCE_S) -> None:
        self._folder = folder
        self._slots = slots
        self._patience_s = patience_s
        self._known: BootAnswer | None = None
        self._asked = False

    @property
    def traits(self) -> BootTraits:
        """What `get-state` says that this board can do; anything, while it does not answer."""
        return self._about().traits

    @property
    def location(self) -> str:
        """The folder; what is behind the programs is theirs."""
        return f"custom:{self._folder}"

    @property
    def irreplaceable(self) -> str:
        """See ports.Bootloader."""
        return self._about().irreplaceable

    @property
    def tears(self) -> str:
        """See ports.Bootloader."""
        return self._about().tears

    def places(self) -> tuple[tuple[Path, int, int], ...]:
        """See ports.Bootloader."""
        return (self._known or self._ask()).places

    def read(self) -> BootState:
        """See ports.Bootloader. Raises Failed too, where `get-state` fails."""
        state = self._ask().state
        if state is None:
            raise StoreUnreadable(
                f"{self._folder / _GET} finds no valid state", "`abupdate doctor --fix` shows a new one and has it written"
            )
        return state

    def commit(self, state: BootState) -> None:
        """See ports.Bootloader."""
        self._tell("commit", state)

    def check_room(self, state: BootState) -> None:
        """See ports.Bootloader."""
        self._tell("check", state)

    def rebuild(self, state: BootState) -> None:
        """See ports.Bootloader."""
        self._tell("rebuild", state)

    def inspect(self) -> tuple[Finding, ...]:
        """See ports.Bootloader: the programs may be run, and how long an answer takes."""
        started = time.monotonic()
        answer = self._ask()
        took_s = time.monotonic() - started
        self._trusted(_SET)
        found = [Finding(Grade.OK, "boot store", f"{self._folder / _GET} answers within {took_s:.1f} s")]
        if took_s > self._patience_s / 2:
            found.append(Finding(Grade.WARN, "boot store", f"{self._folder / _GET} took {took_s:.1f} s of {self._patience_s:g} s", _HINT))
        if not answer.places:
            hint = 'add "places" to its answer, so that no image can be written over the store'
            found.append(Finding(Grade.WARN, "boot store", f"{self._folder / _GET} does not say where the state lies", hint))
        return tuple(found)

    def _about(self) -> BootAnswer:
        """The last answer, or a first one: what a board can do does not change.

        Where the first one fails, `read` says so in a moment; the service must get that far, to watch a trial that nobody can confirm.
        """
        if not self._asked:
            with suppress(AbupdateError):
                self._ask()
        return self._known or _SILENT

    def _ask(self) -> BootAnswer:
        self._asked = True
        done = self._run(_GET, b"")
        path = self._folder / _GET
        if done.code:
            raise Failed(f"{path}: {done.why}", _HINT)
        self._known = parse_answer(done.output, self._slots, str(path))
        return self._known

    def _tell(self, action: str, state: BootState) -> None:
        strangers = [slot for slot in (*state.order, *state.left, *state.verity, state.trial or self._slots[0]) if slot not in self._slots]
        if strangers:
            raise ConfigError(f"slot {strangers[0]!r} is not configured", f"configured are {', '.join(self._slots)}")
        if not state.order:
            raise ConfigError("a boot order without a slot would leave the device dark", "at least the running slot belongs into it")
        done = self._run(_SET, encode_request(action, state, self._slots))
        if done.code == _NEVER:
            raise ConfigError(f"{self._folder / _SET} refuses the state: {done.said or 'without a word'}", _HINT)
        if done.code:
            raise Failed(f"{self._folder / _SET}: {done.why}", _HINT)

    def _run(self, name: str, told: bytes) -> Said:
        path = self._trusted(name)
        try:
            process = subprocess.Popen(
                [path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,
                umask=0o022,
            )
        except OSError as error:
            raise ConfigError(f"{path} cannot be run: {error.strerror}", _HINT) from None
        try:
            output, errors = self._talk(process, told, path)
            return Said(process.returncode, output, _last_line(errors))
        finally:
            # Whatever it has left behind: a state that changes after the answer would be nobody's.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            if process.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def _talk(self, process: subprocess.Popen[bytes], told: bytes, path: Path) -> tuple[bytes, bytes]:
        """Write, read and wait within the time; standard output whole, the end of standard error."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        end_s = time.monotonic() + self._patience_s
        output, errors = b"", b""
        with selectors.DefaultSelector() as ready:
            for pipe, events in (
                (process.stdin, selectors.EVENT_WRITE),
                (process.stdout, selectors.EVENT_READ),
                (process.stderr, selectors.EVENT_READ),
            ):
                os.set_blocking(pipe.fileno(), False)
                ready.register(pipe, events)
            while ready.get_map():
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    raise Failed(f"{path}: no answer within {self._patience_s:g} s", _HINT)
                # Not until the pipes close: a child that it left behind may hold them.
                if not (happened := ready.select(min(left_s, 0.05))) and process.poll() is not None:
                    break
                for key, _ in happened:
                    if key.fileobj is process.stdin:
                        with suppress(BrokenPipeError):
                            told = told[os.write(key.fd, told) :] if told else b""
                            if told:
                                continue
                        ready.unregister(process.stdin)
                        process.stdin.close()
                        continue
                    piece = os.read(key.fd, 65536)
                    if not piece:
                        ready.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        output += piece
                        if len(output) > MAX_BYTES:
                            raise ConfigError(f"{path}: answers with more than {MAX_BYTES} bytes", _HINT)
                    else:
                        errors = (errors + piece)[-_TAIL_BYTES:]
        try:
            process.wait(max(end_s - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            raise Failed(f"{path}: no answer within {self._patience_s:g} s", _HINT) from None
        return output, errors

    def _trusted(self, name: str) -> Path:
        """The program, which nobody else can have put there. Raises ConfigError."""
        for path in (self._folder, self._folder / name):
            try:
                found = path.stat()
            except OSError as error:
                raise ConfigError(
                    f"{path}: {error.strerror}", "[bootloader] programs names the folder of get-state and set-state"
                ) from None
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigError(f"{path}: group or others can write it", f"chmod go-w {path}")
            if found.st_uid not in (0, os.geteuid()):
                raise ConfigError(f"{path} belongs to user {found.st_uid}, neither root nor the caller", f"chown root {path}")
        if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o111:
            raise ConfigError(f"{path} is no program", f"chmod 755 {path}")
        return path


def _last_line(tail: bytes) -> str:
    """Fit for a terminal: at most 200 printable characters."""
    lines = [line for line in tail.decode(errors="replace").splitlines() if line.strip()]
    text = "".join(character if character.isprintable() else " " for character in lines[-1]) if lines else ""
    return " ".join(text.split())[:200]
