"""Who signs: a key file, or a command that holds the key elsewhere (an HSM, a PKCS#11 token, a signing service).

The command gets the message (`domain ‖ SHA-256`, some fifty bytes) on stdin and answers with the 64 bytes of the raw signature on
stdout. Which key it is to use is said by a public key file: its id stands in ABUPDATE_KEY_ID, its raw bytes in hex in
ABUPDATE_PUBLIC_KEY. What comes back is verified before it is used.
"""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from abupdate.errors import ConfigError, Failed
from abupdate.formats import signature
from abupdate.host import keys
from abupdate.model import PublicKey, Signature

# Long enough for a person who has to touch a token.
COMMAND_TIMEOUT_S = 300.0
_POLL_S = 0.05
MAX_SIGNERS = 64


class Signer(Protocol):
    """Something that signs with one key."""

    @property
    def public(self) -> PublicKey:
        """The key that the signatures are by."""

    def sign(self, message: bytes) -> bytes:
        """The raw signature (64 bytes) over a message. Raises ConfigError or Failed."""


@dataclass(frozen=True, slots=True)
class CommandSigner:
    """Signs through a command."""

    command: tuple[str, ...]
    public: PublicKey

    def sign(self, message: bytes) -> bytes:
        """Run the command once. Raises ConfigError where it cannot start, Failed where it fails or answers with something else."""
        environment = os.environ | {
            "ABUPDATE_KEY_ID": signature.key_id(self.public.raw),
            "ABUPDATE_PUBLIC_KEY": self.public.raw.hex(),
        }
        name = self.command[0]
        try:
            process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        except OSError as error:
            raise ConfigError(f"cannot run {name}: {error.strerror}", "check --sign-with") from error
        end_s = time.monotonic() + COMMAND_TIMEOUT_S
        try:
            answer = _ask(process, message, end_s)
            if len(answer) > signature.SIGNATURE_BYTES:
                raise Failed(f"{name} answered with more than {signature.SIGNATURE_BYTES} bytes", "it must write the raw signature")
            code = process.wait(max(0.0, end_s - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{name} gave no signature within {COMMAND_TIMEOUT_S:.0f} s") from error
        finally:
            _end(process)
        if code:
            raise Failed(f"{name} ended with {code}")
        if len(answer) != signature.SIGNATURE_BYTES:
            raise Failed(
                f"{name} answered with {len(answer)} bytes instead of {signature.SIGNATURE_BYTES}", "it must write the raw signature"
            )
        return answer


def _ask(process: subprocess.Popen[bytes], message: bytes, end_s: float) -> bytes:
    """What the command says until it ends, or has said too much. Something that it leaves running with its output is not waited for."""
    assert process.stdin
    assert process.stdout
    with suppress(BrokenPipeError), process.stdin as stdin:
        # So short that it fits into the pipe, whether the command reads it or not.
        stdin.write(message)
    answer = b""
    while len(answer) <= signature.SIGNATURE_BYTES:
        ended = process.poll() is not None
        if select.select([process.stdout], [], [], 0 if ended else _POLL_S)[0]:
            piece = os.read(process.stdout.fileno(), signature.SIGNATURE_BYTES + 1)
            if not piece:
                break
            answer += piece
        elif ended:
            break
        elif time.monotonic() >= end_s:
            raise subprocess.TimeoutExpired(process.args, COMMAND_TIMEOUT_S)
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout
    process.stdout.close()
    if process.poll() is None:
        process.kill()
        process.wait()


def load_signers(paths: Sequence[Path], *, passphrase_file: Path | None = None, sign_with: str | None = None) -> tuple[Signer, ...]:
    """The signers of `--key` options: private key files, and with `--sign-with` also public ones that the command signs for.

    Raises ConfigError: unreadable keys, a key twice, a command without a public key, a public key without a command.
    """
    passphrase = keys.read_passphrase(passphrase_file) if passphrase_file else None
    try:
        command = tuple(shlex.split(sign_with)) if sign_with else ()
    except ValueError as error:
        raise ConfigError(f"--sign-with cannot be split into words: {error}") from error
    if len(paths) > MAX_SIGNERS:
        raise ConfigError(f"{len(paths)} keys are too many", f"at most {MAX_SIGNERS} sign at once")
    if sign_with is not None and not command:
        raise ConfigError("--sign-with is empty")
    signers: list[Signer] = []
    used = False
    for path in paths:
        if command and keys.is_public(path):
            signers.append(CommandSigner(command, keys.load_public(path)))
            used = True
        else:
            signers.append(keys.load_private(path, passphrase))
    if command and not used:
        raise ConfigError("--sign-with has no key to sign for", "name its public key with --key KEY.pub")
    if len({signer.public.raw for signer in signers}) != len(signers):
        raise ConfigError("the same key is given twice", "a threshold counts distinct keys")
    return tuple(signers)


def sign_all(signers: Sequence[Signer], message: bytes) -> tuple[Signature, ...]:
    """A signature by each signer, verified. Raises Failed where one does not verify."""
    signatures: list[Signature] = []
    for signer in signers:
        value = signer.sign(message)
        if not signature.verify(signer.public.raw, value, message):
            raise Failed(f"the signature for key {signature.key_id(signer.public.raw)} does not verify", "the signer holds another key")
        signatures.append(Signature(signer.public.raw, value))
    return tuple(signatures)
