"""The floor's copy in a TPM: one NV index, reached through the executables of tpm2-tools. It is only ever raised.

A fleet's node keeps the number of its last start in another one, with a domain of its own.

The index holds 16 bytes: the counter (8, big-endian) and the first 8 bytes of SHA-256("abupdate floor v1" 00 | counter). An ordinary
index, not one of the TPM's own counters: those move by one a command, begin wherever the TPM's highest one ever stood, and security
counters may be dates. The check tells our value from an erased index and from what another program keeps there: neither must ever
pass for a floor that locks updates out, and the latter is never overwritten.

Read and written with the index's own, empty authorization: only making it needs the owner's, and a factory that has locked the
owner hierarchy makes it itself (`define_command`). It takes no part in the dictionary-attack lockout.
Every command is a list of arguments, with a bound on its time and on what is read of its output.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import subprocess
import time

from abupdate.errors import Failed

SIZE_BYTES = 16
ATTRIBUTES = "authread|authwrite|ownerread|ownerwrite|no_da"
FLOOR = b"abupdate floor v1\0"
BOOTS = b"abupdate boots v1\0"
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OUTPUT_BYTES = 16 * 1024
_KILL_GRACE_S = 0.2
# Response codes of the TPM 2.0 specification, part 2, as the tools print them.
_ABSENT = re.compile(rb"\(0x[0-9A-F]*18B\)", re.IGNORECASE)  # TPM_RC_HANDLE, first handle
_NEVER_WRITTEN = re.compile(rb"\(0x[0-9A-F]*14A\)", re.IGNORECASE)  # TPM_RC_NV_UNINITIALIZED
_ERROR = re.compile(rb"^ERROR: *(.*)$", re.MULTILINE)


class _Absent(Exception):
    """There is no such index."""


class TpmFloor:
    """`ports.FloorCopy` in an NV index."""

    def __init__(self, index: int, tcti: str, patience_s: float = 8.0, search: str = _SEARCH, domain: bytes = FLOOR) -> None:
        """index: its handle. tcti: how tpm2-tools reach the TPM, such as device:/dev/tpmrm0. patience_s: for one call of ours in all.

        search: folders of the tools, by colons. domain: what the counter is, and whose.
        """
        self._domain = domain
        self._index = f"{index:#x}"
        self._tcti = tcti
        self._patience_s = patience_s
        self._environment = {"PATH": search, "LC_ALL": "C"}

    @property
    def name(self) -> str:
        """See ports.FloorCopy."""
        return f"TPM index {self._index}"

    def define_command(self) -> str:
        """What makes the index by hand, for people."""
        return f"tpm2_nvdefine -C o -s {SIZE_BYTES} -a '{ATTRIBUTES}' {self._index}"

    def value(self) -> int:
        """See ports.FloorCopy."""
        try:
            return self._read(self._end())
        except _Absent:
            return 0

    def raise_to(self, counter: int) -> None:
        """See ports.FloorCopy. Makes the index where there is none."""
        end_s = self._end()
        try:
            if self._read(end_s) >= counter:
                return
        except _Absent:
            if not counter:
                return
            self._define(end_s)
        self._say(("tpm2_nvwrite", "-C", self._index, "-i", "-", self._index), end_s, encode(counter, self._domain))
        try:
            seen = self._read(end_s)
        except _Absent:
            seen = -1
        if seen != counter:
            raise Failed(f"{self.name} does not show the counter {counter} that was written to it")

    def _end(self) -> float:
        return time.monotonic() + self._patience_s

    def _read(self, end_s: float) -> int:
        command = ("tpm2_nvread", "-C", self._index, "-s", str(SIZE_BYTES), self._index)
        code, output, errors = self._run(command, end_s)
        if code == 0:
            return decode(output, self.name, self._domain)
        if _NEVER_WRITTEN.search(errors):
            return 0
        if _ABSENT.search(errors):
            raise _Absent
        raise self._failed(command, errors)

    def _define(self, end_s: float) -> None:
        command = ("tpm2_nvdefine", "-C", "o", "-s", str(SIZE_BYTES), "-a", ATTRIBUTES, self._index)
        code, _, errors = self._run(command, end_s)
        if code != 0:
            raise self._failed(command, errors, f"as the TPM's owner: {self.define_command()}")

    def _say(self, command: tuple[str, ...], end_s: float, data: bytes) -> None:
        code, _, errors = self._run(command, end_s, data)
        if code != 0:
            raise self._failed(command, errors)

    def _failed(self, command: tuple[str, ...], errors: bytes, hint: str = "") -> Failed:
        # The last of the tools' errors only says that the tool has failed.
        said = [line for line in _ERROR.findall(errors) if not line.startswith(b"Unable to run")]
        text = (said[0] if said else b"no word why").decode(errors="replace")
        line = " ".join("".join(character if character.isprintable() else " " for character in text).split())[:200]
        return Failed(f"{self.name}: {command[0]}: {line}", hint or "is the TPM there? see [floor] tpm_tcti")

    def _run(self, command: tuple[str, ...], end_s: float, data: bytes = b"") -> tuple[int, bytes, bytes]:
        """Exit code, output, errors of a tool. Never waits beyond `end_s` by more than the moment that a kill takes."""
        argv = [command[0], f"--tcti={self._tcti}", *command[1:]]
        with contextlib.ExitStack() as stack:
            given, feed = os.pipe2(os.O_CLOEXEC)
            # 16 bytes always fit into a pipe.
            os.write(feed, data)
            os.close(feed)
            stack.callback(os.close, given)
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=given,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env=self._environment,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise Failed(f"{self.name}: {command[0]} is not there", "install tpm2-tools") from error
            except OSError as error:
                raise Failed(f"{self.name}: {command[0]} cannot be run: {error.strerror}") from error
            assert process.stdout
            assert process.stderr
            stack.callback(process.stdout.close)
            stack.callback(process.stderr.close)
            try:
                output, errors = _collect(process.stdout.fileno(), process.stderr.fileno(), end_s)
                code = process.wait(max(0.0, end_s - time.monotonic()))
            except (TimeoutError, subprocess.TimeoutExpired):
                raise Failed(f"{self.name}: {command[0]} does not answer", "the other copies of the floor decide") from None
            finally:
                _end(process)
        return code, output, errors


def encode(counter: int, domain: bytes = FLOOR) -> bytes:
    """The index's 16 bytes for a counter (0 to 2^64-1)."""
    raw = counter.to_bytes(8, "big")
    return raw + hashlib.sha256(domain + raw).digest()[:8]


def decode(data: bytes, name: str, domain: bytes = FLOOR) -> int:
    """The counter in the index's 16 bytes. Raises Failed for anything that `encode` did not make."""
    counter = int.from_bytes(data[:8], "big")
    if data != encode(counter, domain):
        what = "floor" if domain == FLOOR else "number of this node's starts"
        raise Failed(f"{name} holds something that is no {what}", "is it another program's? choose a free index, or remove this one")
    return counter


def _collect(first: int, second: int, end_s: float) -> tuple[bytes, bytes]:
    """What comes out of two pipes to their end, the beginning of each kept. Raises TimeoutError."""
    found = {first: b"", second: b""}
    waiting = [first, second]
    while waiting:
        ready = select.select(waiting, [], [], max(0.0, end_s - time.monotonic()))[0]
        if not ready:
            raise TimeoutError
        for descriptor in ready:
            piece = os.read(descriptor, _OUTPUT_BYTES)
            if not piece:
                waiting.remove(descriptor)
            found[descriptor] = (found[descriptor] + piece)[:_OUTPUT_BYTES]
        if time.monotonic() >= end_s:
            # A flood keeps the pipes ready for ever.
            raise TimeoutError
    return found[first], found[second]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a tool that still runs, with what it started. One that hangs in the kernel's driver is left to it."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_GRACE_S)
