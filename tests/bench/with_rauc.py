"""RAUC's side of the benchmark: Debian's rauc with its service on a private bus, a bundle of the `plain` format."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.measure import Sample, Watch, timed

_PACKAGES = {"rauc": "rauc", "mksquashfs": "squashfs-tools", "dbus-daemon": "dbus-daemon", "openssl": "openssl"}
_READY_S = 10.0


def install_rauc() -> str:
    """Install what is missing with apt; returns RAUC's version line."""
    missing = [package for program, package in _PACKAGES.items() if shutil.which(program) is None]
    if missing:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], check=True, env=env)
        subprocess.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing], check=True, env=env)
    return subprocess.run(["rauc", "--version"], check=True, capture_output=True, text=True).stdout.strip()


def build_bundle(folder: Path, image: Path, level: int) -> Path:
    """Make update.raucb in the folder, unless it is there; zstd at the given level, as abupdate's bundle has it."""
    bundle = folder / "update.raucb"
    if bundle.exists():
        return bundle
    key, cert = folder / "rauc-key.pem", folder / "rauc-cert.pem"
    subject = ["-subj", "/CN=abupdate benchmark", "-days", "3650"]
    command: list[str | Path] = ["openssl", "req", "-x509", "-newkey", "rsa:4096", "-nodes", "-keyout", key, "-out", cert, *subject]
    subprocess.run(command, check=True, capture_output=True)
    content = folder / "rauc-content"
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir()
    (content / "rootfs.img").hardlink_to(image)
    manifest = "[update]\ncompatible=bench\nversion=1\n[bundle]\nformat=plain\n[image.rootfs]\nfilename=rootfs.img\n"
    (content / "manifest.raucm").write_text(manifest)
    options = f"--mksquashfs-args=-comp zstd -Xcompression-level {level}"
    subprocess.run(["rauc", "bundle", f"--cert={cert}", f"--key={key}", options, content, bundle], check=True, capture_output=True)
    shutil.rmtree(content)
    return bundle


class Rauc:
    """Flashes the bundle to the second of two slots."""

    def __init__(self, folder: Path, bundle: Path, slots: tuple[Path, Path]) -> None:
        self._folder = folder / "rauc"
        self._bundle = bundle
        self._conf = self._folder / "system.conf"
        self._status = self._folder / "status"
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / "mnt").mkdir(parents=True)
        self._conf.write_text(
            f"[system]\ncompatible=bench\nbootloader=noop\nmountprefix={self._folder / 'mnt'}\nstatusfile={self._status}\n"
            f"[keyring]\npath={folder / 'rauc-cert.pem'}\n"
            f"[slot.rootfs.0]\ndevice={slots[0]}\ntype=raw\nbootname=A\n"
            f"[slot.rootfs.1]\ndevice={slots[1]}\ntype=raw\nbootname=B\n"
        )

    def flash(self) -> Sample:
        """One `rauc install`. Wall: of the client. CPU and memory: of client and service, which is started for this run alone."""
        self._status.unlink(missing_ok=True)  # or RAUC might find the slot up to date
        with _bus(self._folder) as env:
            command = ["rauc", f"--conf={self._conf}", "service", "--override-boot-slot=A"]
            with (self._folder / "service.log").open("wb") as log:
                service = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
            watch = Watch(service)
            try:
                _wait_for_name(env)
                client = timed(["rauc", f"--conf={self._conf}", "install", self._bundle], env)
            except RuntimeError as error:
                raise RuntimeError(f"{error}\n{(self._folder / 'service.log').read_text()}") from error
            finally:
                service.terminate()
                ended = watch.wait()
        return Sample(client.wall_s, client.cpu_s + ended.cpu_s, client.peak_bytes + ended.peak_bytes)


@contextmanager
def _bus(folder: Path) -> Iterator[dict[str, str]]:
    """A session bus of our own; RAUC uses it instead of the system's when it believes to be started by it."""
    command = ["dbus-daemon", "--session", "--nofork", "--print-address=1", f"--address=unix:path={folder / 'bus'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as daemon:
        assert daemon.stdout is not None
        address = daemon.stdout.readline().strip()
        try:
            yield {**os.environ, "DBUS_STARTER_BUS_TYPE": "session", "DBUS_SESSION_BUS_ADDRESS": address}
        finally:
            daemon.terminate()


def _wait_for_name(env: dict[str, str]) -> None:
    ask = ["dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus", "/", "org.freedesktop.DBus.NameHasOwner"]
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        answer = subprocess.run([*ask, "string:de.pengutronix.rauc"], env=env, capture_output=True, text=True, check=False)
        if "true" in answer.stdout:
            return
        time.sleep(0.05)
    raise RuntimeError("RAUC's service did not come up")
