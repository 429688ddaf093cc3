"""A workstation set-up as a user would make it: regular files as slots and environment, real keys, keyring and bundles.

`Kit` holds what tests share (made once by the real CLI), `Workstation` one device. What is compared before and after comes from the
files themselves and from U-Boot's own fw_printenv.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from abupdate.__main__ import main
from abupdate.devices.statedir import StateDir
from abupdate.host.recipients import load_identity

ROOT = Path(__file__).resolve().parents[1]
ENV_BYTES = 0x4000
ROOTFS_BYTES, BOOT_BYTES = 192 << 10, 40 << 10
ROOTFS_PLACE, BOOT_PLACE = 256 << 10, 64 << 10
CONFIG = """\
compatible = "acme"
hardware_revision = "r3"
state_dir = "state"
[slots.A]
images = { rootfs = "rootfs_a", boot = "boot_a" }
[slots.B]
images = { rootfs = "rootfs_b", boot = "boot_b" }
[bootloader]
kind = "uboot"
fw_env_config = "fw_env.config"
[trust]
keyring = "ring.abk"
[watchdog]
device = "no-watchdog"
[health]
dir = "health.d"
[device]
booted = "A"
"""


@dataclass(frozen=True, slots=True)
class Result:
    """How a verb ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output, which must be exactly one JSON document."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass(frozen=True, slots=True)
class Snapshot:
    """slots: SHA-256 of every image's place. printed: what fw_printenv says. raw: the environment's bytes. state: files of state_dir."""

    slots: dict[str, str]
    printed: dict[str, str]
    raw: bytes
    state: dict[str, bytes]


def call(*argv: str | Path) -> Result:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    handlers = list(logging.getLogger().handlers)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(part) for part in argv])
    finally:
        logging.getLogger().handlers[:] = handlers
    return Result(code, out.getvalue(), err.getvalue())


def command(*argv: str | Path) -> list[str]:
    """The command line as a process of its own."""
    return [sys.executable, "-m", "abupdate", *map(str, argv)]


def environ() -> dict[str, str]:
    """Environment of such a process: this checkout's package, and output that is buffered as it is for users."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(ROOT)}


@contextmanager
def standard_input(data: bytes, *, from_file: Path | None = None) -> Iterator[None]:
    """Descriptor 0 of this process is a pipe that holds the data and has ended, or the file, redirected."""
    if from_file is not None:
        from_file.write_bytes(data)
        descriptor = os.open(from_file, os.O_RDONLY)
    else:
        descriptor, other = os.pipe2(os.O_CLOEXEC)
        # Larger than the default, so that everything fits without a second thread.
        os.set_blocking(other, False)
        resize_pipe(other, 1 << 20)
        assert os.write(other, data) == len(data)
        os.close(other)
    before = os.dup(0)
    os.dup2(descriptor, 0)
    os.close(descriptor)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def resize_pipe(descriptor: int, size_bytes: int) -> None:
    """Give a pipe room for this many bytes."""
    import fcntl

    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, size_bytes)


class Kit:
    """Keys, keyring and bundles v1 to v3 in a folder; `bundle` makes others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("root", "release", "stranger"):
            self.make("keys", "generate", folder / name)
        self.ring = folder / "ring.abk"
        roles = ("--root", folder / "root.pub", "--root-threshold", "1", "--release", folder / "release.pub", "--release-threshold", "1")
        self.make("keys", "keyring", "-o", self.ring, "--version", "1", *roles, "--sign", folder / "root.pem")
        self.images: dict[str, dict[str, bytes]] = {}
        for number in (1, 2, 3):
            self.bundle(f"v{number}", version=f"{number}.0", counter=number, seed=number)

    def make(self, *argv: str | Path) -> None:
        """Run a verb that must succeed."""
        done = call(*argv)
        assert done.code == 0, done.err

    def bundle(
        self,
        name: str,
        *,
        version: str = "9.0",
        counter: int = 9,
        compatible: str = "acme",
        top: str = "",
        key: str = "release",
        seed: int = 9,
        rootfs_bytes: int = ROOTFS_BYTES,
        without: str = "",
        extra: bool = False,
        codec: str = "zstd",
        recipients: tuple[str, ...] = (),
    ) -> Path:
        """Path of a bundle of this name; made at the first call. top: more lines of the SPEC. without, extra: images.

        recipients: names of keys that `recipient` has made; the bundle is sealed for them.
        """
        path = self.folder / f"{name}.abu"
        if path.exists():
            return path
        source = random.Random(seed)
        rootfs = source.randbytes(rootfs_bytes // 2) + b"text that compresses well\n" * (rootfs_bytes // 104)
        rootfs = rootfs.ljust(rootfs_bytes, b"\0")
        self.images[name] = {"rootfs": rootfs, "boot": source.randbytes(BOOT_BYTES)}
        if extra:
            self.images[name]["modem"] = source.randbytes(4096)
        self.images[name].pop(without, None)
        lines = [f"compatible = {json.dumps(compatible)}", f'version = "{version}"', f"security_counter = {counter}", "chunk_bytes = 16384"]
        lines += ["level = 3", top]
        for image, data in self.images[name].items():
            (self.folder / f"{name}.{image}").write_bytes(data)
            lines += [f"[images.{image}]", f'file = "{name}.{image}"', f'codec = "{codec}"']
        spec = self.folder / f"{name}.toml"
        spec.write_text("\n".join(lines))
        sealed = [word for name in recipients for word in ("--recipient", self.folder / f"{name}.pub")]
        self.make("bundle", "create", spec, "-o", path, "--key", self.folder / f"{key}.pem", *sealed)
        return path

    def recipient(self, name: str) -> str:
        """Id of a key that opens sealed bundles, NAME.pem; made at the first call."""
        if not (self.folder / f"{name}.pem").exists():
            self.make("keys", "generate", "--recipient", self.folder / name)
        return load_identity(self.folder / f"{name}.pem").key_id.hex()

    def __getitem__(self, name: str) -> Path:
        return self.folder / f"{name}.abu"


class Workstation:
    """One device in a folder. `run` calls a verb in this process, `start` in one of its own."""

    def __init__(self, folder: Path, kit: Kit) -> None:
        self.folder = folder
        self.kit = kit
        self.config = folder / "config.toml"
        self.state = folder / "state"
        self.fw_env_config = folder / "fw_env.config"
        self.env = folder / "env"
        self.places = {f"{slot}.{image}": folder / f"{image}_{slot.lower()}" for slot in ("A", "B") for image in ("rootfs", "boot")}
        for name, path in self.places.items():
            path.touch()
            os.truncate(path, ROOTFS_PLACE if name.endswith("rootfs") else BOOT_PLACE)
        # The running slot holds something that no bundle knows.
        for image in ("rootfs", "boot"):
            with self.places[f"A.{image}"].open("r+b") as file:
                file.write(random.Random(image).randbytes(30000))
        shutil.copyfile(kit.ring, folder / "ring.abk")
        self.config.write_text(CONFIG)
        self.fw_env_config.write_text(f"{self.env} 0x0 {ENV_BYTES:#x}\n{self.env} {ENV_BYTES:#x} {ENV_BYTES:#x}\n")
        self.put_environment("foreign=kept\npreboot=run distro\n")

    def put_environment(self, text: str) -> None:
        """An environment as the factory makes it: mkenvimage, one copy valid, the other erased."""
        made = self.folder / "made"
        subprocess.run(["mkenvimage", "-r", "-s", hex(ENV_BYTES), "-o", made, "-"], input=text.encode(), check=True)
        self.env.write_bytes(made.read_bytes() + b"\xff" * ENV_BYTES)
        made.unlink()

    def edit(self, old: str, new: str) -> None:
        """Change the configuration."""
        text = self.config.read_text()
        assert text.count(old) == 1, old
        self.config.write_text(text.replace(old, new))

    def run(self, *argv: str | Path) -> Result:
        """A verb, in this process."""
        return call("-c", self.config, *argv)

    def ok(self, *argv: str | Path) -> Result:
        """A verb that must succeed."""
        done = self.run(*argv)
        assert done.code == 0, done.err
        return done

    def start(self, *argv: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """A verb as a process with pipes on its output."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environ(), **options}
        return subprocess.Popen(command("-c", self.config, *argv), cwd=self.folder, **options)

    def flash_pipe(self, data: bytes, *argv: str, redirected: bool = False) -> Result:
        """`flash -` of these bytes through a pipe that then ends, or redirected from a file."""
        with standard_input(data, from_file=self.folder / "redirected" if redirected else None):
            return self.run("flash", "-", *argv)

    def status(self) -> dict[str, Any]:
        """The document of `status --json`."""
        return self.ok("--json", "status").document

    def slot_state(self, slot: str) -> str:
        """A slot's state as `status` reports it."""
        return str(self.status()["slots"][slot]["state"])

    def printed(self) -> dict[str, str]:
        """What fw_printenv says; it warns and takes defaults where it finds no valid copy, which is a failure here."""
        done = subprocess.run(["fw_printenv", "-c", self.fw_env_config], check=True, capture_output=True, text=True)
        assert "Cannot" not in done.stderr
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    def setenv(self, name: str, value: str) -> None:
        """Change a variable with fw_setenv."""
        subprocess.run(["fw_setenv", "-c", self.fw_env_config, name, value], check=True, capture_output=True)

    def spoil_environment(self, *copies: int) -> None:
        """Flip a bit in copies of the environment."""
        raw = bytearray(self.env.read_bytes())
        for copy in copies:
            raw[copy * ENV_BYTES + 99] ^= 0x10
        self.env.write_bytes(raw)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every image's place."""
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.places.items()}

    def snapshot(self) -> Snapshot:
        """Everything that a refused verb must leave as it was (the lock file aside)."""
        return Snapshot(self.hashes(), self.printed(), self.env.read_bytes(), self.state_files())

    def state_files(self) -> dict[str, bytes]:
        """Content of state_dir without the lock."""
        if not self.state.is_dir():
            return {}
        return {path.name: path.read_bytes() for path in sorted(self.state.iterdir()) if path.name != "lock"}

    def holds(self, slot: str, bundle: str) -> bool:
        """Whether the slot's places hold the bundle's images, byte for byte."""
        return all(self.places[f"{slot}.{image}"].read_bytes()[: len(data)] == data for image, data in self.kit.images[bundle].items())

    def reboot(self, slot: str) -> None:
        """The slot runs now, in another boot than all attempts so far: the kernel's id here is always the same, the record's is changed."""
        text = self.config.read_text()
        for before in ("A", "B"):
            text = text.replace(f'booted = "{before}"', f'booted = "{slot}"')
        self.config.write_text(text)
        state = StateDir(self.state)
        record, _ = state.load()
        if record is not None and record.attempt is not None:
            state.save(replace(record, attempt=replace(record.attempt, boot_id="an earlier boot")))

    def confirmed(self, bundle: str, slot: str) -> None:
        """Flash, reboot into it, confirm. The other slot runs before."""
        self.ok("flash", self.kit[bundle])
        self.reboot(slot)
        self.ok("confirm")
