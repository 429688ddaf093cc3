"""Modes and owners: what others can write is exit 2 at every verb that reads it, and what abupdate makes is nobody else's."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from abupdate import wiring
from abupdate.config import load
from abupdate.devices.statedir import StateDir
from abupdate.devices.thisboot import LinuxBoot
from abupdate.errors import ConfigError
from tests.workstation import Kit, Workstation, call

STRANGER = 12345
DEVICE = ("status", "flash", "activate", "confirm", "revert", "verify", "doctor")
SETTINGS = (*DEVICE, "health", "info", "keyring")
# What is looked at -> verbs that read it.
READERS: dict[str, tuple[str, ...]] = {
    "config.toml": SETTINGS,
    "config.d": SETTINGS,
    "config.d/10-x.toml": SETTINGS,
    "fw_env.config": DEVICE,
    "state": (*DEVICE, "info", "keyring"),
    "state/record.0": (*DEVICE, "info", "keyring"),
    "state/head.B": (*DEVICE, "info", "keyring"),
    "state/keyring": (*DEVICE, "info", "keyring"),
    "ring.abk": ("flash", "activate", "verify", "info", "keyring"),
    "health.d": ("health",),
    "health.d/10-check": ("health",),
}


def writable(path: Path) -> None:
    path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o020)


def strange(path: Path) -> None:
    os.chown(path, STRANGER, -1)


def linked(path: Path) -> None:
    """The name is a link of root's; what it leads to is a stranger's."""
    target = path.with_name(f".{path.name}.target")
    path.rename(target)
    path.symlink_to(target.name)
    os.chown(target, STRANGER, -1)


@pytest.fixture
def device(workstation: Workstation, kit: Kit) -> Workstation:
    for name in ("config.d", "health.d"):
        (workstation.folder / name).mkdir()
    (workstation.folder / "config.d/10-x.toml").touch()
    (workstation.folder / "health.d/10-check").write_text("#!/bin/sh\n")
    (workstation.folder / "health.d/10-check").chmod(0o755)
    workstation.ok("flash", kit["v1"])
    workstation.ok("revert")
    StateDir(workstation.state).save_keyring((workstation.folder / "ring.abk").read_bytes())
    return workstation


def argv(verb: str, kit: Kit) -> tuple[str | Path, ...]:
    ways: dict[str, tuple[str | Path, ...]] = {
        "flash": ("flash", kit["v1"]),
        "info": ("info", kit["v1"]),
        "keyring": ("keyring", "show"),
    }
    return ways.get(verb, (verb,))


def test_nothing_of_that_is_said_where_all_is_as_it_should_be(device: Workstation, kit: Kit) -> None:
    """The control of the next."""
    for verb in SETTINGS:
        assert device.run(*argv(verb, kit)).code != 2


@pytest.mark.parametrize("spoil", [writable, strange, linked], ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("what", READERS)
def test_exit_2_and_nothing_is_changed(device: Workstation, kit: Kit, what: str, spoil: Callable[[Path], None]) -> None:
    device.ok("flash", kit["v1"], "--no-activate")
    spoil(device.folder / what)
    before = (device.hashes(), device.env.read_bytes(), device.state_files())
    for verb in READERS[what]:
        done = device.run(*argv(verb, kit))
        assert done.code == 2, (verb, done)
        assert Path(what).name in done.err
        assert ("chmod go-w" if spoil is writable else "chown") in done.err
        assert done.err.count("\n") == 1, done.err
    assert (device.hashes(), device.env.read_bytes(), device.state_files()) == before


@pytest.mark.parametrize(("what", "topic"), [("ring.abk", "trust"), ("health.d", "health"), ("health.d/10-check", "health")])
def test_doctor_says_it_among_the_rest(device: Workstation, what: str, topic: str) -> None:
    strange(device.folder / what)
    done = device.run("--json", "doctor")
    assert done.code == 1
    assert [row["grade"] for row in done.document["findings"] if row["topic"] == topic] == ["fail"]


def test_the_service_goes_on_without_a_state_dir_that_others_can_write(device: Workstation, tmp_path: Path) -> None:
    """It must not use it, and it must not leave the watchdog alone: the boot store decides."""
    writable(device.state)
    settings = load(device.config)
    board = wiring.tolerant(settings, service=True)
    assert board.state.load() == (None, 0)
    with pytest.raises(ConfigError):
        wiring.tolerant(settings)


def test_the_service_does_not_go_on_with_more_tries_than_the_bootloader_counts(
    device: Workstation, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it say that it goes on."""
    settings = load(device.config)
    settings = replace(settings, bootloader=replace(settings.bootloader, dialect="rauc"), trial=replace(settings.trial, tries=10))
    writable(device.state)
    with pytest.raises(ConfigError, match="tries = 10"):
        wiring.tolerant(settings, service=True)
    assert not caplog.messages


def test_what_others_can_only_read(device: Workstation, kit: Kit) -> None:
    for what in READERS:
        path = device.folder / what
        path.chmod(0o755 if path.is_dir() or what.startswith("health.d") else 0o644)
    device.ok("status")
    device.ok("health")
    device.ok("flash", kit["v1"])


def test_private_keys_that_others_can_read(kit: Kit, tmp_path: Path) -> None:
    key = tmp_path / "release.pem"
    key.write_bytes((kit.folder / "release.pem").read_bytes())
    for mode, code in ((0o640, 2), (0o604, 2), (0o600, 0)):
        key.chmod(mode)
        done = call("bundle", "create", kit.folder / "v1.toml", "-o", tmp_path / "out.abu", "--key", key)
        assert done.code == code, done.err
        assert code == 0 or ("can be read by others" in done.err and "chmod 600" in done.err)


# -- what abupdate makes


@pytest.fixture(params=[0o000, 0o077], ids=["umask 000", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


def test_on_a_device(workstation: Workstation, kit: Kit, umask: int) -> None:
    workstation.edit('state_dir = "state"', 'state_dir = "data/abupdate"')
    workstation.state = workstation.folder / "data/abupdate"
    before = modes(workstation.folder)
    workstation.ok("flash", kit["v1"], "--no-activate")
    workstation.ok("activate")
    workstation.reboot("B")
    workstation.ok("confirm")
    workstation.ok("flash", kit["v2"])
    workstation.ok("revert")
    workstation.ok("verify", "B")
    workstation.ok("status")
    workstation.ok("health")
    workstation.ok("keyring", "show")
    workstation.ok("info", kit["v1"])
    workstation.spoil_environment(0, 1)
    workstation.run("doctor", "--fix")
    after = modes(workstation.folder)
    assert {name: mode for name, mode in after.items() if name in before} == before
    made = {name: mode for name, mode in after.items() if name not in before}
    folders = {name for name in made if (workstation.folder / name).is_dir()}
    assert folders == {"data", "data/abupdate"}
    assert {made[name] for name in folders} == {0o700}
    assert {"data/abupdate/record.0", "data/abupdate/record.1", "data/abupdate/lock", "data/abupdate/head.B"} <= set(made)
    assert {name: oct(mode) for name, mode in made.items() if name not in folders and mode != 0o600} == {}


def test_in_the_runtime_folder(tmp_path: Path, umask: int) -> None:
    root = tmp_path / "root"
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    (root / "proc/sys/kernel/random/boot_id").write_text("boot\n")
    boot = LinuxBoot({}, Path("/dev/watchdog0"), "A", root)
    boot.mark_settled()
    boot.mark_settled()
    assert boot.settled
    (tmp_path / "file").touch()
    with StateDir(tmp_path / "file/no-state", tmp_path / "run/abupdate/lock").lock():
        pass
    run = modes(root / "run")
    assert (run["abupdate"], run["abupdate/settled"]) == (0o700, 0o600)
    assert modes(tmp_path / "run") == {"abupdate": 0o700, "abupdate/lock": 0o600}


def test_on_a_build_host(tmp_path: Path, kit: Kit, umask: int) -> None:
    """Private keys are the maker's alone whatever the umask; what is for others is for them to read."""
    for name in ("root", "next", "release"):
        assert call("keys", "generate", tmp_path / name).code == 0
    roles = ("--root", tmp_path / "root.pub", "--release", tmp_path / "release.pub")
    assert call("keys", "keyring", "-o", tmp_path / "ring.abk", "--version", "1", *roles, "--sign", tmp_path / "root.pem").code == 0
    bundle = tmp_path / "bundle.abu"
    assert call("bundle", "create", kit.folder / "v1.toml", "-o", bundle, "--key", tmp_path / "release.pem").code == 0
    assert call("bundle", "sign", bundle, "--key", tmp_path / "root.pem").code == 0
    assert call("bundle", "extract", bundle, "-o", tmp_path / "images").code == 0
    found = modes(tmp_path)
    assert {name for name, mode in found.items() if mode & 0o077 and name.endswith(".pem")} == set()
    assert found["release.pem"] == 0o600
    assert {name: oct(mode) for name, mode in found.items() if mode & 0o022} == {}
    assert not [name for name in found if name.endswith((".new", ".tmp"))]


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.EACCES])
@pytest.mark.parametrize("name", ["record.0", "record.1", "head.A", "head.B", "keyring"])
def test_a_file_that_cannot_be_looked_at_is_lost_and_no_reason_to_stop(
    device: Workstation, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad inode on the data partition must not keep the service from petting, confirming and going back."""
    place = str(device.state / name)
    real = os.stat

    def failing(path: object, *more: object, **named: object) -> os.stat_result:
        if str(path) == place:
            raise OSError(number, os.strerror(number), place)
        return real(path, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", failing)
    settings = load(device.config)
    assert wiring.tolerant(settings, service=True).state.load()[0] is not None
    wiring.tolerant(settings)
    assert device.run("status").code == 0
    assert device.run("doctor").code in (0, 1)
