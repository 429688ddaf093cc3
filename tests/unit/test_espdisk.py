"""Which partition the ESP is: a disk with a real partition table, and folders that stand for what the kernel says of it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from abupdate.bootloaders.espdisk import find_partition
from abupdate.errors import ConfigError
from abupdate.formats.efiboot import Partition

GUID = "9aae5d21-a911-4e10-94d9-47e8e3d8cd54"


@dataclass
class Host:
    """A machine's /proc, /sys and /dev, as far as they are looked at."""

    root: Path

    @property
    def esp(self) -> Path:
        return self.root / "efi"

    @property
    def part(self) -> Path:
        return self.root / "sys/devices/virtio1/block/vdz/vdz2"

    def found(self) -> Partition:
        return find_partition(self.esp, mountinfo=self.root / "mountinfo", sysfs=self.root / "sys/dev/block", dev=self.root / "dev")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    for folder in (host.esp, host.part, host.part.parent / "queue", tmp_path / "sys/dev/block", tmp_path / "dev"):
        folder.mkdir(parents=True)
    disk = tmp_path / "dev/vdz"
    with disk.open("wb") as file:
        file.truncate(16 << 20)
    command = ["/usr/sbin/sgdisk", "-n1:2048:+1M", "-n2:6144:+4M", "-t2:ef00", f"-u2:{GUID}", str(disk)]
    subprocess.run(command, check=True, capture_output=True)
    for name, text in (("partition", "2"), ("start", "6144"), ("size", "8192")):
        (host.part / name).write_text(f"{text}\n")
    (host.part.parent / "queue/logical_block_size").write_text("512\n")
    (tmp_path / "sys/dev/block/250:2").symlink_to("../../devices/virtio1/block/vdz/vdz2")
    mounts = f"20 1 250:7 / / rw - ext4 /dev/x rw\n30 20 0:40 / {host.esp} rw - autofs systemd-1 rw\n"
    (tmp_path / "mountinfo").write_text(mounts + f"31 20 250:2 / {host.esp} rw - vfat /dev/vdz2 rw\n")
    return host


def test_number_place_and_guid_come_from_the_disk(host: Host) -> None:
    found = host.found()
    assert (found.number, found.start, found.blocks, found.gpt) == (2, 6144, 8192, True)
    assert str(found) == f"partition 2 ({GUID})"


def test_a_dos_disk_has_its_signature(host: Host) -> None:
    disk = host.root / "dev/vdz"
    disk.write_bytes(bytes(440) + b"\x12\x34\x56\x78" + bytes(66) + b"\x55\xaa" + bytes(4096))
    found = host.found()
    assert (found.number, found.start, found.blocks, found.signature[:4], found.gpt) == (2, 6144, 8192, b"\x12\x34\x56\x78", False)


def test_large_blocks_are_counted_as_the_firmware_counts_them(host: Host) -> None:
    (host.part.parent / "queue/logical_block_size").write_text("4096\n")
    disk = bytearray(16 << 20)
    whole = (host.root / "dev/vdz").read_bytes()
    header, entries = bytearray(whole[512:1024]), bytearray(whole[1024 : 1024 + 256])
    # The same table with blocks of 4096 bytes: 6144 sectors are 768 blocks.
    entries[128 + 32 : 128 + 48] = (768).to_bytes(8, "little") + (768 + 1023).to_bytes(8, "little")
    disk[4096 : 4096 + 512] = header
    disk[8192 : 8192 + 256] = entries
    (host.root / "dev/vdz").write_bytes(disk)
    found = host.found()
    assert (found.start, found.blocks) == (768, 1024)


def refused(host: Host, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        host.found()
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_an_esp_that_is_not_mounted(host: Host) -> None:
    (host.root / "mountinfo").write_text("20 1 250:7 / / rw - ext4 /dev/x rw\n")
    refused(host, "nothing is mounted at")


def test_an_esp_that_is_not_there(host: Host) -> None:
    host.esp.rmdir()
    refused(host, "cannot be looked at")


@pytest.mark.parametrize("file", ["partition", "start", "size"])
def test_something_else_than_a_partition(host: Host, file: str) -> None:
    (host.part / file).unlink()
    refused(host, "no partition of a disk")


def test_numbers_that_are_none(host: Host) -> None:
    (host.part / "start").write_text("x")
    refused(host, "no partition of a disk")


@pytest.mark.parametrize("size", ["0", "256", "1048576"])
def test_blocks_of_a_size_that_no_disk_has(host: Host, size: str) -> None:
    (host.part.parent / "queue/logical_block_size").write_text(size)
    refused(host, "logical blocks of")


def test_a_table_that_says_otherwise_than_the_kernel(host: Host) -> None:
    (host.part / "start").write_text("2048")
    refused(host, "elsewhere than the kernel")
    (host.part / "partition").write_text("200")
    refused(host, "has no partition 200")
    (host.part / "partition").write_text("3")
    refused(host, "has no partition 3")


def test_a_disk_that_is_not_there(host: Host) -> None:
    (host.root / "dev/vdz").unlink()
    refused(host, "cannot be read")


def test_a_disk_without_a_table(host: Host) -> None:
    (host.root / "dev/vdz").write_bytes(bytes(1 << 20))
    refused(host, "neither GPT nor a DOS partition table")
