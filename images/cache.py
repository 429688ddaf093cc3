"""Keeps what a build step made under a hash of all that went into it, so that a second run only looks and goes on."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
Input = str | Path


def say(text: str) -> None:
    """One progress line on stderr."""
    print(f"images: {text}", file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], **options: object) -> str:
    """Run a command, return its stdout; a failure ends the build with the command and what it said."""
    words = [str(word) for word in command]
    done = subprocess.run(words, text=True, capture_output=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise SystemExit(f"images: {' '.join(words[:6])} ended with {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    return str(done.stdout)


def digest(inputs: Iterable[Input]) -> str:
    """Hash of strings and of files; a folder counts with the names, modes and bytes of all files in it."""
    total = hashlib.sha256()
    for item in inputs:
        if isinstance(item, str):
            total.update(b"s" + item.encode() + b"\0")
            continue
        files = sorted(p for p in item.rglob("*") if p.is_file() or p.is_symlink()) if item.is_dir() else [item]
        for path in files:
            if "__pycache__" in path.parts:
                continue
            content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
            name = path.relative_to(item).as_posix() if item.is_dir() else path.name
            mode = path.lstat().st_mode & 0o111
            total.update(f"f{name}\0{mode}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:16]


class Cache:
    """Results of steps, each a folder `NAME-HASH` that appears complete or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def step(self, name: str, inputs: Iterable[Input], make: Callable[[Path], None], note: str = "") -> Path:
        """Return the folder of this step's result; call `make` with an empty folder where it is not there yet."""
        result = self.folder / f"{name}-{digest([name, *inputs])}"
        self.used.add(result)
        if result.is_dir():
            return result
        start = time.monotonic()
        partial = self.folder / f".{result.name}.{os.getpid()}"
        partial.mkdir()
        try:
            make(partial)
            partial.rename(result)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        say(f"{name}{' (' + note + ')' if note else ''}: {time.monotonic() - start:.1f} s")
        return result

    def drop_unused(self) -> None:
        """Remove results of steps that this run did not use (older versions of them)."""
        kinds = {path.name.rsplit("-", 1)[0] for path in self.used}
        for path in self.folder.iterdir():
            stale = path.is_dir() and path not in self.used and path.name.rsplit("-", 1)[0] in kinds
            if stale:
                shutil.rmtree(path, ignore_errors=True)
