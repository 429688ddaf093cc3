"""Devices for the tests that boot them: fresh (version 1.0.0 on A), or updated (2.0.0 confirmed on B, 1.0.0 good on A)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from images.ubootbuild import CannotBuild, uboot
from qemu.device import IMAGES, TREE, Device
from qemu.machine import Machine
from qemu.site import Site
from tests.qemu.guest import confirm, flash, settled_environment
from tests.qemu.sites import up
from tests.qemu.x86_guest import Frozen

PREPARED = ("disk.qcow2", "disk.img", "flash.img", "bundles.img")


@pytest.fixture(scope="session")
def images() -> Path:
    """The device images of this very tree (built where they are not; a fraction of a second where they are)."""
    done = subprocess.run([sys.executable, "-m", "images.build"], cwd=TREE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the images cannot be built, see qemu/setup\n{done.stderr[-2000:]}"
    return IMAGES


@pytest.fixture(scope="session")
def mmc_uboot() -> Path:
    """Folder of the U-Boot that keeps its own environment on MMC (see images/ubootbuild.py); what needs it says so where it is left out."""
    try:
        return uboot()
    except CannotBuild as error:
        pytest.skip(f"LEFT OUT: {error}")


@pytest.fixture(scope="session")
def x86_images() -> Path:
    """The images of the x86-64 devices, likewise."""
    done = subprocess.run([sys.executable, "-m", "images.build", "x86"], cwd=TREE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the images cannot be built, see qemu/setup\n{done.stderr[-2000:]}"
    return IMAGES


@pytest.fixture(scope="session")
def frozen(x86_images: Path) -> Iterator[Frozen]:
    """x86-64 devices with 1.0.0 on A that have booted once, for every test to go on from there."""
    with closing(Frozen()) as devices:
        yield devices


@pytest.fixture
def device(images: Path) -> Iterator[Device]:
    """A fresh device, booted, its service at work: version 1.0.0 on slot A, nothing on B."""
    with Device() as fresh:
        assert fresh.boot().slot == "A"
        settled_environment(fresh)
        yield fresh


@pytest.fixture(scope="session")
def updated_folder(images: Path) -> Iterator[Path]:
    """Folder of a device that was updated and confirmed, switched off."""
    with Device() as device:
        device.boot()
        settled_environment(device)
        flash(device, "v2")
        assert device.reboot().slot == "B"
        confirm(device)
        device.poweroff()
        yield device.folder


@pytest.fixture
def updated(updated_folder: Path, tmp_path: Path) -> Iterator[Device]:
    """An updated device, booted, its service at work: version 2.0.0 confirmed on slot B, 1.0.0 good on A."""
    folder = updated_folder.parent / f"{updated_folder.name}-{tmp_path.name}"
    folder.mkdir()
    try:
        for name in PREPARED[1:]:
            (folder / name).hardlink_to((updated_folder / name).resolve())
        shutil.copy(updated_folder / PREPARED[0], folder)
        with Device(folder) as device:
            up = device.boot()
            assert (up.slot, up.version) == ("B", "2.0.0")
            settled_environment(device)
            yield device
    finally:
        shutil.rmtree(folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the console's last lines."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Machine):
                report.sections.append((f"console of {name}", value.console.tail(80)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the power cuts were, with their seeds, also where all is well; and what this machine could not test."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", []) if "LEFT OUT" in str(report.longrepr)]
    if skipped:
        terminalreporter.section(f"LEFT OUT: {len(skipped)} tests")
        terminalreporter.write_line(skipped[0])
    lines = [
        f"{report.nodeid.split('::')[-1]}: {value}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport)
        for name, value in report.user_properties
        if name == "power cuts" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("power cuts")
        for line in sorted(lines):
            terminalreporter.write_line(line)


@pytest.fixture
def site(images: object) -> Iterator[Site]:
    """Four devices that are enrolled and see each other; version 1.0.0 on all."""
    with Site(4) as one:
        one.start()
        one.until("all see each other", lambda: up(one.status(0)) == 4 and up(one.status(3)) == 4, 120)
        yield one
