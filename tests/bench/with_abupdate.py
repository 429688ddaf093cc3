"""abupdate's side of the benchmark: the command line as a user runs it, and the same without the read-back (here only)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from abupdate.bootloaders.uboot import UBootStore
from abupdate.formats.ubootenv import Environment, Scheme, encode
from tests.bench.measure import Sample, timed

_ENV_BYTES = 0x2000
_CLI = [sys.executable, "-m", "abupdate"]


def build_bundle(folder: Path, image: Path, level: int) -> Path:
    """Make update.abu in the folder, and the keyring, unless they are there."""
    bundle = folder / "update.abu"
    if bundle.exists():
        return bundle
    make_keyring(folder)
    spec = folder / "spec.toml"
    spec.write_text(
        f'compatible = "bench"\nversion = "2.0"\nsecurity_counter = 1\nlevel = {level}\n[images.rootfs]\nfile = "{image.name}"\n'
    )
    _run("bundle", "create", spec, "-o", bundle, "--key", folder / "release.pem")
    return bundle


def build_sealed(folder: Path) -> Path:
    """The same as `build_bundle` has made, sealed for a key of its own, sealed.pem."""
    bundle = folder / "sealed.abu"
    if bundle.exists():
        return bundle
    for suffix in (".pem", ".pub"):
        (folder / f"sealed{suffix}").unlink(missing_ok=True)
    _run("keys", "generate", "--recipient", folder / "sealed")
    sealed: list[str | Path] = ["--recipient", folder / "sealed.pub", "--key", folder / "release.pem"]
    _run("bundle", "create", folder / "spec.toml", "-o", bundle, *sealed)
    return bundle


def make_keyring(folder: Path) -> None:
    """Make root and release keys and ring.abk in the folder."""
    for name in ("root", "release"):
        for suffix in (".pem", ".pub"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
        _run("keys", "generate", folder / name)
    (folder / "ring.abk").unlink(missing_ok=True)
    roles: list[str | Path] = ["--root", folder / "root.pub", "--release", folder / "release.pub", "--sign", folder / "root.pem"]
    _run("keys", "keyring", "-o", folder / "ring.abk", "--version", "1", *roles)


class Abupdate:
    """Flashes the bundle to the second of two slots; also the device on which `status` and `confirm` are timed."""

    def __init__(self, folder: Path, slots: tuple[Path, Path]) -> None:
        self._folder = folder / "device"  # not "abupdate": Python would take the folder for the package
        self._keyring = folder / "ring.abk"
        self._env = self._folder / "env"
        self.config = self._folder / "config.toml"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        (self._folder / "fw_env.config").write_text(f"{self._env} 0x0 {_ENV_BYTES:#x}\n{self._env} {_ENV_BYTES:#x} {_ENV_BYTES:#x}\n")
        self.config.write_text(
            f'compatible = "bench"\nstate_dir = "{self._folder / "state"}"\n'
            f'[slots.A]\nimages = {{ rootfs = "{slots[0]}" }}\n[slots.B]\nimages = {{ rootfs = "{slots[1]}" }}\n'
            f'[bootloader]\nkind = "uboot"\nfw_env_config = "{self._folder / "fw_env.config"}"\n'
            f'[device]\nbooted = "A"\n[trust]\nkeyring = "{self._keyring}"\n'
            f'[encryption]\nkeys = ["{folder / "sealed.pem"}"]\n'
        )
        self.fresh()

    def fresh(self) -> None:
        """A board that was never updated: no record, an environment without our variables."""
        shutil.rmtree(self._folder / "state", ignore_errors=True)
        (self._folder / "state").mkdir(mode=0o700)
        copies = [encode(Environment((b"arch=arm",)), _ENV_BYTES, Scheme.INCREMENTAL, flag) for flag in (2, 1)]
        self._env.write_bytes(b"".join(copies))

    def store(self) -> UBootStore:
        """The board's boot state store."""
        return UBootStore(self._folder / "fw_env.config", ("A", "B"))

    def flash(self, bundle: Path, *, read_back: bool) -> Sample:
        """One `abupdate flash`; without read-back through this module, which leaves step 6 out."""
        self.fresh()
        program = _CLI if read_back else [sys.executable, "-m", "tests.bench.with_abupdate"]
        return timed([*program, "-c", str(self.config), "flash", str(bundle)])


def _run(*arguments: str | Path) -> None:
    subprocess.run([*_CLI, *map(str, arguments)], check=True, capture_output=True)


def _without_read_back() -> int:
    from abupdate.__main__ import main
    from abupdate.transfer.slots import DeviceSlots

    DeviceSlots.verify = lambda *_: None  # type: ignore[method-assign]
    return main()


if __name__ == "__main__":
    raise SystemExit(_without_read_back())
