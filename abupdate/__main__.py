"""Entry point: signals, log set-up, and errors to exit codes."""

from __future__ import annotations

import logging
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import NoReturn

from abupdate.errors import AbupdateError, Failed


class Interrupted(Failed):
    """SIGINT or SIGTERM ended the operation."""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code of the CLI contract."""
    arguments = sys.argv[1:] if argv is None else argv
    json_wanted = "--json" in arguments
    verbose = 0
    try:
        from abupdate.cli.parser import build

        options = build().parse_args(arguments)
        json_wanted, verbose = options.json, options.verbose
        _log(verbose, quiet=options.quiet)
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        module, function = options.handler.split(":")
        return int(getattr(import_module(module), function)(options))
    except AbupdateError as error:
        return _report(error, json_wanted=json_wanted, verbose=verbose)
    except BrokenPipeError:
        # Whoever read our output has left; nothing more can be said to them.
        sys.stdout = None
        return 1
    except PermissionError as error:
        name = error.filename or "a file"
        return _report(Failed(f"{name}: {error.strerror}", "run as root"), json_wanted=json_wanted, verbose=verbose, cause=error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _report(Failed(f"{place}{error.strerror}"), json_wanted=json_wanted, verbose=verbose, cause=error)
    except Exception as error:
        bug = Failed(f"internal error: {type(error).__name__}: {error}", "report it with the output of `abupdate -vv`")
        return _report(bug, json_wanted=json_wanted, verbose=verbose, cause=error)


def _log(verbose: int, *, quiet: bool) -> None:
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="abupdate: %(message)s", stream=sys.stderr)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(f"interrupted by {signal.Signals(number).name}", "the same command again goes on where this one ended")


def _report(error: AbupdateError, *, json_wanted: bool, verbose: int, cause: BaseException | None = None) -> int:
    if verbose >= 2:
        import traceback

        traceback.print_exception(cause or error, file=sys.stderr)
    line = " ".join(error.message.split())
    print(f"abupdate: {line}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr)
    if json_wanted:
        import json

        print(json.dumps({"error": line, "hint": error.hint, "exit_code": error.exit_code}))
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
