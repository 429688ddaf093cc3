"""A whole device whose U-Boot keeps its own environment on the SD card: Linux, agent and saveenv.cmd share it through an update."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.build import ENVIRONMENT
from images.cache import run
from qemu.device import IMAGES, Device
from tests.qemu.guest import boots_seen, confirm, flash, settled_environment
from tests.qemu.mmc_bench import MmcBench
from tests.qemu.test_uboot_saveenv import ARM, HOOK

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(500)]


class MmcDevice(Device):
    """Slots on the disk as ever; environment and boot script on an SD card, which alone has a partition `env`."""

    def arguments(self) -> list[str]:
        """See Device."""
        words = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57", "-bios", str(self.folder / "u-boot.bin")]
        words += ["-device", "sdhci-pci", "-blockdev", f"driver=file,node-name=card0,filename={self.folder}/card.img"]
        return [*words, "-device", "sd-card,drive=card0", *self._common_arguments("virtio-blk-device"), *self._extra]


@pytest.fixture(scope="module")
def parts(images: Path, mmc_uboot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `card.img` and `images`: the common ones, but for the label of the disk's own environment."""
    folder = tmp_path_factory.mktemp("mmc")
    script = folder / "saveenv.cmd"
    text = HOOK.read_text()
    assert text.count("\nabu_if=mmc ") == 1
    script.write_text(text.replace("\nabu_if=mmc ", "\nvirtio scan\nabu_if=virtio "))
    bench = MmcBench(folder, script)
    board = bench.board()
    board.set({**ENVIRONMENT, "abu_arm": ARM})
    board.disk.rename(folder / "card.img")
    for number in ("3", "4"):
        run(["sfdisk", "--quiet", "--part-label", folder / "card.img", number, "unused"])
    own = folder / "images"
    own.mkdir()
    run(["cp", "--sparse=always", (IMAGES / "disk.img").resolve(), own / "disk.img"])
    run(["sfdisk", "--quiet", "--part-label", own / "disk.img", "2", "unused"])
    for name in ("flash.img", "bundles.img"):
        (own / name).symlink_to((IMAGES / name).resolve())
    return folder


@pytest.fixture
def mmc_device(parts: Path, mmc_uboot: Path) -> Iterator[MmcDevice]:
    with MmcDevice(images=parts / "images") as device:
        shutil.copy(parts / "card.img", device.folder)
        shutil.copy(mmc_uboot / "u-boot.bin", device.folder)
        assert device.boot().slot == "A"
        settled_environment(device)
        yield device


def test_update_is_tried_and_confirmed_in_the_environment_that_uboot_saves(mmc_device: MmcDevice) -> None:
    device = mmc_device
    assert device.check("readlink -f /dev/disk/by-partlabel/env") == "/dev/mmcblk0p2"
    before = device.environment()
    flash(device, "v2")
    armed = device.environment()
    assert (armed["BOOT_ORDER"], armed["BOOT_TRIAL"], armed["BOOT_B_LEFT"]) == ("B A", "B", "3")
    up = device.reboot()
    assert (up.slot, up.version, boots_seen(device)) == ("B", "2.0.0", ["A confirmed", "B trial"])
    assert "Saving Environment to MMC" in device.console.text
    assert "abupdate: watchdog armed" in device.console.text
    assert device.environment()["BOOT_B_LEFT"] == "2"
    confirm(device)
    after = settled_environment(device)
    assert (after["BOOT_ORDER"], after["BOOT_A_LEFT"], after["BOOT_B_LEFT"]) == ("B A", "3", "3")
    assert {name: after[name] for name in ("board_serial", "bootcmd", "abu_arm")} == {
        name: before[name] for name in ("board_serial", "bootcmd", "abu_arm")
    }
    device.power_cycle()
    assert device.wait_up().slot == "B"
    assert device.watchdog_resets == 0


def test_a_kernel_that_hangs_ends_on_the_slot_before_when_its_tries_are_used_up(mmc_device: MmcDevice) -> None:
    """The watchdog is armed by the board's own variable in that environment."""
    device = mmc_device
    flash(device, "bad-kernel-hang", tries=2)
    device.type("reboot")
    up = device.wait_up(240)
    assert (up.slot, up.version) == ("A", "1.0.0")
    assert boots_seen(device) == ["A confirmed", "B trial", "B trial", "A confirmed"]
    status = device.status()
    assert (status["attempt"]["phase"], status["slots"]["B"]["state"]) == ("reverted", "bad")
    assert device.watchdog_resets == 2
    settled_environment(device)
    assert device.environment()["BOOT_ORDER"] == "A"
