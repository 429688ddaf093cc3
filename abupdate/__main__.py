"""Entry point: signals, log set-up, and errors to exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import signal
import sys
import warnings
from importlib import import_module
from types import FrameType
from typing import NoReturn, TextIO

from abupdate.errors import AbupdateError, ConfigError, Failed, Interrupted
from abupdate.log import JournalFormatter, PlainFormatter, is_journal, plain, priority

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A path that cannot be right, wherever it was met.
_BAD_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
# By exit code, for errors whose place in the code knows no better one.
_HINTS = {
    1: "try again; `abupdate doctor` looks for what is wrong",
    2: "see `abupdate --help` and the README",
    3: "do not try again with the same one",
    4: "there is nothing to do",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code of the CLI contract."""
    arguments = sys.argv[1:] if argv is None else argv
    _mend_streams()
    mask = os.umask(0o077)
    # What we make we must be able to use ourselves.
    os.umask(mask & 0o077)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        try:
            for number in _SIGNALS:
                signal.signal(number, _interrupt)
            with warnings.catch_warnings():
                # What libraries think of a foreign key is no second line of ours.
                warnings.simplefilter("ignore", UserWarning)
                code = _run(arguments)
            _deafen()
        except Interrupted as error:
            # Between the end of the verb, good or bad, and the first word about it.
            code = _report(error, json_wanted="--json" in arguments, verbose=0)
        return _flushed(code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.umask(mask)


def _flushed(code: int) -> int:
    # What is still buffered must fail here: at the interpreter's end it would change the exit code and print a traceback.
    problem = _flush(sys.stdout)
    if isinstance(problem, OSError) and not isinstance(problem, BrokenPipeError):
        _say(sys.stderr, f"abupdate: standard output: {problem.strerror}")
    _flush(sys.stderr)
    return code or (1 if problem else 0)


def _run(arguments: list[str]) -> int:
    json_wanted = "--json" in arguments
    verbose = 0
    try:
        from abupdate.cli.parser import build

        options = build().parse_args(arguments)
        json_wanted, verbose = options.json, options.verbose
        _log(verbose, quiet=options.quiet)
        module, function = options.handler.split(":")
        return int(getattr(import_module(module), function)(options))
    except (AbupdateError, Interrupted) as error:
        return _report(error, json_wanted=json_wanted, verbose=verbose)
    except SystemExit as end:
        # --help and --version: what they printed is still to be flushed.
        raise SystemExit(_flushed(int(end.code or 0))) from None
    except MemoryError as error:
        return _report(Failed("there is not enough memory"), json_wanted=json_wanted, verbose=verbose, cause=error)
    except BrokenPipeError:
        # Whoever read our output has left; nothing more can be said to them.
        return 1
    except PermissionError as error:
        name = error.filename or "a file"
        return _report(Failed(f"{name}: {error.strerror}", "run as root"), json_wanted=json_wanted, verbose=verbose, cause=error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        blame = ConfigError if error.errno in _BAD_PATH else Failed
        return _report(blame(f"{place}{error.strerror}"), json_wanted=json_wanted, verbose=verbose, cause=error)
    except Exception as error:
        bug = Failed(f"internal error: {type(error).__name__}: {error}", "report it with the output of `abupdate -vv`")
        return _report(bug, json_wanted=json_wanted, verbose=verbose, cause=error)


def _log(verbose: int, *, quiet: bool) -> None:
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    # The journal has the program's name by itself.
    handler.setFormatter(JournalFormatter("%(message)s") if is_journal(2) else PlainFormatter("abupdate: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def _deafen() -> None:
    """A second signal must not cut short the clean-up after the first, or the report."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _deafen()
    raise Interrupted(f"interrupted by {signal.Signals(number).name}", "the same command again goes on where this one ended")


def _report(error: AbupdateError | Interrupted, *, json_wanted: bool, verbose: int, cause: BaseException | None = None) -> int:
    _deafen()
    if verbose >= 2:
        import traceback

        traceback.print_exception(cause or error, file=sys.stderr)
    line = plain(" ".join(error.message.split()))
    hint = error.hint or _HINTS.get(error.exit_code, "")
    start = priority(logging.ERROR) if is_journal(2) else "abupdate: "
    _say(sys.stderr, f"{start}{line}" + (f" ({plain(hint)})" if hint else ""))
    if json_wanted:
        import json

        _say(sys.stdout, json.dumps({"error": line, "hint": hint, "exit_code": error.exit_code}))
    return error.exit_code


def _say(stream: TextIO, line: str) -> None:
    """Print where somebody still listens: the exit code says it too."""
    with contextlib.suppress(OSError):
        print(line, file=stream)


def _mend_streams() -> None:
    """Fill closed standard descriptors, or the next file that is opened, a slot perhaps, becomes somebody's standard output."""
    for number, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], open(number, mode, closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name or description that the terminal's encoding does not have is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush(stream: TextIO) -> OSError | None:
    try:
        stream.flush()
    except OSError as error:
        # The rest of the buffer goes nowhere, or the interpreter tries again at its end.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        return error
    return None


if __name__ == "__main__":
    sys.exit(main())
